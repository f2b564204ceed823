//! [`VectorSet`]: 256 bits, one for each vector, as IRR, ISR and TMR are.

use serde::{Deserialize, Serialize};
use x86defs::{Low, Vector};

/// Vectors below this one are reserved for exceptions; an APIC never delivers
/// them (SDM: "Valid Interrupt Vectors").
pub const FIRST_LEGAL_VECTOR: Vector = 16;

/// A set of vectors; bit `v & 63` of word `v >> 6` stands for vector `v`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct VectorSet(pub [u64; 4]);

impl VectorSet {
    /// No vector.
    pub const EMPTY: Self = Self([0; 4]);

    #[inline(always)]
    const fn bit(vector: Vector) -> u64 {
        1 << (vector & 63)
    }

    /// Adds `vector`.
    #[inline(always)]
    pub(super) fn insert(&mut self, vector: Vector) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word |= Self::bit(vector);
        }
    }

    /// Takes `vector` out.
    #[inline(always)]
    pub(super) fn remove(&mut self, vector: Vector) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word &= !Self::bit(vector);
        }
    }

    /// Whether `vector` is in the set.
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, vector: Vector) -> bool {
        self.0.get(usize::from(vector >> 6)).is_some_and(|word| word & Self::bit(vector) != 0)
    }

    /// Whether there is no vector in it.
    #[inline(always)]
    #[must_use]
    pub(super) const fn is_empty(&self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c | d == 0
    }

    /// The highest vector; 0 for none, since 0 is never a legal one.
    #[inline(always)]
    #[must_use]
    pub(super) fn highest_or_zero(&self) -> Vector {
        let [a, b, c, d] = self.0;
        let (base, word) = if d != 0 {
            (192, d)
        } else if c != 0 {
            (128, c)
        } else if b != 0 {
            (64, b)
        } else {
            (0, a)
        };
        // `| 1` gives an empty word a logarithm.
        base + (word | 1).ilog2().low8()
    }

    /// The 32-bit window number `index` (0 to 7), as registers show it.
    #[inline]
    #[must_use]
    pub(super) fn window(&self, index: u8) -> u32 {
        let word = self.0.get(usize::from(index >> 1)).copied().unwrap_or(0);
        if index & 1 == 0 { word.low32() } else { (word >> 32).low32() }
    }

    /// Whether a vector below [`FIRST_LEGAL_VECTOR`] is in it.
    #[inline(always)]
    #[must_use]
    pub(super) const fn has_illegal(&self) -> bool {
        let [a, ..] = self.0;
        a & ((1 << FIRST_LEGAL_VECTOR) - 1) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_tree(steps in prop::collection::vec((any::<u8>(), any::<bool>()), 0..40)) {
            let (mut set, mut model) = (VectorSet::EMPTY, BTreeSet::new());
            for (vector, add) in steps {
                if add { set.insert(vector); model.insert(vector); }
                else { set.remove(vector); model.remove(&vector); }
                prop_assert_eq!(set.highest_or_zero(), model.last().copied().unwrap_or(0));
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert_eq!(set.contains(vector), add);
                prop_assert_eq!(set.window(vector >> 5) >> (vector & 31) & 1, u32::from(add));
                prop_assert_eq!(set.has_illegal(), model.range(..16).next().is_some());
            }
        }
    }
}
