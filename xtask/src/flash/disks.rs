//! The computer's disks, as `lsblk` and the kernel's files tell of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{cmd, ui};

/// A disk, a partition or what is made of them, as `lsblk -J -b` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Device {
    /// The name that people know, for example `sdb1` or `luks-home`.
    pub(super) name: String,
    /// The name in `/sys/class/block`, for example `sdb1` or `dm-3`.
    #[serde(rename = "kname")]
    pub(super) kernel: String,
    /// The node, for example `/dev/sdb1`.
    pub(super) path: String,
    /// The node's numbers, as `major:minor`.
    #[serde(rename = "maj:min")]
    pub(super) numbers: String,
    /// `disk`, `part`, `loop`, `rom`, `lvm`, `crypt`, `raid1`, …
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// How it is connected, for example `usb`.
    tran: Option<String>,
    /// The medium can be taken out.
    rm: Option<bool>,
    /// The device can be taken out.
    hotplug: Option<bool>,
    /// It can't be written.
    ro: Option<bool>,
    /// Bytes.
    size: Option<u64>,
    /// Bytes of a logical sector.
    #[serde(rename = "log-sec")]
    sector: Option<u64>,
    model: Option<String>,
    vendor: Option<String>,
    serial: Option<String>,
    /// The same by whichever way a disk is reached.
    wwn: Option<String>,
    fstype: Option<String>,
    label: Option<String>,
    /// The identity of its partition table.
    ptuuid: Option<String>,
    /// Nobody could look what is on it.
    #[serde(skip)]
    is_unknown: bool,
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

impl Device {
    /// Maker and model, as a person would say them.
    pub(super) fn title(&self) -> String {
        let words = [&self.vendor, &self.model].into_iter().flatten();
        let title = words.map(|word| line(word)).collect::<Vec<_>>().join(" ");
        if title.is_empty() { "no name".to_owned() } else { title }
    }

    /// The serial number, where it has one.
    pub(super) fn serial(&self) -> Option<String> {
        self.serial.as_deref().map(line).filter(|serial| !serial.is_empty())
    }

    /// The content, in a line.
    pub(super) fn content(&self) -> String {
        let one = |device: &Device| {
            let words = [&device.fstype, &device.label].into_iter().flatten();
            words.map(|word| line(word)).collect::<Vec<_>>().join(" ")
        };
        let parts = self.children.iter().map(|part| match one(part) {
            words if words.is_empty() => part.name.clone(),
            words => format!("{}: {words}", part.name),
        });
        let all: Vec<String> =
            Some(one(self)).filter(|words| !words.is_empty()).into_iter().chain(parts).collect();
        match all.join(", ") {
            text if !text.is_empty() => text,
            _ if self.ptuuid.is_some() => "a partition table".to_owned(),
            _ if self.is_unknown => "unknown: it can't be looked at".to_owned(),
            _ => "empty".to_owned(),
        }
    }

    /// Asks what is on it where `lsblk` had no answer from udev, which is not everywhere.
    fn probe(&mut self) {
        self.children.iter_mut().for_each(Device::probe);
        if self.fstype.is_some() || self.ptuuid.is_some() || self.size() == 0 {
            return;
        }
        let probe = Command::new("blkid").args(["-p", "-o", "export", &self.path]).output();
        let Ok(found) = probe.map(|found| (found.status.code(), found.stdout)) else {
            self.is_unknown = !udev_knows();
            return;
        };
        // blkid(8): 2 for a device on which nothing was found, and for one that it can't open.
        let is_open = fs::File::open(&self.path).is_ok();
        self.is_unknown = found.0 != Some(0) && !is_open && !udev_knows();
        for line in String::from_utf8_lossy(&found.1).lines() {
            match line.split_once('=') {
                Some(("TYPE", kind)) => self.fstype = Some(kind.to_owned()),
                Some(("LABEL", label)) => self.label = Some(label.to_owned()),
                // DOS tables without a signature have no number.
                Some(("PTUUID" | "PTTYPE", table)) => self.ptuuid = Some(table.to_owned()),
                _ => {}
            }
        }
    }

    /// The identity of its partition table, where it has one.
    pub(super) fn table(&self) -> Option<&str> {
        self.ptuuid.as_deref()
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.size.unwrap_or_default()
    }

    /// Bytes of a logical sector.
    pub(super) fn sector(&self) -> u64 {
        self.sector.unwrap_or_default()
    }

    /// Whether it can be written.
    pub(super) fn is_read_only(&self) -> bool {
        self.ro.unwrap_or(true)
    }

