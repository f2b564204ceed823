//! The Multiboot Specification, version 0.6.96: a header in the image's first
//! 8 KiB says how to load it, and EBX points to what a firmware would tell.

use crate::bytes::{Bytes, put};
use crate::e820::{e820, low_ram_end};
use crate::elf::{Elf, Loaded};
use crate::entry::{gdt32, protected_mode};
use crate::error::{Format, LoadError, SegmentFault};
use crate::place::{Plan, c_string};
use crate::settings::LoadSettings;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use config::layout::{LEGACY_HOLE_END, LOW_RAM_END};
use x86defs::addr::PAGE_SIZE;
use x86defs::{CpuState, Gpr, GuestPhysAddr, Low};

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// Value in EAX at the kernel's entry.
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header must lie in the image's first bytes, this many.
const SEARCHED: u64 = 8192;
/// Header flag: modules on page boundaries. They always are.
const PAGE_ALIGN: u32 = 1 << 0;
/// Header flag: memory information wanted. It is always given.
const MEMORY_INFO: u32 = 1 << 1;
/// Header flags that the loader must understand.
const MANDATORY: u32 = 0xffff;
/// Header flag: the address fields are valid.
const ADDRESSES: u32 = 1 << 16;

// The information structure ("Boot information format").
const INFO_SIZE: usize = 116;
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
/// Size of an entry of the memory map, without the field that holds it.
const MAP_ENTRY_SIZE: u32 = 20;

/// A header that was found.
pub(crate) struct Header {
    at: u64,
    flags: u32,
}

/// Looks for the header: aligned, with a checksum that holds.
pub(crate) fn find_header(image: Bytes<'_>) -> Result<Option<Header>, LoadError> {
    let mut suspect = None;
    for at in (0..SEARCHED - 8).step_by(4) {
        if image.u32(at) != Some(HEADER_MAGIC) {
            continue;
        }
        let (Some(flags), Some(checksum)) = (image.u32(at + 4), image.u32(at + 8)) else {
            break;
        };
        if HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0 {
            return Ok(Some(Header { at, flags }));
        }
        suspect.get_or_insert((at + 8, checksum));
    }
    match suspect {
        Some((offset, checksum)) => Err(LoadError::Field {
            format: Format::Multiboot,
            field: "checksum",
            offset,
            value: checksum.into(),
            wanted: "magic, flags and checksum must add up to 0",
        }),
        None => Ok(None),
    }
}

/// Checks everything and decides what goes where.
pub(crate) fn plan<'a>(
    image: Bytes<'a>,
    elf: Option<&Elf<'a>>,
    header: &Header,
    settings: &LoadSettings<'_, 'a>,
) -> Result<(Plan<'a>, CpuState), LoadError> {
    let unknown = header.flags & MANDATORY & !(PAGE_ALIGN | MEMORY_INFO);
    if unknown != 0 {
        return Err(LoadError::Unsupported {
            format: Format::Multiboot,
            field: "flags",
            offset: header.at + 4,
            value: header.flags.into(),
            wanted: "of bits 15:0 only 0 (aligned modules) and 1 (memory map) are known; there \
                     is no video mode to offer",
        });
    }
    let mut plan = Plan::new(settings.memory);
    let loaded = match elf {
        _ if header.flags & ADDRESSES != 0 => place_flat(image, header, &mut plan, settings)?,
        Some(elf) => elf.place_segments(&mut plan, settings.memory)?,
        None => {
            return Err(LoadError::Unsupported {
                format: Format::Multiboot,
                field: "flags",
                offset: header.at + 4,
                value: header.flags.into(),
                wanted: "an image that is not ELF must give its addresses (bit 16)",
            });
        }
    };
    loaded.check_entry(loaded.entry)?;
    let entry =
        u32::try_from(loaded.entry).map_err(|_| LoadError::Entry { entry: loaded.entry })?;
    let info = place_info(&mut plan, &loaded, settings)
        .map_err(|error| settings.explain(error, loaded.start()..loaded.end()))?;
    let gdt = plan.place_data("the GDT", gdt32(), 16, 0)?;
    let mut state = protected_mode(entry, GuestPhysAddr::new(gdt));
    state.set(Gpr::Rax, LOADER_MAGIC.into());
    state.set(Gpr::Rbx, info);
    Ok((plan, state))
}

