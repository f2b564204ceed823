use super::*;
use crate::cpuid::{CpuidConfig, CpuidTable, FeatureBit};
use crate::pv::PvFeatures;
use x86defs::cpuid::{CpuidResult, Vendor};
use x86defs::time::TscFrequency;
use x86defs::{Cr0, Efer, GuestPhysAddr, Xcr0};

fn cpuid(vendor: Vendor, withheld: &[FeatureBit]) -> CpuidTable {
    let host = move |leaf: u32, _| {
        let (eax, ebx, ecx, edx) = match (leaf, vendor) {
            (0, Vendor::Intel) => (0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            (0, _) => (0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            (0x8000_0000, _) => (0x8000_001f, 0, 0, 0),
            (0x8000_0008, _) => (0x3030, 0, 0, 0),
            (0x8000_0001, _) => (0, 0, u32::MAX, u32::MAX),
            _ => (0, 0, 0, 0),
        };
        CpuidResult { eax, ebx, ecx, edx }
    };
    let config = CpuidConfig {
        vcpus: 1,
        max_apic_id: 0,
        tsc: TscFrequency::from_khz(1_000_000).unwrap(),
        apic_timer_hz: 1_000_000_000,
        physical_address_bits: 40,
        xcr0: Xcr0::all(),
        pv: PvFeatures::STEAL_TIME,
        calls: hvabi::CallSet::ALL,
        signature: config::Signature::Steward,
        withheld,
        hidden: config::FeatureSet::default(),
    };
    CpuidTable::new(&host, &config)
}

const CONFIG: MsrConfig =
    MsrConfig { microcode: 0x830_1034, low_ram_end: 0xc000_0000, high_ram_end: 0x1_c000_0000 };

fn msrs(vendor: Vendor) -> (MsrTable, MsrFile) {
    let table = MsrTable::new(&cpuid(vendor, &[]), &CONFIG);
    let file = MsrFile::new(&table);
    (table, file)
}

#[test]
fn the_table_is_sorted_and_without_doubles() {
    for vendor in [Vendor::Intel, Vendor::Amd, Vendor::Other] {
        let (table, _) = msrs(vendor);
        assert!(table.lines().zip(table.lines().skip(1)).all(|(a, b)| a.0 < b.0));
        for (msr, line) in table.lines() {
            assert_eq!(table.lookup(msr), Some(line), "{msr:?}");
        }
    }
}

#[test]
fn every_value_after_reset_may_be_written_back() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let (table, mut file) = msrs(vendor);
        for (msr, line) in table.lines() {
            if let ReadAction::Stored(_) = line.read {
                let Ok(MsrRead::Value(value)) = file.read(&table, msr) else { panic!("{msr:?}") };
                assert_eq!(file.write(&table, msr, value), Ok(MsrWrite::Done), "{msr:?}");
            }
        }
    }
}

/// The MSRs that Linux 6.1 reads without being ready for a fault, by vendor.
#[test]
fn reads_that_linux_does_not_check() {
    let both = [
        0x10,
        0x1b,
        0x3b,
        0xfe,
        0x179,
        0x17a,
        0x200,
        0x201,
        0x20f,
        0x250,
        0x258,
        0x259,
        0x268,
        0x26f,
        0x277,
        0x2ff,
        0xc000_0080,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0x8b,
    ];
    let intel = [0x17, 0x1a0, 0x1d9];
    let amd = [0xc001_0010, 0xc001_0015, 0xc001_001a, 0xc001_001d, 0xc001_001f, 0xc001_1029];
    for (vendor, own, foreign) in
        [(Vendor::Intel, &intel[..], &amd[..]), (Vendor::Amd, &amd[..], &[0x17, 0x1a0][..])]
    {
        let (table, file) = msrs(vendor);
        for number in both.iter().chain(own) {
            assert!(file.read(&table, Msr(*number)).is_ok(), "{vendor:?} {number:#x}");
        }
        for number in foreign {
            assert_eq!(file.read(&table, Msr(*number)), Err(Gp), "{vendor:?} {number:#x}");
        }
    }
}

