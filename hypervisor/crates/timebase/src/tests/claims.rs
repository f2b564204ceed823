use crate::{Claim, Witness, claims};
use x86defs::cpuid::CpuidResult;

/// CPUID of a CPU: highest leaf and vendor, signature, leaves 0x15 and 0x16.
struct Cpu {
    vendor: &'static [u8; 12],
    highest: u32,
    signature: u32,
    crystal: [u32; 3],
    base: u32,
    /// The hypervisor's highest leaf and its kHz.
    hypervisor: Option<(u32, u32)>,
}

const INTEL: &[u8; 12] = b"GenuineIntel";

impl Cpu {
    fn claims(&self) -> [Option<Claim>; 2] {
        let word = |at: usize| u32::from_le_bytes(self.vendor[at..at + 4].try_into().unwrap());
        claims(&|leaf, _| {
            let r = |eax, ebx, ecx, edx| CpuidResult { eax, ebx, ecx, edx };
            match leaf {
                0 => r(self.highest, word(0), word(8), word(4)),
                1 => r(self.signature, 0, u32::from(self.hypervisor.is_some()) << 31, 0),
                0x15 => r(self.crystal[0], self.crystal[1], self.crystal[2], 0),
                0x16 => r(self.base, 0xdead, 0xbeef, 0),
                0x4000_0000 => r(self.hypervisor.map_or(0xffff_ffff, |h| h.0), 0, 0, 0),
                0x4000_0010 => r(self.hypervisor.map_or(0, |h| h.1), 0, 0, 0),
                _ => r(0xffff_ffff, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff),
            }
        })
    }

    fn own(&self) -> Option<(Witness, u64)> {
        self.claims()[0].map(|claim| (claim.by, claim.hz))
    }
}

/// A table of CPUs as they answer.
#[test]
fn what_cpus_say_of_themselves() {
    let cpu = |signature, highest, crystal, base| Cpu {
        vendor: INTEL,
        highest,
        signature,
        crystal,
        base,
        hypervisor: None,
    };
    let crystal = |hz| Some((Witness::CpuidCrystal, hz));
    for (name, cpu, said) in [
        (
            "Skylake client: no crystal",
            cpu(0x506e3, 0x16, [2, 284, 0], 3408),
            crystal(3_408_000_000),
        ),
        ("Kaby Lake mobile", cpu(0x806e9, 0x16, [2, 242, 0], 2900), crystal(2_904_000_000)),
        ("Goldmont", cpu(0x506c9, 0x15, [3, 171, 0], 0), crystal(1_094_400_000)),
        ("Denverton", cpu(0x506f1, 0x15, [2, 176, 0], 0), crystal(2_200_000_000)),
        ("Ice Lake", cpu(0x706e5, 0x1b, [2, 78, 38_400_000], 1500), crystal(1_497_600_000)),
        (
            "Cascade Lake: ratio, no crystal",
            cpu(0x50657, 0x16, [2, 168, 0], 2100),
            Some((Witness::CpuidBase, 2_100_000_000)),
        ),
        ("Haswell: no such leaf", cpu(0x306c3, 0xd, [1, 1, 1], 1), None),
        ("leaf 0x15 alone, empty", cpu(0x50657, 0x15, [0, 0, 0], 2100), None),
        (
            "no divisor",
            cpu(0x706e5, 0x16, [0, 78, 38_400_000], 1500),
            Some((Witness::CpuidBase, 1_500_000_000)),
        ),
        ("all ones", cpu(0x706e5, 0x16, [u32::MAX; 3], u32::MAX), crystal(u64::from(u32::MAX))),
        ("nothing at all", cpu(0x706e5, 0x16, [0; 3], 0), None),
    ] {
        assert_eq!(cpu.own(), said, "{name}");
    }
    let amd = Cpu { vendor: b"AuthenticAMD", ..cpu(0x800f12, 0x16, [1, 2, 3], 4) };
    assert_eq!(amd.own(), None);
}

#[test]
fn what_a_hypervisor_says() {
    let cpu = |hypervisor| Cpu {
        vendor: b"AuthenticAMD",
        highest: 0xd,
        signature: 0,
        crystal: [0; 3],
        base: 0,
        hypervisor,
    };
    let said = |hypervisor| cpu(hypervisor).claims()[1].map(|claim| (claim.by, claim.hz));
    let leaf = Some((Witness::HypervisorLeaf, 2_596_000_000));
    assert_eq!(said(Some((0x4000_0010, 2_596_000))), leaf);
    // A hypervisor without the leaf, and one that answers anything with its signature.
    assert_eq!(said(Some((0x4000_0001, 2_596_000))), None);
    assert_eq!(said(Some((0xffff_ffff, 2_596_000))), None);
    assert_eq!(said(Some((0x4000_0010, 0))), None);
    // No hypervisor: its leaves are whatever the CPU makes of them.
    assert_eq!(said(None), None);
}
