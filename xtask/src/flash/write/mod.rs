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

/// Bytes at a disk's end where the copy of the partition table (GPT) is.
const TABLE_COPY: u64 = 34 * 512;
/// Bytes of a probe.
const PROBE: usize = 4096;
/// The first probe is so far behind the beginning of the first volume, at least.
const FIRST_PROBE: u64 = 64 << 20;
/// Place of the first volume.
const FIRST_VOLUME: u64 = 1 << 20;

/// Writes every piece of `disk`, reads all back and compares. Tells `progress` how many bytes
/// came in addition, each byte twice; an error of `progress` ends it.
///
/// The partition tables come last, when the rest is known to be there: a medium that was
/// pulled out, or that does not keep what it was given, has no tables rather than some that
/// promise what is not there.
pub(super) fn put(
    disk: &Sparse,
    medium: &mut impl Medium,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let done = steps(disk, medium, progress);
    if done.is_err() {
        // If that fails, too, there is nothing left to try.
        let _ = clear_tables(disk, medium);
    }
    done
}

fn steps(
    disk: &Sparse,
    medium: &mut impl Medium,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let (tables, rest): (Vec<_>, Vec<_>) =
        disk.pieces().partition(|(start, bytes)| is_table(disk, *start, bytes.len()));
    clear_tables(disk, medium)?;
    for start in probes(disk) {
        write(medium, start, &probe(start))?;
    }
    put_pieces(&rest, medium, progress)?;
    for start in probes(disk) {
        compare(medium, start, &probe(start)).with_context(|| {
            format!(
                "the disk does not keep what is written far behind its beginning: it may be smaller than the {} \
                 bytes that it claims to have",
                disk.len()
            )
        })?;
        write(medium, start, &[0; PROBE])?;
    }
    put_pieces(&tables, medium, progress)
}

/// Writes pieces and reads them back.
fn put_pieces(
    pieces: &[(u64, &[u8])],
    medium: &mut impl Medium,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    for (start, bytes) in pieces {
        write(medium, *start, bytes)?;
        progress(bytes.len() as u64)?;
    }
    medium.settle()?;
    for (start, bytes) in pieces {
        compare(medium, *start, bytes)?;
        progress(bytes.len() as u64)?;
    }
    Ok(())
}

/// Whether a piece has a part of a partition table.
fn is_table(disk: &Sparse, start: u64, len: usize) -> bool {
    start == 0 || start + len as u64 > disk.len().saturating_sub(TABLE_COPY)
}

/// Makes sure that the medium has no partition tables, neither old nor new ones.
fn clear_tables(disk: &Sparse, medium: &mut impl Medium) -> Result<()> {
    for (start, bytes) in disk.pieces().filter(|(start, bytes)| is_table(disk, *start, bytes.len()))
    {
        write(medium, start, &vec![0; bytes.len()])?;
    }
    medium.settle()
}

/// Places where `disk` keeps what it has. On a medium that claims to be larger than it is, what
/// is written there is lost, or stands nearer to the beginning: in most of them at the rest of
/// the place divided by a power of two, where these places meet what is in the first volume.
fn probes(disk: &Sparse) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(FIRST_PROBE), |far| far.checked_mul(2))
        .map(|far| far + FIRST_VOLUME)
        .take_while(|place| *place < disk.len())
        .filter(|place| disk.is_hole(*place, PROBE as u64))
}

/// The bytes of the probe at `start`.
fn probe(start: u64) -> Vec<u8> {
    let words = (0..PROBE as u64 / 16).flat_map(|word| [start, !word]);
    words.flat_map(u64::to_le_bytes).collect()
}

fn write(medium: &mut impl Medium, start: u64, bytes: &[u8]) -> Result<()> {
    let mut write = || -> io::Result<()> {
        medium.seek(SeekFrom::Start(start))?;
        medium.write_all(bytes)
    };
    write().with_context(|| {
        format!(
            "writing at byte {start} failed: what is on the disk now is of no use. Try again, or take \
             another one"
        )
    })
}

fn compare(medium: &mut impl Medium, start: u64, bytes: &[u8]) -> Result<()> {
    let mut back = vec![0; bytes.len()];
    let mut read = || -> io::Result<()> {
        medium.seek(SeekFrom::Start(start))?;
        medium.read_exact(&mut back)
    };
    read().with_context(|| {
        format!("reading back at byte {start} failed: the disk is not sound, take another one")
    })?;
    match back.iter().zip(bytes).position(|(is, should)| is != should) {
        None => Ok(()),
        Some(at) => bail!(
            "byte {} reads back as {:#04x}, and {:#04x} was written: the disk is not sound, take another one",
            start + at as u64,
            back.get(at).copied().unwrap_or_default(),
            bytes.get(at).copied().unwrap_or_default(),
        ),
    }
}

#[cfg(test)]
mod tests;
