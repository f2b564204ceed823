use std::collections::BTreeMap;

use super::*;

/// Computers as `lsblk -J -b` and `/sys` describe them.
fn computers() -> BTreeMap<String, Computer> {
    serde_json::from_str(include_str!("computers.json")).unwrap()
}

const NEEDS: u64 = 80 << 20;

fn verdict(computer: &str, disk: &str, any_disk: bool) -> Result<Target, Refusal> {
    let computers = computers();
    judge(computers.get(computer).unwrap(), disk, NEEDS, Allowed { any_disk })
}

#[test]
fn what_may_not_be_written_is_refused_for_the_right_reason() {
    use Refusal::*;
    let s = |text: &str| text.to_owned();
    let not_removable = || Unusual(s("it is not removable"));
    let member = |device: &str, kind: &str| {
        Unusual(format!("{device} is encrypted, or may be part of something larger ({kind})"))
    };
    let cases = [
        ("laptop with a stick", "/dev/nvme0n1", System(s("/dev/nvme0n1p1"), s("/boot/efi"))),
        ("laptop with a stick", "/dev/sdb1", Partition(Some(s("/dev/sdb")))),
        ("laptop with a stick", "/dev/mapper/vg-root", NoDisk(s("lvm"))),
        ("laptop with a stick", "/dev/mapper/nvme0n1p3_crypt", NoDisk(s("crypt"))),
        ("laptop with a stick", "/dev/sdz", Unknown),
        ("laptop with a stick", "", Unknown),
        (
            "stick that a desktop mounted",
            "/dev/sdb",
            Mounted(s("/dev/sdb1"), s("/media/anna/HOLIDAY")),
        ),
        (
            "file system on the whole stick, mounted",
            "/dev/sdc",
            Mounted(s("/dev/sdc"), s("/run/media/anna/MK-BUILD")),
        ),
        ("live system from a stick", "/dev/sdb", System(s("/dev/sdb1"), s("/run/live/medium"))),
        ("live system from a stick", "/dev/sda", not_removable()),
        ("installer that runs from a stick", "/dev/sda", System(s("/dev/sda"), s("/cdrom"))),
        ("volume group on a stick", "/dev/sdb", Held(s("/dev/sdb1"), s("dm-3"))),
        ("volume group that lsblk does not show", "/dev/sdb", Held(s("/dev/sdb1"), s("dm-3"))),
        ("mirror of two sticks", "/dev/sdb", Held(s("/dev/sdb1"), s("md0"))),
        ("mirror of two sticks", "/dev/sdc", Held(s("/dev/sdc1"), s("md0"))),
        ("mirror of two sticks", "/dev/md0", NoDisk(s("raid1"))),
        ("encrypted stick, open", "/dev/sdb", Held(s("/dev/sdb1"), s("dm-3"))),
        (
            "encrypted stick, mounted",
            "/dev/sdb",
            Mounted(s("/dev/mapper/luks-5f"), s("/media/anna/secret")),
        ),
        ("swap on a stick", "/dev/sdb", Swap(s("/dev/sdb2"))),
        ("loop devices", "/dev/loop0", Mounted(s("/dev/loop0"), s("/snap/core18/2812"))),
        ("loop devices", "/dev/loop1", not_removable()),
        ("second NVMe disk, unused", "/dev/nvme1n1", not_removable()),
        ("SATA disk of the desktop", "/dev/sda", System(s("/dev/sda1"), s("/boot/efi"))),
        ("SATA disk of the desktop", "/dev/sdb", not_removable()),
        ("card reader without a card", "/dev/sdb", NoMedium),
        ("card reader without a card", "/dev/mmcblk0", NoMedium),
        ("stick with its switch on", "/dev/sdb", ReadOnly),
        ("stick with large sectors", "/dev/sdb", Sectors(4096)),
        ("small stick", "/dev/sdb", TooSmall(64_487_424, NEEDS)),
        ("disk for backups", "/dev/sdb", Unusual(s("it has 3.64 TiB, more than sticks do"))),
        ("drive with a disc", "/dev/sr0", NoDisk(s("rom"))),
        ("memory that is a disk", "/dev/zram0", NoDisk(s("zram0"))),
        ("memory that is a disk", "/dev/zram1", NoDisk(s("zram1"))),
        ("memory that is a disk", "/dev/nbd0", NoDisk(s("nbd0"))),
        ("Btrfs on two sticks", "/dev/sdb", Mounted(s("/dev/sdb"), s("/mnt/pair"))),
        ("Btrfs on two sticks", "/dev/sdc", Pool(s("/dev/sdc"))),
        ("pool on a stick", "/dev/sdb", Pool(s("/dev/sdb1"))),
        ("two paths to one disk", "/dev/sdb", Held(s("/dev/sdb"), s("dm-0"))),
        ("cache for a disk", "/dev/sdb", Held(s("/dev/sdb"), s("bcache0"))),
        ("virtual machine", "/dev/vda", System(s("/dev/vda"), s("/"))),
        ("volume group that is not active", "/dev/sdb", member("/dev/sdb1", "LVM2_member")),
        ("encrypted stick, closed", "/dev/sdb", member("/dev/sdb1", "crypto_LUKS")),
        ("pool on a stick, without ZFS", "/dev/sdb", member("/dev/sdb1", "zfs_member")),
        ("SATA disk at a port that the firmware calls external", "/dev/sdb", not_removable()),
        ("eMMC of a small laptop, unused", "/dev/mmcblk0", not_removable()),
        ("eMMC of a small laptop, unused", "/dev/mmcblk0boot0", NoDisk(s("mmcblk0boot0"))),
        (
            "stick that a program has open",
            "/dev/sdb",
            Open(s("/dev/sdb1"), s("dislocker-fuse (812)")),
        ),
        ("stick that a loop device shows", "/dev/sdb", Held(s("/dev/sdb1"), s("loop4"))),
        ("two paths that nobody put together, one mounted", "/dev/sdc", OtherWay(s("/dev/sdb"))),
        ("home on a stick", "/dev/sdb", System(s("/dev/sdb1"), s("/home"))),
    ];
    for (computer, disk, refusal) in cases {
        let refused = verdict(computer, disk, false);
        assert_eq!(refused, Err(refusal.clone()), "{computer}: {disk}");
        // --any-disk allows the unusual, and nothing else.
        let is_unusual = matches!(refusal, Unusual(_));
        assert_eq!(verdict(computer, disk, true).is_ok(), is_unusual, "{computer}: {disk}");
    }
}

