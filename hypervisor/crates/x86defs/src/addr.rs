//! Address types. An address counts bytes and a page number counts pages of
//! 4 KiB; the three address spaces never mix.

use core::fmt;
use core::ops::Range;

/// Bytes in a small page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $(#[$page_doc:meta])* $page:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        $(#[$page_doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $page(u64);

        impl $name {
            /// Address 0.
            pub const ZERO: Self = Self(0);

            /// The address of byte `value`.
            #[inline(always)]
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The number of the byte.
            #[inline(always)]
            #[must_use]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, unless that overflows.
            #[inline(always)]
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The address `bytes` further on, modulo 2^64.
            #[inline(always)]
            #[must_use]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// How far this address lies beyond `base`, if it does not lie before it.
            #[inline(always)]
            #[must_use]
            pub const fn checked_offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The greatest multiple of `align` (a power of two) not above this.
            #[inline(always)]
            #[must_use]
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align - 1))
            }

            /// The least multiple of `align` (a power of two) not below this,
            /// unless that overflows.
            #[inline(always)]
            #[must_use]
            pub const fn align_up(self, align: u64) -> Option<Self> {
                match self.0.checked_add(align - 1) {
                    Some(sum) => Some(Self(sum & !(align - 1))),
                    None => None,
                }
            }

            /// Whether this is a multiple of `align`, a power of two.
            #[inline(always)]
            #[must_use]
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }

            /// The small page that holds this byte.
            #[inline(always)]
            #[must_use]
            pub const fn page(self) -> $page {
                $page(self.0 >> PAGE_SHIFT)
            }

            /// The byte's offset in its small page.
            #[inline(always)]
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// The range of `bytes` bytes from here, unless its end overflows.
            #[must_use]
            pub const fn range(self, bytes: u64) -> Option<Range<Self>> {
                match self.checked_add(bytes) {
                    Some(end) => Some(self..end),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl $page {
            /// Page number `number`.
            #[inline(always)]
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The page's number.
            #[inline(always)]
            #[must_use]
            pub const fn number(self) -> u64 {
                self.0
            }

            /// The address of the page's first byte.
            #[inline(always)]
            #[must_use]
            pub const fn base(self) -> $name {
                $name(self.0 << PAGE_SHIFT)
            }

            /// The page `pages` further on, unless that overflows.
            #[inline(always)]
            #[must_use]
            pub const fn checked_add(self, pages: u64) -> Option<Self> {
                match self.0.checked_add(pages) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $page {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "page {:#x}", self.0)
            }
        }
    };
}

address!(
    /// A physical address of the machine.
    HostPhysAddr,
    /// A frame of the machine's memory, counted in pages of 4 KiB.
    Hfn
);
address!(
    /// A physical address as a guest sees it.
    GuestPhysAddr,
    /// A guest frame number, counted in pages of 4 KiB.
    Gfn
);
address!(
    /// A linear address in a guest, before its own paging.
    GuestVirtAddr,
    /// A guest's linear page number, counted in pages of 4 KiB.
    Gvn
);

impl GuestVirtAddr {
    /// Whether bits 63:47 are all alike, as 4-level paging demands
    /// (APM: "Canonical Address Form").
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        ((self.0 << 16).cast_signed() >> 16).cast_unsigned() == self.0
    }
}

impl GuestPhysAddr {
    /// Bits of a guest-physical address: CPUID shows so many to a guest, its MTRRs take so
    /// many, and the hypervisor sees a guest's RAM in a window that is so large.
    pub const BITS: u8 = 39;
    /// Guest-physical addresses end here: 512 GiB.
    pub const END: u64 = 1 << Self::BITS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_checked() {
        let top = GuestPhysAddr::new(u64::MAX);
        assert_eq!(top.checked_add(1), None);
        assert_eq!(top.align_up(PAGE_SIZE), None);
        assert_eq!(top.align_down(PAGE_SIZE).as_u64(), u64::MAX - 4095);
        assert_eq!(GuestPhysAddr::new(0x1fff).page(), Gfn::new(1));
        assert_eq!(GuestPhysAddr::new(0x1fff).page_offset(), 0xfff);
        assert_eq!(Gfn::new(3).base(), GuestPhysAddr::new(0x3000));
    }

    #[test]
    fn canonical() {
        assert!(GuestVirtAddr::new(0x7fff_ffff_ffff).is_canonical());
        assert!(!GuestVirtAddr::new(0x8000_0000_0000).is_canonical());
        assert!(GuestVirtAddr::new(0xffff_8000_0000_0000).is_canonical());
    }
}
