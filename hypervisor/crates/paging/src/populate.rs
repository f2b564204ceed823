//! Backing a page of a guest's RAM: in the hypervisor's window on it and in the nested
//! tables, in an order in which nobody sees the frame too early.
//!
//! Other vCPUs of the guest run meanwhile, and the hypervisor copies for them through the
//! window without asking anybody. So a frame is zero before either tree shows it, both trees
//! are asked for an empty entry before a frame is taken, and nothing that was shown is taken back.

use crate::stage2::{Attributes, Format, HostTable, MapErrorKind, Mapper, PageSize, TableMemory};
use x86defs::HostPhysAddr;

/// A page of RAM that is to be backed.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The address in the hypervisor's window.
    pub window: u64,
    /// The guest-physical address.
    pub nested: u64,
    /// The size.
    pub size: PageSize,
    /// Rights and memory type in the window.
    pub window_attributes: Attributes,
    /// Rights and memory type in the nested tables.
    pub nested_attributes: Attributes,
}

/// The outcome for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// It is backed now.
    Now,
    /// It, or a part of it, was backed before: nothing has changed.
    Before,
    /// There is no frame for it, or none for a table.
    NoFrame,
}

/// Backs `page` with what `frame` gives: a block of the page's size, aligned to it, all
/// zero. `frame` is called only if nothing else can fail any more.
pub fn back<M: TableMemory, F: Format>(
    mem: &mut M,
    window: &mut Mapper<HostTable>,
    nested: &mut Mapper<F>,
    page: &Page,
    frame: impl FnOnce() -> Option<HostPhysAddr>,
) -> Backing {
    let seen = window.make_vacancy(mem, page.window, page.size);
    let lived_in = nested.make_vacancy(mem, page.nested, page.size);
    match (seen, lived_in) {
        (Ok(seen), Ok(lived_in)) => {
            let Some(frame) = frame() else { return Backing::NoFrame };
            window.fill(mem, seen, frame, page.window_attributes);
            nested.fill(mem, lived_in, frame, page.nested_attributes);
            Backing::Now
        }
        (Err(MapErrorKind::AlreadyMapped), _) | (_, Err(MapErrorKind::AlreadyMapped)) => {
            Backing::Before
        }
        _ => Backing::NoFrame,
    }
}

