//! Tests of Linux's boot protocol.

use super::*;
use std::string::ToString;
use x86defs::CpuState;

const CMDLINE_MAX: u32 = 2047;
const PREF: u64 = 16 * MIB;
const INIT_SIZE: u32 = 8 << 20;
const SECTORS: usize = 4;
/// Begin of the protected-mode part.
const PAYLOAD: usize = (SECTORS + 1) * 512;

/// A small bzImage of protocol 2.15, PE header and checksum included.
fn image() -> Vec<u8> {
    let mut image = vec![0; PAYLOAD + 0x2000];
    for (i, byte) in image.iter_mut().enumerate().skip(PAYLOAD) {
        *byte = (i * 31 + i / 256).low8();
    }
    let mut set = |at: usize, value: &[u8]| overwrite(&mut image, at, value);
    set(0, b"MZ");
    set(0x3c, &0x40u32.to_le_bytes());
    set(0x40, b"PE\0\0");
    set(0x58, &0x20bu16.to_le_bytes());
    set(0x1f1, &[SECTORS.low8()]);
    set(0x1f4, &0x200u32.to_le_bytes());
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(0x202, b"HdrS\x0f\x02");
    set(0x20e, &0x100u16.to_le_bytes());
    set(0x211, &[1]);
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x230, &0x20_0000u32.to_le_bytes());
    set(0x234, &[1, 21, 0x7f, 0]);
    set(0x238, &CMDLINE_MAX.to_le_bytes());
    set(0x258, &PREF.to_le_bytes());
    set(0x260, &INIT_SIZE.to_le_bytes());
    set(0x300, b"6.1.0-test (a@b) #1\0");
    seal(&mut image);
    image
}

/// Puts the checksum at the end, as Linux's build does: without complement.
fn seal(image: &mut [u8]) {
    let at = image.len() - 4;
    let crc = !crc32fast::hash(&image[..at]);
    overwrite(image, at, &crc.to_le_bytes());
}

fn changed(at: usize, value: &[u8]) -> Vec<u8> {
    let mut image = image();
    overwrite(&mut image, at, value);
    seal(&mut image);
    image
}

fn refuse(image: &[u8], settings: &LoadSettings<'_, '_>) -> LoadError {
    let ram = Ram::new(settings.memory);
    let error = load(image, &ram, settings).unwrap_err();
    assert!(ram.is_untouched(), "{error}");
    error
}

/// Walks the page tables of the state.
fn translate(ram: &Ram, state: &CpuState, address: u64) -> Option<u64> {
    let mut table = state.cr3;
    for level in (1..4).rev() {
        let entry = ram.u64(table + (address >> (12 + 9 * level) & 511) * 8);
        if entry & 1 == 0 {
            return None;
        }
        assert_ne!(entry & 2, 0, "writable");
        let base = entry & 0x000f_ffff_ffff_f000;
        if entry & 0x80 != 0 {
            let mask = (1 << (12 + 9 * level)) - 1;
            return Some(base + (address & mask));
        }
        table = base;
    }
    panic!("a 4 KiB page");
}

#[test]
fn a_kernel_is_placed_as_it_wishes() {
    let ram = Ram::new(128 * MIB);
    let initrd = vec![0x5a; 5000];
    let settings =
        LoadSettings { initrd: super::initrd(&initrd), ..settings(128 * MIB, "console=ttyS0") };
    let image = image();
    let state = load(&image, &ram, &settings).unwrap();

    assert_eq!(state.rip, PREF + 0x200);
    assert_eq!(ram.bytes(PREF, image.len() - PAYLOAD), image[PAYLOAD..]);
    assert_eq!(state.cr0.bits() & 0x8000_0001, 0x8000_0001);
    assert_eq!((state.cr4.bits(), state.efer.bits()), (0x20, 0x500));
    assert_eq!(state.rflags.bits(), 2);
    let selectors =
        [SegmentRegister::Cs, SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Ss]
            .map(|register| state.segment(register).selector);
    assert_eq!(selectors, [0x10, 0x18, 0x18, 0x18]);
    // The GDT says what the hidden parts say.
    assert_eq!(state.gdtr.limit, 31);
    let descriptor = ram.u64(state.gdtr.base + 0x10);
    let attributes = state.segment(SegmentRegister::Cs).attributes.into_bits();
    assert_eq!((descriptor >> 40).low16() & 0xf0ff, attributes);
    assert_eq!(descriptor & 0xffff, 0xffff);
    for address in [0, 0x1000, PREF + 7, 0xffff_ffff] {
        assert_eq!(translate(&ram, &state, address), Some(address));
    }
    assert_eq!(translate(&ram, &state, 1 << 32), None);

    let params = state.gpr(Gpr::Rsi);
    assert_eq!(ram.bytes(params + 0x1fe, 8), image[0x1fe..0x206]);
    assert_eq!(ram.bytes(params + 0x210, 1), [0xff], "type of loader");
    assert_eq!(ram.bytes(params + 0x1ef, 1), [0], "sentinel");
    assert_eq!(ram.u64(params + 0x70), RSDP);
    assert_eq!(ram.text(ram.u32(params + 0x228).into()), "console=ttyS0");
    assert_eq!(ram.bytes(params + 0x26c, 0x64), [0; 0x64], "beyond the header");
    let (at, size) = (ram.u32(params + 0x218), ram.u32(params + 0x21c));
    assert_eq!((u64::from(at), size), (128 * MIB - 0x2000, 5000));
    assert_eq!(ram.bytes(at.into(), 5000), initrd);

    let entries: Vec<_> = (0..ram.bytes(params + 0x1e8, 1)[0])
        .map(|i| params + 0x2d0 + 20 * u64::from(i))
        .map(|at| (ram.u64(at), ram.u64(at + 8), ram.u32(at + 16)))
        .collect();
    assert_eq!(
        entries,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x400, 2),
            (0xe_0000, 0x2_0000, 2),
            (0x10_0000, 127 * MIB, 1)
        ]
    );
}

