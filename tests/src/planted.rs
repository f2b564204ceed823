//! Planted faults: each is in the source behind `cfg(planted = "NAME")`, and the
//! named case must turn red when it is built in. A test suite that stays green
//! over a planted fault is the one that has the fault.

/// A fault and the case that notices it.
#[derive(Debug, Clone, Copy)]
pub struct Planted {
    /// The fault's name, as in `cfg(planted = "…")`.
    pub fault: &'static str,
    /// The case that must fail; `host:` names a test of `vmm` that runs on this
    /// computer (both emulators forget all translations at every entry, so that no
    /// guest can see a stale tag there).
    pub case: &'static str,
}

/// All of them.
pub const PLANTED: &[Planted] = &[
    Planted { fault: "rip-not-advanced", case: "tiny-exits" },
    Planted { fault: "shadow-not-cleared", case: "tiny-exits" },
    Planted { fault: "reinjection-dropped", case: "tiny-exits" },
    Planted { fault: "xcr0-leaked", case: "tiny-state" },
    Planted { fault: "asid-not-bumped", case: "host:tags::" },
    Planted { fault: "eoi-lost", case: "tiny-irq" },
    Planted { fault: "tsc-offset-sign", case: "tiny-clock" },
    Planted { fault: "emulated-write-privilege", case: "tiny-emulate" },
    Planted { fault: "nested-page-writable", case: "tiny-memory" },
    Planted { fault: "window-interrupt-lost", case: "tiny-irq" },
];
