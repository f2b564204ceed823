//! Planted faults: each is in the source behind `cfg(planted = "NAME")`, and the
//! named case must turn red when it is built in. A test suite that stays green
//! over a planted fault is the one that has the fault.

/// A fault and the case that notices it.
#[derive(Debug, Clone, Copy)]
pub struct Planted {
    /// The fault's name, as in `cfg(planted = "…")`.
    pub fault: &'static str,
    /// The cases that must fail, one on each vendor's machine; `host:` names a package
    /// and its test, which runs on this computer (both emulators forget all translations
    /// at every entry, so that no guest can see a stale tag there). For AMD-V it is
    /// Bochs where QEMU can't show the fault: its VMRUN loses interrupt shadows.
    pub cases: &'static [&'static str],
}

/// All of them.
pub const PLANTED: &[Planted] = &[
    Planted { fault: "rip-not-advanced", cases: &["tiny-exits", "tiny-exits-vmx"] },
    Planted { fault: "shadow-not-cleared", cases: &["tiny-exits-bochs-svm", "tiny-exits-vmx"] },
    Planted { fault: "reinjection-dropped", cases: &["tiny-exits", "tiny-exits-vmx"] },
    Planted { fault: "xcr0-leaked", cases: &["tiny-state", "tiny-state-vmx"] },
    Planted { fault: "asid-not-bumped", cases: &["host:memory/tags::"] },
    Planted { fault: "eoi-lost", cases: &["tiny-irq", "tiny-irq-vmx", "tiny-irq-vmx-injected"] },
    Planted { fault: "tsc-offset-sign", cases: &["tiny-clock", "tiny-clock-vmx"] },
    Planted { fault: "emulated-write-privilege", cases: &["tiny-emulate", "tiny-emulate-vmx"] },
    Planted { fault: "nested-page-writable", cases: &["tiny-memory", "tiny-memory-vmx"] },
    Planted { fault: "debt-forgotten", cases: &["host:memory/space::"] },
    Planted {
        fault: "memory-zeroed-late",
        cases: &["iso-fresh-memory-svm", "iso-fresh-memory-vmx"],
    },
    Planted {
        fault: "window-interrupt-lost",
        cases: &["tiny-irq", "tiny-irq-vmx", "tiny-irq-vmx-injected"],
    },
];
