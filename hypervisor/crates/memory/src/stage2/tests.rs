use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;
use x86defs::pte::{EptEntry, Pte};

/// Tables in a map; a budget; every misuse is a panic.
struct Tables {
    tables: BTreeMap<u64, [u64; ENTRIES]>,
    next: u64,
    budget: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exhausted;

impl Tables {
    fn new(budget: usize) -> Self {
        Self { tables: BTreeMap::new(), next: 0x10_0000, budget }
    }
}

impl TableMemory for Tables {
    type Error = Exhausted;

    fn alloc_table(&mut self) -> Result<HostPhysAddr, Exhausted> {
        if self.tables.len() >= self.budget {
            return Err(Exhausted);
        }
        let table = self.next;
        self.next += 0x1000;
        self.tables.insert(table, [0; ENTRIES]);
        Ok(HostPhysAddr::new(table))
    }

    fn free_table(&mut self, table: HostPhysAddr) {
        assert!(self.tables.remove(&table.as_u64()).is_some(), "freed twice");
    }

    fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
        self.tables[&table.as_u64()][index]
    }

    fn write(&mut self, table: HostPhysAddr, index: usize, entry: u64) {
        self.tables.get_mut(&table.as_u64()).unwrap()[index] = entry;
    }
}

const RAM: Attributes = Attributes::ram(Permissions::RWX);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn hpa(value: u64) -> HostPhysAddr {
    HostPhysAddr::new(value)
}

#[test]
fn entries_as_the_manuals_have_them() {
    let rw = Attributes::ram(Permissions::RW);
    let wc = Attributes { permissions: Permissions::RW, memory_type: MemoryType::WriteCombining };
    let page = hpa(0x12_3456_7000);
    assert_eq!(Npt::leaf(page, PageSize::Size4K, RAM), 0x12_3456_7007);
    assert_eq!(Npt::leaf(page, PageSize::Size4K, rw), 0x8000_0012_3456_7007);
    assert_eq!(HostTable::leaf(page, PageSize::Size4K, rw), 0x8000_0012_3456_7003);
    assert_eq!(
        HostTable::leaf(page, PageSize::Size4K, Attributes::device()),
        0x8000_0012_3456_701b
    );
    // WC is entry 5 of our PAT: PAT and PWT.
    assert_eq!(HostTable::leaf(page, PageSize::Size4K, wc), 0x8000_0012_3456_708b);
    assert_eq!(HostTable::leaf(hpa(GIB), PageSize::Size1G, wc), 0x8000_0000_4000_108b);
    assert_eq!(HOST_PAT >> 40 & 7, MemoryType::WriteCombining as u64);
    assert_eq!(HOST_PAT >> 32 & 7, MemoryType::WriteProtected as u64);
    let global = Attributes::ram(Permissions::READ | Permissions::GLOBAL | Permissions::USER);
    let entry = HostTable::leaf(page, PageSize::Size4K, global);
    assert_eq!(entry, (Pte::P | Pte::G | Pte::U | Pte::NX).bits() | 0x12_3456_7000);
    assert_eq!(Ept::leaf(page, PageSize::Size4K, RAM), 0x12_3456_7037);
    assert_eq!(Ept::leaf(hpa(GIB), PageSize::Size1G, Attributes::device()), 0x4000_0083);
    assert_eq!(Ept::table(page), 0x12_3456_7007);
    assert_eq!(Npt::table(page), 0x12_3456_7007);
    assert_eq!(EptEntry::from_bits_retain(0x4000_0083) & EptEntry::PS, EptEntry::PS);
}

