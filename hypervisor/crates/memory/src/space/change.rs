//! Changes of what stands where in a guest's memory, and its end.

use super::{Inside, Parts, Shared, Space};
use crate::backing::{BLOCK, Backing, Held};
use crate::holdings::order;
use crate::limbo::Thing;
use crate::slots::{Region, Regions, Slot, SlotError, changed, flatten};
use crate::stage2::{Detached, PageSize, TableMemory};
use alloc::vec::Vec;
use core::ops::Range;
use x86defs::GuestPhysAddr;
use x86defs::addr::Hfn;

/// Blocks of 2 MiB that a change may touch: some ten microseconds' work with the lock held.
const MOST_BLOCKS: usize = 1024;
/// Tables of small pages that may stand for a block: one in each tree.
const TABLES: usize = 2;
/// Things that are freed in one step.
const AT_ONCE: usize = 4;
/// Blocks of the backing that are looked at in one step for what could be given back.
const AT_A_TIME: u64 = 256;

impl From<Held> for Option<Thing> {
    fn from(held: Held) -> Self {
        match held {
            Held::Nothing => None,
            Held::Block(block) => Some(Thing::Block(block.page())),
            Held::Table(table) => Some(Thing::Frames(table)),
        }
    }
}

impl<T: TableMemory> Inside<T> {
    /// Changes the slots.
    fn change(
        &mut self,
        shared: &Shared,
        edit: impl FnOnce(&mut Vec<Slot>),
    ) -> Result<(), SlotError> {
        if self.closed {
            return Err(SlotError::Range);
        }
        let mut slots = self.slots.clone();
        edit(&mut slots);
        let regions = flatten(&slots, self.parts.backing.bytes())?;
        if regions.iter().any(|region| self.has_fixed(region.start..region.end)) {
            return Err(SlotError::Fixed);
        }
        // Nothing is shown of a guest that has no regions yet.
        let shown = !self.regions.is_empty();
        let mut needed = 0_usize;
        for (count, block) in (1..).zip(blocks(changed(&self.regions, &regions))).filter(|_| shown)
        {
            needed = needed.saturating_add(self.tables_at(block));
            if needed > self.limbo.room() || count > MOST_BLOCKS {
                return Err(SlotError::TooMuch);
            }
        }
        let old = core::mem::replace(&mut self.regions, regions);
        self.slots = slots;
        shared.view.publish(&self.regions);
        if !shown {
            return Ok(());
        }
        let changed: Vec<Range<u64>> = changed(&old, &self.regions).collect();
        for block in blocks(changed.into_iter()) {
            self.detach(block, shared);
            self.show_fixed(&(block..block.saturating_add(BLOCK)));
        }
        self.owe(shared);
        Ok(())
    }

    /// Tables of small pages that stand for the 2 MiB at `gpa`.
    fn tables_at(&self, gpa: u64) -> usize {
        let Parts { tables, window, at, nested, .. } = &self.parts;
        let seen = at.at(GuestPhysAddr::new(gpa), BLOCK);
        let seen = seen.map_or(Detached::Nothing, |at| window.attached(tables, at));
        let all = [seen, nested.attached(tables, gpa)];
        all.iter().filter(|detached| matches!(detached, Detached::Table(_))).count()
    }

    /// Takes away what both trees show of the 2 MiB at `gpa`. There is room in limbo.
    fn detach(&mut self, gpa: u64, shared: &Shared) {
        let Parts { tables, window, at, nested, .. } = &mut self.parts;
        let seen = at.at(GuestPhysAddr::new(gpa), BLOCK);
        let seen = seen.map_or(Detached::Nothing, |at| window.detach(tables, at));
        for detached in [seen, nested.detach(tables, gpa)] {
            if let Detached::Table(table) = detached {
                self.lose(Thing::Table(table), shared);
            }
        }
    }

    /// `thing` goes to limbo, where there is room.
    fn lose(&mut self, thing: Thing, shared: &Shared) {
        let kept = self.limbo.put(shared.debts.next_generation(), thing);
        debug_assert!(kept, "there was room");
    }

    /// Whatever was taken away is owed.
    fn owe(&mut self, shared: &Shared) {
        shared.debts.set_waiting(!self.limbo.is_empty());
        shared.debts.owe();
    }

    /// Nobody uses `thing` any more: gives frames to `free`, and frees tables.
    pub(super) fn let_go(&mut self, thing: Thing, free: &mut impl FnMut(Hfn, u8)) {
        let tables = &mut self.parts.tables;
        match thing {
            Thing::Table(table) => tables.free_table(table),
            Thing::Block(first) => free(first, order(PageSize::Size2M)),
            Thing::Frames(table) => {
                for frame in Backing::frames(tables, table) {
                    free(frame, order(PageSize::Size4K));
                }
                tables.free_table(table);
            }
        }
    }

