//! Arithmetic and its flags, on plain numbers.
//!
//! Flags that the manuals leave undefined come out as on the emulated CPUs that
//! Steward is tested on: AF is cleared by logic and shifts, OF after a shift or
//! rotation by more than one is that of its last step, bit tests change CF only.

mod fields;
mod multiply;

pub use fields::{add_carry, crc32, field, rotate_right, scan};
pub use multiply::{Product, divide, multiply};

use crate::instruction::{AluOp, BitOp, ShiftOp};
use x86defs::{Low, Rflags, Width};

/// A result, and the flags that come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The result, cut to the operands' width.
    pub value: u64,
    /// New values of the flags in `changed`.
    pub flags: Rflags,
    /// The flags that the operation sets or clears.
    pub changed: Rflags,
}

impl Outcome {
    /// `old` after the operation.
    #[must_use]
    pub fn apply(self, old: Rflags) -> Rflags {
        old.difference(self.changed) | self.flags & self.changed
    }
}

/// SF, ZF and PF of a result.
fn result_flags(width: Width, value: u64) -> Rflags {
    let mut flags = Rflags::empty();
    flags.set(Rflags::ZF, value == 0);
    flags.set(Rflags::SF, value & width.sign_bit() != 0);
    flags.set(Rflags::PF, value.low8().count_ones().is_multiple_of(2));
    flags
}

fn add(width: Width, a: u64, b: u64, carry: u64) -> Outcome {
    let wide = u128::from(a).wrapping_add(b.into()).wrapping_add(carry.into());
    let value = width.truncate(a.wrapping_add(b).wrapping_add(carry));
    let mut flags = result_flags(width, value);
    flags.set(Rflags::CF, wide > u128::from(width.mask()));
    flags.set(Rflags::AF, (a ^ b ^ value) & 0x10 != 0);
    flags.set(Rflags::OF, (a ^ value) & (b ^ value) & width.sign_bit() != 0);
    Outcome { value, flags, changed: Rflags::ARITHMETIC }
}

fn sub(width: Width, a: u64, b: u64, borrow: u64) -> Outcome {
    let value = width.truncate(a.wrapping_sub(b).wrapping_sub(borrow));
    let mut flags = result_flags(width, value);
    flags.set(Rflags::CF, u128::from(a) < u128::from(b).wrapping_add(borrow.into()));
    flags.set(Rflags::AF, (a ^ b ^ value) & 0x10 != 0);
    flags.set(Rflags::OF, (a ^ b) & (a ^ value) & width.sign_bit() != 0);
    Outcome { value, flags, changed: Rflags::ARITHMETIC }
}

fn logic(width: Width, value: u64) -> Outcome {
    Outcome { value, flags: result_flags(width, value), changed: Rflags::ARITHMETIC }
}

/// `a op b`, operands cut to `width`; `flags` are those before.
#[must_use]
pub fn binary(op: AluOp, width: Width, a: u64, b: u64, flags: Rflags) -> Outcome {
    let (a, b) = (width.truncate(a), width.truncate(b));
    let carry = u64::from(flags.contains(Rflags::CF));
    match op {
        AluOp::Add => add(width, a, b, 0),
        AluOp::Adc => add(width, a, b, carry),
        AluOp::Sub | AluOp::Cmp => sub(width, a, b, 0),
        AluOp::Sbb => sub(width, a, b, carry),
        AluOp::And | AluOp::Test => logic(width, a & b),
        AluOp::Or => logic(width, a | b),
        AluOp::Xor => logic(width, a ^ b),
    }
}

/// INC: ADD 1 that leaves CF alone.
#[must_use]
pub fn increment(width: Width, a: u64) -> Outcome {
    let outcome = add(width, width.truncate(a), 1, 0);
    Outcome { changed: outcome.changed.difference(Rflags::CF), ..outcome }
}

/// DEC: SUB 1 that leaves CF alone.
#[must_use]
pub fn decrement(width: Width, a: u64) -> Outcome {
    let outcome = sub(width, width.truncate(a), 1, 0);
    Outcome { changed: outcome.changed.difference(Rflags::CF), ..outcome }
}

/// NEG.
#[must_use]
pub fn negate(width: Width, a: u64) -> Outcome {
    sub(width, 0, width.truncate(a), 0)
}

/// NOT, which has no flags.
#[must_use]
pub fn not(width: Width, a: u64) -> Outcome {
    Outcome { value: width.truncate(!a), flags: Rflags::empty(), changed: Rflags::empty() }
}

