//! Task switches, by the manual's chapter (SDM: "Task Switching").
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/machine.rs"]
mod machine;

use machine::{ABSENT, Machine};
use x86defs::control::CpuMode;
use x86defs::exit::{TaskSwitch, TaskSwitchSource};
use x86defs::{
    Cr0, DescriptorTable, Exception, Gpr, Rflags, Segment, SegmentAttributes, SegmentRegister,
};
use x86emu::{Cpu, Fault, GuestException, TaskCpu, TaskEntry, TaskRequest, task_switch};

const GDT: u64 = 0x2000;
const OLD_TSS: u64 = 0x3000;
const NEW_TSS: u64 = 0x4000;
const OLD: u16 = 0x20;
const NEW: u16 = 0x28;
const LOCAL: u16 = 0x30;
/// Ring-3 code and data, conforming code, code that is absent, data that is absent.
const USER_CODE: u16 = 0x3b;
const USER_DATA: u16 = 0x43;
const CONFORMING: u16 = 0x48;
const ABSENT_CODE: u16 = 0x50;
const ABSENT_DATA: u16 = 0x58;
const SMALL_CODE: u16 = 0x60;
const READ_ONLY: u16 = 0x68;
const BEYOND: u16 = 0x1000;

impl TaskCpu for Machine {
    fn probe_system(&mut self, linear: u64, len: usize) -> Result<(), Fault<()>> {
        self.probe_write(linear, len)
    }

    fn load_cr3(&mut self, cr3: u64) -> Result<bool, Fault<()>> {
        // A test looks for it there.
        self.gprs[15] = cr3;
        Ok(cr3 != 0xbad0)
    }

    fn changed_mode(&mut self) {
        self.cpl = self.segments[SegmentRegister::Ss as usize].attributes.dpl();
        let big = self.segments[SegmentRegister::Cs as usize].attributes.big();
        self.mode = match (self.rflags.contains(Rflags::VM), big) {
            (true, _) => CpuMode::Virtual8086,
            (false, true) => CpuMode::Protected32,
            (false, false) => CpuMode::Protected16,
        };
    }
}

fn put(machine: &mut Machine, at: u64, bytes: &[u8]) {
    machine.memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn word(machine: &Machine, at: u64) -> u16 {
    u16::from_le_bytes(machine.memory[at as usize..][..2].try_into().unwrap())
}

fn long(machine: &Machine, at: u64) -> u32 {
    u32::from_le_bytes(machine.memory[at as usize..][..4].try_into().unwrap())
}

fn describe(machine: &mut Machine, selector: u16, base: u64, limit: u64, access: u64, flags: u64) {
    let bits = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24) << 56;
    put(machine, GDT + u64::from(selector & !7), &bits.to_le_bytes());
}

fn access(machine: &Machine, selector: u16) -> u8 {
    machine.memory[(GDT + u64::from(selector & !7) + 5) as usize]
}

/// Flags of the old task: CF, IF, NT.
const OLD_FLAGS: u64 = 0x4203;

