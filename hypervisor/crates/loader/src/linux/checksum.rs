//! The CRC-32 that Linux's build appended up to Linux 6.14: over the whole file, checksum
//! included, it leaves 0, or its complement as CRCs are mostly computed. Signing for secure boot
//! changes two fields of the PE header afterwards; they count as the zeros that they were.

use super::version_text;
use crate::bytes::Bytes;
use crate::error::LoadError;
use core::ops::Range;

/// A checksum that is being computed.
pub(crate) struct Checksum<'a> {
    covered: &'a [u8],
    /// Ranges of bytes that count as zeros, in rising order; none has more than eight bytes.
    holes: [Range<usize>; 2],
    at: usize,
    crc: crc32fast::Hasher,
}

impl<'a> Checksum<'a> {
    /// That of a kernel whose contents end at `size`; `None` if it carries none.
    pub(crate) fn of(image: Bytes<'a>, size: u64) -> Option<Self> {
        if !has_crc(image) {
            return None;
        }
        let covered = image.get(0, size)?;
        let holes = pe_holes(image).unwrap_or_default();
        Some(Self { covered, holes, at: 0, crc: crc32fast::Hasher::new() })
    }

    /// Looks at at most `bytes` more; whether something is left.
    ///
    /// # Errors
    /// [`LoadError::Checksum`] at the end, where it does not hold.
    pub(crate) fn step(&mut self, bytes: usize) -> Result<bool, LoadError> {
        let end = self.covered.len().min(self.at.saturating_add(bytes));
        while self.at < end {
            let hole = self.holes.iter().find(|hole| self.at < hole.end).cloned();
            let to = match hole {
                Some(hole) if hole.start <= self.at => {
                    let to = hole.end.min(end);
                    let zeros = [0; 8];
                    self.crc.update(zeros.get(..to - self.at).unwrap_or_default());
                    to
                }
                hole => {
                    let to = hole.map_or(end, |hole| hole.start.min(end));
                    self.crc.update(self.covered.get(self.at..to).unwrap_or_default());
                    to
                }
            };
            self.at = to;
        }
        if self.at < self.covered.len() {
            return Ok(true);
        }
        match self.crc.clone().finalize() {
            u32::MAX => Ok(false),
            got => Err(LoadError::Checksum { size: self.covered.len() as u64, got }),
        }
    }
}

/// Whether the build of this kernel appended a checksum: its version string
/// begins with a number below 6.15. Other programs that use the protocol
/// don't carry one.
fn has_crc(image: Bytes<'_>) -> bool {
    let mut parts = version_text(image).split(|&byte| !byte.is_ascii_digit());
    let mut number =
        || core::str::from_utf8(parts.next()?).ok().and_then(|part| part.parse::<u32>().ok());
    matches!((number(), number()), (Some(major), Some(minor)) if (major, minor) < (6, 15))
}

/// The PE header's checksum and its pointer to the signature
/// (PE format: "Optional Header").
fn pe_holes(image: Bytes<'_>) -> Option<[Range<usize>; 2]> {
    const PE_POINTER: u64 = 0x3c;
    const OPTIONAL_HEADER: u64 = 24;
    const CHECKSUM: u64 = 64;
    const SECURITY_PE32: u64 = 96 + 4 * 8;
    const SECURITY_PE32_PLUS: u64 = 112 + 4 * 8;

    if image.get(0, 2) != Some(b"MZ") {
        return None;
    }
    let pe = u64::from(image.u32(PE_POINTER)?);
    if image.get(pe, 4) != Some(b"PE\0\0") {
        return None;
    }
    let optional = pe + OPTIONAL_HEADER;
    let security = match image.u16(optional)? {
        0x10b => SECURITY_PE32,
        0x20b => SECURITY_PE32_PLUS,
        _ => return None,
    };
    let field = |offset: u64, size: u64| {
        let start = usize::try_from(optional + offset).ok()?;
        Some(start..usize::try_from(optional + offset + size).ok()?)
    };
    Some([field(CHECKSUM, 4)?, field(security, 8)?])
}
