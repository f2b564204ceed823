//! Sizes as people write them.

use alloc::format;
use alloc::string::String;

/// Reads a size such as `512M`, `6G` or `1T`; a bare number counts MiB.
///
/// # Errors
/// Words for whoever wrote it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let shift = match text.chars().last() {
        Some('k' | 'K') => 10,
        Some('g' | 'G') => 30,
        Some('t' | 'T') => 40,
        _ => 20,
    };
    let digits = text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T']).unwrap_or(text);
    let number: u64 =
        digits.parse().map_err(|_| format!("`{text}` is no size; write for example 512M or 6G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too much"))
}

/// A size as one writes it: in the largest unit that it is a multiple of.
#[must_use]
pub fn short_size(size: u64) -> String {
    let (shift, unit) = [(40, "T"), (30, "G"), (20, "M"), (10, "K")]
        .into_iter()
        .find(|(shift, _)| size.trailing_zeros() >= *shift)
        .unwrap_or((0, ""));
    format!("{}{unit}", size >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("6g"), Ok(6 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        assert_eq!(parse_size("128"), Ok(128 << 20));
        assert!(parse_size("").is_err());
        assert!(parse_size("M").is_err());
        assert!(parse_size("-1M").is_err());
        assert!(parse_size("99999999999999G").is_err());
        assert!(parse_size("99999999999999T").is_err());
    }

    #[test]
    fn sizes_are_written_short() {
        let sizes = [(1 << 40, "1T"), (512 << 20, "512M"), (6 << 10, "6K"), (1000, "1000")];
        for (size, text) in sizes {
            assert_eq!(short_size(size), text);
        }
    }
}