/// Two tasks; TSSs of 32 bits if `wide`.
fn machine(wide: bool) -> Machine {
    let mut m = Machine::new(CpuMode::Protected32, &[]);
    m.tables[0] = DescriptorTable { base: GDT, limit: 0x7f };
    let flat = 0xf_ffff;
    describe(&mut m, 0x08, 0, flat, 0x9a, 0xc);
    describe(&mut m, 0x10, 0, flat, 0x92, 0xc);
    let (kind, limit) = if wide { (0x89, 103) } else { (0x81, 43) };
    describe(&mut m, OLD, OLD_TSS, limit, kind | 2, 0);
    describe(&mut m, NEW, NEW_TSS, limit, kind, 0);
    describe(&mut m, LOCAL, 0x5000, 0x1f, 0x82, 0);
    describe(&mut m, USER_CODE, 0, flat, 0xfa, 0xc);
    describe(&mut m, USER_DATA, 0, flat, 0xf2, 0xc);
    describe(&mut m, CONFORMING, 0, flat, 0x9e, 0xc);
    describe(&mut m, ABSENT_CODE, 0, flat, 0x1a, 0xc);
    describe(&mut m, ABSENT_DATA, 0, flat, 0x12, 0xc);
    describe(&mut m, SMALL_CODE, 0, 0xff, 0x9a, 4);
    describe(&mut m, READ_ONLY, 0, flat, 0x90, 0xc);
    let tss = Segment {
        selector: OLD,
        attributes: SegmentAttributes::from_bits(kind as u16 | 2),
        limit: limit as u32,
        base: OLD_TSS,
    };
    m.set_segment(SegmentRegister::Tr, tss);
    m.segments[SegmentRegister::Cs as usize].selector = 8;
    m.cr0 = Cr0::PE | Cr0::PG;
    m.rflags = Rflags::from_bits_retain(OLD_FLAGS);
    for gpr in 0..8 {
        m.gprs[gpr] = 0x1111_0000 + gpr as u64;
    }
    if wide {
        put(&mut m, NEW_TSS + 0x1c, &0x9000_u32.to_le_bytes());
        put(&mut m, NEW_TSS + 0x20, &0x1234_u32.to_le_bytes());
        put(&mut m, NEW_TSS + 0x24, &0x0000_0206_u32.to_le_bytes());
        for i in 0..8_u32 {
            put(&mut m, NEW_TSS + 0x28 + u64::from(i) * 4, &(0x2222_6000 + i * 8).to_le_bytes());
        }
        put(&mut m, NEW_TSS + 0x38, &0x6000_u32.to_le_bytes());
        for (at, selector) in [(0x48, 0x10), (0x4c, 8), (0x50, 0x10), (0x54, 0x10), (0x60, LOCAL)] {
            put(&mut m, NEW_TSS + at, &selector.to_le_bytes());
        }
    } else {
        put(&mut m, NEW_TSS + 0x0e, &0x1234_u16.to_le_bytes());
        put(&mut m, NEW_TSS + 0x10, &0x0206_u16.to_le_bytes());
        for i in 0..8_u16 {
            put(&mut m, NEW_TSS + 0x12 + u64::from(i) * 2, &(0x6000 + i * 8).to_le_bytes());
        }
        for (at, selector) in [(0x22, 0x10), (0x24, 8), (0x26, 0x10), (0x28, 0x10), (0x2a, LOCAL)] {
            put(&mut m, NEW_TSS + at, &selector.to_le_bytes());
        }
    }
    m
}

fn request(source: TaskSwitchSource) -> TaskRequest {
    TaskRequest {
        switch: TaskSwitch { selector: NEW, source },
        next_rip: 0x1007,
        resumes: Some(false),
        external: false,
        error_code: None,
    }
}

fn exception(exception: Exception, code: u32) -> Result<TaskEntry, Fault<()>> {
    let error_code = Some(code);
    Err(Fault::Exception(GuestException { exception, error_code, address: None }))
}

const QUIET: Result<TaskEntry, Fault<()>> = Ok(TaskEntry { traps: false });

/// The GDT's access byte of the new task, ready for `source`.
fn ready(m: &mut Machine, source: TaskSwitchSource) {
    if source == TaskSwitchSource::Iret {
        m.memory[(GDT + u64::from(NEW) + 5) as usize] |= 2;
    }
}

const SOURCES: [TaskSwitchSource; 4] = [
    TaskSwitchSource::Call,
    TaskSwitchSource::Iret,
    TaskSwitchSource::Jump,
    TaskSwitchSource::Gate,
];

