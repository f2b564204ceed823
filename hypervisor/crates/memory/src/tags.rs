//! Tags of translation caches (AMD-V's ASIDs, VT-x's VPIDs), recycled by
//! generation: a vCPU keeps its tag until all are used up, then a new
//! generation begins with everything flushed and every vCPU takes a new tag
//! when it next runs (APM: "TLB Control"; SDM: "Caching Translation Information").

/// A vCPU's tag, and the generation that it is good for. The default is good
/// for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// The number for VMCB or VMCS; never 0, which is the host's, once assigned.
    pub value: u32,
    generation: u64,
}

/// Translations to flush before the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flush {
    /// None.
    Nothing,
    /// Those that are cached under this tag.
    ThisTag,
    /// Those of all tags.
    All,
}

/// Whether the CPU can flush one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushOne {
    /// The CPU can.
    Offered,
    /// The CPU can't: a vCPU whose translations are stale takes another tag.
    Missing,
}

/// Tags of one CPU.
#[derive(Debug)]
pub struct TagPool {
    generation: u64,
    next: u32,
    end: u32,
    one: FlushOne,
}

impl TagPool {
    /// A pool of the tags 1 to `count` − 1 (at least one of them).
    #[must_use]
    pub const fn new(count: u32, one: FlushOne) -> Self {
        Self { generation: 1, next: 1, end: if count < 2 { 2 } else { count }, one }
    }

    /// Makes `tag` good for the next entry; `stale` says that what is cached
    /// in its name must not be used any more.
    pub fn assign(&mut self, tag: &mut Tag, stale: bool) -> Flush {
        if tag.generation == self.generation {
            if !stale || cfg!(planted = "asid-not-bumped") {
                return Flush::Nothing;
            }
            if self.one == FlushOne::Offered {
                return Flush::ThisTag;
            }
        }
        let mut flush = Flush::Nothing;
        if self.next >= self.end {
            self.generation = self.generation.wrapping_add(1);
            self.next = 1;
            flush = Flush::All;
        }
        *tag = Tag { value: self.next, generation: self.generation };
        self.next = self.next.saturating_add(1);
        flush
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// A cache that remembers, for each tag, whose translations of which
        /// age it holds: no vCPU ever finds another's, or stale ones of its own.
        #[test]
        fn nobody_sees_stale_translations(
            count in 2u32..6,
            one in any::<bool>(),
            steps in prop::collection::vec((0usize..8, any::<bool>()), 1..300),
        ) {
            let one = if one { FlushOne::Offered } else { FlushOne::Missing };
            let mut pool = TagPool::new(count, one);
            let mut tags = [Tag::default(); 8];
            let mut ages = [0u32; 8];
            let mut cache: BTreeMap<u32, (usize, u32)> = BTreeMap::new();
            for (vcpu, stale) in steps {
                if stale {
                    ages[vcpu] += 1;
                }
                match pool.assign(&mut tags[vcpu], stale) {
                    Flush::Nothing => {}
                    Flush::ThisTag => { cache.remove(&tags[vcpu].value); }
                    Flush::All => cache.clear(),
                }
                let tag = tags[vcpu].value;
                prop_assert!(tag != 0 && tag < count);
                if let Some(found) = cache.get(&tag) {
                    prop_assert_eq!(*found, (vcpu, ages[vcpu]));
                }
                cache.insert(tag, (vcpu, ages[vcpu]));
            }
        }
    }
}
