//! The computer's disks, and whether one may be written.
//!
//! [`judge`] is the decision: a pure function of what `lsblk` and `/sys` tell, so that it is
//! tested over recordings of many computers. It errs on the side of a refusal: what is
//! written over does not come back.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer};

use crate::{cmd, ui};

/// A disk, a partition or what is made of them, as `lsblk -J -b` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Device {
    /// The name in `/sys/class/block`, for example `sdb1`.
    pub(super) name: String,
    /// The node, for example `/dev/sdb1`.
    pub(super) path: String,
    /// The node's numbers, as `major:minor`.
    #[serde(rename = "maj:min")]
    numbers: String,
    /// `disk`, `part`, `loop`, `rom`, `lvm`, `crypt`, `raid1`, …
    #[serde(rename = "type")]
    kind: String,
    /// How it is connected, for example `usb`.
    tran: Option<String>,
    /// The medium can be taken out.
    #[serde(deserialize_with = "flag")]
    rm: bool,
    /// The device can be taken out.
    #[serde(deserialize_with = "flag")]
    hotplug: bool,
    /// It can't be written.
    #[serde(deserialize_with = "flag")]
    ro: bool,
    /// Bytes.
    #[serde(deserialize_with = "number")]
    pub(super) size: u64,
    /// Bytes of a logical sector.
    #[serde(rename = "log-sec", deserialize_with = "number")]
    sector: u64,
    model: Option<String>,
    vendor: Option<String>,
    serial: Option<String>,
    fstype: Option<String>,
    label: Option<String>,
    /// Folders where it is mounted; `[SWAP]` where it is in use for swapping. Versions before 2.37
    /// call it `mountpoint` and know one.
    #[serde(default)]
    mountpoints: Vec<Option<String>>,
    #[serde(default)]
    mountpoint: Option<String>,
    /// Partitions, and what is made of them.
    #[serde(default)]
    pub(super) children: Vec<Device>,
}

/// `true` and `false`, or as words before version 2.33 of util-linux.
fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Is(bool),
        Word(String),
    }
    Ok(match Flag::deserialize(from)? {
        Flag::Is(is) => is,
        Flag::Word(word) => word != "0",
    })
}

/// The same with numbers.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Is(u64),
        Word(String),
    }
    Ok(match Option::<Number>::deserialize(from)? {
        Some(Number::Is(is)) => is,
        Some(Number::Word(word)) => word.parse().map_err(serde::de::Error::custom)?,
        None => 0,
    })
}

impl Device {
    /// Maker and model, as a person would say them.
    pub(super) fn title(&self) -> String {
        let words = [&self.vendor, &self.model].into_iter().flatten();
        let title = words.map(|word| word.trim()).collect::<Vec<_>>().join(" ");
        if title.is_empty() { "no name".to_owned() } else { title }
    }

    /// The serial number, where it has one.
    pub(super) fn serial(&self) -> Option<&str> {
        self.serial.as_deref().map(str::trim).filter(|serial| !serial.is_empty())
    }

    /// The content, in a line.
    pub(super) fn content(&self) -> String {
        let one = |device: &Device| {
            let words = [&device.fstype, &device.label].into_iter().flatten();
            words.map(String::as_str).collect::<Vec<_>>().join(" ")
        };
        let parts = self.children.iter().map(|part| match one(part) {
            words if words.is_empty() => part.name.clone(),
            words => format!("{}: {words}", part.name),
        });
        let all: Vec<String> =
            Some(one(self)).filter(|words| !words.is_empty()).into_iter().chain(parts).collect();
        if all.is_empty() { "empty".to_owned() } else { all.join(", ") }
    }

    fn is_removable(&self) -> bool {
        self.rm || self.hotplug || self.tran.as_deref() == Some("usb")
    }

    fn mounts(&self) -> impl Iterator<Item = &str> {
        self.mountpoints.iter().flatten().chain(&self.mountpoint).map(String::as_str)
    }

