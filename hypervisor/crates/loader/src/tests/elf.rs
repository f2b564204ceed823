//! Tests of the loaders of ELF images: PVH and Multiboot.

use super::*;
use alloc::format;
use alloc::string::ToString;
use proptest::prelude::*;
use x86defs::{CpuState, GuestPhysAddr};

/// A segment of a test image: physical and virtual address, contents, bytes in memory.
struct Segment {
    physical: u32,
    virtual_: u32,
    data: Vec<u8>,
    memory: u32,
}

fn segment(address: u32, data: &[u8], memory: u32) -> Segment {
    Segment { physical: address, virtual_: address, data: data.to_vec(), memory }
}

/// A note: three words, name and descriptor padded to 4.
fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = le(&[name.len().low32(), descriptor.len().low32(), kind]);
    for part in [name, descriptor] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn pvh_note(entry: u32) -> Vec<u8> {
    let mut notes = note(b"GNU\0", 18, &[9; 20]);
    notes.extend(note(b"Xen\0", 6, b"linux\0"));
    notes.extend(note(b"Xen\0", 18, &entry.to_le_bytes()));
    notes
}

/// An ELF32 image; segment contents start at 0x1000, each on a page of its own.
fn elf32(entry: u32, segments: &[Segment], notes: &[u8]) -> Vec<u8> {
    let count = segments.len() + usize::from(!notes.is_empty());
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 3, 0]);
    image.extend(le(&[1, entry, 52, 0, 0]));
    image.extend([52, 0, 32, 0, count.low8(), 0, 0, 0, 0, 0, 0, 0]);
    let mut offset = 0x1000u32;
    for s in segments {
        let size = s.data.len().low32();
        image.extend(le(&[1, offset, s.virtual_, s.physical, size, s.memory, 7, 0x1000]));
        offset += size.next_multiple_of(0x1000);
    }
    if !notes.is_empty() {
        image.extend(le(&[4, offset, 0, 0, notes.len().low32(), 0, 4, 4]));
    }
    image.resize(0x1000, 0);
    for s in segments {
        image.extend(&s.data);
        image.resize(image.len().next_multiple_of(0x1000), 0);
    }
    image.extend(notes);
    image
}

fn elf64(entry: u64, physical: u64, data: &[u8], notes: &[u8]) -> Vec<u8> {
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend(words(&[entry, 64, 0]));
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let size = data.len() as u64;
    image.extend(le(&[1, 7]));
    image.extend(words(&[0x1000, entry, physical, size, size + 0x1000, 0x1000]));
    image.extend(le(&[4, 4]));
    image.extend(words(&[0x800, 0, 0, notes.len() as u64, 0, 4]));
    image.resize(0x800, 0);
    image.extend(notes);
    image.resize(0x1000, 0);
    image.extend(data);
    image
}

fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let mut header = le(&[magic, flags, 0u32.wrapping_sub(magic.wrapping_add(flags))]);
    header.extend(le(addresses));
    header
}

fn refuse(image: &[u8], settings: &LoadSettings<'_, '_>) -> alloc::string::String {
    let ram = Ram::new(settings.memory);
    let error = load(image, &ram, settings).unwrap_err();
    assert!(ram.is_untouched(), "{error}");
    error.to_string()
}

const MODULES: [Module<'static>; 2] = [
    Module { name: "m/first", data: b"first", cmdline: "one=1" },
    Module { name: "an empty one", data: b"", cmdline: "" },
];

fn check_protected(state: &CpuState) {
    assert_eq!(state.cr0.bits() & 0x8000_0001, 1);
    assert_eq!((state.cr4.bits(), state.efer.bits(), state.rflags.bits()), (0, 0, 2));
    let code = state.segment(SegmentRegister::Cs);
    assert_eq!((code.base, code.limit), (0, u32::MAX));
    assert!(code.attributes.big() && !code.attributes.long());
}