    /// Part of something that is made of several disks, or is encrypted: its kind.
    pub(super) fn membership(&self) -> Option<&str> {
        const OTHERS: [&str; 8] = [
            "crypto_LUKS",
            "BitLocker",
            "bcache",
            "btrfs",
            "jbd",
            "xfs_external_log",
            "drbd",
            "ceph_bluestore",
        ];
        let kind = self.fstype.as_deref()?;
        (kind.ends_with("_member") || OTHERS.contains(&kind)).then_some(kind)
    }

    /// The number by which the hardware names it, whichever way leads there.
    pub(super) fn wwn(&self) -> Option<&str> {
        self.wwn.as_deref().filter(|wwn| !wwn.is_empty())
    }

    /// Folders where it is mounted, and `[SWAP]`.
    pub(super) fn mounts(&self) -> impl Iterator<Item = &str> {
        self.mountpoints.iter().flatten().chain(&self.mountpoint).map(String::as_str)
    }

    /// The device, its partitions, and what is made of them.
    pub(super) fn family(&self) -> Vec<&Device> {
        let mut all = vec![self];
        all.extend(self.children.iter().flat_map(Device::family));
        all
    }
}

/// Text from a disk on one line of the terminal, without power over it.
fn line(text: &str) -> String {
    ui::plain(text.trim().as_bytes()).replace(['\n', '\t'], " ")
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Computer {
    /// The disks.
    #[serde(rename = "blockdevices")]
    pub(super) disks: Vec<Device>,
    /// By a device's name in the kernel, who holds it: the names in its folder `holders`.
    #[serde(default)]
    pub(super) holders: BTreeMap<String, Vec<String>>,
    /// Members of mounted Btrfs volumes, of which only one shows where it is mounted: the
    /// names in `/sys/fs/btrfs/*/devices`.
    #[serde(default)]
    pub(super) btrfs: Vec<String>,
    /// ZFS is loaded: pools do not show who their members are.
    #[serde(default)]
    pub(super) zfs: bool,
    /// By a disk's name in the kernel, a number that no two media have had since the computer
    /// started (`diskseq`; Linux 5.15 and later).
    #[serde(default)]
    pub(super) sequences: BTreeMap<String, u64>,
    /// By the kernel's name of what is in a slot for cards, its kind: `SD`, or `MMC`, which
    /// computers also have soldered in.
    #[serde(default)]
    pub(super) cards: BTreeMap<String, String>,
    /// By a loop device's name, the file that it shows.
    #[serde(default)]
    pub(super) backing: BTreeMap<String, String>,
    /// By a device's node, a program that has it open: exclusive opening does not notice one
    /// that did not ask for it.
    #[serde(default)]
    pub(super) open: BTreeMap<String, String>,
}

const COLUMNS: &str = "NAME,KNAME,PATH,MAJ:MIN,TYPE,TRAN,RM,HOTPLUG,RO,SIZE,LOG-SEC,MODEL,VENDOR,\
                       SERIAL,WWN,FSTYPE,LABEL,PTUUID";

/// How long a program has a disk open that only looks what it is.
const LOOK: Duration = Duration::from_millis(300);

/// Memory and other computers' disks that the kernel calls disks.
const MADE_UP: [&str; 7] = ["zram", "ram", "nbd", "drbd", "dm-", "md", "rbd"];

impl Computer {
    /// Asks this one.
    pub(super) fn ask() -> Result<Self> {
        let list = |mounts: &str| {
            let columns = format!("{COLUMNS},{mounts}");
            cmd::output(Command::new("lsblk").args(["-J", "-b", "-o", &columns]))
        };
        let text = list("MOUNTPOINTS").or_else(|_| list("MOUNTPOINT")).context(
            "cannot ask `lsblk` for the disks: it takes version 2.33 or later (Debian's package util-linux)",
        )?;
        let mut computer: Self =
            serde_json::from_slice(&text).context("`lsblk` says what xtask does not understand")?;
        computer.disks.iter_mut().for_each(Device::probe);
        let all: Vec<(String, String)> = computer
            .disks
            .iter()
            .flat_map(Device::family)
            .map(|device| (device.kernel.clone(), device.path.clone()))
            .collect();
        for (kernel, _) in &all {
            let folder = Path::new("/sys/class/block").join(kernel);
            let text = |name: &str| {
                fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned())
            };
            let holders = names(&folder.join("holders"));
            if !holders.is_empty() {
                computer.holders.insert(kernel.clone(), holders);
            }
            if let Some(number) = text("diskseq").and_then(|text| text.parse().ok()) {
                computer.sequences.insert(kernel.clone(), number);
            }
            if let Some(file) = text("loop/backing_file") {
                computer.backing.insert(kernel.clone(), file);
            }
            if kernel.starts_with("mmcblk")
                && let Some(kind) = text("device/type")
            {
                computer.cards.insert(kernel.clone(), kind);
            }
        }
        computer.btrfs = names(Path::new("/sys/fs/btrfs"))
            .iter()
            .flat_map(|volume| names(&Path::new("/sys/fs/btrfs").join(volume).join("devices")))
            .collect();
        computer.zfs = Path::new("/sys/module/zfs").exists();
        let nodes: Vec<&str> = all.iter().map(|(_, path)| path.as_str()).collect();
        let mut open = programs(&nodes);
        if !open.is_empty() {
            // Some look at a new disk and are done, and a new process has its parent's files for
            // a moment.
            sleep(LOOK);
            let still = programs(&nodes);
            open.retain(|program| still.contains(program));
        }
        computer.open = open.into_iter().collect();
        Ok(computer)
    }

    /// Disks that a person may mean: whole ones with a medium, removable unless `any`.
    pub(super) fn candidates(&self, any: bool) -> impl Iterator<Item = &Device> {
        self.disks.iter().filter(move |disk| {
            disk.kind == "disk"
                && !disk.is_made_up()
                && disk.size() > 0
                && (any || self.is_removable(disk))
        })
    }

    /// Whether a disk can be taken out of the computer. The flags alone do not tell: the
    /// kernel sets one for a soldered eMMC, too, and the other for a hard disk at a port that
    /// the firmware calls external.
    pub(super) fn is_removable(&self, disk: &Device) -> bool {
        if disk.kernel.starts_with("mmcblk") {
            return self.cards.get(&disk.kernel).is_some_and(|kind| kind == "SD");
        }
        match disk.tran.as_deref() {
            Some("usb") => true,
            // FireWire, and what does not say.
            Some("sbp") | None => disk.rm == Some(true) || disk.hotplug == Some(true),
            Some(_) => false,
        }
    }

    /// Finds a device by its node or its name: the disk that it belongs to, and itself.
    pub(super) fn find(&self, path: &str) -> Option<(&Device, &Device)> {
        let all = self
            .disks
            .iter()
            .flat_map(|disk| disk.family().into_iter().map(move |device| (disk, device)));
        let mut all = all.filter(|(_, device)| device.path == path || device.name == path);
        all.next()
    }
}

