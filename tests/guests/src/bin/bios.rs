//! Bottom of the machine: the real-mode vectors, the ROM behind them, the MP table. The second
//! CPU makes the calls, as it is in real mode when it starts.
//!
//! With `reset` on the command line it jumps to the reset vector, with `boot` it asks the BIOS to
//! boot again: both end the guest.
#![no_std]
#![no_main]

use core::arch::global_asm;
use core::ptr;
use guests::apic::{Lapic, reg};
use guests::harness::{Outcome, Tests, halt};
use guests::{check, check_eq, info, time};

guests::entry!(main);

global_asm!(
    r#"
    .section .text.bios, "ax", @progbits
    .code16
    .globl bios_start, bios_call, bios_end
bios_start:                     # copied to 0x8000
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7000, %sp
    movw $0x5678, %dx
    movw $0x9abc, %bp
    movl 0x9000, %eax
    clc
bios_call:                      # the instruction under test goes here
    .skip 5, 0x90
    pushfw
    popw 0x9008
    movl %eax, 0x9004
    movw %dx, 0x900a
    movw %bp, 0x900c
    movw %sp, 0x900e
    movw $1, 0x9010
1:  hlt
    jmp 1b
bios_end:
    .code64
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static bios_start: u8;
    static bios_call: u8;
    static bios_end: u8;
}

/// Address at which the second CPU starts.
const CODE: u64 = 0x8000;
/// Address of what goes in and comes out: see the code above.
const BOX: u64 = 0x9000;
/// The upper half of EAX, which no call may change.
const HIGH: u32 = 0xabcd_0000;

