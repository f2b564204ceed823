//! Extended processor state: which components of XCR0 a guest may use, what
//! XSETBV accepts, and how large its XSAVE area is (SDM: "Managing State Using
//! the XSAVE Feature Set").

use x86defs::cpuid::CpuidSource;
use x86defs::{Gp, Xcr0};

/// Bytes of the legacy region and the header, which every XSAVE area has.
pub const XSAVE_HEADER_END: u32 = 576;
/// The components that Steward can offer: MPX, CET and AMX are not.
pub const KNOWN: Xcr0 = Xcr0::X87.union(Xcr0::SSE).union(Xcr0::AVX).union(AVX512).union(Xcr0::PKRU);
/// The three components of AVX-512, which go together.
pub const AVX512: Xcr0 = Xcr0::OPMASK.union(Xcr0::ZMM_HI256).union(Xcr0::HI16_ZMM);

/// CPUID leaf 1 ECX: XSAVE.
const LEAF1_ECX_XSAVE: u32 = 1 << 26;
/// CPUID leaf 0xd, subleaf of a component, ECX: its place in the compacted
/// format is aligned to 64 bytes.
const COMPONENT_ECX_ALIGN64: u32 = 1 << 1;
/// Components are numbered by their bit in XCR0; those beyond PKRU (9) are
/// never offered.
const COMPONENTS: usize = 10;

/// Place of a component in an XSAVE area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Component {
    /// Bytes.
    pub(crate) size: u32,
    /// Offset from the area's start in the standard format.
    pub(crate) offset: u32,
    /// ECX of the component's subleaf.
    pub(crate) flags: u32,
}

/// The extended states that a guest is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xstate {
    offered: Xcr0,
    components: [Component; COMPONENTS],
}

impl Xstate {
    /// The states that the host has and `allowed` allows, less those that lack a state that they
    /// build upon. A host without XSAVE has none.
    pub fn from_host(host: &impl CpuidSource, allowed: Xcr0) -> Self {
        let none = Self { offered: Xcr0::empty(), components: [Component::default(); COMPONENTS] };
        if host.cpuid(0, 0).eax < 0xd || host.cpuid(1, 0).ecx & LEAF1_ECX_XSAVE == 0 {
            return none;
        }
        let supported = Xcr0::from_bits_truncate(host.cpuid(0xd, 0).eax.into());
        let offered = closed(supported & allowed & KNOWN);
        let mut xstate = Self { offered, ..none };
        for (bit, component) in (0u32..).zip(&mut xstate.components).skip(2) {
            if offered.bits() >> bit & 1 != 0 {
                let leaf = host.cpuid(0xd, bit);
                *component = Component { size: leaf.eax, offset: leaf.ebx, flags: leaf.ecx };
            }
        }
        xstate
    }

    /// The components that the guest may enable in XCR0; empty where it has no
    /// XSAVE.
    #[must_use]
    pub const fn offered(&self) -> Xcr0 {
        self.offered
    }

    /// The component with bit `number` in XCR0, if it is offered and lies
    /// beyond the legacy region.
    pub(crate) fn component(&self, number: u32) -> Option<Component> {
        let component = *self.components.get(usize::try_from(number).ok()?)?;
        (component.size != 0).then_some(component)
    }

    /// Bytes that XSAVE needs in the standard format with these components.
    #[must_use]
    pub fn standard_size(&self, xcr0: Xcr0) -> u32 {
        self.enabled(xcr0)
            .map(|component| component.offset.saturating_add(component.size))
            .fold(XSAVE_HEADER_END, u32::max)
    }

    /// Bytes that XSAVEC needs in the compacted format with these components.
    #[must_use]
    pub fn compacted_size(&self, xcr0: Xcr0) -> u32 {
        self.enabled(xcr0).fold(XSAVE_HEADER_END, |end, component| {
            let start = if component.flags & COMPONENT_ECX_ALIGN64 != 0 {
                end.checked_next_multiple_of(64).unwrap_or(end)
            } else {
                end
            };
            start.saturating_add(component.size)
        })
    }

    /// The offered components beyond the legacy region that are set in `xcr0`,
    /// in the order of their bits.
    #[inline]
    fn enabled(&self, xcr0: Xcr0) -> impl Iterator<Item = Component> {
        // Most guests have two of them.
        let mut left = (xcr0 - Xcr0::X87 - Xcr0::SSE).bits();
        core::iter::from_fn(move || {
            loop {
                let number = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                let component = self.component(number);
                if component.is_some() {
                    return component;
                }
            }
        })
    }

    /// XSETBV of `value` with ECX = `register` at privilege level `cpl`: the
    /// new XCR0 (SDM: "XSETBV—Set Extended Control Register").
    ///
    /// # Errors
    /// [`Gp`] outside of CPL 0, for a register other than 0, and for a value
    /// that lacks x87, has a component that is not offered, or one without
    /// what it builds upon.
    pub fn xsetbv(&self, register: u32, value: u64, cpl: u8) -> Result<Xcr0, Gp> {
        let xcr0 = Xcr0::from_bits(value).ok_or(Gp)?;
        let legal = cpl == 0
            && register == 0
            && xcr0.contains(Xcr0::X87)
            && self.offered.contains(xcr0)
            && closed(xcr0) == xcr0;
        if legal { Ok(xcr0) } else { Err(Gp) }
    }
}

