//! The machine's clocks of known rate, and how the time-stamp counter is measured against
//! them: PIT, ACPI PM timer and HPET are read here, and the crate `timebase` decides.
//!
//! The boot itself is the window: each clock is read as early as it can be ([`begin`] at the
//! image's entry), and last before the first guest starts ([`settle`]). Nothing here waits
//! for a device: the TSC bounds each wait.

use crate::cpu::asm::{inb, inl, outb, rdtsc_ordered};
use crate::cpu::{cpuid, tsc};
use crate::error::HostError;
use crate::mm;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use spin::Mutex;
use timebase::{
    AGREEMENT_PPM, Claim, Counter, Measured, PmWidth, Sample, Track, Verdict, best_sample, judge,
};
use x86defs::HostPhysAddr;
use x86defs::acpi::PmTimer;

const PIT_CHANNEL2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
/// Channel 2, both bytes, mode 0: it counts down, and on at 0xffff.
const PIT_COUNT_DOWN: u8 = 0b1011_0000;
/// Channel 2: hold the value until it is read.
const PIT_LATCH: u8 = 0b1000_0000;
const GATE_PORT: u16 = 0x61;
/// Port 0x61: channel 2 counts.
const GATE: u8 = 1 << 0;
/// Port 0x61: channel 2 is heard.
const SPEAKER: u8 = 1 << 1;

/// HPET: capabilities; the high half is the period.
const HPET_PERIOD: u64 = 0x004;
/// HPET: configuration.
const HPET_CONFIGURATION: u64 = 0x010;
/// HPET: the counter's low half.
const HPET_COUNTER: u64 = 0x0f0;
/// HPET, configuration: it counts.
const HPET_ENABLE: u32 = 1 << 0;
/// Bytes of its registers.
const HPET_SIZE: u64 = 1024;

/// A short window, in femtoseconds: a millisecond.
const SHORT: u64 = 1_000_000_000_000;
/// Ticks after which a clock that has not counted on for [`SHORT`] does not count: more than
/// three milliseconds of the quickest CPU.
const LONG_ENOUGH: u64 = 1 << 25;
/// Short windows: one during which the CPU was away is too long, hardly three.
const WINDOWS: usize = 3;
/// How narrow a sample shall be, in microseconds.
const NARROW_US: u64 = 5;
/// So long after the first sample one figure must do, in milliseconds.
const PATIENCE_MS: u64 = 300;
/// From one look to the next, in microseconds.
const PAUSE_US: u64 = 1000;

/// How a clock is read.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Pit,
    Port(u16),
    Memory(u64),
}

impl Reader {
    fn sample(self) -> Sample {
        match self {
            Self::Pit => {
                let before = rdtsc_ordered();
                port_out(PIT_COMMAND, PIT_LATCH);
                let after = rdtsc_ordered();
                let count = u16::from_le_bytes([port_in(PIT_CHANNEL2), port_in(PIT_CHANNEL2)]);
                Sample { before, count: (!count).into(), after }
            }
            Self::Port(port) => {
                let before = rdtsc_ordered();
                // SAFETY: firmware's tables say that the timer's register is there; reading it
                // has no effect.
                let count = unsafe { inl(port) };
                Sample { before, count: count.into(), after: rdtsc_ordered() }
            }
            Self::Memory(base) => {
                let before = rdtsc_ordered();
                let count = hpet_read(base, HPET_COUNTER);
                Sample { before, count: count.into(), after: rdtsc_ordered() }
            }
        }
    }
}

struct Clock {
    reader: Reader,
    track: Track,
}

impl Clock {
    fn sample(&self, enough: u64) -> Sample {
        let sample = best_sample(enough, || self.reader.sample());
        if cfg!(planted = "clocks-stand") { Sample { count: 0, ..sample } } else { sample }
    }
}

struct Clocks {
    all: Vec<Clock>,
    /// The PIT's first sample: there is no memory for [`Self::all`] yet.
    first: Option<Sample>,
}

static CLOCKS: Mutex<Clocks> = Mutex::new(Clocks { all: Vec::new(), first: None });

fn port_in(port: u16) -> u8 {
    // SAFETY: reading the PIT's ports and the gate port affects nothing else.
    unsafe { inb(port) }
}

fn port_out(port: u16, value: u8) {
    // SAFETY: channel 2 of the PIT drives the speaker only, which stays off.
    unsafe { outb(port, value) };
}

fn hpet_read(base: u64, register: u64) -> u32 {
    // SAFETY: `found` mapped the registers at `base`, uncached, for good.
    unsafe { ((base + register) as *const u32).read_volatile() }
}

