//! Which machine the image runs on, and why that one.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

/// A machine that can run the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// QEMU with nested KVM: the real CPU's VT-x or AMD-V.
    Kvm,
    /// QEMU's own CPU with AMD-V.
    QemuSvm,
    /// Bochs with VT-x.
    BochsVmx,
    /// Bochs with AMD-V, one CPU.
    BochsSvm,
    /// QEMU without Steward: boots the guest's kernel directly, to compare.
    #[value(hide = true)]
    Bare,
}

impl Machine {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Machine::Kvm => "kvm",
            Machine::QemuSvm => "qemu-svm",
            Machine::BochsVmx => "bochs-vmx",
            Machine::BochsSvm => "bochs-svm",
            Machine::Bare => "bare",
        }
    }

    /// Whether it is Bochs, of either vendor.
    pub fn is_bochs(self) -> bool {
        matches!(self, Machine::BochsVmx | Machine::BochsSvm)
    }
}

/// The firmware that boots the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// The PC's classic firmware: SeaBIOS in QEMU.
    Bios,
    /// OVMF in QEMU.
    Uefi,
}

/// Facts that the choice of a machine depends on, read from this computer.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// `svm` is among the CPU's flags.
    pub svm: bool,
    /// `vmx` is among the CPU's flags.
    pub vmx: bool,
    /// The `nested` switch of the module `kvm_intel`, where it is loaded.
    pub nested_intel: Option<bool>,
    /// The `nested` switch of the module `kvm_amd`, where it is loaded.
    pub nested_amd: Option<bool>,
    /// `/dev/kvm` opens for reading and writing.
    pub kvm_opens: bool,
}

impl HostFacts {
    /// Reads them.
    pub fn read() -> HostFacts {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let nested = |module: &str| {
            let text =
                fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok()?;
            parse_switch(&text)
        };
        HostFacts {
            svm: has_cpu_flag(&cpuinfo, "svm"),
            vmx: has_cpu_flag(&cpuinfo, "vmx"),
            nested_intel: nested("kvm_intel"),
            nested_amd: nested("kvm_amd"),
            kvm_opens: fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok(),
        }
    }
}

fn has_cpu_flag(cpuinfo: &str, flag: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .filter_map(|line| line.split_once(':'))
        .any(|(_, flags)| flags.split_whitespace().any(|word| word == flag))
}

/// A module's switch reads `Y`, `N`, `1` or `0`, by the kernel's version.
fn parse_switch(text: &str) -> Option<bool> {
    match text.trim() {
        "Y" | "y" | "1" => Some(true),
        "N" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// A machine and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The machine.
    pub machine: Machine,
    /// Why, as the end of a sentence.
    pub why: String,
}

/// Chooses: what was asked for; else nested KVM where it is really usable; else
/// QEMU's own CPU. That `/dev/kvm` exists and opens proves nothing: it does so on
/// computers where no guest can use VT-x or AMD-V.
pub fn choose(asked: Option<Machine>, facts: &HostFacts) -> Choice {
    if let Some(machine) = asked {
        return Choice { machine, why: "as asked for".to_owned() };
    }
    match nested_kvm(facts) {
        Ok(why) => Choice { machine: Machine::Kvm, why },
        Err(why) => Choice {
            machine: Machine::QemuSvm,
            why: format!("nested KVM is not usable here: {why}"),
        },
    }
}

/// Whether nested KVM is usable, and why or why not.
pub fn nested_kvm(facts: &HostFacts) -> Result<String, String> {
    let (flag, module, nested) = if facts.svm {
        ("svm", "kvm_amd", facts.nested_amd)
    } else if facts.vmx {
        ("vmx", "kvm_intel", facts.nested_intel)
    } else {
        return Err("the CPU's flags have neither svm nor vmx".to_owned());
    };
    match nested {
        None => Err(format!("the CPU has {flag}, but the module {module} is not loaded")),
        Some(false) => Err(format!("the CPU has {flag}, but {module}'s parameter `nested` is off")),
        Some(true) if !facts.kvm_opens => Err(format!(
            "the CPU has {flag} and {module} nests, but /dev/kvm does not open (is this user in the group `kvm`?)"
        )),
        Some(true) => Ok(format!("the CPU has {flag} and {module} nests")),
    }
}

/// OVMF's two flash images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ovmf {
    /// The code, read-only.
    pub code: PathBuf,
    /// A template of the variables: each run writes its own copy.
    pub vars: PathBuf,
}

impl Ovmf {
    /// OVMF, where a package put it.
    pub fn find() -> Option<Ovmf> {
        let pairs = [
            ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
            ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
            ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
            ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
        ];
        pairs
            .into_iter()
            .find(|(code, vars)| Path::new(code).is_file() && Path::new(vars).is_file())
            .map(|(code, vars)| Ovmf { code: code.into(), vars: vars.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amd() -> HostFacts {
        HostFacts { svm: true, nested_amd: Some(true), kvm_opens: true, ..HostFacts::default() }
    }

    #[test]
    fn nested_kvm_needs_flag_switch_and_device() {
        assert_eq!(choose(None, &amd()).machine, Machine::Kvm);
        let intel = HostFacts {
            vmx: true,
            nested_intel: Some(true),
            kvm_opens: true,
            ..HostFacts::default()
        };
        let choice = choose(None, &intel);
        assert_eq!(choice.machine, Machine::Kvm);
        assert!(choice.why.contains("kvm_intel"));
        for facts in [
            HostFacts { svm: false, ..amd() },
            HostFacts { nested_amd: Some(false), ..amd() },
            HostFacts { nested_amd: None, ..amd() },
            HostFacts { kvm_opens: false, ..amd() },
            // The other vendor's switch is worth nothing.
            HostFacts { nested_amd: None, nested_intel: Some(true), ..amd() },
        ] {
            assert_eq!(choose(None, &facts).machine, Machine::QemuSvm, "{facts:?}");
        }
    }

    #[test]
    fn a_device_node_alone_proves_nothing() {
        let facts = HostFacts { kvm_opens: true, ..HostFacts::default() };
        let choice = choose(None, &facts);
        assert_eq!(choice.machine, Machine::QemuSvm);
        assert!(choice.why.contains("neither svm nor vmx"), "{}", choice.why);
    }

    #[test]
    fn what_was_asked_for_wins() {
        assert_eq!(choose(Some(Machine::BochsVmx), &amd()).machine, Machine::BochsVmx);
    }

    #[test]
    fn cpu_flags_are_whole_words_of_the_flags_line() {
        assert!(has_cpu_flag("model name : x\nflags\t\t: fpu svm lm\n", "svm"));
        assert!(!has_cpu_flag("flags : fpu svm_lock\nbugs : svm\n", "svm"));
        assert!(!has_cpu_flag("vmx flags : vnmi vmx\n", "vmx"));
    }

    #[test]
    fn module_switches() {
        assert_eq!(parse_switch("Y\n"), Some(true));
        assert_eq!(parse_switch("0\n"), Some(false));
        assert_eq!(parse_switch(""), None);
    }
}
