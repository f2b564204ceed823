//! CPUID's usual answers, one load away.
//!
//! The table of [`CpuidTable`] serves every leaf of every vCPU; the leaves that a vCPU asks for
//! most often, those that do not look at ECX, are copied from it with the vCPU's own bits in place,
//! and copied again when one of those bits changes.

use crate::cpuid::{CpuidTable, VcpuView};
use alloc::boxed::Box;
use x86defs::Cr4;
use x86defs::cpuid::CpuidResult;

/// Leaves kept of each range.
const KEPT: usize = 32;
/// Ranges of leaves: those from 0, from 0x4000_0000 and from 0x8000_0000.
const RANGES: usize = 3;

/// The usual answers for one vCPU.
#[derive(Clone, Debug)]
pub struct HotLeaves {
    view: VcpuView,
    /// For each range, a bit for each leaf whose answer is kept.
    known: [u32; RANGES],
    /// All ranges in a row. Boxed, because the array would push the other fields of the vCPU far
    /// apart.
    answers: Box<[CpuidResult; KEPT * RANGES]>,
}

/// The bits of CR4 that CPUID shows.
const SHOWN: Cr4 = Cr4::OSXSAVE.union(Cr4::PKE);

impl HotLeaves {
    /// The answers of `table` for a vCPU with these registers.
    #[must_use]
    pub fn new(table: &CpuidTable, view: VcpuView) -> Self {
        let view = VcpuView { cr4: view.cr4 & SHOWN, ..view };
        let answers = Box::new([CpuidResult::default(); KEPT * RANGES]);
        let mut leaves = Self { view, known: [0; RANGES], answers };
        leaves.fill(table);
        leaves
    }

    /// Follows a change of the vCPU's registers.
    #[inline]
    pub fn follow(&mut self, table: &CpuidTable, view: VcpuView) {
        let view = VcpuView { cr4: view.cr4 & SHOWN, ..view };
        if self.view != view {
            self.view = view;
            self.fill(table);
        }
    }

    #[cold]
    fn fill(&mut self, table: &CpuidTable) {
        let ranges = self.known.iter_mut().zip(self.answers.chunks_exact_mut(KEPT));
        for (first, (known, answers)) in [0, 0x4000_0000, 0x8000_0000].into_iter().zip(ranges) {
            *known = 0;
            for (n, answer) in (0u32..).zip(answers) {
                if table.is_flat(first + n) {
                    *known |= 1 << n;
                    *answer = table.lookup(first + n, 0, &self.view);
                }
            }
        }
    }

    /// The registers for which the answers hold.
    #[inline]
    #[must_use]
    pub const fn view(&self) -> &VcpuView {
        &self.view
    }

    /// CPUID with EAX = `leaf` and any ECX, if the answer is kept.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, leaf: u32) -> Option<&CpuidResult> {
        // Two bits for the range, five for the leaf; the others must be clear.
        let (range, index) = ((leaf >> 30) as usize, (leaf & 0x1f) as usize);
        let known = self.known.get(range)?;
        if leaf & 0x3fff_ffe0 != 0 || known >> index & 1 == 0 {
            return None;
        }
        self.answers.get(range * KEPT + index)
    }
}