#[test]
fn each_field_of_32_bits() {
    for source in SOURCES {
        let mut m = machine(true);
        ready(&mut m, source);
        assert_eq!(task_switch(&mut m, &request(source)).outcome, QUIET, "{source:?}");
        let nests = matches!(source, TaskSwitchSource::Call | TaskSwitchSource::Gate);
        let returns = source == TaskSwitchSource::Iret;
        // The old task.
        assert_eq!(long(&m, OLD_TSS + 0x20), 0x1007);
        let flags = if returns { OLD_FLAGS & !0x4000 } else { OLD_FLAGS };
        assert_eq!(u64::from(long(&m, OLD_TSS + 0x24)), flags, "{source:?}");
        for (i, gpr) in [0, 1, 2, 3, 4, 5, 6, 7].into_iter().enumerate() {
            assert_eq!(long(&m, OLD_TSS + 0x28 + i as u64 * 4), 0x1111_0000 + gpr);
        }
        for (at, selector) in [(0x48, 0x10), (0x4c, 8), (0x50, 0x10), (0x54, 0x10), (0x5c, 0x10)] {
            assert_eq!(word(&m, OLD_TSS + at), selector, "{at:#x}");
        }
        assert_eq!((long(&m, OLD_TSS + 0x1c), word(&m, OLD_TSS + 0x60)), (0, 0), "CR3, LDTR");
        assert_eq!(access(&m, OLD) & 2 != 0, nests, "{source:?}: busy");
        // The new task.
        assert_eq!(access(&m, NEW) & 2, 2);
        assert_eq!(word(&m, NEW_TSS), if nests { OLD } else { 0 });
        let nested = if nests { 0x4000 } else { 0 };
        assert_eq!((m.rip, m.rflags.bits()), (0x1234, 0x206 | nested));
        assert_eq!((m.gprs[0], m.gprs[4], m.gprs[7]), (0x2222_6000, 0x6000, 0x2222_6038));
        assert!(m.cr0.contains(Cr0::TS | Cr0::PE));
        assert_eq!(m.gprs[15], 0x9000, "CR3");
        let tr = m.segment(SegmentRegister::Tr);
        assert_eq!((tr.selector, tr.base, tr.limit), (NEW, NEW_TSS, 103));
        assert_eq!(tr.attributes.kind(), 11);
        let ldtr = m.segment(SegmentRegister::Ldtr);
        assert_eq!((ldtr.selector, ldtr.base, ldtr.limit), (LOCAL, 0x5000, 0x1f));
        assert_eq!(m.segment(SegmentRegister::Cs), Segment::code32(8));
        assert_eq!(m.segment(SegmentRegister::Ss), Segment::data32(0x10));
        assert!(!m.segment(SegmentRegister::Fs).attributes.present());
    }
}

#[test]
fn each_field_of_16_bits() {
    for source in SOURCES {
        let mut m = machine(false);
        ready(&mut m, source);
        assert_eq!(task_switch(&mut m, &request(source)).outcome, QUIET, "{source:?}");
        assert_eq!(word(&m, OLD_TSS + 0x0e), 0x1007);
        for i in 0..8 {
            assert_eq!(word(&m, OLD_TSS + 0x12 + i * 2), i as u16);
        }
        for (at, selector) in [(0x22, 0x10), (0x24, 8), (0x26, 0x10), (0x28, 0x10), (0x2a, 0)] {
            assert_eq!(word(&m, OLD_TSS + at), selector, "{at:#x}");
        }
        let nests = matches!(source, TaskSwitchSource::Call | TaskSwitchSource::Gate);
        let nested = if nests { 0x4000 } else { 0 };
        assert_eq!((m.rip, m.rflags.bits()), (0x1234, 0x206 | nested));
        for (i, gpr) in m.gprs[..8].iter().enumerate() {
            assert_eq!(*gpr as u16, 0x6000 + i as u16 * 8);
        }
        assert_eq!(m.gprs[15], 0, "CR3 stays");
        assert_eq!(m.segment(SegmentRegister::Tr).attributes.kind(), 3);
        assert_eq!(m.segment(SegmentRegister::Ldtr).selector, LOCAL);
        for null in [SegmentRegister::Fs, SegmentRegister::Gs] {
            assert_eq!(m.segment(null), Segment::UNUSABLE);
        }
    }
}