#[test]
fn what_may_be_written_is_named() {
    let cases = [
        ("laptop with a stick", "/dev/sdb", "SanDisk Ultra", Some("4C530001230815117210")),
        // The name alone does, too.
        ("laptop with a stick", "sdb", "SanDisk Ultra", Some("4C530001230815117210")),
        ("installer that runs from a stick", "/dev/sdb", "SanDisk Ultra", Some("AA01")),
        ("NVMe disk in a USB case", "/dev/sdb", "Realtek RTL9210B-CG", Some("012345678906")),
        ("card in the reader of the laptop", "/dev/mmcblk0", "no name", Some("0x1a2b3c4d")),
    ];
    for (computer, disk, title, serial) in cases {
        let target = verdict(computer, disk, false).unwrap();
        assert_eq!(
            (target.title.as_str(), target.serial.as_deref()),
            (title, serial),
            "{computer}"
        );
        assert_eq!(target.unusual, None);
    }
    let target = verdict("disk for backups", "/dev/sdb", true).unwrap();
    assert!(target.unusual.is_some());
}

#[test]
fn candidates_are_removable_and_have_a_medium() {
    let computers = computers();
    let names = |computer: &str, any: bool| -> Vec<&str> {
        let computer = computers.get(computer).unwrap();
        computer.candidates(any).map(|disk| disk.name.as_str()).collect()
    };
    assert_eq!(names("laptop with a stick", false), ["sdb"]);
    assert_eq!(names("card reader without a card", false), [""; 0]);
    assert_eq!(names("drive with a disc", false), [""; 0]);
    assert_eq!(names("SATA disk of the desktop", false), [""; 0]);
    assert_eq!(names("second NVMe disk, unused", true), ["nvme0n1", "nvme1n1"]);
    assert_eq!(names("eMMC of a small laptop, unused", false), [""; 0]);
    // Memory is no candidate, whatever is allowed.
    let has_memory = |name: &&str| name.starts_with("zram") || name.starts_with("nbd");
    assert!(!names("memory that is a disk", true).iter().any(has_memory));
    let computer = computers.get("laptop with a stick").unwrap();
    let content = computer.candidates(false).next().unwrap().content();
    assert_eq!(content, "sdb1: vfat HOLIDAY");
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
        let refused = judge(&computer, &disk.path, 0, Allowed { any_disk: true });
        assert!(matches!(refused, Err(Refusal::System(..) | Refusal::NoDisk(_))), "{refused:?}");
    }
}
