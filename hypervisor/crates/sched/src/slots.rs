//! Numbered places whose numbers are never good for a later occupant.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// The name of an occupant: its place, and which occupant of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// The place.
    pub(crate) const fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// The places.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
}

impl<T> Slots<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// How many places there are, free ones included: what a list of their
    /// numbers must have room for.
    pub(crate) fn places(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Result<Key, TryReserveError> {
        let free = self.slots.iter().position(|slot| slot.value.is_none());
        let at = free.unwrap_or(self.slots.len());
        if free.is_none() {
            self.slots.try_reserve(1)?;
            self.slots.push(Slot { generation: 0, value: None });
        }
        let mut generation = 0;
        if let Some(slot) = self.slots.get_mut(at) {
            slot.generation = slot.generation.wrapping_add(1);
            slot.value = Some(value);
            generation = slot.generation;
        }
        Ok(Key { index: u32::try_from(at).unwrap_or(u32::MAX), generation })
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        self.slots.get_mut(usize::try_from(index).ok()?)?.value.take()
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(usize::try_from(index).ok()?)?.value.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(usize::try_from(index).ok()?)?.value.as_mut()
    }

    /// The place of a name that is still good.
    pub(crate) fn resolve(&self, key: Key) -> Option<u32> {
        let slot = self.slots.get(usize::try_from(key.index).ok()?)?;
        (slot.generation == key.generation && slot.value.is_some()).then_some(key.index)
    }

    /// The name of a place's occupant.
    pub(crate) fn key(&self, index: u32) -> Option<Key> {
        let slot = self.slots.get(usize::try_from(index).ok()?)?;
        slot.value.as_ref().map(|_| Key { index, generation: slot.generation })
    }

    /// Occupants by place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.slots).filter_map(|(at, slot)| slot.value.as_ref().map(|value| (at, value)))
    }

    /// Occupants by place.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        (0..)
            .zip(&mut self.slots)
            .filter_map(|(at, slot)| slot.value.as_mut().map(|value| (at, value)))
    }
}