    /// It, its partitions, and what is made of them.
    fn family(&self) -> Vec<&Device> {
        let mut all = vec![self];
        all.extend(self.children.iter().flat_map(Device::family));
        all
    }
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Computer {
    /// The disks.
    #[serde(rename = "blockdevices")]
    pub(super) disks: Vec<Device>,
    /// By a device's name, who holds it: the names in its folder `holders` in `/sys`.
    #[serde(default)]
    holders: BTreeMap<String, Vec<String>>,
    /// Members of mounted Btrfs volumes, of which only one shows where it is mounted: the
    /// names in `/sys/fs/btrfs/*/devices`.
    #[serde(default)]
    btrfs: Vec<String>,
    /// ZFS is loaded: pools do not show who their members are.
    #[serde(default)]
    zfs: bool,
}

const COLUMNS: &str =
    "NAME,PATH,MAJ:MIN,TYPE,TRAN,RM,HOTPLUG,RO,SIZE,LOG-SEC,MODEL,VENDOR,SERIAL,FSTYPE,LABEL";

impl Computer {
    /// Asks this one.
    pub(super) fn ask() -> Result<Self> {
        let list = |mounts: &str| {
            let columns = format!("{COLUMNS},{mounts}");
            cmd::output(Command::new("lsblk").args(["-J", "-b", "-o", &columns]))
        };
        let text = list("MOUNTPOINTS")
            .or_else(|_| list("MOUNTPOINT"))
            .context("cannot ask `lsblk` for the disks (Debian's package util-linux)")?;
        let mut computer: Self =
            serde_json::from_slice(&text).context("`lsblk` says what xtask does not understand")?;
        let all: Vec<String> = computer
            .disks
            .iter()
            .flat_map(Device::family)
            .map(|device| device.name.clone())
            .collect();
        for name in all {
            let holders = names(&Path::new("/sys/class/block").join(&name).join("holders"));
            if !holders.is_empty() {
                computer.holders.insert(name, holders);
            }
        }
        computer.btrfs = names(Path::new("/sys/fs/btrfs"))
            .iter()
            .flat_map(|volume| names(&Path::new("/sys/fs/btrfs").join(volume).join("devices")))
            .collect();
        computer.zfs = Path::new("/sys/module/zfs").exists();
        Ok(computer)
    }

    /// The disks that a person may mean: removable, with a medium.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Device> {
        let whole = |disk: &&Device| disk.kind == "disk" && disk.is_removable() && disk.size > 0;
        self.disks.iter().filter(whole)
    }

    fn find(&self, path: &str) -> Option<(&Device, &Device)> {
        let all = self
            .disks
            .iter()
            .flat_map(|disk| disk.family().into_iter().map(move |device| (disk, device)));
        let mut all = all.filter(|(_, device)| device.path == path || device.name == path);
        all.next()
    }
}

/// The names in a folder, none if there is no such folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Permission that the person gives beyond the usual.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Disks that are not removable, and large ones.
    pub(super) any_disk: bool,
}

/// Folders without which the running system does not go on: live systems' among them.
const SYSTEMS: [&str; 13] = [
    "/boot",
    "/efi",
    "/usr",
    "/var",
    "/etc",
    "/home",
    "/nix",
    "/opt",
    "/cdrom",
    "/run/live",
    "/run/archiso",
    "/run/initramfs",
    "/sysroot",
];

/// A larger one is somebody's backup rather than a stick.
const USUAL_SIZE: u64 = 512 << 30;

/// A disk that may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The node.
    pub(super) path: String,
    /// The node's numbers.
    pub(super) numbers: String,
    /// Bytes.
    pub(super) size: u64,
    /// Maker and model.
    pub(super) title: String,
    /// The serial number.
    pub(super) serial: Option<String>,
    /// Only `--any-disk` allows it, for this reason.
    pub(super) unusual: Option<String>,
}

