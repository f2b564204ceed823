//! Limbo: the place of frames and tables that were taken from a guest's memory, and that some CPU
//! may still use.

use arrayvec::ArrayVec;
use x86defs::HostPhysAddr;
use x86defs::addr::Hfn;

/// Things that limbo has room for.
pub(crate) const ROOM: usize = 64;

/// A thing in limbo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thing {
    /// A page table.
    Table(HostPhysAddr),
    /// A block of 2 MiB of the guest's RAM.
    Block(Hfn),
    /// Frames of the guest's RAM, by the table of the backing that names them.
    Frames(HostPhysAddr),
}

/// Things in the order in which they were taken away.
#[derive(Debug, Default)]
pub(crate) struct Limbo(ArrayVec<(u64, Thing), ROOM>);

impl Limbo {
    /// How many things more have room.
    pub(crate) const fn room(&self) -> usize {
        self.0.remaining_capacity()
    }

    /// Whether nothing is there.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `thing` is taken away in `generation`. `false`: there is no room.
    #[must_use]
    pub(crate) fn put(&mut self, generation: u64, thing: Thing) -> bool {
        self.0.try_push((generation, thing)).is_ok()
    }

    /// Takes the first thing out, if the generation in which it was taken away is `settled`.
    pub(crate) fn take(&mut self, settled: impl FnOnce(u64) -> bool) -> Option<Thing> {
        let (generation, _) = self.0.first()?;
        settled(*generation).then(|| self.0.remove(0).1)
    }
}