#[test]
fn pvh() {
    let data: Vec<u8> = (0..5000u32).map(|i| i.low8()).collect();
    let images = [
        elf32(0x10_0000, &[segment(0x10_0000, &data, 0x4000)], &pvh_note(0x10_0010)),
        elf64(0xffff_ffff_8010_0000, 0x10_0000, &data, &pvh_note(0x10_0010)),
    ];
    for image in images {
        let ram = Ram::new(64 * MIB);
        // Earlier contents are not seen in the bss.
        ram.write(GuestPhysAddr::new(0x10_1000), &[0xff; 0x3000]).unwrap();
        let settings = LoadSettings {
            initrd: super::initrd(b"initrd"),
            modules: &MODULES,
            ..settings(64 * MIB, "test=all")
        };
        let state = load(&image, &ram, &settings).unwrap();
        check_protected(&state);
        assert_eq!(state.rip, 0x10_0010);
        assert_eq!(ram.bytes(0x10_0000, 5000), data);
        assert_eq!(ram.bytes(0x10_0000 + 5000, 0x1000), [0; 0x1000]);

        let start = state.gpr(Gpr::Rbx);
        assert_eq!(
            [0, 4, 8, 12].map(|at| ram.u32(start + at)),
            [0x336e_c578, 1, 0, 3],
            "magic, version, flags, modules"
        );
        assert_eq!(ram.text(ram.u64(start + 24)), "test=all");
        assert_eq!(ram.u64(start + 32), RSDP);
        let map = ram.u64(start + 40);
        assert_eq!((ram.u32(start + 48), ram.u32(start + 52)), (4, 0));
        assert_eq!((ram.u64(map + 72), ram.u64(map + 80)), (MIB, 63 * MIB));
        assert_eq!((ram.u32(map + 88), ram.u32(map + 16)), (1, 1));
        let modules = ram.u64(start + 16);
        for (i, (data, cmdline)) in
            [(b"initrd".as_slice(), ""), (b"first", "one=1"), (b"", "")].iter().enumerate()
        {
            let entry = modules + 32 * i as u64;
            let (at, size) = (ram.u64(entry), ram.u64(entry + 8));
            assert_eq!(ram.bytes(at, data.len()), *data);
            assert_eq!((size, at % 4096), (data.len() as u64, 0));
            assert!(at >= 0x10_0000 + 6096);
            assert_eq!(ram.text(ram.u64(entry + 16)), *cmdline);
        }
    }
}

#[test]
fn a_multiboot_header_wins_over_a_pvh_note() {
    let mut data = multiboot_header(0, &[]);
    data.resize(64, 0x90);
    let both = elf32(0x10_0020, &[segment(0x10_0000, &data, 64)], &pvh_note(0x10_0030));
    let state = load(&both, &Ram::new(4 * MIB), &settings(4 * MIB, "")).unwrap();
    assert_eq!((state.rip, state.gpr(Gpr::Rax)), (0x10_0020, 0x2bad_b002));
    let note = elf32(0x10_0020, &[segment(0x10_0000, &[0x90; 64], 64)], &pvh_note(0x10_0030));
    let state = load(&note, &Ram::new(4 * MIB), &settings(4 * MIB, "")).unwrap();
    assert_eq!((state.rip, state.gpr(Gpr::Rax)), (0x10_0030, 0));
    let alone = elf32(0x10_0020, &[segment(0x10_0000, &data, 64)], &[]);
    let state = load(&alone, &Ram::new(4 * MIB), &settings(4 * MIB, "")).unwrap();
    assert_eq!((state.rip, state.gpr(Gpr::Rax)), (0x10_0020, 0x2bad_b002));
    let neither = elf32(0x10_0020, &[segment(0x10_0000, &[0x90; 64], 64)], &[]);
    assert!(refuse(&neither, &settings(4 * MIB, "")).contains("neither a PVH note"));
}

#[test]
fn a_damaged_note_of_another_hides_none_behind_it() {
    // GNU's ABI tag has 16 bytes.
    let mut notes = note(b"GNU\0", 1, &[0; 3]);
    notes.extend(pvh_note(0x10_0010));
    let image = elf32(0x10_0000, &[segment(0x10_0000, &[0x90; 64], 64)], &notes);
    let state = load(&image, &Ram::new(4 * MIB), &settings(4 * MIB, "")).unwrap();
    assert_eq!(state.rip, 0x10_0010);
}

