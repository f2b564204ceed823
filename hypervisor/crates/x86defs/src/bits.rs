//! Taking the low part of a register on purpose, and operand widths.

/// Deliberate truncation, so that `as` casts stand nowhere else.
pub trait Low: Copy {
    /// Bits 7:0.
    fn low8(self) -> u8;
    /// Bits 15:0.
    fn low16(self) -> u16;
    /// Bits 31:0.
    fn low32(self) -> u32;
}

macro_rules! low {
    ($($t:ty),*) => {$(
        impl Low for $t {
            #[inline(always)]
            fn low8(self) -> u8 {
                let [a, ..] = self.to_le_bytes();
                a
            }
            #[inline(always)]
            fn low16(self) -> u16 {
                let [a, b, ..] = self.to_le_bytes();
                u16::from_le_bytes([a, b])
            }
            #[inline(always)]
            fn low32(self) -> u32 {
                let [a, b, c, d, ..] = self.to_le_bytes();
                u32::from_le_bytes([a, b, c, d])
            }
        }
    )*};
}
low!(u32, u64, usize, u128);

/// Bits 63:32 of `value`.
#[inline(always)]
#[must_use]
pub const fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}

/// `high:low` as one 64-bit value, as in EDX:EAX.
#[inline(always)]
#[must_use]
pub const fn join(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// The size of an access in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    B1 = 1,
    /// Two bytes.
    B2 = 2,
    /// Four bytes.
    B4 = 4,
    /// Eight bytes.
    B8 = 8,
}

impl Width {
    /// The width of `bytes` bytes: 1, 2, 4 or 8.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::B1),
            2 => Some(Self::B2),
            4 => Some(Self::B4),
            8 => Some(Self::B8),
            _ => None,
        }
    }

    /// The number of bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// The number of bits.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// A mask of the bits that an operand of this width has.
    #[inline(always)]
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The sign bit of an operand of this width.
    #[inline(always)]
    #[must_use]
    pub const fn sign_bit(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// `value` cut to this width.
    #[inline(always)]
    #[must_use]
    pub const fn truncate(self, value: u64) -> u64 {
        value & self.mask()
    }

    /// `value`, which has this width, sign-extended to 64 bits.
    #[inline(always)]
    #[must_use]
    pub const fn sign_extend(self, value: u64) -> u64 {
        let shift = 64 - self.bits();
        ((value << shift).cast_signed() >> shift).cast_unsigned()
    }

    /// `old` with its low part replaced by `new`: how a register of 64 bits
    /// takes an operand of this width (32 bits clear the upper half; 8 and 16
    /// leave the rest).
    #[inline(always)]
    #[must_use]
    pub const fn merge(self, old: u64, new: u64) -> u64 {
        match self {
            Self::B8 => new,
            Self::B4 => new & 0xffff_ffff,
            Self::B2 | Self::B1 => old & !self.mask() | new & self.mask(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        assert_eq!(Width::B1.mask(), 0xff);
        assert_eq!(Width::B8.mask(), u64::MAX);
        assert_eq!(Width::B1.sign_extend(0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(Width::B4.merge(u64::MAX, 5), 5);
        assert_eq!(Width::B2.merge(u64::MAX, 5), 0xffff_ffff_ffff_0005);
        assert_eq!(join(high32(0x1234_5678_9abc_def0), 0x9abc_def0), 0x1234_5678_9abc_def0);
    }
}
