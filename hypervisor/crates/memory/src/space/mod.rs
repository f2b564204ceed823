//! A guest's memory: one truth, its [backing](crate::backing), and two trees of page tables that
//! repeat parts of it: the nested tables, and those of the window in which the hypervisor sees
//! it. Either may be emptied at any moment, and is filled where an access finds nothing.
//!
//! Several CPUs use a guest's memory at once, without asking anybody where a tree has what they
//! want. So a frame is zero before either tree shows it; and what is taken away is in
//! [limbo](crate::limbo) until no CPU can have it cached ([`Debts`]).
//!
//! Zeroing takes long, and the guest's other vCPUs have pages of their own to back: nobody zeroes
//! with the guest's lock held. Whoever was first puts its frame into the backing; the other frame
//! is left over: it is kept for the next touch.

mod change;
mod inside;

pub use change::{change, changed_to, close_and_release, settle};
pub use inside::{Inside, Parts};

use crate::MemoryError;
use crate::debts::Debts;
use crate::frames::{FrameAllocator, Owner};
use crate::holdings::Short;
use crate::slots::{Rights, View};
use crate::stage2::{Attributes, PageSize, Permissions, TableMemory};
use crate::transfer::{Access, Populated};
use core::ops::DerefMut;
use inside::Found;
use x86defs::addr::{Hfn, PAGE_SIZE};
use x86defs::{GuestPhysAddr, HostPhysAddr};

/// The part of a guest's memory that CPUs read without its lock.
#[derive(Debug)]
pub struct Shared {
    /// The regions that there are.
    pub view: View,
    /// Debts of the CPUs.
    pub debts: Debts,
}

impl Shared {
    /// Of a guest without a region, on a machine of `cpus` CPUs.
    #[must_use]
    pub fn new(cpus: usize) -> Self {
        Self { view: View::default(), debts: Debts::new(cpus) }
    }
}

/// The tree in which an access has found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// The guest's.
    Nested,
    /// The hypervisor's.
    Window,
}

impl Tree {
    /// Rights and memory type of a page with these rights.
    const fn attributes(self, rights: Rights) -> Attributes {
        let permissions = match (self, rights) {
            (Self::Nested, Rights::Rom) if cfg!(planted = "nested-page-writable") => {
                Permissions::RWX
            }
            (Self::Nested, Rights::Ram) => Permissions::RWX,
            (Self::Nested, Rights::Rom) => Permissions::READ.union(Permissions::EXECUTE),
            (Self::Window, Rights::Ram) => Permissions::RW.union(Permissions::USER),
            (Self::Window, Rights::Rom) => Permissions::READ.union(Permissions::USER),
        };
        Attributes::ram(permissions)
    }
}

/// A guest's memory, as those see it who work on it.
pub trait Space {
    /// Memory of the page tables.
    type Tables: TableMemory;
    /// The guest's lock, held.
    type Guard<'a>: DerefMut<Target = Inside<Self::Tables>>
    where
        Self: 'a;

    /// The part that needs no lock.
    fn shared(&self) -> &Shared;

    /// Takes the guest's lock.
    fn lock(&self) -> Self::Guard<'_>;

    /// Takes the guest's lock, unless somebody holds it already.
    fn try_lock(&self) -> Option<Self::Guard<'_>>;

    /// Does `work` with the guest's lock held.
    fn locked<R>(&self, work: impl FnOnce(&mut Inside<Self::Tables>) -> R) -> R {
        work(&mut self.lock())
    }

