//! Linux's 64-bit boot protocol, and its 32-bit one for kernels without a
//! 64-bit entry point (Linux: "The Linux/x86 Boot Protocol").
//!
//! The kernel goes to its preferred address, where it decompresses itself, the
//! initial ramdisk as high as it allows, and the rest (GDT, page tables, boot
//! parameters, command line) below 640 KiB.

pub(crate) mod checksum;

use crate::bytes::{Bytes, put};
use crate::e820::{e820, low_ram_end};
use crate::entry::{gdt32, gdt64, long_mode, protected_mode};
use crate::error::{Format, LoadError};
use crate::foreign;
use crate::place::{Order, Plan, c_string};
use crate::settings::LoadSettings;
use alloc::vec;
use alloc::vec::Vec;
use checksum::Checksum;
use config::layout::{LEGACY_HOLE_END, LOW_RAM_END};
use core::ops::Range;
use x86defs::addr::PAGE_SIZE;
use x86defs::pte::Pte;
use x86defs::{CpuState, Gpr, GuestPhysAddr, Low};

// Fields of the setup header, as offsets into the image and into `boot_params`.
const SETUP_SECTS: u64 = 0x1f1;
const SYSSIZE: u64 = 0x1f4;
const VID_MODE: usize = 0x1fa;
const BOOT_FLAG: u64 = 0x1fe;
const JUMP: u64 = 0x200;
const MAGIC: u64 = 0x202;
const VERSION: u64 = 0x206;
const KERNEL_VERSION: u64 = 0x20e;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: u64 = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: u64 = 0x22c;
const KERNEL_ALIGNMENT: u64 = 0x230;
const RELOCATABLE: u64 = 0x234;
const XLOADFLAGS: u64 = 0x236;
const CMDLINE_SIZE: u64 = 0x238;
const PREF_ADDRESS: u64 = 0x258;
const INIT_SIZE: u64 = 0x260;

// Fields of `boot_params` outside the setup header
// (Linux: "Zero Page").
const BOOT_PARAMS_SIZE: usize = 4096;
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;

const BOOT_FLAG_VALUE: u16 = 0xaa55;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// The first protocol with `xloadflags`.
const PROTOCOL_XLOADFLAGS: u16 = 0x20c;
/// The first protocol that knows `acpi_rsdp_addr`.
const PROTOCOL_RSDP: u16 = 0x20e;
/// `loadflags`: the protected-mode part is loaded at 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point's offset in the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a loader without a registered number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode`: "normal".
const VID_MODE_NORMAL: u16 = 0xffff;
/// Bytes in a sector of the setup part.
const SECTOR: u64 = 512;
/// How much is mapped one to one at entry: all of the 32-bit addresses.
const MAPPED: u64 = 1 << 32;

/// Whether the image claims to be a Linux kernel (perhaps damaged).
pub(crate) fn is_linux(image: Bytes<'_>) -> bool {
    image.u32(MAGIC) == Some(HDRS)
}

/// How the kernel is entered.
#[derive(Clone, Copy)]
enum Entry {
    /// In 64-bit mode, behind the 32-bit entry point.
    Bits64,
    /// In protected mode without paging, at the protected-mode part's begin.
    Bits32,
}

/// The setup header, checked.
struct Setup {
    version: u16,
    entry: Entry,
    /// Offset of the protected-mode part in the image.
    payload: Range<u64>,
    /// End of the setup header.
    header_end: u64,
    initrd_addr_max: u64,
    cmdline_size: u64,
    load_address: u64,
    init_size: u64,
}

