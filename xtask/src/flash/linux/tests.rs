use std::collections::VecDeque;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};

use super::*;
use crate::image::tests::content;

/// A disk that remembers whether it was written.
#[derive(Default)]
struct Memory {
    bytes: Cursor<Vec<u8>>,
    is_written: bool,
}

impl Read for Memory {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(to)
    }
}

impl Write for Memory {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.is_written = true;
        self.bytes.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

impl Medium for Memory {
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A computer that changes while it is asked, and a person with a list of answers.
#[derive(Default)]
struct Script {
    /// Answers of `lsblk`, one time after the other; the last for good.
    computers: VecDeque<String>,
    answers: VecDeque<&'static str>,
    is_nobody_there: bool,
    is_read_only: bool,
    /// Opening fails so.
    fails: Option<io::ErrorKind>,
    asked: Vec<String>,
    told: Vec<String>,
    opened: usize,
    closed: usize,
    is_written: bool,
}

impl Around for Script {
    type Disk = Memory;

    fn computer(&mut self) -> Result<Computer> {
        let text = match self.computers.len() {
            1 => self.computers[0].clone(),
            _ => self.computers.pop_front().unwrap(),
        };
        Ok(serde_json::from_str(&text)?)
    }

    fn may_write(&mut self, _: &Target) -> bool {
        !self.is_read_only
    }

    fn open(&mut self, _: &Target) -> io::Result<Memory> {
        self.opened += 1;
        match self.fails {
            Some(kind) => Err(kind.into()),
            None => Ok(Memory::default()),
        }
    }

    fn check(&mut self, _: &mut Memory, _: &Target) -> Result<()> {
        Ok(())
    }

    fn close(&mut self, disk: Memory) -> bool {
        self.closed += 1;
        self.is_written = disk.is_written;
        true
    }

    fn answers(&self) -> bool {
        !self.is_nobody_there
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        self.asked.push(question.to_owned());
        Ok(self.answers.pop_front().unwrap_or_default().to_owned())
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        self.told.push(line.to_owned());
        Ok(())
    }

    fn forbidden(&mut self, _: &Content, _: &Target) -> Result<anyhow::Error> {
        Ok(anyhow::anyhow!("forbidden"))
    }
}

/// A computer with one stick, of which `change` replaces a word.
fn computer(change: [&str; 2]) -> String {
    let text = r#"{"blockdevices": [{"name": "sdb", "kname": "sdb", "path": "/dev/sdb", "maj:min": "8:16",
        "type": "disk", "tran": "usb", "rm": true, "hotplug": true, "ro": false, "size": 134217728,
        "log-sec": 512, "model": "Ultra", "vendor": "SanDisk ", "serial": "AA01", "wwn": null,
        "fstype": null, "label": null, "ptuuid": "1234abcd", "mountpoints": [null], "children": [
        {"name": "sdb1", "kname": "sdb1", "path": "/dev/sdb1", "maj:min": "8:17", "type": "part",
        "tran": null, "rm": true, "hotplug": true, "ro": false, "size": 100000000, "log-sec": 512,
        "model": null, "vendor": null, "serial": null, "wwn": null, "fstype": "vfat",
        "label": "HOLIDAY", "ptuuid": "1234abcd", "mountpoints": [null]}]}], "sequences": {"sdb": 7}}"#;
    assert!(text.contains(change[0]), "{change:?}");
    text.replacen(change[0], change[1], 1)
}

const SAME: [&str; 2] = ["", ""];

