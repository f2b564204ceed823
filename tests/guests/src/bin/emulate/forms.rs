//! Every instruction form, with random operands, on RAM and on the device.

use crate::encode::{Bases, Code, Memory, Random, Shape, encode};
use crate::execute::{
    Backing, OTHER, State, WINDOW, contents, fill, map, page, run as execute, scratch_present,
};
use guests::harness::{Outcome, Tests, Text};
use guests::{check, info, io, println, skip};

/// The flags that arithmetic leaves defined: CF, PF, AF, ZF, SF, OF.
const ALL: u64 = 0x8d5;
/// All but AF.
const LOGIC: u64 = 0x8c5;
/// The flags that BT leaves defined: CF (and ZF unchanged).
const BIT_TEST: u64 = 0x41;

/// Content of the ModRM register field.
#[derive(Clone, Copy)]
enum Field {
    /// A general register as wide as the operand.
    Register,
    /// A general register that holds a bit number.
    BitNumber,
    /// Part of the opcode.
    Digit(u8),
}

/// The immediate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Immediate {
    No,
    Byte,
    /// As wide as the operand, at most four bytes.
    Full,
}

/// An instruction with a ModRM memory operand.
struct Form {
    name: &'static str,
    /// Opcode for byte operands, if there is such a form.
    byte: Option<&'static [u8]>,
    /// Opcode for the other widths.
    word: Option<&'static [u8]>,
    field: Field,
    immediate: Immediate,
    /// Takes LOCK.
    lock: bool,
    flags: u64,
}

macro_rules! forms {
    ($($name:literal $byte:expr, $word:expr, $field:expr, $immediate:ident, $lock:literal, $flags:ident;)*) => {
        &[$(Form { name: $name, byte: $byte, word: $word, field: $field,
            immediate: Immediate::$immediate, lock: $lock, flags: $flags }),*]
    };
}

use Field::{BitNumber, Digit, Register};

