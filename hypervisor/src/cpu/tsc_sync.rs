//! Makes the time-stamp counters of all CPUs show the same, and finds out whether they do.
//!
//! Firmware has been seen to leave IA32_TSC_ADJUST (SDM: "Time-Stamp Counter Adjustment")
//! different on CPUs: each takes over the first one's. Then the first CPU and the new one
//! send messages to and fro ([`timebase::Offset`]) until they know the difference within
//! `timebase::GOOD_US`; the difference is mended through the same register. If no message is
//! fast enough, the log says how large a difference may be hidden.

use super::asm::rdtsc_ordered;
use super::{cpuid_checked, msr, tsc};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;
use timebase::{Adjustments, Offset, Standing};
use x86defs::Msr;

/// CPUID leaf 7 EBX: IA32_TSC_ADJUST.
const LEAF7_EBX_TSC_ADJUST: u32 = 1 << 1;
/// The most exchanges of a test that knows the difference well, and the fewest of any.
const EXCHANGES: (u32, u32) = (64, 4);
/// Enough time for a test that knows it well, in microseconds.
const TEST_US: u64 = 200;
/// Enough time for one that does not, in microseconds.
const LONGEST_TEST_US: u64 = 20_000;
/// How long an answer may take, in milliseconds.
const PATIENCE_MS: u64 = 5000;

/// A question is a number, each one more than the last, from 1 on; 0: there is none. These
/// are commands.
const SHIFT: u64 = u64::MAX - 1;
const END: u64 = u64::MAX;

/// Question or command of the first CPU.
static QUESTION: AtomicU64 = AtomicU64::new(0);
/// The last question that was answered, and the answer.
static ANSWERED: AtomicU64 = AtomicU64::new(0);
static ANSWER: AtomicU64 = AtomicU64::new(0);
/// With [`SHIFT`]: how much is to be subtracted.
static BY: AtomicU64 = AtomicU64::new(0);
/// IA32_TSC_ADJUST of the new CPU, as firmware left it.
static FOUND: AtomicU64 = AtomicU64::new(0);
/// IA32_TSC_ADJUST of the new CPU, after it took over the first one's.
static SET: AtomicU64 = AtomicU64::new(0);
/// IA32_TSC_ADJUST of the first CPU, the model for the others.
static ADJUST: Once<Option<u64>> = Once::new();

/// This CPU's IA32_TSC_ADJUST, if it has one.
fn adjust() -> Option<u64> {
    if cfg!(planted = "tsc-adjust-stuck") {
        return None;
    }
    let has = cpuid_checked(7, 0).ebx & LEAF7_EBX_TSC_ADJUST != 0;
    has.then(|| msr::try_read(Msr::TSC_ADJUST)).flatten()
}

/// Changes this CPU's register, and with it its counter; `false` where that can't be.
fn set_adjust(value: u64) -> bool {
    // SAFETY: the CPU has the register; nobody has read its counter for a purpose yet.
    adjust().is_some() && unsafe { msr::try_write(Msr::TSC_ADJUST, value) }
}

/// The first CPU, before any other starts: its register is the model.
pub fn first() {
    ADJUST.call_once(adjust);
}

/// A new CPU, before it says that it is there.
pub fn arrive() {
    if cfg!(planted = "tsc-adjust") || cfg!(planted = "tsc-adjust-stuck") {
        // SAFETY: the fault is planted in images for tests, on CPUs that have the register.
        let _ = unsafe { msr::try_write(Msr::TSC_ADJUST, 5_000_000_u64.wrapping_neg()) };
    }
    let Some(model) = ADJUST.get().copied().flatten() else { return };
    let found = adjust().unwrap_or(model);
    FOUND.store(found, Ordering::Relaxed);
    if found != model {
        // A value that does not hold is seen below, and by the test that follows.
        let _ = set_adjust(model);
    }
    SET.store(adjust().unwrap_or(model), Ordering::Relaxed);
}

/// A new CPU answers the first one's questions until that has no more.
pub fn answer() {
    let mut last = 0;
    loop {
        let question = QUESTION.load(Ordering::Acquire);
        if question == last {
            core::hint::spin_loop();
            continue;
        }
        last = question;
        if question == SHIFT {
            let by = BY.load(Ordering::Relaxed);
            let shifted = adjust().is_some_and(|now| set_adjust(now.wrapping_sub(by)));
            ANSWER.store(u64::from(shifted), Ordering::Relaxed);
        } else {
            ANSWER.store(rdtsc_ordered(), Ordering::Relaxed);
        }
        ANSWERED.store(question, Ordering::Release);
        if question == END {
            return;
        }
    }
}

