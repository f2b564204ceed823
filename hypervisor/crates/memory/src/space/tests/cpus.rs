//! Several CPUs, with translation caches as hardware has them, use one guest's memory while what
//! stands where in it changes.

use super::*;
use crate::slots::SlotError;
use crate::stage2::{Detached, Format};
use std::collections::BTreeMap;
use std::thread;

const RAM: u64 = 8 * MIB;
/// The page that changes all the time: in the middle of a block.
const CHANGING: u64 = 4 * MIB + 0x3000;
/// The ROM's place in the backing.
const ROM: u64 = RAM;
/// Contents of the ROM.
const ROM_CONTENTS: u64 = u64::MAX;
const CPUS: usize = 3;
const TABLES: u64 = 200;
const MACHINE: u64 = 8 * BLOCK_FRAMES;

/// A CPU's caches of one tree: translations, and tables of small pages, which it walks from there
/// on without looking at those above.
#[derive(Default)]
struct Cache {
    pages: BTreeMap<u64, (HostPhysAddr, bool)>,
    tables: BTreeMap<u64, HostPhysAddr>,
}

/// Set when a thread fails, so that no other one waits for it.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Fails where another thread has failed.
fn go_on() {
    assert!(!FAILED.load(Ordering::Relaxed), "another CPU has failed");
    thread::yield_now();
}

impl Drop for Cpu<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            FAILED.store(true, Ordering::Relaxed);
        }
    }
}

/// A CPU that has the space loaded.
struct Cpu<'g> {
    guest: &'g Guest,
    tables: Tables,
    number: usize,
    seen: u64,
    caches: [Cache; 2],
    random: u64,
}

impl<'g> Cpu<'g> {
    fn new(guest: &'g Guest, number: usize) -> Self {
        let random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
        let caches = [Cache::default(), Cache::default()];
        let mut cpu = Self { guest, tables: guest.tables(), number, seen: 0, caches, random };
        cpu.enter();
        cpu
    }

    fn enter(&mut self) {
        let debts = &self.guest.shared.debts;
        self.seen = debts.enter(self.number);
        self.caches = [Cache::default(), Cache::default()];
        debts.pay(self.number, self.seen);
    }

    fn leave(&mut self) {
        self.caches = [Cache::default(), Cache::default()];
        self.guest.shared.debts.leave(self.number);
        settle(self.guest);
    }