impl Device {
    /// Whether it is no disk of this computer, whatever its kind says.
    pub(super) fn is_made_up(&self) -> bool {
        MADE_UP.iter().any(|word| self.kernel.starts_with(word))
            // The parts of an eMMC with its own firmware's boot code and keys.
            || self.kernel.starts_with("mmcblk")
                && (self.kernel.contains("boot") || self.kernel.contains("rpmb"))
    }
}

/// Whether udev keeps here what it found on the disks.
fn udev_knows() -> bool {
    Path::new("/run/udev/data").exists()
}

/// The names in a folder, none if there is no such folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// All pairs of one of these `nodes` and a program that has it open, as far as this user may
/// know; but for this program and udev's, which looks at every new disk and is soon done.
fn programs(nodes: &[&str]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let own = std::process::id().to_string();
    for process in names(Path::new("/proc")) {
        if process == own || !process.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let folder = Path::new("/proc").join(&process);
        for file in names(&folder.join("fd")) {
            let Ok(file) = fs::read_link(folder.join("fd").join(file)) else { continue };
            let Some(node) = nodes.iter().find(|node| Path::new(node) == file) else { continue };
            let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            if !name.contains("udev") {
                found.insert(((*node).to_owned(), format!("{} ({process})", line(&name))));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_has_a_disk_open_is_found_and_this_one_is_not_meant() {
        let path = std::env::temp_dir().join(format!("steward-open-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        let node = path.to_str().unwrap();
        // Two at once: one that is soon done must not hide the other.
        let sleeps = || {
            let found = programs(&[node]);
            found.iter().filter(|(_, program)| program.starts_with("sleep (")).count()
        };
        assert_eq!(sleeps(), 0);
        let start = || Command::new("sleep").arg("60").stdin(file.try_clone().unwrap()).spawn();
        let mut children = [start().unwrap(), start().unwrap()];
        // Until they have become another program they are copies of this one.
        let are_found = (0..100).any(|_| {
            sleep(Duration::from_millis(20));
            sleeps() == 2
        });
        assert!(are_found);
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(sleeps(), 0);
        fs::remove_file(path).unwrap();
    }
}
