//! Finds the hypervisor's last words in the stream of its serial port.
//!
//! When a run ends, the hypervisor prints one machine-readable line,
//! `steward: end: status=<0-255> reason=<words>`, and leaves the machine. A guest's
//! unfinished line may stand before it on the same line.

/// What the hypervisor said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The status with which the run ends.
    pub status: u8,
    /// Why it ended, in words.
    pub reason: String,
}

const MARK: &[u8] = b"steward: end: status=";
/// A line that is longer is not the hypervisor's.
const LONGEST: usize = 1024;

/// Fed with the stream piece by piece; remembers the last end line.
#[derive(Debug, Default)]
pub struct EndScanner {
    line: Vec<u8>,
    end: Option<End>,
}

impl EndScanner {
    /// Takes the next piece of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                if let Some(end) = parse(&self.line) {
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

fn parse(line: &[u8]) -> Option<End> {
    let at = line.windows(MARK.len()).rposition(|window| window == MARK)?;
    let rest = String::from_utf8_lossy(line.get(at + MARK.len()..)?).into_owned();
    let (status, reason) = rest.split_once(' ')?;
    let reason = reason.trim_end().strip_prefix("reason=")?;
    Some(End { status: status.parse().ok()?, reason: reason.to_owned() })
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
