//! Tests of the bundle.

#[path = "../../../../../tests/fuzz/src/bundle.rs"]
#[expect(unreachable_pub, reason = "public where the fuzz targets call it")]
mod fuzz;

use super::*;
use crate::limits::{
    MAX_BACK_OFF_MS, MAX_CAP, MAX_CONSOLE_RING, MAX_CPU, MAX_MEMORY, MAX_VCPUS, MAX_WATCHDOG_MS,
    MAX_WEIGHT, MIN_BACK_OFF_MS, MIN_CONSOLE_RING, MIN_WATCHDOG_MS, MIN_WEIGHT,
};
use crate::{
    ApicAssist, BackOff, BackOffSettings, CpuSet, DebugStatus, EscapeKey, HostExit, Hypercalls,
    LogLevel, ModuleSettings, OnReset, Populate, RestartPolicy, Uuid, WhenEmpty,
};
use alloc::vec;
use proptest::prelude::*;
use x86defs::time::TscFrequency;

fn guest(name: &str) -> GuestSettings {
    GuestSettings {
        initrd: Some("guest0/initrd".into()),
        modules: vec![ModuleSettings { file: "guest0/mod0".into(), cmdline: "a=1".into() }],
        cmdline: "console=ttyS0".into(),
        on_reset: OnReset::End,
        apic: ApicAssist::Priority,
        ..GuestSettings::new(name, 512 << 20, "guest0/kernel")
    }
}

const HOST: HostSettings = HostSettings::new(HostExit::IsaDebugExit, LogLevel::Info);

fn files() -> Vec<(String, Vec<u8>)> {
    let pattern = |n: usize| (0..n).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect();
    vec![
        ("guest0/kernel".into(), pattern(1500)),
        ("guest0/initrd".into(), pattern(512)),
        ("guest0/mod0".into(), Vec::new()),
    ]
}

fn good() -> Vec<u8> {
    build(HOST, vec![guest("debian")], &files()).unwrap()
}

fn refused(guests: Vec<GuestSettings>) -> String {
    build(HOST, guests, &files()).unwrap_err().to_string()
}

fn pack(json: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    tar::append(&mut archive, MANIFEST_NAME, json.as_bytes()).unwrap();
    let crc = format!("{:08x}", crc32fast::hash(json.as_bytes()));
    tar::append(&mut archive, MANIFEST_CRC_NAME, crc.as_bytes()).unwrap();
    tar::finish(&mut archive);
    archive
}

#[test]
fn round_trip() {
    let bytes = good();
    let bundle = Bundle::open(&bytes).unwrap();
    assert_eq!(bundle.manifest().guests, [guest("debian")]);
    for (name, data) in files() {
        assert_eq!(bundle.file(&name), Some(data.as_slice()));
    }
    assert_eq!(bundle.file("manifest.json"), None);
    fuzz::run(&bytes);
}

#[test]
fn the_documented_text_is_read_and_every_key_documented() {
    let doc = include_str!("../../../../../docs/bundle.md");
    let json = doc.split_once("```json\n").unwrap().1.split_once("```").unwrap().0;
    let manifest = Manifest::from_json(json.as_bytes()).unwrap();
    manifest.check().unwrap();
    assert_eq!(manifest.version, VERSION);
    let written = serde_json::to_value(&manifest).unwrap();
    let read: serde_json::Value = serde_json::from_str(json).unwrap();
    for key in ["version", "host", "files"] {
        assert_eq!(written[key], read[key], "the text leaves no key out");
    }
    for (key, value) in read["guests"][0].as_object().unwrap() {
        assert_eq!(written["guests"][0][key], *value, "{key}");
    }
    let keys = |value: &serde_json::Value, prefix: &str| -> Vec<String> {
        value.as_object().unwrap().keys().map(|key| format!("| `{prefix}{key}` |")).collect()
    };
    for key in keys(&written["files"][0], "files[].") {
        assert!(doc.contains(&key), "{key}");
    }
    // A key that a configuration sets stands in the configuration's table.
    let settings = include_str!("../../../../../docs/config.md");
    let is_set = |key: &str| settings.contains(&format!("` | `{key}` |"));
    for key in written["host"].as_object().unwrap().keys() {
        assert!(is_set(key) || doc.contains(&format!("| `host.{key}` |")), "{key}");
    }
    for key in written["guests"][0].as_object().unwrap().keys() {
        let inner = format!("` | `{key}.");
        let known = is_set(key) || settings.contains(&inner);
        assert!(known, "{key}: `cargo xtask lint --write` renews docs/config.md");
    }
}

