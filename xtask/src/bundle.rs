//! The bundle that travels in the ramdisk, from the files on this computer.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use config::limits::{MAX_MACHINE_MEMORY, MAX_MEMORY, MAX_VCPUS, MIN_MACHINE_MEMORY, MIN_MEMORY};
use config::size::{parse_size, short_size};
use config::{GuestSettings, HostExit, HostSettings, LogLevel, ModuleSettings, Uuid, bundle};

use crate::machine::Machine;

/// A guest, with its files where they are on this computer.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its settings. [`build`] writes `kernel`, `initrd` and `modules`: the files'
    /// names in the bundle.
    pub settings: GuestSettings,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// Modules and their command lines.
    pub modules: Vec<(PathBuf, String)>,
}

impl Guest {
    /// A guest with one vCPU, this kernel, and the default of everything else.
    pub fn new(name: &str, memory: u64, kernel: impl Into<PathBuf>) -> Guest {
        Guest {
            settings: GuestSettings::new(name, memory, ""),
            kernel: kernel.into(),
            initrd: None,
            modules: Vec::new(),
        }
    }
}

/// How the hypervisor leaves `machine`.
pub fn host_exit(machine: Machine) -> HostExit {
    if machine.is_bochs() { HostExit::Bochs } else { HostExit::IsaDebugExit }
}

/// The usual settings of the hypervisor on `machine`, for one run: the line that says how it
/// ended names a key that nobody can guess.
pub fn host(machine: Machine, log: LogLevel) -> Result<HostSettings> {
    let mut key = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .context("cannot read random numbers from /dev/urandom")?;
    Ok(HostSettings { end_key: Some(Uuid(key)), ..HostSettings::new(host_exit(machine), log) })
}

/// The files of a bundle: each once, whoever uses it.
#[derive(Default)]
struct Files {
    names: BTreeMap<PathBuf, String>,
    files: Vec<(String, Vec<u8>)>,
}

impl Files {
    /// Puts the file `path` in, under `name` unless it is there; returns its name.
    fn add(&mut self, name: String, path: &Path) -> Result<String> {
        if let Some(name) = self.names.get(path) {
            return Ok(name.clone());
        }
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.files.push((name.clone(), bytes));
        self.names.insert(path.to_owned(), name.clone());
        Ok(name)
    }
}

/// Writes the bundle.
pub fn build(host: HostSettings, guests: &[Guest]) -> Result<Vec<u8>> {
    let mut files = Files::default();
    let mut all = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        let mut add = |what: &str, path: &Path| files.add(format!("guest{number}/{what}"), path);
        let mut settings = guest.settings.clone();
        settings.kernel = add("kernel", &guest.kernel)?;
        settings.initrd = guest.initrd.as_deref().map(|path| add("initrd", path)).transpose()?;
        settings.modules.clear();
        for (index, (path, cmdline)) in guest.modules.iter().enumerate() {
            let file = add(&format!("module{index}"), path)?;
            settings.modules.push(ModuleSettings { file, cmdline: cmdline.clone() });
        }
        all.push(settings);
    }
    bundle::build(host, all, &files.files)
        .map_err(|error| anyhow::anyhow!("the bundle is refused: {error}"))
}

/// The memory that a machine needs for these guests: theirs, the bundle (which
/// stays until the guests are loaded), and the hypervisor's own.
pub fn machine_memory(guests: &[Guest], bundle: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    let theirs: u64 = guests
        .iter()
        .map(|guest| guest.settings.memory + u64::from(guest.settings.console_ring))
        .sum();
    // Frame table and second-stage tables take about one part in 64.
    let own = 192 * MIB + theirs / 64 + bundle * 2;
    (theirs + own).next_multiple_of(64 * MIB)
}

/// Reads the memory of a guest, as an option names it.
pub fn parse_guest_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) {
        let (least, most) = (short_size(MIN_MEMORY), short_size(MAX_MEMORY));
        return Err(format!("a guest has {least} to {most} of memory"));
    }
    if !size.is_multiple_of(4096) {
        return Err(format!("{size} bytes are no whole pages; take a multiple of 4K"));
    }
    Ok(size)
}

/// Reads the memory of the machine, as an option names it.
pub fn parse_machine_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if !(MIN_MACHINE_MEMORY..=MAX_MACHINE_MEMORY).contains(&size) {
        let (least, most) = (short_size(MIN_MACHINE_MEMORY), short_size(MAX_MACHINE_MEMORY));
        return Err(format!("a machine has {least} to {most} of memory"));
    }
    Ok(size)
}

/// Reads how many vCPUs a guest has, as an option names it.
pub fn parse_vcpus(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX_VCPUS).contains(count));
    count.ok_or_else(|| format!("a guest has 1 to {MAX_VCPUS} vCPUs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_limits_of_their_own() {
        assert_eq!(parse_guest_memory("1M"), Ok(1 << 20));
        assert_eq!(parse_guest_memory("0"), Err("a guest has 1M to 383G of memory".to_owned()));
        assert!(parse_guest_memory("384G").is_err());
        assert!(parse_guest_memory("1025K").unwrap_err().contains("a multiple of 4K"));
        assert_eq!(parse_machine_memory("1T"), Ok(1 << 40));
        assert!(parse_machine_memory("0").unwrap_err().contains("128M to 1T"));
        assert_eq!(parse_vcpus("64"), Ok(64));
        for bad in ["0", "65", "-1", "many"] {
            assert_eq!(parse_vcpus(bad), Err("a guest has 1 to 64 vCPUs".to_owned()), "{bad}");
        }
    }

    fn guest(memory: u64) -> Guest {
        Guest::new("t", memory, file!())
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
        let bytes = build(host(Machine::QemuSvm, LogLevel::Info).unwrap(), &[guest]).unwrap();
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
    fn guests_share_files() {
        let file = std::env::temp_dir().join(format!("steward-bundle-two-{}", std::process::id()));
        std::fs::write(&file, b"kernel").unwrap();
        let guests = ["a", "b"].map(|name| Guest::new(name, 64 << 20, &file));
        let bytes = build(host(Machine::QemuSvm, LogLevel::Info).unwrap(), &guests).unwrap();
        let read = bundle::Bundle::open(&bytes).unwrap();
        let kernels = read.manifest().guests.iter().map(|guest| guest.kernel.as_str());
        assert_eq!(kernels.collect::<Vec<_>>(), ["guest0/kernel"; 2]);
        assert_eq!(read.manifest().files.len(), 1);
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn bad_settings_are_refused_here_already() {
        let file = std::env::temp_dir().join(format!("steward-bundle-bad-{}", std::process::id()));
        std::fs::write(&file, b"kernel").unwrap();
        let mut guest = guest(12345);
        guest.kernel = file.clone();
        assert!(build(host(Machine::QemuSvm, LogLevel::Info).unwrap(), &[guest]).is_err());
        std::fs::remove_file(file).unwrap();
    }
}
