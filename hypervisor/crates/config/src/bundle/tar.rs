//! As much of tar as a bundle needs (POSIX: "ustar Interchange Format"):
//! regular files with names of at most 100 bytes. Every read is bounded.

use crate::bundle::{BundleError, TarFault};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

/// Bytes in a block: headers and contents begin on such a boundary.
const BLOCK: usize = 512;
/// The greatest size that eleven octal digits can say.
const MAX_SIZE: u64 = 0o777_7777_7777;
/// Type of a regular file.
const REGULAR: u8 = b'0';
/// The same in archives older than POSIX.
const REGULAR_OLD: u8 = 0;

/// A field of the header: its offset and size in bytes.
type Field = core::ops::Range<usize>;
const NAME: Field = 0..100;
const MODE: Field = 100..108;
const UID: Field = 108..116;
const GID: Field = 116..124;
const SIZE: Field = 124..136;
const MTIME: Field = 136..148;
const CHECKSUM: Field = 148..156;
const KIND: usize = 156;
const MAGIC: Field = 257..262;
const VERSION: Field = 262..265;
const PREFIX: Field = 345..500;

/// A member of an archive.
pub(super) struct Member<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its contents.
    pub(super) data: &'a [u8],
    /// Place of its header, in bytes from the archive's start.
    pub(super) offset: u64,
}

/// Walks the members of an archive.
pub(super) struct Members<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Members<'a> {
    pub(super) const fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// The next member, or `None` at the end marker.
    pub(super) fn next(&mut self) -> Result<Option<Member<'a>>, BundleError> {
        let offset = self.at as u64;
        let header = self.take(BLOCK, "a tar header, or the end marker")?;
        if header.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let tar = |fault| BundleError::Tar { offset, fault };
        if field(header, MAGIC) != b"ustar" {
            return Err(tar(TarFault::Magic));
        }
        let wanted = octal(field(header, CHECKSUM)).ok_or(tar(TarFault::Number("chksum")))?;
        let got = checksum(header);
        if wanted != got {
            return Err(tar(TarFault::Checksum { wanted, got }));
        }
        let kind = header.get(KIND).copied().unwrap_or(REGULAR_OLD);
        if kind != REGULAR && kind != REGULAR_OLD {
            return Err(tar(TarFault::Kind(kind)));
        }
        let name = core::str::from_utf8(text(field(header, NAME)))
            .ok()
            .filter(|name| !name.is_empty() && text(field(header, PREFIX)).is_empty())
            .ok_or(tar(TarFault::Name))?;
        let size = octal(field(header, SIZE)).ok_or(tar(TarFault::Number("size")))?;
        let size = usize::try_from(size).map_err(|_| tar(TarFault::Size(size)))?;
        let data = self.take(size, name)?;
        // The last member's padding may be cut off with the end marker; that is
        // noticed when the marker is read.
        self.at = self.at.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX);
        Ok(Some(Member { name, data, offset }))
    }

    fn take(&mut self, bytes: usize, what: &str) -> Result<&'a [u8], BundleError> {
        let end = self.at.saturating_add(bytes);
        let taken = self.data.get(self.at..end).ok_or_else(|| BundleError::Truncated {
            what: what.to_string(),
            wanted: end as u64,
            got: self.data.len() as u64,
        })?;
        self.at = end;
        Ok(taken)
    }
}

/// Appends a regular file to an archive.
pub(super) fn append(
    archive: &mut Vec<u8>,
    name: &str,
    contents: &[u8],
) -> Result<(), BundleError> {
    let tar = |fault| BundleError::Tar { offset: archive.len() as u64, fault };
    let size = contents.len() as u64;
    if size > MAX_SIZE {
        return Err(tar(TarFault::Size(size)));
    }
    if name.is_empty() || name.len() > NAME.len() || name.contains('\0') {
        return Err(tar(TarFault::Name));
    }
    let mut header = [0; BLOCK];
    put(&mut header, NAME, name.as_bytes());
    put(&mut header, MODE, b"0000644");
    put(&mut header, UID, b"0000000");
    put(&mut header, GID, b"0000000");
    put(&mut header, SIZE, format!("{size:011o}").as_bytes());
    // Time 0: the same input gives the same image.
    put(&mut header, MTIME, b"00000000000");
    put(&mut header, KIND..KIND + 1, &[REGULAR]);
    put(&mut header, MAGIC, b"ustar");
    put(&mut header, VERSION, b"\x0000");
    let sum = checksum(&header);
    put(&mut header, CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
    archive.extend_from_slice(&header);
    archive.extend_from_slice(contents);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    Ok(())
}

/// Appends the end marker, two blocks of zeros.
pub(super) fn finish(archive: &mut Vec<u8>) {
    archive.resize(archive.len() + 2 * BLOCK, 0);
}

fn field(header: &[u8], field: Field) -> &[u8] {
    header.get(field).unwrap_or_default()
}

fn put(header: &mut [u8; BLOCK], field: Field, value: &[u8]) {
    for (to, from) in header.iter_mut().skip(field.start).zip(value) {
        *to = *from;
    }
}

/// A text field up to its NUL, if it has one.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits, ended by NULs or spaces or by the field's end.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at_checked(end)?;
    if digits.is_empty() || !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// The sum of the header's bytes, those of the checksum counted as spaces.
fn checksum(header: &[u8]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    sum(header) - sum(field(header, CHECKSUM)) + CHECKSUM.len() as u64 * u64::from(b' ')
}