/// A shift or rotation by `count`, of which the CPU takes five bits (six for
/// operands of eight bytes). By zero, nothing changes.
#[must_use]
pub fn shift(op: ShiftOp, width: Width, a: u64, count: u64, flags: Rflags) -> Outcome {
    let bits = width.bits();
    let count = count.low32() & if width == Width::B8 { 63 } else { 31 };
    let a = width.truncate(a);
    if count == 0 {
        return Outcome { value: a, flags: Rflags::empty(), changed: Rflags::empty() };
    }
    let carry_in = u128::from(flags.contains(Rflags::CF));
    let rotation = Rflags::CF | Rflags::OF;
    let top = |value: u64| value & width.sign_bit() != 0;
    let below_top = |value: u64| value << 1 & width.sign_bit() != 0;
    let (value, carry, overflow, changed) = match op {
        ShiftOp::Shl => {
            // Up to 63 places: nothing of 64 bits is lost in 128.
            let wide = u128::from(a) << count;
            let value = width.truncate(low64(wide));
            let carry = wide >> bits & 1 != 0;
            (value, carry, top(value) != carry, Rflags::ARITHMETIC)
        }
        ShiftOp::Shr => {
            let value = a >> count;
            let carry = a >> count.wrapping_sub(1) & 1 != 0;
            (value, carry, top(value) != below_top(value), Rflags::ARITHMETIC)
        }
        ShiftOp::Sar => {
            let extended = width.sign_extend(a).cast_signed();
            let value = width.truncate((extended >> count).cast_unsigned());
            let carry = extended >> count.wrapping_sub(1) & 1 != 0;
            (value, carry, false, Rflags::ARITHMETIC)
        }
        ShiftOp::Rol => {
            let value = rotate_left(width, a, count & bits.wrapping_sub(1));
            let carry = value & 1 != 0;
            (value, carry, top(value) != carry, rotation)
        }
        ShiftOp::Ror => {
            let value = rotate_left(width, a, bits.wrapping_sub(count) & bits.wrapping_sub(1));
            (value, top(value), top(value) != below_top(value), rotation)
        }
        ShiftOp::Rcl | ShiftOp::Rcr => {
            let ring = bits.wrapping_add(1);
            let places = count.checked_rem(ring).unwrap_or(0);
            let left = if op == ShiftOp::Rcl {
                places
            } else {
                ring.wrapping_sub(places).checked_rem(ring).unwrap_or(0)
            };
            let whole = u128::from(a) | carry_in << bits;
            let turned = whole << left | whole.checked_shr(ring.wrapping_sub(left)).unwrap_or(0);
            let value = width.truncate(low64(turned));
            let carry = turned >> bits & 1 != 0;
            let overflow = match op {
                ShiftOp::Rcl => top(value) != carry,
                _ => top(value) != below_top(value),
            };
            (value, carry, overflow, rotation)
        }
    };
    let mut flags = result_flags(width, value);
    flags.set(Rflags::CF, carry);
    flags.set(Rflags::OF, overflow);
    Outcome { value, flags, changed }
}

/// SHLD (`left`) and SHRD: `a` shifted by `count` as [`shift`] does, filled up from `b`. Where an
/// operand of two bytes is shifted by more than 16, `a` itself follows `b`.
#[must_use]
pub fn double_shift(left: bool, width: Width, a: u64, b: u64, count: u64) -> Outcome {
    let bits = width.bits();
    let count = count.low32() & if width == Width::B8 { 63 } else { 31 };
    let (a, b) = (width.truncate(a), width.truncate(b));
    if count == 0 {
        return Outcome { value: a, flags: Rflags::empty(), changed: Rflags::empty() };
    }
    let (above, below) = if left { (a, b) } else { (b, a) };
    let pair = u128::from(above) << bits | u128::from(below);
    let over = count.saturating_sub(bits);
    let (value, carry) = if over > 0 {
        // Of two bytes only.
        let rest = bits.wrapping_sub(over);
        if left {
            (b << over | a >> rest, b >> rest & 1 != 0)
        } else {
            (b >> over | a << rest, b >> over.wrapping_sub(1) & 1 != 0)
        }
    } else if left {
        (low64(pair << count >> bits), a >> bits.wrapping_sub(count) & 1 != 0)
    } else {
        (low64(pair >> count), a >> count.wrapping_sub(1) & 1 != 0)
    };
    let value = width.truncate(value);
    let mut flags = result_flags(width, value);
    flags.set(Rflags::CF, carry);
    flags.set(Rflags::OF, (a ^ value) & width.sign_bit() != 0);
    Outcome { value, flags, changed: Rflags::ARITHMETIC }
}

/// `places` is below the width.
fn rotate_left(width: Width, a: u64, places: u32) -> u64 {
    let wide = u128::from(a) << places;
    width.truncate(low64(wide | wide >> width.bits()))
}

fn low64(value: u128) -> u64 {
    x86defs::bits::join((value >> 32).low32(), value.low32())
}

/// A bit test of bit `bit` modulo the width.
#[must_use]
pub fn bit(op: BitOp, width: Width, a: u64, bit: u64) -> Outcome {
    let mask = 1 << (bit & u64::from(width.bits().wrapping_sub(1)));
    let value = match op {
        BitOp::Test => a,
        BitOp::Set => a | mask,
        BitOp::Reset => a & !mask,
        BitOp::Complement => a ^ mask,
    };
    let mut flags = Rflags::empty();
    flags.set(Rflags::CF, a & mask != 0);
    Outcome { value: width.truncate(value), flags, changed: Rflags::CF }
}
