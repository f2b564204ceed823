//! Violations of the hypervisor's own rights in memory, one a run: each has to end in an
//! exception, and that in a panic which names it. For tests.
//!
//! A guest whose command line is [`COMMAND`] and the name of one is never started.

use crate::hw;
use crate::journal::{self, Status};
use crate::mm::layout;
use alloc::boxed::Box;
use config::layout::TABLES_START;
use core::hint::black_box;
use x86_64::instructions::tables::{sgdt, sidt};
use x86defs::GuestPhysAddr;

/// Beginning of a command line that asks for a violation.
const COMMAND: &str = "steward.violation=";
/// RET.
const RET: u8 = 0xc3;

/// The violation that `cmdline` asks for.
pub(super) fn requested(cmdline: &str) -> Option<&str> {
    cmdline.split_ascii_whitespace().next()?.strip_prefix(COMMAND)
}

/// Commits it, in the address space of a guest, whose tables have been written. Ends the run
/// either way.
pub(super) fn commit(name: &str) -> ! {
    let guest = layout::WINDOW.at(GuestPhysAddr::new(TABLES_START), 1).unwrap_or(0);
    match name {
        "write-code" => write(requested as *const () as u64),
        "run-data" => run(core::ptr::from_ref(Box::leak(Box::new([RET; 16]))) as u64),
        "run-guest" => run(guest),
        "read-guest" => read(guest),
        "write-guest" => write(guest),
        // Below the first stack of all.
        "guard-page" => write(layout::STACKS),
        "overflow" => _ = black_box(overflow(0)),
        "gdt" => write(sgdt().base.as_u64() + 8),
        "idt" => write(sidt().base.as_u64()),
        "maps" => write(hw::permission_maps().unwrap_or(0)),
        _ => journal::end(Status::REFUSED, format_args!("there is no violation {name}")),
    }
    journal::end(Status::OK, format_args!("the violation {name} was not caught"))
}

fn write(at: u64) {
    // SAFETY: none of the places that it is called with is writable: the CPU refuses, which
    // ends the run. If it does not, the run ends right behind the write.
    unsafe { (at as *mut u8).write_volatile(0) };
}

fn read(at: u64) {
    // SAFETY: as for `write`; reading changes nothing.
    let _ = black_box(unsafe { (at as *const u8).read_volatile() });
}

fn run(at: u64) {
    // SAFETY: a pointer to code is one word. The CPU refuses to run what is there.
    let code = unsafe { core::mem::transmute::<u64, extern "C" fn()>(at) };
    code();
}

/// Calls itself until the stack ends, and the guard page behind it stops that.
#[expect(unconditional_recursion, reason = "the stack has to end")]
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow(depth.wrapping_add(1)).wrapping_add(frame[0])
}
