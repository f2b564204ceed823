use std::io::Cursor;

use super::*;

/// Something that was done to a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Bytes were written here; whether one of them is not zero.
    Wrote(u64, bool),
    Settled,
}

/// A medium with faults.
#[derive(Default)]
struct Faulty {
    bytes: Cursor<Vec<u8>>,
    /// It has so many bytes only, and begins anew behind them.
    real: Option<u64>,
    /// Bytes that are written behind so many are lost.
    keeps: Option<u64>,
    /// Writes fail once so many were made.
    fails_after: Option<usize>,
    /// This bit of a byte is another one whenever the medium settles.
    flips: Option<usize>,
    done: Vec<Done>,
}

impl Faulty {
    fn place(&mut self) {
        if let Some(real) = self.real {
            self.bytes.set_position(self.bytes.position() % real);
        }
    }

    fn writes(&self) -> usize {
        self.done.iter().filter(|done| matches!(done, Done::Wrote(..))).count()
    }
}

impl Read for Faulty {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.place();
        self.bytes.read(to)
    }
}

impl Write for Faulty {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if self.fails_after.is_some_and(|limit| self.writes() >= limit) {
            return Err(io::Error::other("pulled out"));
        }
        self.done.push(Done::Wrote(self.bytes.position(), from.iter().any(|&byte| byte != 0)));
        if self.keeps.is_some_and(|keeps| self.bytes.position() >= keeps) {
            return Ok(from.len());
        }
        self.place();
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
        self.done.push(Done::Settled);
        if let Some(at) = self.flips {
            self.bytes.get_mut()[at] ^= 0x10;
        }
        Ok(())
    }
}

const LEN: u64 = 136 << 20;
const LAST: u64 = LEN - 512;
const FAR: u64 = 100 << 20;

fn disk() -> Sparse {
    let mut disk = Sparse::new(LEN);
    disk.put(0, &[1; 512]).unwrap();
    disk.put(300_000, &[2; 200_000]).unwrap();
    disk.put(super::FIRST_VOLUME, &[5; 100]).unwrap();
    disk.put(FAR, &[4; 512]).unwrap();
    disk.put(LAST, &[3; 512]).unwrap();
    disk
}

fn medium() -> Faulty {
    Faulty { bytes: Cursor::new(vec![0xee; usize::try_from(LEN).unwrap()]), ..Faulty::default() }
}

fn at(medium: &Faulty, place: u64) -> u8 {
    medium.bytes.get_ref()[usize::try_from(place).unwrap()]
}

#[test]
fn what_is_written_is_read_back_and_holes_stay() {
    let (disk, mut medium) = (disk(), medium());
    let mut told = 0;
    put(&disk, &mut medium, &mut |bytes| {
        told += bytes;
        Ok(())
    })
    .unwrap();
    assert_eq!(told, 2 * disk.written());
    for (place, byte) in [
        (0, 1),
        (511, 1),
        (512, 0),
        (300_000, 2),
        (499_999, 2),
        (FAR, 4),
        (LAST, 3),
        (LEN - 1, 3),
        // Holes, and where a probe was.
        (200_000, 0xee),
        (FAR - 1, 0xee),
        (65 << 20, 0),
        (129 << 20, 0),
        ((129 << 20) + PROBE as u64, 0xee),
    ] {
        assert_eq!(at(&medium, place), byte, "byte {place}");
    }
}

#[test]
fn no_table_is_on_the_medium_before_all_else_was_read_back() {
    let (disk, mut medium) = (disk(), medium());
    put(&disk, &mut medium, &mut |_| Ok(())).unwrap();
    let table = |done: &Done| matches!(done, Done::Wrote(start, true) if *start == 0 || *start >= LEN - super::TABLE_COPY - 0x1_0000);
    let clears = medium.done.iter().position(|done| *done == Done::Settled).unwrap();
    let cleared: Vec<_> = medium.done[..clears].to_vec();
    assert!(cleared.contains(&Done::Wrote(0, false)) && !cleared.iter().any(table), "{cleared:?}");
    assert_eq!(cleared.len(), 2);
    let first_table = medium.done.iter().position(table).unwrap();
    let settled =
        medium.done[..first_table].iter().rposition(|done| *done == Done::Settled).unwrap();
    // Between: what probes left is taken away.
    assert!(
        medium.done[settled + 1..first_table]
            .iter()
            .all(|done| matches!(done, Done::Wrote(_, false)))
    );
    assert_eq!(medium.done.last(), Some(&Done::Settled));
    assert_eq!(medium.done.iter().filter(|done| **done == Done::Settled).count(), 3);
}

#[test]
fn a_write_that_fails_at_any_point_leaves_no_partition_table() {
    let disk = disk();
    let mut whole = medium();
    put(&disk, &mut whole, &mut |_| Ok(())).unwrap();
    for limit in 1..whole.writes() - 1 {
        let mut medium = Faulty { fails_after: Some(limit), ..medium() };
        let error = format!("{:#}", put(&disk, &mut medium, &mut |_| Ok(())).unwrap_err());
        assert!(error.contains("no use") && error.contains("pulled out"), "{error}");
        assert_eq!(medium.bytes.get_ref()[..512], [0; 512], "after {limit}");
    }
}

#[test]
fn one_flipped_bit_is_noticed_and_leaves_no_partition_table() {
    let disk = disk();
    for place in [0, 511, 300_000, 499_999, 524_287, FAR, LAST, LEN - 1, 65 << 20] {
        let mut medium = Faulty { flips: Some(usize::try_from(place).unwrap()), ..medium() };
        let error = format!("{:#}", put(&disk, &mut medium, &mut |_| Ok(())).unwrap_err());
        assert!(error.contains(&format!("byte {place} ")), "{error}");
        // The medium that changes the very byte can't be helped.
        assert_eq!(medium.bytes.get_ref()[1..511], [0; 510], "{place}");
        assert_eq!(medium.bytes.get_ref()[usize::try_from(LAST).unwrap() + 1..][..510], [0; 510]);
    }
}

#[test]
fn a_medium_that_is_smaller_than_it_claims_is_noticed() {
    let disk = disk();
    for medium in [
        Faulty { real: Some(64 << 20), ..medium() },
        Faulty { real: Some(128 << 20), ..medium() },
        Faulty { keeps: Some(80 << 20), ..medium() },
        Faulty { keeps: Some(FAR + 1), ..medium() },
    ] {
        let mut medium = medium;
        let error = format!("{:#}", put(&disk, &mut medium, &mut |_| Ok(())).unwrap_err());
        assert!(error.contains("reads back as"), "{error}");
    }
}

#[test]
fn who_ends_it_finds_no_partition_table() {
    let disk = disk();
    let pieces = disk.pieces().count();
    for limit in 1..2 * pieces {
        let (mut medium, mut steps) = (medium(), 0);
        let stop = &mut |_: u64| -> Result<()> {
            steps += 1;
            if steps > limit { bail!("enough") } else { Ok(()) }
        };
        assert_eq!(put(&disk, &mut medium, stop).unwrap_err().to_string(), "enough");
        assert_eq!(medium.bytes.get_ref()[..512], [0; 512], "after {limit}");
        assert_eq!(at(&medium, LAST), 0);
    }
}
