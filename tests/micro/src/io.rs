//! Port I/O. Only ports whose answer depends on nothing but the program.

use crate::asm::Width;
use crate::layout::{self, Page};
use crate::program::Generator;

/// Ports that may be read with any width: nobody's, the serial port's scratch
/// register, masks of the 8259s, PCI configuration, power management.
const READ: [u16; 12] =
    [0x80, 0x84, 0xed, 0x3ff, 0x2f8, 0x1234, 0xffff, 0xcfc, 0x602, 0x604, 0x505, 0x64];
/// Ports that may be written with any width without a consequence.
const WRITE: [u16; 6] = [0x80, 0x84, 0xed, 0x3ff, 0x2f8, 0x1234];
/// PCI's address register: only as a whole, as the reset register lies inside.
const PCI_ADDRESS: u16 = 0xcf8;

pub(crate) fn item(g: &mut Generator) {
    match g.random.byte(8) {
        0..=2 => input(g),
        3 | 4 => output(g),
        5 => {
            let value = g.random.draw() & 0x80ff_fffc;
            g.set(2, PCI_ADDRESS.into());
            g.set(0, value);
            g.begin();
            operand_size(g, Width::B4);
            g.asm.byte(0xef);
        }
        _ => strings(g),
    }
}

/// One, two or four bytes.
fn width(g: &mut Generator) -> Width {
    g.random.pick(&[Width::B1, Width::B2, Width::B4])
}

fn operand_size(g: &mut Generator, width: Width) {
    let wide = match g.asm.bits {
        16 => width == Width::B4,
        _ => width == Width::B2,
    };
    if wide {
        g.asm.byte(0x66);
    }
}

/// An instruction whose lowest opcode bit tells bytes from more.
fn sized(g: &mut Generator, width: Width, opcode: u8) {
    operand_size(g, width);
    g.asm.byte(opcode | u8::from(width != Width::B1));
}

fn input(g: &mut Generator) {
    let (port, width) = (g.random.pick(&READ), width(g));
    if let (Ok(port), true) = (u8::try_from(port), g.random.chance(2)) {
        g.begin();
        sized(g, width, 0xe4);
        g.asm.byte(port);
    } else {
        g.set(2, port.into());
        g.begin();
        sized(g, width, 0xec);
    }
}

fn output(g: &mut Generator) {
    let (port, width) = (g.random.pick(&WRITE), width(g));
    if let (Ok(port), true) = (u8::try_from(port), g.random.chance(2)) {
        g.begin();
        sized(g, width, 0xe6);
        g.asm.byte(port);
    } else {
        g.set(2, port.into());
        g.begin();
        sized(g, width, 0xee);
    }
}

/// INS and OUTS, to and from RAM of all kinds, also across its borders.
fn strings(g: &mut Generator) {
    let (input, width) = (g.random.chance(2), width(g));
    let port = if input { g.random.pick(&READ) } else { g.random.pick(&WRITE) };
    let memory = match g.random.byte(4) {
        0 => {
            let offset = g.random.below(16);
            layout::address(Page::Data) + 2 * layout::PAGE - offset
        }
        1 => layout::address(Page::ReadOnly) + g.random.below(64),
        _ => layout::address(Page::Data) + g.random.below(layout::PAGE),
    };
    g.set(2, port.into());
    g.set(if input { 7 } else { 6 }, memory);
    let count = g.random.below(7);
    g.set(1, count);
    g.begin();
    if !g.random.chance(3) {
        g.asm.byte(0xf3);
    }
    if g.asm.bits == 16 {
        g.asm.byte(0x67);
    }
    sized(g, width, if input { 0x6c } else { 0x6e });
}
