//! A task switch (SDM: "Task Switching"), for CPUs that leave it to the hypervisor.
//!
//! Up to the point where the old task's state is saved, a fault is one of the old task, which can do
//! again what it did. From there on it is one of the new task, whose selectors are all in their
//! registers before the first of them is looked up.

use super::control;
use super::segments::{ACCESSED, BUSY, Descriptor, find, is_long, is_null, level, refused};
use crate::cpu::{Fault, GuestException, TaskCpu};
use x86defs::exit::{TaskSwitch, TaskSwitchSource};
use x86defs::{
    Cr0, Exception, Gpr, Low, Rflags, Segment, SegmentAttributes, SegmentRegister, Width,
};

/// A task switch to make. The privilege to make it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRequest {
    /// The new task, and the cause.
    pub switch: TaskSwitch,
    /// EIP at which the old task will go on.
    pub next_rip: u64,
    /// RF in the old task's saved flags: set where it goes on at an instruction that has faulted;
    /// `None` leaves it as it is.
    pub resumes: Option<bool>,
    /// An event that no instruction asked for is the cause: error codes say so (EXT).
    pub external: bool,
    /// The error code of the exception that is the cause, for the new task's stack.
    pub error_code: Option<u32>,
}

/// A new task that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct TaskEntry {
    /// The debug trap (T) of its TSS is set: #DB comes before its first instruction.
    pub traps: bool,
}

/// Bytes of a 32-bit TSS that the CPU looks at.
const TSS_BYTES: usize = 104;
/// Reads and writes of a TSS are made in pieces of so many bytes.
const PIECE: usize = 8;

/// General registers in the order in which a TSS has them.
const GPRS: [Gpr; 8] =
    [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];
/// Segment registers in the order in which a TSS has them, LDTR behind them.
const SEGMENTS: [SegmentRegister; 7] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
    SegmentRegister::Ldtr,
];

/// Places in a TSS (SDM: "Task-State Segment (TSS)", "16-Bit Task-State Segment (TSS)").
struct Layout {
    /// Width of a register's place.
    width: Width,
    /// EIP; EFLAGS and the general registers follow.
    eip: usize,
    /// ES; the others follow.
    segments: usize,
    /// So many segment registers, of [`SEGMENTS`] without LDTR, have a place.
    count: usize,
    ldtr: usize,
    /// The least limit.
    limit: u32,
}

const LAYOUT32: Layout =
    Layout { width: Width::B4, eip: 0x20, segments: 0x48, count: 6, ldtr: 0x60, limit: 103 };
const LAYOUT16: Layout =
    Layout { width: Width::B2, eip: 0x0e, segments: 0x22, count: 4, ldtr: 0x2a, limit: 43 };

/// CR3 in a 32-bit TSS.
const CR3: usize = 0x1c;
/// The debug trap in a 32-bit TSS: bit 0.
const TRAP: usize = 0x64;

impl Layout {
    /// That of a TSS with this type; bit 3 tells the width.
    fn of(attributes: SegmentAttributes) -> &'static Self {
        if attributes.kind() & 8 != 0 { &LAYOUT32 } else { &LAYOUT16 }
    }

    fn is_wide(&self) -> bool {
        self.width == Width::B4
    }

    fn bytes(&self) -> usize {
        if self.is_wide() { TSS_BYTES } else { 44 }
    }

    /// The place of the register number `index` behind EIP: EFLAGS, then the general ones.
    fn register(&self, index: usize) -> usize {
        self.eip.wrapping_add(self.width.bytes().wrapping_mul(index))
    }

    /// The place of a segment register; `None` where the TSS has none.
    fn segment(&self, index: usize) -> Option<usize> {
        if SEGMENTS.get(index) == Some(&SegmentRegister::Ldtr) {
            Some(self.ldtr)
        } else if index < self.count {
            Some(self.segments.wrapping_add(self.width.bytes().wrapping_mul(index)))
        } else {
            None
        }
    }
}

/// A TSS as it was read.
struct Tss {
    raw: [u8; TSS_BYTES],
    layout: &'static Layout,
}

