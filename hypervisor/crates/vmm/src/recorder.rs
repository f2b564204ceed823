//! The last exits of a vCPU, for crash reports.

use core::fmt;
use x86defs::VmExit;

/// How many are kept.
const KEPT: usize = 32;

/// A ring of exits.
#[derive(Clone, Debug)]
pub struct Recorder {
    ring: [(u64, VmExit); KEPT],
    total: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { ring: [(0, VmExit::Halt); KEPT], total: 0 }
    }
}

impl Recorder {
    /// Notes an exit at `rip`.
    #[inline(always)]
    pub fn note(&mut self, rip: u64, exit: VmExit) {
        if let Some(slot) = self.ring.get_mut(self.total % KEPT) {
            *slot = (rip, exit);
        }
        self.total = self.total.wrapping_add(1);
    }

    /// How many exits were noted.
    #[inline(always)]
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Writes the exits down, the oldest first.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let filled = self.total.min(KEPT);
        writeln!(out, "the last {filled} of {} exits", self.total)?;
        let order = self.ring.iter().cycle().skip(self.total % KEPT).take(KEPT);
        for (rip, exit) in order.skip(KEPT - filled) {
            writeln!(out, "  {rip:#018x} {exit:x?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    #[test]
    fn keeps_the_last_in_order() {
        let mut recorder = Recorder::default();
        for rip in 0..40 {
            recorder.note(rip, VmExit::Cpuid);
        }
        let mut text = String::new();
        recorder.dump(&mut text).unwrap();
        let lines: std::vec::Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 33);
        assert_eq!(lines[0], "the last 32 of 40 exits");
        assert!(lines[1].contains("0x0000000000000008"), "{}", lines[1]);
        assert!(lines[32].contains("0x0000000000000027"), "{}", lines[32]);
    }
}
