//! Copies that back what they touch: what to do where one stops at a page fault.
//!
//! The vCPUs of a guest copy at the same time. One that stopped at a page which was not there may
//! find it there a moment later, by another one: it tries again. Memory counts as broken only where
//! a copy stops twice at one place that was there, and nothing was taken away in between.

use crate::MemoryError;
use x86defs::GuestPhysAddr;

/// How often a copy is tried again at one place.
pub(crate) const TRIES: u8 = 16;

/// Kind of an access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A read, or a fetch of instructions.
    Read,
    /// A write.
    Write,
}

/// The outcome for a page that was to be backed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Populated {
    /// The page is there now.
    Now,
    /// The page was there before.
    Before,
    /// The frames that are left are being zeroed for other vCPUs, for this page perhaps: it is
    /// to be tried again.
    Soon,
}

/// RAM that is backed when it is first touched.
pub trait Populate {
    /// Rises when something is taken away, before [`populate`](Self::populate) sees it gone.
    fn generation(&self) -> u64;

    /// Backs the page at `gpa` for an access of this kind.
    ///
    /// # Errors
    /// [`MemoryError`] where there is no memory or it may not be written, or no frame is left.
    fn populate(&self, gpa: GuestPhysAddr, access: Access) -> Result<Populated, MemoryError>;
}

/// The stops of one copy.
#[derive(Debug, Default)]
struct Stops {
    /// The address at which an attempt has stopped last.
    last: Option<GuestPhysAddr>,
    /// How often it has stopped there.
    count: u8,
    /// The generation in which it stopped there though the page was there.
    in_vain: Option<u64>,
}

impl Stops {
    /// An attempt stopped at `gpa`: backs it for the next one.
    fn at(
        &mut self,
        memory: &impl Populate,
        gpa: GuestPhysAddr,
        access: Access,
    ) -> Result<(), MemoryError> {
        if self.last.replace(gpa) != Some(gpa) {
            *self = Self { last: Some(gpa), ..Self::default() };
        }
        let generation = memory.generation();
        match memory.populate(gpa, access)? {
            Populated::Soon => return Ok(()),
            Populated::Now => self.in_vain = None,
            Populated::Before if self.in_vain.replace(generation) == Some(generation) => {
                return Err(MemoryError::Broken(gpa));
            }
            Populated::Before => {}
        }
        self.count = self.count.saturating_add(1);
        if self.count > TRIES { Err(MemoryError::Moved(gpa)) } else { Ok(()) }
    }
}

/// Copies `len` bytes at `gpa`, in pieces: `copy` gets where a piece stands, how many bytes
/// are before it, and its length, and returns how many bytes at its end a page fault kept it from.
///
/// # Errors
/// [`MemoryError`] names the first address that failed.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "`done` is less than `len`, and `left` is at most `part`"
)]
pub fn transfer(
    memory: &impl Populate,
    gpa: GuestPhysAddr,
    len: usize,
    access: Access,
    mut copy: impl FnMut(GuestPhysAddr, usize, usize) -> usize,
) -> Result<(), MemoryError> {
    let mut stops = Stops::default();
    let mut done = 0;
    while done < len {
        let at = gpa.checked_add(done as u64).ok_or(MemoryError::NotRam(gpa))?;
        let part = len - done;
        let left = copy(at, done, part).min(part);
        done += part - left;
        if left != 0 {
            stops.at(memory, at.wrapping_add((part - left) as u64), access)?;
        }
    }
    Ok(())
}

