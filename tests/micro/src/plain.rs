//! Instructions that any program is full of: they exit only where their memory
//! operand does.

use crate::asm::Width;
use crate::program::Generator;

type Item = fn(&mut Generator);

pub(crate) fn item(g: &mut Generator) {
    const ITEMS: [Item; 12] = [
        arithmetic, arithmetic, moves, moves, unary, shift, extend, exchange, flags, stack,
        strings, small,
    ];
    let item: Item = g.random.pick(&ITEMS);
    item(g);
}

fn wide(width: Width) -> u8 {
    u8::from(width != Width::B1)
}

/// `opcode` with a register and either a register or memory; with LOCK at
/// times where `lock` allows it and the memory operand is written.
fn with_operand(g: &mut Generator, width: Width, opcode: &[u8], lock: bool) {
    let reg = g.register();
    if g.random.chance(3) {
        let rm = g.register();
        g.begin();
        g.asm.reg(width, opcode, reg, rm);
    } else {
        let mem = g.operand(width, reg);
        g.begin();
        if lock && g.random.chance(6) {
            g.asm.byte(0xf0);
        }
        g.asm.mem(width, opcode, reg, &mem, 0);
    }
}

/// `opcode /extension` with an immediate of `imm`.
fn with_immediate(g: &mut Generator, width: Width, opcode: u8, extension: u8, imm: Option<Width>) {
    let value = g.random.value();
    let bytes = imm.map_or(0, |width| width.bytes().min(4));
    if g.random.chance(2) {
        let rm = g.register();
        g.begin();
        g.asm.reg(width, &[opcode], extension, rm);
    } else {
        let mem = g.operand(width, 4);
        g.begin();
        g.asm.mem(width, &[opcode], extension, &mem, bytes);
    }
    if let Some(imm) = imm {
        g.asm.imm(imm, value);
    }
}

fn arithmetic(g: &mut Generator) {
    let width = g.width();
    let operation = g.random.byte(8);
    match g.random.byte(3) {
        // CMP writes nothing: LOCK before it is refused.
        0 => with_operand(g, width, &[operation << 3 | wide(width)], operation != 7),
        1 => with_operand(g, width, &[operation << 3 | 2 | wide(width)], false),
        _ if width == Width::B1 => with_immediate(g, width, 0x80, operation, Some(Width::B1)),
        _ if g.random.chance(2) => with_immediate(g, width, 0x83, operation, Some(Width::B1)),
        _ => with_immediate(g, width, 0x81, operation, Some(width)),
    }
}

fn moves(g: &mut Generator) {
    let width = g.width();
    match g.random.byte(4) {
        0 => with_operand(g, width, &[0x88 | wide(width)], false),
        1 => with_operand(g, width, &[0x8a | wide(width)], false),
        2 => with_immediate(g, width, 0xc6 | wide(width), 0, Some(width)),
        _ => {
            let (register, value) = (g.register(), g.random.value());
            g.set(register, value);
        }
    }
}

fn unary(g: &mut Generator) {
    let width = g.width();
    match g.random.byte(4) {
        0 => {
            let extension = g.random.byte(2);
            with_immediate(g, width, 0xfe | wide(width), extension, None);
        }
        1 => with_immediate(g, width, 0xf6 | wide(width), 0, Some(width)),
        2 => {
            let extension = 2 + g.random.byte(2);
            with_immediate(g, width, 0xf6 | wide(width), extension, None);
        }
        _ => with_operand(g, width, &[0x84 | wide(width)], false),
    }
}

/// A shift by one, so that all flags that are looked at are defined.
fn shift(g: &mut Generator) {
    let width = g.width();
    let operation = g.random.pick(&[0u8, 1, 2, 3, 4, 5, 7]);
    with_immediate(g, width, 0xd0 | wide(width), operation, None);
}

fn extend(g: &mut Generator) {
    let opcode = g.random.pick(&[0xb6u8, 0xb7, 0xbe, 0xbf]);
    let width = match g.width() {
        Width::B1 => Width::B2,
        other => other,
    };
    with_operand(g, width, &[0x0f, opcode], false);
}

fn exchange(g: &mut Generator) {
    let width = g.width();
    match g.random.byte(3) {
        0 => with_operand(g, width, &[0x86 | wide(width)], false),
        1 => with_operand(g, width, &[0x0f, 0xb0 | wide(width)], true),
        _ => with_operand(g, width, &[0x0f, 0xc0 | wide(width)], true),
    }
}

fn flags(g: &mut Generator) {
    // CLC, STC, CMC, CLD, STD, LAHF, SAHF, CBW, CWD.
    let byte = g.random.pick(&[0xf8u8, 0xf9, 0xf5, 0xfc, 0xfd, 0x9f, 0x9e, 0x98, 0x99]);
    g.raw(&[byte]);
}

fn stack(g: &mut Generator) {
    match g.random.byte(6) {
        0 => g.raw(&[0x9c]),
        1 => g.raw(&[0x9d]),
        2 => {
            let value = g.random.byte(255);
            g.raw(&[0x6a, value]);
        }
        3 | 4 => {
            let register = g.register();
            g.begin();
            if register >= 8 {
                g.asm.byte(0x41);
            }
            g.asm.byte(0x50 | register & 7);
        }
        _ => {
            let register = g.register();
            g.begin();
            if register >= 8 {
                g.asm.byte(0x41);
            }
            g.asm.byte(0x58 | register & 7);
        }
    }
}

/// MOVS, STOS, LODS, SCAS, CMPS, most of them repeated a few times.
fn strings(g: &mut Generator) {
    let width = g.width();
    let opcode = g.random.pick(&[0xa4u8, 0xaa, 0xac, 0xae, 0xa6]) | wide(width);
    let (from, to) = (g.target(width), g.target(width));
    g.set(6, from);
    g.set(7, to);
    let count = g.random.below(6);
    g.set(1, count);
    g.begin();
    match g.random.byte(4) {
        0 => {}
        1 => g.asm.byte(0xf2),
        _ => g.asm.byte(0xf3),
    }
    match (g.asm.bits, width) {
        (16, Width::B4) => g.asm.bytes(&[0x66, 0x67]),
        (16, _) => g.asm.byte(0x67),
        (_, Width::B2) => g.asm.byte(0x66),
        (_, Width::B8) => g.asm.byte(0x48),
        _ => {}
    }
    g.asm.byte(opcode);
}

/// LEA, BSWAP, conditional moves and sets between registers.
fn small(g: &mut Generator) {
    let (a, b) = (g.register(), g.register());
    let condition = g.random.byte(16);
    match g.random.byte(4) {
        0 => {
            let mem = g.operand_at(0x4000_4000, a);
            g.begin();
            g.asm.mem(Width::B4, &[0x8d], a, &mem, 0);
        }
        1 => {
            // BSWAP of 16 bits is undefined.
            let width = if g.is_64() && g.random.chance(2) { Width::B8 } else { Width::B4 };
            g.begin();
            // The register is in the opcode: the encoder's last byte says so.
            g.asm.reg(width, &[0x0f], 1, a);
        }
        2 => {
            let width = if g.is_64() { Width::B8 } else { Width::B4 };
            g.begin();
            g.asm.reg(width, &[0x0f, 0x40 | condition], a, b);
        }
        _ => {
            g.begin();
            g.asm.reg(Width::B1, &[0x0f, 0x90 | condition], 0, b);
        }
    }
}
