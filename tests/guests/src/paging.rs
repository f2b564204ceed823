//! Editing the page tables made at boot.
//!
//! Tables come from a small pool in the image. Every function here flushes what
//! it changes with INVLPG unless it says otherwise.

use crate::boot;
use crate::harness::Shared;
use core::arch::asm;
use core::ptr;

/// Entry bits.
pub mod bits {
    /// Present.
    pub const PRESENT: u64 = 1;
    /// Writable.
    pub const WRITE: u64 = 2;
    /// Ring 3 may use it.
    pub const USER: u64 = 4;
    /// Write-through.
    pub const PWT: u64 = 8;
    /// Uncached.
    pub const PCD: u64 = 0x10;
    /// Accessed.
    pub const ACCESSED: u64 = 0x20;
    /// Dirty.
    pub const DIRTY: u64 = 0x40;
    /// A large page.
    pub const LARGE: u64 = 0x80;
    /// Survives a move to CR3.
    pub const GLOBAL: u64 = 0x100;
    /// Not to be executed.
    pub const NX: u64 = 1 << 63;
    /// The address in an entry.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}
use bits::{ADDRESS, LARGE, PRESENT, USER, WRITE};

const POOL_PAGES: usize = 64;
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Pool([[u64; 512]; POOL_PAGES]);
static POOL: Shared<Pool> = Shared::new(Pool([[0; 512]; POOL_PAGES]));
static POOL_USED: Shared<usize> = Shared::new(0);

/// Takes a zeroed page from the pool: its physical address. Panics when the
/// pool is empty (a bug of the test).
#[must_use]
pub fn table() -> u64 {
    let used = POOL_USED.get();
    assert!(used < POOL_PAGES, "the page-table pool is empty");
    POOL_USED.set(used + 1);
    POOL.address().addr() as u64 + (used as u64) * 4096
}

fn slot(address: u64) -> *mut u64 {
    ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

/// Reads the entry at a physical address.
#[must_use]
pub fn read_entry(address: u64) -> u64 {
    // SAFETY: callers pass addresses inside page tables, below 4 GiB.
    unsafe { slot(address).read_volatile() }
}

/// Writes the entry at a physical address, without flushing.
pub fn write_entry(address: u64, value: u64) {
    // SAFETY: callers pass addresses inside page tables, below 4 GiB.
    unsafe { slot(address).write_volatile(value) }
}

fn index(linear: u64, level: u32) -> u64 {
    linear >> (12 + 9 * level) & 511
}

/// Flushes the translation of one linear address.
pub fn invlpg(linear: u64) {
    // SAFETY: only drops a cached translation.
    unsafe { asm!("invlpg [{}]", in(reg) linear, options(nostack)) };
}

/// Flushes everything that is not global.
pub fn flush() {
    let _ = crate::cpu::set_cr3(crate::cpu::cr3());
}

/// The address of the entry that maps `linear` at `level` (0: 4 KiB, 1: 2 MiB,
/// 2: 1 GiB), making tables on the way and splitting larger pages.
#[must_use]
pub fn entry(linear: u64, level: u32) -> u64 {
    let mut table_address = boot::page_table_root();
    let mut at = 3;
    loop {
        let address = table_address + index(linear, at) * 8;
        if at == level {
            return address;
        }
        let value = read_entry(address);
        if value & PRESENT == 0 {
            write_entry(address, table() | PRESENT | WRITE | USER);
        } else if value & LARGE != 0 && at < 3 {
            let new = table();
            let step = 1u64 << (12 + 9 * (at - 1));
            let large = if at == 1 { 0 } else { LARGE };
            for i in 0..512 {
                write_entry(new + i * 8, (value & !LARGE | large) + i * step);
            }
            write_entry(address, new | PRESENT | WRITE | USER);
            flush();
        }
        table_address = read_entry(address) & ADDRESS;
        at -= 1;
    }
}

/// Maps the 4 KiB page at `linear` to `physical` with the bits of `flags`.
pub fn map(linear: u64, physical: u64, flags: u64) {
    let entry = entry(linear, 0);
    write_entry(entry, physical & ADDRESS | flags);
    invlpg(linear);
}

/// Maps a 2 MiB page.
pub fn map_2m(linear: u64, physical: u64, flags: u64) {
    let entry = entry(linear, 1);
    write_entry(entry, physical & ADDRESS | flags | LARGE);
    invlpg(linear);
}

/// Maps a 1 GiB page (where CPUID offers them).
pub fn map_1g(linear: u64, physical: u64, flags: u64) {
    let entry = entry(linear, 2);
    write_entry(entry, physical & ADDRESS | flags | LARGE);
    invlpg(linear);
}

/// Sets and clears bits of the 4 KiB entry that maps `linear`; returns the old entry.
pub fn change(linear: u64, set: u64, clear: u64) -> u64 {
    let entry = entry(linear, 0);
    let old = read_entry(entry);
    write_entry(entry, old & !clear | set);
    invlpg(linear);
    old
}

/// The 4 KiB entry that maps `linear`.
#[must_use]
pub fn leaf(linear: u64) -> u64 {
    read_entry(entry(linear, 0))
}