#[test]
fn unknown_numbers_fault() {
    let (table, mut file) = msrs(Vendor::Amd);
    for number in [
        2,
        0x13,
        0x3a,
        0x48,
        0x49,
        0x10a,
        0x122,
        0x17b,
        0x210,
        0x251,
        0x276,
        0x345,
        0x38f,
        0x400,
        0x480,
        0x600,
        0x7ff,
        0x900,
        0xda0,
        0x4000_0000,
        0x4b56_4d02,
        // Not offered to this guest.
        0x4b56_4d04,
        0x4b56_4d05,
        0xc000_0104,
        0xc001_0008,
        0xc001_0016,
        0xc001_0114,
        0xc001_0117,
        0xc001_1020,
        u32::MAX,
    ] {
        assert_eq!(file.read(&table, Msr(number)), Err(Gp), "{number:#x}");
        assert_eq!(file.write(&table, Msr(number), 0), Err(Gp), "{number:#x}");
    }
}

#[test]
fn constants() {
    let value = |vendor, msr| {
        let (table, file) = msrs(vendor);
        file.read(&table, msr)
    };
    for (vendor, msr, expected) in [
        (Vendor::Amd, Msr::BIOS_SIGN_ID, 0x830_1034),
        (Vendor::Intel, Msr::BIOS_SIGN_ID, 0x830_1034 << 32),
        (Vendor::Amd, Msr::TOP_MEM, 0xc000_0000),
        (Vendor::Amd, Msr::TOP_MEM2, 0x1_c000_0000),
        (Vendor::Amd, Msr::HWCR, 1 << 24),
        (Vendor::Amd, Msr::DE_CFG, 2),
        (Vendor::Amd, Msr::SYSCFG, 0x74_0000),
        (Vendor::Intel, Msr::MISC_ENABLE, 0x1801),
        (Vendor::Intel, Msr::MCG_CAP, 0),
    ] {
        assert_eq!(value(vendor, msr), Ok(MsrRead::Value(expected)), "{vendor:?} {msr:?}");
    }
    let small = MsrConfig { high_ram_end: 0x1_0000_0000, ..CONFIG };
    let table = MsrTable::new(&cpuid(Vendor::Amd, &[]), &small);
    let file = MsrFile::new(&table);
    assert_eq!(file.read(&table, Msr::TOP_MEM2), Ok(MsrRead::Value(0)));
    assert_eq!(file.read(&table, Msr::SYSCFG), Ok(MsrRead::Value(0x14_0000)));
}

#[test]
fn writes_are_checked() {
    const HIGHEST_LOW: u64 = 0x7fff_ffff_ffff;
    for (vendor, msr, value, legal) in [
        (Vendor::Amd, Msr::LSTAR, HIGHEST_LOW, true),
        (Vendor::Amd, Msr::LSTAR, HIGHEST_LOW + 1, false),
        (Vendor::Amd, Msr::LSTAR, 0xffff_8000_0000_0000, true),
        (Vendor::Amd, Msr::CSTAR, 1 << 63, false),
        (Vendor::Amd, Msr::FS_BASE, 1 << 47, false),
        (Vendor::Amd, Msr::GS_BASE, 1 << 47, false),
        (Vendor::Amd, Msr::KERNEL_GS_BASE, 1 << 47, false),
        (Vendor::Amd, Msr::SYSENTER_EIP, 1 << 47, false),
        (Vendor::Amd, Msr::SYSENTER_CS, 1 << 32, false),
        (Vendor::Amd, Msr::SFMASK, 1 << 32, false),
        (Vendor::Amd, Msr::SFMASK, 0x47700, true),
        (Vendor::Amd, Msr::STAR, u64::MAX, true),
        (Vendor::Amd, Msr::TSC_AUX, 0xffff_ffff, true),
        (Vendor::Amd, Msr::TSC_AUX, 1 << 32, false),
        (Vendor::Amd, Msr::PAT, 0x0407_0506_0007_0106, true),
        (Vendor::Amd, Msr::PAT, 0x0207_0506_0007_0106, false),
        (Vendor::Amd, Msr::MCG_CAP, 0, false),
        (Vendor::Amd, Msr::MCG_STATUS, 0, true),
        (Vendor::Amd, Msr::MCG_STATUS, 8, false),
        (Vendor::Amd, Msr::HWCR, 1 << 24 | 1 << 3, true),
        (Vendor::Amd, Msr::HWCR, 0, false),
        (Vendor::Amd, Msr::HWCR, 1 << 24 | 1 << 4, false),
        (Vendor::Amd, Msr::NB_CFG, 1 << 46, true),
        (Vendor::Amd, Msr::NB_CFG, 1 << 45, false),
        (Vendor::Amd, Msr::DE_CFG, 2, true),
        (Vendor::Amd, Msr::DE_CFG, 0, false),
        (Vendor::Amd, Msr::TOP_MEM, 0xc000_0000, false),
        (Vendor::Amd, Msr::BIOS_SIGN_ID, 0, false),
        (Vendor::Intel, Msr::BIOS_SIGN_ID, 0, true),
        (Vendor::Intel, Msr::MISC_ENABLE, 0x1800, true),
        (Vendor::Intel, Msr::MISC_ENABLE, 0x1801 | 1 << 34, false),
        (Vendor::Intel, Msr::MISC_ENABLE, 0x80_0081, true),
        (Vendor::Amd, Msr::MISC_ENABLE, 0, false),
        (Vendor::Intel, Msr::PLATFORM_ID, 0, false),
        (Vendor::Intel, Msr::DEBUGCTL, 0, true),
        (Vendor::Intel, Msr::DEBUGCTL, 2, false),
    ] {
        let (table, mut file) = msrs(vendor);
        let before = file.clone();
        assert_eq!(file.write(&table, msr, value).is_ok(), legal, "{msr:?} {value:#x}");
        if !legal {
            assert_eq!(file, before);
        }
    }
}

