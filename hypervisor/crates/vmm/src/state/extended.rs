//! Extended state: bytes in the format of XSAVE, which the image has taken from the CPU.

use crate::cpuid::xstate::XSAVE_HEADER_END;
use alloc::vec::Vec;
use devices::RestoreError;
use serde::{Deserialize, Serialize};
use state::Saved;
use x86defs::Xcr0;

/// Bytes of a vCPU's extended state at the most.
pub const MOST_EXTENDED: usize = 4096;

/// Bytes of what every CPU has, in the format of FXSAVE.
const LEGACY: usize = 512;
/// Place of MXCSR.
const MXCSR: usize = 24;
/// Bits of MXCSR that no CPU has.
const MXCSR_RESERVED: u32 = 0xffff_0000;

/// The extended state of a vCPU, in the standard format of XSAVE, or in that of FXSAVE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extended(pub(super) Vec<u8>);

impl Saved for Extended {
    const NAME: &'static str = "extended";
    const VERSION: u16 = 1;
}

impl Extended {
    /// Refuses what XRSTOR and FXRSTOR would fault upon (SDM: "Operation of XRSTOR"): the
    /// hypervisor executes them. `offered` are the components that the guest may have, which the
    /// CPU has. A state without bytes is that after reset.
    pub(super) fn check(&self, offered: Xcr0) -> Result<(), RestoreError> {
        let bytes = self.0.as_slice();
        let require = |holds: bool, what| if holds { Ok(()) } else { Err(RestoreError(what)) };
        if bytes.is_empty() {
            return Ok(());
        }
        require(bytes.len() <= MOST_EXTENDED, "extended state: too long")?;
        let mxcsr = bytes.get(MXCSR..).and_then(|rest| rest.first_chunk::<4>());
        let mxcsr = mxcsr.map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
        require(mxcsr & MXCSR_RESERVED == 0, "extended state: MXCSR")?;
        let header_end = usize::try_from(XSAVE_HEADER_END).unwrap_or(usize::MAX);
        if bytes.len() == LEGACY {
            return Ok(());
        }
        let header =
            bytes.get(LEGACY..header_end).and_then(|header| header.split_first_chunk::<8>());
        let (present, rest) = header.ok_or(RestoreError("extended state: no header"))?;
        let present = u64::from_le_bytes(*present);
        // x87 and SSE are there even where a guest has no XSAVE.
        let offered = offered | Xcr0::X87 | Xcr0::SSE;
        require(present & !offered.bits() == 0, "extended state: a component that is not offered")?;
        require(rest.iter().all(|byte| *byte == 0), "extended state: a compacted format")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::xstate::KNOWN;
    use alloc::vec;

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), || Extended(vec![0x7f, 3, 0, 0xff]));
    }

    #[test]
    fn what_xrstor_would_fault_upon_is_refused() {
        let good = |len: usize| {
            let mut bytes = vec![0; len];
            bytes[24] = 0x80;
            bytes
        };
        for len in [512, 576, 832, 4096] {
            assert_eq!(Extended(good(len)).check(KNOWN), Ok(()), "{len} bytes");
        }
        assert_eq!(Extended(Vec::new()).check(KNOWN), Ok(()));
        for len in [30, 511, 513, 575, 4097] {
            assert!(Extended(good(len)).check(KNOWN).is_err(), "{len} bytes");
        }
        assert!(Extended(vec![0; 20]).check(KNOWN).is_err());
        for (at, value) in [(26, 1), (513, 4), (519, 0x80), (520, 1), (575, 1)] {
            let mut bytes = good(832);
            bytes[at] = value;
            assert!(Extended(bytes).check(KNOWN).is_err(), "byte {at}");
        }
        // AVX's upper halves, and PKRU.
        for (at, value) in [(512, 4), (513, 2)] {
            let mut bytes = good(4096);
            bytes[at] = value;
            assert_eq!(Extended(bytes.clone()).check(KNOWN), Ok(()));
            assert!(Extended(bytes).check(Xcr0::empty()).is_err(), "byte {at}, not offered");
        }
        let mut bytes = good(4096);
        bytes[512] = 3;
        assert_eq!(Extended(bytes).check(Xcr0::empty()), Ok(()), "x87 and SSE");
    }
}