/// As [`back`], with a frame that is there already (aligned, all zero) and only where all
/// tables exist. `false`: nothing has changed.
#[inline(always)]
pub fn back_ready<M: TableMemory, F: Format>(
    mem: &mut M,
    window: &mut Mapper<HostTable>,
    nested: &mut Mapper<F>,
    page: &Page,
    frame: HostPhysAddr,
) -> bool {
    let Some(seen) = window.vacancy(mem, page.window, page.size) else { return false };
    let Some(lived_in) = nested.vacancy(mem, page.nested, page.size) else { return false };
    window.fill(mem, seen, frame, page.window_attributes);
    nested.fill(mem, lived_in, frame, page.nested_attributes);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage2::{ENTRIES, Ept, Npt, Permissions};
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::vec::Vec;

    const WINDOW: u64 = 0xffff_8000_0000_0000;
    const MIB: u64 = 1 << 20;
    /// Frames begin here; tables lie below.
    const FRAMES: u64 = 1 << 30;

    /// Tables that a second thread may walk, as a CPU does. Some can't be had.
    #[derive(Clone)]
    struct Shared(Arc<Vec<AtomicU64>>, Arc<AtomicU64>, u64);

    impl Shared {
        fn new(tables: u64) -> Self {
            let words = (0..tables * ENTRIES as u64).map(|_| AtomicU64::new(0)).collect();
            Self(Arc::new(words), Arc::new(AtomicU64::new(0)), tables)
        }

        fn word(&self, table: HostPhysAddr, index: usize) -> &AtomicU64 {
            &self.0[(table.as_u64() / 8) as usize + index]
        }
    }

    impl TableMemory for Shared {
        type Error = ();

        fn alloc_table(&mut self) -> Result<HostPhysAddr, ()> {
            let number = self.1.load(Ordering::Relaxed);
            if number == self.2 {
                return Err(());
            }
            self.1.store(number + 1, Ordering::Relaxed);
            Ok(HostPhysAddr::new(number * 4096))
        }

        fn free_table(&mut self, table: HostPhysAddr) {
            for index in 0..ENTRIES {
                self.word(table, index).store(0, Ordering::Relaxed);
            }
        }

        fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
            self.word(table, index).load(Ordering::Acquire)
        }

        fn write(&mut self, table: HostPhysAddr, index: usize, entry: u64) {
            self.word(table, index).store(entry, Ordering::Release);
        }
    }

    fn page(at: u64, size: PageSize) -> Page {
        Page {
            window: WINDOW + at,
            nested: at,
            size,
            window_attributes: Attributes::ram(Permissions::RW | Permissions::USER),
            nested_attributes: Attributes::ram(Permissions::RWX),
        }
    }

    fn trees(mem: &mut Shared) -> (Mapper<HostTable>, Mapper<Npt>) {
        let window = Mapper::new(mem, PageSize::Size2M).unwrap();
        (window, Mapper::new(mem, PageSize::Size2M).unwrap())
    }

    #[test]
    fn a_frame_is_taken_last_and_shown_in_both_trees() {
        let mut mem = Shared::new(40);
        let (mut window, mut nested) = trees(&mut mem);
        let wanted = page(6 * MIB, PageSize::Size2M);
        let spy = mem.clone();
        let roots = (window.root(), nested.root());
        let frame = || {
            // Neither a guest nor the hypervisor sees a byte of the page by now.
            let window = Mapper::<HostTable>::from_root(roots.0, PageSize::Size2M);
            let nested = Mapper::<Npt>::from_root(roots.1, PageSize::Size2M);
            for at in (6 * MIB..8 * MIB).step_by(4096) {
                assert_eq!(window.query(&spy, WINDOW + at), None);
                assert_eq!(nested.query(&spy, at), None);
            }
            Some(HostPhysAddr::new(FRAMES))
        };
        assert_eq!(back(&mut mem, &mut window, &mut nested, &wanted, frame), Backing::Now);
        let seen = window.query(&mem, WINDOW + 7 * MIB).unwrap();
        let lived_in = nested.query(&mem, 7 * MIB).unwrap();
        assert_eq!((seen.hpa, lived_in.hpa), (lived_in.hpa, HostPhysAddr::new(FRAMES + MIB)));
        assert_eq!(seen.attributes, wanted.window_attributes);
    }

    #[test]
    fn a_large_page_never_covers_small_ones() {
        let mut mem = Shared::new(40);
        let (mut window, mut nested) = trees(&mut mem);
        let small = page(6 * MIB + 300 * 4096, PageSize::Size4K);
        let one = || Some(HostPhysAddr::new(FRAMES));
        assert_eq!(back(&mut mem, &mut window, &mut nested, &small, one), Backing::Now);
        let large = page(6 * MIB, PageSize::Size2M);
        let none = || panic!("no frame may be taken");
        assert_eq!(back(&mut mem, &mut window, &mut nested, &large, none), Backing::Before);
        let block = HostPhysAddr::new(FRAMES + 2 * MIB);
        assert!(!back_ready(&mut mem, &mut window, &mut nested, &large, block));
        for at in (6 * MIB..8 * MIB).step_by(4096) {
            let seen = window.query(&mem, WINDOW + at);
            assert_eq!(seen.is_some(), at == small.nested, "{at:#x}");
        }
    }

    #[test]
    fn without_tables_nothing_is_shown() {
        // Two roots and three tables more in each tree.
        for tables in 2..=8 {
            let mut mem = Shared::new(tables);
            let (mut window, mut nested) = trees(&mut mem);
            let wanted = page(6 * MIB, PageSize::Size4K);
            let frame = || (tables == 8).then_some(HostPhysAddr::new(FRAMES));
            let backing = back(&mut mem, &mut window, &mut nested, &wanted, frame);
            let shown = (window.query(&mem, wanted.window), nested.query(&mem, wanted.nested));
            match tables {
                8 => assert!(backing == Backing::Now && shown.0.is_some() && shown.1.is_some()),
                _ => assert_eq!((backing, shown), (Backing::NoFrame, (None, None))),
            }
        }
    }

    /// A guest's vCPU on another CPU reads through the window, and through the nested tables,
    /// while pages are backed: what it finds is zero.
    #[test]
    fn another_cpu_finds_only_zero() {
        const PAGES: u64 = 512;
        let mut mem = Shared::new(40);
        let mut window = Mapper::<HostTable>::new(&mut mem, PageSize::Size2M).unwrap();
        let mut nested = Mapper::<Ept>::new(&mut mem, PageSize::Size2M).unwrap();
        let (window_root, nested_root) = (window.root(), nested.root());
        // Each frame holds something of an earlier guest.
        let contents: Arc<Vec<AtomicU64>> =
            Arc::new((0..PAGES).map(|_| AtomicU64::new(0x5ec2e7)).collect());
        let over = Arc::new(AtomicBool::new(false));
        let other = {
            let (mem, contents, over) = (mem.clone(), contents.clone(), over.clone());
            std::thread::spawn(move || {
                let window = Mapper::<HostTable>::from_root(window_root, PageSize::Size2M);
                let nested = Mapper::<Ept>::from_root(nested_root, PageSize::Size2M);
                let look = |hpa: HostPhysAddr| {
                    let number = (hpa.as_u64() - FRAMES) / 4096;
                    contents[number as usize].load(Ordering::Acquire)
                };
                let (mut seen, mut wrong) = (0, 0);
                while !over.load(Ordering::Acquire) || seen == 0 {
                    for number in 0..PAGES {
                        let at = number * 4096;
                        let found = [window.query(&mem, WINDOW + at), nested.query(&mem, at)];
                        for mapping in found.into_iter().flatten() {
                            seen += 1;
                            wrong += u64::from(look(mapping.hpa) != 0);
                        }
                    }
                }
                wrong
            })
        };
        for (number, old) in (0..PAGES).zip(contents.iter()) {
            let frame = || {
                std::thread::yield_now();
                old.store(0, Ordering::Release);
                Some(HostPhysAddr::new(FRAMES + number * 4096))
            };
            let wanted = page(number * 4096, PageSize::Size4K);
            assert_eq!(back(&mut mem, &mut window, &mut nested, &wanted, frame), Backing::Now);
        }
        over.store(true, Ordering::Release);
        assert_eq!(other.join().unwrap(), 0, "frames were seen before they were zero");
    }

    proptest! {
        #[test]
        fn both_trees_always_agree(
            steps in prop::collection::vec((0u64..2048, any::<bool>(), any::<bool>()), 1..40),
            tables in 4u64..14,
        ) {
            let mut mem = Shared::new(tables);
            let (mut window, mut nested) = trees(&mut mem);
            let mut next = FRAMES;
            for (number, large, ready) in steps {
                let size = if large { PageSize::Size2M } else { PageSize::Size4K };
                let wanted = page(number * 4096 / size.bytes() * size.bytes(), size);
                next += 2 * MIB;
                let frame = HostPhysAddr::new(next);
                if ready {
                    back_ready(&mut mem, &mut window, &mut nested, &wanted, frame);
                } else {
                    back(&mut mem, &mut window, &mut nested, &wanted, || Some(frame));
                }
            }
            for number in 0..2048 {
                let seen = window.query(&mem, WINDOW + number * 4096).map(|m| (m.hpa, m.size));
                let lived_in = nested.query(&mem, number * 4096).map(|m| (m.hpa, m.size));
                prop_assert_eq!(seen, lived_in);
            }
        }
    }
}
