//! Backing a page of a guest's RAM: in the hypervisor's window on it and in the nested
//! tables, in an order in which nobody sees the frame too early.
//!
//! Other vCPUs of the guest run meanwhile, and the hypervisor copies for them through the
//! window without asking anybody. So a frame is zero before either tree shows it, and nothing that
//! was shown is taken back.
//!
//! Zeroing takes long, and the guest's other vCPUs have pages of their own to back: nobody zeroes
//! with the guest's lock held. A frame is taken when both trees have an empty entry for it, and
//! they are asked again when it is zero. If another vCPU was first, the frame is left over: if it
//! is zero, it is kept for the next touch.

use crate::frames::FrameAllocator;
use crate::holdings::{Holdings, Short};
use crate::stage2::{Attributes, Format, HostTable, MapErrorKind, Mapper, PageSize, TableMemory};
use x86defs::HostPhysAddr;
use x86defs::addr::Hfn;

/// A page of RAM that is to be backed.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The address in the hypervisor's window.
    pub window: u64,
    /// The guest-physical address.
    pub nested: u64,
    /// The size.
    pub size: PageSize,
    /// Rights and memory type in the window.
    pub window_attributes: Attributes,
    /// Rights and memory type in the nested tables.
    pub nested_attributes: Attributes,
}

/// The outcome for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// It is backed now.
    Now,
    /// It, or a part of it, was backed before: nothing has changed.
    Before,
    /// All frames that are left are being zeroed for others, for this page perhaps: it is to
    /// be tried again.
    Soon,
    /// There is no frame for it, or none for a table.
    NoFrame,
}

/// The state behind a guest's lock: both trees, and the books of its frames.
pub trait Guarded {
    /// Makes the tables for `page`.
    ///
    /// # Errors
    /// Those of [`make_room`].
    fn make_room(&mut self, page: &Page) -> Result<(), Backing>;

    /// Does the work of [`show`].
    fn show(&mut self, page: &Page, frame: HostPhysAddr) -> bool;

    /// The guest's frames.
    fn holdings(&mut self) -> &mut Holdings;
}

/// A guest's memory, which several CPUs use at a time.
pub trait Space {
    /// The state behind the guest's lock.
    type Guarded: Guarded;

    /// Does `work` with the guest's lock held.
    fn locked<R>(&self, work: impl FnOnce(&mut Self::Guarded) -> R) -> R;

    /// Does `work` with the guest's lock held, unless somebody holds it already.
    fn try_locked<R>(&self, work: impl FnOnce(&mut Self::Guarded) -> R) -> Option<R>;

    /// Does `work` with the machine's frames locked, if there are any; the guest's lock may be
    /// held.
    fn frames<R>(&self, work: impl FnOnce(&mut FrameAllocator<'_>) -> R) -> Option<R>;

    /// Zeroes `len` bytes from `offset` on in the block of this size at `first`, which the caller
    /// alone has. Returns how many it could not zero. No lock is held meanwhile.
    fn zero(&self, first: Hfn, size: PageSize, offset: u64, len: usize) -> usize;
}

/// Backs `page` with a block of its size: one that was zeroed ahead, or a promised one, which
/// is zeroed now.
pub fn back<S: Space>(space: &S, page: &Page) -> Backing {
    let size = page.size;
    let first = match space.locked(|guest| begin(space, guest, page)) {
        Ok(first) => first,
        Err(backing) => return backing,
    };
    let zeroed =
        usize::try_from(size.bytes()).is_ok_and(|len| space.zero(first, size, 0, len) == 0);
    space.locked(|guest| end(space, guest, page, first, zeroed))
}

/// Takes a frame for `page`, which is to be zeroed.
fn begin<S: Space>(space: &S, guest: &mut S::Guarded, page: &Page) -> Result<Hfn, Backing> {
    guest.make_room(page)?;
    if page.size == PageSize::Size2M && show_ready(guest, page) {
        return Err(Backing::Now);
    }
    let taken = space.frames(|frames| guest.holdings().take(frames, page.size));
    taken.unwrap_or(Err(Short::Gone)).map_err(|short| match short {
        Short::Gone => Backing::NoFrame,
        Short::Away => Backing::Soon,
    })
}

/// Shows the frame that was taken for `page`, if it was `zeroed` and nobody was faster.
fn end<S: Space>(
    space: &S,
    guest: &mut S::Guarded,
    page: &Page,
    first: Hfn,
    zeroed: bool,
) -> Backing {
    if zeroed && guest.show(page, first.base()) {
        guest.holdings().shown(page.size);
        return Backing::Now;
    }
    let _ = space.frames(|frames| match zeroed {
        true => guest.holdings().keep(frames, first, page.size),
        false => guest.holdings().undo(frames, first, page.size),
    });
    // All tables were there: what `show` has met is a page.
    if zeroed { Backing::Before } else { Backing::NoFrame }
}

/// Backs `page`, a block of 2 MiB, with one that was zeroed ahead, where all tables exist. `false`:
/// nothing has changed.
#[inline(always)]
pub fn show_ready<G: Guarded>(guest: &mut G, page: &Page) -> bool {
    let Some(frame) = guest.holdings().ready() else { return false };
    if !guest.show(page, frame.base()) {
        return false;
    }
    guest.holdings().ready_shown();
    true
}

/// Zeroes some memory ahead, for first touches to come. `false` if there is nothing to do,
/// or nothing but what others are at.
pub fn zero_ahead<S: Space>(space: &S) -> bool {
    // A holder of the lock needs it more.
    let piece = space.try_locked(|guest| {
        if guest.holdings().wants_block() {
            let _ = space.frames(|frames| guest.holdings().begin_block(frames));
        }
        guest.holdings().begin_piece()
    });
    let Some(piece) = piece.flatten() else { return false };
    let left = space.zero(piece.block, PageSize::Size2M, piece.offset, piece.len);
    space.locked(|guest| guest.holdings().end_piece(piece, left));
    true
}

/// Makes the tables that `page` needs in both trees.
///
/// # Errors
/// [`Backing::Before`] where something is mapped in its range in one of them,
/// [`Backing::NoFrame`] where there is no frame for a table.
pub fn make_room<M: TableMemory, F: Format>(
    mem: &mut M,
    window: &mut Mapper<HostTable>,
    nested: &mut Mapper<F>,
    page: &Page,
) -> Result<(), Backing> {
    let seen = window.make_vacancy(mem, page.window, page.size);
    let lived_in = nested.make_vacancy(mem, page.nested, page.size);
    match (seen, lived_in) {
        (Ok(_), Ok(_)) => Ok(()),
        (Err(MapErrorKind::AlreadyMapped), _) | (_, Err(MapErrorKind::AlreadyMapped)) => {
            Err(Backing::Before)
        }
        _ => Err(Backing::NoFrame),
    }
}

/// Backs `page` with `frame` (aligned, all zero) where all tables exist and both trees have
/// an empty entry. `false`: nothing has changed.
#[inline(always)]
pub fn show<M: TableMemory, F: Format>(
    mem: &mut M,
    window: &mut Mapper<HostTable>,
    nested: &mut Mapper<F>,
    page: &Page,
    frame: HostPhysAddr,
) -> bool {
    let Some(seen) = window.vacancy(mem, page.window, page.size) else { return false };
    let Some(lived_in) = nested.vacancy(mem, page.nested, page.size) else { return false };
    window.fill(mem, seen, frame, page.window_attributes);
    nested.fill(mem, lived_in, frame, page.nested_attributes);
    true
}

#[cfg(test)]
mod tests;