/// Switches that are refused before anything is written.
#[test]
fn faults_of_the_old_task() {
    use TaskSwitchSource::{Call, Gate, Iret, Jump};
    type Change = fn(&mut Machine, &mut TaskRequest);
    let cases: [(TaskSwitchSource, Change, Exception, u16); 13] = [
        (Call, |m, _| m.memory[(GDT + 0x2d) as usize] |= 2, Exception::GP, NEW),
        (Jump, |m, _| m.memory[(GDT + 0x2d) as usize] |= 2, Exception::GP, NEW),
        (Gate, |m, _| m.memory[(GDT + 0x2d) as usize] |= 2, Exception::GP, NEW),
        (Iret, |m, _| m.memory[(GDT + 0x2d) as usize] &= !2, Exception::TS, NEW),
        (Call, |m, _| m.memory[(GDT + 0x2d) as usize] &= 0x7f, Exception::NP, NEW),
        (Iret, |m, _| m.memory[(GDT + 0x2d) as usize] &= 0x7f, Exception::NP, NEW),
        (Jump, |m, _| m.memory[(GDT + 0x28) as usize] = 102, Exception::TS, NEW),
        (Jump, |_, r| r.switch.selector = BEYOND, Exception::GP, BEYOND),
        (Iret, |_, r| r.switch.selector = BEYOND, Exception::TS, BEYOND),
        (Jump, |_, r| r.switch.selector = NEW | 4, Exception::GP, NEW | 4),
        (Iret, |_, r| r.switch.selector = 0, Exception::TS, 0),
        (Call, |_, r| r.switch.selector = LOCAL, Exception::GP, LOCAL),
        (Call, |m, _| m.segments[SegmentRegister::Tr as usize].limit = 102, Exception::TS, OLD),
    ];
    for (source, change, fault, selector) in cases {
        let (mut m, mut r) = (machine(true), request(source));
        ready(&mut m, source);
        change(&mut m, &mut r);
        let before = m.clone();
        let wanted = exception(fault, selector.into());
        assert_eq!(task_switch(&mut m, &r).outcome, wanted, "{source:?} {selector:#x}");
        m.accesses = before.accesses;
        assert_eq!(m, before, "{source:?} {selector:#x}");
    }
}

#[test]
fn a_tss_that_is_absent() {
    // The page before the absent one can't be written.
    for (base, old, at, code) in [
        (ABSENT - 0x20, false, ABSENT, 0),
        (ABSENT, false, ABSENT, 0),
        (ABSENT, true, ABSENT, 2),
        (ABSENT - 0x20, true, ABSENT - 0x20, 3),
        (ABSENT - 0x200, false, ABSENT - 0x200, 3),
    ] {
        let mut m = machine(true);
        if old {
            m.segments[SegmentRegister::Tr as usize].base = base;
        } else {
            describe(&mut m, NEW, base, 103, 0x89, 0);
        }
        let before = m.clone();
        let error = GuestException::page_fault(at, code);
        assert_eq!(
            task_switch(&mut m, &request(TaskSwitchSource::Call)).outcome,
            Err(Fault::Exception(error))
        );
        m.accesses = before.accesses;
        assert_eq!(m, before);
    }
}

/// Faults of segments are the new task's: its selectors are there, and TR is its own.
#[test]
fn faults_of_the_new_task() {
    for (at, selector, fault) in [
        (0x60, BEYOND, Exception::TS),
        (0x60, 0x10, Exception::TS),
        (0x60, LOCAL | 4, Exception::TS),
        (0x4c, 0, Exception::TS),
        (0x4c, BEYOND, Exception::TS),
        (0x4c, 0x10, Exception::TS),
        (0x4c, 0x0b, Exception::TS),
        (0x4c, USER_CODE & !3, Exception::TS),
        (0x4c, ABSENT_CODE, Exception::NP),
        (0x50, 0, Exception::TS),
        (0x50, BEYOND, Exception::TS),
        (0x50, 8, Exception::TS),
        (0x50, READ_ONLY, Exception::TS),
        (0x50, USER_DATA, Exception::TS),
        (0x50, ABSENT_DATA, Exception::SS),
        (0x54, BEYOND, Exception::TS),
        (0x54, NEW, Exception::TS),
        (0x54, ABSENT_DATA, Exception::NP),
        (0x5c, BEYOND, Exception::TS),
    ] {
        for external in [false, true] {
            let mut m = machine(true);
            put(&mut m, NEW_TSS + at, &selector.to_le_bytes());
            let r = TaskRequest { external, ..request(TaskSwitchSource::Gate) };
            let code = u32::from(selector & !3) | u32::from(external);
            assert_eq!(
                task_switch(&mut m, &r).outcome,
                exception(fault, code),
                "{at:#x} {selector:#x}"
            );
            assert_eq!(m.segment(SegmentRegister::Tr).selector, NEW);
            assert_eq!(m.segment(SegmentRegister::Cs).selector, word(&m, NEW_TSS + 0x4c));
            assert_eq!((m.rip, m.gprs[Gpr::Rsp as usize]), (0x1234, 0x6000));
            assert_eq!(long(&m, OLD_TSS + 0x20), 0x1007);
        }
    }
}