/// Lets the PIT count, and takes the first sample. It needs no memory.
pub fn begin() {
    port_out(GATE_PORT, port_in(GATE_PORT) & !SPEAKER | GATE);
    port_out(PIT_COMMAND, PIT_COUNT_DOWN);
    port_out(PIT_CHANNEL2, 0xff);
    port_out(PIT_CHANNEL2, 0xff);
    CLOCKS.lock().first = Some(best_sample(0, || Reader::Pit.sample()));
}

/// Firmware names these clocks: each is sampled for the first time.
///
/// # Errors
/// [`HostError::OutOfMemory`] if there is none to map the HPET with.
pub fn found(pm: Option<PmTimer>, hpet: Option<u64>) -> Result<(), HostError> {
    let mut clocks = CLOCKS.lock();
    let mut pit = Clock { reader: Reader::Pit, track: Track::new(Counter::PIT) };
    if let Some(first) = clocks.first.take() {
        pit.track.push(first);
    }
    clocks.all.push(pit);
    let mut add = |reader, counter| {
        let mut clock = Clock { reader, track: Track::new(counter) };
        let first = clock.sample(0);
        clock.track.push(first);
        clocks.all.push(clock);
    };
    if let Some(pm) = pm {
        let width = if pm.wide { PmWidth::Bits32 } else { PmWidth::Bits24 };
        add(Reader::Port(pm.port), Counter::pm_timer(width));
    }
    if let Some(physical) = hpet {
        let base = mm::map_device(HostPhysAddr::new(physical), HPET_SIZE)?;
        if let Some(counter) = Counter::hpet(hpet_read(base, HPET_PERIOD)) {
            if hpet_read(base, HPET_CONFIGURATION) & HPET_ENABLE == 0 {
                let register = (base + HPET_CONFIGURATION) as *mut u32;
                // SAFETY: `map_device` has mapped the register; to let the counter run without
                // its legacy interrupts disturbs nobody.
                unsafe { register.write_volatile(HPET_ENABLE) };
            }
            add(Reader::Memory(base), counter);
        }
    }
    Ok(())
}

impl Clocks {
    /// A sample of each clock.
    fn samples(&self, enough: u64) -> Vec<Sample> {
        self.all.iter().map(|clock| clock.sample(enough)).collect()
    }

    /// A window of about a millisecond; `false` if no clock counts on.
    fn short_window(&mut self) -> bool {
        let starts = self.samples(0);
        let begun = rdtsc_ordered();
        let mut counts = false;
        while !counts && rdtsc_ordered().wrapping_sub(begun) < LONG_ENOUGH {
            counts = self.all.iter().zip(&starts).any(|(clock, start)| {
                let now = clock.reader.sample();
                clock.track.counter().elapsed(start.count, now.count) >= SHORT
            });
        }
        let ends = self.samples(0);
        for ((clock, start), end) in self.all.iter_mut().zip(starts).zip(ends) {
            clock.track.note_short(start, end);
            clock.track.push(end);
        }
        counts
    }

    fn measured(&self) -> Vec<Measured> {
        let found = |clock: &Clock| {
            let rate = clock.track.rate()?;
            Some(Measured { source: clock.track.counter().source, rate })
        };
        self.all.iter().filter_map(found).collect()
    }

    /// Complaint for the operator: what clocks there are and what is wrong with them.
    fn complaint(&self) -> String {
        let mut text = String::new();
        for clock in &self.all {
            // Writing to a string does not fail.
            let _ = write!(text, "{} does not count; ", clock.track.counter().source);
        }
        let sources = || self.all.iter().map(|clock| clock.track.counter().source);
        for source in [timebase::Source::PmTimer, timebase::Source::Hpet] {
            if !sources().any(|known| known == source) {
                // Writing to a string does not fail.
                let _ = write!(text, "firmware's tables do not name {source}; ");
            }
        }
        text.truncate(text.trim_end_matches("; ").len());
        text
    }
}

/// Measures the TSC roughly, for the waits of the boot, and returns its rate in kHz.
///
/// # Errors
/// [`HostError::NoTsc`] if it stands still, [`HostError::NoClock`] if every clock does.
pub fn rough() -> Result<u64, HostError> {
    let mut clocks = CLOCKS.lock();
    let begun = rdtsc_ordered();
    // Each access takes a microsecond or less on any machine, and many ticks.
    if (0..100).all(|_| (port_in(GATE_PORT), rdtsc_ordered()).1 == begun) {
        return Err(HostError::NoTsc);
    }
    for _ in 0..WINDOWS {
        if !clocks.short_window() {
            break;
        }
    }
    let best = clocks.measured().into_iter().min_by_key(|m| m.rate.spread_ppm());
    let khz = best.map_or(0, |m| m.rate.middle() / 1000);
    if khz == 0 {
        return Err(HostError::NoClock(clocks.complaint()));
    }
    tsc::set_khz(khz);
    Ok(khz)
}

