//! Memory-type range registers (SDM: "Memory Type Range Registers (MTRRs)"),
//! as firmware leaves them, and what the guest makes of them. How MTRR and PAT
//! types combine is the hardware's rule, not ours.

use config::layout;
use core::ops::Range;
use devices::RestoreError;
use serde::{Deserialize, Serialize};
use x86defs::{Gp, Low, Msr};

/// Pairs of variable registers.
pub const VARIABLE: usize = 8;
/// Fixed-range registers.
const FIXED: usize = 11;

/// IA32_MTRRCAP: fixed ranges.
const CAP_FIX: u64 = 1 << 8;
/// IA32_MTRRCAP: write-combining.
const CAP_WC: u64 = 1 << 10;
/// Value of IA32_MTRRCAP.
pub const CAP: u64 = VARIABLE as u64 | CAP_FIX | CAP_WC;

/// IA32_MTRR_DEF_TYPE: fixed ranges count.
const DEF_TYPE_FIXED: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: MTRRs count at all.
const DEF_TYPE_ENABLE: u64 = 1 << 11;
/// A variable mask: the pair counts.
const MASK_VALID: u64 = 1 << 11;
/// Reserved bits of a variable base, below the address.
const BASE_RESERVED: u64 = 0xf00;
/// Reserved bits of a variable mask, below the address.
const MASK_RESERVED: u64 = 0x7ff;
/// The byte that holds a type.
const TYPE: u64 = 0xff;

/// How memory is cached (SDM: "Methods of Caching Available").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// UC.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB.
    WriteBack = 6,
}

impl MemoryType {
    /// The type with this number in MTRRs.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Uncacheable),
            1 => Some(Self::WriteCombining),
            4 => Some(Self::WriteThrough),
            5 => Some(Self::WriteProtected),
            6 => Some(Self::WriteBack),
            _ => None,
        }
    }

    /// The type's number.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// One of the MTRRs, by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtrrRegister {
    /// IA32_MTRRCAP.
    Cap,
    /// IA32_MTRR_DEF_TYPE.
    DefType,
    /// A fixed-range register, 0 to 10 in the order of addresses.
    Fixed(u8),
    /// IA32_MTRR_PHYSBASEn, n below [`VARIABLE`].
    Base(u8),
    /// IA32_MTRR_PHYSMASKn, n below [`VARIABLE`].
    Mask(u8),
}

impl MtrrRegister {
    /// The register with an MSR's number, if it is an MTRR.
    #[must_use]
    pub fn from_msr(msr: Msr) -> Option<Self> {
        match msr {
            Msr::MTRR_CAP => Some(Self::Cap),
            Msr::MTRR_DEF_TYPE => Some(Self::DefType),
            Msr::MTRR_FIX_64K_00000 => Some(Self::Fixed(0)),
            Msr::MTRR_FIX_16K_80000 => Some(Self::Fixed(1)),
            Msr::MTRR_FIX_16K_A0000 => Some(Self::Fixed(2)),
            Msr(n @ 0x268..=0x26f) => Some(Self::Fixed(n.low8() - 0x68 + 3)),
            Msr(n @ 0x200..=0x20f) if n & 1 == 0 => Some(Self::Base(n.low8() >> 1)),
            Msr(n @ 0x200..=0x20f) => Some(Self::Mask(n.low8() >> 1)),
            _ => None,
        }
    }
}

/// A vCPU's MTRRs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtrrs {
    def_type: u64,
    fixed: [u64; FIXED],
    base: [u64; VARIABLE],
    mask: [u64; VARIABLE],
    /// Bits that an address can have, 11:0 included.
    address_mask: u64,
}

impl Mtrrs {
    /// The MTRRs as firmware leaves them on a machine with `physical_address_bits`: write-back but
    /// for the legacy video and option-ROM area and the gigabyte below 4 GiB, which is the
    /// devices'.
    #[must_use]
    pub fn new(physical_address_bits: u8) -> Self {
        let address_mask =
            1u64.checked_shl(physical_address_bits.into()).unwrap_or(0).wrapping_sub(1);
        let same = |memory_type: MemoryType| u64::from_le_bytes([memory_type.bits(); 8]);
        let write_back = same(MemoryType::WriteBack);
        let uncached = same(MemoryType::Uncacheable);
        let mut mtrrs = Self {
            def_type: DEF_TYPE_ENABLE | DEF_TYPE_FIXED | u64::from(MemoryType::WriteBack.bits()),
            fixed: [write_back; FIXED],
            base: [0; VARIABLE],
            mask: [0; VARIABLE],
            address_mask,
        };
        let video_and_roms = layout::LEGACY_HOLE_START..layout::TABLES_START;
        for (index, register) in mtrrs.fixed.iter_mut().enumerate() {
            if video_and_roms.contains(&fixed_range(index).start) {
                *register = uncached;
            }
        }
        let devices = layout::PCI_WINDOW_START..layout::HIGH_RAM_START;
        if let (Some(base), Some(mask)) = (mtrrs.base.first_mut(), mtrrs.mask.first_mut()) {
            *base = devices.start | u64::from(MemoryType::Uncacheable.bits());
            *mask = address_mask & !(devices.end - devices.start - 1) | MASK_VALID;
        }
        mtrrs
    }

