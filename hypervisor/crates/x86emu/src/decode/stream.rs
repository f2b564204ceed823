//! Prefixes, ModRM and SIB: what the hand-made decoders share
//! (SDM: "Instruction Format").

use crate::MAX_INSTRUCTION;
use crate::address::next_rip;
use crate::instruction::{MemoryOperand, Register};
use x86defs::control::CpuMode;
use x86defs::{Gpr, Low, SegmentRegister, Width};

/// The bytes of an instruction, read from the start.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.get(..MAX_INSTRUCTION).unwrap_or(bytes), position: 0 }
    }

    /// The next byte; `None` if the bytes end, or 15 were read.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.position).copied()?;
        self.position = self.position.saturating_add(1);
        Some(byte)
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    /// The next `width` bytes as a little-endian number.
    pub(crate) fn number(&mut self, width: Width) -> Option<u64> {
        let mut value = 0;
        for i in 0..width.bits() / 8 {
            value |= u64::from(self.byte()?) << i.wrapping_mul(8);
        }
        Some(value)
    }

    /// The next `width` bytes as a signed number of 64 bits.
    pub(crate) fn signed(&mut self, width: Width) -> Option<u64> {
        self.number(width).map(|value| width.sign_extend(value))
    }

    /// Bytes read so far, at most 15.
    pub(crate) fn length(&self) -> u8 {
        self.position.low8()
    }
}

/// The prefixes of an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefixes {
    /// 66: the other operand size.
    pub(crate) operand_size: bool,
    /// 67: the other address size.
    pub(crate) address_size: bool,
    /// F0: LOCK.
    pub(crate) lock: bool,
    /// The last repeat prefix, F2 or F3.
    pub(crate) repeat: Option<u8>,
    /// The last segment override that counts.
    pub(crate) segment: Option<SegmentRegister>,
    /// The REX byte, or zero.
    pub(crate) rex: u8,
}

impl Prefixes {
    pub(crate) fn read(stream: &mut Stream<'_>, mode: CpuMode) -> Option<Self> {
        let long = mode == CpuMode::Long64;
        let mut prefixes = Self::default();
        loop {
            let byte = stream.peek()?;
            let segment = match byte {
                0x26 => Some(SegmentRegister::Es),
                0x2e => Some(SegmentRegister::Cs),
                0x36 => Some(SegmentRegister::Ss),
                0x3e => Some(SegmentRegister::Ds),
                0x64 => Some(SegmentRegister::Fs),
                0x65 => Some(SegmentRegister::Gs),
                _ => None,
            };
            match byte {
                0x66 => prefixes.operand_size = true,
                0x67 => prefixes.address_size = true,
                0xf0 => prefixes.lock = true,
                0xf2 | 0xf3 => prefixes.repeat = Some(byte),
                // Only FS and GS mean anything in 64-bit mode.
                0x64 | 0x65 => prefixes.segment = segment,
                _ if segment.is_some() => {
                    if !long {
                        prefixes.segment = segment;
                    }
                }
                0x40..=0x4f if long => {
                    // A REX prefix counts only right before the opcode.
                    prefixes.rex = byte;
                    stream.byte()?;
                    continue;
                }
                _ => return Some(prefixes),
            }
            prefixes.rex = 0;
            stream.byte()?;
        }
    }

    /// REX.W, R, X or B by bit: 8, 4, 2, 1.
    pub(crate) const fn rex_bit(self, bit: u8) -> bool {
        self.rex & bit != 0
    }

    /// The operand size of instructions that are not byte-wide.
    pub(crate) const fn operand_width(self, mode: CpuMode) -> Width {
        match (mode.bits(), self.operand_size) {
            (64, _) if self.rex & 8 != 0 => Width::B8,
            (16, false) | (32 | 64, true) => Width::B2,
            _ => Width::B4,
        }
    }

    pub(crate) const fn address_width(self, mode: CpuMode) -> Width {
        match (mode.bits(), self.address_size) {
            (64, false) => Width::B8,
            (64, true) | (32, false) | (16, true) => Width::B4,
            _ => Width::B2,
        }
    }
}

/// A ModRM byte with all that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModRm {
    /// The reg field, REX.R included.
    pub(crate) reg: u8,
    pub(crate) rm: RmOperand,
    /// The displacement counts from the end of the instruction.
    rip_relative: bool,
}

