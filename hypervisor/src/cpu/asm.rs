//! Single instructions of the CPU that have no safe wrapper elsewhere.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// Stops until the next interrupt, which is taken before this returns.
/// Interrupts are off before and after.
pub fn halt_until_interrupt() {
    // SAFETY: STI takes effect after HLT, so that an interrupt can't be lost
    // between them; the handlers only record that they ran. CLI restores the
    // state in which the hypervisor runs.
    unsafe {
        asm!("sti", "hlt", "cli", options(nostack));
    }
}

/// As [`halt_until_interrupt`], by MWAIT with `hint`; a write to `word` also ends
/// it. Returns at once if `word` is not 0.
pub fn mwait_until_interrupt(word: &AtomicU32, hint: u32) {
    // SAFETY: MONITOR reads memory that is ours; the caller knows that the CPU has it.
    unsafe {
        asm!("monitor", in("rax") word.as_ptr(), in("ecx") 0, in("edx") 0, options(nostack));
    }
    if word.load(Ordering::SeqCst) != 0 {
        return;
    }
    // SAFETY: as for `halt_until_interrupt`: STI takes effect after MWAIT.
    unsafe {
        asm!("sti", "mwait", "cli", in("eax") hint, in("ecx") 0, options(nostack));
    }
}

/// Takes interrupts that are pending, then goes on with interrupts off.
pub fn take_pending_interrupts() {
    // SAFETY: the interrupt handlers only record that they ran; NOP ends the
    // shadow of STI.
    unsafe {
        asm!("sti", "nop", "cli", options(nostack));
    }
}

/// Stops for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: with interrupts off nothing but an NMI wakes the CPU, and
        // then it halts again.
        unsafe {
            asm!("cli", "hlt", options(nomem, nostack));
        }
    }
}

/// The time-stamp counter.
#[inline(always)]
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY: every CPU of this architecture has RDTSC, and ring 0 may use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The time-stamp counter, when all that stands before has been done, and before anything
/// that comes behind begins (SDM: "RDTSC—Read Time-Stamp Counter").
#[inline(always)]
#[must_use]
pub fn rdtsc_ordered() -> u64 {
    fence();
    let tsc = rdtsc();
    fence();
    tsc
}

#[inline(always)]
fn fence() {
    // SAFETY: every 64-bit CPU has LFENCE, which changes nothing.
    unsafe { core::arch::x86_64::_mm_lfence() };
}

/// OUT of one byte.
///
/// # Safety
/// The device at `port` must do nothing that breaks memory safety.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller vouches for the device.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags));
    }
}

/// IN of one byte.
///
/// # Safety
/// The device at `port` must do nothing that breaks memory safety.
#[must_use]
pub unsafe fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the caller vouches for the device.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags));
    }
    value
}

/// OUT of two bytes.
///
/// # Safety
/// The device at `port` must do nothing that breaks memory safety.
pub unsafe fn outw(port: u16, value: u16) {
    // SAFETY: the caller vouches for the device.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags));
    }
}

/// IN of two bytes.
///
/// # Safety
/// The device at `port` must do nothing that breaks memory safety.
#[must_use]
pub unsafe fn inw(port: u16) -> u16 {
    let value: u16;
    // SAFETY: the caller vouches for the device.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags));
    }
    value
}

/// IN of four bytes.
///
/// # Safety
/// The device at `port` must do nothing that breaks memory safety.
#[must_use]
pub unsafe fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: the caller vouches for the device.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
    }
    value
}

/// OUT of four bytes.
///
/// # Safety
/// The device at `port` must do nothing that breaks memory safety.
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: the caller vouches for the device.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Sets XCR0.
///
/// # Safety
/// CR4.OSXSAVE must be set and the CPU must support every bit of `value`.
pub unsafe fn xsetbv(value: u64) {
    use x86defs::bits::{Low, high32};
    // SAFETY: the caller vouches for the value; this code uses no vector registers.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value.low32(), in("edx") high32(value),
             options(nomem, nostack, preserves_flags));
    }
}
