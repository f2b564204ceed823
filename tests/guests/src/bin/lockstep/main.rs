//! Random programs of a few instructions, run one after the other; what each
//! did comes out as a few characters, which other machines must repeat.
//!
//! The command line says which: `seed=FIRST count=N`, or `brief=A,B,C` to have
//! more told about a few, or `seeds=A,B,C` to have everything told. Each program
//! runs twice: first with all exits written down (so that the hypervisor's hot
//! handler declines them), then without; what the program sees must be the same.
//! `docs/lockstep.md` has the output's format.
#![no_std]
#![no_main]

mod machine;
mod record;
mod run;
mod trace;
mod window;

use guests::harness::{self, Shared};
use guests::{cpu, info, print, println, trap};
use micro::{Program, Vendor};
use record::{How, Record};
use run::{Run, Seen};

guests::entry!(main);

/// Seeds on a line of digests.
const PER_LINE: u64 = 10;

fn main() -> ! {
    machine::init();
    window::init();
    let vendor = if cpu::is_amd() { Vendor::Amd } else { Vendor::Intel };
    let mut failed = 0;
    let mut passed = 0;
    if let Some(list) = info::option("seeds") {
        for seed in list.split(',').filter_map(|text| text.parse().ok()) {
            failed += u32::from(!tell(seed, vendor));
            passed += 1;
        }
    } else if let Some(list) = info::option("brief") {
        for seed in list.split(',').filter_map(|text| text.parse().ok()) {
            outline(seed, vendor);
            passed += 1;
        }
    } else {
        let first = info::number("seed").unwrap_or(0);
        let last = first + info::number("count").unwrap_or(100);
        for seed in first..last {
            if (seed - first).is_multiple_of(PER_LINE) {
                print!("{}D {seed}", if seed == first { "" } else { "\n" });
            }
            let program = Program::generate(seed, vendor);
            let outcome = both(&program);
            let Seen { strict, loose } = outcome.cold;
            print!(" {}{}{}", Digest(strict, 4), Digest(loose, 3), Digest(outcome.exits, 3));
            if outcome.cold != outcome.hot {
                failed += 1;
                println!("!");
                print_difference(&program);
                // Once more with the exits written down: most likely as before.
                tell(seed, vendor);
                print!("D {}", seed + 1);
            }
            passed += 1;
        }
        println!();
    }
    println!("{} passed, {failed} failed", passed - failed);
    harness::exit(u8::from(failed != 0))
}

/// Result of a program.
struct Outcome {
    /// Events that it saw with the hot handler declining.
    cold: Seen,
    /// Events that it saw with the hot handler serving.
    hot: Seen,
    /// Its exits.
    exits: u64,
}

/// All is told of what programs leave.
static TELLING: Shared<bool> = Shared::new(false);

/// The most values that a program leaves.
const MOST_LEFT: usize = 96;
/// Values that the last program has left, in order: in its first run and in its second.
static LEFT: Shared<[[(&str, u64); MOST_LEFT]; 2]> = Shared::new([[("", 0); MOST_LEFT]; 2]);
/// How many values there are of the run.
static LEFT_COUNT: Shared<usize> = Shared::new(0);
/// Which run it is: an index of [`LEFT`].
static RUN: Shared<usize> = Shared::new(0);

/// Adds a value that a program has left to digests, notes it, and tells it where
/// asked.
fn left(digest: Seen, what: &'static str, value: u64) -> Seen {
    if TELLING.get() {
        println!("S {} {what} {value:x}", current());
    }
    // SAFETY: nobody else, no handler either, uses the list.
    let list = unsafe { &mut *LEFT.address() };
    if let Some(slot) = list.get_mut(RUN.get()).and_then(|list| list.get_mut(LEFT_COUNT.get())) {
        *slot = (what, value);
        LEFT_COUNT.set(LEFT_COUNT.get() + 1);
    }
    let Seen { strict, loose } = digest;
    Seen { strict: micro::mix(strict, value), loose: micro::mix(loose, value) }
}

/// Forgets what the last run of this kind has left.
fn none_left(run: Run) {
    RUN.set(run as usize);
    LEFT_COUNT.set(0);
    // SAFETY: nobody else, no handler either, uses the list.
    let list = unsafe { &mut *LEFT.address() };
    if let Some(list) = list.get_mut(RUN.get()) {
        *list = [("", 0); MOST_LEFT];
    }
}