#[test]
fn in_pieces_the_same_is_written() {
    let initrd = vec![0x5a; 5000];
    let settings =
        LoadSettings { initrd: super::initrd(&initrd), ..settings(128 * MIB, "console=ttyS0") };
    let image = image();
    let whole = Ram::new(128 * MIB);
    let state = load(&image, &whole, &settings).unwrap();
    for piece in [1, 333, 4096, 10_000] {
        let ram = Ram::new(128 * MIB);
        let mut loading = Loading::new(&image, &settings).unwrap();
        assert!(ram.is_untouched());
        let mut calls = 1;
        while loading.write(&ram, piece).unwrap() {
            calls += 1;
        }
        assert!(calls >= initrd.len() / piece, "{calls} calls");
        assert_eq!(*loading.state(), state);
        assert!(ram.pages == whole.pages, "pieces of {piece}");
    }
}

#[test]
fn a_kernel_without_a_64_bit_entry_starts_in_protected_mode() {
    let ram = Ram::new(128 * MIB);
    let image = changed(0x236, &[0x7e]);
    let state = load(&image, &ram, &settings(128 * MIB, "console=ttyS0")).unwrap();
    assert_eq!(state.rip, PREF);
    assert_eq!(ram.bytes(PREF, 64), image[PAYLOAD..][..64]);
    assert_eq!((state.cr0.bits() & 0x8000_0001, state.cr4.bits()), (1, 0));
    assert_eq!((state.efer.bits(), state.rflags.bits()), (0, 2));
    let segments =
        [SegmentRegister::Cs, SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Ss]
            .map(|register| state.segment(register));
    assert_eq!(segments.map(|segment| segment.selector), [0x10, 0x18, 0x18, 0x18]);
    assert!(segments.iter().all(|s| s.base == 0 && s.limit == u32::MAX && s.attributes.big()));
    assert!(!segments[0].attributes.long());
    let descriptor = ram.u64(state.gdtr.base + 0x10);
    assert_eq!((descriptor >> 40).low16() & 0xf0ff, segments[0].attributes.into_bits());
    assert_eq!([Gpr::Rbx, Gpr::Rbp, Gpr::Rdi].map(|gpr| state.gpr(gpr)), [0; 3]);
    let params = state.gpr(Gpr::Rsi);
    assert_eq!(ram.u64(params + 0x70), RSDP);
    assert_eq!(u64::from(ram.u32(params + 0x214)), PREF, "code32_start");
    assert_eq!(ram.text(ram.u32(params + 0x228).into()), "console=ttyS0");
}

