//! Jumps, calls and small loops.

use crate::layout::{self, Page};
use crate::program::Generator;

pub(crate) fn item(g: &mut Generator) {
    match g.random.byte(7) {
        0..=2 => {
            // A conditional jump ahead.
            let condition = g.random.byte(16);
            g.raw(&[0x70 | condition, 0]);
            let at = g.asm.len - 1;
            g.jump_ahead(at);
        }
        3 => {
            // CALL to the next instruction, and its address from the stack.
            if g.asm.bits == 16 {
                g.raw(&[0xe8, 0, 0]);
            } else {
                g.raw(&[0xe8, 0, 0, 0, 0]);
            }
            let register = g.random.byte(8);
            let register = if register == 4 { 3 } else { register };
            g.raw(&[0x58 | register]);
        }
        4 => {
            // A loop of two instructions.
            let count = 1 + g.random.below(4);
            g.set(1, count);
            let instruction = g.random.pick(&[0x90u8, 0xf5, 0xfc, 0x98]);
            g.raw(&[instruction]);
            g.raw(&[0xe2, 0xfd]);
        }
        5 => no_execute(g),
        // SYSCALL, or SYSRET where it is refused. Outside of 64-bit mode the
        // vendors differ.
        _ if g.is_64() && (g.is_supervisor() || g.random.chance(2)) => g.raw(&[0x0f, 0x05]),
        _ if g.is_64() => g.raw(&[0x48, 0x0f, 0x07]),
        _ => g.raw(&[0x90]),
    }
}

/// CALL to where nothing may be executed; the fault goes on behind the CALL.
fn no_execute(g: &mut Generator) {
    if g.asm.bits == 16 {
        return;
    }
    let page = g.random.pick(&[Page::NoExecute, Page::Absent, Page::Reserved]);
    let target = layout::address(page) + g.random.below(256);
    g.set(0, target);
    g.raw(&[0xff, 0xd0]);
}
