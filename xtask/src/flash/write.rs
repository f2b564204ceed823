//! Writing a disk's content to a medium, and proving that it is there.

use std::io::{self, Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail};

use crate::image::Sparse;

/// A place to write to: a disk's node, or a file.
pub(super) trait Medium: Read + Write + Seek {
    /// Waits until everything that was written is on the medium itself, and has reads come
    /// from there, not from the memory of this computer.
    fn settle(&mut self) -> Result<()>;
}

/// Writes every piece of `disk`, and tells `progress` how many bytes came in addition.
///
/// The first piece, with the partition tables, comes last: a medium that was pulled out in
/// the middle has no tables rather than some that promise what is not there.
pub(super) fn write(
    disk: &Sparse,
    medium: &mut impl Medium,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let mut put = |start: u64, bytes: &[u8], progress: &mut dyn FnMut(u64)| -> Result<()> {
        let mut write = || -> io::Result<()> {
            medium.seek(SeekFrom::Start(start))?;
            medium.write_all(bytes)
        };
        write().with_context(|| {
            format!("writing at byte {start} failed: nothing boots from this disk now. Try again, or another one")
        })?;
        progress(bytes.len() as u64);
        Ok(())
    };
    let first = disk.pieces().next().filter(|(start, _)| *start == 0);
    if let Some((start, bytes)) = first {
        put(start, &vec![0; bytes.len()], &mut |_| {})?;
    }
    for (start, bytes) in disk.pieces().filter(|(start, _)| *start != 0) {
        put(start, bytes, &mut progress)?;
    }
    if let Some((start, bytes)) = first {
        put(start, bytes, &mut progress)?;
    }
    medium.settle().context("the disk did not take all that was written: try again, or another one")
}

/// Reads every piece of `disk` back and compares.
pub(super) fn verify(
    disk: &Sparse,
    medium: &mut impl Medium,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let mut back = Vec::new();
    for (start, bytes) in disk.pieces() {
        back.resize(bytes.len(), 0);
        let mut read = || -> io::Result<()> {
            medium.seek(SeekFrom::Start(start))?;
            medium.read_exact(&mut back)
        };
        read().with_context(|| {
            format!("reading back at byte {start} failed: the disk is not sound")
        })?;
        if let Some(at) = back.iter().zip(bytes).position(|(is, should)| is != should) {
            bail!(
                "byte {} reads back as {:#04x}, and {:#04x} was written: the disk is not sound, \
                 take another one",
                start + at as u64,
                back.get(at).copied().unwrap_or_default(),
                bytes.get(at).copied().unwrap_or_default(),
            );
        }
        progress(bytes.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A medium with faults.
    #[derive(Default)]
    struct Faulty {
        bytes: Cursor<Vec<u8>>,
        /// Writes fail once so many bytes were written.
        fails_after: Option<u64>,
        written: u64,
        /// This byte changes when the medium settles.
        flips: Option<usize>,
        settles: u32,
    }

    impl Read for Faulty {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.bytes.read(to)
        }
    }

    impl Write for Faulty {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            if self.fails_after.is_some_and(|limit| self.written >= limit) {
                return Err(io::Error::other("pulled out"));
            }
            self.written += from.len() as u64;
            self.bytes.write(from)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Faulty {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.bytes.seek(to)
        }
    }

    impl Medium for Faulty {
        fn settle(&mut self) -> Result<()> {
            self.settles += 1;
            if let Some(at) = self.flips {
                self.bytes.get_mut()[at] ^= 0x10;
            }
            Ok(())
        }
    }

    const LEN: u64 = 1 << 20;

    fn disk() -> Sparse {
        let mut disk = Sparse::new(LEN);
        disk.put(0, &[1; 512]).unwrap();
        disk.put(300_000, &[2; 200_000]).unwrap();
        disk.put(LEN - 512, &[3; 512]).unwrap();
        disk
    }

    fn medium() -> Faulty {
        Faulty {
            bytes: Cursor::new(vec![0xee; usize::try_from(LEN).unwrap()]),
            ..Faulty::default()
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_holes_stay() {
        let (disk, mut medium) = (disk(), medium());
        let mut told = 0;
        write(&disk, &mut medium, |bytes| told += bytes).unwrap();
        assert_eq!((told, medium.settles), (disk.written(), 1));
        verify(&disk, &mut medium, |bytes| told += bytes).unwrap();
        assert_eq!(told, 2 * disk.written());
        let bytes = medium.bytes.into_inner();
        assert_eq!((bytes[0], bytes[511], bytes[512]), (1, 1, 0));
        assert_eq!((bytes[300_000], bytes[499_999]), (2, 2));
        assert_eq!(bytes[200_000], 0xee);
        assert_eq!(bytes.last(), Some(&3));
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_no_partition_table() {
        let disk = disk();
        let mut medium = Faulty { fails_after: Some(100_000), ..medium() };
        let error = format!("{:#}", write(&disk, &mut medium, |_| {}).unwrap_err());
        assert!(error.contains("nothing boots") && error.contains("pulled out"), "{error}");
        assert_eq!(medium.bytes.get_ref()[..512], [0; 512]);
    }

    #[test]
    fn one_flipped_bit_is_noticed() {
        let disk = disk();
        for at in [0, 511, 300_000, 499_999, 524_287, 1_048_575] {
            let mut medium = Faulty { flips: Some(at), ..medium() };
            write(&disk, &mut medium, |_| {}).unwrap();
            let error = verify(&disk, &mut medium, |_| {}).unwrap_err().to_string();
            assert!(error.contains(&format!("byte {at} ")), "{error}");
        }
    }
}
