//! The decision over many computers: `recorded.json` is what `lsblk` 2.38 and the kernel
//! (Debian 12, Linux 6.1) said in virtual machines that were brought into each state, and whether
//! the kernel gave each disk to one program alone then; `drawn.json` is written in the same form,
//! for states that can't be had there. Fields that are null are left out, and loop devices' files
//! have another folder than they had. `verdicts.txt` says what becomes of each disk of the two;
//! `STEWARD_WRITE_VERDICTS=1 cargo test -p xtask judge` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;

/// A computer, and which of its disks can be opened exclusively.
#[derive(Debug, serde::Deserialize)]
struct Recording {
    #[serde(flatten)]
    computer: Computer,
    #[serde(default)]
    exclusive: BTreeMap<String, bool>,
}

fn recordings() -> BTreeMap<String, Recording> {
    let mut all: BTreeMap<String, Recording> =
        serde_json::from_str(include_str!("recorded.json")).unwrap();
    let drawn: BTreeMap<String, Recording> =
        serde_json::from_str(include_str!("drawn.json")).unwrap();
    all.extend(drawn);
    all
}

fn computer(name: &str) -> Computer {
    recordings().remove(name).unwrap().computer
}

const NEEDS: u64 = 80 << 20;
const USUAL: Allowed = Allowed { any_disk: false };
const ANY: Allowed = Allowed { any_disk: true };

#[test]
fn each_disk_of_each_computer_is_judged_as_it_should_be() {
    let mut is = String::new();
    let recordings = recordings();
    for (name, recording) in &recordings {
        writeln!(is, "{name}").unwrap();
        for disk in &recording.computer.disks {
            let verdict = match judge(&recording.computer, &disk.path, NEEDS, USUAL) {
                Ok(target) => format!("may be written: {} ({})", target.title, target.content),
                Err(refusal) => refusal.to_string(),
            };
            writeln!(is, "  {}: {verdict}", disk.path).unwrap();
        }
    }
    assert!(recordings.len() > 60);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/flash/judge/verdicts.txt");
    if std::env::var_os("STEWARD_WRITE_VERDICTS").is_some() {
        std::fs::write(path, &is).unwrap();
    }
    let should = include_str!("verdicts.txt");
    for (number, (is, should)) in is.lines().zip(should.lines()).enumerate() {
        assert_eq!(is, should, "line {}", number + 1);
    }
    assert_eq!(is.lines().count(), should.lines().count());
}

/// In these the kernel alone knows that the disk is in use, and `O_EXCL` is what saves it.
const KERNEL_ALONE_KNOWS: [(&str, &str); 3] = [
    ("loop over a file of a lazily unmounted stick", "sda"),
    ("stick mounted in another mount namespace", "sda"),
    ("swap file on a lazily unmounted stick", "sda"),
];

#[test]
fn what_the_kernel_keeps_is_refused_before_it_is_asked() {
    let mut kept = Vec::new();
    let recordings = recordings();
    for (name, recording) in &recordings {
        for disk in &recording.computer.disks {
            let is_kept = recording.exclusive.get(&disk.kernel) == Some(&false);
            if is_kept && judge(&recording.computer, &disk.path, NEEDS, USUAL).is_ok() {
                kept.push((name.as_str(), disk.kernel.as_str()));
            }
        }
    }
    assert_eq!(kept, KERNEL_ALONE_KNOWS);
}

#[test]
fn the_option_allows_what_is_unusual_and_nothing_else() {
    let mut unusual = 0;
    for (name, recording) in &recordings() {
        for disk in &recording.computer.disks {
            let usual = judge(&recording.computer, &disk.path, NEEDS, USUAL);
            let any = judge(&recording.computer, &disk.path, NEEDS, ANY);
            match usual {
                Err(Refusal::Unusual(why)) => {
                    unusual += 1;
                    assert_eq!(any.unwrap().unusual, Some(why), "{name}: {}", disk.path);
                }
                other => assert_eq!(any, other, "{name}: {}", disk.path),
            }
        }
    }
    assert!(unusual > 20);
}

