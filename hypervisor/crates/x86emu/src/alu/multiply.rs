//! Products and quotients.

use super::{Outcome, low64, result_flags};
use x86defs::{Rflags, Width};

/// A product, and the flags that come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// The lower half, cut to the operands' width, with the flags.
    pub low: Outcome,
    /// The upper half, cut to the operands' width.
    pub high: u64,
}

/// `a * b`. CF and OF tell whether the upper half is more than the lower half's sign (or more than
/// zeros); the other flags, which are undefined, are those of the lower half.
#[must_use]
pub fn multiply(signed: bool, width: Width, a: u64, b: u64) -> Product {
    let bits = width.bits();
    let wide = if signed {
        let (a, b) = (signed128(width, a), signed128(width, b));
        a.wrapping_mul(b).cast_unsigned()
    } else {
        u128::from(width.truncate(a)).wrapping_mul(width.truncate(b).into())
    };
    let value = width.truncate(low64(wide));
    let high = width.truncate(low64(wide >> bits));
    let expected = if signed && value & width.sign_bit() != 0 { width.mask() } else { 0 };
    let mut flags = result_flags(width, value);
    flags.set(Rflags::CF | Rflags::OF, high != expected);
    Product { low: Outcome { value, flags, changed: Rflags::ARITHMETIC }, high }
}

/// `high:low / divisor`: quotient and remainder; `None` where the CPU raises #DE.
#[must_use]
pub fn divide(signed: bool, width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let bits = width.bits();
    let dividend = u128::from(width.truncate(high)) << bits | u128::from(width.truncate(low));
    if !signed {
        let divisor = u128::from(width.truncate(divisor));
        let quotient = dividend.checked_div(divisor)?;
        let remainder = dividend.checked_rem(divisor)?;
        return (quotient <= u128::from(width.mask())).then(|| (low64(quotient), low64(remainder)));
    }
    let unused = 128_u32.wrapping_sub(bits << 1);
    let dividend = (dividend << unused).cast_signed() >> unused;
    let divisor = signed128(width, divisor);
    let quotient = dividend.checked_div(divisor)?;
    let remainder = dividend.checked_rem(divisor)?;
    let limit = i128::from(width.sign_bit());
    let fits = (limit.wrapping_neg()..limit).contains(&quotient);
    let cut = |value: i128| width.truncate(low64(value.cast_unsigned()));
    fits.then(|| (cut(quotient), cut(remainder)))
}

fn signed128(width: Width, value: u64) -> i128 {
    i128::from(width.sign_extend(width.truncate(value)).cast_signed())
}