/// Prints which values the two runs have left differently.
fn print_left(seed: u64) {
    // SAFETY: nobody else, no handler either, uses the list.
    let [cold, hot] = unsafe { &*LEFT.address() };
    for (number, (cold, hot)) in cold.iter().zip(hot).enumerate() {
        if cold != hot {
            println!("Q {seed} {number} {} {:x} {} {:x}", cold.0, cold.1, hot.0, hot.1);
        }
    }
}

fn current() -> u64 {
    // SAFETY: the program lives until its run is over.
    unsafe { PROGRAM.get().as_ref() }.map_or(0, |program| program.seed)
}

static PROGRAM: Shared<*const Program> = Shared::new(core::ptr::null());

/// How often a program runs at most where time has a part in what it sees.
const PATIENCE: u32 = 32;

/// Runs a program both ways.
fn both(program: &Program) -> Outcome {
    // QEMU's CPU forgets the shadow of STI and MOV SS where an interrupt of the
    // machine ends the guest's turn in it: one that waits comes an instruction
    // too early then. That does not happen twice at the same place.
    let times = if cpu::tcg_underneath() { PATIENCE } else { 1 };
    let once = || {
        let cold = run::run(program, Run::Traced);
        let exits = trace::digest();
        let hot = run::run(program, Run::Free);
        Outcome { cold, hot, exits }
    };
    let mut outcome = once();
    for _ in 1..times {
        if outcome.cold == outcome.hot {
            break;
        }
        outcome = once();
    }
    outcome
}

/// Runs one program and prints where each of its records and exits was, with
/// a digest of each: enough to find the first difference.
fn outline(seed: u64, vendor: Vendor) {
    let program = Program::generate(seed, vendor);
    let seen = both(&program).cold;
    print!("R {seed}");
    record::each(Run::Traced, |record| {
        let digests = |of: &Record| {
            let [strict, loose] = [How::Strict, How::Loose].map(|how| of.digest(0, how));
            (Digest(strict, 3), Digest(loose, 3))
        };
        let debug = record.vector == trap::vector::DB.into();
        let detail = if debug { record.extra } else { record.error };
        let (strict, loose) = digests(record);
        let at = At(&program, record.rip);
        print!(" {at}.{:x}.{detail:x}.{strict}{loose}", record.vector);
        if debug {
            let (strict, loose) = digests(&Record { extra: 0, ..*record });
            print!("{strict}{loose}");
        }
    });
    println!("\nL {seed} {}{}", Digest(seen.strict, 4), Digest(seen.loose, 3));
    print!("E {seed}");
    trace::each(|[kind, detail, rip, hash]| {
        print!(" {}.{kind:x}.{detail:x}.{}", At(&program, rip.into()), Digest(hash.into(), 3));
    });
    println!();
}

/// An address: of the program as an offset, of anything else as it is.
struct At<'a>(&'a Program, u64);

impl core::fmt::Display for At<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0.offset(self.1) {
            Some(offset) => write!(f, "+{offset:x}"),
            None => write!(f, "{:x}", self.1),
        }
    }
}

/// Runs one program and prints all that is known of it; whether both runs were
/// the same.
fn tell(seed: u64, vendor: Vendor) -> bool {
    let program = Program::generate(seed, vendor);
    TELLING.set(true);
    println!("P {seed}");
    let cold = run::run(&program, Run::Traced);
    TELLING.set(false);
    print_records('G', Run::Traced, &program);
    trace::each(|[kind, detail, rip, hash]| {
        println!("X {seed} {kind:x} {detail:x} {} {hash:x}", At(&program, rip.into()));
    });
    let hot = run::run(&program, Run::Free);
    if cold != hot {
        print_difference(&program);
    }
    println!("T {seed} {:x} {:x} {:x}", cold.strict, cold.loose, hot.strict);
    cold == hot
}

/// Prints what two runs of a program saw, which is not the same.
fn print_difference(program: &Program) {
    print_records('C', Run::Traced, program);
    print_records('H', Run::Free, program);
    print_left(program.seed);
}

fn print_records(kind: char, run: Run, program: &Program) {
    let mut last = Record::default();
    record::each(run, |record| {
        record.print(kind, program.seed, program, &last);
        last = *record;
    });
}

/// The low bits of a digest, six to a character.
struct Digest(u64, u32);

impl core::fmt::Display for Digest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        use core::fmt::Write;
        let folded = self.0 ^ self.0 >> 32;
        for n in 0..self.1 {
            let index = usize::try_from(folded >> (6 * n) & 63).unwrap_or(0);
            f.write_char(char::from(LETTERS[index]))?;
        }
        Ok(())
    }
}