fn at<T>(address: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

fn poke<T>(address: u64, value: T) {
    // SAFETY: RAM below 640 KiB that only this guest's code uses; it is mapped.
    unsafe { at::<T>(address).write_volatile(value) };
}

/// Registers and flags after a call.
struct Answer {
    eax: u32,
    flags: u16,
    /// DX, BP and SP.
    others: [u16; 3],
}

/// Lets the second CPU do `instruction` in real mode with `ax`; `None` if it does not get behind
/// it.
fn run(instruction: [u8; 5], ax: u16) -> Option<Answer> {
    let code = &raw const bios_start;
    let length = (&raw const bios_end).addr() - code.addr();
    // SAFETY: the code is part of the image; its copy's place is RAM that nobody uses.
    unsafe { ptr::copy_nonoverlapping(code, at(CODE), length) };
    let offset = (&raw const bios_call).addr() - code.addr();
    poke(CODE + offset as u64, instruction);
    poke(BOX, HIGH | u32::from(ax));
    poke(BOX + 0x10, 0u16);
    let apic = Lapic::X1;
    let send = |command: u32| {
        apic.write(reg::ICR_HIGH, 1 << 24);
        apic.command(command);
    };
    send(0x4500);
    time::delay(1000);
    send(0x4600 | 0x08);
    let done = || info::peek::<u16>(BOX + 0x10) == 1;
    time::wait_for(100, done).then(|| Answer {
        eax: info::peek(BOX + 4),
        flags: info::peek(BOX + 8),
        others: [10, 12, 14].map(|offset| info::peek(BOX + offset)),
    })
}

fn int(vector: u8, ax: u16) -> Option<Answer> {
    run([0xcd, vector, 0x90, 0x90, 0x90], ax)
}

fn main() -> ! {
    if info::flag("reset") {
        let _ = run([0xea, 0, 0, 0xff, 0xff], 0);
        halt();
    }
    if info::flag("boot") {
        let _ = int(0x19, 0);
        halt();
    }
    let mut tests = Tests::new();
    tests.case("vectors", vectors);
    tests.case("services_are_refused", services_are_refused);
    tests.case("answers", answers);
    tests.case("interrupts_and_traps_return", interrupts_and_traps_return);
    tests.case("faults_stop", faults_stop);
    tests.case("mp_table", mp_table);
    tests.case("rom_is_read_only", rom_is_read_only);
    tests.finish()
}

fn vectors() -> Outcome {
    // Vector 0 stands at address 0, which Rust does not read.
    for vector in 1..256u64 {
        let segment = info::peek::<u16>(vector * 4 + 2);
        check_eq!(segment, 0xf000, "segment of vector {vector:#x}");
        let stub = 0xf_0000 + u64::from(info::peek::<u16>(vector * 4));
        check_eq!(info::peek::<u8>(stub), 0xe8, "CALL behind vector {vector:#x}");
    }
    check_eq!(info::peek::<u8>(0xf_fff0), 0xea, "a far jump at the reset vector");
    check_eq!(info::peek::<u8>(0xf_fffe), 0xfc, "the model byte");
    Ok(())
}

fn kept(answer: &Answer) -> Outcome {
    check_eq!(answer.others, [0x5678, 0x9abc, 0x7000], "DX, BP, SP");
    check_eq!(answer.eax & 0xffff_0000, HIGH, "the upper half of EAX");
    Ok(())
}

fn services_are_refused() -> Outcome {
    for (vector, ax) in
        [(0x15, 0xe820), (0x15, 0xe801), (0x13, 0x4100), (0x10, 0x4f00), (0x1a, 2), (0xff, 0x1234)]
    {
        // Said once, however often it is called.
        for _ in 0..2 {
            let Some(answer) = int(vector, ax) else {
                check!(false, "INT {vector:#x} does not return");
                return Ok(());
            };
            kept(&answer)?;
            check_eq!(answer.flags & 1, 1, "carry of INT {vector:#x}, AX {ax:#x}");
            check_eq!(answer.eax & 0xffff, 0x8600 | u32::from(ax & 0xff), "AX of INT {vector:#x}");
        }
    }
    Ok(())
}

/// Two services that have no way to fail: whoever calls them believes what is in AX.
fn answers() -> Outcome {
    for (vector, wanted) in [(0x11, 0x202), (0x12, 639)] {
        let Some(answer) = int(vector, 0xffff) else {
            check!(false, "INT {vector:#x} does not return");
            return Ok(());
        };
        kept(&answer)?;
        check_eq!(answer.eax & 0xffff, wanted, "AX of INT {vector:#x}");
        check_eq!(answer.flags & 1, 0, "carry of INT {vector:#x}");
    }
    Ok(())
}

/// Interrupts and traps leave the interrupted code's registers and flags unchanged.
fn interrupts_and_traps_return() -> Outcome {
    for vector in [0x01, 0x02, 0x03, 0x04, 0x0f, 0x70, 0x77] {
        let Some(answer) = int(vector, 0x4321) else {
            check!(false, "INT {vector:#x} does not return");
            return Ok(());
        };
        kept(&answer)?;
        check_eq!(answer.eax & 0xffff, 0x4321, "AX of INT {vector:#x}");
        check_eq!(answer.flags & 1, 0, "carry of INT {vector:#x}");
    }
    Ok(())
}

fn faults_stop() -> Outcome {
    // UD2: to return would be to execute it again.
    check!(run([0x0f, 0x0b, 0x90, 0x90, 0x90], 0).is_none(), "goes on behind #UD");
    check!(int(0x18, 0).is_none(), "goes on behind INT 18h");
    check!(int(0x15, 0).is_some(), "does not start again");
    Ok(())
}

fn mp_table() -> Outcome {
    let found =
        (0xf_0000..0x10_0000u64).step_by(16).find(|&at| info::peek::<u32>(at) == 0x5f50_4d5f);
    let Some(pointer) = found else {
        check!(false, "no MP floating pointer structure");
        return Ok(());
    };
    let table = u64::from(info::peek::<u32>(pointer + 4));
    check_eq!(info::peek::<u32>(table), 0x504d_4350, "the table's signature");
    let length = u64::from(info::peek::<u16>(table + 4));
    let sum = (table..table + length).fold(0u8, |sum, at| sum.wrapping_add(info::peek(at)));
    check_eq!(sum, 0, "the table's checksum");
    let second = table + 44 + 20;
    check_eq!(info::peek::<[u8; 2]>(second), [0, 1], "the second processor");
    Ok(())
}

fn rom_is_read_only() -> Outcome {
    let before = info::peek::<u32>(0xf_fff0);
    poke(0xf_fff0, !before);
    check_eq!(info::peek::<u32>(0xf_fff0), before, "the reset vector after a write");
    Ok(())
}