/// Operand that the r/m field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RmOperand {
    /// A register's number, REX.B included.
    Register(u8),
    Memory(MemoryOperand),
}

impl ModRm {
    pub(crate) fn read(stream: &mut Stream<'_>, prefixes: Prefixes, mode: CpuMode) -> Option<Self> {
        let byte = stream.byte()?;
        let (mod_field, rm) = (byte >> 6, byte & 7);
        let reg = byte >> 3 & 7 | extend(prefixes.rex_bit(4));
        let register = |rm| Self { reg, rm: rm_register(rm, prefixes), rip_relative: false };
        if mod_field == 3 {
            return Some(register(rm));
        }
        let address_width = prefixes.address_width(mode);
        let mut memory = MemoryOperand {
            segment: SegmentRegister::Ds,
            base: None,
            index: None,
            scale: 0,
            displacement: 0,
            address_width,
        };
        let mut rip_relative = false;
        if address_width == Width::B2 {
            (memory.base, memory.index) = match rm {
                0 => (Some(Gpr::Rbx), Some(Gpr::Rsi)),
                1 => (Some(Gpr::Rbx), Some(Gpr::Rdi)),
                2 => (Some(Gpr::Rbp), Some(Gpr::Rsi)),
                3 => (Some(Gpr::Rbp), Some(Gpr::Rdi)),
                4 => (Some(Gpr::Rsi), None),
                5 => (Some(Gpr::Rdi), None),
                6 if mod_field == 0 => (None, None),
                6 => (Some(Gpr::Rbp), None),
                _ => (Some(Gpr::Rbx), None),
            };
            memory.displacement = match (mod_field, rm) {
                (0, 6) | (2, _) => stream.signed(Width::B2)?,
                (1, _) => stream.signed(Width::B1)?,
                _ => 0,
            };
        } else {
            let mut no_base = false;
            if rm == 4 {
                let sib = stream.byte()?;
                let index = sib >> 3 & 7 | extend(prefixes.rex_bit(2));
                if index != 4 {
                    memory.index = Some(Gpr::from_number(index));
                    memory.scale = sib >> 6;
                }
                no_base = sib & 7 == 5 && mod_field == 0;
                if !no_base {
                    memory.base = Some(Gpr::from_number(sib & 7 | extend(prefixes.rex_bit(1))));
                }
            } else if rm == 5 && mod_field == 0 {
                no_base = true;
                rip_relative = mode == CpuMode::Long64;
            } else {
                memory.base = Some(Gpr::from_number(rm | extend(prefixes.rex_bit(1))));
            }
            memory.displacement = match mod_field {
                1 => stream.signed(Width::B1)?,
                2 => stream.signed(Width::B4)?,
                _ if no_base => stream.signed(Width::B4)?,
                _ => 0,
            };
        }
        if matches!(memory.base, Some(Gpr::Rbp | Gpr::Rsp)) {
            memory.segment = SegmentRegister::Ss;
        }
        if let Some(segment) = prefixes.segment {
            memory.segment = segment;
        }
        Some(Self { reg, rm: RmOperand::Memory(memory), rip_relative })
    }

    /// The r/m operand, once the whole instruction was read.
    pub(crate) fn finish(self, mode: CpuMode, rip: u64, length: u8) -> RmOperand {
        match self.rm {
            RmOperand::Memory(memory) if self.rip_relative => RmOperand::Memory(MemoryOperand {
                displacement: memory
                    .address_width
                    .truncate(next_rip(mode, rip, length).wrapping_add(memory.displacement)),
                ..memory
            }),
            rm => rm,
        }
    }
}

fn rm_register(rm: u8, prefixes: Prefixes) -> RmOperand {
    RmOperand::Register(rm | extend(prefixes.rex_bit(1)))
}

/// The fourth bit of a register's number.
const fn extend(bit: bool) -> u8 {
    if bit { 8 } else { 0 }
}

/// The register with this number as an operand of `width`: without REX, byte
/// registers 4 to 7 are AH, CH, DH and BH.
pub(crate) fn register(number: u8, width: Width, prefixes: Prefixes) -> Register {
    if width == Width::B1 && prefixes.rex == 0 && (4..8).contains(&number) {
        Register { gpr: Gpr::from_number(number.wrapping_sub(4)), high: true }
    } else {
        Register { gpr: Gpr::from_number(number), high: false }
    }
}
