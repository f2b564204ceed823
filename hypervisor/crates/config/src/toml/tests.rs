//! Tests of the configuration.

extern crate std;

use super::*;
use crate::bundle::{FileEntry, Manifest, VERSION};
use crate::{
    ApicAssist, BackOffSettings, DebugStatus, HostExit, HostSettings, OnHalt, OnReset,
    OnTripleFault, Populate, RestartPolicy, Signature,
};
use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::ToString;
use std::fs;
use std::path::Path;

/// The folder of the project.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../..");
const DOCUMENT: &str = include_str!("../../../../../docs/config.md");

/// A folder that has no files but those of this computer.
struct Folder<'a>(&'a str);

impl Surroundings for Folder<'_> {
    fn file(&self, path: &str) -> Result<(), String> {
        let path = Path::new(self.0).join(path);
        if path.is_file() {
            return Ok(());
        }
        let why = if path.exists() { "is no file" } else { "does not exist" };
        Err(format!("{} {why}", path.display()))
    }

    fn test_guests(&self) -> Vec<String> {
        ["clock", "hello"].map(str::to_owned).into()
    }

    fn cmdline(&self, kernel: &Kernel) -> &str {
        if *kernel == Kernel::Debian { "console=ttyS0 panic=1" } else { "" }
    }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    super::parse("folder/guests.toml", text, None, Some(2), &Folder("folder"))
}

/// The error for a guest with these lines beside its name and kernel.
fn refused(lines: &str) -> String {
    parse(&format!("[[guest]]\nname = \"g\"\nkernel = \"debian\"\n{lines}\n"))
        .unwrap_err()
        .to_string()
}

/// Checks that the image would take the configuration: the manifest's own rules hold.
fn check_manifest(config: &Config) {
    let file = FileEntry { name: "kernel".to_owned(), size: 0, crc32: 0 };
    let guests = config
        .plans
        .iter()
        .map(|plan| GuestSettings { kernel: file.name.clone(), ..plan.settings.clone() });
    let manifest = Manifest {
        version: VERSION,
        host: HostSettings::new(HostExit::Halt, LogLevel::Info),
        guests: guests.collect(),
        files: vec![file],
    };
    manifest.check().unwrap();
}

fn example(name: &str) -> Config {
    let path = Path::new(ROOT).join("examples").join(name);
    let text = fs::read_to_string(&path).unwrap();
    let folder = path.parent().unwrap().to_str().unwrap();
    let config = super::parse(name, &text, None, Some(1), &Folder(folder)).unwrap();
    check_manifest(&config);
    config
}

#[test]
fn the_examples_say_what_their_names_say() {
    let three = example("three-guests.toml");
    let kernels: Vec<&Kernel> = three.plans.iter().map(|plan| &plan.kernel).collect();
    assert_eq!(kernels, [&Kernel::Debian, &Kernel::Debian, &Kernel::BuiltIn]);
    assert_eq!(three.host.cpus, Some(2));
    let [four] = example("four-vcpus.toml").plans.try_into().unwrap();
    assert_eq!((four.settings.vcpus, four.settings.memory), (4, 1 << 30));
    let shares = example("shares.toml");
    let weights: Vec<u32> = shares.plans.iter().map(|plan| plan.settings.weight).collect();
    assert_eq!(weights, [100, 200, 400]);
    assert_eq!(shares.host.cpus, Some(1));
}

#[test]
fn one_pair_of_brackets_is_one_too_few() {
    let one = "[guest]\nname = \"g\"\nkernel = \"debian\"\n";
    for text in [one.to_owned(), one.repeat(2)] {
        let message = parse(&text).unwrap_err().to_string();
        assert!(
            message
                .contains("found [guest]; allowed: there may be several guests: write [[guest]]"),
            "{message}"
        );
    }
}

/// A value that an error calls allowed is allowed.
#[test]
fn the_limits_that_an_error_names_can_be_written() {
    for (lines, memory) in [("memory = \"1T\"", 1 << 40), ("memory = \"128M\"", 128 << 20)] {
        let text = format!("[host]\n{lines}\n[[guest]]\nname = \"g\"\nkernel = \"debian\"\n");
        assert_eq!(parse(&text).unwrap().host.memory, Some(memory));
    }
}