#[test]
fn largest_pages_that_fit() {
    let mut mem = Tables::new(100);
    let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size1G).unwrap();
    npt.map(&mut mem, GIB - 2 * MIB - 0x1000, hpa(5 * GIB - 2 * MIB - 0x1000), GIB + 4 * MIB, RAM)
        .unwrap();
    let size = |addr| npt.query(&mem, addr).map(|m| m.size);
    assert_eq!(size(GIB - 2 * MIB - 0x1001), None);
    assert_eq!(size(GIB - 2 * MIB - 0x1000), Some(PageSize::Size4K));
    assert_eq!(size(GIB - 2 * MIB), Some(PageSize::Size2M));
    assert_eq!(size(GIB), Some(PageSize::Size1G));
    assert_eq!(npt.query(&mem, GIB + 0x12345).unwrap().hpa, hpa(5 * GIB + 0x12345));
    assert_eq!(size(2 * GIB), Some(PageSize::Size4K));
    assert_eq!(size(2 * GIB + 2 * MIB - 0x1000), None);
    // Out of step by 2 MiB: no 1 GiB page; by 4 KiB: small ones only.
    npt.map(&mut mem, 4 * GIB, hpa(2 * MIB), GIB, RAM).unwrap();
    assert_eq!(npt.query(&mem, 4 * GIB).unwrap().size, PageSize::Size2M);
    npt.map(&mut mem, 8 * GIB, hpa(0x1000), 2 * MIB, RAM).unwrap();
    assert_eq!(npt.query(&mem, 8 * GIB).unwrap().size, PageSize::Size4K);
    npt.free_all(&mut mem, |_, _| {});
    assert!(mem.tables.is_empty());
}

#[test]
fn wrong_arguments_change_nothing() {
    let mut mem = Tables::new(100);
    let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size1G).unwrap();
    let mut try_map = |addr, to, len, attributes| {
        let error = npt.map(&mut mem, addr, hpa(to), len, attributes).unwrap_err();
        assert_eq!(error.done, 0);
        error.kind
    };
    assert_eq!(try_map(1, 0, 0x1000, RAM), MapErrorKind::Misaligned);
    assert_eq!(try_map(0, 0x800, 0x1000, RAM), MapErrorKind::Misaligned);
    assert_eq!(try_map(0, 0, 0x1001, RAM), MapErrorKind::Misaligned);
    assert_eq!(try_map(1 << 48, 0, 0x1000, RAM), MapErrorKind::OutOfRange);
    assert_eq!(try_map((1 << 48) - 0x1000, 0, 0x2000, RAM), MapErrorKind::OutOfRange);
    assert_eq!(try_map(0, (1 << 52) - 0x1000, 0x2000, RAM), MapErrorKind::OutOfRange);
    assert_eq!(try_map(u64::MAX - 0xfff, 0, 0x2000, RAM), MapErrorKind::OutOfRange);
    let write_only = Attributes::ram(Permissions::WRITE);
    assert_eq!(try_map(0, 0, 0x1000, write_only), MapErrorKind::Unreadable);
    assert_eq!(mem.tables.len(), 1);
}

#[test]
fn host_tables_know_both_halves() {
    let mut mem = Tables::new(100);
    let mut host = Mapper::<HostTable>::new(&mut mem, PageSize::Size2M).unwrap();
    let top = 0xffff_ffff_ffff_f000;
    host.map(&mut mem, top, hpa(0x5000), 0x1000, RAM).unwrap();
    assert_eq!(host.query(&mem, u64::MAX).unwrap().hpa, hpa(0x5fff));
    assert_eq!(
        host.map(&mut mem, 0x7fff_ffff_f000, hpa(0), 0x2000, RAM).unwrap_err().kind,
        MapErrorKind::OutOfRange
    );
    host.unmap(&mut mem, top, 0x1000, |page, size| {
        assert_eq!((page, size), (hpa(0x5000), PageSize::Size4K));
    })
    .unwrap();
    assert_eq!(mem.tables.len(), 1);
}

#[test]
fn never_overwrites() {
    let mut mem = Tables::new(100);
    let mut ept = Mapper::<Ept>::new(&mut mem, PageSize::Size1G).unwrap();
    ept.map(&mut mem, 0x20_3000, hpa(0x3000), 0x1000, RAM).unwrap();
    let error = ept.map(&mut mem, 0x20_0000, hpa(0x70_0000), 4 * MIB, RAM).unwrap_err();
    assert_eq!(error, MapError { kind: MapErrorKind::AlreadyMapped, done: 0x3000 });
    assert_eq!(ept.query(&mem, 0x20_3000).unwrap().hpa, hpa(0x3000));
    ept.map(&mut mem, 2 * GIB, hpa(0), GIB, RAM).unwrap();
    let error = ept.map(&mut mem, 2 * GIB + 5 * MIB, hpa(0), 0x1000, RAM).unwrap_err();
    assert_eq!(error, MapError { kind: MapErrorKind::AlreadyMapped, done: 0 });
}