    /// Does `work` with the machine's frames locked, if there are any; the guest's lock may be
    /// held.
    fn frames<R>(&self, work: impl FnOnce(&mut FrameAllocator<'_>) -> R) -> Option<R>;

    /// Gives 2^`order` frames of `owner`'s back to the machine; the guest's lock may be held.
    fn give_back(&self, first: Hfn, order: u8, owner: Owner);

    /// Zeroes `len` bytes from `offset` on in the block of this size at `first`, which the caller
    /// alone has. Returns how many it could not zero. No lock is held meanwhile.
    fn zero(&self, first: Hfn, size: PageSize, offset: u64, len: usize) -> usize;

    /// Makes CPU `cpu` look soon at what it owes.
    fn kick(&self, cpu: usize);
}

/// A frame that was taken for a page, and is to be zeroed.
#[derive(Debug)]
#[must_use]
pub(crate) struct Wanted {
    pub(crate) first: Hfn,
    pub(crate) size: PageSize,
    /// The place in the backing, aligned to the size.
    pub(crate) place: u64,
}

/// Needs of an access.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// Nothing: the tree shows the page.
    Shown(Populated),
    /// A frame.
    Wanted(Wanted),
}

/// Makes `tree` show the page at `gpa` for an access of this kind, with a frame behind it.
///
/// # Errors
/// [`MemoryError`] where there is no memory or it may not be written, or no frame is left.
pub fn populate<S: Space>(
    space: &S,
    gpa: GuestPhysAddr,
    tree: Tree,
    access: Access,
) -> Result<Populated, MemoryError> {
    match space.locked(|inside| admit(space, inside, gpa, tree, access))? {
        Admitted::Shown(populated) => Ok(populated),
        Admitted::Wanted(wanted) => {
            let zeroed = usize::try_from(wanted.size.bytes())
                .is_ok_and(|len| space.zero(wanted.first, wanted.size, 0, len) == 0);
            space.locked(|inside| arrive(space, inside, wanted, zeroed, (gpa, tree, access)))
        }
    }
}

/// Shows the page at `gpa`, if it is backed, or takes a frame for it, which is to be zeroed.
pub(crate) fn admit<S: Space>(
    space: &S,
    inside: &mut Inside<S::Tables>,
    gpa: GuestPhysAddr,
    tree: Tree,
    access: Access,
) -> Result<Admitted, MemoryError> {
    let region = inside.region(gpa, access)?;
    let size = match inside.found(gpa, &region) {
        Found::Backed(hpa, size) => {
            return inside.show(gpa, &region, (hpa, size), tree).map(Admitted::Shown);
        }
        Found::Nothing(size) => size,
    };
    let take = |inside: &mut Inside<S::Tables>, size| {
        let taken = space.frames(|frames| inside.holdings().take(frames, size));
        taken.unwrap_or(Err(Short::Gone))
    };
    let mut size = size;
    if size == PageSize::Size2M {
        if inside.put_ready(gpa, &region)
            && let Found::Backed(hpa, size) = inside.found(gpa, &region)
        {
            return inside.show(gpa, &region, (hpa, size), tree).map(Admitted::Shown);
        }
        match take(inside, size) {
            Ok(first) => {
                let place = region.place(gpa.align_down(size.bytes()).as_u64());
                return Ok(Admitted::Wanted(Wanted { first, size, place }));
            }
            Err(Short::Away) => return Ok(Admitted::Shown(Populated::Soon)),
            // There is no such block.
            Err(Short::Gone) => size = PageSize::Size4K,
        }
    }
    let place = region.place(gpa.align_down(PAGE_SIZE).as_u64());
    if !inside.make_table(place) {
        return Err(MemoryError::NoFrame(gpa));
    }
    match take(inside, size) {
        Ok(first) => Ok(Admitted::Wanted(Wanted { first, size, place })),
        Err(Short::Away) => Ok(Admitted::Shown(Populated::Soon)),
        Err(Short::Gone) => Err(MemoryError::NoFrame(gpa)),
    }
}

/// A frame that was wanted for the page at `gpa` comes, if it was `zeroed`. Another one may have
/// been faster; and there may be no memory at `gpa` any more.
pub(crate) fn arrive<S: Space>(
    space: &S,
    inside: &mut Inside<S::Tables>,
    wanted: Wanted,
    zeroed: bool,
    (gpa, tree, access): (GuestPhysAddr, Tree, Access),
) -> Result<Populated, MemoryError> {
    let Wanted { first, size, place } = wanted;
    if !zeroed {
        let _ = space.frames(|frames| inside.holdings().undo(frames, first, size));
        return Err(MemoryError::NoFrame(gpa));
    }
    if inside.put(place, first, size) {
        inside.holdings().shown(size);
    } else {
        let _ = space.frames(|frames| inside.holdings().keep(frames, first, size));
    }
    let region = inside.region(gpa, access)?;
    match inside.found(gpa, &region) {
        Found::Backed(hpa, size) => inside.show(gpa, &region, (hpa, size), tree),
        // Something else stands there since.
        Found::Nothing(_) => Ok(Populated::Soon),
    }
}

/// Backs the 2 MiB around `gpa`, which the guest has touched, with a block that was zeroed ahead,
/// if they are all RAM, were never backed, and all tables exist. `false`: nothing has changed.
#[inline(always)]
pub fn touch<S: Space>(space: &S, gpa: GuestPhysAddr) -> bool {
    // Most accesses that are not to RAM end here, without the lock.
    let Some((region, seen)) = space.shared().view.find_with_sequence(gpa) else { return false };
    if region.rights != Rights::Ram || !region.holds_whole(gpa.as_u64(), PageSize::Size2M.bytes()) {
        return false;
    }
    let Some(mut inside) = space.try_lock() else { return false };
    space.shared().view.is_at(seen) && inside.touch(gpa, &region)
}

/// Zeroes some memory ahead, for first touches to come. `false` if there is nothing to do,
/// or nothing but what others are at.
pub fn zero_ahead<S: Space>(space: &S) -> bool {
    // A holder of the lock needs it more.
    let Some(mut inside) = space.try_lock() else { return false };
    if inside.holdings().wants_block() {
        let _ = space.frames(|frames| inside.holdings().begin_block(frames));
    }
    let piece = inside.holdings().begin_piece();
    drop(inside);
    let Some(piece) = piece else { return false };
    let left = space.zero(piece.block, PageSize::Size2M, piece.offset, piece.len);
    space.locked(|inside| inside.holdings().end_piece(piece, left));
    true
}

/// Pins the frame behind the page at `gpa`, for a device that `access`es it by itself, and returns
/// where the frame is. It stays, whatever stands at `gpa` later, until it is
/// [unpinned](FrameAllocator::unpin).
///
/// # Errors
/// Those of [`populate`]; [`MemoryError::Moved`] where something else stands there again and again.
pub fn pin<S: Space>(
    space: &S,
    gpa: GuestPhysAddr,
    access: Access,
) -> Result<HostPhysAddr, MemoryError> {
    for _ in 0..crate::transfer::TRIES {
        let pinned = space.locked(|inside| {
            let region = inside.region(gpa, access)?;
            let Found::Backed(hpa, _) = inside.found(gpa, &region) else { return Ok(None) };
            let (frame, owner) = (hpa.page(), inside.holdings().owner());
            let pinned = space.frames(|frames| frames.pin(frame, owner));
            match pinned {
                Some(Ok(())) => Ok(Some(frame.base())),
                _ => Err(MemoryError::NoFrame(gpa)),
            }
        })?;
        if let Some(frame) = pinned {
            return Ok(frame);
        }
        while populate(space, gpa, Tree::Window, access)? == Populated::Soon {
            crate::sync::spin();
        }
    }
    Err(MemoryError::Moved(gpa))
}

#[cfg(test)]
mod tests;
