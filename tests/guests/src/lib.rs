//! Tiny guest kernels: what they share.
//!
//! Each program in `src/bin` is a kernel of its own, entered by PVH in 32-bit
//! protected mode (or by Multiboot 1), which [`boot`] takes to long mode with
//! the first 4 GiB mapped one to one. A test guest runs its cases with
//! [`harness::Tests`], prints `ok NAME`, `skip NAME: why` or `FAILED NAME: why`
//! for each, then `N passed, M failed`, and writes 0 or 1 to port 0xf4.
//!
//! One CPU, one thread, no heap. The helpers for privileged instructions are
//! safe functions here although such an instruction can wreck the machine: the
//! machine belongs to the test, and a wrecked one is a failed test.
#![no_std]
#![expect(
    clippy::macro_metavars_in_unsafe,
    reason = "the instructions that catch_asm! is given are a test's, and it is for them to fault"
)]

pub mod apic;
pub mod boot;
pub mod console;
pub mod cpu;
pub mod harness;
pub mod info;
pub mod io;
pub mod paging;
pub mod pc;
pub mod smp;
pub mod time;
pub mod trap;
pub mod user;

/// Names the function that a guest runs once it is in long mode:
/// `guests::entry!(main);` with `fn main() -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() -> ! {
            $main()
        }
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAILED {}: {info}", harness::current());
    harness::exit(1)
}