#[test]
fn runs_out_of_tables_cleanly() {
    for budget in 1..6 {
        let mut mem = Tables::new(budget);
        let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size4K).unwrap();
        let error = npt.map(&mut mem, 0, hpa(0), 16 * MIB, RAM).unwrap_err();
        assert_eq!(error.kind, MapErrorKind::NoTable(Exhausted));
        let leaves = budget.saturating_sub(3) as u64;
        assert_eq!(error.done, leaves * 2 * MIB);
        npt.unmap(&mut mem, 0, error.done, |_, _| {}).unwrap();
        assert_eq!(mem.tables.len(), 1, "no table is lost");
    }
}

/// The entry that maps `addr`.
fn leaf<F: Format>(mapper: &Mapper<F>, mem: &Tables, addr: u64) -> u64 {
    let (mut table, mut level) = (mapper.root(), mapper::ROOT);
    loop {
        let entry = mem.read(table, mapper::index(addr, level));
        if F::is_leaf(entry, level) {
            return entry;
        }
        (table, level) = (F::next(entry), level - 1);
    }
}

#[test]
fn splits_keep_accessed_and_dirty() {
    let mut mem = Tables::new(100);
    let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size1G).unwrap();
    npt.map(&mut mem, 0, hpa(GIB), GIB, RAM).unwrap();
    let pdpt = Npt::next(mem.read(npt.root(), 0));
    let entry = mem.read(pdpt, 0);
    mem.write(pdpt, 0, entry | (Pte::A | Pte::D).bits());
    npt.protect(&mut mem, 0x5000, 0x1000, Attributes::ram(Permissions::READ)).unwrap();
    for (addr, size, permissions) in [
        (0x4000, PageSize::Size4K, Permissions::RWX),
        (0x5000, PageSize::Size4K, Permissions::READ),
        (2 * MIB, PageSize::Size2M, Permissions::RWX),
    ] {
        let mapping = npt.query(&mem, addr).unwrap();
        assert_eq!((mapping.size, mapping.attributes.permissions), (size, permissions));
        assert_eq!(mapping.hpa, hpa(GIB + addr));
        assert_eq!(leaf(&npt, &mem, addr) & Npt::ACCESSED_DIRTY, Npt::ACCESSED_DIRTY);
    }
    // A change that changes nothing splits nothing.
    let tables = mem.tables.len();
    npt.protect(&mut mem, 4 * MIB, 0x1000, RAM).unwrap();
    assert_eq!(mem.tables.len(), tables);
}

#[test]
fn shared_slots() {
    let mut mem = Tables::new(100);
    let mut kernel = Mapper::<HostTable>::new(&mut mem, PageSize::Size2M).unwrap();
    let mut vm = Mapper::<HostTable>::new(&mut mem, PageSize::Size2M).unwrap();
    let high = 0xffff_8000_0000_0000;
    assert_eq!(vm.share_slot(&mut mem, 256, &kernel), Err(MapErrorKind::SharedSlot));
    kernel.reserve_slot(&mut mem, 256).unwrap();
    vm.share_slot(&mut mem, 256, &kernel).unwrap();
    assert_eq!(vm.share_slot(&mut mem, 256, &kernel), Err(MapErrorKind::SharedSlot));
    assert_eq!(vm.share_slot(&mut mem, 512, &kernel), Err(MapErrorKind::OutOfRange));
    // Mapped later, seen in both, edited by the owner only.
    kernel.map(&mut mem, high, hpa(0x1000), 0x1000, RAM).unwrap();
    assert_eq!(vm.query(&mem, high).unwrap().hpa, hpa(0x1000));
    let kind = vm.map(&mut mem, high + 0x1000, hpa(0), 0x1000, RAM).unwrap_err().kind;
    assert_eq!(kind, MapErrorKind::SharedSlot);
    let kind = vm.unmap(&mut mem, high, 0x1000, |_, _| {}).unwrap_err().kind;
    assert_eq!(kind, MapErrorKind::SharedSlot);
    assert_eq!(vm.protect(&mut mem, high, 0x1000, RAM).unwrap_err().kind, MapErrorKind::SharedSlot);
    kernel.unmap(&mut mem, high, 0x1000, |_, _| {}).unwrap();
    assert_eq!(mem.tables.len(), 3, "the reserved table stays");
    vm.map(&mut mem, 0, hpa(0), 0x1000, RAM).unwrap();
    vm.free_all(&mut mem, |_, _| {});
    assert_eq!(mem.tables.len(), 2);
}