impl Setup {
    fn parse(image: Bytes<'_>) -> Result<Self, LoadError> {
        let field = |field, offset, value, wanted| {
            Err(LoadError::Field { format: Format::Linux, field, offset, value, wanted })
        };
        let unsupported = |field, offset, value, wanted| {
            Err(LoadError::Unsupported { format: Format::Linux, field, offset, value, wanted })
        };
        let short = |end| LoadError::Truncated {
            what: "the Linux setup header",
            wanted: end,
            got: image.len(),
        };
        let u8 = |at| image.u8(at).ok_or(short(at + 1));
        let u16 = |at| image.u16(at).ok_or(short(at + 2));
        let u32 = |at| image.u32(at).ok_or(short(at + 4));

        let boot_flag = u16(BOOT_FLAG)?;
        if boot_flag != BOOT_FLAG_VALUE {
            return field("boot_flag", BOOT_FLAG, boot_flag.into(), "it must be 0xaa55");
        }
        let version = u16(VERSION)?;
        if version < PROTOCOL_XLOADFLAGS {
            if let Some(program) = foreign::real_mode(version_text(image)) {
                return Err(program);
            }
            return unsupported(
                "version",
                VERSION,
                version.into(),
                "boot protocol 2.12 (0x20c) or newer is needed (Linux 3.8)",
            );
        }
        let header_end = MAGIC + u64::from(u8(JUMP + 1)?);
        if header_end < INIT_SIZE + 4 || header_end > E820_TABLE as u64 {
            let wanted = "the setup header must end between 0x264 and 0x2d0";
            return field("jump", JUMP + 1, header_end - MAGIC, wanted);
        }
        if image.len() < header_end {
            return Err(short(header_end));
        }
        let loadflags = u8(LOADFLAGS)?;
        if loadflags & LOADED_HIGH == 0 {
            return unsupported(
                "loadflags",
                LOADFLAGS,
                loadflags.into(),
                "bit 0 (LOADED_HIGH) must be set: a bzImage, not a zImage",
            );
        }
        let xloadflags = u16(XLOADFLAGS)?;
        let entry = if xloadflags & XLF_KERNEL_64 != 0 { Entry::Bits64 } else { Entry::Bits32 };

        // 0 stands for 4, for the sake of very old kernels.
        let sectors = match u8(SETUP_SECTS)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let start = (sectors + 1) * SECTOR;
        if start < header_end {
            let wanted = "the setup part must hold the setup header";
            return field("setup_sects", SETUP_SECTS, sectors, wanted);
        }
        let size = u64::from(u32(SYSSIZE)?) * 16;
        if size < ENTRY_64 {
            let wanted = "the protected-mode part must hold its entry point at 0x200";
            return field("syssize", SYSSIZE, size / 16, wanted);
        }
        // The size is in paragraphs: the file may end within the last one.
        let end = (start + size).min(image.len());
        if start + size - end >= 16 {
            let what = "the protected-mode part (setup_sects and syssize)";
            return Err(LoadError::Truncated { what, wanted: start + size, got: image.len() });
        }

        let load_address = image.u64(PREF_ADDRESS).ok_or(short(PREF_ADDRESS + 8))?;
        let alignment = u32(KERNEL_ALIGNMENT)?;
        if !alignment.is_power_of_two() {
            let wanted = "it must be a power of two";
            return field("kernel_alignment", KERNEL_ALIGNMENT, alignment.into(), wanted);
        }
        let relocatable = u8(RELOCATABLE)? != 0;
        if !(LEGACY_HOLE_END..MAPPED).contains(&load_address)
            || relocatable && !load_address.is_multiple_of(alignment.into())
        {
            let wanted = "it must be a multiple of kernel_alignment between 1 MiB and 4 GiB";
            return field("pref_address", PREF_ADDRESS, load_address, wanted);
        }
        let init_size = u64::from(u32(INIT_SIZE)?);
        if init_size == 0 {
            return field("init_size", INIT_SIZE, init_size, "it must not be 0");
        }
        Ok(Self {
            version,
            entry,
            payload: start..end,
            header_end,
            initrd_addr_max: u32(INITRD_ADDR_MAX)?.into(),
            cmdline_size: u32(CMDLINE_SIZE)?.into(),
            load_address,
            init_size,
        })
    }
}

