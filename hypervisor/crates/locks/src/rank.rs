//! The order of locks.

/// The kinds of locks, from the one that is taken first. Two of one rank are never held at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// The operator's state.
    Operator,
    /// The life of a guest or of one of its vCPUs: its start, its turn on a CPU, its end.
    Life,
    /// A guest's clock.
    Clock,
    /// The PCI bus as the guest configures it.
    Pci,
    /// A device.
    Device,
    /// A device's queue.
    Queue,
    /// The table of places of the bus.
    Bus,
    /// A guest's memory.
    Memory,
    /// A device's messages (MSI, MSI-X).
    Messages,
    /// A guest's interrupt controllers.
    Chips,
    /// The machine's interrupt vectors.
    Vectors,
    /// The scheduler.
    Scheduler,
    /// The heap.
    Heap,
    /// The pool of page tables.
    Pool,
    /// Owners of frames.
    Owners,
    /// The machine's frames.
    Frames,
}

impl Rank {
    /// The bit of the rank in the word of the ranks that a CPU holds.
    #[cfg(debug_assertions)]
    pub(crate) const fn bit(self) -> u32 {
        1 << self as u8
    }
}
