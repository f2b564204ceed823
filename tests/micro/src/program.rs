//! A program: its code, where its instructions begin, and its surroundings.

use crate::asm::{Asm, Width};
use crate::layout::{self, END_VECTOR, Page};
use crate::mode::Mode;
use crate::random::Random;
use crate::{Vendor, control, faults, io, plain, system};

/// The most bytes of code.
pub const CODE_MAX: usize = 1536;
/// The most instructions.
const INSTRUCTIONS_MAX: usize = 200;
/// From here on no more is added, so that the end fits.
const CODE_FULL: usize = CODE_MAX - 160;
const INSTRUCTIONS_FULL: usize = INSTRUCTIONS_MAX - 24;

/// A program.
#[derive(Clone)]
pub struct Program {
    /// The seed that it was made of.
    pub seed: u64,
    /// In which mode it runs.
    pub mode: Mode,
    /// Linear address of its first byte.
    pub code_at: u64,
    /// General registers by number at its start.
    pub gprs: [u64; 16],
    /// Flags at its start.
    pub rflags: u64,
    /// CR0 at its start: the bits that programs change.
    pub cr0: u64,
    /// CR4 at its start: the bits that programs change.
    pub cr4: u64,
    /// EFER.SCE at its start.
    pub syscall: bool,
    /// DR0 to DR3 at its start.
    pub breakpoints: [u64; 4],
    /// DR7 at its start.
    pub dr7: u64,
    /// How many single steps to take once TF is set.
    pub steps: u8,
    code: [u8; CODE_MAX],
    len: usize,
    starts: [u16; INSTRUCTIONS_MAX],
    /// Registers (bit n: number n) that mean nothing before an instruction.
    unknown: [u16; INSTRUCTIONS_MAX],
    count: usize,
}

pub(crate) const CR0_MP: u64 = 1 << 1;
pub(crate) const CR0_EM: u64 = 1 << 2;
pub(crate) const CR0_TS: u64 = 1 << 3;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_AM: u64 = 1 << 18;

pub(crate) const CR4_TSD: u64 = 1 << 2;
pub(crate) const CR4_DE: u64 = 1 << 3;
pub(crate) const CR4_MCE: u64 = 1 << 6;
pub(crate) const CR4_PGE: u64 = 1 << 7;
pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;

const IF: u64 = 1 << 9;
const DF: u64 = 1 << 10;
const AC: u64 = 1 << 18;
const IOPL3: u64 = 3 << 12;
const ARITHMETIC: u64 = 0x8d5;

impl Program {
    /// The program of a seed.
    #[must_use]
    pub fn generate(seed: u64, vendor: Vendor) -> Self {
        let mut random = Random::new(seed);
        let mode = Mode::random(&mut random);
        let page = layout::address(Page::Code);
        // Some begin at the end of the first page and so cross to the second.
        let offset = if random.chance(3) { 0xf00 + random.below(0x100) } else { random.below(64) };
        let code_at = page + offset;
        let mut program = Self {
            seed,
            mode,
            code_at,
            gprs: [0; 16],
            rflags: 2 | random.draw() & ARITHMETIC,
            cr0: CR0_NE | CR0_MP,
            cr4: CR4_OSXMMEXCPT,
            syscall: random.chance(2),
            breakpoints: [0; 4],
            dr7: 0x400,
            steps: 1 + random.byte(6),
            code: [0; CODE_MAX],
            len: 0,
            starts: [0; INSTRUCTIONS_MAX],
            unknown: [0; INSTRUCTIONS_MAX],
            count: 0,
        };
        program.surroundings(&mut random);
        let asm = Asm { code: [0; CODE_MAX], len: 0, at: code_at, bits: mode.bits() };
        let mut generator = Generator { program, asm, random, vendor, jumps: [None; 4] };
        let items = 10 + generator.random.byte(16);
        for _ in 0..items {
            generator.item();
            generator.land_jumps();
        }
        generator.finish()
    }