impl Tss {
    fn read<C: TaskCpu>(
        cpu: &mut C,
        base: u64,
        layout: &'static Layout,
    ) -> Result<Self, Fault<C::Error>> {
        let mut tss = Self { raw: [0; TSS_BYTES], layout };
        let used = tss.raw.get_mut(..layout.bytes()).unwrap_or_default();
        for (piece, at) in used.chunks_mut(PIECE).zip((0..).step_by(PIECE)) {
            cpu.read_system(place(base, at), piece)?;
        }
        Ok(tss)
    }

    fn word(&self, at: usize) -> u16 {
        self.value(at, Width::B2).low16()
    }

    fn value(&self, at: usize, width: Width) -> u64 {
        let bytes = self.raw.iter().skip(at).take(width.bytes());
        bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn register(&self, index: usize) -> u64 {
        self.value(self.layout.register(index), self.layout.width)
    }

    fn selector(&self, index: usize) -> u16 {
        self.layout.segment(index).map_or(0, |at| self.word(at))
    }
}

/// The linear address of the place `at` of a TSS.
fn place(base: u64, at: usize) -> u64 {
    base.wrapping_add(at as u64).low32().into()
}

/// A task switch that was made or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched<E> {
    /// The new task's state is loaded: an exception is the new task's. Else nothing is changed.
    pub committed: bool,
    /// How the new task begins, or what kept it from that.
    pub outcome: Result<TaskEntry, Fault<E>>,
}

/// Switches to another task.
pub fn task_switch<C: TaskCpu>(cpu: &mut C, request: &TaskRequest) -> Switched<C::Error> {
    let mut committed = false;
    let outcome = match run(cpu, request, &mut committed) {
        Err(Fault::Exception(GuestException { exception, error_code: Some(code), address }))
            if request.external && exception != Exception::PF =>
        {
            let error_code = Some(code | 1);
            Err(GuestException { exception, error_code, address }.into())
        }
        outcome => outcome,
    };
    Switched { committed, outcome }
}

fn run<C: TaskCpu>(
    cpu: &mut C,
    request: &TaskRequest,
    committed: &mut bool,
) -> Result<TaskEntry, Fault<C::Error>> {
    let mode = cpu.mode();
    if is_long(mode) || !cpu.cr0().contains(Cr0::PE) {
        return Err(GuestException::with_zero(Exception::GP, mode).into());
    }
    let source = request.switch.source;
    let nests = matches!(source, TaskSwitchSource::Call | TaskSwitchSource::Gate);
    let mut found = new_task(cpu, &request.switch)?;
    let layout = Layout::of(found.attributes());
    let old = cpu.segment(SegmentRegister::Tr);
    let old_layout = Layout::of(old.attributes);
    if old.limit < old_layout.limit {
        return Err(refused::<C>(Exception::TS, old.selector));
    }
    // All that can fault in the old task does so before anything is written.
    let tss = Tss::read(cpu, found.base(), layout)?;
    for at in (0..old_layout.bytes()).step_by(PIECE) {
        cpu.probe_system(place(old.base, at), PIECE.min(old_layout.bytes().wrapping_sub(at)))?;
    }
    if nests {
        cpu.probe_system(found.base(), 2)?;
    }
    let mut old_descriptor = find(cpu, old.selector, 8)?.filter(|_| !nests);
    cpu.probe_system(found.access_byte(), 1)?;
    if let Some(descriptor) = old_descriptor {
        cpu.probe_system(descriptor.access_byte(), 1)?;
    }

    // The checks above have found all that this writes; a memory that goes away meanwhile leaves
    // the old task half written.
    *committed = true;
    save(cpu, request, old.base, old_layout)?;
    if nests {
        cpu.write_system(found.base(), &old.selector.to_le_bytes())?;
    }
    if let Some(descriptor) = &mut old_descriptor {
        descriptor.unmark(cpu, BUSY)?;
    }
    if source != TaskSwitchSource::Iret {
        found.mark(cpu, BUSY)?;
    }
    let segment = found.segment();
    let attributes = segment.attributes.with_kind(segment.attributes.kind() | 2);
    cpu.set_segment(SegmentRegister::Tr, Segment { attributes, ..segment });
    begin(cpu, request, &tss, nests)
}

