//! The place of a guest's RAM among the hypervisor's addresses.

use x86defs::GuestPhysAddr;

/// The place at which the hypervisor sees the RAM of the guest that it serves: a range of
/// [`GuestPhysAddr::END`] bytes of its own addresses, in which guest-physical address 0 stands
/// first.
///
/// Nothing else adds a guest's address to one of the hypervisor's: behind the window lies
/// the hypervisor's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u64);

impl Window {
    /// The window at `base`, a multiple of [`GuestPhysAddr::END`] (what is over is cut off).
    #[must_use]
    pub const fn new(base: u64) -> Self {
        Self(base & !(GuestPhysAddr::END - 1))
    }

    /// The address of the `len` bytes at `gpa`. `None` if one of them would be outside.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, gpa: GuestPhysAddr, len: u64) -> Option<u64> {
        let gpa = gpa.as_u64();
        if gpa < GuestPhysAddr::END && len <= GuestPhysAddr::END.wrapping_sub(gpa) {
            Some(self.0 | gpa)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 0xffff_8000_0000_0000;
    const WINDOW: Window = Window::new(BASE);

    #[test]
    fn the_window_ends_where_addresses_do() {
        let last = GuestPhysAddr::new(GuestPhysAddr::END - 1);
        assert_eq!(WINDOW.at(last, 1), Some(BASE + GuestPhysAddr::END - 1));
        assert_eq!(WINDOW.at(last, 2), None);
        assert_eq!(WINDOW.at(GuestPhysAddr::new(GuestPhysAddr::END), 0), None);
        assert_eq!(WINDOW.at(GuestPhysAddr::new(0), GuestPhysAddr::END), Some(BASE));
        assert_eq!(WINDOW.at(GuestPhysAddr::new(1), u64::MAX), None);
        assert_eq!(Window::new(BASE + 0x1234_5000), WINDOW);
    }

    proptest! {
        #[test]
        fn no_address_leaves_the_window(
            gpa in prop_oneof![any::<u64>(), 0..GuestPhysAddr::END + 0x1000],
            len in prop_oneof![any::<u64>(), 0..0x1_0000u64],
        ) {
            match WINDOW.at(GuestPhysAddr::new(gpa), len) {
                Some(at) => {
                    prop_assert_eq!(at, BASE + gpa);
                    prop_assert!((BASE..BASE + GuestPhysAddr::END).contains(&at));
                    prop_assert!(len <= BASE + GuestPhysAddr::END - at);
                }
                None => prop_assert!(
                    gpa.checked_add(len).is_none_or(|end| end > GuestPhysAddr::END) || gpa == GuestPhysAddr::END
                ),
            }
        }
    }
}
