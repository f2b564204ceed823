//! The bundle that travels in the ramdisk, from the files on this computer.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vmm::bundle::{
    self, ApicAssist, GuestSettings, HostExit, HostSettings, LogLevel, ModuleSettings, OnReset,
};

use crate::machine::Machine;

/// A guest, with its files where they are on this computer.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Its number of vCPUs.
    pub vcpus: u32,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// Modules and their command lines.
    pub modules: Vec<(PathBuf, String)>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Whether it has the debug-exit port.
    pub debug_exit: bool,
    /// What happens when it resets its machine.
    pub on_reset: OnReset,
    /// How far the CPU may run its local APICs.
    pub apic: ApicAssist,
}

/// How the hypervisor leaves `machine`.
pub fn host_exit(machine: Machine) -> HostExit {
    if machine.is_bochs() { HostExit::Bochs } else { HostExit::IsaDebugExit }
}

/// Writes the bundle.
pub fn build(machine: Machine, log: LogLevel, guests: &[Guest]) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    let mut settings = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        let mut add = |what: &str, path: &Path| -> Result<String> {
            let name = format!("guest{number}/{what}");
            let bytes =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            files.push((name.clone(), bytes));
            Ok(name)
        };
        let kernel = add("kernel", &guest.kernel)?;
        let initrd = guest.initrd.as_deref().map(|path| add("initrd", path)).transpose()?;
        let mut modules = Vec::new();
        for (index, (path, cmdline)) in guest.modules.iter().enumerate() {
            let file = add(&format!("module{index}"), path)?;
            modules.push(ModuleSettings { file, cmdline: cmdline.clone() });
        }
        settings.push(GuestSettings {
            name: guest.name.clone(),
            memory: guest.memory,
            vcpus: guest.vcpus,
            kernel,
            initrd,
            modules,
            cmdline: guest.cmdline.clone(),
            debug_exit: guest.debug_exit,
            on_reset: guest.on_reset,
            apic: guest.apic,
        });
    }
    let host = HostSettings { exit: host_exit(machine), log };
    bundle::build(host, settings, &files)
        .map_err(|error| anyhow::anyhow!("the bundle is refused: {error}"))
}

/// The memory that a machine needs for these guests: theirs, the bundle (which
/// stays until the guests are loaded), and the hypervisor's own.
pub fn machine_memory(guests: &[Guest], bundle: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    let theirs: u64 = guests.iter().map(|guest| guest.memory).sum();
    // Frame table and second-stage tables take about one part in 64.
    let own = 192 * MIB + theirs / 64 + bundle * 2;
    (theirs + own).next_multiple_of(64 * MIB)
}

/// Reads a size such as `512M` or `6G`; a bare number counts MiB.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (digits, shift) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 10),
        Some('m' | 'M') => (&text[..text.len() - 1], 20),
        Some('g' | 'G') => (&text[..text.len() - 1], 30),
        _ => (text, 20),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("`{text}` is no size; write for example 512M or 6G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("6g"), Ok(6 << 30));
        assert_eq!(parse_size("128"), Ok(128 << 20));
        assert!(parse_size("").is_err());
        assert!(parse_size("M").is_err());
        assert!(parse_size("-1M").is_err());
        assert!(parse_size("99999999999999G").is_err());
    }

    fn guest(memory: u64) -> Guest {
        Guest {
            name: "t".to_owned(),
            memory,
            vcpus: 1,
            kernel: PathBuf::from(file!()),
            initrd: None,
            modules: Vec::new(),
            cmdline: String::new(),
            debug_exit: true,
            on_reset: OnReset::End,
            apic: ApicAssist::Full,
        }
    }

    #[test]
    fn a_machine_has_more_memory_than_its_guests() {
        let one = machine_memory(&[guest(512 << 20)], 20 << 20);
        assert!(one > (512 + 20) << 20);
        assert_eq!(one % (64 << 20), 0);
        assert!(
            machine_memory(&[guest(512 << 20), guest(512 << 20)], 20 << 20) > one + (500 << 20)
        );
    }

    #[test]
    fn a_bundle_reads_back() {
        let file = tempfile();
        let mut guest = guest(64 << 20);
        guest.kernel = file.clone();
        guest.modules.push((file.clone(), "a b".to_owned()));
        let bytes = build(Machine::QemuSvm, LogLevel::Info, &[guest]).unwrap();
        let read = bundle::Bundle::open(&bytes).unwrap();
        assert_eq!(read.manifest().guests[0].modules[0].cmdline, "a b");
        assert_eq!(read.file("guest0/kernel"), Some(&b"kernel"[..]));
        assert_eq!(read.manifest().host.exit, HostExit::IsaDebugExit);
        std::fs::remove_file(file).unwrap();
    }

    fn tempfile() -> PathBuf {
        let path = std::env::temp_dir().join(format!("steward-bundle-test-{}", std::process::id()));
        std::fs::write(&path, b"kernel").unwrap();
        path
    }

    #[test]
    fn bad_settings_are_refused_here_already() {
        let file = std::env::temp_dir().join(format!("steward-bundle-bad-{}", std::process::id()));
        std::fs::write(&file, b"kernel").unwrap();
        let mut guest = guest(12345);
        guest.kernel = file.clone();
        assert!(build(Machine::QemuSvm, LogLevel::Info, &[guest]).is_err());
        std::fs::remove_file(file).unwrap();
    }
}