#[test]
fn version_1_is_read() {
    // Version 1 had no more than this: the rest has defaults.
    let json = r#"{"version":1,
 "host":{"exit":"bochs", "log":"info"},
 "guests":[{"name":"debian","memory":536870912,"vcpus":1,"kernel":"guest0/kernel","initrd":null,
  "modules":[{"file":"guest0/kernel","cmdline":"x"}],"cmdline":"quiet","debug_exit":false}],
 "files":[{"name":"guest0/kernel","size":123,"crc32":305419896}]}"#;
    let manifest = Manifest::from_json(json.as_bytes()).unwrap();
    manifest.check().unwrap();
    assert_eq!(manifest.host.exit, HostExit::Bochs);
    assert_eq!(manifest.guests[0].on_reset, OnReset::Restart, "it may be left out");
    let defaults = GuestSettings::new("debian", 512 << 20, "guest0/kernel");
    let modules = manifest.guests[0].modules.clone();
    let cmdline = "quiet".into();
    assert_eq!(manifest.guests[0], GuestSettings { modules, cmdline, ..defaults });
    assert_eq!(manifest.host, HostSettings::new(HostExit::Bochs, LogLevel::Info));
    assert_eq!(manifest.files[0].crc32, 0x1234_5678);
    let error = Bundle::open(&pack(json)).unwrap_err();
    assert_eq!(error, BundleError::MissingMember { name: "guest0/kernel".into() });
}

#[test]
fn padding_after_the_end_is_ignored_and_truncation_is_not() {
    let mut bytes = good();
    let end = bytes.len() - 512;
    Bundle::open(&bytes[..end]).unwrap();
    for length in 0..end {
        let error = Bundle::open(&bytes[..length]).unwrap_err();
        assert!(matches!(error, BundleError::Truncated { .. }), "{length}: {error}");
    }
    bytes.extend([0xa5; 700]);
    Bundle::open(&bytes).unwrap();
}