fn check_info(ram: &Ram, state: &CpuState) {
    check_protected(state);
    assert_eq!(state.gpr(Gpr::Rax), 0x2bad_b002);
    let info = state.gpr(Gpr::Rbx);
    let word = |at| u64::from(ram.u32(info + at));
    assert_eq!(word(0), 0x24d, "memory, command line, modules, map, loader's name");
    assert_eq!((word(4), word(8)), (639, 63 * 1024));
    // Kernels drop the first word; what the file is called reaches them as one.
    assert_eq!(ram.text(word(16)), "guest0/kernel kernel args");
    assert_eq!(ram.text(word(64)), "Steward");
    assert_eq!(word(20), 2);
    let (start, end) = (ram.u32(word(24)), ram.u32(word(24) + 4));
    assert_eq!(ram.bytes(start.into(), 5), b"first");
    assert_eq!((end - start, start % 4096), (5, 0));
    assert_eq!(ram.text(ram.u32(word(24) + 8).into()), "m/first one=1");
    assert_eq!(ram.text(ram.u32(word(24) + 24).into()), "an_empty_one");
    assert_eq!((word(44), ram.u32(word(48))), (4 * 24, 20));
    assert_eq!(ram.u64(word(48) + 4), 0);
    assert_eq!((ram.u64(word(48) + 76), ram.u32(word(48) + 92)), (MIB, 1));
}

#[test]
fn multiboot_elf() {
    let mut data = multiboot_header(3, &[]);
    data.resize(0x40, 0x90);
    // Linked high, entered by its virtual address.
    let high = Segment { virtual_: 0xc010_0000, ..segment(0x10_0000, &data, 0x40) };
    for (entry, segment) in [(0x10_0020, segment(0x10_0000, &data, 0x40)), (0xc010_0020, high)] {
        let ram = Ram::new(64 * MIB);
        let settings = LoadSettings { modules: &MODULES, ..settings(64 * MIB, "kernel args") };
        let state = load(&elf32(entry, &[segment], &[]), &ram, &settings).unwrap();
        assert_eq!(state.rip, 0x10_0020);
        check_info(&ram, &state);
    }
}