    fn surroundings(&mut self, random: &mut Random) {
        let data = layout::address(Page::Data);
        for gpr in &mut self.gprs {
            let pointer = data + random.below(2 * layout::PAGE - 64);
            *gpr = if random.chance(2) { random.value() } else { pointer };
            if self.mode.bits() != 64 {
                *gpr &= 0xffff_ffff;
            }
        }
        let stack = layout::address(Page::Stack);
        let misaligned = if random.chance(4) { random.below(16) } else { 0 };
        self.gprs[4] = stack + 0x400 + random.below(0x1a0) * 16 + misaligned;
        let mut flag = |of, bits: u64| if random.chance(of) { bits } else { 0 };
        self.rflags |= flag(2, IF) | flag(8, DF) | flag(3, AC) | flag(3, IOPL3);
        self.cr0 |= flag(4, CR0_TS) | flag(4, CR0_AM);
        self.cr0 |= CR0_WP ^ flag(6, CR0_WP);
        self.cr4 |= flag(2, CR4_DE) | flag(5, CR4_TSD) | flag(2, CR4_PGE);
        if random.chance(4) {
            for number in 0..4u8 {
                let length = random.pick(&[0u64, 1, 3]);
                let kind = random.pick(&[1u64, 3]);
                self.breakpoints[usize::from(number)] =
                    (data + random.below(2 * layout::PAGE)) & !length;
                if random.chance(2) {
                    self.dr7 |= 1 << (number * 2) | (kind | length << 2) << (16 + number * 4);
                }
            }
        }
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> &[u8] {
        &self.code[..self.len]
    }

    /// Base that is subtracted from a linear address to make an instruction pointer.
    #[must_use]
    pub fn code_base(&self) -> u64 {
        if self.mode.bits() == 16 { layout::address(Page::Code) } else { 0 }
    }

    /// Offset in the code of an instruction pointer, if it is in the code.
    #[must_use]
    pub fn offset(&self, rip: u64) -> Option<usize> {
        let offset = rip.checked_add(self.code_base())?.checked_sub(self.code_at)?;
        usize::try_from(offset).ok().filter(|offset| *offset < self.len)
    }

    /// Offset at which the instruction behind `offset` begins: the program's last
    /// one if there is none.
    #[must_use]
    pub fn next_start(&self, offset: usize) -> usize {
        self.starts().find(|start| *start > offset).unwrap_or_else(|| self.end())
    }

    /// Offset at which its last instruction begins, which ends it.
    #[must_use]
    pub fn end(&self) -> usize {
        usize::from(self.starts[self.count - 1])
    }

    /// Offsets at which its instructions begin.
    pub fn starts(&self) -> impl Iterator<Item = usize> {
        self.starts[..self.count].iter().map(|start| usize::from(*start))
    }

    /// Registers (bit n: number n) that hold what time or identification left
    /// in them when the instruction at `offset` is about to run.
    #[must_use]
    pub fn unknown(&self, offset: usize) -> u16 {
        self.starts().position(|start| start == offset).map_or(0, |index| self.unknown[index])
    }
}

/// A program in the making.
pub(crate) struct Generator {
    pub(crate) program: Program,
    pub(crate) asm: Asm,
    pub(crate) random: Random,
    pub(crate) vendor: Vendor,
    /// Jumps forward: where the displacement stands, how many items to skip.
    jumps: [Option<(usize, u8)>; 4],
}

impl Generator {
    pub(crate) fn is_64(&self) -> bool {
        self.asm.bits == 64
    }

    pub(crate) fn is_supervisor(&self) -> bool {
        self.program.mode.is_supervisor()
    }

    /// The next instruction begins here.
    pub(crate) fn begin(&mut self) {
        let p = &mut self.program;
        if let Some(slot) = p.starts.get_mut(p.count) {
            *slot = u16::try_from(self.asm.len).unwrap_or(u16::MAX);
            p.count += 1;
        }
    }

    /// One instruction, as it stands.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.begin();
        self.asm.bytes(bytes);
    }

    /// MOV of a constant to a whole register.
    pub(crate) fn set(&mut self, register: u8, value: u64) {
        self.begin();
        self.asm.set(register, value);
    }

    /// Puts constants in registers that the last instruction filled with what
    /// time or identification made.
    pub(crate) fn forget(&mut self, registers: &[u8]) {
        let mut unknown = registers.iter().fold(0u16, |bits, register| bits | 1 << register);
        for register in registers {
            if let Some(slot) = self.program.unknown.get_mut(self.program.count) {
                *slot = unknown;
            }
            let value = self.random.value();
            self.set(*register, value);
            unknown &= !(1 << register);
        }
    }

    /// A register that may be changed: any but RSP.
    pub(crate) fn register(&mut self) -> u8 {
        let count = if self.is_64() { 16 } else { 8 };
        match self.random.byte(count) {
            4 => 3,
            other => other,
        }
    }

    /// A width of an operand.
    pub(crate) fn width(&mut self) -> Width {
        let widths = [Width::B1, Width::B2, Width::B4, Width::B8];
        let count = if self.is_64() { 4 } else { 3 };
        self.random.pick(&widths[..count])
    }

    fn item(&mut self) {
        if self.asm.len > CODE_FULL || self.program.count > INSTRUCTIONS_FULL {
            return;
        }
        match self.random.byte(20) {
            0..=6 => plain::item(self),
            7 => control::item(self),
            8..=10 => io::item(self),
            11..=12 => faults::item(self),
            _ => system::item(self),
        }
    }

    /// Has the displacement of a short jump at `at` filled in some items later.
    pub(crate) fn jump_ahead(&mut self, at: usize) {
        let items = 1 + self.random.byte(3);
        if let Some(slot) = self.jumps.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some((at, items));
        }
    }

    fn land_jumps(&mut self) {
        for slot in &mut self.jumps {
            if let Some((at, items)) = slot {
                *items -= 1;
                if *items == 0 {
                    // A jump that would be too long goes to the next instruction.
                    let distance = self.asm.len - *at - 1;
                    self.asm.code[*at] =
                        u8::try_from(distance).ok().filter(|d| *d < 128).unwrap_or(0);
                    *slot = None;
                }
            }
        }
    }

    fn finish(mut self) -> Program {
        self.raw(&[0xcd, END_VECTOR]);
        self.asm.bytes(&[0xcd, END_VECTOR, 0xcd, END_VECTOR]);
        self.program.code = self.asm.code;
        self.program.len = self.asm.len;
        self.program
    }
}
