//! Arithmetic against a model that goes bit by bit.
#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "places in a word")]

use proptest::prelude::*;
use x86defs::{Rflags, Width};
use x86emu::{AluOp, BitOp, FieldOp, ScanOp, ShiftOp, alu};

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

/// The numbers as signed ones of 128 bits.
fn wide(signed: bool, width: Width, a: u64) -> i128 {
    let a = width.truncate(a);
    if signed && a & width.sign_bit() != 0 {
        i128::from(a) - (1 << width.bits())
    } else {
        i128::from(a)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products(width in widths(), a in operands(), b in operands(), signed: bool) {
        let product = alu::multiply(signed, width, a, b);
        let both = if signed {
            (wide(signed, width, a) * wide(signed, width, b)) as u128
        } else {
            wide(signed, width, a) as u128 * wide(signed, width, b) as u128
        };
        let mask = u128::from(width.mask());
        prop_assert_eq!(u128::from(product.low.value), both & mask);
        prop_assert_eq!(u128::from(product.high), both >> width.bits() & mask);
        // Overflow: the low half alone is another number.
        let fits = if signed {
            wide(true, width, product.low.value) == both as i128
        } else {
            u128::from(product.low.value) == both
        };
        for flag in [Rflags::CF, Rflags::OF] {
            prop_assert_eq!(product.low.flags.contains(flag), !fits);
        }
    }

    #[test]
    fn quotients(width in widths(), quotient in operands(), divisor in operands(), rest in any::<u64>(), signed: bool) {
        // Mostly dividends that can be divided.
        let q = wide(signed, width, quotient);
        let d = wide(signed, width, divisor);
        let r = if d == 0 { 0 } else { i128::from(rest >> 1) % d.abs() };
        let dividend = if signed {
            let sign = if (q < 0) != (d < 0) { -1 } else { 1 };
            q.wrapping_mul(d).wrapping_add(sign * r) as u128
        } else {
            (q as u128).wrapping_mul(d as u128).wrapping_add(r as u128)
        };
        let high = width.truncate((dividend >> width.bits()) as u64);
        let low = width.truncate(dividend as u64);
        let found = alu::divide(signed, width, high, low, divisor);
        if d == 0 {
            prop_assert_eq!(found, None);
        } else if let Some((quotient, remainder)) = found {
            let (q, r) = (wide(signed, width, quotient), wide(signed, width, remainder));
            prop_assert!(r.abs() < d.abs());
            let mask = if width == Width::B8 { u128::MAX } else { (1 << (2 * width.bits())) - 1 };
            let again = (q as u128).wrapping_mul(d as u128).wrapping_add(r as u128) & mask;
            prop_assert_eq!(again, u128::from(high) << width.bits() | u128::from(low));
        } else if !signed {
            prop_assert!(high >= width.truncate(divisor));
        }
    }

    #[test]
    fn double_shifts(width in widths(), a in operands(), b in operands(), count in 0u64..256, old in flags(), left: bool) {
        if width == Width::B1 {
            return Ok(());
        }
        let masked = count & if width == Width::B8 { 63 } else { 31 };
        let outcome = alu::double_shift(left, width, a, b, count);
        if masked == 0 {
            prop_assert_eq!((outcome.value, outcome.apply(old)), (width.truncate(a), old));
            return Ok(());
        }
        // Bit by bit; beyond the width the register's bits come once more.
        let mut all = bits(width, a);
        let mut source: Vec<bool> = bits(width, b).into_iter().chain(bits(width, a)).collect();
        if left {
            source = bits(width, b).into_iter().rev().chain(bits(width, a).into_iter().rev()).collect();
            all.reverse();
        }
        let mut carry = false;
        for next in source.iter().take(masked as usize) {
            carry = all.remove(0);
            all.push(*next);
        }
        if left {
            all.reverse();
        }
        let mut flags = of_result(width, number(&all));
        flags.set(Rflags::CF, carry);
        let seen = outcome.flags - Rflags::OF;
        prop_assert_eq!((outcome.value, seen), (number(&all), flags));
        if masked == 1 {
            let changed = (width.truncate(a) ^ outcome.value) & width.sign_bit() != 0;
            prop_assert_eq!(outcome.flags.contains(Rflags::OF), changed);
        }
    }

    #[test]
    fn searches(width in widths(), a in operands()) {
        let all = bits(width, a);
        let first = all.iter().position(|bit| *bit);
        let last = all.iter().rposition(|bit| *bit);
        let none = all.len();
        let found = |op| alu::scan(op, width, a).map(|outcome| outcome.value as usize);
        prop_assert_eq!(found(ScanOp::Forward), first);
        prop_assert_eq!(found(ScanOp::Reverse), last);
        prop_assert_eq!(found(ScanOp::TrailingZeros), Some(first.unwrap_or(none)));
        prop_assert_eq!(found(ScanOp::LeadingZeros), Some(last.map_or(none, |last| none - 1 - last)));
        prop_assert_eq!(found(ScanOp::Ones), Some(all.iter().filter(|bit| **bit).count()));
    }

    #[test]
    fn deposits_and_gathers(width in widths(), a in any::<u64>(), mask in any::<u64>()) {
        let places: Vec<usize> = bits(width, mask).iter().enumerate().filter(|(_, bit)| **bit).map(|(i, _)| i).collect();
        let mut spread = 0;
        let mut together = 0;
        for (n, place) in places.iter().enumerate() {
            spread |= (a >> n & 1) << place;
            together |= (width.truncate(a) >> place & 1) << n;
        }
        prop_assert_eq!(alu::field(FieldOp::Deposit, width, mask, a).value, spread);
        prop_assert_eq!(alu::field(FieldOp::Gather, width, mask, a).value, together);
    }

    #[test]
    fn lowest_bits(width in widths(), a in operands()) {
        let a = width.truncate(a);
        let seen = |op| {
            let outcome = alu::field(op, width, a, 0);
            (outcome.value, outcome.flags.contains(Rflags::CF))
        };
        let lowest = if a == 0 { 0 } else { 1 << a.trailing_zeros() };
        prop_assert_eq!(seen(FieldOp::LowestIsolated), (lowest, a != 0));
        prop_assert_eq!(seen(FieldOp::LowestReset), (a & !lowest, a == 0));
        let below = if a == 0 { width.mask() } else { lowest | (lowest - 1) };
        prop_assert_eq!(seen(FieldOp::LowestMask), (below, a == 0));
    }
}

/// CRC-32C of the usual test text, a byte and eight bytes at a time.
#[test]
fn checksum() {
    let bytewise = b"123456789"
        .iter()
        .fold(u32::MAX, |crc, byte| alu::crc32(Width::B1, crc, u64::from(*byte)));
    assert_eq!(!bytewise, 0xe306_9283);
    let first = alu::crc32(Width::B8, u32::MAX, u64::from_le_bytes(*b"12345678"));
    assert_eq!(!alu::crc32(Width::B1, first, u64::from(b'9')), 0xe306_9283);
}