#[test]
fn levels_of_the_new_task() {
    let mut m = machine(true);
    for (at, selector) in [(0x4c, USER_CODE), (0x50, USER_DATA), (0x48, 0), (0x54, USER_DATA)] {
        put(&mut m, NEW_TSS + at, &selector.to_le_bytes());
    }
    assert_eq!(task_switch(&mut m, &request(TaskSwitchSource::Jump)).outcome, QUIET);
    assert_eq!((m.cpl, m.segment(SegmentRegister::Ss).attributes.dpl()), (3, 3));
    // Data of ring 0 is not for it; conforming code is.
    for (selector, wanted) in [(0x10, exception(Exception::TS, 0x10)), (CONFORMING, QUIET)] {
        let mut m = machine(true);
        for (at, selector) in [(0x4c, USER_CODE), (0x50, USER_DATA), (0x48, 0), (0x54, selector)] {
            put(&mut m, NEW_TSS + at, &selector.to_le_bytes());
        }
        assert_eq!(task_switch(&mut m, &request(TaskSwitchSource::Jump)).outcome, wanted);
    }
}

#[test]
fn the_rest_of_the_state() {
    // A debug trap.
    let mut m = machine(true);
    put(&mut m, NEW_TSS + 0x64, &[1]);
    let trap = Ok(TaskEntry { traps: true });
    assert_eq!(task_switch(&mut m, &request(TaskSwitchSource::Jump)).outcome, trap);
    // An error code, on the new stack.
    let mut m = machine(true);
    let fault = TaskRequest {
        error_code: Some(0x1235),
        external: true,
        resumes: Some(true),
        ..request(TaskSwitchSource::Gate)
    };
    assert_eq!(task_switch(&mut m, &fault).outcome, QUIET);
    assert_eq!((m.gprs[Gpr::Rsp as usize], long(&m, 0x5ffc)), (0x5ffc, 0x1235));
    assert_eq!(u64::from(long(&m, OLD_TSS + 0x24)), OLD_FLAGS | 1 << 16, "RF");
    let mut m = machine(false);
    put(&mut m, NEW_TSS + 0x1a, &0x6000_u16.to_le_bytes());
    assert_eq!(task_switch(&mut m, &fault).outcome, QUIET);
    assert_eq!((m.gprs[Gpr::Rsp as usize], word(&m, 0x5ffe)), (0x5ffe, 0x1235));
    // EIP beyond CS.
    let mut m = machine(true);
    put(&mut m, NEW_TSS + 0x4c, &SMALL_CODE.to_le_bytes());
    let wanted = exception(Exception::GP, 0);
    assert_eq!(task_switch(&mut m, &request(TaskSwitchSource::Jump)).outcome, wanted);
    // Page-directory pointers that are malformed; no CR3 without paging.
    let mut m = machine(true);
    put(&mut m, NEW_TSS + 0x1c, &0xbad0_u32.to_le_bytes());
    let wanted = exception(Exception::TS, NEW.into());
    assert_eq!(task_switch(&mut m, &request(TaskSwitchSource::Jump)).outcome, wanted);
    let mut m = machine(true);
    m.cr0 = Cr0::PE;
    assert_eq!(task_switch(&mut m, &request(TaskSwitchSource::Jump)).outcome, QUIET);
    assert_eq!(m.gprs[15], 0);
    // Virtual-8086 mode: selectors are paragraphs.
    let mut m = machine(true);
    put(&mut m, NEW_TSS + 0x26, &[2]);
    assert_eq!(task_switch(&mut m, &request(TaskSwitchSource::Jump)).outcome, QUIET);
    assert_eq!((m.mode, m.cpl), (CpuMode::Virtual8086, 3));
    let cs = m.segment(SegmentRegister::Cs);
    assert_eq!((cs.base, cs.limit, cs.attributes.into_bits()), (0x80, 0xffff, 0xf3));
}