#[test]
fn the_initrd_stays_below_its_limits() {
    let at = |memory, image: &[u8], size: usize| {
        let ram = Ram::new(memory);
        let initrd = vec![1; size];
        let settings = LoadSettings { initrd: super::initrd(&initrd), ..settings(memory, "") };
        let state = load(image, &ram, &settings).unwrap();
        let params = state.gpr(Gpr::Rsi);
        assert!(ram.u32(params + 0x21c) as usize == size);
        u64::from(ram.u32(params + 0x218))
    };
    assert_eq!(at(6 * GIB, &image(), 4096), 2 * GIB - 4096);
    let anywhere = changed(0x22c, &u32::MAX.to_le_bytes());
    assert_eq!(at(6 * GIB, &anywhere, 4096), 3 * GIB - 4096);

    // Just room enough, and a byte too much.
    let kernel_end = PREF + u64::from(INIT_SIZE);
    let memory = kernel_end + MIB;
    assert_eq!(at(memory, &image(), 1 << 20), kernel_end);
    let initrd = vec![1; (1 << 20) + 1];
    let settings = LoadSettings { initrd: super::initrd(&initrd), ..settings(memory, "") };
    assert_eq!(
        refuse(&image(), &settings),
        LoadError::TooLittleMemory { start: PREF, end: memory + 4096, ram_end: memory }
    );
    // The memory that the error names is enough.
    load(&image(), &Ram::new(memory + 4096), &LoadSettings { memory: memory + 4096, ..settings })
        .unwrap();
    // More memory is no help to a kernel that wants its initial ramdisk low.
    let low = changed(0x22c, &(kernel_end + 4095).low32().to_le_bytes());
    let settings = LoadSettings { memory: 64 * MIB, ..settings };
    let error = refuse(&low, &settings).to_string();
    assert!(error.contains("more memory is no help; make it smaller"), "{error}");
}

#[test]
fn too_little_memory_says_how_much() {
    let end = PREF + u64::from(INIT_SIZE);
    load(&image(), &Ram::new(end), &settings(end, "")).unwrap();
    let error = refuse(&image(), &settings(end - 4096, ""));
    assert_eq!(error, LoadError::TooLittleMemory { start: PREF, end, ram_end: end - 4096 });
    assert!(error.to_string().contains("give the guest at least 24 MiB"), "{error}");
}

#[test]
fn settings_that_a_kernel_can_not_take() {
    let longest = "x".repeat(CMDLINE_MAX as usize);
    load(&image(), &Ram::new(64 * MIB), &settings(64 * MIB, &longest)).unwrap();
    let longer = "x".repeat(CMDLINE_MAX as usize + 1);
    let error = refuse(&image(), &settings(64 * MIB, &longer));
    assert_eq!(error, LoadError::CommandLine { got: 2048, max: 2047 });
    let modules = [Module { name: "m", data: &[], cmdline: "" }];
    let settings = LoadSettings { modules: &modules, ..settings(64 * MIB, "") };
    assert_eq!(refuse(&image(), &settings), LoadError::Modules(1));
}