/// The text that names the version: "6.1.0-13-amd64 (who@built.it) ..." in a Linux kernel.
/// Empty where the header points to none.
fn version_text(image: Bytes<'_>) -> &[u8] {
    /// More than any kernel's release has.
    const LONGEST: u64 = 64;
    let Some(at) = image.u16(KERNEL_VERSION).filter(|at| *at != 0) else { return &[] };
    let at = u64::from(at) + JUMP;
    let text = image.get(at, LONGEST.min(image.len().saturating_sub(at))).unwrap_or_default();
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Checks what the headers say and decides what goes where. The checksum, if the image has
/// one, is the caller's to look at.
pub(crate) fn plan<'a>(
    image: Bytes<'a>,
    settings: &LoadSettings<'_, 'a>,
) -> Result<(Plan<'a>, CpuState, Option<Checksum<'a>>), LoadError> {
    let setup = Setup::parse(image)?;
    let checksum = Checksum::of(image, setup.payload.end);
    if !settings.modules.is_empty() {
        return Err(LoadError::Modules(settings.modules.len()));
    }
    let got = settings.cmdline.len() as u64;
    if got > setup.cmdline_size {
        return Err(LoadError::CommandLine { got, max: setup.cmdline_size });
    }

    let mut plan = Plan::new(settings.memory);
    let payload = image.get(setup.payload.start, setup.payload.end - setup.payload.start);
    let payload = payload.unwrap_or_default();
    let start = setup.load_address;
    let kernel = start..start + setup.init_size.max(payload.len() as u64);
    if !plan.is_ram(&kernel) {
        let (from, to) = (start, low_ram_end(settings.memory));
        let error = LoadError::NoRoom { what: "the kernel", size: kernel.end - start, from, to };
        return Err(settings.explain(error, kernel));
    }
    plan.take(kernel.clone());
    plan.put(start, payload);

    let mut ramdisk = (0, 0);
    if let Some(initrd) = settings.initrd.map(|file| file.data).filter(|data| !data.is_empty()) {
        let size = initrd.len() as u64;
        let top = (setup.initrd_addr_max + 1).min(low_ram_end(settings.memory));
        // Not below the kernel: it may use what is there while it starts.
        let within = kernel.end..top;
        let at = plan
            .place("the initrd", size, PAGE_SIZE, within, Order::Highest)
            .map_err(|error| settings.explain(error, kernel.clone()))?;
        plan.put(at, initrd);
        ramdisk = (at, size);
    }

    let low = |plan: &mut Plan<'a>, what, data: Vec<u8>, align| {
        let within = 0..LOW_RAM_END;
        let at = plan.place(what, data.len() as u64, align, within, Order::Lowest)?;
        plan.put(at, data);
        Ok::<u64, LoadError>(at)
    };
    let gdt = match setup.entry {
        Entry::Bits64 => gdt64(),
        Entry::Bits32 => gdt32(),
    };
    let gdt = GuestPhysAddr::new(low(&mut plan, "the GDT", gdt, PAGE_SIZE)?);
    let stack = plan.place("a stack", PAGE_SIZE, PAGE_SIZE, 0..LOW_RAM_END, Order::Lowest)?;
    let mut state = match setup.entry {
        Entry::Bits64 => {
            let size = PAGE_TABLES * PAGE_SIZE;
            let within = 0..LOW_RAM_END;
            let tables = plan.place("the page tables", size, PAGE_SIZE, within, Order::Lowest)?;
            plan.put(tables, identity_map(tables));
            long_mode(start + ENTRY_64, GuestPhysAddr::new(tables), gdt)
        }
        // EBX, EBP and EDI must be 0, as they are.
        Entry::Bits32 => protected_mode(start.low32(), gdt),
    };
    let cmdline = low(&mut plan, "the command line", c_string(settings.cmdline), 16)?;
    let params = boot_params(image, &setup, settings, ramdisk, cmdline);
    let params = low(&mut plan, "the boot parameters", params, PAGE_SIZE)?;
    state.set(Gpr::Rsi, params);
    state.set(Gpr::Rsp, stack + PAGE_SIZE);
    Ok((plan, state, checksum))
}

fn boot_params(
    image: Bytes<'_>,
    setup: &Setup,
    settings: &LoadSettings<'_, '_>,
    ramdisk: (u64, u64),
    cmdline: u64,
) -> Vec<u8> {
    let mut params = vec![0; BOOT_PARAMS_SIZE];
    let header = image.get(SETUP_SECTS, setup.header_end - SETUP_SECTS).unwrap_or_default();
    put(&mut params, 0x1f1, header);
    put(&mut params, VID_MODE, &VID_MODE_NORMAL.to_le_bytes());
    put(&mut params, TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(&mut params, CODE32_START, &setup.load_address.low32().to_le_bytes());
    put(&mut params, RAMDISK_IMAGE, &ramdisk.0.low32().to_le_bytes());
    put(&mut params, RAMDISK_SIZE, &ramdisk.1.low32().to_le_bytes());
    put(&mut params, CMD_LINE_PTR, &cmdline.low32().to_le_bytes());
    if setup.version >= PROTOCOL_RSDP {
        put(&mut params, ACPI_RSDP_ADDR, &settings.rsdp.as_u64().to_le_bytes());
    }
    let map = e820(settings.memory);
    put(&mut params, E820_ENTRIES, &[map.len().low8()]);
    let entries: Vec<u8> = map
        .iter()
        .flat_map(|entry| {
            let kind = (entry.kind as u32).to_le_bytes();
            let words = [entry.base.as_u64().to_le_bytes(), entry.size.to_le_bytes()];
            words.into_iter().flatten().chain(kind)
        })
        .collect();
    put(&mut params, E820_TABLE, &entries);
    params
}

/// A table of level 4, one of level 3, and one of level 2 for each GiB mapped.
const PAGE_TABLES: u64 = 2 + (MAPPED >> 30);

/// Page tables at `base` that map [`MAPPED`] bytes one to one in 2 MiB pages.
fn identity_map(base: u64) -> Vec<u8> {
    let table = (Pte::P | Pte::W).bits();
    let page = (Pte::P | Pte::W | Pte::PS).bits();
    let entries = PAGE_SIZE / 8;
    let level4 = (0..entries).map(|i| if i == 0 { (base + PAGE_SIZE) | table } else { 0 });
    let level3 = (0..entries)
        .map(|i| if i < MAPPED >> 30 { (base + (2 + i) * PAGE_SIZE) | table } else { 0 });
    let level2 = (0..MAPPED >> 21).map(|i| i << 21 | page);
    level4.chain(level3).chain(level2).flat_map(u64::to_le_bytes).collect()
}
