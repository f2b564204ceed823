//! The window of memory that programs work in: mapped, filled, summed up.

use crate::left;
use crate::run::Seen;
use guests::harness::Shared;
use guests::info;
use guests::paging::{self, bits};
use micro::layout::{PAGE, PAGES, Page, WINDOW};
use micro::{Program, Random, mix};

/// RAM behind the window's pages.
const BACKING: u64 = 0x200_0000;
/// From here on RAM is untouched until a program touches it.
const FRESH: u64 = 0x400_0000;
/// A reserved bit of an entry, above all physical addresses.
const RESERVED_BIT: u64 = 1 << 51;
/// Words of the scratch device that programs reach: at the page's start, where
/// they aim at the first 64 bytes and string instructions go further, and at its
/// end.
const SCRATCH_WORDS: [u64; 18] = [
    0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0x68, 0x70, 0x78,
    0xff0, 0xff8,
];

/// Entries of the window's pages, and pages of RAM that are never touched.
static ENTRIES: Shared<u64> = Shared::new(0);
static FRESH_PAGES: Shared<u64> = Shared::new(0);
static FRESH_NOW: Shared<u64> = Shared::new(0);

pub(crate) fn init() {
    ENTRIES.set(paging::entry(WINDOW, 0));
    // The last MiB may hold what the loader has put there.
    let end = info::ram_bytes() - (1 << 20);
    assert!(end > FRESH, "the guest needs more than 65 MiB");
    FRESH_PAGES.set((end - FRESH) / PAGE);
    reset_scratch();
}

fn each() -> impl Iterator<Item = (u64, Page)> {
    (0u64..).zip(PAGES)
}

fn backing(index: u64) -> u64 {
    BACKING + index * PAGE
}

fn entry_of(index: u64) -> u64 {
    ENTRIES.get() + index * 8
}

/// Address of the fresh page of this run.
fn fresh(seed: u64, run: u64) -> u64 {
    // An odd factor: neighbours are far apart, and all pages are used.
    FRESH + ((seed * 2 + run).wrapping_mul(0x6487) % FRESH_PAGES.get()) * PAGE
}

/// Maps and fills the window for a program.
pub(crate) fn prepare(program: &Program, run: u64) {
    const OPEN: u64 = bits::PRESENT | bits::WRITE | bits::USER;
    FRESH_NOW.set(fresh(program.seed, run));
    for (index, page) in each() {
        let ram = backing(index);
        let entry = match page {
            Page::Absent => 0,
            Page::Code | Page::Data | Page::Stack => ram | OPEN,
            Page::ReadOnly => ram | bits::PRESENT | bits::USER,
            Page::NoExecute => ram | OPEN | bits::NX,
            Page::Supervisor => ram | bits::PRESENT | bits::WRITE,
            Page::Reserved => ram | OPEN | RESERVED_BIT,
            Page::Fresh => FRESH_NOW.get() | OPEN,
            Page::Rom => 0xf_8000 | OPEN,
            Page::Lapic => 0xfee0_0000 | OPEN | bits::PCD | bits::PWT,
            Page::IoApic => 0xfec0_0000 | OPEN | bits::PCD | bits::PWT,
            Page::Scratch => 0xfed4_0000 | OPEN | bits::PCD | bits::PWT,
            Page::Hole => 0xd000_0000 | OPEN | bits::PCD | bits::PWT,
        };
        paging::write_entry(entry_of(index), entry);
    }
    let mut random = Random::new(program.seed ^ 0x5eed);
    for (index, page) in each().filter(|(_, page)| is_filled(*page)) {
        let first = random.draw() & mask(page);
        fill(backing(index), first, random.draw() & mask(page));
    }
    let code = backing(1) + program.code_at - (WINDOW + PAGE);
    for (at, byte) in (code..).zip(program.code()) {
        poke8(at, *byte);
    }
    paging::flush();
}

/// Code pages are full of INT3.
fn mask(page: Page) -> u64 {
    if page == Page::Code { 0 } else { u64::MAX }
}

fn is_filled(page: Page) -> bool {
    use Page::{Code, Data, NoExecute, ReadOnly, Stack, Supervisor};
    matches!(page, Code | Data | ReadOnly | NoExecute | Supervisor | Stack)
}

fn fill(at: u64, first: u64, step: u64) {
    let mut value = first | if step == 0 { 0xcccc_cccc_cccc_cccc } else { 0 };
    for offset in (0..PAGE).step_by(8) {
        poke(at + offset, value);
        value = value.wrapping_add(step);
    }
}

fn poke(at: u64, value: u64) {
    paging::write_entry(at, value);
}

fn poke8(at: u64, value: u8) {
    let word = paging::read_entry(at & !7);
    let shift = (at & 7) * 8;
    poke(at & !7, word & !(0xff << shift) | u64::from(value) << shift);
}

fn reset_scratch() {
    for word in SCRATCH_WORDS {
        poke(0xfed4_0000 + word, 0x0123_4567_89ab_cdef ^ word);
    }
}

/// Adds to digests what the program has left: memory, and which pages it used.
pub(crate) fn add_to(mut digest: Seen) -> Seen {
    for (index, page) in each() {
        let entry = paging::read_entry(entry_of(index));
        let used = entry & (bits::ACCESSED | bits::DIRTY);
        // Which pages an instruction touches before it faults is the CPU's
        // affair; where it looks ahead for code, that of all.
        if page != Page::Code {
            digest.strict = left(digest, "used", used).strict;
        }
        match page {
            // The hypercall instruction is another for each vendor.
            Page::Code => {}
            page if is_filled(page) => digest = left(digest, "sum", sum(0, backing(index))),
            // A page that was touched only for a fault is as it was: all zero.
            Page::Fresh if used & bits::DIRTY != 0 => {
                digest = left(digest, "fresh", sum(0, FRESH_NOW.get()));
                fill_zero(FRESH_NOW.get());
            }
            Page::Scratch if used & bits::DIRTY != 0 => {
                for word in SCRATCH_WORDS {
                    digest = left(digest, "scratch", paging::read_entry(0xfed4_0000 + word));
                }
                reset_scratch();
            }
            _ => {}
        }
    }
    digest
}

fn fill_zero(at: u64) {
    for offset in (0..PAGE).step_by(8) {
        poke(at + offset, 0);
    }
}

fn sum(digest: u64, at: u64) -> u64 {
    (0..PAGE).step_by(8).fold(digest, |digest, offset| mix(digest, paging::read_entry(at + offset)))
}