/// The descriptor of the new task's TSS, checked.
fn new_task<C: TaskCpu>(cpu: &mut C, switch: &TaskSwitch) -> Result<Descriptor, Fault<C::Error>> {
    let TaskSwitch { selector, source } = *switch;
    let returns = source == TaskSwitchSource::Iret;
    let exception = if returns { Exception::TS } else { Exception::GP };
    let refuse = refused::<C>(exception, selector);
    // A TSS is in the global table only.
    if is_null(selector) || selector & 4 != 0 {
        return Err(refuse);
    }
    let Some(found) = find(cpu, selector, 8)? else { return Err(refuse) };
    let attributes = found.attributes();
    let wanted = if returns { [3, 11] } else { [1, 9] };
    if attributes.code_or_data() || !wanted.contains(&attributes.kind()) {
        return Err(refuse);
    }
    if !attributes.present() {
        return Err(refused::<C>(Exception::NP, selector));
    }
    if found.limit() < Layout::of(attributes).limit {
        return Err(refused::<C>(Exception::TS, selector));
    }
    Ok(found)
}

/// Saves the state of the task that is left.
fn save<C: TaskCpu>(
    cpu: &mut C,
    request: &TaskRequest,
    base: u64,
    layout: &Layout,
) -> Result<(), Fault<C::Error>> {
    let mut flags = cpu.rflags();
    if let Some(resumes) = request.resumes {
        flags.set(Rflags::RF, resumes);
    }
    if request.switch.source == TaskSwitchSource::Iret {
        flags.remove(Rflags::NT);
    }
    let registers = [request.next_rip, flags.bits()];
    let registers = registers.into_iter().chain(GPRS.map(|gpr| cpu.gpr(gpr)));
    for (index, value) in registers.enumerate() {
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..layout.width.bytes()).unwrap_or_default();
        cpu.write_system(place(base, layout.register(index)), bytes)?;
    }
    // LDTR is not saved.
    for (index, register) in SEGMENTS.into_iter().take(layout.count).enumerate() {
        let selector = cpu.segment(register).selector;
        if let Some(at) = layout.segment(index) {
            cpu.write_system(place(base, at), &selector.to_le_bytes())?;
        }
    }
    Ok(())
}

/// Loads the state of the new task, whose TSS is in TR.
fn begin<C: TaskCpu>(
    cpu: &mut C,
    request: &TaskRequest,
    tss: &Tss,
    nests: bool,
) -> Result<TaskEntry, Fault<C::Error>> {
    let status = (cpu.cr0() | Cr0::TS).bits().low16() & 0xf;
    cpu.load_machine_status(status);
    let wide = tss.layout.is_wide();
    let eip = tss.register(0);
    let mut flags = Rflags::from_bits_truncate(tss.register(1)) | Rflags::RESERVED1;
    if nests {
        flags |= Rflags::NT;
    }
    let virtual_8086 = flags.contains(Rflags::VM);
    cpu.set_rip(eip);
    cpu.set_rflags(flags);
    for (index, gpr) in (2..).zip(GPRS) {
        cpu.set_gpr(gpr, tss.register(index));
    }
    let selectors: [u16; SEGMENTS.len()] = core::array::from_fn(|index| tss.selector(index));
    let [_, cs, ss, ..] = selectors;
    let cpl = level(cs);
    for (register, selector) in SEGMENTS.into_iter().zip(selectors) {
        let segment = if virtual_8086 && register != SegmentRegister::Ldtr {
            real_like(selector)
        } else {
            not_yet(register, selector, cpl)
        };
        cpu.set_segment(register, segment);
    }
    cpu.changed_mode();
    if wide && cpu.cr0().contains(Cr0::PG) && !cpu.load_cr3(tss.value(CR3, Width::B4))? {
        let task = cpu.segment(SegmentRegister::Tr).selector;
        return Err(refused::<C>(Exception::TS, task));
    }
    let [.., ldtr] = selectors;
    load_local_table(cpu, ldtr)?;
    if !virtual_8086 {
        load_code(cpu, cs)?;
        load_stack(cpu, ss, cpl)?;
        for (register, selector) in SEGMENTS.into_iter().zip(selectors) {
            if !matches!(
                register,
                SegmentRegister::Cs | SegmentRegister::Ss | SegmentRegister::Ldtr
            ) {
                load_data(cpu, register, selector, cpl)?;
            }
        }
    }
    cpu.changed_mode();
    if let Some(code) = request.error_code {
        control::push(cpu, tss.layout.width, code.into())?;
    }
    if eip > u64::from(cpu.segment(SegmentRegister::Cs).limit) {
        return Err(GuestException::with_zero(Exception::GP, cpu.mode()).into());
    }
    Ok(TaskEntry { traps: wide && tss.word(TRAP) & 1 != 0 })
}