#[test]
fn what_is_no_whole_disk_is_refused() {
    use Refusal::*;
    let s = |text: &str| text.to_owned();
    let laptop = "laptop with an unmounted stick";
    for (name, path, refusal) in [
        (laptop, "/dev/sda1", Partition(Some(s("/dev/sda")))),
        (laptop, "/dev/nvme0n1p2", Partition(Some(s("/dev/nvme0n1")))),
        (laptop, "/dev/sdz", Unknown),
        (laptop, "", Unknown),
        // A partition of a disk that is made of two: neither of them is proposed.
        ("multipath disk mounted", "/dev/mapper/360a98000486e5874-part1", Partition(None)),
        ("raid of two sticks running", "/dev/md127", NoDisk(s("raid1"))),
        ("encrypted stick open not mounted", "/dev/mapper/luks-secret", NoDisk(s("crypt"))),
        ("volume group on a stick active", "/dev/mapper/stickvg-data", NoDisk(s("lvm"))),
        ("eMMC of a small laptop, unused", "/dev/mmcblk0boot0", NoDisk(s("mmcblk0boot0"))),
    ] {
        for allowed in [USUAL, ANY] {
            let is = judge(&computer(name), path, NEEDS, allowed);
            assert_eq!(is, Err(refusal.clone()), "{name}: {path}");
        }
    }
}

#[test]
fn a_name_does_as_well_as_a_node() {
    let computer = computer("laptop with an unmounted stick");
    let target = judge(&computer, "sda", NEEDS, USUAL).unwrap();
    assert_eq!(Ok(&target), judge(&computer, "/dev/sda", NEEDS, USUAL).as_ref());
    assert_eq!((target.path.as_str(), target.numbers.as_str()), ("/dev/sda", "8:0"));
    assert_eq!(target.serial.as_deref(), Some("4C530001240501117063"));
}

#[test]
fn another_card_in_the_same_reader_is_another_target() {
    let usb = |card: &str| {
        judge(&computer(&format!("usb card reader with {card}")), "/dev/sda", NEEDS, USUAL).unwrap()
    };
    let (mut first, second) = (usb("the first card"), usb("another card of the same size"));
    assert_ne!(first, second);
    // Without a look at the card they are the same.
    first.sequence = second.sequence;
    first.content.clone_from(&second.content);
    first.table.clone_from(&second.table);
    first.has_partitions = second.has_partitions;
    assert_eq!(first, second);
    let sd = |name: &str| judge(&computer(name), "/dev/mmcblk0", NEEDS, USUAL).unwrap();
    assert_ne!(sd("desktop with an SD card"), sd("desktop with another SD card"));
}

#[test]
fn candidates_are_removable_and_have_a_medium() {
    let names = |name: &str, any: bool| -> Vec<String> {
        computer(name).candidates(any).map(|disk| disk.name.clone()).collect()
    };
    assert_eq!(names("laptop with an unmounted stick", false), ["sda"]);
    assert_eq!(names("laptop with an unmounted stick", true), ["sda", "nvme0n1"]);
    for none in [
        "laptop without a stick",
        "usb card reader without a card",
        "desktop without an SD card",
        "eMMC of a small laptop, unused",
        "SATA disk at a port that the firmware calls external",
    ] {
        assert_eq!(names(none, false), [""; 0], "{none}");
    }
    // Memory is no candidate, whatever is allowed.
    assert_eq!(names("zram nbd and ram disks", true), ["sda", "sdb", "nvme0n1"]);
}

#[test]
fn this_computer_answers() {
    let computer = Computer::ask().unwrap();
    // Whatever `/` is on is not written, whoever asks.
    for disk in computer
        .disks
        .iter()
        .filter(|disk| disk.family().iter().any(|device| device.mounts().any(|mount| mount == "/")))
    {
        let refused = judge(&computer, &disk.path, 0, ANY);
        assert!(matches!(refused, Err(Refusal::System(..) | Refusal::NoDisk(_))), "{refused:?}");
    }
}