    /// From now on there is no memory any more, for nobody. `false`: limbo has no room for all that
    /// is taken away; the rest is another call's.
    fn close(&mut self, shared: &Shared) -> bool {
        self.closed = true;
        shared.view.publish(&Regions::new());
        // A region somewhere else than at its own number is not found again from the backing.
        while let Some(region) = self.regions.last_mut() {
            let gone = region.start == region.offset || region.start >= region.end;
            if gone {
                self.regions.pop();
                continue;
            }
            let block = region.start & !BLOCK.wrapping_sub(1);
            let next = block.saturating_add(BLOCK).min(region.end);
            let rest = Region { start: next, offset: region.place(next), ..*region };
            if self.limbo.room() < TABLES {
                return false;
            }
            *region = rest;
            self.detach(block, shared);
            self.owe(shared);
        }
        true
    }

    /// Takes away what is behind the next 2 MiB at `place` or behind it that something is behind.
    /// Returns where to go on, `None` behind the end.
    fn release(&mut self, place: u64, shared: &Shared) -> Option<u64> {
        let end = self.parts.backing.bytes();
        let last = place.saturating_add(AT_A_TIME.saturating_mul(BLOCK)).min(end);
        let mut at = place;
        while at < last && self.parts.backing.held(at) == Held::Nothing {
            at = at.saturating_add(BLOCK);
        }
        // The tables, and the frames.
        if at >= last || self.limbo.room() <= TABLES {
            return (at < end).then_some(at);
        }
        self.detach(at, shared);
        let taken = self.parts.backing.take(at);
        let count = match taken {
            Held::Nothing => 0,
            Held::Block(_) => BLOCK / 4096,
            Held::Table(table) => Backing::frames(&self.parts.tables, table).count() as u64,
        };
        self.parts.holdings.gone(count);
        if let Some(thing) = taken.into() {
            self.lose(thing, shared);
        }
        self.owe(shared);
        Some(at.saturating_add(BLOCK))
    }
}

/// The blocks of 2 MiB that the ranges, in rising order, touch: each once.
fn blocks(ranges: impl Iterator<Item = Range<u64>>) -> impl Iterator<Item = u64> {
    let mut next = 0;
    ranges.flat_map(move |range| {
        let mask = BLOCK.wrapping_sub(1);
        let first = (range.start & !mask).max(next);
        let end = range.end.saturating_add(mask) & !mask;
        next = next.max(end);
        (first..end).step_by(2 << 20)
    })
}

/// Lets `edit` change the guest's slots. Their contents stay what they are. CPUs that have the space
/// loaded may use what was there for a while: until [`Debts`](crate::debts::Debts) are settled for
/// the generation that is returned.
///
/// # Errors
/// [`SlotError`]: then nothing has changed.
pub fn change<S: Space>(space: &S, edit: impl FnOnce(&mut Vec<Slot>)) -> Result<u64, SlotError> {
    let shared = space.shared();
    let generation =
        space.locked(|inside| inside.change(shared, edit).map(|()| shared.debts.generation()))?;
    shared.debts.debtors().for_each(|cpu| space.kick(cpu));
    settle(space);
    Ok(generation)
}

/// See [`GuestRam::changed_to`](crate::GuestRam::changed_to): others see what stands where before
/// the generation rises, and the lock is held meanwhile.
pub fn changed_to<S: Space>(space: &S) -> u64 {
    space.locked(|_| space.shared().debts.generation())
}

/// Frees some of what no CPU can use any more: a few things, as some are 512 frames. Who
/// [pays](crate::debts::Debts::pay) or leaves next frees more.
pub fn settle<S: Space>(space: &S) {
    let debts = &space.shared().debts;
    if !debts.has_waiting() {
        return;
    }
    space.locked(|inside| {
        let owner = inside.holdings().owner();
        let mut free = |first, order| space.give_back(first, order, owner);
        for _ in 0..AT_ONCE {
            let thing = inside.limbo.take(|generation| debts.is_settled(generation));
            let Some(thing) = thing else { break };
            inside.let_go(thing, &mut free);
        }
        debts.set_waiting(!inside.limbo.is_empty());
    });
}

/// Gives a part of a guest's memory, from `place` of the backing on, back to the machine, when the
/// guest is over. From the first call on nobody gets any more of it. Returns where to go on, `None`
/// behind the end.
pub fn close_and_release<S: Space>(space: &S, place: u64) -> Option<u64> {
    let shared = space.shared();
    let next = space.locked(|inside| {
        if inside.close(shared) { inside.release(place, shared) } else { Some(place) }
    });
    shared.debts.debtors().for_each(|cpu| space.kick(cpu));
    settle(space);
    // Nothing is left for whoever lets go of the guest.
    next.or_else(|| {
        let end = || space.locked(|inside| inside.parts.backing.bytes());
        shared.debts.has_waiting().then(end)
    })
}
