//! The image on a stick: from every kind of disk and both kinds of firmware, as a file and
//! flashed onto a larger disk, before checkers of partition tables and file systems.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use xtask::emulator::DiskKind;
use xtask::flash::{self, FlashOptions};
use xtask::image::{self, Content};
use xtask::machine::{Firmware, Machine};
use xtask::{cmd, ui};

use crate::case::{Case, Medium, Tier};
use crate::cases::PROMPT;
use crate::drive::Drive;

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let kinds = [
        ("xhci", DiskKind::Xhci),
        ("ehci", DiskKind::Ehci),
        ("ahci", DiskKind::Ahci),
        ("nvme", DiskKind::Nvme),
        ("ide", DiskKind::Ide),
        ("virtio", DiskKind::Virtio),
    ];
    let firmwares = [("bios", Firmware::Bios), ("uefi", Firmware::Uefi)];
    let mut cases = Vec::new();
    for (kind, disk) in kinds {
        for (name, firmware) in firmwares {
            // The usual cases boot from virtio.
            let usual = disk == DiskKind::Xhci;
            cases.push(Case {
                disk,
                tier: if usual { Tier::Usual } else { Tier::Full },
                // A flashed disk boots, too.
                medium: if usual { Medium::Flashed } else { Medium::Image },
                ..Case::debian(&format!("stick-{kind}-{name}"), firmware, shell)
            });
        }
    }
    for (kind, disk) in [("xhci", DiskKind::Xhci), ("ehci", DiskKind::Ehci)] {
        cases.push(Case {
            disk,
            before: Some(DiskKind::Nvme),
            tier: Tier::Full,
            ..Case::debian(&format!("stick-{kind}-uefi-stale"), Firmware::Uefi, shell)
        });
    }
    for (name, firmware) in firmwares {
        cases.push(Case {
            disk: DiskKind::Xhci,
            medium: Medium::Copied,
            tier: Tier::Full,
            ..Case::debian(&format!("stick-dd-{name}"), firmware, shell)
        });
    }
    cases.push(Case {
        machine: Machine::BochsVmx,
        disk: DiskKind::Ide,
        memory: 128,
        tier: Tier::Full,
        seconds: 1200,
        medium: Medium::Flashed,
        ..Case::debian("stick-bochs", Firmware::Bios, shell)
    });
    cases
}

fn shell(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 1000)?;
    let answer = drive.shell("echo $((6*7))", 60)?;
    ensure!(answer.trim() == "42", "the shell answered {answer:?}");
    drive.send("poweroff\n");
    drive.ends(0).map(|_| ())
}

/// Bytes of the disk that is flashed: no multiple of a cylinder or a MiB.
const DISK: u64 = (3 << 30) + 7 * 512;

/// Writes the image to a file, flashes it onto a larger disk, has both checked, and leaves
/// the disk's file at `path`.
pub(crate) fn flash(content: &Content, dir: &Path, path: &Path) -> Result<()> {
    let file = dir.join("file.img");
    image::write(content, &file)?;
    check(&file).context("the image's file")?;
    used(path)?;
    match Loop::new(path) {
        Some(device) => {
            ui::say(format!("flashing {}", device.0));
            refuses_what_is_held(&device.0, &file)?;
            let status = flash::flash(&FlashOptions::script(&device.0, &file))?;
            ensure!(status == 0, "flash ended with status {status}");
            drop(device);
        }
        None => {
            ui::say("no loop device is to be had here: flashing a file");
            let name = path.to_str().context("the path is not UTF-8")?;
            flash::flash(&FlashOptions::script(name, &file))?;
        }
    }
    check(path).context("the flashed disk")?;
    // As built, and as read back from the file.
    for disk in [file.as_path(), path] {
        let back = Content::read(&mut File::open(disk)?)?;
        ensure!(back.is_same(content), "{} does not hold what was written", disk.display());
    }
    fs::remove_file(&file)?;
    Ok(())
}

