//! The shapes of a guest's tables: how many levels, how wide an entry, which
//! bits are reserved.

use super::{WalkConfig, WalkFeatures};
use x86defs::pte::{ADDRESS_MASK, Pte};
use x86defs::{Cr0, Cr4, Efer, GuestPhysAddr, GuestVirtAddr, Width};

/// Bits 62:52, which PAE paging reserves and longer modes ignore.
const PAE_HIGH_RESERVED: u64 = 0x7ff0_0000_0000_0000;
/// Bits below the address that the top entries of PAE paging reserve. Bit 5 is left
/// out: one emulator sets it, as if the entry had an accessed bit.
const PDPTE_RESERVED: u64 = 0x1c6;
/// Bits of a physical address that PSE-36 can name.
const PSE36_BITS: u8 = 40;

/// A paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Two levels of 1024 entries.
    Legacy,
    /// PAE: 4 entries, then two levels of 512.
    Pae,
    /// Four levels of 512 entries.
    Four,
    /// Five levels of 512 entries.
    Five,
}

impl Shape {
    /// The mode that the registers select; `None` while paging is off.
    pub(super) fn of(config: &WalkConfig) -> Option<Self> {
        if !config.cr0.contains(Cr0::PG) {
            None
        } else if !config.cr4.contains(Cr4::PAE) {
            Some(Self::Legacy)
        } else if !config.efer.contains(Efer::LMA) {
            Some(Self::Pae)
        } else if !config.cr4.contains(Cr4::LA57) {
            Some(Self::Four)
        } else {
            Some(Self::Five)
        }
    }

    pub(super) const fn levels(self) -> u32 {
        match self {
            Self::Legacy => 2,
            Self::Pae => 3,
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    pub(super) const fn width(self) -> Width {
        match self {
            Self::Legacy => Width::B4,
            Self::Pae | Self::Four | Self::Five => Width::B8,
        }
    }

    pub(super) const fn is_canonical(self, gva: u64) -> bool {
        match self {
            Self::Legacy | Self::Pae => true,
            Self::Four => GuestVirtAddr::new(gva).is_canonical(),
            Self::Five => ((gva << 7).cast_signed() >> 7).cast_unsigned() == gva,
        }
    }

    /// The root table that CR3 names.
    pub(super) const fn root(self, cr3: u64) -> u64 {
        match self {
            Self::Legacy => cr3 & 0xffff_f000,
            Self::Pae => cr3 & 0xffff_ffe0,
            Self::Four | Self::Five => cr3 & ADDRESS_MASK,
        }
    }

    /// log2 of the bytes that an entry at `level` stands for.
    const fn shift(self, level: u32) -> u32 {
        match self {
            Self::Legacy => level.wrapping_sub(1).wrapping_mul(10).wrapping_add(12),
            Self::Pae | Self::Four | Self::Five => {
                level.wrapping_sub(1).wrapping_mul(9).wrapping_add(12)
            }
        }
    }

    /// Address of the entry for `gva` in `table`.
    pub(super) const fn entry_address(self, table: u64, gva: u64, level: u32) -> GuestPhysAddr {
        let mask = match self {
            Self::Legacy => 0x3ff,
            Self::Pae if level == 3 => 3,
            Self::Pae | Self::Four | Self::Five => 0x1ff,
        };
        let index = gva >> self.shift(level) & mask;
        GuestPhysAddr::new(table.wrapping_add(index.wrapping_mul(self.width().bytes() as u64)))
    }

    pub(super) const fn page_size(self, level: u32) -> u64 {
        1 << self.shift(level)
    }

    /// Whether entries at `level` have rights and an accessed bit.
    pub(super) const fn has_rights(self, level: u32) -> bool {
        !(matches!(self, Self::Pae) && level == 3)
    }

    pub(super) fn is_leaf(self, config: &WalkConfig, entry: u64, level: u32) -> bool {
        let large = entry & Pte::PS.bits() != 0;
        match (self, level) {
            (_, 1) => true,
            (Self::Legacy, 2) => large && config.cr4.contains(Cr4::PSE),
            (Self::Pae | Self::Four | Self::Five, 2) | (Self::Four | Self::Five, 3) => large,
            _ => false,
        }
    }

    pub(super) const fn next(self, entry: u64) -> u64 {
        match self {
            Self::Legacy => entry & 0xffff_f000,
            Self::Pae | Self::Four | Self::Five => entry & ADDRESS_MASK,
        }
    }

    /// The page that a leaf at `level` maps.
    pub(super) const fn page(self, entry: u64, level: u32) -> u64 {
        match (self, level) {
            // PSE-36: bits 20:13 are bits 39:32 of the address.
            (Self::Legacy, 2) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            _ => self.next(entry) & !self.page_size(level).wrapping_sub(1),
        }
    }

    /// The protection key of a leaf.
    pub(super) fn key(self, config: &WalkConfig, entry: u64) -> u8 {
        let keys = matches!(self, Self::Four | Self::Five) && config.cr4.contains(Cr4::PKE);
        let [.., top] = entry.to_le_bytes();
        if keys { top >> 3 & 0xf } else { 0 }
    }

    /// The bits that must be zero in every present entry.
    #[inline(always)]
    pub(super) fn common(self, config: &WalkConfig) -> u64 {
        if matches!(self, Self::Legacy) {
            return 0;
        }
        let physical = config.physical_bits.clamp(32, 52);
        let mut reserved = ADDRESS_MASK & !(1_u64 << physical).wrapping_sub(1);
        if matches!(self, Self::Pae) {
            reserved |= PAE_HIGH_RESERVED;
        }
        if !config.efer.contains(Efer::NXE) {
            reserved |= Pte::NX.bits();
        }
        reserved
    }

    /// The bits of a present entry that must be zero: the [`common`](Self::common) ones and its
    /// own.
    #[inline(always)]
    pub(super) fn reserved(self, common: u64, config: &WalkConfig, entry: u64, level: u32) -> u64 {
        let leaf = self.is_leaf(config, entry, level);
        if matches!(self, Self::Legacy) {
            if level == 1 || !leaf {
                return 0;
            }
            // Bit 21 and the address bits that the CPU does not have.
            let bits = config.physical_bits.clamp(32, PSE36_BITS);
            let named = (1_u64 << bits.wrapping_sub(32)).wrapping_sub(1);
            return 0x3f_e000 & !(named << 13);
        }
        let mut reserved = common;
        if matches!(self, Self::Pae) && level == 3 {
            return reserved | Pte::NX.bits() | PDPTE_RESERVED;
        }
        if leaf && level > 1 {
            // Below a large page's address, all but PAT.
            reserved |=
                self.page_size(level).wrapping_sub(1) & ADDRESS_MASK & !Pte::PAT_LARGE.bits();
        }
        let large_allowed =
            level <= 2 || level == 3 && config.features.contains(WalkFeatures::PAGES_1G);
        if !large_allowed {
            reserved |= Pte::PS.bits();
        }
        reserved
    }
}