/// Claims of CPUID about the rate.
fn claims() -> Vec<Claim> {
    timebase::claims(&cpuid).into_iter().flatten().collect()
}

/// Measures until two sources agree, or for as long as is reasonable; says what is wrong, and
/// returns the rate in kHz with the words for it.
///
/// # Errors
/// [`HostError::NoClock`] if no clock counts any more.
pub fn settle() -> Result<(u64, String), HostError> {
    let mut clocks = CLOCKS.lock();
    let claims = claims();
    let begun = clocks.all.first().map_or(0, |clock| clock.track.begun());
    let asked = rdtsc_ordered();
    // The boot since the rough measurement was long perhaps: windows from here on help to tell
    // how often a clock began anew in it.
    let first = clocks.samples(tsc::khz() * NARROW_US / 1000);
    for (clock, sample) in clocks.all.iter_mut().zip(first) {
        clock.track.push(sample);
    }
    let mut last: fn(&mut Track, Sample) = Track::push;
    loop {
        let samples = clocks.samples(tsc::khz() * NARROW_US / 1000);
        for (clock, sample) in clocks.all.iter_mut().zip(samples) {
            last(&mut clock.track, sample);
        }
        last = Track::replace_last;
        let measured = clocks.measured();
        let verdict = judge(&measured, &claims);
        let ms = |since: u64| rdtsc_ordered().wrapping_sub(since) / tsc::khz().max(1);
        // A figure that is not known well after all that time has the time again.
        let is_sharp = measured.iter().any(|m| m.rate.spread_ppm() <= AGREEMENT_PPM);
        let waited = ms(begun) >= PATIENCE_MS && (is_sharp || ms(asked) >= PATIENCE_MS);
        let hz = match verdict {
            Verdict::Agreed { hz, .. } => hz,
            Verdict::Nothing => return Err(HostError::NoClock(clocks.complaint())),
            Verdict::Alone(figure) | Verdict::Apart(figure, _) if waited => figure.hz,
            Verdict::Alone(_) | Verdict::Apart(..) => {
                super::rtc::wait_us(PAUSE_US);
                continue;
            }
        };
        let khz = (hz + 500) / 1000;
        tsc::set_khz(khz);
        let us = |since: u64| rdtsc_ordered().wrapping_sub(since) / (khz / 1000).max(1);
        log::debug!("clocks watched for {} us, the last {} for nothing else", us(begun), us(asked));
        return Ok((khz, words(&verdict, &claims)));
    }
}

/// Words about a verdict; what is wrong is logged.
fn words(verdict: &Verdict, claims: &[Claim]) -> String {
    match verdict {
        Verdict::Agreed { hz, by: [first, second] } => {
            for claim in claims {
                if claim.hz.abs_diff(*hz) > hz / 1000 {
                    log::info!(
                        "{} says {} MHz, which no clock confirms",
                        claim.by,
                        claim.hz / 1_000_000
                    );
                }
            }
            alloc::format!("by {first} and {second}")
        }
        Verdict::Alone(figure) => {
            log::warn!("the TSC's rate: {figure}; this machine has nothing that confirms it");
            alloc::format!("by {} alone", figure.by)
        }
        Verdict::Apart(figure, other) => {
            log::warn!("the TSC's rate: {figure}, but {other}; the first is taken");
            alloc::format!("by {}, which nothing confirms", figure.by)
        }
        Verdict::Nothing => String::new(),
    }
}

/// Measures once more, over the longer time that has passed: the rate in kHz if two sources
/// agree on it.
pub fn again() -> Option<u64> {
    let mut clocks = CLOCKS.lock();
    let samples = clocks.samples(tsc::khz() * NARROW_US / 1000);
    for (clock, sample) in clocks.all.iter_mut().zip(samples) {
        clock.track.push(sample);
    }
    match judge(&clocks.measured(), &claims()) {
        Verdict::Agreed { hz, .. } => Some((hz + 500) / 1000),
        Verdict::Alone(_) | Verdict::Apart(..) | Verdict::Nothing => None,
    }
}