#[test]
fn counters_of_the_k7_never_count() {
    for number in 0xc001_0000..0xc001_0008 {
        let (table, mut file) = msrs(Vendor::Amd);
        assert_eq!(file.write(&table, Msr(number), u64::MAX), Ok(MsrWrite::Done), "{number:#x}");
        assert_eq!(file.read(&table, Msr(number)), Ok(MsrRead::Value(0)), "{number:#x}");
        let (table, file) = msrs(Vendor::Intel);
        assert_eq!(file.read(&table, Msr(number)), Err(Gp), "{number:#x}");
    }
}

#[test]
fn read_only_bits_stay() {
    let (table, mut file) = msrs(Vendor::Intel);
    // Fast strings off, no messages of task priority; counters on, BTS there.
    assert_eq!(file.write(&table, Msr::MISC_ENABLE, 0x80_1080), Ok(MsrWrite::Done));
    assert_eq!(file.read(&table, Msr::MISC_ENABLE), Ok(MsrRead::Value(0x80_1800)));
    assert!(MsrFile::restored(&table, file.clone()).is_ok());
    let mut forged = file;
    forged.set(super::Slot::MiscEnable, 0x80_1080);
    assert!(MsrFile::restored(&table, forged).is_err());
}

#[test]
fn stored_values_are_kept() {
    let (table, mut file) = msrs(Vendor::Amd);
    assert_eq!(file.write(&table, Msr::NB_CFG, 1 << 46), Ok(MsrWrite::Done));
    assert_eq!(file.read(&table, Msr::NB_CFG), Ok(MsrRead::Value(1 << 46)));
    assert_eq!(file.read(&table, Msr::HWCR), Ok(MsrRead::Value(1 << 24)));
}

#[test]
fn others_are_named() {
    let (table, mut file) = msrs(Vendor::Intel);
    for (msr, which) in [
        (Msr::TSC, SpecialMsr::Tsc),
        (Msr::TSC_DEADLINE, SpecialMsr::TscDeadline),
        (Msr::APIC_BASE, SpecialMsr::ApicBase),
        (Msr::EFER, SpecialMsr::Efer),
        (Msr::X2APIC_ICR, SpecialMsr::X2Apic(0x30)),
        (Msr::X2APIC_LAST, SpecialMsr::X2Apic(0xff)),
        (Msr::KVM_SYSTEM_TIME, SpecialMsr::KvmSystemTime),
        (Msr::KVM_WALL_CLOCK_OLD, SpecialMsr::KvmWallClock),
        (Msr::KVM_STEAL_TIME, SpecialMsr::KvmStealTime),
        (Msr(0x203), SpecialMsr::Mtrr(MtrrRegister::Mask(1))),
        (Msr::MTRR_DEF_TYPE, SpecialMsr::Mtrr(MtrrRegister::DefType)),
    ] {
        assert_eq!(file.read(&table, msr), Ok(MsrRead::Special(which)));
        assert_eq!(file.write(&table, msr, 0), Ok(MsrWrite::Special(which)));
    }
    assert_eq!(file.read(&table, Msr::PAT), Ok(MsrRead::Hardware(HardwareMsr::Pat)));
}

