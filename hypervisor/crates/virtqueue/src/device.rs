//! The device's half of a queue.

use crate::chain::{Chain, Segment, Unfit};
use crate::layout::{DESCRIPTOR, Layout};
use crate::memory::RingMemory;
use crate::suppress::{NO_INTERRUPT, NO_NOTIFY, passed};
use core::fmt::Debug;
use thiserror::Error;

/// The chain goes on with the descriptor that `next` names.
const NEXT: u16 = 1;
/// The device writes the buffer.
const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// A fault of the driver's, after which the device must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueueError<E: Debug> {
    /// The rings lie where there is no memory.
    #[error("a ring lies where there is no memory: {0:?}")]
    Memory(E),
    /// The available index went on by more than the entries that the device has given back.
    #[error("the available index is {to}, after {from}: more than the queue has room for")]
    Jumped {
        /// The index up to which the device has taken chains.
        from: u16,
        /// The index in memory.
        to: u16,
    },
    /// A chain begins or goes on with a descriptor that there is not.
    #[error("there is no descriptor {0}")]
    NoDescriptor(u16),
    /// A chain has more descriptors than the queue has entries, or goes in a circle.
    #[error("a chain of more descriptors than the queue has entries")]
    TooLong,
    /// A buffer is empty.
    #[error("a buffer of no bytes at {0:#x}")]
    Empty(u64),
    /// A buffer reaches beyond the end of the address space.
    #[error("a buffer at {0:#x} reaches beyond the end of memory")]
    Beyond(u64),
    /// A chain has 2^32 bytes or more.
    #[error("a chain of 4 GiB or more")]
    Bytes,
    /// A buffer that the device reads stands behind one that it writes.
    #[error("a buffer to read stands behind one to write")]
    Order,
    /// A table of descriptors is not as it must be.
    #[error("an indirect table {0}")]
    Indirect(&'static str),
}

/// State of a queue's device half that goes on in another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Index of the next chain to take.
    pub next_available: u16,
    /// Index of the next chain to give back.
    pub next_used: u16,
    /// Index up to which the driver was told of chains that were given back.
    pub told: u16,
}

/// The device's half of a queue.
#[derive(Clone, Debug)]
pub struct DeviceQueue {
    layout: Layout,
    event_index: bool,
    indirect: bool,
    state: DeviceState,
    /// Index up to which chains that were given back are seen by the driver.
    published: u16,
}

/// A descriptor as it was read.
struct Descriptor {
    at: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read<M: RingMemory>(memory: &M, at: u64) -> Result<Self, QueueError<M::Error>> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ .., m, n] =
            memory.read::<16>(at).map_err(QueueError::Memory)?;
        Ok(Self {
            at: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
            flags: u16::from_le_bytes(flags),
            next: u16::from_le_bytes([m, n]),
        })
    }
}

impl DeviceQueue {
    /// A queue that has just been enabled. `event_index` and `indirect`: the features that were
    /// negotiated.
    #[must_use]
    pub fn new(layout: Layout, event_index: bool, indirect: bool) -> Self {
        Self::restored(layout, event_index, indirect, DeviceState::default())
    }

    /// A queue that goes on from `state`.
    #[must_use]
    pub fn restored(layout: Layout, event_index: bool, indirect: bool, state: DeviceState) -> Self {
        Self { layout, event_index, indirect, state, published: state.next_used }
    }

    /// The place of its rings.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// State from which another one can go on.
    #[must_use]
    pub const fn state(&self) -> DeviceState {
        self.state
    }

