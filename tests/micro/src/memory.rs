//! Memory operands: which page, and how the address is written.

use crate::asm::{Mem, Width};
use crate::layout::{self, PAGE, Page};
use crate::program::Generator;

impl Generator {
    /// A linear address for data: mostly plain RAM, else a page with something
    /// special or the border between two.
    pub(crate) fn target(&mut self, width: Width) -> u64 {
        let inside = self.random.below(PAGE - 8);
        let bytes = u64::from(width.bytes());
        let aligned = if self.random.chance(3) { inside } else { inside & !(bytes - 1) };
        // The last bytes of a page, so that an operand may cross its end.
        let border = PAGE - 1 - self.random.below(8);
        match self.random.byte(48) {
            0..=22 => layout::address(Page::Data) + aligned,
            23 => layout::address(Page::Data) + border,
            24 | 25 => layout::address(Page::Data) + PAGE + border,
            26 | 27 => layout::address(Page::ReadOnly) + aligned,
            28 => layout::address(Page::NoExecute) + aligned,
            29 | 30 => layout::address(Page::Supervisor) + aligned,
            31 => layout::address(Page::Reserved) + aligned,
            32 => layout::address(Page::Stack) + aligned,
            33 | 34 => layout::address(Page::Fresh) + aligned,
            35 => layout::address(Page::Rom) + aligned,
            36..=40 => layout::address(Page::Scratch) + aligned % 64,
            41 => layout::address(Page::Scratch) + border,
            42 => layout::address(Page::Hole) + aligned,
            43 => layout::address(Page::Absent) + aligned,
            44 => layout::address(Page::Data) - 1 - self.random.below(4),
            45 => layout::address(Page::NoExecute) + border,
            46 => layout::address(Page::ReadOnly) - 1 - self.random.below(4),
            _ if self.is_64() => 0x0123_8000_0000_0000 + self.random.below(PAGE),
            _ => layout::address(Page::Absent) + border,
        }
    }

    /// A memory operand for `width` bytes, with the instructions that load its
    /// registers; none of these is `keep`.
    pub(crate) fn operand(&mut self, width: Width, keep: u8) -> Mem {
        let target = self.target(width);
        self.operand_at(target, keep)
    }

    /// A memory operand for the address `target`.
    pub(crate) fn operand_at(&mut self, target: u64, keep: u8) -> Mem {
        let absolute = i32::try_from(target).ok();
        let form = self.random.byte(4);
        if let (Some(disp), 0) = (absolute, form) {
            return Mem { disp, rip: self.random.chance(2), ..Mem::default() };
        }
        let base = self.other_register(keep, 4);
        let disp = i32::from(self.random.byte(255)) - 127;
        let back = i64::from(disp).cast_unsigned();
        if form != 1 {
            self.set(base, target.wrapping_sub(back));
            return Mem { base: Some(base), disp, ..Mem::default() };
        }
        let index = self.other_register(keep, base);
        let scale = self.random.byte(4);
        let count = self.random.below(0x400);
        self.set(base, target.wrapping_sub(back).wrapping_sub(count << scale));
        self.set(index, count);
        Mem { base: Some(base), index: Some((index, scale)), disp, rip: false }
    }

    /// A register other than RSP and these two.
    pub(crate) fn other_register(&mut self, not: u8, nor: u8) -> u8 {
        loop {
            let register = self.register();
            if register != not && register != nor {
                return register;
            }
        }
    }
}