/// The keys of every table, by the table's own key.
fn tables() -> [(&'static str, Vec<String>); 7] {
    [
        ("", keys::<schema::File>()),
        ("host", keys::<schema::Host>()),
        ("guest", keys::<schema::Guest>()),
        ("guest.modules", keys::<schema::Module>()),
        ("guest.memory", keys::<schema::MemoryTable>()),
        ("guest.back_off", keys::<schema::BackOff>()),
        ("guest.console", keys::<schema::Console>()),
    ]
}

/// The keys of the table `T`: serde names them when it refuses another.
fn keys<T: for<'de> serde::Deserialize<'de>>() -> Vec<String> {
    let error = toml::from_str::<T>("\"?\" = 0").err().unwrap();
    schema::quoted(error.message()).skip(1).map(str::to_owned).collect()
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_read() {
    let doc = DOCUMENT;
    let documented: BTreeSet<String> = doc
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once('`'))
        .map(|(key, _)| key.to_owned())
        .collect();
    let mut known = BTreeSet::new();
    for (table, keys) in tables() {
        assert!(!keys.is_empty(), "{table}");
        for key in keys.iter().filter(|_| !table.is_empty()) {
            known.insert(format!("{table}.{key}"));
        }
    }
    assert_eq!(documented, known, "`cargo xtask lint --write` renews the table");
    for name in hvabi_names() {
        assert!(doc.contains(&format!("`\"{name}\"`")), "{name}");
    }
}

#[test]
fn every_key_of_the_manifest_has_a_setting() {
    let of = |settings: Vec<table::Setting>| -> BTreeSet<String> {
        let keys = settings.iter().map(|setting| setting.manifest);
        let keys = keys.filter_map(|key| key.split('.').next()).filter(|key| !key.is_empty());
        keys.map(str::to_owned).collect()
    };
    let keys = |value: serde_json::Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let guest = GuestSettings::new("g", 1 << 20, "kernel");
    assert_eq!(of(table::guest()), keys(serde_json::to_value(&guest).unwrap()));
    let host = serde_json::to_value(HostSettings::new(HostExit::Halt, LogLevel::Info)).unwrap();
    let mut host = keys(host);
    // Keys that no configuration sets.
    for key in ["exit", "console", "end_key"] {
        assert!(host.remove(key), "{key}");
    }
    assert_eq!(of(table::host()), host);
}

#[test]
fn the_document_has_the_table() {
    let renewed = table::renewed(DOCUMENT).unwrap();
    let changed = renewed.lines().zip(DOCUMENT.lines()).find(|(new, old)| new != old);
    assert_eq!(changed, None, "`cargo xtask lint --write` renews docs/config.md");
    assert!(renewed == DOCUMENT, "`cargo xtask lint --write` renews docs/config.md");
    assert_eq!(table::renewed("no marks"), None);
}

/// The hypercalls' names: an error lists them.
fn hvabi_names() -> Vec<String> {
    let message = refused("hypercalls = [\"?\"]");
    let list = message.split_once("allowed: ").unwrap().1.lines().next().unwrap().to_owned();
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_documented_configuration_is_read_as_it_stands() {
    let doc = DOCUMENT;
    let text = doc.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    let config = parse(text).unwrap();
    check_manifest(&config);
    assert_eq!(
        config.host,
        Host {
            log: Some(LogLevel::Debug),
            when_empty: WhenEmpty::Stay,
            escape: EscapeKey::parse("Ctrl-A").unwrap(),
            cpus: Some(2),
            memory: Some(2 << 30),
        }
    );
    let [web, small] = config.plans.try_into().unwrap();
    let GuestSettings { hypercalls, uuid, .. } = &web.settings;
    assert_eq!(
        hypercalls.0.iter().map(|call| call.as_str()).collect::<Vec<_>>(),
        ["kvm-clock-pairing"]
    );
    assert_eq!(uuid.unwrap().to_string(), "6a1f0c52-93c5-4b0e-8d6f-0f6c3a8f2b11");
    let expected = GuestSettings {
        populate: Populate::UpFront,
        cmdline: "console=ttyS0 panic=1 quiet".to_owned(),
        vcpus: 2,
        weight: 400,
        cap: Some(150),
        affinity: Some(vec![0, 1]),
        restart: RestartPolicy::OnFailure,
        back_off: BackOffSettings { first_ms: 500, most_ms: 60_000, healthy_ms: 300_000 },
        on_reset: OnReset::Restart,
        on_triple_fault: OnTripleFault::Reset,
        on_halt: OnHalt::End,
        apic: ApicAssist::Priority,
        watchdog_ms: Some(30_000),
        console_ring: 64 << 10,
        hypercalls: *hypercalls,
        signature: Signature::Kvm,
        uuid: *uuid,
        ..GuestSettings::new("web", 1 << 30, "")
    };
    assert_eq!(web.settings, expected);
    assert_eq!(small.kernel, Kernel::Test("clock".to_owned()));
    assert!(small.settings.debug_exit);
    assert_eq!(small.settings.debug_status, DebugStatus::Plain);
}

#[test]
fn what_is_left_out_has_the_manifest_s_defaults() {
    let config = parse("[[guest]]\nname = \"g\"\nkernel = \"debian\"").unwrap();
    assert_eq!(config.host, Host::default());
    let defaults = GuestSettings::new("g", 512 << 20, "");
    let cmdline = "console=ttyS0 panic=1".to_owned();
    assert_eq!(config.plans[0].settings, GuestSettings { cmdline, ..defaults });
    let config = parse("[[guest]]\nname = \"g\"\nkernel = \"builtin\"").unwrap();
    assert!(config.plans[0].settings.debug_exit);
    assert_eq!(config.plans[0].settings.cmdline, "");
}

#[test]
fn each_refusal_names_line_key_found_and_allowed() {
    let mut bad = Vec::new();
    for (lines, part) in [
        (
            "weight = 0",
            "folder/guests.toml:4:10: guest \"g\": key `guest.weight`: found 0; allowed: 1 to 10000\n  4 | weight = 0",
        ),
        ("weight = 10001", "found 10001; allowed: 1 to 10000"),
        (
            "weight = \"much\"",
            "4:10: guest \"g\": key `guest.weight`: found string \"much\"; allowed: a whole number",
        ),
        ("cap = 6401", "key `guest.cap`: found 6401; allowed: 1 to 6400"),
        ("vcpus = -1", "key `guest.vcpus`: found -1; allowed: 1 to 64"),
        (
            "wieght = 5",
            "4:1: guest \"g\": key `guest.wieght`: found a key that does not exist; allowed: name, kernel,",
        ),
        ("wieght = 5", "; did you mean \"weight\"?"),
        (
            "console.rings = \"64K\"",
            "key `guest.console.rings`: found a key that does not exist; allowed: ring; did you mean \"ring\"?",
        ),
        (
            "memory = \"512\\nM\"",
            "allowed: 1M to 383G, as text such as \"64K\", \"512M\" or \"6G\"",
        ),
        ("memory = \"2T\"", "key `guest.memory`: found \"2T\"; allowed: 1M to 383G"),
        (
            "memory = 512",
            "key `guest.memory`: found integer 512; allowed: a size such as \"512M\", or a table",
        ),
        ("memory = \"1025K\"", "found 1049600 bytes; allowed: whole pages"),
        (
            "memory = { size = \"1K\" }",
            "4:19: guest \"g\": key `guest.memory.size`: found \"1K\"; allowed: 1M",
        ),
        (
            "memory = { size = \"1G\", populate = \"upfront\" }",
            "4:36: guest \"g\": key `guest.memory.populate`: found \"upfront\"; allowed: on-demand, up-front; did you mean \"up-front\"?",
        ),
        ("memory = { sice = \"1G\" }", "did you mean \"size\"?"),
        (
            "[guest.memory]\nsize = 5",
            "5:8: guest \"g\": key `guest.memory.size`: found integer 5; allowed: a string",
        ),
        (
            "restart = \"sometimes\"",
            "key `guest.restart`: found \"sometimes\"; allowed: never, on-failure, always",
        ),
        ("on_reset = \"stop\"", "allowed: restart, end"),
        ("on_triple_fault = \"end\"", "allowed: crash, reset"),
        ("on_halt = \"reset\"", "allowed: stay, end"),
        ("debug_status = true", "key `guest.debug_status`"),
        (
            "back_off = { first = \"9ms\" }",
            "key `guest.back_off.first`: found \"9ms\"; allowed: 10 ms to 24 hours",
        ),
        ("back_off = { first = 61 }", "found a first wait of 61000 ms and a longest of 60000 ms"),
        ("watchdog = 0", "key `guest.watchdog`: found 0; allowed: 1000 ms to 24 hours"),
        ("watchdog = \"soon\"", "found \"soon\"; allowed: 1000 ms"),
        ("watchdog = true", "found boolean true; allowed: a number of seconds, or text"),
        ("watchdog = 9223372036854775807", "found 9223372036854775807; allowed: 1000 ms"),
        ("console.ring = \"1K\"", "key `guest.console.ring`: found \"1K\"; allowed: 4K to 16M"),
        (
            "hypercalls = [\"time\", \"tme\"]",
            "4:14: guest \"g\": key `guest.hypercalls`: found \"tme\"; allowed: console-write, yield",
        ),
        ("hypercalls = [\"time\", \"tme\"]", "did you mean \"time\"?"),
        ("affinity = []", "key `guest.affinity`: found no CPU; allowed: at least one"),
        ("affinity = [64]", "4:13: guest \"g\": key `guest.affinity`: found 64; allowed: 0 to 63"),
        (
            "affinity = [1, 1]",
            "4:16: guest \"g\": key `guest.affinity`: found CPU 1 twice; allowed: each CPU once",
        ),
        (
            "affinity = [2, 3]",
            "found [2, 3]; allowed: at least one of the machine's CPUs, which are 0 to 1",
        ),
        ("uuid = \"1234\"", "key `guest.uuid`: found \"1234\"; allowed: 32 hexadecimal digits"),
        (
            "initrd = \"none\"",
            "key `guest.initrd`: found \"none\": folder/none does not exist; allowed: a file",
        ),
        (
            "modules = [{ cmdline = \"x\" }]",
            "key `guest.modules.file`: found nothing; allowed: this key is required",
        ),
        ("cmdline = \"a\\u0000\"", "key `guest.cmdline`: found a NUL character"),
        ("signature = \"xen\"", "key `guest.signature`: found \"xen\"; allowed: steward, kvm"),
        ("apic = \"some\"", "key `guest.apic`: found \"some\"; allowed: full, priority, none"),
        ("debug_exit = 1", "key `guest.debug_exit`: found integer 1; allowed: a boolean"),
        (
            "[host]\nlog = \"loud\"",
            "5:7: key `host.log`: found \"loud\"; allowed: off, error, warn",
        ),
        (
            "[host]\nescape = \"Ctrl-M\"",
            "5:10: key `host.escape`: found \"Ctrl-M\"; allowed: Ctrl-A",
        ),
        ("[host]\ncpus = 65", "key `host.cpus`: found 65; allowed: 1 to 64"),
        ("[host]\nmemory = \"1M\"", "key `host.memory`: found \"1M\"; allowed: 128M to 1T"),
        (
            "[hosts]",
            "key `hosts`: found a key that does not exist; allowed: host, guest; did you mean \"host\"?",
        ),
        (
            "[[guest]]\nname = \"h\"",
            "guest \"h\": key `guest.kernel`: found nothing; allowed: this key is required",
        ),
        (
            "[[guest]]\nname = \"g\"\nkernel = \"debian\"",
            "5:8: guest \"g\": key `guest.name`: found \"g\", which another guest has",
        ),
        (
            "[[guest]]\nname = \"a b\"\nkernel = \"debian\"",
            "found \"a b\"; allowed: 1 to 64 of A-Z",
        ),
        (
            "[[guest]]\nname = \"h\"\nkernel = \"debain\"",
            "found \"debain\": folder/debain does not exist; allowed: a file, \"debian\", \"builtin\", or \"test:NAME\"; a path is relative to the configuration's folder; did you mean \"debian\"?",
        ),
        ("[[guest]]\nname = \"h\"\nkernel = \"test:clok\"", "did you mean \"clock\"?"),
        ("[[guest]]\nname = \"h\"\nkernel = \"..\"", "folder/.. "),
        ("weight = ", "folder/guests.toml:4:10: found no value behind `=`; allowed: a value"),
        ("weight =", "folder/guests.toml:4:9: found no value behind `=`; allowed: a value"),
        ("weight = # much\nvcpus = 1", "found no value behind `=`; allowed: a value"),
        ("cmdline = \"a=", "folder/guests.toml:4:"),
        ("[guest]\nname = \"h\"", "4:2: found [guest]; allowed: there may be several"),
        ("weight = 1\nweight = 2", "5:1: "),
    ] {
        let message = refused(lines);
        if !message.contains(part) {
            bad.push(format!("{lines}\n{message}\nwanted: {part}\n"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn a_uuid_is_unique_even_where_it_is_made_from_a_name() {
    let uuid = crate::Uuid::from_name("g");
    let message =
        refused(&format!("[[guest]]\nname = \"h\"\nkernel = \"debian\"\nuuid = \"{uuid}\""));
    let part = format!(
        "7:8: guest \"h\": key `guest.uuid`: found the UUID {uuid}, which \"g\" has; allowed: a UUID"
    );
    assert!(message.contains(&part), "{message}");
}

#[test]
fn all_wrong_values_are_told_at_once_in_the_order_of_the_lines() {
    let message = refused("weight = 0\nvcpus = 0\ncap = 0");
    let lines: Vec<&str> = message.lines().filter(|line| line.starts_with("folder")).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].contains(":4:") && lines[1].contains(":5:") && lines[2].contains(":6:"));
}

#[test]
fn no_guest_is_a_fault() {
    let message = parse("").unwrap_err().to_string();
    assert!(message.contains("1:1: found no guest; allowed: at least one [[guest]]"), "{message}");
}

#[test]
fn who_says_how_many_cpus_there_are() {
    let text = "[host]\ncpus = 4\n[[guest]]\nname = \"g\"\nkernel = \"debian\"\naffinity = [3]";
    let load = |cpus, text: &str| super::parse("x", text, cpus, None, &Folder(""));
    assert!(load(None, text).is_ok());
    // The command line goes first.
    assert!(load(Some(2), text).is_err());
    // Nobody says how many CPUs there are: the image will run on a machine that is not known yet.
    assert!(load(None, &text.replace("cpus = 4", "")).is_ok());
}