#[derive(Clone, Debug)]
enum Edit {
    Map { page: u64, hpa: u64, pages: u64, attributes: Attributes },
    Unmap { page: u64, pages: u64 },
    Protect { page: u64, pages: u64, attributes: Attributes },
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let types = [
        MemoryType::Uncacheable,
        MemoryType::WriteCombining,
        MemoryType::WriteThrough,
        MemoryType::WriteProtected,
        MemoryType::WriteBack,
    ];
    (0u8..32, 0..types.len()).prop_map(move |(bits, index)| Attributes {
        permissions: Permissions::from_bits_truncate(bits) | Permissions::READ,
        memory_type: types[index],
    })
}

/// A page number near boundaries of 2 MiB and 1 GiB, and a length in pages.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let page = prop_oneof![
        0u64..1100,
        Just(0),
        Just(512),
        Just(1024),
        (0x4_0000u64 - 600)..(0x4_0000 + 600),
        Just(0x4_0000),
    ];
    (page, prop_oneof![1u64..4, Just(512), 1u64..1500])
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (range(), prop_oneof![Just(0u64), Just(512), 0u64..600], attributes()).prop_map(
            |((page, pages), shift, attributes)| Edit::Map {
                page,
                hpa: page + shift,
                pages,
                attributes
            }
        ),
        range().prop_map(|(page, pages)| Edit::Unmap { page, pages }),
        (range(), attributes()).prop_map(|((page, pages), attributes)| Edit::Protect {
            page,
            pages,
            attributes
        }),
    ]
}

