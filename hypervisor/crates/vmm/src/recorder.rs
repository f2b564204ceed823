//! The flight recorder: the last exits of a vCPU, always on.

use core::fmt;
use x86defs::VmExit;

/// How many exits are kept.
pub const KEPT: usize = 128;

/// An exit.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The guest's RIP.
    pub rip: u64,
    /// The kind of exit, with its details.
    pub exit: VmExit,
    /// When, and for how long; `None` where the hot handler served it, which
    /// does not look at clocks.
    pub time: Option<Time>,
}

/// When an exit was, in ticks of the host's TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// The moment of the exit.
    pub at: u64,
    /// Ticks until it was served.
    pub took: u64,
}

/// A ring of exits.
#[derive(Clone, Debug)]
pub struct Recorder {
    ring: [(u64, VmExit); KEPT],
    /// The number of an exit, and its time: valid if that is the exit in `ring`.
    times: [(usize, Time); KEPT],
    total: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            ring: [(0, VmExit::Halt); KEPT],
            times: [(usize::MAX, Time::default()); KEPT],
            total: 0,
        }
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

    /// Notes an exit at `rip`, when the host's TSC was `tsc`.
    pub fn note_at(&mut self, rip: u64, exit: VmExit, tsc: u64) {
        if let Some(slot) = self.times.get_mut(self.total % KEPT) {
            *slot = (self.total, Time { at: tsc, took: 0 });
        }
        self.note(rip, exit);
    }

    /// The last exit was served when the host's TSC was `tsc`.
    pub fn served(&mut self, tsc: u64) {
        let last = self.total.wrapping_sub(1);
        if let Some((number, time)) = self.times.get_mut(last % KEPT)
            && *number == last
        {
            time.took = tsc.saturating_sub(time.at);
        }
    }

    /// The exits that are kept, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        let numbers = self.total.saturating_sub(KEPT)..self.total;
        numbers.filter_map(|number| {
            let (rip, exit) = *self.ring.get(number % KEPT)?;
            let (stamp, time) = *self.times.get(number % KEPT)?;
            Some(Entry { rip, exit, time: (stamp == number).then_some(time) })
        })
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
        writeln!(out, "the last {} of {} exits", self.total.min(KEPT), self.total)?;
        for Entry { rip, exit, .. } in self.iter() {
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
        for rip in 0..KEPT as u64 + 8 {
            if rip % 2 == 0 {
                recorder.note_at(rip, VmExit::Cpuid, rip * 10);
            } else {
                recorder.note(rip, VmExit::Cpuid);
            }
            recorder.served(rip * 10 + 3);
        }
        let mut text = String::new();
        recorder.dump(&mut text).unwrap();
        let lines: std::vec::Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), KEPT + 1);
        assert_eq!(lines[0], "the last 128 of 136 exits");
        assert!(lines[1].contains("0x0000000000000008"), "{}", lines[1]);
        assert!(lines[KEPT].contains("0x0000000000000087"), "{}", lines[KEPT]);
        for entry in recorder.iter() {
            let time = Time { at: entry.rip * 10, took: 3 };
            assert_eq!(entry.time, (entry.rip % 2 == 0).then_some(time));
        }
    }
}
