//! Families of instructions beside moves and plain arithmetic, each on RAM and on the device.

use crate::encode::{Bases, Random};
use crate::execute::{
    Backing, State, WINDOW, map, peek32, poke32, run as execute, scratch_present,
};
use crate::tables::{ALL, AVX, AVX2, FAMILIES, Form, has};
use crate::vectors::{self, Vectors};
use guests::harness::{Outcome, Tests, Text};
use guests::io::mmio_write32;
use guests::paging::bits;
use guests::trap::{selector, vector};
use guests::{check, check_eq, cpu, info, paging, println, skip, user};

pub(crate) fn run(tests: &mut Tests) {
    let seed = info::number("seed").unwrap_or(1);
    let rounds = info::number("rounds").unwrap_or(6);
    let avx = vectors::enable();
    for (place, (name, forms)) in (0u64..).zip(FAMILIES) {
        tests.case(name, || family(seed * 100 + place, rounds, forms, avx));
    }
    tests.case("refused", refused);
    tests.case("stack_segment_twice", stack_segment_twice);
}

fn family(seed: u64, rounds: u64, forms: &[Form], avx: bool) -> Outcome {
    if !scratch_present() {
        skip!("no scratch device at 0xfed40000");
    }
    let mut random = Random::new(seed);
    let mut left_out = 0;
    for form in forms {
        let needs_avx = form.feature == AVX || form.feature == AVX2;
        // QEMU's CPU takes reserved bits of MXCSR.
        let lenient = form.name == "ldmxcsr_reserved" && cpu::tcg_underneath();
        if !has(form.feature) || needs_avx && !avx || lenient {
            left_out += 1;
            continue;
        }
        for _ in 0..rounds {
            round(&mut random, form, avx)?;
        }
    }
    println!("{} forms, {left_out} of which the CPU does not have", forms.len());
    Ok(())
}

/// Words of memory that are looked at; the operand is in their middle.
const WORDS: usize = 32;
const OPERAND: u64 = WORDS as u64 * 2;

/// State that a run leaves.
#[derive(PartialEq)]
struct Left {
    state: State,
    trap: Option<(u8, u32, u64)>,
    words: [u32; WORDS],
    vectors: Vectors,
}

fn round(random: &mut Random, form: &Form, avx: bool) -> Outcome {
    let (near, backing) = match random.below(4) {
        0 => (0x1000 - OPERAND - 32, Backing::Mixed),
        1 => (0x1000 - OPERAND - 32, Backing::Device),
        _ => (0, Backing::Device),
    };
    let start = near + random.below(64 / form.alignment) * form.alignment;
    let start = if form.alignment == 1 { start } else { start & !(form.alignment - 1) };
    let operand = WINDOW + start + OPERAND;
    let mut registers: [u64; 16] = core::array::from_fn(|_| random.value());
    registers[3] = operand;
    let state = State { registers, flags: 2 | random.next() & ALL };
    let words: [u32; WORDS] = core::array::from_fn(|_| cpu::low32(random.value()));
    let vectors = Vectors::random(random);
    let one = |backing| {
        map(backing);
        for (i, word) in (0u64..).zip(words) {
            poke32(backing, start & !3, i, word);
        }
        vectors.load(avx);
        let (state, caught) = execute((form.code)(), Bases::default(), state);
        let vectors = Vectors::store(avx);
        let words = core::array::from_fn(|i| peek32(backing, start & !3, i as u64));
        Left { state, trap: caught.map(|t| (t.vector, t.error, t.cr2)), words, vectors }
    };
    let (native, emulated) = (one(Backing::Ram), one(backing));
    compare(form, &state, &native, &emulated)
}

fn compare(form: &Form, before: &State, native: &Left, emulated: &Left) -> Outcome {
    let [rax, rcx, rdx, rbx, ..] = before.registers;
    let context = Text::new(format_args!(
        "{} at {rbx:#x}, rax {rax:#x}, rcx {rcx:#x}, rdx {rdx:#x}, flags {:#x}",
        form.name, before.flags
    ));
    check_eq!(emulated.trap, native.trap, "{context}: exception");
    for register in (0..16).filter(|r| *r != 4) {
        let (want, got) = (native.state.registers[register], emulated.state.registers[register]);
        check!(want == got, "{context}: register {register} is {got:#x}, natively {want:#x}");
    }
    let mut flags = if native.trap.is_some() { 0 } else { form.flags };
    if form.name == "blsi" && cpu::tcg_underneath() {
        // QEMU's CPU has CF the other way round.
        flags &= !1;
    }
    let result = native.state.registers[1];
    check_eq!(
        emulated.state.flags & flags,
        native.state.flags & flags,
        "{context}, then {result:#x}: flags"
    );
    for (i, (want, got)) in native.words.iter().zip(&emulated.words).enumerate() {
        check!(want == got, "{context}: word {i} is {got:#x}, natively {want:#x}");
    }
    if let Some(place) = native.vectors.difference(&emulated.vectors) {
        check!(false, "{context}: byte {place:#x} of the extended state differs");
    }
    Ok(())
}

/// A program gets #UD for what is not emulated.
fn refused() -> Outcome {
    const DEVICE: u64 = 0xfec0_0000;
    let at = WINDOW + 0x10_0000;
    paging::map(at, DEVICE, bits::PRESENT | bits::WRITE | bits::USER);
    // addps xmm0, [rax]
    let trap = user::run(&[0x0f, 0x58, 0x00, 0xcd, 0x80], [at, 0, 0, 0]);
    check_eq!((trap.vector, trap.rip), (vector::UD, user::BASE), "ADDPS");
    // A fetch from it: jmp rax
    let trap = user::run(&[0xff, 0xe0], [at, 0, 0, 0]);
    check_eq!((trap.vector, trap.rip), (vector::UD, at), "code");
    // A move is emulated: movups xmm0, [rax]
    let trap = user::run(&[0x0f, 0x10, 0x00, 0xcd, 0x80], [at, 0, 0, 0]);
    check_eq!(trap.vector, 0x80, "MOVUPS");
    Ok(())
}

/// A load of SS in the shadow of another one, with interrupts on.
fn stack_segment_twice() -> Outcome {
    const SCRATCH: u64 = 0xfed4_0000;
    if !scratch_present() {
        skip!("no scratch device at {SCRATCH:#x}");
    }
    let at = WINDOW + 0x10_0000;
    paging::map(at, SCRATCH, bits::PRESENT | bits::WRITE | bits::USER);
    mmio_write32(at, selector::USER_DATA.into());
    // mov ss, [rax] from RAM and from the device; int 0x80.
    for first in [0x10, 0x13] {
        user::place(user::BASE, &[0x8e, first, 0x8e, 0x10, 0xcd, 0x80]);
        user::place(user::DATA, &selector::USER_DATA.to_le_bytes());
        let registers = [at, user::DATA, 0, 0];
        let interrupts_on = 0x202;
        let trap = user::run_at(
            user::BASE,
            selector::USER_CODE,
            user::STACK_TOP,
            interrupts_on,
            registers,
        );
        check_eq!((trap.vector, trap.rip), (0x80, user::BASE + 6), "after MOV SS {first:#x}");
    }
    Ok(())
}