fn script(computers: &[[&str; 2]], answers: &[&'static str]) -> Script {
    Script {
        computers: computers.iter().map(|change| computer(*change)).collect(),
        answers: answers.iter().copied().collect(),
        ..Script::default()
    }
}

fn onto(script: &mut Script, options: &FlashOptions) -> Result<(), String> {
    onto_disk(script, options, &content(), "/dev/sdb").map_err(|error| format!("{error:#}"))
}

#[test]
fn who_types_the_disk_s_name_gets_it_written() {
    for name in ["sdb", "/dev/sdb"] {
        let mut script = script(&[SAME], &[name]);
        onto(&mut script, &FlashOptions::default()).unwrap();
        assert!(script.is_written && script.closed == 1);
        assert_eq!(script.asked, ["type sdb to write over it: "]);
        let told = script.told.join("\n");
        for part in ["SanDisk Ultra", "AA01", "sdb1: vfat HOLIDAY", "may be pulled now"] {
            assert!(told.contains(part), "{told}");
        }
    }
}

#[test]
fn another_word_a_dry_run_and_an_empty_room_write_nothing() {
    for answer in ["", "yes", "sdc", "sdb1"] {
        let mut script = script(&[SAME], &[answer]);
        let error = onto(&mut script, &FlashOptions::default()).unwrap_err();
        assert!(error.contains("nothing was written") && script.opened == 0, "{error}");
    }
    let mut dry = script(&[SAME], &["sdb"]);
    onto(&mut dry, &FlashOptions { dry_run: true, ..FlashOptions::default() }).unwrap();
    assert!(dry.opened == 0 && dry.asked.is_empty());
    let mut nobody = Script { is_nobody_there: true, ..script(&[SAME], &[]) };
    let error = onto(&mut nobody, &FlashOptions::default()).unwrap_err();
    assert!(error.contains("--yes --device /dev/sdb") && nobody.opened == 0, "{error}");
}

#[test]
fn a_stick_that_was_changed_behind_the_question_is_not_written() {
    let changes = [
        ["AA01", "AA02"],
        ["\"AA01\"", "null"],
        ["Ultra", "Extreme"],
        ["134217728", "134217216"],
        ["8:16", "8:32"],
        // A reader's card: only what is on it tells, or the number of the medium.
        ["HOLIDAY", "WEDDING"],
        ["1234abcd", "5678abcd"],
        ["\"sdb\": 7", "\"sdb\": 8"],
    ];
    for change in changes {
        for yes in [false, true] {
            let mut script = script(&[SAME, change], &["sdb"]);
            let options = FlashOptions { yes, ..FlashOptions::default() };
            let error = onto(&mut script, &options).unwrap_err();
            assert!(error.contains("another disk than a moment ago"), "{change:?}: {error}");
            assert!(script.opened == 1 && script.closed == 0, "{change:?}");
        }
    }
    // Something mounted it meanwhile.
    let mut script =
        script(&[SAME, ["[null], \"children\"", "[\"/media/a\"], \"children\""]], &["sdb"]);
    let error = onto(&mut script, &FlashOptions::default()).unwrap_err();
    assert!(error.contains("mounted at /media/a") && script.closed == 0, "{error}");
}

#[test]
fn a_disk_that_can_t_be_opened_is_told_with_the_reason() {
    for (kind, part) in [
        (io::ErrorKind::ResourceBusy, "in use: the kernel does not give it"),
        (io::ErrorKind::PermissionDenied, "forbidden"),
        (io::ErrorKind::NotFound, "cannot open /dev/sdb"),
    ] {
        let mut script = Script { fails: Some(kind), ..script(&[SAME], &["sdb"]) };
        let error = onto(&mut script, &FlashOptions::default()).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn who_may_not_write_is_told_before_anything_is_asked() {
    let mut script = Script { is_read_only: true, ..script(&[SAME], &["sdb"]) };
    assert_eq!(onto(&mut script, &FlashOptions::default()).unwrap_err(), "forbidden");
    assert!(script.asked.is_empty() && script.opened == 0);
}

#[test]
fn an_unusual_disk_takes_the_option_and_its_serial_number() {
    let fixed = [["\"usb\"", "\"sata\""]];
    let any = FlashOptions { any_disk: true, ..FlashOptions::default() };
    let error = onto(&mut script(&fixed, &["sdb", "AA01"]), &FlashOptions::default()).unwrap_err();
    assert!(error.contains("--any-disk"), "{error}");
    let mut right = script(&fixed, &["sdb", "AA01"]);
    onto(&mut right, &any).unwrap();
    assert_eq!(right.asked.len(), 2);
    let error = onto(&mut script(&fixed, &["sdb", "sdb"]), &any).unwrap_err();
    assert!(error.contains("that was not AA01"), "{error}");
}

#[test]
fn the_list_has_what_may_be_meant_and_says_why_not() {
    let mut usual = script(&[SAME], &["sdb"]);
    let name = ask_which(&mut usual, &FlashOptions::default()).unwrap();
    assert_eq!(name.as_deref(), Some("sdb"));
    assert!(usual.told[0].contains("/dev/sdb") && usual.told[0].contains("AA01"));
    assert_eq!(ask_which(&mut script(&[SAME], &[""]), &FlashOptions::default()).unwrap(), None);
    // One that the option allows is in the list with the option only.
    let fixed = [["\"usb\"", "\"sata\""]];
    let error = ask_which(&mut script(&fixed, &[]), &FlashOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no removable disk"), "{error}");
    let any = FlashOptions { any_disk: true, ..FlashOptions::default() };
    assert!(ask_which(&mut script(&fixed, &["sdb"]), &any).unwrap().is_some());
    let large = [["134217728", "4000000000000"]];
    let mut large = script(&large, &[]);
    assert!(ask_which(&mut large, &FlashOptions::default()).is_err());
    assert!(large.told[1].contains("add --any-disk"), "{:?}", large.told);
}

#[test]
fn labels_have_no_power_over_the_terminal() {
    let mut script = script(&[["HOLIDAY", r"\u001b[2K\n\u001b]0;x\u0007/dev/sda"]], &["sdb"]);
    ask_which(&mut script, &FlashOptions::default()).unwrap();
    let line = &script.told[0];
    assert!(!line.contains(|c: char| c.is_control()) && line.contains("/dev/sda"), "{line:?}");
}

#[test]
fn the_command_for_root_says_all_that_was_said() {
    let options = FlashOptions { yes: true, any_disk: true, ..FlashOptions::default() };
    let command = for_root(Path::new("/a b/xtask"), &options, Path::new("/it's.img"), "/dev/sdb");
    assert_eq!(
        command,
        r"'/a b/xtask' flash --any-disk --yes --image '/it'\''s.img' --device /dev/sdb"
    );
    let command = for_root(Path::new("/x"), &FlashOptions::default(), Path::new("/i"), "/dev/sdb");
    assert_eq!(command, "'/x' flash --image '/i' --device /dev/sdb");
}

#[test]
fn a_file_with_content_is_not_overwritten_unasked() {
    let dir = std::env::temp_dir().join(format!("steward-flash-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("disk.img");
    let mut file = fs::File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    let (usual, content) = (FlashOptions::default(), content());
    let nobody = || Script { is_nobody_there: true, ..script(&[SAME], &[]) };
    // A hole: nothing is lost.
    check_file(&mut nobody(), &usual, &path).unwrap();
    file.seek(SeekFrom::Start(500 << 20)).unwrap();
    file.write_all(&[1]).unwrap();
    let error = check_file(&mut nobody(), &usual, &path).unwrap_err().to_string();
    assert!(error.contains("has content") && error.contains("--yes"), "{error}");
    let error = onto_file(&mut script(&[SAME], &["yes"]), &usual, &content, &path).unwrap_err();
    assert!(error.to_string().contains("nothing was written"), "{error}");
    assert!(Content::read(&mut fs::File::open(&path).unwrap()).is_err());
    let mut person = script(&[SAME], &["disk.img"]);
    onto_file(&mut person, &usual, &content, &path).unwrap();
    assert_eq!(person.asked.len(), 1);
    // Ours may have something in STEWDATA: it is asked about, too.
    let mut again = script(&[SAME], &[]);
    onto_file(&mut again, &usual, &content, &path).unwrap_err();
    assert_eq!(again.asked.len(), 1);
    let yes = FlashOptions { yes: true, ..FlashOptions::default() };
    onto_file(&mut script(&[SAME], &[]), &yes, &content, &path).unwrap();
    // A dry run asks nothing, and nobody has to be there.
    let dry = FlashOptions { dry_run: true, ..FlashOptions::default() };
    check_file(&mut nobody(), &dry, &path).unwrap();
    onto_file(&mut nobody(), &dry, &content, &path).unwrap();
    let back = Content::read(&mut fs::File::open(&path).unwrap()).unwrap();
    assert!(back.is_same(&content));
    // A loop device shows it, by this name or another.
    let other = dir.join("other.img");
    fs::hard_link(&path, &other).unwrap();
    let shown = format!(
        "\"sequences\": {{\"sdb\": 7}}, \"backing\": {{\"loop3\": \"{}\"}}",
        path.display()
    );
    let mut script = script(&[["\"sequences\": {\"sdb\": 7}", &shown]], &[]);
    for path in [&path, &other] {
        let error = check_file(&mut script, &yes, path).unwrap_err().to_string();
        assert!(error.contains("/dev/loop3"), "{error}");
    }
    fs::remove_dir_all(&dir).unwrap();
}
