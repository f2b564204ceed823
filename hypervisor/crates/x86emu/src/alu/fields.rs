//! Bits within a number: searches, BMI1, BMI2, ADX and CRC32.

use super::{Outcome, low64, result_flags, shift};
use crate::instruction::{FieldOp, ScanOp, ShiftOp};
use x86defs::{Low, Rflags, Width};

/// BSF and its kin on `a`; `None` where BSF or BSR finds nothing: then ZF is set and nothing else
/// changes.
#[must_use]
pub fn scan(op: ScanOp, width: Width, a: u64) -> Option<Outcome> {
    let a = width.truncate(a);
    let bits = width.bits();
    let leading = a.leading_zeros().wrapping_sub(64_u32.wrapping_sub(bits));
    let trailing = a.trailing_zeros().min(bits);
    let (value, changed) = match op {
        ScanOp::Forward | ScanOp::Reverse if a == 0 => return None,
        ScanOp::Forward => (trailing, Rflags::ZF),
        ScanOp::Reverse => (bits.wrapping_sub(1).wrapping_sub(leading), Rflags::ZF),
        ScanOp::TrailingZeros => (trailing, Rflags::ZF | Rflags::CF),
        ScanOp::LeadingZeros => (leading, Rflags::ZF | Rflags::CF),
        ScanOp::Ones => (a.count_ones(), Rflags::ARITHMETIC),
    };
    let mut flags = Rflags::empty();
    match op {
        ScanOp::Forward | ScanOp::Reverse => {}
        ScanOp::TrailingZeros | ScanOp::LeadingZeros => {
            flags.set(Rflags::CF, a == 0);
            flags.set(Rflags::ZF, value == 0);
        }
        ScanOp::Ones => flags.set(Rflags::ZF, a == 0),
    }
    Some(Outcome { value: value.into(), flags, changed })
}

/// An operation of BMI1 or BMI2 on the source `a` and the register `b`.
#[must_use]
pub fn field(op: FieldOp, width: Width, a: u64, b: u64) -> Outcome {
    let (a, b) = (width.truncate(a), width.truncate(b));
    let bits = width.bits();
    let (value, carry) = match op {
        FieldOp::AndNot => (a & !b, false),
        FieldOp::Extract => (extract(a, b), false),
        FieldOp::ZeroHigh => {
            let from = u32::from(b.low8());
            (if from < bits { a & !(u64::MAX << from) } else { a }, from >= bits)
        }
        FieldOp::LowestIsolated => (a & a.wrapping_neg(), a != 0),
        FieldOp::LowestMask => (a ^ a.wrapping_sub(1), a == 0),
        FieldOp::LowestReset => (a & a.wrapping_sub(1), a == 0),
        FieldOp::Deposit => (deposit(b, a), false),
        FieldOp::Gather => (gather(b, a), false),
        FieldOp::Shl | FieldOp::Shr | FieldOp::Sar => {
            let op = match op {
                FieldOp::Shl => ShiftOp::Shl,
                FieldOp::Shr => ShiftOp::Shr,
                _ => ShiftOp::Sar,
            };
            (shift(op, width, a, b, Rflags::empty()).value, false)
        }
    };
    let value = width.truncate(value);
    let mut flags = result_flags(width, value);
    flags.set(Rflags::CF, carry);
    let all = Rflags::ZF | Rflags::SF | Rflags::CF | Rflags::OF;
    let changed = match op {
        FieldOp::Extract => all.difference(Rflags::SF),
        FieldOp::Deposit | FieldOp::Gather | FieldOp::Shl | FieldOp::Shr | FieldOp::Sar => {
            Rflags::empty()
        }
        _ => all,
    };
    Outcome { value, flags, changed }
}

/// BEXTR: bits 7:0 of `control` are the first bit, bits 15:8 how many.
fn extract(a: u64, control: u64) -> u64 {
    let (start, count) = (u32::from(control.low8()), u32::from((control >> 8).low8()));
    let moved = a.checked_shr(start).unwrap_or(0);
    if count < 64 { moved & !(u64::MAX << count) } else { moved }
}

/// The low bits of `a`, at the places of the bits of `mask`.
fn deposit(mut a: u64, mask: u64) -> u64 {
    let mut left = mask;
    let mut value = 0;
    while left != 0 {
        let place = left & left.wrapping_neg();
        if a & 1 != 0 {
            value |= place;
        }
        a >>= 1;
        left ^= place;
    }
    value
}

/// The bits of `a` at the places of the bits of `mask`, together.
fn gather(a: u64, mask: u64) -> u64 {
    let mut left = mask;
    let mut value = 0;
    let mut next = 1_u64;
    while left != 0 {
        let place = left & left.wrapping_neg();
        if a & place != 0 {
            value |= next;
        }
        next <<= 1;
        left ^= place;
    }
    value
}

/// RORX: as ROR, without flags.
#[must_use]
pub fn rotate_right(width: Width, a: u64, count: u8) -> u64 {
    shift(ShiftOp::Ror, width, a, count.into(), Rflags::empty()).value
}

/// ADCX, and with `overflow` ADOX: an addition whose only flag is CF, or OF.
#[must_use]
pub fn add_carry(overflow: bool, width: Width, a: u64, b: u64, flags: Rflags) -> Outcome {
    let flag = if overflow { Rflags::OF } else { Rflags::CF };
    let carry = u128::from(flags.contains(flag));
    let wide =
        u128::from(width.truncate(a)).wrapping_add(width.truncate(b).into()).wrapping_add(carry);
    let mut flags = Rflags::empty();
    flags.set(flag, wide >> width.bits() != 0);
    Outcome { value: width.truncate(low64(wide)), flags, changed: flag }
}

/// The polynomial 0x11edc6f41 of CRC-32C, reflected.
const CRC32C: u32 = 0x82f6_3b78;

/// CRC32: `crc` after the bytes of `data`, the lowest first.
#[must_use]
pub fn crc32(width: Width, crc: u32, data: u64) -> u32 {
    data.to_le_bytes().iter().take(width.bytes()).fold(crc, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ CRC32C }
            },
        )
    })
}
