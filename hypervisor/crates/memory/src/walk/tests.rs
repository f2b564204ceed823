use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Entries by address. A write of the guest's may be planted to happen just
/// before the next compare-exchange.
#[derive(Default)]
struct Tables {
    entries: BTreeMap<u64, u64>,
    race: Option<(u64, u64)>,
    exchanges: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Absent(u64);

impl GuestPageTables for Tables {
    type Error = Absent;

    fn read_entry(&mut self, gpa: GuestPhysAddr, width: Width) -> Result<u64, Absent> {
        assert!(gpa.is_aligned(width.bytes() as u64));
        let entry = self.entries.get(&gpa.as_u64()).copied().ok_or(Absent(gpa.as_u64()))?;
        assert_eq!(width.truncate(entry), entry);
        Ok(entry)
    }

    fn compare_exchange(
        &mut self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Absent> {
        self.exchanges += 1;
        if let Some((at, value)) = self.race.take() {
            self.entries.insert(at, value);
        }
        let found = self.read_entry(gpa, width)?;
        if found == current {
            self.entries.insert(gpa.as_u64(), new);
        }
        Ok(found)
    }
}

fn tables(entries: &[(u64, u64)]) -> Tables {
    Tables { entries: entries.iter().copied().collect(), ..Tables::default() }
}

fn long() -> WalkConfig {
    WalkConfig {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr3: 0x1000,
        cr4: Cr4::PAE | Cr4::PGE,
        efer: Efer::LME | Efer::LMA | Efer::NXE,
        rflags: Rflags::RESERVED1,
        cpl: 0,
        pkru: 0,
        physical_bits: 40,
        features: WalkFeatures::PAGES_1G,
    }
}

fn legacy() -> WalkConfig {
    WalkConfig { cr4: Cr4::PSE, efer: Efer::empty(), ..long() }
}

fn pae() -> WalkConfig {
    WalkConfig { cr4: Cr4::PAE, efer: Efer::NXE, ..long() }
}

fn go(
    config: &WalkConfig,
    mem: &mut Tables,
    gva: u64,
    access: Access,
) -> Result<Translation, WalkError<Absent>> {
    walk(config, mem, GuestVirtAddr::new(gva), access)
}

fn gpa(config: &WalkConfig, mem: &mut Tables, gva: u64) -> u64 {
    go(config, mem, gva, Access::Read).unwrap().gpa.as_u64()
}

fn code(config: &WalkConfig, mem: &mut Tables, gva: u64, access: Access) -> u32 {
    match go(config, mem, gva, access) {
        Err(WalkError::PageFault(code)) => code.bits(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_paging() {
    let config = WalkConfig { cr0: Cr0::PE, efer: Efer::empty(), ..long() };
    assert_eq!(gpa(&config, &mut tables(&[]), 0xffff_ffff_1234_5678), 0x1234_5678);
}

#[test]
fn two_levels() {
    // Directory at 0x1000; 0x12345678 has entries 0x48 and 0x345.
    let mut mem = tables(&[(0x1000 + 0x48 * 4, 0x2007), (0x2000 + 0x345 * 4, 0xabcd_e007)]);
    assert_eq!(gpa(&legacy(), &mut mem, 0x1234_5678), 0xabcd_e678);
    assert_eq!(mem.entries[&(0x1000 + 0x48 * 4)], 0x2027);
    assert_eq!(mem.entries[&(0x2000 + 0x345 * 4)], 0xabcd_e027);
    go(&legacy(), &mut mem, 0x1234_5678, Access::Write).unwrap();
    assert_eq!(mem.entries[&(0x1000 + 0x48 * 4)], 0x2027, "no dirty bit above a leaf");
    assert_eq!(mem.entries[&(0x2000 + 0x345 * 4)], 0xabcd_e067);
    let exchanges = mem.exchanges;
    go(&legacy(), &mut mem, 0x1234_5678, Access::Write).unwrap();
    assert_eq!(mem.exchanges, exchanges, "nothing left to set");
}

#[test]
fn four_mib_pages_and_pse36() {
    let at = 0x1000 + 0x48 * 4;
    let mut mem = tables(&[(at, 0xabc0_0087)]);
    assert_eq!(gpa(&legacy(), &mut mem, 0x1234_5678), 0xabc0_0000 + 0x34_5678);
    let mut mem = tables(&[(at, 0xabc0_0087 | 0x5a << 13)]);
    assert_eq!(gpa(&legacy(), &mut mem, 0x1234_5678), 0x5a_abc0_0000 + 0x34_5678);
    // 36 physical bits: bits 20:17 are reserved; bit 21 always is.
    let narrow = WalkConfig { physical_bits: 36, ..legacy() };
    assert_eq!(code(&narrow, &mut mem, 0x1234_5678, Access::Read), 0b1001);
    let mut mem = tables(&[(at, 0xabe0_0087)]);
    assert_eq!(code(&legacy(), &mut mem, 0x1234_5678, Access::Read), 0b1001);
    // Without PSE the bit of large pages means nothing.
    let mut mem = tables(&[(at, 0x2087), (0x2000 + 0x345 * 4, 0x5007)]);
    let config = WalkConfig { cr4: Cr4::empty(), ..legacy() };
    assert_eq!(gpa(&config, &mut mem, 0x1234_5678), 0x5678);
}

#[test]
fn pae_levels() {
    // 0xc0345678: pointer entry 3, directory entry 1, table entry 0x145.
    let config = WalkConfig { cr3: 0x1020, ..pae() };
    let mut mem =
        tables(&[(0x1038, 0x2001), (0x2008, 0x3007), (0x3000 + 0x145 * 8, 0x8000_00ff_abcd_e007)]);
    assert_eq!(gpa(&config, &mut mem, 0xc034_5678), 0xff_abcd_e678);
    assert_eq!(mem.entries[&0x1038], 0x2001, "no accessed bit there");
    assert_eq!(code(&config, &mut mem, 0xc034_5678, Access::Fetch), 0b1_0001);
    // 2 MiB.
    mem.entries.insert(0x2008, 0x8000_0087);
    assert_eq!(gpa(&config, &mut mem, 0xc034_5678), 0x8014_5678);
    for reserved in [0x2003u64, 0x2005, 0x2041, 0x2101, 1 << 63 | 0x2001, 1 << 40 | 0x2001] {
        mem.entries.insert(0x1038, reserved);
        assert_eq!(code(&config, &mut mem, 0xc034_5678, Access::Read), 0b1001, "{reserved:#x}");
    }
    mem.entries.insert(0x1038, 0x2001);
    mem.entries.insert(0x2008, 1 << 52 | 0x8000_0087);
    assert_eq!(code(&config, &mut mem, 0xc034_5678, Access::Read), 0b1001);
}

/// 0xffff_8080_4020_1xxx: entries 257, 1, 1, 1.
const HIGH: u64 = 0xffff_8080_4020_1abc;

fn four(pml4e: u64, pdpte: u64, pde: u64, pte: u64) -> Tables {
    tables(&[(0x1000 + 257 * 8, pml4e), (0x2008, pdpte), (0x3008, pde), (0x4008, pte)])
}

#[test]
fn four_levels() {
    let mut mem = four(0x2003, 0x3003, 0x4003, 0x12_3456_7003);
    assert_eq!(gpa(&long(), &mut mem, HIGH), 0x12_3456_7abc);
    let mut mem = four(0x2003, 0x3003, 0x8060_0083, 0);
    let found = go(&long(), &mut mem, HIGH, Access::Read).unwrap();
    assert_eq!((found.gpa.as_u64(), found.page_size), (0x8060_1abc, 2 << 20));
    let mut mem = four(0x2003, 0x40_8000_0083, 0, 0);
    let found = go(&long(), &mut mem, HIGH, Access::Read).unwrap();
    assert_eq!((found.gpa.as_u64(), found.page_size), (0x40_8020_1abc, 1 << 30));
    let small = WalkConfig { features: WalkFeatures::empty(), ..long() };
    assert_eq!(code(&small, &mut mem, HIGH, Access::Read), 0b1001);
    assert_eq!(go(&long(), &mut mem, 1 << 47, Access::Read), Err(WalkError::NonCanonical));
    // PCID bits of CR3 are no part of the address.
    let pcid = WalkConfig { cr3: 0x1fff, ..long() };
    assert_eq!(gpa(&pcid, &mut mem, HIGH), 0x40_8020_1abc);
    assert_eq!(
        go(&long(), &mut tables(&[]), HIGH, Access::Read),
        Err(WalkError::Memory(Absent(0x1808)))
    );
}

#[test]
fn five_levels() {
    let config = WalkConfig { cr4: Cr4::PAE | Cr4::LA57, ..long() };
    let mut mem = tables(&[
        (0x1000 + 8, 0x2003),
        (0x2000, 0x3003),
        (0x3000, 0x4003),
        (0x4000, 0x5003),
        (0x5000, 0x6003),
    ]);
    assert_eq!(gpa(&config, &mut mem, 1 << 48 | 0x123), 0x6123);
    assert_eq!(go(&config, &mut mem, 1 << 56, Access::Read), Err(WalkError::NonCanonical));
}

#[test]
fn absent_and_reserved() {
    let base = [0x2007u64, 0x3007, 0x4007, 0x5007];
    for level in 0..4 {
        let mut entries = base;
        entries[level] = 0xffff_ffff_ffff_fffe;
        let [a, b, c, d] = entries;
        let user = WalkConfig { cpl: 3, ..long() };
        assert_eq!(code(&long(), &mut four(a, b, c, d), HIGH, Access::Read), 0);
        assert_eq!(code(&long(), &mut four(a, b, c, d), HIGH, Access::Write), 2);
        assert_eq!(code(&user, &mut four(a, b, c, d), HIGH, Access::Write), 6);
        assert_eq!(code(&user, &mut four(a, b, c, d), HIGH, Access::SystemRead), 0);
        assert_eq!(code(&user, &mut four(a, b, c, d), HIGH, Access::Fetch), 0x14);
        entries[level] = base[level] | 1 << 40;
        let [a, b, c, d] = entries;
        assert_eq!(code(&user, &mut four(a, b, c, d), HIGH, Access::Read), 0b1101);
        let wide = WalkConfig { physical_bits: 41, cpl: 3, ..long() };
        if level == 3 {
            assert_eq!(gpa(&wide, &mut four(a, b, c, d), HIGH), 1 << 40 | 0x5abc);
        }
        entries[level] = base[level] | 1 << 63;
        let [a, b, c, d] = entries;
        let no_nx = WalkConfig { efer: Efer::LMA, ..long() };
        assert_eq!(code(&no_nx, &mut four(a, b, c, d), HIGH, Access::Fetch), 0b1001);
        assert_eq!(code(&long(), &mut four(a, b, c, d), HIGH, Access::Fetch), 0b1_0001);
        entries[level] = base[level] | 0x7ff << 52;
        let [a, b, c, d] = entries;
        assert_eq!(gpa(&long(), &mut four(a, b, c, d), HIGH), 0x5abc, "ignored bits");
    }
    assert_eq!(code(&long(), &mut four(0x2087, 0x3007, 0x4007, 0x5007), HIGH, Access::Read), 9);
    assert_eq!(code(&long(), &mut four(0x2007, 0x2083, 0, 0), HIGH, Access::Read), 9);
    assert_eq!(code(&long(), &mut four(0x2007, 0x3007, 0x2083, 0), HIGH, Access::Read), 9);
}

#[test]
fn a_fault_sets_nothing() {
    let mut mem = four(0x2007, 0x3007, 0x4007, 0x5005);
    assert_eq!(code(&long(), &mut mem, HIGH, Access::Write), 3);
    assert_eq!(mem.entries[&0x4008], 0x5005);
    assert_eq!(mem.exchanges, 0);
}

#[test]
fn races() {
    // Another walker sets accessed meanwhile: no new walk needed.
    let mut mem = four(0x2023, 0x3023, 0x4023, 0x5003);
    mem.race = Some((0x4008, 0x5023));
    let found = go(&long(), &mut mem, HIGH, Access::Write).unwrap();
    assert_eq!(found.gpa.as_u64(), 0x5abc);
    assert_eq!(mem.entries[&0x4008], 0x5063);
    // The guest takes the page away: the fault of the new entry.
    let mut mem = four(0x2023, 0x3023, 0x4023, 0x5003);
    mem.race = Some((0x4008, 0));
    assert_eq!(code(&long(), &mut mem, HIGH, Access::Read), 0);
    // The guest points it elsewhere: the new page.
    let mut mem = four(0x2023, 0x3023, 0x4023, 0x5003);
    mem.race = Some((0x4008, 0x7003));
    assert_eq!(gpa(&long(), &mut mem, HIGH), 0x7abc);
}

#[test]
fn a_guest_that_never_rests_is_no_hang() {
    struct Restless(u64);
    impl GuestPageTables for Restless {
        type Error = ();
        fn read_entry(&mut self, _: GuestPhysAddr, _: Width) -> Result<u64, ()> {
            self.0 += 0x1000;
            Ok(self.0 | 3)
        }
        fn compare_exchange(
            &mut self,
            _: GuestPhysAddr,
            _: Width,
            _: u64,
            _: u64,
        ) -> Result<u64, ()> {
            self.read_entry(GuestPhysAddr::ZERO, Width::B8)
        }
    }
    let result = walk(&long(), &mut Restless(0), GuestVirtAddr::ZERO, Access::Read);
    assert_eq!(result, Err(WalkError::Contended));
}

/// The rules of "Determination of Access Rights" and "Protection Keys", as a
/// list of forbidden things.
fn forbidden(config: &WalkConfig, access: Access, w: bool, u: bool, nx: bool, key: u8) -> bool {
    let smap = config.cr4.contains(Cr4::SMAP);
    let smep = config.cr4.contains(Cr4::SMEP);
    let wp = config.cr0.contains(Cr0::WP);
    let ac = config.rflags.contains(Rflags::AC);
    let pke = config.cr4.contains(Cr4::PKE);
    let ad = config.pkru & 1 << (2 * key) != 0;
    let wd = config.pkru & 2 << (2 * key) != 0;
    let supervisor = config.cpl < 3;
    let keyed = |write: bool, user: bool| pke && u && (ad || wd && write && (wp || user));
    match access {
        Access::Read if supervisor => smap && u && !ac || keyed(false, false),
        Access::Read => !u || keyed(false, true),
        Access::Write if supervisor => smap && u && !ac || wp && !w || keyed(true, false),
        Access::Write => !u || !w || keyed(true, true),
        Access::Fetch if supervisor => nx || smep && u,
        Access::Fetch => nx || !u,
        Access::SystemRead => smap && u || keyed(false, false),
        Access::SystemWrite => smap && u || wp && !w || keyed(true, false),
    }
}

fn any_access() -> impl Strategy<Value = Access> {
    prop_oneof![
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::Fetch),
        Just(Access::SystemRead),
        Just(Access::SystemWrite),
    ]
}

/// The guest leads its tables elsewhere, and the memory of the old ones goes away.
#[test]
fn a_kept_walk_bears_that_its_tables_are_gone() {
    let mut mem = Tables::default();
    for (table, next) in [(1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)] {
        mem.entries.insert(table << 12, (next << 12) + 7);
    }
    let config = WalkConfig { cr3: 0x1000, ..long() };
    let mut kept = KeptWalk::default();
    let gva = GuestVirtAddr::new(0x123);
    let found = kept.walk(&config, &mut mem, gva, Access::Fetch).unwrap();
    assert_eq!(found.gpa, GuestPhysAddr::new(0x5123));
    mem.entries.insert(0x1000, 0x6007);
    mem.entries.retain(|at, _| !(0x2000..0x5000).contains(at));
    let found = kept.walk(&config, &mut mem, gva, Access::Fetch).unwrap();
    assert_eq!(found.gpa, GuestPhysAddr::new(0x9123));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn rights_like_the_rules(
        w in prop::array::uniform4(prop::bool::weighted(0.8)),
        u in prop::array::uniform4(prop::bool::weighted(0.8)),
        nx in prop::array::uniform4(prop::bool::weighted(0.1)),
        key in 0u8..16,
        pkru in any::<u32>(),
        switches in prop::array::uniform5(any::<bool>()),
        cpl in 0u8..4,
        access in any_access(),
    ) {
        let [smap, smep, wp, ac, pke] = switches;
        let mut config = WalkConfig { cpl, pkru, ..long() };
        config.cr4.set(Cr4::SMAP, smap);
        config.cr4.set(Cr4::SMEP, smep);
        config.cr4.set(Cr4::PKE, pke);
        config.cr0.set(Cr0::WP, wp);
        config.rflags.set(Rflags::AC, ac);
        let entry = |i: usize, next: u64| {
            next | 1 | u64::from(w[i]) << 1 | u64::from(u[i]) << 2 | u64::from(nx[i]) << 63
        };
        let mut mem = four(
            entry(0, 0x2000),
            entry(1, 0x3000),
            entry(2, 0x4000),
            entry(3, 0x5000) | u64::from(key) << 59,
        );
        let all = |bits: [bool; 4]| bits.iter().all(|b| *b);
        let nx = nx.contains(&true);
        match go(&config, &mut mem, HIGH, access) {
            Ok(found) => {
                prop_assert!(!forbidden(&config, access, all(w), all(u), nx, key));
                prop_assert_eq!(found.gpa.as_u64(), 0x5abc);
                let write = matches!(access, Access::Write | Access::SystemWrite);
                prop_assert_eq!(mem.entries[&0x4008] & 0x60, if write { 0x60 } else { 0x20 });
                prop_assert_eq!(mem.entries[&0x3008] & 0x60, 0x20);
            }
            Err(WalkError::PageFault(code)) => {
                prop_assert!(forbidden(&config, access, all(w), all(u), nx, key));
                prop_assert!(code.contains(PageFaultCode::P));
                prop_assert!(!code.contains(PageFaultCode::RSVD));
                let system = matches!(access, Access::SystemRead | Access::SystemWrite);
                prop_assert_eq!(code.contains(PageFaultCode::U), cpl == 3 && !system);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// A walk that is kept finds what a new one finds, and leaves the same in the tables, whatever
    /// the guest does to tables and registers in between.
    #[test]
    fn a_kept_walk_is_a_walk(
        shape in 0usize..3,
        steps in prop::collection::vec(
            (0usize..10, any::<u8>(), 0u64..4, any_access(), any::<bool>()), 1..40,
        ),
    ) {
        let mut config = [long(), pae(), legacy()][shape];
        let wide = shape != 2;
        // Each table is one page, whose entries lead to the next one, or map pages.
        let fresh = || {
            let mut mem = Tables::default();
            for table in 1..=4u64 {
                for index in 0..1024u64 {
                    let at = (table << 12) + index * if wide { 8 } else { 4 };
                    if at < (table + 1) << 12 {
                        mem.entries.insert(at, ((table % 4 + 1) << 12) + 7);
                    }
                }
            }
            mem
        };
        let (mut kept_mem, mut new_mem) = (fresh(), fresh());
        let mut kept = KeptWalk::default();
        for (what, bits, page, access, user) in steps {
            let at = page << 12;
            match what {
                // Rights, accessed and dirty bits, presence, reserved bits of an entry.
                0..=2 => for mem in [&mut kept_mem, &mut new_mem] {
                    let entry = mem.entries.get_mut(&at.max(0x1000)).unwrap();
                    *entry ^= u64::from(bits);
                },
                3 => config.cpl = if user { 3 } else { 0 },
                4 => config.cr0.toggle(Cr0::WP),
                5 => config.cr3 = (page % 4 + 1) << 12,
                _ => {
                    let gva = GuestVirtAddr::new(((page % 2) << 12) + u64::from(bits));
                    let found = kept.walk(&config, &mut kept_mem, gva, access);
                    let wanted = walk(&config, &mut new_mem, gva, access);
                    prop_assert_eq!(found, wanted);
                    prop_assert_eq!(&kept_mem.entries, &new_mem.entries);
                }
            }
        }
    }

    #[test]
    fn never_panics(
        entries in prop::array::uniform5(any::<u64>()),
        cr0 in any::<u64>(), cr3 in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(),
        rflags in any::<u64>(), cpl in any::<u8>(), pkru in any::<u32>(), physical_bits in any::<u8>(),
        gva in any::<u64>(), access in any_access(),
    ) {
        struct Any([u64; 5], usize);
        impl GuestPageTables for Any {
            type Error = ();
            fn read_entry(&mut self, _: GuestPhysAddr, width: Width) -> Result<u64, ()> {
                self.1 += 1;
                Ok(width.truncate(self.0[self.1 % 5] | 1))
            }
            fn compare_exchange(&mut self, _: GuestPhysAddr, _: Width, current: u64, _: u64)
                -> Result<u64, ()> { Ok(current) }
        }
        let config = WalkConfig {
            cr0: Cr0::from_bits_retain(cr0), cr3, cr4: Cr4::from_bits_retain(cr4),
            efer: Efer::from_bits_retain(efer), rflags: Rflags::from_bits_retain(rflags),
            cpl, pkru, physical_bits, features: WalkFeatures::all(),
        };
        let mut mem = Any(entries, 0);
        let _ = walk(&config, &mut mem, GuestVirtAddr::new(gva), access);
        prop_assert!(mem.1 <= 5 * RETRIES as usize);
    }
}
