//! A disk's content as far as it is known: bytes that were written, zeros that were
//! written, and holes, where a disk keeps what it has.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes of a piece: it is written as a whole, or not at all.
pub(super) const PIECE: usize = 64 * 1024;

/// A piece's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// Large file allocation tables are mostly this.
    Zeros,
    Bytes(Box<[u8]>),
}

/// The content of a disk of [`len`](Self::len) bytes, most of which may be holes.
/// Reading a hole gives zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    len: u64,
    pieces: BTreeMap<u64, Piece>,
    at: u64,
}

impl Sparse {
    /// A disk of `len` bytes that is one hole.
    pub fn new(len: u64) -> Self {
        Self { len, pieces: BTreeMap::new(), at: 0 }
    }

    /// Bytes of the disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the disk has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all pieces: what [`pieces`](Self::pieces) gives.
    pub fn written(&self) -> u64 {
        self.pieces().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The place of each piece, and its bytes, in their order on the disk.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        const ZEROS: &[u8] = &[0; PIECE];
        self.pieces.iter().map(|(&number, piece)| {
            let start = number * PIECE as u64;
            let len = usize::try_from(self.len - start).map_or(PIECE, |rest| rest.min(PIECE));
            let bytes = match piece {
                Piece::Zeros => ZEROS,
                Piece::Bytes(bytes) => bytes,
            };
            (start, bytes.get(..len).unwrap_or(bytes))
        })
    }

    /// Whether nothing is written to the `len` bytes from byte `start` on.
    pub fn is_hole(&self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len).div_ceil(PIECE as u64);
        self.pieces.range(start / PIECE as u64..end).next().is_none()
    }

    /// Writes `bytes` from byte `start` on.
    pub fn put(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.seek(SeekFrom::Start(start))?;
        self.write_all(bytes)
    }

    /// Writes `len` zeros from byte `start` on.
    pub fn zero(&mut self, start: u64, len: u64) -> io::Result<()> {
        self.seek(SeekFrom::Start(start))?;
        io::copy(&mut io::repeat(0).take(len), self).map(|_| ())
    }

    /// The part from byte `start` on, `len` bytes, as a disk of its own.
    pub fn part(&mut self, start: u64, len: u64) -> Part<'_> {
        Part { whole: self, start, len, at: 0 }
    }

    /// The number of the piece at the place of reading and writing, the place in it, and
    /// how many of `wanted` bytes are in it.
    fn here(&self, wanted: usize) -> (u64, usize, usize) {
        let rest = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let offset = usize::try_from(self.at % PIECE as u64).unwrap_or_default();
        (self.at / PIECE as u64, offset, wanted.min(PIECE - offset).min(rest))
    }
}

impl Read for Sparse {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let (number, offset, len) = self.here(to.len());
        if let Some(to) = to.get_mut(..len) {
            match self.pieces.get(&number) {
                Some(Piece::Bytes(bytes)) => to.copy_from_slice(&bytes[offset..offset + len]),
                Some(Piece::Zeros) | None => to.fill(0),
            }
        }
        self.at += len as u64;
        Ok(len)
    }
}

impl Write for Sparse {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let (number, offset, len) = self.here(from.len());
        let from = from.get(..len).unwrap_or(from);
        let piece = self.pieces.entry(number).or_insert(Piece::Zeros);
        if *piece == Piece::Zeros && from.iter().any(|&byte| byte != 0) {
            *piece = Piece::Bytes(vec![0; PIECE].into());
        }
        if let Piece::Bytes(bytes) = piece {
            bytes[offset..offset + len].copy_from_slice(from);
        }
        self.at += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = place(to, self.at, self.len)?;
        Ok(self.at)
    }
}

/// A part of a disk.
#[derive(Debug)]
pub struct Part<'a> {
    whole: &'a mut Sparse,
    start: u64,
    len: u64,
    at: u64,
}

impl Part<'_> {
    fn limit(&mut self, wanted: usize) -> io::Result<usize> {
        self.whole.seek(SeekFrom::Start(self.start + self.at))?;
        let rest = self.len.saturating_sub(self.at);
        Ok(usize::try_from(rest).map_or(wanted, |rest| rest.min(wanted)))
    }
}

impl Read for Part<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.limit(to.len())?;
        let done = self.whole.read(to.get_mut(..len).unwrap_or_default())?;
        self.at += done as u64;
        Ok(done)
    }
}

impl Write for Part<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let len = self.limit(from.len())?;
        let done = self.whole.write(from.get(..len).unwrap_or(from))?;
        self.at += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = place(to, self.at, self.len)?;
        Ok(self.at)
    }
}

fn place(to: SeekFrom, at: u64, len: u64) -> io::Result<u64> {
    let place = match to {
        SeekFrom::Start(place) => Some(place),
        SeekFrom::Current(by) => at.checked_add_signed(by),
        SeekFrom::End(by) => len.checked_add_signed(by),
    };
    place.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_the_rest_stays_a_hole() {
        let mut disk = Sparse::new(10 * PIECE as u64 + 100);
        disk.put(PIECE as u64 - 2, &[1, 2, 3, 4]).unwrap();
        disk.zero(3 * PIECE as u64, PIECE as u64).unwrap();
        disk.put(10 * PIECE as u64, &[9; 100]).unwrap();
        assert_eq!(
            disk.pieces().map(|(at, _)| at / PIECE as u64).collect::<Vec<_>>(),
            [0, 1, 3, 10]
        );
        assert_eq!(disk.written(), 3 * PIECE as u64 + 100);
        let piece = PIECE as u64;
        assert!(disk.is_hole(2 * piece, piece) && disk.is_hole(5 * piece, 4096));
        assert!(!disk.is_hole(2 * piece, piece + 1) && !disk.is_hole(piece + 9, 1));
        let mut all = Vec::new();
        disk.rewind().unwrap();
        disk.read_to_end(&mut all).unwrap();
        assert_eq!(all.len() as u64, disk.len());
        assert_eq!(all[PIECE - 3..PIECE + 3], [0, 1, 2, 3, 4, 0]);
        assert!(all[10 * PIECE..].iter().all(|&byte| byte == 9));
    }

    #[test]
    fn nothing_is_written_behind_the_end() {
        let mut disk = Sparse::new(100);
        assert!(disk.put(90, &[1; 11]).is_err());
        let mut part = disk.part(50, 10);
        assert!(part.write_all(&[2; 11]).is_err());
        part.rewind().unwrap();
        let mut back = Vec::new();
        part.read_to_end(&mut back).unwrap();
        assert_eq!(back, [2; 10]);
        let mut all = Vec::new();
        disk.rewind().unwrap();
        disk.read_to_end(&mut all).unwrap();
        assert_eq!(all[60], 0);
    }

    #[test]
    fn zeros_over_bytes_are_zeros() {
        let mut disk = Sparse::new(PIECE as u64);
        disk.put(0, &[7; 10]).unwrap();
        disk.zero(0, 10).unwrap();
        disk.rewind().unwrap();
        let mut back = [1; 10];
        disk.read_exact(&mut back).unwrap();
        assert_eq!(back, [0; 10]);
    }
}
