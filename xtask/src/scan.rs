//! Finds the hypervisor's last words in the stream of its serial port.
//!
//! When a run ends, the hypervisor prints one machine-readable line,
//! `steward: end: status=<0-255> key=<UUID> reason=<words>`, and leaves the machine. A
//! guest's unfinished line may stand before it on the same line.
//!
//! Guests write to the same stream, and could write such a line. The key, which is new for
//! each run, travels in the bundle, which no guest sees: a line without it counts only until
//! the hypervisor says that a guest starts. (It has no key before it has read the bundle.)

use config::Uuid;

/// The hypervisor's last message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The status with which the run ends.
    pub status: u8,
    /// Why it ended, in words.
    pub reason: String,
}

const MARK: &[u8] = b"steward: end: status=";
/// The hypervisor says that a guest starts: from now on not all is its own.
const GUESTS: &[u8] = b"steward: guest: ";
/// A line that is longer is not the hypervisor's.
const LONGEST: usize = 8192;

/// Fed with the stream piece by piece; remembers the last end line.
#[derive(Debug, Default)]
pub struct EndScanner {
    key: Option<Uuid>,
    guests: bool,
    line: Vec<u8>,
    end: Option<End>,
}

impl EndScanner {
    /// For a run whose bundle has this key; with none, every end line counts.
    pub fn new(key: Option<Uuid>) -> EndScanner {
        EndScanner { key, ..EndScanner::default() }
    }

    /// Takes the next piece of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.guests |= self.line.starts_with(GUESTS);
                if let Some((end, key)) = parse(&self.line)
                    && (self.key.is_none() || key == self.key || key.is_none() && !self.guests)
                {
                    self.end = Some(end);
                }
                self.line.clear();
            } else {
                if self.line.len() >= LONGEST {
                    self.line.drain(..LONGEST / 2);
                }
                self.line.push(byte);
            }
        }
    }

    /// The last end line so far.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }
}

/// The end that a line tells, and the key that it names.
fn parse(line: &[u8]) -> Option<(End, Option<Uuid>)> {
    let at = line.windows(MARK.len()).rposition(|window| window == MARK)?;
    let rest = String::from_utf8_lossy(line.get(at + MARK.len()..)?).into_owned();
    let (status, rest) = rest.split_once(' ')?;
    let (key, rest) = match rest.strip_prefix("key=").and_then(|rest| rest.split_once(' ')) {
        Some((key, rest)) => (Some(Uuid::parse(key)?), rest),
        None => (None, rest),
    };
    let reason = rest.trim_end().strip_prefix("reason=")?;
    Some((End { status: status.parse().ok()?, reason: reason.to_owned() }, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(pieces: &[&str]) -> Option<End> {
        let mut scanner = EndScanner::default();
        for piece in pieces {
            scanner.feed(piece.as_bytes());
        }
        scanner.end().cloned()
    }

    #[test]
    fn an_end_line_is_found_in_pieces_and_behind_a_partial_line() {
        let end = scan(&[
            "boot\r\n[ 1.2] reboot: Power dosteward: e",
            "nd: status=7 reason=guest debian powered off\r",
            "\n",
        ]);
        assert_eq!(end, Some(End { status: 7, reason: "guest debian powered off".to_owned() }));
    }

    #[test]
    fn the_last_one_counts() {
        let end =
            scan(&["steward: end: status=0 reason=forged\nsteward: end: status=3 reason=crash\n"]);
        assert_eq!(end.unwrap().status, 3);
    }

    #[test]
    fn a_guest_can_t_say_how_the_run_ends() {
        const KEY: Uuid = Uuid([7; 16]);
        const OTHER: Uuid = Uuid([8; 16]);
        let ends = |lines: &[&str]| {
            let mut scanner = EndScanner::new(Some(KEY));
            scanner.feed(lines.concat().as_bytes());
            scanner.end().map(|end| end.status)
        };
        let starts = "steward: guest: \"debian\" starts: 512 MiB\r\n";
        let forged = "steward: end: status=0 reason=guest debian powered off\r\n";
        let guess = format!("steward: end: status=0 key={OTHER} reason=x\r\n");
        let real = format!("dots steward: end: status=3 key={KEY} reason=guest debian crashed\r\n");
        assert_eq!(ends(&[starts, forged]), None);
        assert_eq!(ends(&[starts, &guess]), None);
        assert_eq!(ends(&[starts, &real]), Some(3));
        assert_eq!(ends(&[starts, forged, &real, forged, &guess]), Some(3));
        // Before it has read the bundle, the hypervisor knows no key, and no guest runs.
        assert_eq!(ends(&["steward: end: status=2 reason=refused: x\r\n"]), Some(2));
    }

    #[test]
    fn what_is_malformed_or_unfinished_is_no_end() {
        assert_eq!(scan(&["steward: end: status=256 reason=x\n"]), None);
        assert_eq!(scan(&["steward: end: status=1\n"]), None);
        assert_eq!(scan(&["steward: end: status=1 reason=x"]), None);
        assert_eq!(scan(&["steward: end: status= reason=x\n"]), None);
    }

    #[test]
    fn an_endless_line_takes_no_endless_memory() {
        let mut scanner = EndScanner::default();
        scanner.feed(&vec![b'x'; 1 << 20]);
        assert!(scanner.line.len() <= LONGEST);
        scanner.feed(b"steward: end: status=5 reason=y\n");
        assert_eq!(scanner.end().map(|end| end.status), Some(5));
    }
}
