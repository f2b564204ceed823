//! [`Intercepts`]: the events that stop a guest (APM: "Intercept Operation").
//!
//! The words stand here rather than where they are written, so that a test sees
//! each bit that may be set and asks what becomes of its exit.

use super::{Control, Intercepts3, Intercepts4};
use crate::event::EXITING_EXCEPTIONS;

/// A set of intercepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intercepts {
    /// MOV from CR0 to CR15, by number.
    pub cr_reads: u16,
    /// MOV to CR0 to CR15, by number.
    pub cr_writes: u16,
    /// Exceptions, by vector.
    pub exceptions: u32,
    /// Intercept vector 3.
    pub third: Intercepts3,
    /// Intercept vector 4.
    pub fourth: Intercepts4,
}

impl Intercepts {
    /// Intercepts that are set on each CPU, always.
    pub const ALWAYS: Self = Self {
        cr_reads: 0,
        // Writes of CR4: CPUID may not offer some of its bits.
        cr_writes: 1 << 4,
        exceptions: EXITING_EXCEPTIONS,
        third: Intercepts3::INTR
            .union(Intercepts3::NMI)
            .union(Intercepts3::INIT)
            .union(Intercepts3::RDPMC)
            .union(Intercepts3::CPUID)
            .union(Intercepts3::INVD)
            .union(Intercepts3::HLT)
            .union(Intercepts3::INVLPGA)
            .union(Intercepts3::IOIO_PROT)
            .union(Intercepts3::MSR_PROT)
            .union(Intercepts3::SHUTDOWN),
        fourth: Intercepts4::VMRUN
            .union(Intercepts4::VMMCALL)
            .union(Intercepts4::VMLOAD)
            .union(Intercepts4::VMSAVE)
            .union(Intercepts4::STGI)
            .union(Intercepts4::CLGI)
            .union(Intercepts4::SKINIT)
            .union(Intercepts4::WBINVD)
            .union(Intercepts4::MONITOR)
            .union(Intercepts4::MWAIT)
            .union(Intercepts4::XSETBV)
            .union(Intercepts4::RDPRU),
    };

    /// Intercepts that are set on some CPUs, or at times: windows, the end of an NMI's
    /// handler, loops of PAUSE, writes of CR0 and CR8, reads of CR4.
    const AT_TIMES: Self = Self {
        cr_reads: 1 << 4,
        cr_writes: 1 << 0 | 1 << 8,
        exceptions: 0,
        third: Intercepts3::VINTR
            .union(Intercepts3::IRET)
            .union(Intercepts3::CR0_SELECTIVE)
            .union(Intercepts3::PAUSE),
        fourth: Intercepts4::empty(),
    };

    /// All intercepts that may ever be set.
    pub const POSSIBLE: Self = Self {
        cr_reads: Self::ALWAYS.cr_reads | Self::AT_TIMES.cr_reads,
        cr_writes: Self::ALWAYS.cr_writes | Self::AT_TIMES.cr_writes,
        exceptions: Self::ALWAYS.exceptions | Self::AT_TIMES.exceptions,
        third: Self::ALWAYS.third.union(Self::AT_TIMES.third),
        fourth: Self::ALWAYS.fourth.union(Self::AT_TIMES.fourth),
    };

    /// Whether all that `control` intercepts is among these.
    #[must_use]
    pub const fn cover(&self, control: &Control) -> bool {
        control.intercept_cr_read & !self.cr_reads == 0
            && control.intercept_cr_write & !self.cr_writes == 0
            && control.intercept_dr_read == 0
            && control.intercept_dr_write == 0
            && control.intercept_exceptions & !self.exceptions == 0
            && self.third.contains(control.intercepts3)
            && self.fourth.contains(control.intercepts4)
            && control.intercepts5 == 0
    }

    /// The exit codes that these lead to: each word has its own range of them, a
    /// bit's number counts in it (APM: "SVM Intercept Exit Codes").
    pub fn exit_codes(self) -> impl Iterator<Item = u64> {
        let words = [
            (0x00, self.cr_reads.into()),
            (0x10, self.cr_writes.into()),
            (0x40, self.exceptions),
            (0x60, self.third.bits()),
            (0x80, self.fourth.bits()),
        ];
        words.into_iter().flat_map(|(first, word)| {
            (0..32u64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| first + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::VmExit;
    use crate::vmcb::decode;
    use std::vec::Vec;

    #[test]
    fn each_exit_that_is_asked_for_is_known() {
        let codes: Vec<_> = Intercepts::POSSIBLE.exit_codes().collect();
        assert!(codes.contains(&0x8e) && codes.contains(&0x04) && codes.contains(&0x52));
        for code in codes {
            // IN of one byte.
            let info1 = if code == 0x7b { 0x11 } else { 0 };
            let exit = decode(code, info1, 0, false);
            assert!(!matches!(exit, VmExit::Unhandled(_)), "{code:#x}: {exit:?}");
        }
    }
}