#[test]
fn tsc_aux_comes_with_its_instructions() {
    let cpuid = cpuid(Vendor::Amd, &[FeatureBit::RDTSCP]);
    let table = MsrTable::new(&cpuid, &CONFIG);
    assert_eq!(table.lookup(Msr::TSC_AUX), None);
    let (table, _) = msrs(Vendor::Amd);
    assert!(table.lookup(Msr::TSC_AUX).is_some());
}

#[test]
fn efer_rules() {
    let allowed = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
    let long = Efer::LME | Efer::LMA;
    for (old, value, cr0, expected) in [
        (Efer::empty(), 0x901, Cr0::PE, Ok(Efer::SCE | Efer::LME | Efer::NXE)),
        // LMA is not software's.
        (Efer::empty(), 0x400, Cr0::PE, Ok(Efer::empty())),
        (long, 0x100, Cr0::PE | Cr0::PG, Ok(long)),
        (long, 0xd01, Cr0::PE | Cr0::PG, Ok(long | Efer::SCE | Efer::NXE)),
        (long, 0x000, Cr0::PE | Cr0::PG, Err(Gp)),
        (Efer::empty(), 0x100, Cr0::PE | Cr0::PG, Err(Gp)),
        (Efer::empty(), 0x1000, Cr0::PE, Err(Gp)),
        (Efer::empty(), 0x2, Cr0::PE, Err(Gp)),
        (Efer::empty(), 1 << 63, Cr0::PE, Err(Gp)),
    ] {
        assert_eq!(validate::efer(old, value, allowed, cr0), expected, "{value:#x}");
    }
    assert_eq!(validate::efer(Efer::empty(), 0x800, allowed - Efer::NXE, Cr0::PE), Err(Gp));
}

#[test]
fn apic_base_rules() {
    let ram = |gpa: GuestPhysAddr| gpa.as_u64() < 2 << 20;
    for (value, legal) in [
        (0xfee0_0900, true),
        (0xfed4_0900, true),
        (0x20_0900, true),
        (0x1f_f900, false),
        (1 << 38 | 0x900, true),
        (1 << 39 | 0x900, false),
        (1 << 63, false),
    ] {
        assert_eq!(validate::apic_base(value, 39, ram).is_ok(), legal, "{value:#x}");
    }
}

#[test]
fn a_saved_file_is_the_same() {
    let (table, mut file) = msrs(Vendor::Amd);
    file.write(&table, Msr::NB_CFG, 1 << 46).unwrap();
    let text = serde_json::to_string(&file).unwrap();
    let saved = serde_json::from_str::<MsrFile>(&text).unwrap();
    assert_eq!(MsrFile::restored(&table, saved), Ok(file.clone()));
    file.set(Slot::Hwcr, 0);
    assert!(MsrFile::restored(&table, file).is_err());
    assert_eq!(Slot::NbCfg as usize + 1, Slot::COUNT);
}

#[test]
fn a_hidden_feature_takes_its_register_along() {
    let has = |table: &MsrTable, msr| table.lookup(msr).is_some();
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let whole = MsrTable::new(&cpuid(vendor, &[]), &CONFIG);
        assert!(has(&whole, Msr::TSC_DEADLINE) && has(&whole, Msr::TSC_ADJUST));
        let withheld = [FeatureBit::TSC_DEADLINE, FeatureBit::TSC_ADJUST];
        let cut = MsrTable::new(&cpuid(vendor, &withheld), &CONFIG);
        assert!(!has(&cut, Msr::TSC_DEADLINE) && !has(&cut, Msr::TSC_ADJUST));
        assert!(has(&cut, Msr::APIC_BASE));
    }
}
