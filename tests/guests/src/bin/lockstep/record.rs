//! Events that a program saw: each exception and interrupt with all registers.

use crate::At;
use crate::run::{Run, SYSCALL_VECTOR};
use guests::harness::Shared;
use guests::{cpu, print, trap};
use micro::{Program, mix};

/// One exception or interrupt, or the end.
#[derive(Clone, Copy, Default)]
pub(crate) struct Record {
    /// The vector.
    pub(crate) vector: u64,
    /// Its error code, or 0.
    pub(crate) error: u64,
    /// CR2 for a page fault, DR6 for a debug exception, else 0.
    pub(crate) extra: u64,
    /// Registers at that moment, by number.
    pub(crate) gprs: [u64; 16],
    /// RIP, CS, RFLAGS without RF, SS.
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) ss: u64,
    /// Registers that mean nothing (bit n: number n).
    pub(crate) unknown: u16,
}

/// How exactly machines are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Everything.
    Strict,
    /// Without known differences of emulated CPUs.
    Loose,
}

const GP_IDT: u64 = 1 << 1;
const PF_WRITE: u64 = 1 << 1;
const PF_RESERVED: u64 = 1 << 3;
/// Arithmetic flags and DF.
const CALCULATED: u64 = 0xcd5;

/// The most records of a program.
pub(crate) const MAX: usize = 64;

const NOTHING: Record = Record {
    vector: 0,
    error: 0,
    extra: 0,
    gprs: [0; 16],
    rip: 0,
    cs: 0,
    rflags: 0,
    ss: 0,
    unknown: 0,
};

/// The records of one run.
#[derive(Clone, Copy)]
struct Records {
    list: [Record; MAX],
    count: usize,
}

/// Records of the first run and of the second.
static RECORDS: [Shared<Records>; 2] =
    [const { Shared::new(Records { list: [NOTHING; MAX], count: 0 }) }; 2];
/// The one that goes on.
static NOW: Shared<Run> = Shared::new(Run::Traced);

/// Forgets all of the last run of this kind; what comes is of this one.
pub(crate) fn start(run: Run) {
    NOW.set(run);
    // SAFETY: nobody uses the records while none are added.
    unsafe { (*RECORDS[run as usize].address()).count = 0 };
}

/// Adds one; whether there is room for more.
pub(crate) fn add(record: Record) -> bool {
    // SAFETY: nobody uses the records while some are added.
    let records = unsafe { &mut *RECORDS[NOW.get() as usize].address() };
    if let Some(slot) = records.list.get_mut(records.count) {
        *slot = record;
        records.count += 1;
    }
    records.count + 1 < MAX
}

/// Calls `visit` with each of a run.
pub(crate) fn each(run: Run, visit: impl FnMut(&Record)) {
    // SAFETY: none are added meanwhile.
    let records = unsafe { &*RECORDS[run as usize].address() };
    records.list.iter().take(records.count).for_each(visit);
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

impl Record {
    /// Adds the record to a digest; without what emulators are known to make
    /// of their own (`docs/lockstep.md`) where that is asked for.
    pub(crate) fn digest(&self, mut digest: u64, how: How) -> u64 {
        let (mut error, mut rflags) = (self.error, self.rflags);
        if how == How::Loose {
            match cpu::low8(self.vector) {
                // Which bits come with a reserved bit; whether an access that
                // reads and writes counts as a write.
                trap::vector::PF if error & PF_RESERVED != 0 => error = PF_RESERVED,
                trap::vector::PF => error &= !PF_WRITE,
                // Which vector a software interrupt would have had.
                trap::vector::GP if error & GP_IDT != 0 => error = GP_IDT,
                SYSCALL_VECTOR => rflags &= !CALCULATED,
                _ => {}
            }
        }
        let words = [self.vector, error, self.extra, self.rip, self.cs, rflags, self.ss];
        for word in words {
            digest = mix(digest, word);
        }
        for (number, value) in self.gprs.iter().enumerate() {
            if self.unknown >> number & 1 == 0 {
                digest = mix(digest, *value);
            }
        }
        digest
    }

    /// Prints it, with those registers that differ from `last`.
    pub(crate) fn print(&self, kind: char, seed: u64, program: &Program, last: &Self) {
        print!("{kind} {seed} {} {:x} {:x} ", self.vector, self.error, self.extra);
        print!("{} {:x} {:x} {:x}", At(program, self.rip), self.cs, self.ss, self.rflags);
        for (number, (value, old)) in self.gprs.iter().zip(&last.gprs).enumerate() {
            if value != old && self.unknown >> number & 1 == 0 {
                print!(" {}={value:x}", NAMES[number]);
            }
        }
        print!("\n");
    }
}
