//! Instructions that fault or trap by themselves.

use crate::layout::{NOTE_VECTOR, selector};
use crate::program::Generator;

pub(crate) fn item(g: &mut Generator) {
    match g.random.byte(8) {
        0 => undefined(g),
        1 => software_interrupt(g),
        2 => {
            // Division by zero; what a division leaves in the flags is undefined.
            let register = g.other_register(0, 2);
            g.set(register, 0);
            let width = g.width();
            let extension = 6 + g.random.byte(2);
            g.begin();
            let wide = u8::from(width != crate::asm::Width::B1);
            g.asm.reg(width, &[0xf6 | wide], extension, register);
        }
        3 | 4 => segment_load(g),
        5 => far_return(g),
        6 => single_step(g),
        _ => floating_point(g),
    }
}

fn undefined(g: &mut Generator) {
    let encodings: [&[u8]; 6] = [
        &[0x0f, 0x0b],
        &[0x0f, 0xb9, 0xc0],
        // LOCK before what cannot be locked.
        &[0xf0, 0x01, 0xc0],
        &[0xf0, 0x90],
        // A register where the instruction needs memory: LEA, LGDT's neighbours.
        &[0x8d, 0xc0],
        &[0x0f, 0xc7, 0xc8],
    ];
    let not_in_64: [&[u8]; 5] = [&[0x06], &[0x27], &[0xd4, 0x10], &[0x60], &[0xce]];
    let index = usize::from(g.random.byte(9));
    match encodings.get(index) {
        Some(encoding) => g.raw(encoding),
        None if g.is_64() => {
            let encoding = g.random.pick(&not_in_64);
            g.raw(encoding);
        }
        None => {
            // BOUND out of its range is another exception, AAM by zero too.
            let encoding: &[u8] = if g.random.chance(2) { &[0xd4, 0] } else { &[0x0f, 0xff, 0xc0] };
            g.raw(encoding);
        }
    }
}

fn software_interrupt(g: &mut Generator) {
    match g.random.byte(4) {
        0 => g.raw(&[0xcc]),
        1 => g.raw(&[0xcd, NOTE_VECTOR]),
        // For ring 3 refused: from ring 0 these vectors only get noted.
        2 => {
            let vector = g.random.pick(&[0x20, 0x51, 0xe1, 0xff]);
            g.raw(&[0xcd, vector]);
        }
        _ if g.is_supervisor() => g.raw(&[0xcd, 4]),
        // With a vector of an exception: refused with that vector in the code.
        _ => {
            let vector = g.random.byte(32);
            let vector = if matches!(vector, 3 | 4) { 5 } else { vector };
            g.raw(&[0xcd, vector]);
        }
    }
}

fn segment_load(g: &mut Generator) {
    let bad = [
        selector::EMPTY,
        selector::NOT_PRESENT,
        selector::BEYOND,
        selector::CODE64,
        selector::TSS,
        selector::DATA,
        selector::DATA | 4,
    ];
    let value = g.random.pick(&bad);
    // ES, SS, DS, FS, GS; SS with a good selector is elsewhere.
    let register = g.random.pick(&[0u8, 2, 3, 4, 5]);
    let fits = value == selector::DATA && g.is_supervisor();
    if register == 2 && fits {
        return;
    }
    g.set(0, value.into());
    g.raw(&[0x8e, 0xc0 | register << 3]);
    if g.is_64() || register != 3 {
        return;
    }
    // Whatever came of it, the next instructions need DS.
    let own = if g.is_supervisor() { selector::DATA } else { selector::USER_DATA };
    g.set(0, own.into());
    g.raw(&[0x8e, 0xd8]);
}

/// RETF to a selector that is refused.
fn far_return(g: &mut Generator) {
    let value = g.random.pick(&[0, selector::EMPTY, selector::BEYOND, selector::DATA]);
    // PUSH of an immediate is sign-extended: all of them are small.
    let [low, high] = value.to_le_bytes();
    for half in [[low, high], [0x10, 0]] {
        if g.asm.bits == 16 {
            g.raw(&[0x68, half[0], half[1]]);
        } else {
            g.raw(&[0x68, half[0], half[1], 0, 0]);
        }
    }
    if g.is_64() {
        g.raw(&[0x48, 0xcb]);
    } else {
        g.raw(&[0xcb]);
    }
}

/// Sets TF: single steps follow, until the harness has seen enough.
fn single_step(g: &mut Generator) {
    g.raw(&[0x9c]);
    // OR of the pushed flags' second byte: TF is bit 8.
    g.begin();
    if g.asm.bits == 16 {
        g.asm.byte(0x67);
    }
    g.asm.bytes(&[0x80, 0x4c, 0x24, 0x01, 0x01]);
    g.raw(&[0x9d]);
}

/// #NM, #UD or nothing, as CR0.TS, EM and MP say.
fn floating_point(g: &mut Generator) {
    let encodings: [&[u8]; 4] = [
        &[0xdb, 0xe3],       // FNINIT
        &[0xd9, 0xd0],       // FNOP
        &[0x0f, 0x57, 0xc0], // XORPS XMM0, XMM0
        &[0x9b],             // FWAIT
    ];
    let encoding = g.random.pick(&encodings);
    g.raw(encoding);
}
