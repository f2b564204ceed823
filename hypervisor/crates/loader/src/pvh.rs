//! The PVH boot protocol (Xen: "x86/HVM direct boot ABI"): an ELF note names a
//! 32-bit entry point, and EBX points to what a firmware would tell.

use crate::e820::e820;
use crate::elf::Elf;
use crate::entry::{gdt32, protected_mode};
use crate::error::{Format, LoadError};
use crate::place::{Plan, c_string};
use crate::settings::LoadSettings;
use alloc::vec::Vec;
use x86defs::addr::PAGE_SIZE;
use x86defs::{CpuState, Gpr, GuestPhysAddr, Low};

/// The note's name.
pub(crate) const NOTE_NAME: &[u8] = b"Xen\0";
/// The note's type: `XEN_ELFNOTE_PHYS32_ENTRY`.
pub(crate) const NOTE_ENTRY: u32 = 18;
/// `hvm_start_info.magic`.
const START_MAGIC: u32 = 0x336e_c578;
/// `hvm_start_info.version`: with a memory map.
const START_VERSION: u32 = 1;

/// The longest command line, in bytes without the NUL. The protocol has no limit; Linux
/// cuts what is longer without a word (COMMAND_LINE_SIZE, 2048 on x86).
const MAX_CMDLINE: u64 = 2047;

/// The entry point that a PVH note names, if there is one.
pub(crate) fn find_entry(elf: &Elf<'_>) -> Result<Option<u32>, LoadError> {
    let Some((offset, descriptor)) = elf.note(NOTE_NAME, NOTE_ENTRY)? else { return Ok(None) };
    let field = |field, value, wanted| LoadError::Field {
        format: Format::Pvh,
        field,
        offset,
        value,
        wanted,
    };
    let entry = match descriptor.len() {
        4 => descriptor.u32(0).map(u64::from),
        8 => descriptor.u64(0),
        _ => None,
    }
    .ok_or(field("descsz", descriptor.len(), "it must be 4 or 8"))?;
    u32::try_from(entry)
        .map(Some)
        .map_err(|_| field("PHYS32_ENTRY", entry, "it must be below 4 GiB"))
}

/// Checks everything and decides what goes where.
pub(crate) fn plan<'a>(
    elf: &Elf<'a>,
    entry: u32,
    settings: &LoadSettings<'_, 'a>,
) -> Result<(Plan<'a>, CpuState), LoadError> {
    let got = settings.cmdline.len() as u64;
    if got > MAX_CMDLINE {
        return Err(LoadError::CommandLine { got, max: MAX_CMDLINE });
    }
    let mut plan = Plan::new(settings.memory);
    let loaded = elf.place_segments(&mut plan, settings.memory)?;
    loaded.check_entry(entry.into())?;

    let mut modules = Vec::new();
    let mut count = 0u32;
    for module in settings.all_modules() {
        let start = plan.place_data("a module", module.data, PAGE_SIZE, loaded.end())?;
        let cmdline =
            plan.place_data("a module's command line", c_string(module.cmdline), 16, 0)?;
        // hvm_modlist_entry: paddr, size, cmdline_paddr, reserved.
        for word in [start, module.data.len() as u64, cmdline, 0] {
            modules.extend_from_slice(&word.to_le_bytes());
        }
        count += 1;
    }
    let modules = plan.place_data("the list of modules", modules, 16, 0)?;

    let entries = e820(settings.memory);
    let mut map = Vec::new();
    for range in &entries {
        // hvm_memmap_table_entry: addr, size, type, reserved.
        map.extend_from_slice(&range.base.as_u64().to_le_bytes());
        map.extend_from_slice(&range.size.to_le_bytes());
        map.extend_from_slice(&(range.kind as u32).to_le_bytes());
        map.extend_from_slice(&[0; 4]);
    }
    let map = plan.place_data("the memory map", map, 16, 0)?;
    let cmdline = plan.place_data("the command line", c_string(settings.cmdline), 16, 0)?;

    // hvm_start_info.
    let mut start = Vec::new();
    for word in [START_MAGIC, START_VERSION, 0, count] {
        start.extend_from_slice(&word.to_le_bytes());
    }
    let modules = if count == 0 { 0 } else { modules };
    for word in [modules, cmdline, settings.rsdp.as_u64(), map] {
        start.extend_from_slice(&word.to_le_bytes());
    }
    for word in [entries.len().low32(), 0] {
        start.extend_from_slice(&word.to_le_bytes());
    }
    let start = plan.place_data("the start information", start, 16, 0)?;
    let gdt = plan.place_data("the GDT", gdt32(), 16, 0)?;

    let mut state = protected_mode(entry, GuestPhysAddr::new(gdt));
    state.set(Gpr::Rbx, start);
    Ok((plan, state))
}
