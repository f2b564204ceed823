//! Whether a disk may be written.
//!
//! [`judge`] is the decision: a pure function of what `lsblk` and the kernel's files tell, so
//! that it is tested over many computers. It errs on the side of a refusal: what is written
//! over does not come back.

use std::fmt;
use std::path::Path;

use super::disks::{Computer, Device};
use crate::ui;

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

/// A disk that may be written, and all that tells it from another one.
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
    /// The number that no two media have had since the computer started.
    pub(super) sequence: Option<u64>,
    /// The content, in a line.
    pub(super) content: String,
    /// The identity of its partition table.
    pub(super) table: Option<String>,
    /// The kernel knows partitions of it.
    pub(super) has_partitions: bool,
    /// Only `--any-disk` allows it, for these reasons.
    pub(super) unusual: Option<String>,
}

/// Why a disk may not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is none of this name.
    Unknown,
    /// It is a partition; of this disk, if it is one.
    Partition(Option<String>),
    /// It is made of disks, or is no disk at all: its kind.
    NoDisk(String),
    /// It can't be written.
    ReadOnly,
    /// A reader without a card.
    NoMedium,
    /// Sectors of this many bytes.
    Sectors(u64),
    /// Bytes that it has, and bytes that it needs.
    TooSmall(u64, u64),
    /// This device is mounted here, and the system needs it.
    System(String, String),
    /// This device is mounted here.
    Mounted(String, String),
    /// This device is in use for swapping.
    Swap(String),
    /// This device is held by that one.
    Held(String, String),
    /// This device was opened by this program.
    Open(String, String),
    /// This device may be a member of a pool.
    Pool(String),
    /// It is another way to this disk, which is in use.
    OtherWay(String),
    /// Only `--any-disk` allows it, for this reason.
    Unusual(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(
                f,
                "there is no such disk; `lsblk` lists those there are, and a file that stands for one is made \
                 with `truncate -s 4G FILE`"
            ),
            Self::Partition(Some(disk)) => {
                write!(f, "it is a partition; the image goes on a whole disk: {disk}?")
            }
            Self::Partition(None) => write!(f, "it is a partition; the image goes on a whole disk"),
            Self::NoDisk(kind) => write!(f, "it is no whole disk of this computer ({kind})"),
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
                "{device} is in use by {holder}; end that first (LVM: vgchange -an; RAID: mdadm --stop; \
                 encryption: cryptsetup close; several ways: multipath -f; loop: losetup -d)"
            ),
            Self::Open(device, program) => write!(f, "{program} has {device} open; end it first"),
            Self::Pool(device) => write!(
                f,
                "{device} is a member of a pool or volume of several disks; export or unmount that first"
            ),
            Self::OtherWay(disk) => {
                write!(f, "it is the same disk as {disk} by another way, and that is in use")
            }
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
        "part" => {
            let whole = (disk.kind == "disk" && is_partition_of(device, disk)).then_some(disk);
            return Err(Refusal::Partition(whole.map(|disk| disk.path.clone())));
        }
        other => return Err(Refusal::NoDisk(other.to_owned())),
    }
    if device.is_made_up() {
        return Err(Refusal::NoDisk(device.kernel.clone()));
    }
    in_use(computer, device)?;
    // Two ways lead to one disk, and nobody has put them together.
    let is_twin = |other: &&Device| {
        other.kernel != device.kernel && other.wwn().is_some() && other.wwn() == device.wwn()
    };
    if let Some(other) =
        computer.disks.iter().filter(is_twin).find(|other| in_use(computer, other).is_err())
    {
        return Err(Refusal::OtherWay(other.path.clone()));
    }
    if device.size() == 0 {
        return Err(Refusal::NoMedium);
    }
    if device.is_read_only() {
        return Err(Refusal::ReadOnly);
    }
    if device.sector() != 512 {
        return Err(Refusal::Sectors(device.sector()));
    }
    if device.size() < needs {
        return Err(Refusal::TooSmall(device.size(), needs));
    }
    let unusual = unusual(computer, device);
    if let Some(why) = &unusual
        && !allowed.any_disk
    {
        return Err(Refusal::Unusual(why.clone()));
    }
    Ok(Target {
        path: device.path.clone(),
        numbers: device.numbers.clone(),
        size: device.size(),
        title: device.title(),
        serial: device.serial(),
        sequence: computer.sequences.get(&device.kernel).copied(),
        content: device.content(),
        table: device.table().map(str::to_owned),
        has_partitions: !device.children.is_empty(),
        unusual,
    })
}

fn is_partition_of(device: &Device, disk: &Device) -> bool {
    disk.children.iter().any(|child| child.kernel == device.kernel)
}

/// The reasons against a disk that is not in use, if there are any.
fn unusual(computer: &Computer, disk: &Device) -> Option<String> {
    let mut reasons = Vec::new();
    if !computer.is_removable(disk) {
        reasons.push("it is not removable".to_owned());
    }
    if disk.size() > USUAL_SIZE {
        reasons.push(format!("it has {}, more than sticks do", ui::size(disk.size())));
    }
    let family = disk.family();
    let member = family.iter().find_map(|device| Some((device, device.membership()?)));
    reasons.extend(member.map(|(device, kind)| {
        format!("{} is encrypted, or may be part of something larger ({kind})", device.path)
    }));
    (!reasons.is_empty()).then(|| reasons.join("; "))
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
        let holder = computer.holders.get(&device.kernel).and_then(|holders| holders.first());
        let shown = computer.backing.iter().find(|(_, file)| **file == device.path);
        let holder = holder.or(made.map(|child| &child.name)).or(shown.map(|(name, _)| name));
        if let Some(holder) = holder {
            return Err(Refusal::Held(device.path.clone(), holder.clone()));
        }
        let in_pool = computer.zfs && device.membership() == Some("zfs_member");
        if in_pool || computer.btrfs.contains(&device.kernel) {
            return Err(Refusal::Pool(device.path.clone()));
        }
        if let Some(program) = computer.open.get(&device.path) {
            return Err(Refusal::Open(device.path.clone(), program.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