    /// The top of a turn.
    fn pay(&mut self) {
        let debts = &self.guest.shared.debts;
        let generation = debts.generation();
        if generation != self.seen {
            self.caches = [Cache::default(), Cache::default()];
            debts.pay(self.number, generation);
            self.seen = generation;
            settle(self.guest);
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// The frame at `at`, and whether it may be written, as this CPU finds it.
    fn translate(&mut self, at: u64, tree: Tree) -> Option<(HostPhysAddr, bool)> {
        let page = at & !0xfff;
        let cache = &mut self.caches[tree as usize];
        if let Some(found) = cache.pages.get(&page) {
            return Some(*found);
        }
        let found = match cache.tables.get(&(page / (2 * MIB))) {
            Some(table) => entry(&self.tables, *table, page, tree),
            None => {
                let (attached, block) = attached(self.guest, &self.tables, page, tree);
                match attached {
                    Detached::Table(table) => {
                        cache.tables.insert(page / (2 * MIB), table);
                        entry(&self.tables, table, page, tree)
                    }
                    _ => block,
                }
            }
        }?;
        cache.pages.insert(page, found);
        Some(found)
    }

    /// One access: `write` is what to write, else the contents are returned. It goes on until it
    /// is done, or refused.
    fn access(&mut self, at: u64, tree: Tree, write: Option<u64>) -> Result<u64, MemoryError> {
        let kind = if write.is_some() { Access::Write } else { Access::Read };
        for _ in 0..10_000 {
            if let Some((hpa, writable)) = self.translate(at, tree)
                && (write.is_none() || writable)
            {
                let frame = self.guest.frame(hpa);
                if self.random(8) == 0 {
                    thread::yield_now();
                }
                return Ok(match write {
                    Some(value) => frame.swap(value, Ordering::SeqCst),
                    None => frame.load(Ordering::SeqCst),
                });
            }
            // A fault forgets what is cached of the page.
            let cache = &mut self.caches[tree as usize];
            cache.pages.remove(&(at & !0xfff));
            cache.tables.remove(&(at / (2 * MIB)));
            populate(self.guest, gpa(at), tree, kind)?;
            if tree == Tree::Nested {
                self.pay();
            }
        }
        panic!("no end of faults at {at:#x}");
    }

    fn tree(&mut self) -> Tree {
        if self.random(2) == 0 { Tree::Nested } else { Tree::Window }
    }
}

/// The entry for `page` in a table of small ones.
fn entry(
    tables: &Tables,
    table: HostPhysAddr,
    page: u64,
    tree: Tree,
) -> Option<(HostPhysAddr, bool)> {
    let entry = tables.read(table, usize::try_from(page / 4096 % 512).unwrap());
    assert_ne!(entry, FREED, "a freed table was walked");
    let size = PageSize::Size4K;
    let (present, hpa, attributes) = match tree {
        Tree::Nested => {
            (Npt::is_present(entry), Npt::page(entry, size), Npt::attributes(entry, size))
        }
        Tree::Window => {
            let attributes = HostTable::attributes(entry, size);
            (HostTable::is_present(entry), HostTable::page(entry, size), attributes)
        }
    };
    present.then(|| (hpa, attributes.permissions.contains(Permissions::WRITE)))
}

/// The part of a tree that stands for the block of `page`; and the page's part of it, if that is
/// one page.
fn attached(
    guest: &Guest,
    tables: &Tables,
    page: u64,
    tree: Tree,
) -> (Detached, Option<(HostPhysAddr, bool)>) {
    let inside = guest.inside.lock().unwrap();
    let (window, nested) = (inside.parts.window.root(), inside.parts.nested.root());
    drop(inside);
    let (attached, mapping) = match tree {
        Tree::Nested => {
            let mapper = Mapper::<Npt>::from_root(nested, PageSize::Size2M);
            (mapper.attached(tables, page), mapper.query(tables, page))
        }
        Tree::Window => {
            let mapper = Mapper::<HostTable>::from_root(window, PageSize::Size2M);
            let at = WINDOW.at(gpa(page), 1).unwrap();
            (mapper.attached(tables, at), mapper.query(tables, at))
        }
    };
    let mapping = mapping.filter(|mapping| mapping.size == PageSize::Size2M);
    let part = mapping.map(|m| (m.hpa, m.attributes.permissions.contains(Permissions::WRITE)));
    (attached, part)
}

/// Lets the changing page be what `content` says, and waits until all CPUs have it so.
fn turn_into(cpu: &mut Cpu<'_>, content: Option<Content>) {
    let over = CHANGING..CHANGING + 4096;
    let generation = loop {
        let changed = change(cpu.guest, |slots| {
            slots.truncate(1);
            slots.extend(content.map(|content| Slot { range: range(over.clone()), content }));
        });
        match changed {
            Ok(generation) => break generation,
            Err(SlotError::TooMuch) => {
                cpu.pay();
                go_on();
            }
            Err(error) => panic!("{error}"),
        }
    };
    while !cpu.guest.shared.debts.is_settled(generation) {
        cpu.pay();
        go_on();
    }
}

/// RAM, ROM, devices and RAM again, under two CPUs that go on: the RAM's contents come back, the ROM
/// shows its own, and nobody's write is lost or seen elsewhere. Then the guest ends under them.
#[test]
fn a_page_is_ram_rom_device_and_ram_again_under_all_cpus() {
    let guest = Guest::with_cpus(RAM, 4 * BLOCK_FRAMES + 1, MACHINE, TABLES, CPUS);
    let over = AtomicBool::new(false);
    // The ROM is written where it is RAM.
    let mut first = Cpu::new(&guest, 0);
    turn_into(&mut first, memory(ROM, Rights::Ram));
    assert_eq!(first.access(CHANGING, Tree::Window, Some(ROM_CONTENTS)), Ok(0));
    turn_into(&mut first, None);
    let rounds = if cfg!(debug_assertions) { 2_000_u64 } else { 20_000 };

    let other = |number: usize| {
        let mut cpu = Cpu::new(&guest, number);
        // Pages of its own, one of them in the block of the changing one.
        let own = [CHANGING + 4096 * number as u64, 4096 * number as u64];
        let mut last = [0; 2];
        let mut value = (number as u64) << 48;
        while !over.load(Ordering::SeqCst) {
            go_on();
            cpu.pay();
            match cpu.random(8) {
                0 => {
                    cpu.leave();
                    cpu.enter();
                }
                1 | 2 => {
                    let tree = cpu.tree();
                    match cpu.access(CHANGING, tree, None) {
                        // The first CPU's numbers, or the ROM's.
                        Ok(ROM_CONTENTS | 0..=20_000) => {}
                        Ok(wrong) => panic!("{wrong:#x} in the changing page"),
                        Err(MemoryError::NotRam(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                _ => {
                    let which = usize::try_from(cpu.random(2)).unwrap();
                    let tree = cpu.tree();
                    value += 1;
                    let before = match cpu.access(own[which], tree, Some(value)) {
                        Err(MemoryError::NotRam(_)) if over.load(Ordering::SeqCst) => break,
                        before => before.unwrap(),
                    };
                    assert_eq!(before, last[which], "a write was lost, or another one's is here");
                    last[which] = value;
                }
            }
        }
        // The guest ends: each access works, or finds nothing.
        for at in own.into_iter().chain([6 * MIB]).cycle().take(3000) {
            let tree = cpu.tree();
            cpu.pay();
            match cpu.access(at, tree, None) {
                Ok(found) => assert!([0, last[0], last[1]].contains(&found), "{found:#x}"),
                Err(error) => assert_eq!(error, MemoryError::NotRam(gpa(at))),
            }
        }
        cpu.leave();
    };
    thread::scope(|scope| {
        let mut first = first;
        let others = [1, 2].map(|number| scope.spawn(move || other(number)));
        for round in 1..=rounds {
            let cpu = &mut first;
            let tree = cpu.tree();
            cpu.access(CHANGING, tree, Some(round)).unwrap();
            turn_into(cpu, memory(ROM, Rights::Rom));
            assert_eq!(cpu.access(CHANGING, tree, None), Ok(ROM_CONTENTS));
            let refused = Err(MemoryError::ReadOnly(gpa(CHANGING)));
            assert_eq!(cpu.access(CHANGING, tree, Some(1)), refused);
            turn_into(cpu, Some(Content::Devices));
            let nothing = Err(MemoryError::NotRam(gpa(CHANGING)));
            assert_eq!(cpu.access(CHANGING, Tree::Window, None), nothing);
            turn_into(cpu, None);
            let tree = cpu.tree();
            assert_eq!(cpu.access(CHANGING, tree, None), Ok(round), "the RAM was kept");
        }
        over.store(true, Ordering::SeqCst);
        first.leave();
        let mut place = 0;
        while let Some(next) = close_and_release(&guest, place) {
            place = next;
            go_on();
        }
        for other in others {
            other.join().unwrap();
        }
    });
    settle(&guest);
    assert_eq!(guest.inside.lock().unwrap().holdings().populated(), 0);
    guest.end(TABLES);
}