#[test]
fn each_refusal_names_place_and_cure() {
    let with = |change: fn(&mut GuestSettings)| {
        let mut guest = guest("debian");
        change(&mut guest);
        refused(vec![guest])
    };
    for (message, part) in [
        (with(|g| g.name.clear()), "guests[0] \"\": \"name\" must be 1 to 64"),
        (with(|g| g.name = "a b".into()), "\"name\" must be"),
        (with(|g| g.memory = 0), "\"memory\" is 0 bytes; it must be a multiple of 4096"),
        (with(|g| g.memory = (1 << 20) - 4096), "from 1048576 (1 MiB)"),
        (with(|g| g.memory = (1 << 21) + 1), "\"memory\" is 2097153"),
        (with(|g| g.memory = MAX_MEMORY + 4096), "to 411243118592 (383 GiB)"),
        // The window on a guest's RAM held so much before devices had a part of it.
        (with(|g| g.memory = 511 << 30), "to 411243118592 (383 GiB)"),
        (with(|g| g.vcpus = 0), "\"vcpus\" is 0; it must be 1 to 64"),
        (with(|g| g.vcpus = 65), "\"vcpus\" is 65"),
        (
            with(|g| g.modules = vec![g.modules[0].clone(); 65]),
            "\"modules\" has 65 entries; at most 64",
        ),
        (with(|g| g.kernel = "k".into()), "\"kernel\" names the file \"k\""),
        (with(|g| g.initrd = Some("i".into())), "\"initrd\" names the file \"i\""),
        (with(|g| g.modules[0].file = "m".into()), "\"modules.file\" names the file \"m\""),
        (with(|g| g.cmdline = "a\0".into()), "\"cmdline\" holds a NUL character at byte 1"),
        (with(|g| g.weight = 0), "\"weight\" is 0; it must be 1 to 10000"),
        (with(|g| g.weight = 10_001), "\"weight\" is 10001"),
        (with(|g| g.cap = Some(0)), "\"cap\" is 0; it must be 1 to 6400 percent of one CPU"),
        (with(|g| g.cap = Some(6401)), "\"cap\" is 6401"),
        (with(|g| g.affinity = Some(vec![])), "\"affinity\" names no CPU"),
        (with(|g| g.affinity = Some(vec![0, 64])), "\"affinity\" names CPU 64; CPUs are 0 to 63"),
        (with(|g| g.affinity = Some(vec![1, 0, 1])), "\"affinity\" names CPU 1 twice"),
        (
            with(|g| g.back_off.first_ms = 9),
            "\"back_off.first_ms\" is 9; it must be 10 to 86400000",
        ),
        (with(|g| g.back_off.most_ms = 86_400_001), "\"back_off.most_ms\" is 86400001"),
        (with(|g| g.back_off.healthy_ms = 0), "\"back_off.healthy_ms\" is 0"),
        (
            with(|g| g.back_off.most_ms = 999),
            "is 999; it must be at least \"back_off.first_ms\", 1000",
        ),
        (
            with(|g| g.watchdog_ms = Some(999)),
            "\"watchdog_ms\" is 999; it must be 1000 to 86400000",
        ),
        (with(|g| g.watchdog_ms = Some(86_400_001)), "\"watchdog_ms\" is 86400001"),
        (
            with(|g| g.console_ring = 4095),
            "\"console_ring\" is 4095 bytes; it must be 4096 (4 KiB)",
        ),
        (with(|g| g.console_ring = (16 << 20) + 1), "to 16777216 (16 MiB)"),
        (
            {
                let mut other = guest("b");
                other.uuid = Some(Uuid::from_name("a"));
                refused(vec![guest("a"), other])
            },
            "guests[1] \"b\": \"uuid\" is also that of guests[0]",
        ),
        (
            refused(vec![guest("a"), guest("a")]),
            "guests[1] \"a\": \"name\" is also that of guests[0]",
        ),
        (refused(vec![]), "\"guests\" is empty"),
    ] {
        assert!(message.contains(part), "{message}");
    }
    with_least_memory_is_fine();
}

fn with_least_memory_is_fine() {
    let mut guest = guest("least");
    guest.memory = 1 << 20;
    guest.vcpus = 64;
    guest.modules = vec![guest.modules[0].clone(); 64];
    build(HOST, vec![guest], &files()).unwrap();
}

#[test]
fn json_errors_have_line_and_column() {
    let open = |json: &str| Bundle::open(&pack(json)).unwrap_err();
    let error = open("{\"version\":1,\n \"hosts\":{}}");
    assert!(matches!(error, BundleError::Json { line: 2, column: 8, .. }), "{error:?}");
    assert!(error.to_string().contains("unknown field `hosts`, expected one of `version`"));
    assert_eq!(open("{\"version\":3,\"new\":1}"), BundleError::Version { got: 3 });
    assert_eq!(open("{\"version\":0}"), BundleError::Version { got: 0 });
    let guests = |keys: &str| {
        open(&format!("{{\"version\":2,\"host\":{{\"exit\":\"halt\",\"log\":\"off\"}},\"guests\":[{{\n{keys}}}]}}"))
            .to_string()
    };
    for (keys, part) in [
        ("\"uuid\":\"x\"", "line 2, column 11: \"x\" is no UUID: 32 hexadecimal digits"),
        (
            "\"hypercalls\":[\"tme\"]",
            "unknown variant `tme`, expected one of `console-write`, `yield`",
        ),
        ("\"populate\":\"now\"", "unknown variant `now`, expected `on-demand` or `up-front`"),
        ("\"restart\":\"no\"", "expected one of `never`, `on-failure`, `always`"),
        ("\"weight\":-1", "invalid value: integer `-1`, expected u32"),
        ("\"affinity\":[256]", "invalid value: integer `256`, expected u8"),
    ] {
        let message = guests(keys);
        assert!(message.contains(part), "{message}");
    }
    let nested = "{\"a\":".repeat(100_000);
    assert!(matches!(open(&nested), BundleError::Json { .. }));
}

