//! Copies to and from a guest's RAM: the only code that lifts SMAP's guard,
//! and one of the few places where a fault is foreseen.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
use x86defs::Width;

/// Whether STAC and CLAC exist.
static SMAP: AtomicBool = AtomicBool::new(false);

/// Says whether this CPU guards user pages (CR4.SMAP is set).
pub(super) fn set_smap(enabled: bool) {
    SMAP.store(enabled, Ordering::Relaxed);
}

fn lift_guard() {
    if SMAP.load(Ordering::Relaxed) {
        // SAFETY: the CPU has STAC; the guard is put back before the caller returns.
        unsafe { asm!("stac", options(nomem, nostack)) };
    }
}

fn put_guard_back() {
    if SMAP.load(Ordering::Relaxed) {
        // SAFETY: the CPU has CLAC.
        unsafe { asm!("clac", options(nomem, nostack)) };
    }
}

/// Copies `len` bytes from `source` to `target`; a page fault on either side
/// ends it. Returns how many bytes were not copied.
///
/// # Safety
/// Each side must be either memory that the caller may read (or write), or lie
/// in the window of a guest's RAM; they do not overlap.
#[must_use]
pub(super) unsafe fn copy(source: u64, target: u64, len: usize) -> usize {
    let left: usize;
    lift_guard();
    // SAFETY: the caller vouches for the addresses. A fault is caught by the
    // exception table; RCX then holds what is left.
    unsafe {
        asm!(
            "2: rep movsb",
            "3:",
            ".pushsection extable, \"aR\"",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            inout("rcx") len => left, inout("rsi") source => _, inout("rdi") target => _,
            options(nostack),
        );
    }
    put_guard_back();
    stamped::bytes(len - left);
    left
}

/// Counts of the measured image: iterations of string copies, which emulators count as an
/// instruction each. Machine-wide; copies that the compiler makes are not among them.
#[cfg(feature = "stamp-exits")]
pub(super) mod stamped {
    use core::sync::atomic::{AtomicU64, Ordering};

    static BYTES: AtomicU64 = AtomicU64::new(0);
    static QUADWORDS: AtomicU64 = AtomicU64::new(0);

    /// Iterations of one byte.
    pub(super) fn bytes(iterations: usize) {
        BYTES.fetch_add(iterations as u64, Ordering::Relaxed);
    }

    /// Iterations of eight bytes.
    pub(super) fn quadwords(iterations: usize) {
        QUADWORDS.fetch_add(iterations as u64, Ordering::Relaxed);
    }

    /// All so far: of one byte, and of eight.
    pub(in crate::mm) fn all() -> [u64; 2] {
        [&BYTES, &QUADWORDS].map(|place| place.load(Ordering::Relaxed))
    }
}

/// In other images nothing is counted.
#[cfg(not(feature = "stamp-exits"))]
mod stamped {
    pub(super) const fn bytes(_iterations: usize) {}
    pub(super) const fn quadwords(_iterations: usize) {}
}

/// Fills `len` bytes at `target` with zeros, eight at a time; a page fault
/// ends it. Returns how many bytes were not filled. `len` is a multiple of 8.
///
/// # Safety
/// `target` lies in the window of a guest's RAM, or is memory that the caller may write.
#[must_use]
pub(super) unsafe fn zero(target: u64, len: usize) -> usize {
    let left: usize;
    lift_guard();
    // SAFETY: as for `copy`.
    unsafe {
        asm!(
            "2: rep stosq",
            "3:",
            ".pushsection extable, \"aR\"",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            inout("rcx") len / 8 => left, inout("rdi") target => _, in("rax") 0u64,
            options(nostack),
        );
    }
    put_guard_back();
    stamped::quadwords(len / 8 - left);
    left * 8
}

/// One instruction that may meet a page fault, which sets `$failed`. What to do then stands apart:
/// the usual way is straight.
macro_rules! foreseen {
    ($failed:ident, $instruction:expr, $($operands:tt)*) => {
        // SAFETY: the caller vouches for the address; a fault is caught by the exception table,
        // which sets the flag register.
        unsafe {
            asm!(
                concat!("2: ", $instruction),
                "3:",
                ".pushsection .text.unlikely, \"ax\", @progbits",
                "4: mov {failed:e}, 1",
                "jmp 3b",
                ".popsection",
                ".pushsection extable, \"aR\"",
                ".balign 4",
                ".long 2b - .",
                ".long 4b - .",
                ".popsection",
                failed = inout(reg) $failed,
                $($operands)*
            );
        }
    };
}

/// Reads `width` bytes at each of `sources`, in one access each. `Err` on a page fault.
///
/// # Safety
/// The `sources` lie in the window of a guest's RAM.
#[inline]
pub(super) unsafe fn load<const N: usize>(sources: [u64; N], width: Width) -> Result<[u64; N], ()> {
    let mut values = [0; N];
    let mut failed = 0_u64;
    macro_rules! load {
        ($instruction:literal) => {
            for (value, source) in values.iter_mut().zip(sources) {
                foreseen!(
                    failed, $instruction,
                    source = in(reg) source, value = out(reg) *value,
                    options(nostack, readonly, preserves_flags),
                );
            }
        };
    }
    lift_guard();
    match width {
        Width::B1 => load!("movzx {value:e}, byte ptr [{source}]"),
        Width::B2 => load!("movzx {value:e}, word ptr [{source}]"),
        Width::B4 => load!("mov {value:e}, [{source}]"),
        Width::B8 => load!("mov {value}, [{source}]"),
    }
    put_guard_back();
    if failed == 0 { Ok(values) } else { Err(()) }
}

/// LOCK CMPXCHG of `width` bytes at `target`. `Err` on a page fault, else what
/// was there before.
///
/// # Safety
/// `target` lies in the window of a guest's RAM and is aligned to `width`.
pub(super) unsafe fn compare_exchange(
    target: u64,
    width: Width,
    current: u64,
    new: u64,
) -> Result<u64, ()> {
    let mut old = current;
    let mut failed = 0_u64;
    macro_rules! exchange {
        ($instruction:literal) => {
            foreseen!(
                failed, concat!("lock cmpxchg ", $instruction),
                target = in(reg) target, new = in(reg) new, inout("rax") old,
                options(nostack),
            )
        };
    }
    lift_guard();
    match width {
        Width::B1 => exchange!("byte ptr [{target}], {new:l}"),
        Width::B2 => exchange!("word ptr [{target}], {new:x}"),
        Width::B4 => exchange!("dword ptr [{target}], {new:e}"),
        Width::B8 => exchange!("qword ptr [{target}], {new}"),
    }
    put_guard_back();
    if failed == 0 { Ok(width.truncate(old)) } else { Err(()) }
}