    /// Chains that were taken and not given back.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.state.next_available.wrapping_sub(self.state.next_used)
    }

    /// How many chains are available. Loads the index.
    fn available<M: RingMemory>(&self, memory: &M) -> Result<u16, QueueError<M::Error>> {
        let to = memory.load(self.layout.available_index()).map_err(QueueError::Memory)?;
        let from = self.state.next_available;
        let room = self.layout.size().wrapping_sub(self.in_flight());
        let count = to.wrapping_sub(from);
        if count > room { Err(QueueError::Jumped { from, to }) } else { Ok(count) }
    }

    /// Takes the next chain into `chain`. `false`: there is none.
    ///
    /// # Errors
    /// The driver's fault; the queue is of no use any more.
    pub fn take<M: RingMemory>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
    ) -> Result<bool, QueueError<M::Error>> {
        if self.available(memory)? == 0 {
            return Ok(false);
        }
        let entry = self.layout.available_entry(self.state.next_available);
        let head = memory.load(entry).map_err(QueueError::Memory)?;
        chain.begin(head);
        self.follow(memory, head, chain)?;
        self.state.next_available = self.state.next_available.wrapping_add(1);
        Ok(true)
    }

    /// Puts the chain that was [taken](Self::take) last back: it will be the next one. For one
    /// that can't be served now.
    pub fn put_back(&mut self) {
        self.state.next_available = self.state.next_available.wrapping_sub(1);
    }

    /// Reads the chain that begins with the descriptor `head`.
    fn follow<M: RingMemory>(
        &self,
        memory: &M,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), QueueError<M::Error>> {
        let mut number = head;
        loop {
            if number >= self.layout.size() {
                return Err(QueueError::NoDescriptor(number));
            }
            if chain.len() >= self.layout.size().into() {
                return Err(QueueError::TooLong);
            }
            let descriptor = Descriptor::read(memory, self.layout.descriptor(number))?;
            if descriptor.flags & INDIRECT != 0 {
                return self.follow_table(memory, &descriptor, chain);
            }
            push(chain, &descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            number = descriptor.next;
        }
    }

    /// Reads the end of a chain, which stands in a table of its own.
    fn follow_table<M: RingMemory>(
        &self,
        memory: &M,
        table: &Descriptor,
        chain: &mut Chain,
    ) -> Result<(), QueueError<M::Error>> {
        if !self.indirect {
            return Err(QueueError::Indirect("that was not negotiated"));
        }
        if table.flags & NEXT != 0 {
            return Err(QueueError::Indirect("in the middle of a chain"));
        }
        let bytes = u64::from(table.len);
        if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR) {
            return Err(QueueError::Indirect("whose length is no multiple of 16"));
        }
        if table.at.checked_add(bytes).is_none() {
            return Err(QueueError::Beyond(table.at));
        }
        let entries = bytes / DESCRIPTOR;
        let mut number = 0u64;
        loop {
            if number >= entries {
                return Err(QueueError::Indirect("that goes on behind its end"));
            }
            if chain.len() >= self.layout.size().into() {
                return Err(QueueError::TooLong);
            }
            let at = table.at.wrapping_add(number.wrapping_mul(DESCRIPTOR));
            let descriptor = Descriptor::read(memory, at)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(QueueError::Indirect("within another"));
            }
            push(chain, &descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            number = descriptor.next.into();
        }
    }

    /// Gives a chain back, of which the device wrote `written` bytes. The driver sees it after
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// The ring lies where there is no memory.
    pub fn give_back<M: RingMemory>(
        &mut self,
        memory: &M,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError<M::Error>> {
        let [a, b, c, d] = u32::from(head).to_le_bytes();
        let [e, f, g, h] = written.to_le_bytes();
        let entry = self.layout.used_entry(self.state.next_used);
        memory.write(entry, &[a, b, c, d, e, f, g, h]).map_err(QueueError::Memory)?;
        self.state.next_used = self.state.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver the chains that were given back. Whether it wants to be interrupted for
    /// them.
    ///
    /// # Errors
    /// The ring lies where there is no memory.
    pub fn publish<M: RingMemory>(&mut self, memory: &M) -> Result<bool, QueueError<M::Error>> {
        let new = self.state.next_used;
        if new != self.published {
            memory.store(self.layout.used_index(), new).map_err(QueueError::Memory)?;
            self.published = new;
        }
        if new == self.state.told {
            return Ok(false);
        }
        // The index is there before the driver's wish is read; the driver looks at the index once
        // more after it has written its wish.
        memory.fence();
        let wanted = if self.event_index {
            let event = memory.load(self.layout.used_event()).map_err(QueueError::Memory)?;
            passed(event, self.state.told, new)
        } else {
            let flags = memory.load(self.layout.available_flags()).map_err(QueueError::Memory)?;
            flags & NO_INTERRUPT == 0
        };
        self.state.told = new;
        Ok(wanted)
    }

    /// The driver need not notify any more: the device is about to look at the queue. With event
    /// indices nothing has to be written: the index of which the device wants to hear has passed.
    ///
    /// # Errors
    /// The ring lies where there is no memory.
    pub fn stop_notifications<M: RingMemory>(
        &self,
        memory: &M,
    ) -> Result<(), QueueError<M::Error>> {
        if self.event_index {
            return Ok(());
        }
        memory.store(self.layout.used_flags(), NO_NOTIFY).map_err(QueueError::Memory)
    }

    /// The device has found the queue empty: the driver is to notify of the next chain. Whether
    /// there is one already, of which it may not have.
    ///
    /// # Errors
    /// The ring lies where there is no memory, or the driver's index is wrong.
    pub fn want_notifications<M: RingMemory>(
        &self,
        memory: &M,
    ) -> Result<bool, QueueError<M::Error>> {
        let (at, value) = if self.event_index {
            (self.layout.available_event(), self.state.next_available)
        } else {
            (self.layout.used_flags(), 0)
        };
        memory.store(at, value).map_err(QueueError::Memory)?;
        memory.fence();
        Ok(self.available(memory)? != 0)
    }
}

/// Adds a descriptor's buffer to the chain.
fn push<E: Debug>(chain: &mut Chain, descriptor: &Descriptor) -> Result<(), QueueError<E>> {
    let Descriptor { at, len, flags, .. } = *descriptor;
    if len == 0 {
        return Err(QueueError::Empty(at));
    }
    if at.checked_add(len.into()).is_none() {
        return Err(QueueError::Beyond(at));
    }
    chain.push(Segment { at, len }, flags & WRITE != 0).map_err(|unfit| match unfit {
        Unfit::Bytes => QueueError::Bytes,
        Unfit::Room => QueueError::TooLong,
        Unfit::Order => QueueError::Order,
    })
}