/// Runs `exchange`, one access at `gpa` that may write, until no page fault (`None`) keeps it from
/// it.
///
/// # Errors
/// Those of [`transfer`].
pub fn exchange<T>(
    memory: &impl Populate,
    gpa: GuestPhysAddr,
    mut exchange: impl FnMut() -> Option<T>,
) -> Result<T, MemoryError> {
    let mut stops = Stops::default();
    loop {
        if let Some(result) = exchange() {
            return Ok(result);
        }
        stops.at(memory, gpa, Access::Write)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Barrier, Mutex};

    extern crate std;

    const PAGES: usize = 64;
    const PAGE: usize = 4096;

    /// RAM in which pages become present once.
    struct Ram {
        present: [AtomicBool; PAGES],
        /// Held to back a page: one at a time.
        backing: Mutex<()>,
    }

    impl Ram {
        fn new() -> Self {
            Self { present: [const { AtomicBool::new(false) }; PAGES], backing: Mutex::new(()) }
        }

        /// Copies until a page fault stops it.
        fn copy(&self, at: GuestPhysAddr, len: usize) -> usize {
            let start = number(at);
            let hole = (start / PAGE..PAGES)
                .find(|page| !self.present[*page].load(Ordering::Acquire))
                .map_or(start.max(PAGES * PAGE), |page| (page * PAGE).max(start));
            len - len.min(hole - start)
        }
    }

    impl Populate for Ram {
        fn generation(&self) -> u64 {
            1
        }

        fn populate(&self, gpa: GuestPhysAddr, _: Access) -> Result<Populated, MemoryError> {
            let _guard = self.backing.lock().unwrap();
            let page = self.present.get(number(gpa) / PAGE).ok_or(MemoryError::NotRam(gpa))?;
            let before = page.swap(true, Ordering::Release);
            Ok(if before { Populated::Before } else { Populated::Now })
        }
    }

    fn number(at: GuestPhysAddr) -> usize {
        usize::try_from(at.as_u64()).unwrap()
    }

    fn gpa(at: usize) -> GuestPhysAddr {
        GuestPhysAddr::new(at as u64)
    }

    #[test]
    fn backs_what_it_touches_and_no_more() {
        let ram = Ram::new();
        let mut pieces = std::vec::Vec::new();
        transfer(&ram, gpa(PAGE + 100), 2 * PAGE, Access::Read, |at, done, part| {
            pieces.push((number(at), done));
            ram.copy(at, part)
        })
        .unwrap();
        let start = PAGE + 100;
        assert_eq!(pieces.first(), Some(&(start, 0)));
        assert!(pieces.iter().all(|(at, done)| at - done == start));
        let present = ram.present.iter().filter(|page| page.load(Ordering::Relaxed)).count();
        assert_eq!(present, 3);
        let beyond = transfer(&ram, gpa(PAGES * PAGE - 8), 16, Access::Read, |at, _, part| {
            ram.copy(at, part)
        });
        assert_eq!(beyond, Err(MemoryError::NotRam(gpa(PAGES * PAGE))));
    }

    /// Another vCPU backs the page between the fault and the look at it.
    #[test]
    fn a_page_that_another_one_backed_is_not_broken() {
        let ram = Ram::new();
        let tries = Cell::new(0);
        let late = |at| {
            tries.set(tries.get() + 1);
            if tries.get() == 1 {
                ram.populate(at, Access::Read).unwrap();
                return false;
            }
            true
        };
        let copied =
            transfer(&ram, gpa(8), 8, Access::Read, |at, _, part| if late(at) { 0 } else { part });
        assert_eq!((copied, tries.get()), (Ok(()), 2));
        let ram = Ram::new();
        tries.set(0);
        let exchanged = exchange(&ram, gpa(8), || {
            tries.set(tries.get() + 1);
            if tries.get() == 1 {
                ram.populate(gpa(8), Access::Write).unwrap();
                return None;
            }
            Some(7)
        });
        assert_eq!((exchanged, tries.get()), (Ok(7), 2));
    }

    /// A page for which another vCPU is zeroing the last frame.
    struct Awaited(Cell<u32>);

    impl Populate for Awaited {
        fn generation(&self) -> u64 {
            1
        }

        fn populate(&self, _gpa: GuestPhysAddr, _: Access) -> Result<Populated, MemoryError> {
            let left = self.0.get().saturating_sub(1);
            self.0.set(left);
            Ok(if left == 0 { Populated::Before } else { Populated::Soon })
        }
    }

    #[test]
    fn a_page_that_another_one_is_about_to_back_is_not_broken() {
        let ram = Awaited(Cell::new(9));
        let copy = |_, _, part| if ram.0.get() == 0 { 0 } else { part };
        assert_eq!(transfer(&ram, gpa(8), 8, Access::Read, copy), Ok(()));
        ram.0.set(9);
        assert_eq!(exchange(&ram, gpa(8), || (ram.0.get() == 0).then_some(7)), Ok(7));
    }

    #[test]
    fn a_page_that_stays_out_of_reach_is_broken() {
        let ram = Ram::new();
        let mut tries = 0;
        let stuck = transfer(&ram, gpa(5 * PAGE - 4), 8, Access::Read, |at, _, part| {
            tries += 1;
            let broken = 5 * PAGE;
            ram.copy(at, part).max((number(at) + part).saturating_sub(broken))
        });
        assert_eq!(stuck, Err(MemoryError::Broken(gpa(5 * PAGE))));
        assert!(tries < 6, "{tries} tries");
        assert_eq!(
            exchange(&ram, gpa(5 * PAGE), || None::<u64>),
            Err(MemoryError::Broken(gpa(5 * PAGE)))
        );
    }

    /// A page that is taken away again and again: each time it is there, or was there before.
    struct Fleeting {
        generation: Cell<u64>,
        populated: Populated,
    }

    impl Populate for Fleeting {
        fn generation(&self) -> u64 {
            self.generation.get()
        }

        fn populate(&self, _gpa: GuestPhysAddr, _: Access) -> Result<Populated, MemoryError> {
            self.generation.set(self.generation.get() + 1);
            Ok(self.populated)
        }
    }

    #[test]
    fn a_page_that_is_taken_away_all_the_time_has_moved() {
        for populated in [Populated::Now, Populated::Before] {
            let memory = Fleeting { generation: Cell::new(1), populated };
            let moved = MemoryError::Moved(gpa(8));
            let mut tries = 0;
            let copied = transfer(&memory, gpa(8), 8, Access::Write, |_, _, part| {
                tries += 1;
                part
            });
            assert_eq!((copied, tries), (Err(moved), u32::from(TRIES) + 1));
            assert_eq!(exchange(&memory, gpa(8), || None::<u64>), Err(moved));
        }
    }

    /// Two vCPUs use fresh pages at the same time.
    #[test]
    fn two_at_once_find_nothing_broken() {
        for _ in 0..300 {
            let ram = Ram::new();
            let start = Barrier::new(2);
            let copy = || {
                start.wait();
                for page in 0..PAGES {
                    transfer(&ram, gpa(page * PAGE + 16), 8, Access::Read, |at, _, part| {
                        let left = ram.copy(at, part);
                        std::thread::yield_now();
                        left
                    })?;
                }
                Ok::<(), MemoryError>(())
            };
            std::thread::scope(|scope| {
                let other = scope.spawn(copy);
                assert_eq!(copy(), Ok(()));
                assert_eq!(other.join().unwrap(), Ok(()));
            });
        }
    }
}