/// Every edit against a map from page to (frame, attributes).
fn against_model<F: Format>(edits: &[Edit], budget: usize, max_leaf: PageSize) {
    let mut mem = Tables::new(budget);
    let mut mapper = Mapper::<F>::new(&mut mem, max_leaf).unwrap();
    let mut model: BTreeMap<u64, (u64, Attributes)> = BTreeMap::new();
    for edit in edits {
        match *edit {
            Edit::Map { page, hpa: frame, pages, attributes } => {
                let result =
                    mapper.map(&mut mem, page << 12, hpa(frame << 12), pages << 12, attributes);
                let free =
                    (0..pages).take_while(|i| !model.contains_key(&(page + i))).count() as u64;
                let done = match result {
                    Ok(()) => {
                        assert_eq!(free, pages);
                        pages
                    }
                    Err(MapError { kind: MapErrorKind::AlreadyMapped, done }) => {
                        assert!(free < pages);
                        assert_eq!(done >> 12, free);
                        free
                    }
                    Err(MapError { kind: MapErrorKind::NoTable(_), done }) => {
                        assert!(done >> 12 <= free);
                        done >> 12
                    }
                    Err(other) => panic!("{other:?}"),
                };
                for i in 0..done {
                    model.insert(page + i, (frame + i, F::normalize(attributes)));
                }
            }
            Edit::Unmap { page, pages } => {
                let mut removed = Vec::new();
                let result = mapper.unmap(&mut mem, page << 12, pages << 12, |page, size| {
                    let first = page.as_u64() >> 12;
                    removed.extend(first..first + (size.bytes() >> 12));
                });
                let done = result.map_or_else(|e| e.done >> 12, |()| pages);
                let gone: Vec<u64> =
                    (page..page + done).filter_map(|p| model.remove(&p)).map(|(f, _)| f).collect();
                assert_eq!(gone, removed);
            }
            Edit::Protect { page, pages, attributes } => {
                let result = mapper.protect(&mut mem, page << 12, pages << 12, attributes);
                let done = result.map_or_else(|e| e.done >> 12, |()| pages);
                for (_, (_, old)) in model.range_mut(page..page + done) {
                    *old = F::normalize(attributes);
                }
            }
        }
        for page in (0..2700).chain(0x4_0000 - 2200..0x4_0000 + 2200) {
            let found = mapper
                .query(&mem, page << 12)
                .map(|mapping| (mapping.hpa.as_u64() >> 12, mapping.attributes));
            assert_eq!(found, model.get(&page).copied(), "page {page:#x}");
        }
    }
    let mut left = 0;
    mapper.free_all(&mut mem, |_, size| left += size.bytes() >> 12);
    assert_eq!(left, model.len() as u64);
    assert!(mem.tables.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn npt_like_the_model(edits in prop::collection::vec(edit(), 1..12), budget in 1usize..14) {
        against_model::<Npt>(&edits, budget, PageSize::Size2M);
    }

    #[test]
    fn host_table_like_the_model(edits in prop::collection::vec(edit(), 1..12)) {
        against_model::<HostTable>(&edits, 100, PageSize::Size1G);
    }

    #[test]
    fn ept_like_the_model(edits in prop::collection::vec(edit(), 1..12), budget in 1usize..14) {
        against_model::<Ept>(&edits, budget, PageSize::Size1G);
    }
}

/// Maps a page by finding an empty entry and filling it; `false` if there is none.
fn put<F: Format>(
    mapper: &mut Mapper<F>,
    mem: &mut Tables,
    addr: u64,
    size: PageSize,
    to: u64,
) -> bool {
    let Some(vacancy) = mapper.vacancy(mem, addr, size) else { return false };
    mapper.fill(mem, vacancy, hpa(to), RAM);
    true
}

#[test]
fn a_vacancy_is_found_only_where_that_is_simple() {
    const LARGE: PageSize = PageSize::Size2M;
    let mut mem = Tables::new(100);
    let mut mapper = Mapper::<Ept>::new(&mut mem, LARGE).unwrap();
    let page = 64 * MIB;
    assert!(!put(&mut mapper, &mut mem, 2 * MIB, LARGE, page), "there are no tables");
    mapper.map(&mut mem, 4 * MIB, hpa(32 * MIB), 2 * MIB, RAM).unwrap();
    assert!(!put(&mut mapper, &mut mem, 2 * MIB + 0x1000, LARGE, page), "not aligned");
    assert!(!put(&mut mapper, &mut mem, 4 * MIB, LARGE, page), "mapped");
    assert!(!put(&mut mapper, &mut mem, 4 * MIB, PageSize::Size4K, page), "in a large page");
    mapper.map(&mut mem, 6 * MIB, hpa(0x1000), 0x1000, RAM).unwrap();
    assert!(!put(&mut mapper, &mut mem, 6 * MIB, LARGE, page), "a page of it is");
    assert!(put(&mut mapper, &mut mem, 6 * MIB + 0x1000, PageSize::Size4K, page));
    assert!(!put(&mut mapper, &mut mem, GIB, LARGE, page), "another table");
    let tables = mem.tables.len();
    assert!(put(&mut mapper, &mut mem, 2 * MIB, LARGE, page));
    assert_eq!(mem.tables.len(), tables);
    let found = mapper.query(&mem, 3 * MIB).unwrap();
    assert_eq!((found.hpa, found.size), (hpa(65 * MIB), LARGE));
    assert!(!mapper.vacate(&mut mem, 6 * MIB, LARGE), "small pages are no large one");
    assert!(!mapper.vacate(&mut mem, 2 * MIB, PageSize::Size4K), "nor the other way round");
    assert!(mapper.vacate(&mut mem, 2 * MIB, LARGE));
    assert!(!mapper.vacate(&mut mem, 2 * MIB, LARGE));
    assert_eq!((mapper.query(&mem, 2 * MIB), mem.tables.len()), (None, tables));
    let mut small = Mapper::<Npt>::new(&mut mem, PageSize::Size4K).unwrap();
    small.map(&mut mem, 0, hpa(0), 0x1000, RAM).unwrap();
    assert!(!put(&mut small, &mut mem, 2 * MIB, LARGE, page), "large pages are not used");
    let refused = small.make_vacancy(&mut mem, 2 * MIB, LARGE).unwrap_err();
    assert_eq!(refused, MapErrorKind::Misaligned);
}

#[test]
fn a_vacancy_is_made_once_and_its_tables_stay() {
    for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        let tables = 5 - size.level() as usize;
        for budget in 1..tables {
            let mut mem = Tables::new(budget);
            let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size1G).unwrap();
            let error = npt.make_vacancy(&mut mem, 5 * GIB, size).unwrap_err();
            assert_eq!(error, MapErrorKind::NoTable(Exhausted));
            assert_eq!(mem.tables.len(), 1, "no table is lost");
        }
        let mut mem = Tables::new(tables);
        let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size1G).unwrap();
        let vacancy = npt.make_vacancy(&mut mem, 5 * GIB, size).unwrap();
        assert_eq!((npt.query(&mem, 5 * GIB), mem.tables.len()), (None, tables));
        npt.fill(&mut mem, vacancy, hpa(7 * GIB), RAM);
        assert_eq!(npt.query(&mem, 5 * GIB).unwrap().hpa, hpa(7 * GIB));
        let error = npt.make_vacancy(&mut mem, 5 * GIB, size).unwrap_err();
        assert_eq!(error, MapErrorKind::AlreadyMapped);
        assert!(npt.vacate(&mut mem, 5 * GIB, size));
        assert_eq!(mem.tables.len(), tables);
    }
}

