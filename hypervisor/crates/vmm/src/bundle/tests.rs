//! Tests of the bundle.

#[path = "../../../../../tests/fuzz/src/bundle.rs"]
#[expect(unreachable_pub, reason = "public where the fuzz targets call it")]
mod fuzz;

use super::*;
use alloc::vec;
use proptest::prelude::*;

fn guest(name: &str) -> GuestSettings {
    GuestSettings {
        name: name.into(),
        memory: 512 << 20,
        vcpus: 1,
        kernel: "guest0/kernel".into(),
        initrd: Some("guest0/initrd".into()),
        modules: vec![ModuleSettings { file: "guest0/mod0".into(), cmdline: "a=1".into() }],
        cmdline: "console=ttyS0".into(),
        debug_exit: false,
        on_reset: OnReset::End,
        apic: ApicAssist::Priority,
    }
}

const HOST: HostSettings = HostSettings { exit: HostExit::IsaDebugExit, log: LogLevel::Info };

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
fn the_documented_text_is_read() {
    let json = r#"{"version":1,
 "host":{"exit":"bochs", "log":"info"},
 "guests":[{"name":"debian","memory":536870912,"vcpus":1,"kernel":"guest0/kernel","initrd":null,
  "modules":[{"file":"guest0/kernel","cmdline":"x"}],"cmdline":"quiet","debug_exit":false}],
 "files":[{"name":"guest0/kernel","size":123,"crc32":305419896}]}"#;
    let manifest = Manifest::from_json(json.as_bytes()).unwrap();
    manifest.check().unwrap();
    assert_eq!(manifest.host.exit, HostExit::Bochs);
    assert_eq!(manifest.guests[0].on_reset, OnReset::Restart, "it may be left out");
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
        (with(|g| g.memory = (1 << 40) + 4096), "to 1099511627776 (1 TiB)"),
        (with(|g| g.vcpus = 0), "\"vcpus\" is 0; it must be 1 to 64"),
        (with(|g| g.vcpus = 65), "\"vcpus\" is 65"),
        (with(|g| g.kernel = "k".into()), "\"kernel\" names the file \"k\""),
        (with(|g| g.initrd = Some("i".into())), "\"initrd\" names the file \"i\""),
        (with(|g| g.modules[0].file = "m".into()), "\"modules.file\" names the file \"m\""),
        (with(|g| g.cmdline = "a\0".into()), "\"cmdline\" holds a NUL character at byte 1"),
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
    build(HOST, vec![guest], &files()).unwrap();
}

#[test]
fn json_errors_have_line_and_column() {
    let open = |json: &str| Bundle::open(&pack(json)).unwrap_err();
    let error = open("{\"version\":1,\n \"hosts\":{}}");
    assert!(matches!(error, BundleError::Json { line: 2, column: 8, .. }), "{error:?}");
    assert!(error.to_string().contains("unknown field `hosts`, expected one of `version`"));
    assert_eq!(open("{\"version\":2,\"new\":1}"), BundleError::Version { got: 2 });
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

/// What a reader of the bundle can see of it.
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
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::run(&bytes);
    }
}