    /// Saved registers, if a guest with `physical_address_bits` could have
    /// written them.
    ///
    /// # Errors
    /// A register holds a value that it can't have.
    pub fn restored(saved: &Self, physical_address_bits: u8) -> Result<Self, RestoreError> {
        let mut mtrrs = Self::new(physical_address_bits);
        (Msr::MTRR_PHYS_BASE0.0..=Msr::MTRR_DEF_TYPE.0)
            .filter_map(|number| MtrrRegister::from_msr(Msr(number)))
            .try_for_each(|register| mtrrs.write(register, saved.read(register)))
            .map_err(|Gp| RestoreError("an MTRR holds a value that it can't"))?;
        Ok(mtrrs)
    }

    /// RDMSR of one of the registers.
    #[must_use]
    pub fn read(&self, register: MtrrRegister) -> u64 {
        let at =
            |registers: &[u64], index: u8| registers.get(usize::from(index)).copied().unwrap_or(0);
        match register {
            MtrrRegister::Cap => CAP,
            MtrrRegister::DefType => self.def_type,
            MtrrRegister::Fixed(index) => at(&self.fixed, index),
            MtrrRegister::Base(index) => at(&self.base, index),
            MtrrRegister::Mask(index) => at(&self.mask, index),
        }
    }

    /// WRMSR of one of the registers.
    ///
    /// # Errors
    /// [`Gp`] for IA32_MTRRCAP, an unknown type or a reserved bit.
    pub fn write(&mut self, register: MtrrRegister, value: u64) -> Result<(), Gp> {
        let known = |byte: u64| MemoryType::from_bits(byte.low8()).is_some();
        let beyond = !self.address_mask;
        let (place, legal) = match register {
            MtrrRegister::Cap => return Err(Gp),
            MtrrRegister::DefType => {
                let defined = TYPE | DEF_TYPE_FIXED | DEF_TYPE_ENABLE;
                (Some(&mut self.def_type), value & !defined == 0 && known(value))
            }
            MtrrRegister::Fixed(index) => {
                let types = value.to_le_bytes();
                let legal = types.into_iter().all(|bits| MemoryType::from_bits(bits).is_some());
                (self.fixed.get_mut(usize::from(index)), legal)
            }
            MtrrRegister::Base(index) => {
                let legal = value & (beyond | BASE_RESERVED) == 0 && known(value);
                (self.base.get_mut(usize::from(index)), legal)
            }
            MtrrRegister::Mask(index) => {
                let legal = value & (beyond | MASK_RESERVED) == 0;
                (self.mask.get_mut(usize::from(index)), legal)
            }
        };
        match place {
            Some(place) if legal => {
                *place = value;
                Ok(())
            }
            _ => Err(Gp),
        }
    }
}

/// The addresses that a fixed-range register covers.
fn fixed_range(index: usize) -> Range<u64> {
    let index = u64::try_from(index).unwrap_or(0);
    match index {
        0 => 0..0x8_0000,
        1 | 2 => {
            let start = 0x8_0000 + (index - 1) * 0x2_0000;
            start..start + 0x2_0000
        }
        _ => {
            let start = 0xc_0000 + (index - 3) * 0x8000;
            start..start + 0x8000
        }
    }
}

