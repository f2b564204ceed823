//! This CPU's local APIC: xAPIC and x2APIC behind one type
//! (SDM volume 3: "Advanced Programmable Interrupt Controller (APIC)").
//!
//! The mode that the firmware left is kept: once disabled, an APIC can't be
//! counted on to come back.

use super::asm::rdtsc;
use super::vectors::{KICK_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use super::{legacy, msr, tsc};
use crate::error::HostError;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use x86defs::bits::Low;
use x86defs::msr::APIC_BASE_X2APIC;
use x86defs::{HostPhysAddr, Msr};

const ID: u32 = 0x02;
const EOI: u32 = 0x0b;
const SPURIOUS: u32 = 0x0f;
const ICR_LOW: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const LVT_ERROR: u32 = 0x37;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3e;
const MASKED: u32 = 1 << 16;
const EXT_INT: u32 = 7 << 8;
/// The timer counts as fast as it can: what is left of a deadline is told most exactly.
const DIVIDE_BY_1: u32 = 0b1011;
/// The timer is measured for so long at least, in milliseconds.
const COUNTING_MS: u64 = 2;
/// ICR: an earlier command is still on its way (xAPIC only).
const ICR_PENDING: u32 = 1 << 12;
/// ICR: level assert, as all commands but an INIT de-assert have it.
const ICR_ASSERT: u32 = 1 << 14;
const ICR_INIT: u32 = 5 << 8;
const ICR_START_UP: u32 = 6 << 8;

/// Virtual address of the xAPIC's registers; 0 in x2APIC mode.
static XAPIC: AtomicU64 = AtomicU64::new(0);
/// Timer counts per 2^20 TSC ticks.
static COUNTS_PER_MEBITICK: AtomicU32 = AtomicU32::new(0);

fn read(register: u32) -> u32 {
    let base = XAPIC.load(Ordering::Relaxed);
    if base == 0 {
        // SAFETY: in x2APIC mode every register used here exists as an MSR.
        return unsafe { msr::read(Msr(Msr::X2APIC_FIRST.0 + register)) }.low32();
    }
    let pointer = (base + u64::from(register) * 16) as *const u32;
    // SAFETY: `init` mapped the register page at `base`, uncached, for good.
    unsafe { pointer.read_volatile() }
}

fn write(register: u32, value: u32) {
    let base = XAPIC.load(Ordering::Relaxed);
    if base == 0 {
        // SAFETY: in x2APIC mode every register used here exists as an MSR,
        // and none of the values written sets a reserved bit.
        unsafe { msr::write(Msr(Msr::X2APIC_FIRST.0 + register), value.into()) };
        return;
    }
    let pointer = (base + u64::from(register) * 16) as *mut u32;
    // SAFETY: `init` mapped the register page at `base`, uncached, for good.
    unsafe { pointer.write_volatile(value) };
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Switches the first CPU's APIC on, routes the 8259 pair through it, and lets its timer
/// count, for [`calibrate`]. Its registers are mapped by `map`, which gets their address and size.
///
/// # Errors
/// [`HostError`] if there is no memory to map it.
pub fn init(
    map: impl FnOnce(HostPhysAddr, u64) -> Result<u64, HostError>,
) -> Result<(), HostError> {
    // SAFETY: every 64-bit CPU has APIC_BASE.
    let base = unsafe { msr::read(Msr::APIC_BASE) };
    if base & APIC_BASE_X2APIC == 0 {
        let registers = HostPhysAddr::new(base & 0x000f_ffff_ffff_f000);
        XAPIC.store(map(registers, 4096)?, Ordering::Relaxed);
    }
    legacy::init();
    enable();
    write(LVT_LINT0, EXT_INT);
    begin_to_count();
    Ok(())
}

/// Switches another CPU's APIC on, in the mode of the first one's.
pub fn init_other() {
    if XAPIC.load(Ordering::Relaxed) == 0 {
        // SAFETY: every 64-bit CPU has APIC_BASE.
        let base = unsafe { msr::read(Msr::APIC_BASE) };
        // SAFETY: the first CPU's APIC is in x2APIC mode, so this one has it.
        unsafe { msr::write(Msr::APIC_BASE, base | APIC_BASE_X2APIC) };
    }
    enable();
    write(LVT_LINT0, MASKED);
    write(LVT_TIMER, u32::from(TIMER_VECTOR));
}

/// Sets the registers that are alike in all CPUs' APICs.
fn enable() {
    write(SPURIOUS, 1 << 8 | u32::from(SPURIOUS_VECTOR));
    write(LVT_ERROR, MASKED);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, MASKED | u32::from(TIMER_VECTOR));
}

/// The identifier of this CPU's APIC.
#[must_use]
pub fn id() -> u32 {
    let id = read(ID);
    if XAPIC.load(Ordering::Relaxed) == 0 { id } else { id >> 24 }
}

/// Sends an interrupt command to the CPU whose APIC is `target`
/// (SDM: "Interrupt Command Register (ICR)").
fn command(target: u32, command: u32) {
    if XAPIC.load(Ordering::Relaxed) == 0 {
        let value = x86defs::bits::join(target, command);
        // SAFETY: the APIC is in x2APIC mode; the commands sent reach CPUs that
        // have a handler for them, or wait for a start-up.
        unsafe { msr::write(Msr::X2APIC_ICR, value) };
        return;
    }
    wait_for_delivery();
    write(ICR_HIGH, target << 24);
    write(ICR_LOW, command);
    wait_for_delivery();
}

/// Waits until the last command has left, which takes some bus cycles.
fn wait_for_delivery() {
    // A command that never leaves must not stop the CPU.
    for _ in 0..1_000_000 {
        if read(ICR_LOW) & ICR_PENDING == 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Interrupts the CPU whose APIC is `target`: it leaves its guest, or wakes.
pub fn kick(target: u32) {
    command(target, ICR_ASSERT | u32::from(KICK_VECTOR));
}

/// Starts the CPU whose APIC is `target` in real mode at page `page`
/// (SDM: "MP Initialization Protocol").
pub fn start_up(target: u32, page: u8, wait_us: impl Fn(u64)) {
    command(target, ICR_ASSERT | ICR_INIT);
    wait_us(10_000);
    for _ in 0..2 {
        command(target, ICR_ASSERT | ICR_START_UP | u32::from(page));
        wait_us(200);
    }
}

/// The TSC before the first CPU's timer began to count down.
static COUNTS_SINCE: AtomicU64 = AtomicU64::new(0);

fn begin_to_count() {
    COUNTS_SINCE.store(rdtsc(), Ordering::Relaxed);
    write(TIMER_INITIAL, u32::MAX);
}

/// Measures the first CPU's timer against the time-stamp counter, over the time since
/// [`init`].
///
/// # Errors
/// [`HostError::ApicTimer`] if it stands still.
pub fn calibrate() -> Result<(), HostError> {
    // A part in a thousand is good enough: the timer only ever decides when to look at the
    // real clock again.
    let enough = tsc::khz() * COUNTING_MS;
    if rdtsc().wrapping_sub(COUNTS_SINCE.load(Ordering::Relaxed)) > enough * 1000
        || read(TIMER_CURRENT) == 0
    {
        // The timer may have come to its end: it counts anew.
        begin_to_count();
    }
    let start = COUNTS_SINCE.load(Ordering::Relaxed);
    while rdtsc().wrapping_sub(start) < enough {}
    // The span of ticks encloses that of the counts: the timer then rings
    // early rather than late.
    let counted = u32::MAX - read(TIMER_CURRENT);
    let ticks = rdtsc().wrapping_sub(start);
    write(TIMER_INITIAL, 0);
    let per_mebitick = (u64::from(counted) << 20) / ticks;
    if per_mebitick == 0 {
        return Err(HostError::ApicTimer);
    }
    COUNTS_PER_MEBITICK.store(per_mebitick.min(u32::MAX.into()).low32(), Ordering::Relaxed);
    write(LVT_TIMER, u32::from(TIMER_VECTOR));
    Ok(())
}

/// Arms this CPU's timer for when its TSC, which is `now`, reaches `at`.
#[inline]
pub fn arm_timer_at(at: u64, now: u64) {
    arm_timer(at.saturating_sub(now));
}

/// Arms this CPU's timer for `ticks` TSC ticks from now. It may ring early,
/// never much late; whoever wakes looks at the clock.
#[inline]
pub fn arm_timer(ticks: u64) {
    let per_mebitick = u64::from(COUNTS_PER_MEBITICK.load(Ordering::Relaxed));
    // Far deadlines ring early: 2^43 ticks are half an hour and more.
    let counts = ticks.min(1 << 43).saturating_mul(per_mebitick) >> 20;
    write(TIMER_INITIAL, counts.clamp(1, u64::from(u32::MAX >> 1)).low32());
}

/// Disarms this CPU's timer.
pub fn disarm_timer() {
    write(TIMER_INITIAL, 0);
}
