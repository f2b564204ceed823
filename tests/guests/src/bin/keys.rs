//! Protection keys of user pages: the CPU's answer for RAM, and the emulator's for device memory.
//!
//! One page of RAM and the I/O APIC's registers are mapped with the same key. For each right that
//! PKRU can give, reads and writes of both, by the kernel and by ring 3, must end alike. The keys'
//! rights must be there after exits. With `keys-for-programs-only` accesses in
//! ring 0 are left out: the CPU knows no keys there.
#![no_std]
#![no_main]

use core::arch::asm;
use guests::harness::{Outcome, Tests};
use guests::paging::{self as tables, bits};
use guests::trap::vector;
use guests::{catch_asm, check, check_eq, cpu, info, time, user};

guests::entry!(main);

/// CR4.PKE and CR4.OSXSAVE.
const PKE: u64 = 1 << 22;
const OSXSAVE: u64 = 1 << 18;
/// CR0.WP.
const WP: u64 = 1 << 16;
/// XCR0: x87, SSE, PKRU.
const STATES: u64 = 1 | 1 << 1 | 1 << 9;
/// The key of both pages.
const KEY: u64 = 5;
/// Linear addresses of RAM and of the device.
const RAM: u64 = 0x60_0000_0000;
const DEVICE: u64 = 0x60_0000_1000;
/// The I/O APIC's registers.
const IO_APIC: u64 = 0xfec0_0000;
/// A page of RAM.
const PAGE: u64 = user::DATA + 0x6_0000;
/// Bit of a page fault's error code: a key forbade it.
const BY_KEY: u32 = 1 << 5;

fn main() -> ! {
    let mut tests = Tests::new();
    tests.case("offered", offered);
    tests.case("switched_on", switched_on);
    tests.case("rights", rights);
    tests.case("rights_without_write_protection", rights_without_write_protection);
    tests.case("kept", kept);
    tests.case("switched_off", switched_off);
    tests.finish()
}

fn write_pkru(value: u32) {
    // SAFETY: keys are switched on, and no key but `KEY` is used.
    unsafe { asm!("wrpkru", in("eax") value, in("ecx") 0, in("edx") 0, options(nostack)) };
}

fn read_pkru() -> u32 {
    let value: u32;
    // SAFETY: keys are switched on.
    unsafe { asm!("rdpkru", out("eax") value, in("ecx") 0, out("edx") _, options(nostack)) };
    value
}

fn offered() -> Outcome {
    check_eq!(cpu::features7().ecx >> 3 & 3, 1, "PKU, not yet OSPKE");
    let states = cpu::cpuid(0xd, 0).eax;
    check_eq!(states >> 9 & 1, 1, "PKRU among the states, {states:#x}");
    Ok(())
}

fn switched_on() -> Outcome {
    check!(cpu::set_cr4(cpu::cr4() | PKE | OSXSAVE).is_none(), "CR4");
    check!(cpu::xsetbv(0, STATES).is_none(), "XCR0");
    check_eq!(cpu::features7().ecx >> 3 & 3, 3, "PKU and OSPKE");
    write_pkru(0);
    let flags = bits::PRESENT | bits::WRITE | bits::USER | KEY << 59;
    user::init();
    tables::map(RAM, PAGE, flags);
    tables::map(DEVICE, IO_APIC, flags | bits::PCD);
    Ok(())
}

/// An access: who makes it, and whether it writes.
#[derive(Clone, Copy, Debug)]
struct Access {
    user: bool,
    write: bool,
}

impl Access {
    /// Makes the access at `at`. The answer is the page fault's error code, if there is one.
    fn make(self, at: u64) -> Result<Option<u32>, (u8, u32)> {
        // MOV [RBX], EAX or MOV EAX, [RBX]; INT 80.
        let code = [if self.write { 0x89 } else { 0x8b }, 0x03, 0xcd, 0x80];
        let caught = match (self.user, self.write) {
            (true, _) => Some(user::run(&code, [0, at, 0, 0])),
            (false, true) => catch_asm!(["mov [{at}], eax"], at = in(reg) at, in("eax") 0),
            (false, false) => catch_asm!(["mov eax, [{at}]"], at = in(reg) at, out("eax") _),
        };
        match caught {
            None => Ok(None),
            Some(trap) if trap.vector == vector::USER_RETURN => Ok(None),
            Some(trap) if trap.vector == vector::PF => {
                if trap.cr2 == at {
                    Ok(Some(trap.error))
                } else {
                    Err((trap.vector, trap.error))
                }
            }
            Some(trap) => Err((trap.vector, trap.error)),
        }
    }
}

/// Bits of a page fault's error code: the page was there, a write, by ring 3.
fn wanted(access: Access, forbidden: bool) -> Option<u32> {
    let code = 1 | u32::from(access.write) << 1 | u32::from(access.user) << 2 | BY_KEY;
    forbidden.then_some(code)
}

/// Each right, access and place; writes of the kernel count where `protected`.
fn compare(protected: bool) -> Outcome {
    for number in 0..16 {
        let (right, user, write) = (number & 3, number & 4 != 0, number & 8 != 0);
        let access = Access { user, write };
        // Every other key has all rights.
        write_pkru(right << (2 * KEY));
        let (in_ram, in_device) = (access.make(RAM), access.make(DEVICE));
        write_pkru(0);
        let forbidden = right & 1 != 0 || right & 2 != 0 && write && (user || protected);
        if !user && info::flag("keys-for-programs-only") {
            continue;
        }
        let wanted = Ok(wanted(access, forbidden));
        check!(in_ram == wanted, "right {right}, {access:?}, RAM: {in_ram:?}");
        check!(in_device == wanted, "right {right}, {access:?}, device: {in_device:?}");
    }
    Ok(())
}

fn rights() -> Outcome {
    check!(cpu::set_cr0(cpu::cr0() | WP).is_none(), "CR0.WP");
    compare(true)
}

fn rights_without_write_protection() -> Outcome {
    check!(cpu::set_cr0(cpu::cr0() & !WP).is_none(), "CR0.WP");
    let outcome = compare(false);
    check!(cpu::set_cr0(cpu::cr0() | WP).is_none(), "CR0.WP");
    outcome
}

/// Rights outlast exits and turns of the hypervisor.
fn kept() -> Outcome {
    let mut value: u32 = 0x5a5a_5a50;
    let end = cpu::rdtsc() + time::micros(60_000);
    while cpu::rdtsc() < end {
        // Key 0 keeps all rights.
        value = (value.rotate_left(5) ^ 0x1357_9bd0) & !3;
        write_pkru(value);
        let _ = cpu::cpuid(0, 0);
        time::delay(300);
        check_eq!(read_pkru(), value, "after exits");
    }
    write_pkru(0);
    Ok(())
}

fn switched_off() -> Outcome {
    write_pkru(u32::MAX << 2);
    check!(cpu::set_cr4(cpu::cr4() & !PKE).is_none(), "CR4");
    let access = Access { user: true, write: true };
    check_eq!((access.make(RAM), access.make(DEVICE)), (Ok(None), Ok(None)), "without keys");
    check!(catch_asm!(["rdpkru"], in("ecx") 0, out("eax") _, out("edx") _).is_some(), "RDPKRU");
    Ok(())
}
