//! Encoding of instructions, for 16-, 32- and 64-bit code.

use crate::program::CODE_MAX;

/// Size of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    B1,
    B2,
    B4,
    B8,
}

impl Width {
    pub(crate) const fn bytes(self) -> u8 {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }
}

/// A memory operand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mem {
    /// Base register.
    pub(crate) base: Option<u8>,
    /// Index register and the logarithm of its scale.
    pub(crate) index: Option<(u8, u8)>,
    /// Displacement; the address itself where there is no register.
    pub(crate) disp: i32,
    /// Relative to RIP: `disp` is the address all the same.
    pub(crate) rip: bool,
}

/// Code in the making.
#[derive(Clone)]
pub(crate) struct Asm {
    pub(crate) code: [u8; CODE_MAX],
    pub(crate) len: usize,
    /// Address of the first byte.
    pub(crate) at: u64,
    pub(crate) bits: u8,
}

impl Asm {
    pub(crate) fn byte(&mut self, byte: u8) {
        if let Some(slot) = self.code.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.byte(*byte);
        }
    }

    /// An immediate of this width; of 8 bytes, 4 (sign-extended by the CPU).
    pub(crate) fn imm(&mut self, width: Width, value: u64) {
        let count = usize::from(width.bytes().min(4));
        self.bytes(&value.to_le_bytes()[..count]);
    }

    /// Prefixes for the operand size, the address size and register numbers.
    fn prefixes(&mut self, width: Width, reg: u8, index: u8, rm: u8, memory: bool) {
        let wide = match self.bits {
            16 => width == Width::B4,
            _ => width == Width::B2,
        };
        if wide {
            self.byte(0x66);
        }
        if memory && self.bits == 16 {
            self.byte(0x67);
        }
        if self.bits == 64 {
            let w = u8::from(width == Width::B8) << 3;
            let rex = w | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | rm >> 3 & 1;
            if rex != 0 {
                self.byte(0x40 | rex);
            }
        }
    }

    /// An instruction with two registers: `opcode` with the register field
    /// `reg` and the other register `rm`.
    pub(crate) fn reg(&mut self, width: Width, opcode: &[u8], reg: u8, rm: u8) {
        self.prefixes(width, reg, 0, rm, false);
        self.bytes(opcode);
        self.byte(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// An instruction with a memory operand; `imm` bytes of immediate follow.
    pub(crate) fn mem(&mut self, width: Width, opcode: &[u8], reg: u8, mem: &Mem, imm: u8) {
        let index = mem.index.map_or(0, |(index, _)| index);
        self.prefixes(width, reg, index, mem.base.unwrap_or(0), true);
        self.bytes(opcode);
        let reg = (reg & 7) << 3;
        let disp = mem.disp.to_le_bytes();
        match (mem.base, mem.index) {
            (None, _) if mem.rip && self.bits == 64 => {
                self.byte(reg | 5);
                let end = self.at + self.len as u64 + 4 + u64::from(imm);
                let target = i64::from(mem.disp).cast_unsigned();
                self.bytes(&target.wrapping_sub(end).to_le_bytes()[..4]);
            }
            (None, None) if self.bits == 64 => {
                self.bytes(&[reg | 4, 0x25]);
                self.bytes(&disp);
            }
            (None, None) => {
                self.byte(reg | 5);
                self.bytes(&disp);
            }
            (None, Some((index, scale))) => {
                self.bytes(&[reg | 4, scale << 6 | (index & 7) << 3 | 5]);
                self.bytes(&disp);
            }
            (Some(base), index) => {
                // Register 5 (and 13) has no form without a displacement.
                let short = i8::try_from(mem.disp).is_ok();
                let mode = if mem.disp == 0 && base & 7 != 5 { 0 } else { 2 - u8::from(short) };
                match index {
                    None if base & 7 != 4 => self.byte(mode << 6 | reg | base & 7),
                    None => self.bytes(&[mode << 6 | reg | 4, 0x24]),
                    Some((index, scale)) => {
                        let sib = scale << 6 | (index & 7) << 3 | base & 7;
                        self.bytes(&[mode << 6 | reg | 4, sib]);
                    }
                }
                match mode {
                    0 => {}
                    1 => self.byte(disp[0]),
                    _ => self.bytes(&disp),
                }
            }
        }
    }

    /// MOV of a constant to a whole register (of 32 bits outside of 64-bit mode).
    pub(crate) fn set(&mut self, register: u8, value: u64) {
        if self.bits == 64 && value >> 32 != 0 {
            self.prefixes(Width::B8, 0, 0, register, false);
            self.byte(0xb8 | register & 7);
            self.bytes(&value.to_le_bytes());
        } else {
            self.prefixes(Width::B4, 0, 0, register, false);
            self.byte(0xb8 | register & 7);
            self.imm(Width::B4, value);
        }
    }
}
