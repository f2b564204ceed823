//! Tests of the loaders, on images made here; real kernels where an
//! environment variable names them.

extern crate std;

mod elf;
#[path = "../../../../../tests/fuzz/src/loaders.rs"]
#[expect(unreachable_pub, reason = "public where the fuzz targets call it")]
mod fuzz;
mod linux;

use super::*;
use crate::e820::ram_regions;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use memory::{GuestMemory, MemoryError};
use x86defs::{Gpr, GuestPhysAddr, Low, SegmentRegister, Width};

/// RAM of a guest: pages that were written, where there is RAM.
struct Ram {
    size: u64,
    pages: RefCell<BTreeMap<u64, [u8; 4096]>>,
}

impl Ram {
    fn new(size: u64) -> Self {
        Self { size, pages: RefCell::default() }
    }

    fn check(&self, gpa: GuestPhysAddr, bytes: usize) -> Result<(), MemoryError> {
        let end = gpa.checked_add(bytes as u64).ok_or(MemoryError::NotRam(gpa))?;
        let fits = ram_regions(self.size).iter().any(|r| r.start <= gpa && end <= r.end);
        if fits { Ok(()) } else { Err(MemoryError::NotRam(gpa)) }
    }

    fn bytes(&self, at: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.read(GuestPhysAddr::new(at), &mut bytes).unwrap();
        bytes
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes(at, 2).try_into().unwrap())
    }

    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    fn text(&self, at: u64) -> alloc::string::String {
        let bytes = (at..).map(|at| self.bytes(at, 1)[0]).take_while(|&byte| byte != 0);
        alloc::string::String::from_utf8(bytes.collect()).unwrap()
    }

    fn is_untouched(&self) -> bool {
        self.pages.borrow().is_empty()
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check(gpa, buffer.len())?;
        let pages = self.pages.borrow();
        for (byte, at) in buffer.iter_mut().zip(gpa.as_u64()..) {
            let page = pages.get(&(at / 4096));
            *byte = page.map_or(0, |page| page[usize::try_from(at % 4096).unwrap()]);
        }
        Ok(())
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        self.check(gpa, data.len())?;
        let mut pages = self.pages.borrow_mut();
        let mut at = gpa.as_u64();
        let mut data = data;
        while !data.is_empty() {
            let offset = usize::try_from(at % 4096).unwrap();
            let (now, later) = data.split_at(data.len().min(4096 - offset));
            let page = pages.entry(at / 4096).or_insert([0; 4096]);
            page[offset..offset + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            data = later;
        }
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, MemoryError> {
        Err(MemoryError::ReadOnly(gpa))
    }
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RSDP: u64 = 0xe_0000;

fn settings<'m, 'a>(memory: u64, cmdline: &'a str) -> LoadSettings<'m, 'a> {
    let rsdp = GuestPhysAddr::new(RSDP);
    LoadSettings { memory, kernel: "guest0/kernel", cmdline, initrd: None, modules: &[], rsdp }
}

/// An initial ramdisk.
fn initrd(data: &[u8]) -> Option<Module<'_>> {
    Some(Module { name: "guest0/initrd", data, cmdline: "" })
}

fn le(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn overwrite(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn unknown_images_get_a_hint() {
    let refuse = |image: &[u8]| {
        let ram = Ram::new(64 * MIB);
        let error = load(image, &ram, &settings(64 * MIB, "")).unwrap_err();
        assert!(ram.is_untouched());
        alloc::format!("{error}")
    };
    assert_eq!(refuse(&[]), "kernel: the file is empty");
    assert!(refuse(&[0]).contains("begins with [00, 00, 00, 00]"));
    assert!(refuse(b"\x1f\x8b\x08\0").contains("gzip; unpack it first"));
    assert!(refuse(b"MZ\0\0").contains("PE program that is no Linux kernel"));
    assert!(refuse(b"070701").contains("cpio archive, perhaps an initrd"));
}

#[test]
fn images_for_other_machines_are_named() {
    let refuse = |image: &[u8]| {
        let error = load(image, &Ram::new(64 * MIB), &settings(64 * MIB, "")).unwrap_err();
        alloc::format!("{error}")
    };
    let with = |size: usize, parts: &[(usize, &[u8])]| {
        let mut image = vec![0; size];
        parts.iter().for_each(|(at, bytes)| overwrite(&mut image, *at, bytes));
        image
    };
    let bios = with(0x2_0000, &[(0x1_fff0, b"\xea\x5b\xe0\0\xf006/23/99\0\xfc\0")]);
    assert!(refuse(&bios).contains("a PC BIOS image (SeaBIOS)"));
    assert!(refuse(&bios[1..]).contains("no bzImage"), "not a multiple of 64 KiB");
    let qboot = with(0x1_0000, &[(0xfff0, b"\xe9\x8d\xff\x66\x90")]);
    assert!(refuse(&qboot).contains("a firmware image"));
    assert!(refuse(&qboot[8..]).contains("no bzImage"), "not whole pages");
    let forward = with(0x1_0000, &[(0xfff0, b"\xe9\x8d\0\x66\x90")]);
    assert!(refuse(&forward).contains("no bzImage"), "a jump out of the image");
    let uefi = with(0x2_0000, &[(0x28, b"_FVH")]);
    assert!(refuse(&uefi).contains("a UEFI firmware image (OVMF)"));
    assert!(refuse(&with(1024, &[(0, &[0x55, 0xaa])])).contains("an option ROM"));
    assert!(refuse(&with(1024, &[(510, &[0x55, 0xaa])])).contains("a disk image or boot sector"));
}

/// Real images for other machines: `STEWARD_TEST_FOREIGN` lists paths, separated by colons.
#[test]
fn real_foreign_images_are_named() {
    let Ok(paths) = std::env::var("STEWARD_TEST_FOREIGN") else {
        std::eprintln!("skipped: STEWARD_TEST_FOREIGN names no images");
        return;
    };
    for path in paths.split(':') {
        let image = std::fs::read(path).unwrap();
        let error = Loading::new(&image, &settings(512 * MIB, "")).unwrap_err();
        std::println!("{path}: {error}");
        assert!(matches!(error, LoadError::Foreign { .. } | LoadError::RealMode { .. }), "{error}");
    }
}

#[test]
fn tables_are_found_by_scanning() {
    let ram = Ram::new(128 * MIB);
    let config = TablesConfig { memory: 128 * MIB, vcpus: 64, uuid: [7; 16] };
    let found = write_tables(&ram, &config).unwrap();
    let scan = |from: u64, text: &[u8]| {
        (from..0x10_0000).step_by(16).find(|&at| ram.bytes(at, text.len()) == text)
    };
    assert_eq!(scan(0xe_0000, b"RSD PTR "), Some(found.rsdp.as_u64()));
    assert_eq!(scan(0xf_0000, b"_SM_"), Some(found.smbios.as_u64()));
    // The BIOS data area points to the extended one.
    let ebda = u64::from(ram.u16(0x40e)) << 4;
    assert_eq!(ebda, 0x9_fc00);
    assert_eq!((ram.u16(ebda), ram.u16(0x413)), (1, 639));
    assert_eq!(ram.u16(0x400), 0x3f8);

    let small = Ram::new(128 * MIB);
    let config = TablesConfig { vcpus: 4000, ..config };
    let error = write_tables(&small, &config).unwrap_err();
    assert!(matches!(error, TablesError::NoRoom { what: "DSDT", .. }), "{error}");
    assert!(small.is_untouched());
}