#[test]
fn damage_is_named() {
    let settings = settings(64 * MIB, "");
    for (at, value, wanted) in [
        (0x1fe, vec![0, 0], "field boot_flag at 0x1fe is 0x0"),
        (0x206, vec![0x0b, 2], "field version at 0x206 is 0x20b; boot protocol 2.12"),
        (0x201, vec![0x20], "field jump at 0x201 is 0x20"),
        (0x201, vec![0xff], "field jump at 0x201 is 0xff"),
        (0x211, vec![0], "field loadflags at 0x211 is 0x0; bit 0 (LOADED_HIGH)"),
        (0x1f1, vec![200], "protected-mode part (setup_sects and syssize) ends at"),
        (0x1f1, vec![1], "the CRC-32 of the bzImage's first"),
        (0x1f4, vec![0x10, 0], "field syssize at 0x1f4 is 0x10"),
        (0x1f4, vec![0x02, 2], "ends at 0x2a20, but the image has 0x2a00 bytes"),
        (0x230, vec![3], "field kernel_alignment at 0x230"),
        (0x230, vec![0, 0, 0, 0], "field kernel_alignment at 0x230 is 0x0"),
        (0x258, vec![0, 0, 1, 0], "field pref_address at 0x258 is 0x10000"),
        (0x258, vec![0, 0, 0x10, 1], "field pref_address at 0x258 is 0x1100000"),
        (0x25c, vec![1], "field pref_address at 0x258 is 0x101000000"),
        (0x260, vec![0, 0, 0, 0], "field init_size at 0x260 is 0x0"),
    ] {
        let error = refuse(&changed(at, &value), &settings).to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let error = refuse(&image()[..0x250], &settings).to_string();
    assert!(error.contains("Linux setup header ends at"), "{error}");
    let error = refuse(&image()[..PAYLOAD + 100], &settings).to_string();
    assert!(error.contains("ends at 0x2a00, but the image has 0xa64 bytes"), "{error}");
}

#[test]
fn the_checksum_counts() {
    let settings = settings(64 * MIB, "");
    let mut damaged = image();
    damaged[PAYLOAD + 0x1000] ^= 4;
    let error = refuse(&damaged, &settings);
    assert!(matches!(error, LoadError::Checksum { size: 0x2a00, .. }), "{error}");

    // Signing fills in two fields of the PE header and appends the signature.
    let mut signed = image();
    overwrite(&mut signed, 0x58 + 64, &[1, 2, 3, 4]);
    overwrite(&mut signed, 0x58 + 144, &[5, 6, 7, 8, 9, 10, 11, 12]);
    signed.extend([0xee; 1472]);
    load(&signed, &Ram::new(64 * MIB), &settings).unwrap();

    // Newer kernels, and programs that are no Linux, have no checksum.
    for version in ["6.15.0", "7.0", "Memtest86+ v6"] {
        let mut other = changed(0x300, version.as_bytes());
        other[PAYLOAD + 0x1000] ^= 4;
        load(&other, &Ram::new(64 * MIB), &settings).unwrap();
    }
}

#[test]
fn the_checksum_is_looked_at_in_pieces() {
    let settings = settings(64 * MIB, "");
    let whole = changed(0x58 + 64, &[0; 4]);
    let mut damaged = whole.clone();
    damaged[PAYLOAD + 0x1fff] ^= 1;
    // From pieces smaller than what counts as zeros to one that is all of it.
    for piece in [1, 3, 7, 4096, 0x29ff, 0x2a00, usize::MAX] {
        let mut good = Loading::new(&whole, &settings).unwrap();
        let mut bad = Loading::new(&damaged, &settings).unwrap();
        let steps = whole.len().div_ceil(piece);
        for step in 1..=steps {
            assert_eq!(good.check(piece), Ok(step < steps), "step {step} of {piece} bytes");
            if step < steps {
                assert_eq!(bad.check(piece), Ok(true));
            }
        }
        assert!(matches!(bad.check(piece), Err(LoadError::Checksum { .. })));
        assert_eq!(good.check(piece), Ok(false), "there is nothing left");
    }
}

#[test]
fn real_mode_programs_are_told_from_old_kernels() {
    for (version, wanted) in [
        (&b"MEMDISK 6.04 20200816\0"[..], " and the version \"MEMDISK 6.04 20200816\""),
        (
            b"1.0.0+git-20190125.36a4c85-5.1\0",
            " and the version \"1.0.0+git-20190125.36a4c85-5.1\"",
        ),
        (b"\x1b[2Jx\0", "header, as memdisk"),
    ] {
        let mut program = changed(0x206, &[3, 2]);
        overwrite(&mut program, 0x300, version);
        let error = refuse(&program, &settings(64 * MIB, "")).to_string();
        assert!(error.contains("real-mode program with Linux's setup header"), "{error}");
        assert!(error.contains(wanted), "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
    }
    // GRUB's has no version, and ends with its header.
    let mut grub = vec![0; 1024];
    overwrite(&mut grub, 0x1f1, &[1]);
    overwrite(&mut grub, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    overwrite(&mut grub, 0x202, b"HdrS\x03\x02");
    let error = refuse(&grub, &settings(64 * MIB, "")).to_string();
    assert!(error.contains("real-mode program with Linux's setup header, as"), "{error}");
}

#[test]
fn older_protocols_have_no_rsdp_field() {
    let ram = Ram::new(64 * MIB);
    let old = changed(0x206, &[0x0d, 2]);
    let state = load(&old, &ram, &settings(64 * MIB, "")).unwrap();
    assert_eq!(ram.u64(state.gpr(Gpr::Rsi) + 0x70), 0);
}

#[test]
fn a_kernel_that_is_not_relocatable_goes_to_one_mib() {
    let mut fixed = image();
    overwrite(&mut fixed, 0x230, &0x1000u32.to_le_bytes());
    overwrite(&mut fixed, 0x234, &[0]);
    overwrite(&mut fixed, 0x258, &MIB.to_le_bytes());
    seal(&mut fixed);
    let ram = Ram::new(16 * MIB);
    let state = load(&fixed, &ram, &settings(16 * MIB, "")).unwrap();
    assert_eq!(state.rip, MIB + 0x200);
}

/// Real kernels: `STEWARD_TEST_BZIMAGES` lists paths, separated by colons.
#[test]
fn real_kernels_load() {
    let Ok(paths) = std::env::var("STEWARD_TEST_BZIMAGES") else {
        std::eprintln!("skipped: STEWARD_TEST_BZIMAGES names no kernels");
        return;
    };
    for path in paths.split(':') {
        let image = std::fs::read(path).unwrap();
        let ram = Ram::new(128 * MIB);
        let initrd = vec![7; 3 << 20];
        let settings =
            LoadSettings { initrd: super::initrd(&initrd), ..settings(128 * MIB, "quiet") };
        let state = load(&image, &ram, &settings).unwrap();
        std::println!("{path}: entry {:#x}, parameters {:#x}", state.rip, state.gpr(Gpr::Rsi));
        assert_eq!(ram.bytes(state.rip, 64).len(), 64);
        assert_ne!(ram.bytes(state.rip, 64), [0; 64]);
    }
}
