//! The ROM at the bottom of a PC: what a CPU finds at f000:fff0 and behind every vector of the
//! real-mode interrupt vector table.
//!
//! There is no BIOS. A kernel that jumps to the reset vector (Linux' `reboot=b`) resets its
//! machine; one that calls a service finds the carry flag set and AH = 86h, "function not
//! supported", as a PC's BIOS answers for what it has not; one whose fault nobody handles stops
//! for good, as returning would only repeat it. Each first says so at
//! [`FIRMWARE_PORT`].
//!
//! The code is written down byte by byte, an instruction a line, with what it is beside it; a test
//! disassembles it and compares. It needs a stack, and changes no register but those that it
//! answers in.

use alloc::vec::Vec;
use config::layout::{FIRMWARE_PORT, FIRMWARE_RESET, RESET_PORT, RESET_VALUE, ROM_CODE_START};
use x86defs::Low;

/// The segment that the ROM's code runs in.
const SEGMENT: u16 = 0xf000;
/// First offset of the code in that segment: a stub for each vector.
const STUBS: u16 = 0xf000;
/// Bytes of a stub: a near call, which leaves behind which vector it was.
const STUB_SIZE: u16 = 3;
/// Vectors of real mode.
const VECTORS: u16 = 256;
/// Offset at which a CPU begins after a reset, and to which software jumps that wants one.
const RESET_VECTOR: u16 = 0xfff0;
/// The ROM's bytes: the rest of the segment.
const SIZE: usize = 0x1000;
const _: () = assert!(ROM_CODE_START == ((SEGMENT as u64) << 4) + STUBS as u64);
const _: () = assert!(STUBS as usize + SIZE == 0x1_0000);

/// Bytes behind the jump at the reset vector: the ROM's date, and a byte that says "PC/AT".
const DATE_AND_MODEL: [u8; 11] = *b"01/01/26\0\xfc\0";

/// Entry points of the routines, as offsets in [`SEGMENT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Routines {
    /// Services that are not there.
    unsupported: u16,
    /// INT 11h, which has no way to fail: the equipment word.
    equipment: u16,
    /// INT 12h, likewise: KiB of conventional memory.
    memory: u16,
    /// Traps and NMIs: execution goes on.
    trap: u16,
    /// Faults, and INT 18h, "nothing to boot from": the CPU stops.
    stop: u16,
    /// INT 19h, "boot again".
    boot: u16,
    /// Interrupts of the first 8259; where it has none in service, a CPU's exception.
    first_irq: u16,
    /// Interrupt 7 of the first 8259, which may come without a cause.
    spurious_irq: u16,
    /// Interrupts of the second 8259.
    second_irq: u16,
}

impl Routines {
    /// Routine that serves a vector. The 8259s' vectors are those of a PC's BIOS, to which
    /// only the guest itself sets its 8259s.
    const fn of(&self, vector: u8) -> u16 {
        match vector {
            0 | 5..=7 | 0x18 => self.stop,
            1..=4 => self.trap,
            0x08..=0x0e => self.first_irq,
            0x0f => self.spurious_irq,
            0x11 => self.equipment,
            0x12 => self.memory,
            0x19 => self.boot,
            0x70..=0x77 => self.second_irq,
            _ => self.unsupported,
        }
    }
}

/// The ROM while it is put together.
struct Code {
    bytes: Vec<u8>,
}

impl Code {
    /// The offset of the next instruction.
    fn here(&self) -> u16 {
        STUBS.wrapping_add(self.bytes.len().low16())
    }