/// Asks, and waits for the answer; `None` where none comes.
fn ask(question: u64) -> Option<(u64, u64, u64)> {
    let sent = rdtsc_ordered();
    QUESTION.store(question, Ordering::Release);
    while ANSWERED.load(Ordering::Acquire) != question {
        if rdtsc_ordered().wrapping_sub(sent) > tsc::khz() * PATIENCE_MS {
            return None;
        }
        core::hint::spin_loop();
    }
    Some((sent, ANSWER.load(Ordering::Relaxed), rdtsc_ordered()))
}

/// How far the other CPU's counter is from this one's; `None` where it does not answer.
fn test(question: &mut u64) -> Option<Offset> {
    let (most, fewest) = EXCHANGES;
    let begun = rdtsc_ordered();
    let mut offset = Offset::UNKNOWN;
    let mut rounds = 0;
    loop {
        *question += 1;
        let (sent, theirs, heard) = ask(*question)?;
        offset.exchange(sent, theirs, heard);
        rounds += 1;
        let passed_us = heard.wrapping_sub(begun) / (tsc::khz() / 1000).max(1);
        let known = offset.is_good(tsc::khz()) && (rounds >= most || passed_us > TEST_US);
        if rounds >= fewest && (known || passed_us > LONGEST_TEST_US) {
            return Some(offset);
        }
    }
}

/// Verdict of the registers of this CPU and the new one, after [`arrive`].
fn adjustments(is_shifted: bool) -> Adjustments {
    match ADJUST.get().copied().flatten() {
        _ if is_shifted => Adjustments::Guessed,
        Some(model) if SET.load(Ordering::Relaxed) != model => Adjustments::Different,
        _ => Adjustments::Alike,
    }
}

/// The first CPU's part: CPU `index` has arrived and [answers](answer). Mends what can be
/// mended, and says what was wrong; `false` where the CPU does not answer.
pub fn compare(index: usize) -> bool {
    let mut question = 0;
    let Some(mut offset) = test(&mut question) else { return false };
    let mut is_shifted = false;
    if let Standing::Apart(by) = offset.standing(tsc::khz()) {
        BY.store(by.cast_unsigned(), Ordering::Relaxed);
        let Some((_, shifted, _)) = ask(SHIFT) else { return false };
        if shifted != 0 {
            is_shifted = true;
            let Some(anew) = test(&mut question) else { return false };
            offset = anew;
            if offset.standing(tsc::khz()) == Standing::Together {
                log::warn!(
                    "the time-stamp counter of CPU {index} was about {by} ticks from the first \
                     one's: mended"
                );
            }
        }
    }
    let standing = offset.standing(tsc::khz());
    let is_promised = standing.is_promised(adjustments(is_shifted));
    match standing {
        Standing::Together | Standing::Unseen(_) if is_promised => {
            let model = ADJUST.get().copied().flatten();
            let found = FOUND.load(Ordering::Relaxed);
            let is_mended = |model: u64| model != found && model == SET.load(Ordering::Relaxed);
            if let Some(model) = model.filter(|model| is_mended(*model)) {
                log::warn!(
                    "firmware left the time-stamp counter of CPU {index} {} ticks from the first \
                     one's (TSC_ADJUST): mended",
                    found.wrapping_sub(model).cast_signed()
                );
            }
            let us = offset.width() / (tsc::khz() / 1000).max(1);
            if standing == Standing::Together {
                log::debug!("the counter of CPU {index} agrees within {} ticks", offset.width());
            } else {
                log::info!(
                    "no message to CPU {index} and back took less than {us} us: its time-stamp \
                     counter may be so far from the first one's, and is taken to agree"
                );
            }
        }
        Standing::Together | Standing::Unseen(_) => {
            tsc::set_apart();
            log::warn!(
                "the time-stamp counter of CPU {index} differed from the first one's, and may \
                 still by {} ticks: guests are not told that their clock is stable",
                offset.width()
            );
        }
        Standing::Apart(by) => {
            tsc::set_apart();
            log::warn!(
                "the time-stamp counter of CPU {index} is about {by} ticks from the first one's, \
                 and can't be mended: guests are not told that their clock is stable"
            );
        }
        Standing::Uneven => {
            tsc::set_apart();
            log::warn!(
                "the time-stamp counter of CPU {index} does not run evenly: guests are not told \
                 that their clock is stable"
            );
        }
    }
    let ended = ask(END).is_some();
    // The next CPU may look before the first one asks it anything.
    QUESTION.store(0, Ordering::Release);
    ended
}
