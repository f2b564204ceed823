//! Segment registers with their hidden parts, and descriptor-table registers.

use bitfield_struct::bitfield;

/// The attributes of a segment, in the layout of VT-x's access rights
/// (SDM: "Guest Register State"): the descriptor's bits 47:40 and 55:52 with
/// a hole in between. AMD-V packs the hole away.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct SegmentAttributes {
    /// Type: 4 bits, with S as in the manuals.
    #[bits(4)]
    pub kind: u8,
    /// S: 1 for code and data, 0 for system segments.
    pub code_or_data: bool,
    /// Descriptor privilege level, 0 to 3.
    #[bits(2)]
    pub dpl: u8,
    /// P.
    pub present: bool,
    #[bits(4)]
    __: u8,
    /// AVL, for the operating system's use.
    pub available: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit operands, or stack.
    pub big: bool,
    /// G: the limit counts pages.
    pub granular: bool,
}

impl SegmentAttributes {
    /// The attributes in the packed 12 bits of a VMCB (APM: "VMCB Layout, State Save Area").
    #[must_use]
    pub const fn from_svm(packed: u16) -> Self {
        Self::from_bits(packed & 0xff | (packed & 0xf00) << 4)
    }

    /// The packed 12 bits of a VMCB.
    pub(crate) const fn to_svm(self) -> u16 {
        let bits = self.into_bits();
        bits & 0xff | (bits & 0xf000) >> 4
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Attributes; `present` is clear where VT-x says "unusable".
    pub attributes: SegmentAttributes,
    /// The limit in bytes, granularity already applied.
    pub limit: u32,
    /// The base address.
    pub base: u64,
}

impl Segment {
    /// A flat 64-bit code segment, ring 0.
    #[must_use]
    pub const fn code64(selector: u16) -> Self {
        Self {
            selector,
            attributes: SegmentAttributes::from_bits(0xa09b),
            limit: u32::MAX,
            base: 0,
        }
    }

    /// A flat 32-bit code segment, ring 0.
    #[must_use]
    pub const fn code32(selector: u16) -> Self {
        Self {
            selector,
            attributes: SegmentAttributes::from_bits(0xc09b),
            limit: u32::MAX,
            base: 0,
        }
    }

    /// A flat writable data segment, ring 0.
    #[must_use]
    pub const fn data32(selector: u16) -> Self {
        Self {
            selector,
            attributes: SegmentAttributes::from_bits(0xc093),
            limit: u32::MAX,
            base: 0,
        }
    }

    /// A busy 64-bit (or 32-bit, outside long mode) task-state segment.
    #[must_use]
    pub const fn tss(selector: u16) -> Self {
        Self { selector, attributes: SegmentAttributes::from_bits(0x8b), limit: 0x67, base: 0 }
    }

    /// A real-mode segment: base = selector × 16, limit 64 KiB. `kind` 3 is
    /// writable data, 11 is code.
    #[must_use]
    pub const fn real_mode(selector: u16, kind: u8) -> Self {
        Self {
            selector,
            attributes: SegmentAttributes::new()
                .with_kind(kind)
                .with_code_or_data(true)
                .with_present(true),
            limit: 0xffff,
            base: (selector as u64) << 4,
        }
    }

    /// No segment: a null selector.
    pub const UNUSABLE: Self =
        Self { selector: 0, attributes: SegmentAttributes::from_bits(0), limit: 0, base: 0 };
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// The table's linear address.
    pub base: u64,
    /// Offset of the table's last byte.
    pub limit: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svm_packing_round_trips() {
        assert_eq!(SegmentAttributes::from_bits(0xa09b).to_svm(), 0xa9b);
        for packed in 0..0x1000 {
            assert_eq!(SegmentAttributes::from_svm(packed).to_svm(), packed);
        }
        assert!(SegmentAttributes::from_bits(0xa09b).long());
        assert_eq!(Segment::real_mode(0xf000, 11).base, 0xf_0000);
    }
}