    /// One instruction.
    fn op(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An instruction that ends with a word.
    fn op16(&mut self, bytes: &[u8], word: u16) {
        self.op(bytes);
        self.op(&word.to_le_bytes());
    }

    /// An instruction with a displacement of 16 bits from its end.
    fn near(&mut self, opcode: u8, target: u16) {
        let end = self.here().wrapping_add(3);
        self.op16(&[opcode], target.wrapping_sub(end));
    }

    /// `call target`.
    fn call(&mut self, target: u16) {
        self.near(0xe8, target);
    }

    /// `jmp target`.
    fn jump(&mut self, target: u16) {
        self.near(0xe9, target);
    }
}

/// The code, from [`ROM_CODE_START`] to 1 MiB.
pub(crate) fn code() -> Vec<u8> {
    assemble().0
}

fn assemble() -> (Vec<u8>, Routines) {
    let stubs = usize::from(VECTORS * STUB_SIZE);
    let mut code = Code { bytes: Vec::from_iter(core::iter::repeat_n(0, stubs)) };
    let report = report(&mut code);
    let reset_now = reset_now(&mut code);
    let routines = Routines {
        unsupported: unsupported(&mut code, report),
        equipment: bios_word(&mut code, report, BDA_EQUIPMENT),
        memory: bios_word(&mut code, report, BDA_MEMORY),
        trap: trap(&mut code, report),
        stop: stop(&mut code, report),
        boot: boot(&mut code, report, reset_now),
        ..Routines::default()
    };
    let first_irq = first_irq(&mut code, routines.stop);
    let spurious_irq = first_irq_or_none(&mut code);
    let second_irq = second_irq(&mut code);
    let routines = Routines { first_irq, spurious_irq, second_irq, ..routines };
    let reset = reset(&mut code, reset_now);
    let mut bytes = code.bytes;

    let mut table = Code { bytes: Vec::new() };
    for vector in 0..=u8::MAX {
        table.call(routines.of(vector));
    }
    for (to, from) in bytes.iter_mut().zip(&table.bytes) {
        *to = *from;
    }
    bytes.resize(usize::from(RESET_VECTOR - STUBS), 0);
    let mut end = Code { bytes };
    end.op16(&[0xea], reset); // jmp f000:reset
    end.op(&SEGMENT.to_le_bytes());
    end.op(&DATE_AND_MODEL);
    (end.bytes, routines)
}

/// The interrupt vector table, for address 0: each entry an offset and a segment.
pub(crate) fn vectors() -> Vec<u8> {
    let entry = |vector: u16| [STUBS + vector * STUB_SIZE, SEGMENT];
    (0..VECTORS).flat_map(entry).flat_map(u16::to_le_bytes).collect()
}

/// BIOS data area: which devices there are.
pub(crate) const BDA_EQUIPMENT: u16 = 0x10;
/// BIOS data area: KiB of conventional memory.
pub(crate) const BDA_MEMORY: u16 = 0x13;

/// Says which vector was entered, and with what in AX. On the stack: a return address of the
/// routine, that of the stub, IP, CS, FLAGS.
fn report(code: &mut Code) -> u16 {
    let at = code.here();
    code.op(&[0x55]); // push bp
    code.op(&[0x89, 0xe5]); // mov bp, sp
    code.op(&[0x66, 0x50]); // push eax
    code.op(&[0x52]); // push dx
    code.op(&[0x8b, 0x46, 0x04]); // mov ax, [bp+4]: behind the stub
    code.op16(&[0x2d], STUBS + STUB_SIZE); // sub ax, behind the first stub
    code.op(&[0xb2, 0x03]); // mov dl, 3: the bytes of a stub
    code.op(&[0xf6, 0xf2]); // div dl: AL is the vector, AH 0
    code.op(&[0x66, 0xc1, 0xe0, 0x10]); // shl eax, 16
    code.op(&[0x8b, 0x46, 0xfc]); // mov ax, [bp-4]: AX as it was
    code.op16(&[0xba], FIRMWARE_PORT); // mov dx, port
    code.op(&[0x66, 0xef]); // out dx, eax
    code.op(&[0x5a]); // pop dx
    code.op(&[0x66, 0x58]); // pop eax
    code.op(&[0x5d]); // pop bp
    code.op(&[0xc3]); // ret
    at
}

/// Resets the machine by its reset control register.
fn reset_now(code: &mut Code) -> u16 {
    let at = code.here();
    code.op16(&[0xba], RESET_PORT); // mov dx, port
    code.op(&[0xb0, 0x02]); // mov al, 2: a hard reset, not yet
    code.op(&[0xee]); // out dx, al
    code.op(&[0xb0, RESET_VALUE]); // mov al, 6: now
    code.op(&[0xee]); // out dx, al
    halt(code);
    at
}

/// Nothing goes on from here.
fn halt(code: &mut Code) {
    code.op(&[0xfa]); // cli
    code.op(&[0xf4]); // hlt
    code.op(&[0xeb, 0xfc]); // jmp to the cli
}

/// Says what happened and forgets which stub it was: IP, CS and FLAGS are left.
fn say(code: &mut Code, report: u16) -> u16 {
    let at = code.here();
    code.call(report);
    code.op(&[0x83, 0xc4, 0x02]); // add sp, 2
    at
}

fn unsupported(code: &mut Code, report: u16) -> u16 {
    let at = say(code, report);
    code.op(&[0xb4, 0x86]); // mov ah, 86h: function not supported
    code.op(&[0x55]); // push bp
    code.op(&[0x89, 0xe5]); // mov bp, sp
    code.op(&[0x80, 0x4e, 0x06, 0x01]); // or byte [bp+6], 1: the caller's carry flag
    code.op(&[0x5d]); // pop bp
    code.op(&[0xcf]); // iret
    at
}

/// Answers with a word of the BIOS data area.
fn bios_word(code: &mut Code, report: u16, offset: u16) -> u16 {
    let at = say(code, report);
    code.op(&[0x1e]); // push ds
    code.op16(&[0xb8], 0x40); // mov ax, 40h
    code.op(&[0x8e, 0xd8]); // mov ds, ax
    code.op16(&[0xa1], offset); // mov ax, [offset]
    code.op(&[0x1f]); // pop ds
    code.op(&[0xcf]); // iret
    at
}

fn trap(code: &mut Code, report: u16) -> u16 {
    let at = say(code, report);
    code.op(&[0xcf]); // iret
    at
}

fn stop(code: &mut Code, report: u16) -> u16 {
    let at = say(code, report);
    halt(code);
    at
}

fn boot(code: &mut Code, report: u16, reset_now: u16) -> u16 {
    let at = say(code, report);
    code.jump(reset_now);
    at
}

/// Asks the first 8259 what is in service, and ends it; the zero flag is set where nothing is.
/// AX is on the stack.
fn end_of_first(code: &mut Code) {
    code.op(&[0x50]); // push ax
    code.op(&[0xb0, 0x0b]); // mov al, 0bh: read the in-service register
    code.op(&[0xe6, 0x20]); // out 20h, al
    code.op(&[0xe4, 0x20]); // in al, 20h
    code.op(&[0x84, 0xc0]); // test al, al
    code.op(&[0x74, 0x08]); // jz to what follows the iret
    code.op(&[0xb0, 0x20]); // mov al, 20h: end of interrupt
    code.op(&[0xe6, 0x20]); // out 20h, al
    leave_interrupt(code);
}

/// Back to what was interrupted, whose flags and registers are as they were.
fn leave_interrupt(code: &mut Code) {
    code.op(&[0x58]); // pop ax
    code.op(&[0x44]); // inc sp
    code.op(&[0x44]); // inc sp: the stub's return address
    code.op(&[0xcf]); // iret
}

fn first_irq(code: &mut Code, stop: u16) -> u16 {
    let at = code.here();
    end_of_first(code);
    code.op(&[0x58]); // pop ax
    code.jump(stop);
    at
}

fn first_irq_or_none(code: &mut Code) -> u16 {
    let at = code.here();
    end_of_first(code);
    leave_interrupt(code);
    at
}

/// Ends an interrupt of the second 8259 at both; one without a cause only at the first, where it
/// was the cascade's.
fn second_irq(code: &mut Code) -> u16 {
    let at = code.here();
    code.op(&[0x50]); // push ax
    code.op(&[0xb0, 0x0b]); // mov al, 0bh: read the in-service register
    code.op(&[0xe6, 0xa0]); // out 0a0h, al
    code.op(&[0xe4, 0xa0]); // in al, 0a0h
    code.op(&[0x84, 0xc0]); // test al, al
    code.op(&[0xb0, 0x20]); // mov al, 20h: end of interrupt
    code.op(&[0x74, 0x02]); // jz behind the next
    code.op(&[0xe6, 0xa0]); // out 0a0h, al
    code.op(&[0xe6, 0x20]); // out 20h, al
    leave_interrupt(code);
    at
}

/// Routine that the jump at the reset vector leads to.
fn reset(code: &mut Code, reset_now: u16) -> u16 {
    let at = code.here();
    code.op(&[0x66, 0xb8]); // mov eax, the reset's entry
    code.op(&FIRMWARE_RESET.to_le_bytes());
    code.op16(&[0xba], FIRMWARE_PORT); // mov dx, port
    code.op(&[0x66, 0xef]); // out dx, eax
    code.jump(reset_now);
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::string::String;
    use x86defs::control::CpuMode;

    /// The instructions from `at` to `end`, by their offset.
    fn listing(bytes: &[u8], at: u16, end: u16) -> BTreeMap<u16, String> {
        let range = usize::from(at - STUBS)..usize::from(end - STUBS);
        let mut text = String::new();
        x86emu::disassemble(&bytes[range], CpuMode::Real, at.into(), &mut text).unwrap();
        let line = |line: &str| {
            let (ip, instruction) = line.trim().split_once("  ").unwrap();
            let ip = u64::from_str_radix(ip.trim_start_matches("0x"), 16).unwrap();
            (ip.low16(), String::from(instruction))
        };
        text.lines().map(line).collect()
    }

    /// Target of a branch, from its text.
    fn target(instruction: &str) -> Option<u16> {
        let hex = instruction.rsplit(' ').next()?;
        u16::from_str_radix(hex.strip_suffix('h')?, 16).ok()
    }

    #[test]
    fn the_code_is_what_the_comments_say() {
        let (bytes, routines) = assemble();
        assert_eq!(bytes.len(), SIZE);
        let text = |at: u16, count: usize| {
            let found = listing(&bytes, at, at + 0x60);
            found.into_values().take(count).collect::<Vec<_>>().join("; ")
        };
        let report = STUBS + VECTORS * STUB_SIZE;
        assert_eq!(
            text(report, 16),
            "push bp; mov bp,sp; push eax; push dx; mov ax,[bp+4]; sub ax,0F003h; mov dl,3; \
             div dl; shl eax,10h; mov ax,[bp-4]; mov dx,508h; out dx,eax; pop dx; pop eax; \
             pop bp; ret"
        );
        let said = "call 0F300h; add sp,2; ";
        for (at, count, wanted) in [
            (
                routines.unsupported,
                8,
                "mov ah,86h; push bp; mov bp,sp; or byte ptr [bp+6],1; pop bp; iret",
            ),
            (routines.equipment, 8, "push ds; mov ax,40h; mov ds,ax; mov ax,[10h]; pop ds; iret"),
            (routines.memory, 8, "push ds; mov ax,40h; mov ds,ax; mov ax,[13h]; pop ds; iret"),
            (routines.trap, 3, "iret"),
        ] {
            assert_eq!(text(at, count), alloc::format!("{said}{wanted}"));
        }
        assert_eq!(text(routines.stop, 4), alloc::format!("{said}cli; hlt"));
        let entry = &bytes[usize::from(RESET_VECTOR - STUBS)..];
        assert_eq!((entry[0], &entry[3..5]), (0xea, [0, 0xf0].as_slice()), "a far jump to f000");
        let reset = u16::from_le_bytes([entry[1], entry[2]]);
        assert!(text(reset, 3).starts_with("mov eax,1000000h; mov dx,508h; out dx,eax"));
        assert_eq!(&bytes[SIZE - 2..], b"\xfc\0");
    }

    /// Each jump leads to the begin of an instruction, and each vector to its routine.
    #[test]
    fn every_branch_arrives() {
        let (bytes, routines) = assemble();
        let start = STUBS + VECTORS * STUB_SIZE;
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or_default();
        assert_eq!(end, SIZE - 2);
        let used = bytes[..usize::from(RESET_VECTOR - STUBS)].iter().rposition(|byte| *byte != 0);
        let end = STUBS + used.unwrap().low16() + 1;
        let code = listing(&bytes, start, end);
        let mut branches = 0;
        for text in code.values().filter(|text| text.starts_with('j') || text.starts_with("call")) {
            assert!(code.contains_key(&target(text).unwrap()), "{text}");
            branches += 1;
        }
        assert!(branches > 10);
        let table = vectors();
        for vector in 0..=u8::MAX {
            let entry = &table[usize::from(vector) * 4..][..4];
            let offset = u16::from_le_bytes([entry[0], entry[1]]);
            assert_eq!(entry[2..], SEGMENT.to_le_bytes());
            let stub = listing(&bytes, offset, offset + STUB_SIZE);
            let routine = target(&stub[&offset]).unwrap();
            assert_eq!(routine, routines.of(vector), "vector {vector:#x}");
            assert!(code.contains_key(&routine));
        }
    }
}