const FORMS: &[Form] = forms! {
    "mov_store" Some(&[0x88]), Some(&[0x89]), Register, No, false, ALL;
    "mov_load" Some(&[0x8a]), Some(&[0x8b]), Register, No, false, ALL;
    "mov_immediate" Some(&[0xc6]), Some(&[0xc7]), Digit(0), Full, false, ALL;
    "movzx_byte" None, Some(&[0x0f, 0xb6]), Register, No, false, ALL;
    "movzx_word" None, Some(&[0x0f, 0xb7]), Register, No, false, ALL;
    "movsx_byte" None, Some(&[0x0f, 0xbe]), Register, No, false, ALL;
    "movsx_word" None, Some(&[0x0f, 0xbf]), Register, No, false, ALL;
    "movsxd" None, Some(&[0x63]), Register, No, false, ALL;
    "add_store" Some(&[0x00]), Some(&[0x01]), Register, No, true, ALL;
    "add_load" Some(&[0x02]), Some(&[0x03]), Register, No, false, ALL;
    "or_store" Some(&[0x08]), Some(&[0x09]), Register, No, true, LOGIC;
    "or_load" Some(&[0x0a]), Some(&[0x0b]), Register, No, false, LOGIC;
    "adc_store" Some(&[0x10]), Some(&[0x11]), Register, No, true, ALL;
    "adc_load" Some(&[0x12]), Some(&[0x13]), Register, No, false, ALL;
    "sbb_store" Some(&[0x18]), Some(&[0x19]), Register, No, true, ALL;
    "sbb_load" Some(&[0x1a]), Some(&[0x1b]), Register, No, false, ALL;
    "and_store" Some(&[0x20]), Some(&[0x21]), Register, No, true, LOGIC;
    "and_load" Some(&[0x22]), Some(&[0x23]), Register, No, false, LOGIC;
    "sub_store" Some(&[0x28]), Some(&[0x29]), Register, No, true, ALL;
    "sub_load" Some(&[0x2a]), Some(&[0x2b]), Register, No, false, ALL;
    "xor_store" Some(&[0x30]), Some(&[0x31]), Register, No, true, LOGIC;
    "xor_load" Some(&[0x32]), Some(&[0x33]), Register, No, false, LOGIC;
    "cmp_store" Some(&[0x38]), Some(&[0x39]), Register, No, false, ALL;
    "cmp_load" Some(&[0x3a]), Some(&[0x3b]), Register, No, false, ALL;
    "add_immediate" Some(&[0x80]), Some(&[0x81]), Digit(0), Full, true, ALL;
    "or_immediate" Some(&[0x80]), Some(&[0x81]), Digit(1), Full, true, LOGIC;
    "adc_immediate" Some(&[0x80]), Some(&[0x81]), Digit(2), Full, true, ALL;
    "sbb_immediate" Some(&[0x80]), Some(&[0x81]), Digit(3), Full, true, ALL;
    "and_immediate" Some(&[0x80]), Some(&[0x81]), Digit(4), Full, true, LOGIC;
    "sub_immediate" Some(&[0x80]), Some(&[0x81]), Digit(5), Full, true, ALL;
    "xor_immediate" Some(&[0x80]), Some(&[0x81]), Digit(6), Full, true, LOGIC;
    "cmp_immediate" Some(&[0x80]), Some(&[0x81]), Digit(7), Full, false, ALL;
    "add_immediate8" None, Some(&[0x83]), Digit(0), Byte, true, ALL;
    "or_immediate8" None, Some(&[0x83]), Digit(1), Byte, true, LOGIC;
    "and_immediate8" None, Some(&[0x83]), Digit(4), Byte, true, LOGIC;
    "sub_immediate8" None, Some(&[0x83]), Digit(5), Byte, true, ALL;
    "xor_immediate8" None, Some(&[0x83]), Digit(6), Byte, true, LOGIC;
    "cmp_immediate8" None, Some(&[0x83]), Digit(7), Byte, false, ALL;
    "test" Some(&[0x84]), Some(&[0x85]), Register, No, false, LOGIC;
    "test_immediate" Some(&[0xf6]), Some(&[0xf7]), Digit(0), Full, false, LOGIC;
    "not" Some(&[0xf6]), Some(&[0xf7]), Digit(2), No, true, ALL;
    "neg" Some(&[0xf6]), Some(&[0xf7]), Digit(3), No, true, ALL;
    "inc" Some(&[0xfe]), Some(&[0xff]), Digit(0), No, true, ALL;
    "dec" Some(&[0xfe]), Some(&[0xff]), Digit(1), No, true, ALL;
    "xchg" Some(&[0x86]), Some(&[0x87]), Register, No, true, ALL;
    "xadd" Some(&[0x0f, 0xc0]), Some(&[0x0f, 0xc1]), Register, No, true, ALL;
    "cmpxchg" Some(&[0x0f, 0xb0]), Some(&[0x0f, 0xb1]), Register, No, true, ALL;
    "bt" None, Some(&[0x0f, 0xa3]), BitNumber, No, false, BIT_TEST;
    "bts" None, Some(&[0x0f, 0xab]), BitNumber, No, true, BIT_TEST;
    "btr" None, Some(&[0x0f, 0xb3]), BitNumber, No, true, BIT_TEST;
    "btc" None, Some(&[0x0f, 0xbb]), BitNumber, No, true, BIT_TEST;
    "bt_immediate" None, Some(&[0x0f, 0xba]), Digit(4), Byte, false, BIT_TEST;
    "bts_immediate" None, Some(&[0x0f, 0xba]), Digit(5), Byte, true, BIT_TEST;
    "btr_immediate" None, Some(&[0x0f, 0xba]), Digit(6), Byte, true, BIT_TEST;
    "btc_immediate" None, Some(&[0x0f, 0xba]), Digit(7), Byte, true, BIT_TEST;
};

/// A string instruction: opcodes, flags, whether REPNE makes a difference.
struct Strings {
    name: &'static str,
    byte: u8,
    compares: bool,
}

const STRINGS: &[Strings] = &[
    Strings { name: "movs", byte: 0xa4, compares: false },
    Strings { name: "cmps", byte: 0xa6, compares: true },
    Strings { name: "stos", byte: 0xaa, compares: false },
    Strings { name: "lods", byte: 0xac, compares: false },
    Strings { name: "scas", byte: 0xae, compares: true },
];

pub(crate) fn run(tests: &mut Tests) {
    let seed = info::number("seed").unwrap_or(1);
    let rounds = info::number("rounds").unwrap_or(24);
    if scratch_present() {
        println!("seed={seed} rounds={rounds}");
    }
    for (number, form) in (0u64..).zip(FORMS) {
        tests.case(form.name, || {
            let mut random = Random::new(seed * 1000 + number);
            repeat(rounds, || modrm_round(&mut random, form))
        });
    }
    for (number, form) in (500u64..).zip(STRINGS) {
        tests.case(form.name, || {
            let mut random = Random::new(seed * 1000 + number);
            repeat(rounds * 2, || string_round(&mut random, form))
        });
    }
    tests.case("mov_offset", || {
        let mut random = Random::new(seed * 1000 + 900);
        repeat(rounds, || offset_round(&mut random))
    });
}

fn repeat(rounds: u64, mut body: impl FnMut() -> Outcome) -> Outcome {
    if !scratch_present() {
        skip!("no scratch device at 0xfed40000");
    }
    for _ in 0..rounds {
        body()?;
    }
    Ok(())
}