proptest! {
    #[test]
    fn no_tree_has_more_tables_than_were_counted(
        lengths in prop::collection::vec((0u64..1200, 0u64..3000), 1..5),
        far in prop_oneof![Just(0u64), Just(GIB - MIB), Just(4 * GIB), Just(512 * GIB)],
    ) {
        let mut mem = Tables::new(100);
        let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size4K).unwrap();
        let (mut at, mut ranges) = (0, Vec::new());
        for (number, (gap, pages)) in lengths.into_iter().enumerate() {
            at += gap * 4096 + if number == 1 { far } else { 0 };
            ranges.push(at..at + pages * 4096);
            npt.map(&mut mem, at, hpa(0), pages * 4096, RAM).unwrap();
            at += pages * 4096;
        }
        prop_assert_eq!(most_tables(ranges.into_iter()), mem.tables.len() as u64);
    }
}

#[test]
fn no_table_is_freed_that_was_linked() {
    /// Notices a table that a present entry has referred to.
    struct Watch(Tables, std::collections::BTreeSet<u64>);
    impl TableMemory for Watch {
        type Error = Exhausted;
        fn alloc_table(&mut self) -> Result<HostPhysAddr, Exhausted> {
            self.0.alloc_table()
        }
        fn free_table(&mut self, table: HostPhysAddr) {
            assert!(!self.1.contains(&table.as_u64()), "{table} was in reach of a CPU");
            self.0.free_table(table);
        }
        fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
            self.0.read(table, index)
        }
        fn write(&mut self, table: HostPhysAddr, index: usize, entry: u64) {
            // Entries of a table that is out of reach stay out of reach.
            let linked = table.as_u64() == 0x10_0000 || self.1.contains(&table.as_u64());
            if linked && Npt::is_present(entry) {
                self.reach(Npt::next(entry).as_u64());
            }
            self.0.write(table, index, entry);
        }
    }
    impl Watch {
        /// A table is in reach, and all below it.
        fn reach(&mut self, table: u64) {
            if let Some(entries) = self.0.tables.get(&table).copied() {
                self.1.insert(table);
                for entry in entries.into_iter().filter(|entry| Npt::is_present(*entry)) {
                    self.reach(Npt::next(entry).as_u64());
                }
            }
        }
    }
    for budget in 1..12 {
        let mut mem = Watch(Tables::new(budget), Default::default());
        let mut npt = Mapper::<Npt>::new(&mut mem, PageSize::Size2M).unwrap();
        for (addr, len) in [(0x1000, 0x1000), (GIB, 4 * MIB), (600 * GIB, 0x3000), (0, 4 * MIB)] {
            let _ = npt.map(&mut mem, addr, hpa(addr), len, RAM);
            let _ = npt.make_vacancy(&mut mem, addr + 2 * GIB, PageSize::Size4K);
        }
    }
}