/// `xcr0` less the components that lack what they build upon: everything needs
/// x87, AVX needs SSE, and the AVX-512 components need AVX and one another.
fn closed(xcr0: Xcr0) -> Xcr0 {
    let mut kept = xcr0;
    if !kept.contains(Xcr0::X87) {
        return Xcr0::empty();
    }
    if !kept.contains(Xcr0::SSE) {
        kept.remove(Xcr0::AVX);
    }
    if !kept.contains(Xcr0::AVX | AVX512) {
        kept.remove(AVX512);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use x86defs::cpuid::CpuidResult;

    /// A Skylake server's leaf 0xd.
    fn skylake(leaf: u32, subleaf: u32) -> CpuidResult {
        let (eax, ebx, ecx) = match (leaf, subleaf) {
            (0, _) => (0x16, 0, 0),
            (1, _) => (0, 0, LEAF1_ECX_XSAVE),
            (0xd, 0) => (0x2ff, 0, 0xa88),
            (0xd, 2) => (0x100, 0x240, 0),
            (0xd, 3) => (0x40, 0x3c0, 0),
            (0xd, 4) => (0x40, 0x400, 0),
            (0xd, 5) => (0x40, 0x440, 0),
            (0xd, 6) => (0x200, 0x480, 0),
            (0xd, 7) => (0x400, 0x680, 0),
            (0xd, 9) => (8, 0xa80, 0),
            _ => (0, 0, 0),
        };
        CpuidResult { eax, ebx, ecx, edx: 0 }
    }

    #[test]
    fn offered_is_what_host_and_policy_share() {
        let all = Xstate::from_host(&skylake, Xcr0::all());
        assert_eq!(all.offered(), KNOWN);
        let no_sse = Xstate::from_host(&skylake, Xcr0::all() - Xcr0::SSE);
        assert_eq!(no_sse.offered(), Xcr0::X87 | Xcr0::PKRU);
        let part = Xstate::from_host(&skylake, Xcr0::all() - Xcr0::OPMASK);
        assert_eq!(part.offered(), Xcr0::X87 | Xcr0::SSE | Xcr0::AVX | Xcr0::PKRU);
        let none = Xstate::from_host(&|_, _| CpuidResult::default(), Xcr0::all());
        assert_eq!(none.offered(), Xcr0::empty());
        assert_eq!(none.xsetbv(0, 1, 0), Err(Gp));
    }

    #[test]
    fn sizes() {
        let xstate = Xstate::from_host(&skylake, Xcr0::all());
        let sse = Xcr0::X87 | Xcr0::SSE;
        assert_eq!(xstate.standard_size(sse), 576);
        assert_eq!(xstate.standard_size(sse | Xcr0::AVX), 832);
        assert_eq!(xstate.standard_size(KNOWN), 0xa88);
        assert_eq!(xstate.standard_size(sse | Xcr0::PKRU), 0xa88);
        assert_eq!(xstate.compacted_size(sse | Xcr0::PKRU), 584);
        assert_eq!(xstate.compacted_size(KNOWN), 576 + 256 + 64 + 512 + 1024 + 8);
    }

    #[test]
    fn compaction_aligns() {
        let host = |leaf, subleaf| match (leaf, subleaf) {
            (0xd, 0) => CpuidResult { eax: 0x207, ..Default::default() },
            (0xd, 2) => CpuidResult { eax: 100, ebx: 576, ..Default::default() },
            (0xd, 9) => CpuidResult { eax: 8, ebx: 1000, ecx: 2, ..Default::default() },
            _ => skylake(leaf, subleaf),
        };
        let xstate = Xstate::from_host(&host, Xcr0::all());
        assert_eq!(xstate.compacted_size(xstate.offered()), 704 + 8);
    }

    #[test]
    fn xsetbv_rules() {
        let xstate = Xstate::from_host(&skylake, Xcr0::all());
        for (value, legal) in [
            (0x0, false),
            (0x1, true),
            (0x2, false),
            (0x3, true),
            (0x5, false),
            (0x7, true),
            (0x1b, false),
            (0x27, false),
            (0x67, false),
            (0xe3, false),
            (0xe7, true),
            (0x201, true),
            (0x2e7, true),
            (0x407, false),
            (0x1_0000_0007, false),
            (1 << 63 | 7, false),
        ] {
            assert_eq!(xstate.xsetbv(0, value, 0).is_ok(), legal, "{value:#x}");
        }
        assert_eq!(xstate.xsetbv(1, 7, 0), Err(Gp));
        assert_eq!(xstate.xsetbv(0, 7, 3), Err(Gp));
        let avx = Xstate::from_host(&skylake, Xcr0::X87 | Xcr0::SSE | Xcr0::AVX);
        assert_eq!(avx.xsetbv(0, 0xe7, 0), Err(Gp));
    }

    proptest! {
        #[test]
        fn accepted_values_fit_the_area(value in 0u64..0x400) {
            let xstate = Xstate::from_host(&skylake, Xcr0::all());
            if let Ok(xcr0) = xstate.xsetbv(0, value, 0) {
                prop_assert!(xstate.offered().contains(xcr0));
                prop_assert!(xstate.standard_size(xcr0) <= xstate.standard_size(KNOWN));
                prop_assert!(xstate.compacted_size(xcr0) <= xstate.standard_size(xcr0).max(832 + 8));
            }
        }
    }
}
