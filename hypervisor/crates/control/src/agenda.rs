//! [`Agenda`]: guests to be looked after, as something has happened to them.

use core::sync::atomic::{AtomicU64, Ordering};

/// Places that an agenda has.
pub const PLACES: usize = 1024;

/// A mark for each place. Anybody sets one, from any CPU; one reader takes them.
#[derive(Debug)]
pub struct Agenda([AtomicU64; PLACES / 64]);

impl Default for Agenda {
    fn default() -> Self {
        Self::new()
    }
}

impl Agenda {
    /// Without a mark.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PLACES / 64])
    }

    /// Something has happened at `place`, which counts from 0; nothing is noted from [`PLACES`] on.
    pub fn note(&self, place: usize) {
        if let Some(word) = self.0.get(place / 64) {
            word.fetch_or(1 << (place % 64), Ordering::SeqCst);
        }
    }

    /// Takes all marks, and returns their places. A mark that is set meanwhile is among them, or is
    /// found by the next call.
    pub fn take(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            // Most are 0, and to look at them costs no locked access.
            let marks = match word.load(Ordering::Relaxed) {
                0 => 0,
                _ => word.swap(0, Ordering::SeqCst),
            };
            (0..64).filter(move |bit| marks >> bit & 1 != 0).map(move |bit| at * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    extern crate std;

    #[test]
    fn what_is_noted_is_taken_once() {
        let agenda = Agenda::new();
        assert_eq!(agenda.take().count(), 0);
        for place in [0, 63, 64, 1023, 64, PLACES, usize::MAX] {
            agenda.note(place);
        }
        assert_eq!(agenda.take().collect::<Vec<_>>(), [0, 63, 64, 1023]);
        assert_eq!(agenda.take().count(), 0);
    }

    #[test]
    fn nothing_is_lost_while_it_is_taken() {
        const ROUNDS: usize = 2000;
        let (agenda, over) = (Agenda::new(), AtomicBool::new(false));
        // Each writer waits until its mark was seen: a lost one stops the test for good.
        let seen = [const { AtomicU64::new(0) }; 3];
        thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let (agenda, seen) = (&agenda, &seen);
                    scope.spawn(move || {
                        for round in 1..=ROUNDS as u64 {
                            agenda.note(writer * 40);
                            while seen[writer].load(Ordering::SeqCst) < round {
                                thread::yield_now();
                            }
                        }
                    })
                })
                .collect();
            let (agenda, over, seen) = (&agenda, &over, &seen);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    for place in agenda.take() {
                        seen[place / 40].fetch_add(1, Ordering::SeqCst);
                    }
                    thread::yield_now();
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            over.store(true, Ordering::SeqCst);
        });
        assert!(seen.iter().all(|seen| seen.load(Ordering::SeqCst) == ROUNDS as u64));
    }
}