/// A disk that something else has for itself, as a mounted one is had, is not written.
fn refuses_what_is_held(device: &str, image: &Path) -> Result<()> {
    /// open(2): "O_EXCL".
    const EXCLUSIVE: i32 = 0o200;
    let first = |device: &str| -> Result<[u8; 512]> {
        let mut sector = [0; 512];
        File::open(device)?.read_exact(&mut sector)?;
        Ok(sector)
    };
    let before = first(device)?;
    let held = OpenOptions::new().read(true).custom_flags(EXCLUSIVE).open(device)?;
    let Err(error) = flash::flash(&FlashOptions::script(device, image)) else {
        bail!("{device} was written though it is held");
    };
    drop(held);
    ensure!(error.to_string().contains("is in use"), "flash says: {error:#}");
    ensure!(first(device)? == before, "{device} was changed though it is held");
    Ok(())
}

/// Makes the file of a disk with remains of what was on it before.
fn used(path: &Path) -> Result<()> {
    let mut disk = File::create(path)?;
    disk.set_len(DISK)?;
    for at in [0, 60 << 20, DISK - (2 << 20)] {
        disk.seek(SeekFrom::Start(at))?;
        disk.write_all(&vec![0xa5; 2 << 20])?;
    }
    Ok(())
}

/// Copies the image to the beginning of a larger disk, as `dd` does: the copy of its partition
/// table is not at the disk's end then.
pub(crate) fn copy(content: &Content, path: &Path) -> Result<()> {
    used(path)?;
    let image = path.with_extension("file");
    image::write(content, &image)?;
    let mut disk = OpenOptions::new().write(true).open(path)?;
    std::io::copy(&mut File::open(&image)?, &mut disk)?;
    fs::remove_file(&image)?;
    Ok(())
}

/// A loop device, where one is allowed.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Self> {
        let name =
            cmd::output(Command::new("losetup").args(["--find", "--show"]).arg(file)).ok()?;
        Some(Self(String::from_utf8(name).ok()?.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = cmd::output(Command::new("losetup").args(["--detach", &self.0]));
    }
}

/// Asks the checkers about the disk in this file.
fn check(disk: &Path) -> Result<()> {
    let said = cmd::output(Command::new("sgdisk").arg("-v").arg(disk))?;
    let said = String::from_utf8_lossy(&said);
    ensure!(said.contains("No problems found"), "sgdisk says: {said}");
    let printed = cmd::output(Command::new("sgdisk").arg("-p").arg(disk))?;
    let printed = String::from_utf8_lossy(&printed).into_owned();
    for number in [1, 3] {
        let volume = take_out(disk, &printed, number)?;
        let said = Command::new("fsck.fat").arg("-n").arg("-v").arg(&volume).output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(
            said.status.success() && !text.contains("differences"),
            "fsck.fat says of partition {number}: {text}{}",
            String::from_utf8_lossy(&said.stderr)
        );
        fs::remove_file(&volume)?;
    }
    Ok(())
}

/// Copies a partition, which `printed` lists, to a file of its own; holes stay holes.
fn take_out(disk: &Path, printed: &str, number: u32) -> Result<PathBuf> {
    let row = printed.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse() == Ok(number)).then_some(())?;
        Some((words.next()?.parse::<u64>().ok()?, words.next()?.parse::<u64>().ok()?))
    });
    let Some((first, last)) = row else { bail!("sgdisk lists no partition {number}: {printed}") };
    let path = disk.with_extension(format!("partition-{number}"));
    let mut from = File::open(disk)?;
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    to.set_len((last + 1 - first) * 512)?;
    from.seek(SeekFrom::Start(first * 512))?;
    let mut left = (last + 1 - first) * 512;
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        let len = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
        from.read_exact(&mut piece[..len])?;
        if piece[..len].iter().all(|&byte| byte == 0) {
            to.seek(SeekFrom::Current(i64::try_from(len)?))?;
        } else {
            to.write_all(&piece[..len])?;
        }
        left -= len as u64;
    }
    Ok(path)
}
