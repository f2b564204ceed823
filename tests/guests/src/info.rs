//! Information from the loader: command line, memory map, ACPI root, modules.
//!
//! Two loaders are understood: PVH (`hvm_start_info`) and Multiboot 1.

use core::ptr;

/// EAX after a Multiboot 1 boot.
pub const MULTIBOOT_MAGIC: u32 = 0x2bad_b002;
/// The magic number of PVH's start information.
pub const PVH_MAGIC: u32 = 0x336e_c578;

/// One range of the memory map.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// 1 is RAM; other values as in E820.
    pub kind: u32,
}

/// Reads a `T` at a linear address (up to 4 GiB the same as the physical one).
#[must_use]
pub fn peek<T: Copy>(address: u64) -> T {
    let at = core::hint::black_box(ptr::with_exposed_provenance(cast(address)));
    // SAFETY: the first 4 GiB are mapped one to one, and callers pass addresses
    // of the loader's or the firmware's tables, or of memory that they mapped.
    let value = unsafe { ptr::read_unaligned(at) };
    // The read happens even if nobody looks at the value.
    core::hint::black_box(value)
}

fn cast(address: u64) -> usize {
    usize::try_from(address).unwrap_or(0)
}

fn word(offset: u64) -> u32 {
    peek(u64::from(crate::boot::registers().1) + offset)
}

fn quad(offset: u64) -> u64 {
    peek(u64::from(crate::boot::registers().1) + offset)
}

/// Whether a Multiboot loader started the guest.
#[must_use]
pub fn is_multiboot() -> bool {
    crate::boot::registers().0 == MULTIBOOT_MAGIC
}

/// Whether PVH's start information is there.
#[must_use]
pub fn is_pvh() -> bool {
    !is_multiboot() && word(0) == PVH_MAGIC
}

/// A text that ends with a zero byte, at a physical address.
#[must_use]
pub fn c_string(address: u64) -> &'static str {
    let mut length = 0;
    while length < 4096 && peek::<u8>(address + length) != 0 {
        length += 1;
    }
    // SAFETY: the bytes were just read, are mapped, and nobody writes them.
    let bytes = unsafe {
        core::slice::from_raw_parts(ptr::with_exposed_provenance(cast(address)), cast(length))
    };
    core::str::from_utf8(bytes).unwrap_or("")
}

/// The command line.
#[must_use]
pub fn command_line() -> &'static str {
    let address = if is_multiboot() {
        if word(0) & 4 == 0 { 0 } else { u64::from(word(16)) }
    } else if is_pvh() {
        quad(24)
    } else {
        0
    };
    if address == 0 { "" } else { c_string(address) }
}

/// Whether a word stands on the command line.
#[must_use]
pub fn flag(name: &str) -> bool {
    command_line().split_ascii_whitespace().any(|word| word == name)
}

/// The value of `name=value` on the command line.
#[must_use]
pub fn option(name: &str) -> Option<&'static str> {
    command_line()
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The number `name=value` on the command line, decimal.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    option(name)?.parse().ok()
}

/// Address of ACPI's root pointer, 0 where the loader does not say.
#[must_use]
pub fn rsdp() -> u64 {
    if is_pvh() { quad(32) } else { 0 }
}

/// The `index`th module: start and length.
#[must_use]
pub fn module(index: u32) -> Option<(u64, u64)> {
    if is_multiboot() {
        if word(0) & 8 == 0 || index >= word(20) {
            return None;
        }
        let entry = u64::from(word(24)) + u64::from(index) * 16;
        let (start, end) = (peek::<u32>(entry), peek::<u32>(entry + 4));
        Some((u64::from(start), u64::from(end.checked_sub(start)?)))
    } else if is_pvh() && index < word(12) {
        let entry = quad(16) + u64::from(index) * 32;
        Some((peek(entry), peek(entry + 8)))
    } else {
        None
    }
}

/// Calls `visit` with each range of the memory map; returns how many there were.
pub fn memory_map(mut visit: impl FnMut(Range)) -> u32 {
    let mut count = 0;
    if is_multiboot() {
        if word(0) & 0x40 == 0 {
            return 0;
        }
        let (mut entry, end) = (u64::from(word(48)), u64::from(word(48)) + u64::from(word(44)));
        while entry < end {
            visit(Range { start: peek(entry + 4), size: peek(entry + 12), kind: peek(entry + 20) });
            count += 1;
            entry += u64::from(peek::<u32>(entry)) + 4;
        }
    } else if is_pvh() && word(4) >= 1 {
        let table = quad(40);
        for index in 0..u64::from(word(48)) {
            let entry = table + index * 24;
            visit(Range { start: peek(entry), size: peek(entry + 8), kind: peek(entry + 16) });
            count += 1;
        }
    }
    count
}

/// Bytes of RAM that the map names.
#[must_use]
pub fn ram_bytes() -> u64 {
    let mut total = 0;
    memory_map(|range| total += if range.kind == 1 { range.size } else { 0 });
    total
}