/// A segment register of a task in virtual-8086 mode.
fn real_like(selector: u16) -> Segment {
    let segment = Segment::real_mode(selector, 3);
    Segment { attributes: segment.attributes.with_dpl(3), ..segment }
}

/// A segment register whose selector is there, and whose descriptor is still to be looked up. A
/// fault's handler starts from these: CS and SS have the new task's privilege level.
fn not_yet(register: SegmentRegister, selector: u16, cpl: u8) -> Segment {
    if register == SegmentRegister::Cs {
        let code = Segment::code32(selector);
        return Segment { attributes: code.attributes.with_dpl(cpl), ..code };
    }
    let dpl = if register == SegmentRegister::Ss { cpl } else { 0 };
    let attributes = SegmentAttributes::new().with_dpl(dpl);
    Segment { selector, attributes, ..Segment::UNUSABLE }
}

fn load_local_table<C: TaskCpu>(cpu: &mut C, selector: u16) -> Result<(), Fault<C::Error>> {
    if is_null(selector) {
        return Ok(());
    }
    let refuse = refused::<C>(Exception::TS, selector);
    if selector & 4 != 0 {
        return Err(refuse);
    }
    let Some(found) = find(cpu, selector, 8)? else { return Err(refuse) };
    let attributes = found.attributes();
    if attributes.code_or_data() || attributes.kind() != 2 || !attributes.present() {
        return Err(refuse);
    }
    cpu.set_segment(SegmentRegister::Ldtr, found.segment());
    Ok(())
}

/// The descriptor of a selector of the new task, which is not null.
fn described<C: TaskCpu>(cpu: &mut C, selector: u16) -> Result<Descriptor, Fault<C::Error>> {
    let refuse = refused::<C>(Exception::TS, selector);
    if is_null(selector) {
        return Err(refuse);
    }
    let found = find(cpu, selector, 8)?;
    found.filter(|found| found.attributes().code_or_data()).ok_or(refuse)
}

fn install<C: TaskCpu>(
    cpu: &mut C,
    register: SegmentRegister,
    mut found: Descriptor,
    absent: Exception,
) -> Result<(), Fault<C::Error>> {
    if !found.attributes().present() {
        return Err(refused::<C>(absent, found.selector));
    }
    found.mark(cpu, ACCESSED)?;
    cpu.set_segment(register, found.segment());
    Ok(())
}

fn load_code<C: TaskCpu>(cpu: &mut C, selector: u16) -> Result<(), Fault<C::Error>> {
    let found = described(cpu, selector)?;
    let (dpl, rpl) = (found.attributes().dpl(), level(selector));
    let fits = found.is_code() && if found.is_conforming_code() { dpl <= rpl } else { dpl == rpl };
    if !fits {
        return Err(refused::<C>(Exception::TS, selector));
    }
    install(cpu, SegmentRegister::Cs, found, Exception::NP)
}

fn load_stack<C: TaskCpu>(cpu: &mut C, selector: u16, cpl: u8) -> Result<(), Fault<C::Error>> {
    let found = described(cpu, selector)?;
    let levels = found.attributes().dpl() == cpl && level(selector) == cpl;
    if found.is_code() || !found.has_more() || !levels {
        return Err(refused::<C>(Exception::TS, selector));
    }
    install(cpu, SegmentRegister::Ss, found, Exception::SS)
}

fn load_data<C: TaskCpu>(
    cpu: &mut C,
    register: SegmentRegister,
    selector: u16,
    cpl: u8,
) -> Result<(), Fault<C::Error>> {
    if is_null(selector) {
        return Ok(());
    }
    let found = described(cpu, selector)?;
    let fits = (!found.is_code() || found.has_more())
        && (found.is_conforming_code() || found.open_to(cpl));
    if !fits {
        return Err(refused::<C>(Exception::TS, selector));
    }
    install(cpu, register, found, Exception::NP)
}