/// Why a disk may not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is none of this name.
    Unknown,
    /// It is a partition of this disk.
    Partition(String),
    /// It is made of disks, or is no disk at all: its kind.
    NoDisk(String),
    /// It can't be written.
    ReadOnly,
    /// A reader without a card.
    NoMedium,
    /// Sectors of this many bytes.
    Sectors(u64),
    /// It has, and it needs.
    TooSmall(u64, u64),
    /// This device is mounted here, and the system needs it.
    System(String, String),
    /// This device is mounted here.
    Mounted(String, String),
    /// This device is in use for swapping.
    Swap(String),
    /// This device is held by that one.
    Held(String, String),
    /// This device may be a member of a pool.
    Pool(String),
    /// Only `--any-disk` allows it, for this reason.
    Unusual(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "there is no such disk; `lsblk` lists those there are"),
            Self::Partition(disk) => {
                write!(f, "it is a partition; the image goes on a whole disk: {disk}?")
            }
            Self::NoDisk(kind) => write!(f, "it is no whole disk, but of the type `{kind}`"),
            Self::ReadOnly => write!(f, "it is read-only; some sticks and cards have a switch"),
            Self::NoMedium => write!(f, "there is no medium in it"),
            Self::Sectors(bytes) => write!(
                f,
                "its sectors have {bytes} bytes, and the boot stages know those of 512 bytes only; \
                 take another stick"
            ),
            Self::TooSmall(has, needs) => write!(
                f,
                "it is too small: it has {}, and the image takes {}",
                ui::size(*has),
                ui::size(*needs)
            ),
            Self::System(device, mount) => {
                write!(f, "the running system is on it: {device} is mounted at {mount}")
            }
            Self::Mounted(device, mount) => {
                write!(f, "{device} is mounted at {mount}. Please run: umount {device}")
            }
            Self::Swap(device) => {
                write!(f, "the system swaps to {device}. Please run: swapoff {device}")
            }
            Self::Held(device, holder) => write!(
                f,
                "{device} is in use by {holder} (LVM, RAID or encryption); end that first \
                 (vgchange -an, mdadm --stop, cryptsetup close)"
            ),
            Self::Pool(device) => write!(
                f,
                "{device} is a member of a pool or volume of several disks; export or unmount that first"
            ),
            Self::Unusual(why) => {
                write!(f, "{why}; if it is the one you mean, add --any-disk")
            }
        }
    }
}

/// Whether the disk called `path` may be written with an image that takes `needs` bytes.
pub(super) fn judge(
    computer: &Computer,
    path: &str,
    needs: u64,
    allowed: Allowed,
) -> Result<Target, Refusal> {
    let (disk, device) = computer.find(path).ok_or(Refusal::Unknown)?;
    match device.kind.as_str() {
        "disk" | "loop" => {}
        "part" => return Err(Refusal::Partition(disk.path.clone())),
        other => return Err(Refusal::NoDisk(other.to_owned())),
    }
    // Memory that the kernel calls a disk.
    if ["zram", "ram", "nbd", "drbd", "dm-", "md"].iter().any(|word| device.name.starts_with(word))
    {
        return Err(Refusal::NoDisk(device.name.clone()));
    }
    in_use(computer, device)?;
    if device.size == 0 {
        return Err(Refusal::NoMedium);
    }
    if device.ro {
        return Err(Refusal::ReadOnly);
    }
    if device.sector != 512 {
        return Err(Refusal::Sectors(device.sector));
    }
    if device.size < needs {
        return Err(Refusal::TooSmall(device.size, needs));
    }
    let unusual = if !device.is_removable() {
        Some("it is not removable".to_owned())
    } else if device.size > USUAL_SIZE {
        Some(format!("it has {}, more than sticks do", ui::size(device.size)))
    } else {
        None
    };
    if let Some(why) = &unusual
        && !allowed.any_disk
    {
        return Err(Refusal::Unusual(why.clone()));
    }
    Ok(Target {
        path: device.path.clone(),
        numbers: device.numbers.clone(),
        size: device.size,
        title: device.title(),
        serial: device.serial().map(str::to_owned),
        unusual,
    })
}

/// Refuses a disk that is in use, itself or anything that is on it or made of it.
fn in_use(computer: &Computer, disk: &Device) -> Result<(), Refusal> {
    let family = disk.family();
    let mounts =
        || family.iter().flat_map(|d| d.mounts().map(move |mount| (d.path.clone(), mount)));
    let is_systems = |mount: &str| {
        mount == "/" || SYSTEMS.iter().any(|folder| Path::new(mount).starts_with(folder))
    };
    // The worst first.
    if let Some((device, mount)) = mounts().find(|(_, mount)| is_systems(mount)) {
        return Err(Refusal::System(device, mount.to_owned()));
    }
    if let Some((device, _)) = mounts().find(|(_, mount)| *mount == "[SWAP]") {
        return Err(Refusal::Swap(device));
    }
    if let Some((device, mount)) = mounts().next() {
        return Err(Refusal::Mounted(device, mount.to_owned()));
    }
    for device in &family {
        let made = device.children.iter().find(|child| child.kind != "part");
        let holder = computer.holders.get(&device.name).and_then(|holders| holders.first());
        if let Some(holder) = holder.or(made.map(|child| &child.name)) {
            return Err(Refusal::Held(device.path.clone(), holder.clone()));
        }
        let in_pool = computer.zfs && device.fstype.as_deref() == Some("zfs_member");
        if in_pool || computer.btrfs.contains(&device.name) {
            return Err(Refusal::Pool(device.path.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