/// Whether a value may be written to the page-attribute table: eight types
/// that exist; beside those of MTRRs that is UC- (7)
/// (SDM: "Page Attribute Table (PAT)").
#[must_use]
pub fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(|bits| bits == 7 || MemoryType::from_bits(bits).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86defs::GuestPhysAddr;

    /// Fixed ranges end here.
    const FIXED_END: u64 = 0x10_0000;

    const GIB: u64 = 1 << 30;

    // Effective types, as a guest computes them of what it reads.
    impl Mtrrs {
        /// The type of the byte at `gpa` (SDM: "MTRR Precedences"). If variable ranges overlap in a
        /// way that the manual leaves undefined, the type is uncacheable.
        fn memory_type(&self, gpa: GuestPhysAddr) -> MemoryType {
            let address = gpa.as_u64();
            if self.def_type & DEF_TYPE_ENABLE == 0 {
                return MemoryType::Uncacheable;
            }
            if self.def_type & DEF_TYPE_FIXED != 0 && address < FIXED_END {
                return self.fixed_type(address);
            }
            self.variable()
                .filter(|(base, mask, _)| address & mask == base & mask)
                .map(|(_, _, memory_type)| memory_type)
                .reduce(overlap)
                .unwrap_or_else(|| type_of(self.def_type))
        }

        /// Base, mask and type of the variable ranges that count.
        fn variable(&self) -> impl Iterator<Item = (u64, u64, MemoryType)> {
            self.base
                .into_iter()
                .zip(self.mask)
                .filter(|(_, mask)| mask & MASK_VALID != 0)
                .map(|(base, mask)| (base & !0xfff, mask & !0xfff, type_of(base)))
        }

        fn fixed_type(&self, address: u64) -> MemoryType {
            let (register, byte) = match address {
                0..0x8_0000 => (0, address >> 16),
                0x8_0000..0xc_0000 => (1 + ((address - 0x8_0000) >> 17), address >> 14 & 7),
                _ => (3 + (address.wrapping_sub(0xc_0000) >> 15), address >> 12 & 7),
            };
            let register = self.fixed.get(usize::from(register.low8())).copied().unwrap_or(0);
            type_of(register >> (byte * 8))
        }
    }

    /// The type in bits 7:0; only legal ones were let in.
    fn type_of(value: u64) -> MemoryType {
        MemoryType::from_bits(value.low8()).unwrap_or(MemoryType::Uncacheable)
    }

    /// Type of a byte that two variable ranges cover.
    fn overlap(a: MemoryType, b: MemoryType) -> MemoryType {
        use MemoryType::{Uncacheable, WriteBack, WriteThrough};
        match (a, b) {
            _ if a == b => a,
            (WriteThrough, WriteBack) | (WriteBack, WriteThrough) => WriteThrough,
            _ => Uncacheable,
        }
    }

    fn type_at(mtrrs: &Mtrrs, address: u64) -> MemoryType {
        mtrrs.memory_type(GuestPhysAddr::new(address))
    }

    #[test]
    fn as_firmware_leaves_them() {
        use MemoryType::{Uncacheable, WriteBack};
        let mtrrs = Mtrrs::new(40);
        for (address, memory_type) in [
            (0, WriteBack),
            (0x9_ffff, WriteBack),
            (0xa_0000, Uncacheable),
            (0xc_8000, Uncacheable),
            (0xd_ffff, Uncacheable),
            (0xe_0000, WriteBack),
            (0xf_ffff, WriteBack),
            (0x10_0000, WriteBack),
            (0xbfff_ffff, WriteBack),
            (0xc000_0000, Uncacheable),
            (0xfee0_0000, Uncacheable),
            (0xffff_ffff, Uncacheable),
            (0x1_0000_0000, WriteBack),
        ] {
            assert_eq!(type_at(&mtrrs, address), memory_type, "{address:#x}");
        }
        assert_eq!(mtrrs.read(MtrrRegister::Cap), 0x508);
        assert_eq!(mtrrs.read(MtrrRegister::DefType), 0xc06);
        assert_eq!(mtrrs.read(MtrrRegister::Base(0)), 0xc000_0000);
        assert_eq!(mtrrs.read(MtrrRegister::Mask(0)), 0xff_c000_0800);
        assert_eq!(mtrrs.read(MtrrRegister::Fixed(2)), 0);
        assert_eq!(mtrrs.read(MtrrRegister::Fixed(7)), 0x0606_0606_0606_0606);
    }

    #[test]
    fn numbers() {
        assert_eq!(MtrrRegister::from_msr(Msr(0x20e)), Some(MtrrRegister::Base(7)));
        assert_eq!(MtrrRegister::from_msr(Msr(0x20f)), Some(MtrrRegister::Mask(7)));
        assert_eq!(MtrrRegister::from_msr(Msr(0x210)), None);
        assert_eq!(MtrrRegister::from_msr(Msr(0x268)), Some(MtrrRegister::Fixed(3)));
        assert_eq!(MtrrRegister::from_msr(Msr(0x26f)), Some(MtrrRegister::Fixed(10)));
        assert_eq!(MtrrRegister::from_msr(Msr(0x251)), None);
        assert_eq!(MtrrRegister::from_msr(Msr::PAT), None);
    }

    #[test]
    fn every_fixed_range_has_its_register() {
        for index in 0..FIXED {
            let mut mtrrs = Mtrrs::new(40);
            let register = MtrrRegister::Fixed(u8::try_from(index).unwrap());
            let range = fixed_range(index);
            let step = (range.end - range.start) / 8;
            for byte in 0..8u64 {
                let at = range.start + byte * step;
                let value = u64::from_le_bytes([6; 8]) & !(0xff << (byte * 8)) | 5 << (byte * 8);
                mtrrs.write(register, value).unwrap();
                assert_eq!(type_at(&mtrrs, at), MemoryType::WriteProtected, "{at:#x}");
                assert_eq!(type_at(&mtrrs, at + step - 1), MemoryType::WriteProtected);
                if byte > 0 {
                    assert_eq!(type_at(&mtrrs, at - 1), MemoryType::WriteBack);
                }
            }
        }
    }

    #[test]
    fn reserved_bits_are_refused() {
        let mut mtrrs = Mtrrs::new(36);
        for (register, value, legal) in [
            (MtrrRegister::Cap, CAP, false),
            (MtrrRegister::DefType, 0xc06, true),
            (MtrrRegister::DefType, 0xc02, false),
            (MtrrRegister::DefType, 0xc07, false),
            (MtrrRegister::DefType, 0x106, false),
            (MtrrRegister::DefType, 0x1c06, false),
            (MtrrRegister::Fixed(0), 0x0605_0401_0006_0606, true),
            (MtrrRegister::Fixed(0), 0x0300_0000_0000_0000, false),
            (MtrrRegister::Fixed(11), 0, false),
            (MtrrRegister::Base(1), 0xf_ffff_f006, true),
            (MtrrRegister::Base(1), 0x10_0000_0006, false),
            (MtrrRegister::Base(1), 0x106, false),
            (MtrrRegister::Base(1), 0x3, false),
            (MtrrRegister::Base(8), 0, false),
            (MtrrRegister::Mask(1), 0xf_ffff_f800, true),
            (MtrrRegister::Mask(1), 0xf_ffff_f801, false),
            (MtrrRegister::Mask(1), 0x1f_ffff_f800, false),
        ] {
            assert_eq!(mtrrs.write(register, value).is_ok(), legal, "{register:?} {value:#x}");
        }
    }

    #[test]
    fn saved_registers_are_checked() {
        let mut mtrrs = Mtrrs::new(40);
        for (register, value) in [
            (MtrrRegister::DefType, 0x806),
            (MtrrRegister::Fixed(4), 0x0505_0505_0606_0606),
            (MtrrRegister::Base(7), 0x80_0000_0001),
            (MtrrRegister::Mask(7), 0xff_0000_0800),
        ] {
            mtrrs.write(register, value).unwrap();
        }
        let text = serde_json::to_string(&mtrrs).unwrap();
        let saved: Mtrrs = serde_json::from_str(&text).unwrap();
        assert_eq!(Mtrrs::restored(&saved, 40), Ok(mtrrs));
        assert!(Mtrrs::restored(&saved, 39).is_err());
        let wild = Mtrrs { def_type: 2, ..saved };
        assert!(Mtrrs::restored(&wild, 40).is_err());
    }

    #[test]
    fn overlaps_follow_the_manual() {
        use MemoryType::{Uncacheable, WriteBack, WriteCombining, WriteThrough};
        for (a, b, both) in [
            (WriteBack, WriteBack, WriteBack),
            (WriteBack, WriteThrough, WriteThrough),
            (WriteThrough, WriteBack, WriteThrough),
            (WriteBack, Uncacheable, Uncacheable),
            (WriteCombining, WriteBack, Uncacheable),
        ] {
            let mut mtrrs = Mtrrs::new(36);
            for (index, memory_type) in [(1, a), (2, b)] {
                let base = (2 * GIB) | u64::from(memory_type.bits());
                mtrrs.write(MtrrRegister::Base(index), base).unwrap();
                mtrrs.write(MtrrRegister::Mask(index), 0xf_c000_0800).unwrap();
            }
            assert_eq!(type_at(&mtrrs, 2 * GIB), both, "{a:?} {b:?}");
        }
    }

    #[test]
    fn switched_off_is_uncached() {
        let mut mtrrs = Mtrrs::new(36);
        mtrrs.write(MtrrRegister::DefType, 0x406).unwrap();
        assert_eq!(type_at(&mtrrs, 0x10_0000), MemoryType::Uncacheable);
        mtrrs.write(MtrrRegister::DefType, 0x806).unwrap();
        assert_eq!(type_at(&mtrrs, 0xa_0000), MemoryType::WriteBack);
    }

    #[test]
    fn pat_values() {
        assert!(is_valid_pat(0x0007_0406_0007_0406));
        assert!(is_valid_pat(0x0407_0506_0007_0106));
        assert!(!is_valid_pat(0x0007_0406_0007_0402));
        assert!(!is_valid_pat(0x0307_0406_0007_0406));
        assert!(!is_valid_pat(0x0807_0406_0007_0406));
    }
}
