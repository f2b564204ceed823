//! Arithmetic against a model that goes bit by bit.
#![expect(clippy::cast_possible_truncation, reason = "places in a word")]

use proptest::prelude::*;
use x86defs::{Rflags, Width};
use x86emu::{AluOp, BitOp, ShiftOp, alu};

/// `a` as bits, the lowest first.
fn bits(width: Width, a: u64) -> Vec<bool> {
    (0..width.bits()).map(|i| a >> i & 1 != 0).collect()
}

fn number(bits: &[bool]) -> u64 {
    bits.iter().rev().fold(0, |n, bit| n << 1 | u64::from(*bit))
}

fn of_result(width: Width, value: u64) -> Rflags {
    let all = bits(width, value);
    let mut flags = Rflags::empty();
    flags.set(Rflags::ZF, !all.contains(&true));
    flags.set(Rflags::SF, all[all.len() - 1]);
    flags.set(Rflags::PF, all[..8].iter().filter(|bit| **bit).count() % 2 == 0);
    flags
}

/// A ripple-carry adder: AF is the carry into bit 4, OF the last two carries' difference.
fn adder(width: Width, a: u64, b: u64, carry: bool) -> (u64, Rflags) {
    let (a, b) = (bits(width, a), bits(width, b));
    let mut carries = vec![carry];
    let mut sum = Vec::new();
    for i in 0..a.len() {
        let ones = u8::from(a[i]) + u8::from(b[i]) + u8::from(carries[i]);
        sum.push(ones & 1 != 0);
        carries.push(ones >= 2);
    }
    let value = number(&sum);
    let mut flags = of_result(width, value);
    flags.set(Rflags::AF, carries[4]);
    flags.set(Rflags::CF, carries[a.len()]);
    flags.set(Rflags::OF, carries[a.len()] != carries[a.len() - 1]);
    (value, flags)
}

/// Subtraction is the addition of the complement, with CF and AF inverted.
fn subtractor(width: Width, a: u64, b: u64, borrow: bool) -> (u64, Rflags) {
    let (value, flags) = adder(width, a, width.truncate(!b), !borrow);
    (value, flags ^ (Rflags::CF | Rflags::AF))
}

fn binary(op: AluOp, width: Width, a: u64, b: u64, carry: bool) -> (u64, Rflags) {
    let each = |f: fn(bool, bool) -> bool| {
        let all: Vec<bool> =
            bits(width, a).into_iter().zip(bits(width, b)).map(|(a, b)| f(a, b)).collect();
        (number(&all), of_result(width, number(&all)))
    };
    match op {
        AluOp::Add => adder(width, a, b, false),
        AluOp::Adc => adder(width, a, b, carry),
        AluOp::Sub | AluOp::Cmp => subtractor(width, a, b, false),
        AluOp::Sbb => subtractor(width, a, b, carry),
        AluOp::And | AluOp::Test => each(|a, b| a && b),
        AluOp::Or => each(|a, b| a || b),
        AluOp::Xor => each(|a, b| a != b),
    }
}

/// One place at a time, as the manual's pseudocode has it. OF is that of the
/// last place moved.
fn shift(op: ShiftOp, width: Width, a: u64, count: u64, old: Rflags) -> (u64, Rflags) {
    let count = count & if width == Width::B8 { 63 } else { 31 };
    let mut all = bits(width, a);
    let top = all.len() - 1;
    let mut carry = old.contains(Rflags::CF);
    let mut overflow = old.contains(Rflags::OF);
    for _ in 0..count {
        let before = all[top];
        match op {
            ShiftOp::Shl | ShiftOp::Rol | ShiftOp::Rcl => {
                let out = all[top];
                all.rotate_right(1);
                all[0] = match op {
                    ShiftOp::Shl => false,
                    ShiftOp::Rol => out,
                    _ => carry,
                };
                carry = out;
                overflow = all[top] != carry;
            }
            ShiftOp::Shr | ShiftOp::Sar | ShiftOp::Ror | ShiftOp::Rcr => {
                let out = all[0];
                all.rotate_left(1);
                all[top] = match op {
                    ShiftOp::Shr => false,
                    ShiftOp::Sar => before,
                    ShiftOp::Ror => out,
                    _ => carry,
                };
                carry = out;
                overflow = match op {
                    ShiftOp::Shr => before,
                    ShiftOp::Sar => false,
                    _ => all[top] != all[top - 1],
                };
            }
        }
    }
    let value = number(&all);
    let shifts = matches!(op, ShiftOp::Shl | ShiftOp::Shr | ShiftOp::Sar);
    let mut flags = match (count, shifts) {
        (0, _) => return (value, old),
        (_, true) => of_result(width, value),
        (_, false) => old,
    };
    flags.set(Rflags::CF, carry);
    flags.set(Rflags::OF, overflow);
    (value, flags)
}