/// Loads by the header's address fields.
fn place_flat<'a>(
    image: Bytes<'a>,
    header: &Header,
    plan: &mut Plan<'a>,
    settings: &LoadSettings<'_, 'a>,
) -> Result<Loaded, LoadError> {
    let word = |offset| {
        image.u32(header.at + offset).map(u64::from).ok_or(LoadError::Truncated {
            what: "the Multiboot header",
            wanted: header.at + offset + 4,
            got: image.len(),
        })
    };
    let [header_addr, load_addr, load_end, bss_end, entry] =
        [word(12)?, word(16)?, word(20)?, word(24)?, word(28)?];
    let field = |field, offset: u64, value, wanted| LoadError::Field {
        format: Format::Multiboot,
        field,
        offset: header.at + offset,
        value,
        wanted,
    };
    let file_start = header_addr
        .checked_sub(load_addr)
        .and_then(|before| header.at.checked_sub(before))
        .ok_or(field(
            "load_addr",
            16,
            load_addr,
            "it must not be above header_addr, nor so far below that it is before the image",
        ))?;
    // 0 stands for all of the image, and for no bss.
    let size = match load_end {
        0 => image.len() - file_start,
        end => end.checked_sub(load_addr).ok_or(field(
            "load_end_addr",
            20,
            end,
            "it must be 0 or not below load_addr",
        ))?,
    };
    let contents = image.get(file_start, size).ok_or(LoadError::Truncated {
        what: "what load_end_addr asks for",
        wanted: file_start.saturating_add(size),
        got: image.len(),
    })?;
    let contents_end = load_addr + size;
    let end = match bss_end {
        0 => contents_end,
        end if end >= contents_end => end,
        end => {
            let wanted = "it must be 0 or not below the end of what is loaded";
            return Err(field("bss_end_addr", 24, end, wanted));
        }
    };
    let range = load_addr..end;
    if !plan.is_ram(&range) {
        let error = LoadError::Segment {
            index: 0,
            start: load_addr,
            end,
            fault: SegmentFault::NotRam,
            memory: settings.memory,
        };
        return Err(settings.explain(error, range));
    }
    plan.take(range.clone());
    plan.put(load_addr, contents);
    plan.zero(contents_end..end);
    Ok(Loaded { entry, segments: Vec::from([range]) })
}

/// A command line as a Multiboot kernel expects it: the file's name, then the rest. The
/// specification leaves it open. GRUB Legacy and QEMU do so; GRUB 2 leaves the name out, and
/// kernels that drop the first word (Xen) do it unless the loader's name begins with
/// "GRUB 2".
fn named(name: &str, cmdline: &str) -> String {
    // The kernel takes what is behind the first blank for the command line.
    let mut line: String = name.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
    if !cmdline.is_empty() {
        line.push(' ');
        line.push_str(cmdline);
    }
    line
}

/// Places the modules, the memory map, the strings and the structure that
/// points to them all.
fn place_info<'a>(
    plan: &mut Plan<'a>,
    loaded: &Loaded,
    settings: &LoadSettings<'_, 'a>,
) -> Result<u64, LoadError> {
    let mut modules = Vec::new();
    let mut count = 0u32;
    for module in settings.all_modules() {
        let start = plan.place_data("a module", module.data, PAGE_SIZE, loaded.end())?;
        let cmdline = c_string(&named(module.name, module.cmdline));
        let cmdline = plan.place_data("a module's command line", cmdline, 16, 0)?;
        for word in [start, start + module.data.len() as u64, cmdline, 0] {
            modules.extend_from_slice(&word.low32().to_le_bytes());
        }
        count += 1;
    }
    let modules = plan.place_data("the list of modules", modules, 16, 0)?;

    let mut map = Vec::new();
    for range in e820(settings.memory) {
        map.extend_from_slice(&MAP_ENTRY_SIZE.to_le_bytes());
        map.extend_from_slice(&range.base.as_u64().to_le_bytes());
        map.extend_from_slice(&range.size.to_le_bytes());
        map.extend_from_slice(&(range.kind as u32).to_le_bytes());
    }
    let map_size = map.len().low32();
    let map = plan.place_data("the memory map", map, 16, 0)?;
    let cmdline = c_string(&named(settings.kernel, settings.cmdline));
    let cmdline = plan.place_data("the command line", cmdline, 16, 0)?;
    let name = plan.place_data("the loader's name", c_string("Steward"), 16, 0)?;

    let mut info = vec![0; INFO_SIZE];
    let flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MAP | INFO_LOADER_NAME;
    let upper = low_ram_end(settings.memory).saturating_sub(LEGACY_HOLE_END) / 1024;
    let words: [(usize, u32); 9] = [
        (0, flags),
        (4, (LOW_RAM_END / 1024).low32()),
        (8, upper.low32()),
        (16, cmdline.low32()),
        (20, count),
        (24, modules.low32()),
        (44, map_size),
        (48, map.low32()),
        (64, name.low32()),
    ];
    for (offset, word) in words {
        put(&mut info, offset, &word.to_le_bytes());
    }
    plan.place_data("the boot information", info, 16, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_aligned_checked_and_early() {
        let header = |at: usize, checksum: u32| {
            let mut image = vec![0; 0x3000];
            put(&mut image, at, &HEADER_MAGIC.to_le_bytes());
            put(&mut image, at + 4, &3u32.to_le_bytes());
            put(&mut image, at + 8, &checksum.to_le_bytes());
            find_header(Bytes(&image)).map(|header| header.map(|header| (header.at, header.flags)))
        };
        let good = 0u32.wrapping_sub(HEADER_MAGIC + 3);
        assert_eq!(header(0, good), Ok(Some((0, 3))));
        assert_eq!(header(8192 - 12, good), Ok(Some((8192 - 12, 3))));
        assert_eq!(header(8192 - 8, good), Ok(None));
        assert_eq!(header(2, good), Ok(None));
        assert!(matches!(header(64, 1), Err(LoadError::Field { offset: 72, value: 1, .. })));
    }
}