/// Place of the operand in the window: mostly inside a page, sometimes
/// across two (and then perhaps from RAM to the device).
fn placement(random: &mut Random) -> (u64, Backing) {
    match random.below(8) {
        0 => (0x1000 - 32 + random.below(2) * 4, Backing::Device),
        1 => (0x1000 - 32 + random.below(2) * 4, Backing::Mixed),
        2 => (0x1000 + random.below(16) * 4, Backing::Device),
        _ => (random.below(8) * 8, Backing::Device),
    }
}

fn state(random: &mut Random) -> State {
    State { registers: core::array::from_fn(|_| random.value()), flags: 2 | random.next() & ALL }
}

/// Operand-size prefix, REX.W and width in bytes of a form.
fn width(random: &mut Random, byte: bool, word: bool) -> (bool, bool, u64) {
    let choice = if byte && (!word || random.chance(4)) { 0 } else { 1 + random.below(3) };
    match choice {
        0 => (false, false, 1),
        1 => (true, false, 2),
        2 => (false, false, 4),
        _ => (false, true, 8),
    }
}

fn modrm_round(random: &mut Random, form: &Form) -> Outcome {
    let (small, wide, size) = width(random, form.byte.is_some(), form.word.is_some());
    let opcode = if size == 1 { form.byte } else { form.word }.unwrap_or(&[0x90]);
    let mut state = state(random);
    let (start, backing) = placement(random);
    let operand = start + 28 + random.below(8);
    let mut prefixes = [0; 2];
    let mut prefix_count = 0;
    if small {
        prefixes[prefix_count] = 0x66;
        prefix_count += 1;
    }
    if form.lock && random.chance(3) {
        prefixes[prefix_count] = 0xf0;
        prefix_count += 1;
    }
    let field = match form.field {
        Digit(digit) => digit,
        Register | BitNumber => loop {
            let register = random.byte(16);
            if register != 4 {
                break register;
            }
        },
    };
    let random_immediate = random.value().to_le_bytes();
    let immediate = match form.immediate {
        Immediate::No => &[][..],
        Immediate::Byte => &random_immediate[..1],
        Immediate::Full => &random_immediate[..usize::try_from(size.min(4)).unwrap_or(4)],
    };
    let shape = Shape {
        prefixes: &prefixes[..prefix_count],
        wide,
        opcode,
        field,
        byte_register: size == 1,
        immediate,
    };
    // A comparand that is equal now and then.
    let words: [u32; 16] = core::array::from_fn(|_| guests::cpu::low32(random.value()));
    let accumulator_before = state.registers[0];
    let (code, bases) =
        encode(random, &shape, &Memory { address: WINDOW + operand }, &mut state.registers);
    // If RAX is no part of the address, it may hold what memory holds.
    let free = state.registers[0] == accumulator_before;
    if form.name == "cmpxchg" && random.chance(2) {
        let bytes: [u8; 64] = core::array::from_fn(|i| words[i / 4].to_le_bytes()[i % 4]);
        let at = usize::try_from(operand - start).unwrap_or(0);
        let mut accumulator = [0; 8];
        accumulator.copy_from_slice(&bytes[at..at + 8]);
        if free {
            state.registers[0] = u64::from_le_bytes(accumulator);
        }
    }
    if matches!(form.field, BitNumber) {
        // The bit may lie outside the operand; keep it inside the window's 64 bytes.
        let bit = random.below(192).wrapping_sub(96);
        let (again, bases_again) = reencode_bit(random, &shape, operand, &mut state, bit);
        return compare(form.name, &again, bases_again, &state, start, backing, &words, form.flags);
    }
    compare(form.name, &code, bases, &state, start, backing, &words, form.flags)
}

/// Encodes again until the bit number's register takes no part in the address.
fn reencode_bit(
    random: &mut Random,
    shape: &Shape<'_>,
    operand: u64,
    state: &mut State,
    bit: u64,
) -> (Code, Bases) {
    loop {
        let mut registers = state.registers;
        let marker = 0x5a5a_1234_5a5a_4321;
        registers[usize::from(shape.field)] = marker;
        let memory = Memory { address: WINDOW + operand };
        let (code, bases) = encode(random, shape, &memory, &mut registers);
        if registers[usize::from(shape.field)] == marker {
            registers[usize::from(shape.field)] = bit;
            state.registers = registers;
            return (code, bases);
        }
    }
}

