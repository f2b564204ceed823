//! Random numbers and the encoding of one instruction with a memory operand.

/// A small generator (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    pub(crate) fn byte(&mut self, bound: u8) -> u8 {
        guests::cpu::low8(self.below(u64::from(bound)))
    }

    pub(crate) fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// A value with the interesting ones more likely.
    pub(crate) fn value(&mut self) -> u64 {
        const EDGES: [u64; 12] = [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0x7fff_ffff,
            0x8000_0000,
            u64::MAX,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
        ];
        if self.chance(4) { EDGES[usize::from(self.byte(12))] } else { self.next() }
    }
}

/// The bytes of an instruction.
#[derive(Clone, Copy)]
pub(crate) struct Code {
    bytes: [u8; 24],
    length: usize,
}

impl Code {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 24], length: 0 }
    }

    pub(crate) fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push(*byte);
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Address of the code under test (for RIP-relative operands).
pub(crate) const CODE_AT: u64 = guests::user::BASE + 0x8000;

/// How a memory operand is addressed.
pub(crate) struct Memory {
    /// The linear address that the operand must have.
    pub(crate) address: u64,
}

/// Parts of an instruction around the memory operand.
pub(crate) struct Shape<'a> {
    /// Legacy prefixes, 0x66 and LOCK among them.
    pub(crate) prefixes: &'a [u8],
    /// REX.W.
    pub(crate) wide: bool,
    /// Opcode bytes.
    pub(crate) opcode: &'a [u8],
    /// The register field of ModRM (a register of 0 to 15, or a digit).
    pub(crate) field: u8,
    /// Whether the register field is a byte register (4 to 7 mean AH to BH without REX).
    pub(crate) byte_register: bool,
    /// The immediate.
    pub(crate) immediate: &'a [u8],
}

/// FS or GS base that the instruction needs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bases {
    pub(crate) fs: u64,
    pub(crate) gs: u64,
}

fn low32(value: u64) -> [u8; 4] {
    guests::cpu::low32(value).to_le_bytes()
}

/// Encodes an instruction whose memory operand is at `memory.address`, in a
/// random addressing form, and sets the registers that the form needs.
pub(crate) fn encode(
    random: &mut Random,
    shape: &Shape<'_>,
    memory: &Memory,
    registers: &mut [u64; 16],
) -> (Code, Bases) {
    let mut code = Code::new();
    let mut bases = Bases::default();
    let mut address = memory.address;
    match random.below(6) {
        0 => {
            bases.fs = random.below(0x1000_0000);
            address = address.wrapping_sub(bases.fs);
            code.push(0x64);
        }
        1 => {
            bases.gs = random.below(0x1000_0000);
            address = address.wrapping_sub(bases.gs);
            code.push(0x65);
        }
        _ => {}
    }
    let form = random.below(6);
    let narrow = form != 3 && random.chance(5);
    if narrow {
        code.push(0x67);
    }
    code.extend(shape.prefixes);
    let base = loop {
        let base = random.byte(16);
        if base != 4 {
            break base;
        }
    };
    let index = loop {
        let index = random.byte(16);
        if index != 4 && index != base {
            break index;
        }
    };
    let scale = random.byte(4);
    let displacement = match form {
        0 | 2 => random.below(0x100).wrapping_sub(0x80),
        _ => random.below(0x2000_0000).wrapping_sub(0x1000_0000),
    };
    let indexed = matches!(form, 2 | 5);
    let uses_base = matches!(form, 0 | 1 | 2 | 5);
    let mut rex = u8::from(shape.wide) << 3 | (shape.field >> 3) << 2;
    if uses_base {
        rex |= base >> 3;
    }
    if indexed {
        rex |= (index >> 3) << 1;
    }
    if rex != 0 || (!shape.byte_register && random.chance(4)) {
        // With REX, byte registers 4 to 7 are SPL to DIL: the caller avoids SPL.
        code.push(0x40 | rex);
    }
    code.extend(shape.opcode);
    let field = (shape.field & 7) << 3;
    if uses_base {
        let index_value = if indexed { random.below(0x100_0000) } else { 0 };
        let mask = if narrow { 0xffff_ffff } else { u64::MAX };
        let garbage = if narrow { random.next() & !mask } else { 0 };
        let sum = address.wrapping_sub(displacement).wrapping_sub(index_value << scale);
        registers[usize::from(base)] = sum & mask | garbage;
        if indexed {
            registers[usize::from(index)] = index_value | garbage;
        }
        let mode = if form == 0 || form == 2 { 0x40 } else { 0x80 };
        if indexed || base & 7 == 4 {
            let index_field = if indexed { index & 7 } else { 4 };
            code.extend(&[mode | field | 4, scale << 6 | index_field << 3 | base & 7]);
        } else {
            code.push(mode | field | base & 7);
        }
        let bytes = low32(displacement);
        code.extend(if mode == 0x40 { &bytes[..1] } else { &bytes });
    } else if form == 3 {
        code.push(field | 5);
        let next = CODE_AT + (code.bytes().len() + 4 + shape.immediate.len()) as u64;
        code.extend(&low32(address.wrapping_sub(next)));
    } else {
        code.extend(&[field | 4, 0x25]);
        code.extend(&low32(address));
    }
    code.extend(shape.immediate);
    (code, bases)
}
