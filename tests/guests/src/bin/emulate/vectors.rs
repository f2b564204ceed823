//! Vector registers around an instruction under test.

use crate::encode::Random;
use core::arch::asm;
use guests::cpu;

const OSFXSR: u64 = 1 << 9;
const OSXSAVE: u64 = 1 << 18;
const XSAVE: u32 = 1 << 26;
const AVX: u32 = 1 << 28;

/// Bytes of FXSAVE's image.
const IMAGE: usize = 512;
/// Offset of the registers of the x87, which are those of MMX.
const X87: usize = 32;
/// Offset of the XMM registers.
const XMM: usize = 160;
/// Bytes of it that an instruction may change and that are compared: control and status words, the
/// tags, MXCSR, and registers. FOP, FIP and FDP are the x87's own affair.
const COMPARED: [core::ops::Range<usize>; 3] = [0..5, 24..28, X87..XMM + 256];

/// The extended state: FXSAVE's image, behind it YMM0 to YMM15.
#[derive(Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Vectors {
    image: [u8; IMAGE],
    ymm: [[u8; 32]; 16],
}

/// Enables SSE and, if it is there, AVX: whether it is.
pub(crate) fn enable() -> bool {
    let features = cpu::features().0;
    let xsave = if features & XSAVE != 0 { OSXSAVE } else { 0 };
    let _ = cpu::set_cr4(cpu::cr4() | OSFXSR | xsave);
    features & AVX != 0 && xsave != 0 && cpu::xsetbv(0, 7).is_none()
}

macro_rules! each {
    ($before:literal, $between:literal, $after:literal, $at:expr; $($n:literal)*) => {
        // SAFETY: the guest's own code uses no vector registers; the memory has 16 times 32 bytes.
        unsafe {
            asm!($(concat!($before, $n, $between, $n, $after)),*, at = in(reg) $at,
                 options(nostack, preserves_flags));
        }
    };
}

impl Vectors {
    /// Random registers; nothing pending, everything masked.
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut all = Self { image: [0; IMAGE], ymm: [[0; 32]; 16] };
        // FCW, TOP of 5 in FSW, one register in use, MXCSR.
        all.image[..5].copy_from_slice(&[0x7f, 0x03, 0, 0x28, 1]);
        all.image[24..28].copy_from_slice(&[0x80, 0x1f, 0, 0]);
        for register in all.image[X87..XMM].as_chunks_mut::<16>().0 {
            register[..8].copy_from_slice(&random.value().to_le_bytes());
        }
        for byte in all.ymm.as_flattened_mut() {
            *byte = random.byte(255);
        }
        for (place, ymm) in
            all.image[XMM..XMM + 256].as_chunks_mut::<16>().0.iter_mut().zip(&all.ymm)
        {
            place.copy_from_slice(&ymm[..16]);
        }
        all
    }

    /// Puts them into the CPU.
    pub(crate) fn load(&self, avx: bool) {
        // SAFETY: the image is well-formed; the guest's own code uses nothing of it.
        unsafe { asm!("fxrstor64 [{}]", in(reg) self, options(nostack, preserves_flags)) };
        if avx {
            each!("vmovdqu ymm", ", [{at} + 32 * ", "]", &raw const self.ymm;
                  0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
    }

    /// The registers that are in the CPU.
    pub(crate) fn store(avx: bool) -> Self {
        let mut all = Self { image: [0; IMAGE], ymm: [[0; 32]; 16] };
        if avx {
            each!("vmovdqu [{at} + 32 * ", "], ymm", "", &raw mut all.ymm;
                  0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        // SAFETY: the image is as long as FXSAVE needs.
        unsafe {
            asm!("fxsave64 [{}]", in(reg) &raw mut all, options(nostack, preserves_flags));
        }
        all
    }

    /// The first byte in which they differ, of those that are compared.
    pub(crate) fn difference(&self, other: &Self) -> Option<usize> {
        let image = COMPARED.into_iter().flatten().find(|at| self.image[*at] != other.image[*at]);
        let ymm = self.ymm.as_flattened().iter().zip(other.ymm.as_flattened());
        image.or_else(|| ymm.into_iter().position(|(a, b)| a != b).map(|place| IMAGE + place))
    }
}