fn string_round(random: &mut Random, form: &Strings) -> Outcome {
    let (small, wide, size) = width(random, true, true);
    let mut code = Code::new();
    let mut state = state(random);
    let mut bases = Bases::default();
    let (start, backing) = placement(random);
    let count = random.below(4);
    let backwards = random.chance(2);
    let repeat = random.below(3);
    let two = matches!(form.byte, 0xa4 | 0xa6);
    // The window is the source, the destination, or both.
    let (source, destination) = match (two, random.below(3)) {
        (true, 0) => (OTHER + 24, WINDOW + start + 24),
        (true, 1) => (WINDOW + start + 24, OTHER + 24),
        _ => (WINDOW + start + 24, WINDOW + start + 32),
    };
    let (mut rsi, mut rdi) = (source, destination);
    if matches!(form.byte, 0xa4 | 0xa6 | 0xac) && random.chance(3) {
        bases.fs = random.below(0x10_0000);
        rsi -= bases.fs;
        code.push(0x64);
    }
    if random.chance(4) {
        code.push(0x67);
        let garbage = random.next() & !0xffff_ffff;
        rsi |= garbage;
        rdi |= garbage;
        state.registers[1] = count | garbage;
    } else {
        state.registers[1] = count;
    }
    match repeat {
        1 => code.push(0xf3),
        2 if form.compares => code.push(0xf2),
        _ => {}
    }
    if small {
        code.push(0x66);
    }
    if wide {
        code.push(0x48);
    }
    code.push(if size == 1 { form.byte } else { form.byte + 1 });
    state.registers[6] = rsi;
    state.registers[7] = rdi;
    state.flags |= u64::from(backwards) << 10;
    // Few different words, so that comparisons run on.
    let words: [u32; 16] = core::array::from_fn(|_| if random.chance(3) { 0x0101_0101 } else { 0 });
    if random.chance(2) {
        state.registers[0] = 0;
    }
    compare(form.name, &code, bases, &state, start, backing, &words, ALL | 0x400)
}

/// MOV between the accumulator and an absolute address (0xa0 to 0xa3).
fn offset_round(random: &mut Random) -> Outcome {
    let (small, wide, size) = width(random, true, true);
    let state = state(random);
    let (start, backing) = placement(random);
    let address = WINDOW + start + 24 + random.below(8);
    let mut code = Code::new();
    let narrow = random.chance(3);
    if narrow {
        code.push(0x67);
    }
    if small {
        code.push(0x66);
    }
    if wide {
        code.push(0x48);
    }
    code.push(0xa0 + u8::from(size != 1) + random.byte(2) * 2);
    code.extend(&address.to_le_bytes()[..if narrow { 4 } else { 8 }]);
    let words: [u32; 16] = core::array::from_fn(|_| guests::cpu::low32(random.value()));
    compare("mov_offset", &code, Bases::default(), &state, start, backing, &words, ALL)
}

fn fill_other() {
    for i in 0..16 {
        io::mmio_write32(OTHER + i * 4, if i % 3 == 0 { 0x0101_0101 } else { 0 });
    }
}

#[expect(clippy::too_many_arguments, reason = "one call site for each kind of form")]
fn compare(
    name: &str,
    code: &Code,
    bases: Bases,
    state: &State,
    start: u64,
    backing: Backing,
    words: &[u32; 16],
    flags: u64,
) -> Outcome {
    let one = |backing: Backing| {
        map(backing);
        fill(backing, start, words);
        fill_other();
        let (after, caught) = execute(code.bytes(), bases, *state);
        let other: [u32; 16] = core::array::from_fn(|i| io::mmio_read32(OTHER + i as u64 * 4));
        (after, caught.map(|t| (t.vector, t.error, t.cr2)), contents(backing, start), other)
    };
    let native = one(Backing::Ram);
    let emulated = one(backing);
    let context = Text::new(format_args!("{name} {:02x?} flags {:#x}", code.bytes(), state.flags));
    check!(native.1.is_none(), "{context}: on RAM it raised {:x?}", native.1);
    check!(emulated.1.is_none(), "{context}: on the device it raised {:x?}", emulated.1);
    for register in (0..16).filter(|r| *r != 4) {
        let (want, got) = (native.0.registers[register], emulated.0.registers[register]);
        check!(want == got, "{context}: register {register} is {got:#x}, natively {want:#x}");
    }
    let (want, got) = (native.0.flags & flags, emulated.0.flags & flags);
    check!(want == got, "{context}: flags {got:#x}, natively {want:#x}");
    for (i, (want, got)) in native.2.iter().zip(&emulated.2).enumerate() {
        check!(
            want == got,
            "{context}: word {i} of the device is {got:#x}, natively {want:#x} ({:#x})",
            page(backing, 0)
        );
    }
    check!(native.3 == emulated.3, "{context}: the other memory operand differs");
    Ok(())
}