fn widths() -> impl Strategy<Value = Width> {
    prop::sample::select(vec![Width::B1, Width::B2, Width::B4, Width::B8])
}

/// Numbers near the ends of each width, and any.
fn operands() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, 0u64..3).prop_map(|(shift, less)| (1u64 << shift).wrapping_sub(less)),
        Just(0),
    ]
}

fn flags() -> impl Strategy<Value = Rflags> {
    any::<u64>().prop_map(|bits| Rflags::from_bits_truncate(bits) & Rflags::ARITHMETIC)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn binary_operations(width in widths(), a in operands(), b in operands(), old in flags()) {
        for op in [AluOp::Add, AluOp::Or, AluOp::Adc, AluOp::Sbb, AluOp::And, AluOp::Sub, AluOp::Xor, AluOp::Cmp, AluOp::Test] {
            let outcome = alu::binary(op, width, a, b, old);
            let model = binary(op, width, a, b, old.contains(Rflags::CF));
            prop_assert_eq!((outcome.value, outcome.apply(old)), model, "{:?}", op);
        }
    }

    #[test]
    fn unary_operations(width in widths(), a in operands(), old in flags()) {
        let keep_carry = |(value, flags): (u64, Rflags)| (value, (flags - Rflags::CF) | old & Rflags::CF);
        let seen = |outcome: alu::Outcome| (outcome.value, outcome.apply(old));
        prop_assert_eq!(seen(alu::increment(width, a)), keep_carry(adder(width, a, 1, false)));
        prop_assert_eq!(seen(alu::decrement(width, a)), keep_carry(subtractor(width, a, 1, false)));
        prop_assert_eq!(seen(alu::negate(width, a)), subtractor(width, 0, a, false));
        prop_assert_eq!(seen(alu::not(width, a)), (width.truncate(!a), old));
    }

    #[test]
    fn shifts(width in widths(), a in operands(), count in 0u64..256, old in flags()) {
        for op in [ShiftOp::Rol, ShiftOp::Ror, ShiftOp::Rcl, ShiftOp::Rcr, ShiftOp::Shl, ShiftOp::Shr, ShiftOp::Sar] {
            let outcome = alu::shift(op, width, a, count, old);
            let (value, mut flags) = shift(op, width, a, count, old);
            let mut seen = outcome.apply(old);
            let masked = count & if width == Width::B8 { 63 } else { 31 };
            if masked == 0 {
                prop_assert_eq!(seen, old);
            } else if op == ShiftOp::Shr && masked > 1 {
                // Undefined; ours is what the last step of the shift leaves.
                seen.remove(Rflags::OF);
                flags.remove(Rflags::OF);
            }
            prop_assert_eq!((outcome.value, seen), (value, flags), "{:?} by {}", op, count);
        }
    }

    #[test]
    fn bit_tests(width in widths(), a in operands(), bit in any::<u64>(), old in flags()) {
        let place = (bit % u64::from(width.bits())) as usize;
        for op in [BitOp::Test, BitOp::Set, BitOp::Reset, BitOp::Complement] {
            let outcome = alu::bit(op, width, a, bit);
            let mut all = bits(width, a);
            let mut flags = old;
            flags.set(Rflags::CF, all[place]);
            all[place] = match op {
                BitOp::Test => all[place],
                BitOp::Set => true,
                BitOp::Reset => false,
                BitOp::Complement => !all[place],
            };
            prop_assert_eq!((outcome.value, outcome.apply(old)), (number(&all), flags));
        }
    }
}