#[test]
fn multiboot_with_addresses() {
    // A header at 0x20 of an image that is no ELF.
    let image = |addresses: [u32; 5]| {
        let mut image = vec![0x90; 0x20];
        image.extend(multiboot_header(1 << 16, &addresses));
        image.resize(0x200, 0x91);
        image
    };
    let ram = Ram::new(64 * MIB);
    let args = LoadSettings { modules: &MODULES, ..settings(64 * MIB, "kernel args") };
    let good = [0x20_0010, 0x20_0000, 0x20_0100, 0x20_1000, 0x20_0040];
    let state = load(&image(good), &ram, &args).unwrap();
    assert_eq!(state.rip, 0x20_0040);
    assert_eq!(ram.bytes(0x20_0000, 0x100), image(good)[0x10..0x110]);
    assert_eq!(ram.bytes(0x20_0100, 0x100), [0; 0x100]);
    check_info(&ram, &state);
    // 0 for both ends: all of the image, no bss.
    let ram = Ram::new(64 * MIB);
    load(&image([0x20_0010, 0x20_0000, 0, 0, 0x20_0040]), &ram, &args).unwrap();
    assert_eq!(ram.bytes(0x20_01ef, 2), [0x91, 0]);

    for (addresses, wanted) in [
        ([0x20_0000, 0x20_0010, 0, 0, 0x20_0040], "field load_addr at 0x30 is 0x200010"),
        ([0x20_0021, 0x20_0000, 0, 0, 0x20_0040], "field load_addr"),
        ([0x20_0010, 0x20_0000, 0x1f_ffff, 0, 0x20_0040], "field load_end_addr at 0x34"),
        (
            [0x20_0010, 0x20_0000, 0x20_01f1, 0, 0x20_0040],
            "what load_end_addr asks for ends at 0x201",
        ),
        ([0x20_0010, 0x20_0000, 0x20_0100, 0x20_00ff, 0x20_0040], "field bss_end_addr at 0x38"),
        ([0x20_0010, 0x20_0000, 0, 0xd000_0000, 0x20_0040], "is outside RAM"),
        ([0xa_0010, 0xa_0000, 0, 0, 0xa_0040], "is outside RAM"),
        ([0x20_0010, 0x20_0000, 0, 0, 0x20_01f0], "entry point 0x2001f0"),
    ] {
        let error = refuse(&image(addresses), &args);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_command_line_that_linux_would_cut_is_refused() {
    let image = elf32(0x10_0000, &[segment(0x10_0000, &[0x90; 64], 0x40)], &pvh_note(0x10_0010));
    let longest = "x".repeat(2047);
    load(&image, &Ram::new(64 * MIB), &settings(64 * MIB, &longest)).unwrap();
    let longer = "x".repeat(3000);
    let error = refuse(&image, &settings(64 * MIB, &longer));
    assert!(error.contains("has 3000 bytes, the kernel takes at most 2047"), "{error}");
}

#[test]
fn grub_for_another_machine_is_named() {
    let multiboot = multiboot_header(2, &[]);
    for (platform, notes, wanted) in [
        (&b"\0i386-coreboot\0"[..], vec![], Some("GRUB for coreboot")),
        (
            b"\0i386-xen_pvh\0",
            note(b"Xen\0", 18, &0x10_0000u32.to_le_bytes()),
            Some("GRUB for Xen"),
        ),
        (b"\0i386-xen\0", note(b"Xen\0", 6, b"GRUB\0"), Some("GRUB for Xen")),
        (b"\0x86_64-xen\0", note(b"Xen\0", 6, b"GRUB\0"), Some("GRUB for Xen")),
        // This one is a Multiboot kernel like any other.
        (b"\0i386-multiboot\0", vec![], None),
    ] {
        let mut core = multiboot.clone();
        core.resize(0x800, 0x90);
        core.extend(platform);
        let core = segment(0x10_0000, &core, 0x1000);
        let modules = segment(0x10_1000, b"mimg\0\0\0\0", 8);
        let image = elf32(0x10_0000, &[core, modules], &notes);
        let loaded = load(&image, &Ram::new(64 * MIB), &settings(64 * MIB, ""));
        match (loaded, wanted) {
            (Err(error), Some(wanted)) => assert!(error.to_string().contains(wanted), "{error}"),
            (loaded, wanted) => assert_eq!(loaded.is_ok(), wanted.is_none(), "{platform:?}"),
        }
    }
    // The name alone, in a kernel that boots GRUB, is nothing.
    let kernel = [&multiboot[..], b"i386-coreboot\0"].concat();
    let image = elf32(0x10_0000, &[segment(0x10_0000, &kernel, 0x40)], &[]);
    load(&image, &Ram::new(64 * MIB), &settings(64 * MIB, "")).unwrap();
}

#[test]
fn a_kernel_for_paravirtual_xen_only_is_named() {
    let image =
        elf32(0x10_0000, &[segment(0x10_0000, &[0x90; 64], 0x40)], &note(b"Xen\0", 6, b"x\0"));
    let error = refuse(&image, &settings(64 * MIB, ""));
    assert!(error.contains("a kernel for Xen's paravirtual mode only"), "{error}");
}

#[test]
fn notes_are_limited_in_all() {
    // Many segments of notes, each small, all of them the same bytes.
    let mut image = elf64(0x10_0000, 0x10_0000, &[0x90; 64], &note(b"x\0", 1, &[0; 256]));
    let (table, header) = (64 + 56, image[64 + 56..64 + 112].to_vec());
    overwrite(&mut image, 56, &200u16.to_le_bytes());
    image.resize(0x8000, 0);
    let at = 0x4000;
    overwrite(&mut image, 32, &(at as u64).to_le_bytes());
    for index in 0..200 {
        overwrite(&mut image, at + index * 56, &header);
        overwrite(&mut image, at + index * 56 + 32, &400u64.to_le_bytes());
    }
    assert_eq!(table, 120);
    let error = refuse(&image, &settings(64 * MIB, ""));
    assert!(error.contains("notes must not take more than 64 KiB together"), "{error}");
}

#[test]
fn multiboot_flags() {
    let image = |flags| {
        let mut data = multiboot_header(flags, &[]);
        data.resize(0x40, 0x90);
        elf32(0x10_0020, &[segment(0x10_0000, &data, 0x40)], &[])
    };
    let error = refuse(&image(4), &settings(4 * MIB, ""));
    assert!(error.contains("field flags at 0x1004 is 0x4"), "{error}");
    let mut damaged = image(3);
    damaged[0x1008] ^= 1;
    let error = refuse(&damaged, &settings(4 * MIB, ""));
    assert!(error.contains("Multiboot header, field checksum at 0x1008"), "{error}");
}

#[test]
fn segments_that_can_not_be() {
    let note = pvh_note(0x10_0000);
    let first = || segment(0x10_0000, &[0x90; 64], 64);
    let with = |second: Segment| {
        refuse(&elf32(0x10_0000, &[first(), second], &note), &settings(4 * MIB, ""))
    };
    for (second, wanted) in [
        (segment(0x10_1000, &[1; 64], 63), "p_filesz is greater than p_memsz"),
        (segment(0x10_0020, &[1; 4], 4), "overlaps a segment before it"),
        (segment(0x0, &[1; 4], 4), "is outside RAM"),
        (segment(0x9_f000, &[1; 4], 0x1000), "is outside RAM"),
        (segment(0xf_0000, &[1; 4], 4), "is outside RAM"),
        (segment(0xffff_f000, &[1; 4], u32::MAX), "is outside RAM"),
    ] {
        let error = with(second);
        assert!(error.contains(wanted) && error.contains("segment 1"), "{error}");
    }
    // A byte too much for the guest's memory.
    let error = with(segment(0x3f_f000, &[1; 4], 0x1001));
    assert!(error.contains("needs 0x100000 to 0x401000"), "{error}");
    assert!(error.contains("give the guest at least 5 MiB"), "{error}");
    // Contents beyond the image's end.
    let mut cut = elf32(0x10_0000, &[first()], &note);
    overwrite(&mut cut, 52 + 4, &0x10_0000u32.to_le_bytes());
    let error = refuse(&cut, &settings(4 * MIB, ""));
    assert!(error.contains("contents reach beyond the image's end"), "{error}");
    // An end that overflows.
    let mut wrapped = elf64(0, 0x10_0000, &[0; 64], &note);
    overwrite(&mut wrapped, 64 + 40, &u64::MAX.to_le_bytes());
    let error = refuse(&wrapped, &settings(4 * MIB, ""));
    assert!(error.contains("its end overflows"), "{error}");
    // A segment without contents may say any offset.
    let mut bss = elf32(0x10_0000, &[first(), segment(0x10_1000, &[], 64)], &note);
    overwrite(&mut bss, 52 + 32 + 4, &u32::MAX.to_le_bytes());
    load(&bss, &Ram::new(4 * MIB), &settings(4 * MIB, "")).unwrap();
}

#[test]
fn damaged_headers_and_notes() {
    let good = || elf32(0x10_0000, &[segment(0x10_0000, &[0x90; 64], 64)], &pvh_note(0x10_0000));
    let with = |at: usize, value: &[u8]| {
        let mut image = good();
        overwrite(&mut image, at, value);
        refuse(&image, &settings(4 * MIB, ""))
    };
    for (at, value, wanted) in [
        (4, vec![3], "ELF image, field EI_CLASS at 0x4 is 0x3"),
        (5, vec![2], "field EI_DATA at 0x5 is 0x2"),
        (16, vec![1], "field e_type at 0x10 is 0x1"),
        (18, vec![40], "field e_machine at 0x12 is 0x28"),
        (28, vec![0xff, 0xff, 0xff], "a program header ends at 0x100001f"),
        (42, vec![33], "field e_phentsize at 0x2a is 0x21"),
        (44, vec![0], "field e_phnum at 0x2c is 0x0"),
        (44, vec![1, 2], "field e_phnum at 0x2c is 0x201"),
        (52 + 32 + 16, vec![0, 0, 2], "field p_filesz of PT_NOTE at 0x54 is 0x20000"),
        (52 + 32 + 4, vec![0xff, 0xff], "a segment of notes ends at"),
    ] {
        let error = with(at, &value);
        assert!(error.contains(wanted), "{error}");
    }
    assert!(refuse(&good()[..30], &settings(4 * MIB, "")).contains("the ELF header ends at 0x34"));
    let entry = |descriptor: &[u8]| {
        let note = note(b"Xen\0", 18, descriptor);
        refuse(&elf32(0, &[segment(0x10_0000, &[0x90; 64], 64)], &note), &settings(4 * MIB, ""))
    };
    assert!(entry(&[0; 3]).contains("PVH note, field descsz at 0x2010 is 0x3"));
    assert!(entry(&[0, 0, 0, 0, 1, 0, 0, 0]).contains("field PHYS32_ENTRY"));
    assert!(entry(&[0, 0, 0x20, 0]).contains("entry point 0x200000 is in no loaded segment"));
}

#[test]
fn modules_that_do_not_fit_are_refused() {
    let big = vec![0; 4 << 20];
    let modules = [Module { name: "big", data: &big, cmdline: "" }];
    let image = elf32(0x10_0000, &[segment(0x10_0000, &[0x90; 64], 64)], &pvh_note(0x10_0000));
    let error = refuse(&image, &LoadSettings { modules: &modules, ..settings(4 * MIB, "") });
    assert!(error.contains("needs 0x100000 to 0x501000"), "{error}");
    assert!(error.contains("give the guest at least 6 MiB"), "{error}");
    let ram = Ram::new(0x50_1000);
    load(&image, &ram, &LoadSettings { modules: &modules, ..settings(0x50_1000, "") }).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever is done to an image, it loads or is refused.
    #[test]
    fn damage_never_panics(
        which in 0usize..4,
        changes in prop::collection::vec((0usize..0x2100, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..0x2100),
    ) {
        let data = multiboot_header(1 << 16, &[0x10_0000, 0x10_0000, 0, 0, 0x10_0020]);
        let mut image = match which {
            0 => elf32(0x10_0000, &[segment(0x10_0000, &data, 64)], &[]),
            1 => elf32(0x10_0000, &[segment(0x10_0000, &data, 64)], &pvh_note(0x10_0000)),
            2 => elf64(0, 0x10_0000, &data, &pvh_note(0x10_0000)),
            _ => data,
        };
        // Half of the damage goes where the headers are.
        for (i, (at, value)) in changes.into_iter().enumerate() {
            let at = if i % 2 == 0 { at % 160 } else { at };
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        image.truncate(cut.unwrap_or(usize::MAX));
        fuzz::run(&image);
    }

    #[test]
    fn damaged_linux_never_panics(
        changes in prop::collection::vec((0x1f0usize..0x270, any::<u8>()), 0..4),
        size in 0x200usize..0x4000,
    ) {
        let mut image = vec![0x5a; size.max(0x270)];
        overwrite(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        overwrite(&mut image, 0x202, b"HdrS\x0f\x02");
        for (at, value) in [(0x1f1, 1u32), (0x1f4, 0x20), (0x20e, 0), (0x230, 0x1000),
            (0x258, 0x10_0000), (0x25c, 0), (0x260, 0x10_0000)] {
            overwrite(&mut image, at, &value.to_le_bytes());
        }
        image[0x211] = 1;
        image[0x236] = 1;
        for (at, value) in changes {
            image[at] = value;
        }
        image.truncate(size);
        fuzz::run(&image);
    }
}

#[test]
fn names_of_formats() {
    let shown = format!("{} {} {}", Format::Elf, Format::Pvh, Format::Multiboot);
    assert_eq!(shown, "ELF image PVH note Multiboot header");
}