#[test]
fn broken_archives() {
    let named = |name: &str| {
        let mut archive = Vec::new();
        tar::append(&mut archive, name, b"{}").unwrap();
        tar::finish(&mut archive);
        Bundle::open(&archive).unwrap_err().to_string()
    };
    assert!(named("other").contains("found member \"other\" where \"manifest.json\" is due"));
    assert!(named("manifest.json").contains("\"manifest.crc32\" is missing"));
    assert!(
        Bundle::open(&[0; 512]).unwrap_err().to_string().contains("manifest.json\" is missing")
    );
    assert!(Bundle::open(&[1; 512]).unwrap_err().to_string().contains("no \"ustar\" magic"));

    // A listed file twice, and a file that is not listed.
    let mut twice = good();
    twice.truncate(twice.len() - 1024);
    tar::append(&mut twice, "guest0/mod0", b"").unwrap();
    tar::finish(&mut twice);
    assert!(matches!(Bundle::open(&twice), Err(BundleError::UnexpectedMember { .. })));

    let mut damaged = good();
    let at = damaged.len() - 1024 - 512 - 512;
    damaged[at] ^= 1;
    let message = Bundle::open(&damaged).unwrap_err().to_string();
    assert!(message.contains("\"guest0/initrd\" is damaged: CRC-32 0x"), "{message}");

    let mut directory = good();
    directory[156] = b'5';
    directory[148..156].copy_from_slice(&[b' '; 8]);
    let sum: u32 = directory[..512].iter().map(|&b| u32::from(b)).sum();
    directory[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(
        Bundle::open(&directory).unwrap_err(),
        BundleError::Tar { offset: 0, fault: TarFault::Kind(b'5') }
    );
    assert!(build(HOST, vec![guest("a")], &[("x".repeat(101), vec![])]).is_err());
}

#[test]
fn settings_for_affinity_and_life() {
    let mut guest = guest("g");
    assert_eq!(guest.cpus(), CpuSet::ALL);
    guest.affinity = Some(vec![63, 1]);
    guest.restart = RestartPolicy::Always;
    guest.back_off.most_ms = 2000;
    assert!(guest.cpus().iter().eq([1, 63]));
    let rules = guest.rules(TscFrequency::from_khz(1_000_000).unwrap());
    assert_eq!((rules.restart, rules.on_reset), (RestartPolicy::Always, OnReset::End));
    let seconds = |count: u64| count * 1_000_000_000;
    let wanted =
        BackOff { first: seconds(1), most: seconds(2), healthy: seconds(60), hasty: seconds(5) };
    assert_eq!(rules.back_off, wanted);
}

#[test]
fn uuids() {
    let text = "01234567-89ab-cdef-fedc-ba9876543210";
    let uuid = Uuid::parse(text).unwrap();
    assert_eq!(uuid.0[..8], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    assert_eq!(uuid.to_string(), text);
    assert_eq!(Uuid::parse(&text.to_uppercase()), Some(uuid));
    for bad in [
        "",
        "0123456789abcdeffedcba9876543210",
        "01234567-89ab-cdef-fedc-ba987654321",
        "01234567-89ab-cdef-fedc-ba9876543210-",
        "0123456-789ab-cdef-fedc-ba9876543210",
        "+1234567-89ab-cdef-fedc-ba9876543210",
        "0123456g-89ab-cdef-fedc-ba9876543210",
    ] {
        assert_eq!(Uuid::parse(bad), None, "{bad}");
    }
    // A name has the same UUID from one version to the next: guests remember theirs.
    let debian = GuestSettings::new("debian", 0, "").machine_uuid();
    assert_eq!(debian, Uuid::from_name("debian"));
    assert_eq!(debian.to_string(), "ab12efed-abb1-80b0-a773-ee7bbe02a660");
    assert_ne!(debian, Uuid::from_name("debian2"));
}

#[test]
fn escape_keys() {
    assert_eq!(EscapeKey::default().to_string(), "Ctrl-]");
    assert_eq!(EscapeKey::default().byte(), 0x1d);
    assert_eq!(EscapeKey::parse("ctrl-a").map(EscapeKey::byte), Some(1));
    for byte in 0..=255 {
        if let Some(key) = EscapeKey::from_byte(byte) {
            assert_eq!(EscapeKey::parse(&key.to_string()), Some(key));
        }
    }
    for bad in ["", "]", "Ctrl-", "Ctrl-1", "Ctrl-@", "Ctrl-M", "Ctrl-[", "Ctrl-H", "Alt-A"] {
        assert_eq!(EscapeKey::parse(bad), None, "{bad}");
    }
}

prop_compose! {
    fn limits()(
        weight in MIN_WEIGHT..=MAX_WEIGHT,
        cap in prop::option::of(1..=MAX_CAP),
        cpus in prop::option::of(prop::collection::btree_set(0..=MAX_CPU, 1..5)),
        vcpus in 1..=MAX_VCPUS,
    ) -> GuestSettings {
        let affinity = cpus.map(|cpus| cpus.into_iter().collect());
        GuestSettings { weight, cap, affinity, vcpus, ..guest("g") }
    }
}

prop_compose! {
    fn any_guest()(
        guest in limits(),
        uuid in prop::option::of(any::<[u8; 16]>()),
        populate in prop::sample::select(vec![Populate::OnDemand, Populate::UpFront]),
        restart in prop::sample::select(
            vec![RestartPolicy::Never, RestartPolicy::OnFailure, RestartPolicy::Always]
        ),
        first_ms in MIN_BACK_OFF_MS..=1000,
        most_ms in 1000..=MAX_BACK_OFF_MS,
        healthy_ms in MIN_BACK_OFF_MS..=MAX_BACK_OFF_MS,
        watchdog_ms in prop::option::of(MIN_WATCHDOG_MS..=MAX_WATCHDOG_MS),
        console_ring in MIN_CONSOLE_RING..=MAX_CONSOLE_RING,
        calls in prop::collection::vec(prop::sample::select(hvabi::CallName::ALL.to_vec()), 0..5),
    ) -> GuestSettings {
        GuestSettings {
            uuid: uuid.map(Uuid),
            populate,
            restart,
            back_off: BackOffSettings { first_ms, most_ms, healthy_ms },
            watchdog_ms,
            console_ring,
            hypercalls: Hypercalls(calls.into_iter().collect()),
            ..guest
        }
    }
}

/// Everything that a reader of a bundle can see of it.
fn visible(bytes: &[u8]) -> Option<(Manifest, Vec<Vec<u8>>)> {
    let bundle = Bundle::open(bytes).ok()?;
    let names = bundle.manifest().files.iter();
    let files = names.map(|f| bundle.file(&f.name).unwrap().to_vec()).collect();
    Some((bundle.manifest().clone(), files))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn corruption_is_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4)) {
        let before = good();
        let mut after = before.clone();
        for (at, change) in &changes {
            after[at.index(before.len())] ^= change;
        }
        if let Some(seen) = visible(&after) {
            prop_assert_eq!(Some(seen), visible(&before));
        }
    }

    #[test]
    fn all_that_is_allowed_is_carried(
        guest in any_guest(),
        when_empty in prop::sample::select(vec![WhenEmpty::Exit, WhenEmpty::Stay]),
        escape in (1u8..32).prop_filter_map("its own key", EscapeKey::from_byte),
    ) {
        let host = HostSettings { when_empty, escape, ..HOST };
        let bytes = build(host.clone(), vec![guest.clone()], &files()).unwrap();
        let bundle = Bundle::open(&bytes).unwrap();
        prop_assert_eq!(&bundle.manifest().guests[0], &guest);
        prop_assert_eq!(&bundle.manifest().host, &host);
        prop_assert_eq!(bundle.manifest().version, VERSION);
        fuzz::run(&bytes);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::run(&bytes);
    }
}

#[test]
fn what_a_debug_exit_makes_of_the_status() {
    for (value, shifted, plain) in
        [(0, 1, 0), (1, 3, 1), (5, 11, 5), (0x80, 1, 0x80), (0x100, 1, 0xff), (1 << 31, 1, 0xff)]
    {
        assert_eq!(DebugStatus::Shifted.status(value), shifted, "{value:#x}");
        assert_eq!(DebugStatus::Plain.status(value), plain, "{value:#x}");
    }
    assert_eq!(DebugStatus::Shifted.status(u32::MAX), 0xff);
}
