//! A vCPU that plays a script instead of running a guest: what the loop makes
//! of each exit, without hardware. For tests and for fuzz targets (feature `scripted`).

extern crate std;

#[cfg(test)]
mod accesses;
#[cfg(test)]
mod apic;
#[cfg(test)]
mod decoding;
#[cfg(test)]
mod registers;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod tests;

use crate::backend::{Backend, HotState, InstructionEnd, InterruptDelivery, Quirks, Windows};
use crate::clock::{HostTime, Interruption, VcpuClock, VmClock};
use crate::counters::Counters;
use crate::cpuid::{CpuidConfig, CpuidTable, VcpuView};
use crate::end::VmError;
use crate::hot::cpuid::HotLeaves;
use crate::hot::timer::{HotTimer, NEVER, TimerKind};
use crate::msr::mtrr::Mtrrs;
use crate::msr::{MsrConfig, MsrFile, MsrTable};
use crate::pv::{PvFeatures, PvState};
use crate::recorder::Recorder;
use crate::refusals::Refusals;
use crate::registers::{Fields, Registers};
use crate::run::{Next, turn};
use crate::stats::ExitCounts;
use crate::stopwatch::Stopwatch;
use crate::vcpu::{Vcpu, VcpuCore};
use crate::vm::{Host, Vm};
use chipset::fabric::{Fabric, Kick};
use chipset::pci::BoardDevice;
use chipset::test_device::TestDevice;
use chipset::{Board, ConsoleSink, HotPorts};
use config::GuestSettings;
use devices::firmware::FirmwareNews;
use devices::lapic::{InterruptStatus, Lapic, Role, TickRatio, VirtualApicPage};
use devices::pci::DevFn;
use locks::{Rank, RwLock};
use memory::slots::Rights;
use memory::{GuestMemory, GuestRam, HotRam, MemoryError};
use spin::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec;
use std::vec::Vec;
use x86defs::cpuid::CpuidResult;
use x86defs::exit::ExitWithEvent;
use x86defs::time::{Nanos, TscFrequency};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Event, EventKind, GuestPhysAddr, Msr, Rflags, Segment,
    SegmentRegister, VectorRegister, VmExit, Width, Xcr0,
};

const KHZ: u64 = 1_000_000;
/// Bytes of RAM, unless a test says otherwise.
pub const RAM: usize = 2 << 20;
/// The nearest deadline.
pub const LEAST: u64 = 100;

/// RAM at 0, whether the APIC's page is open, the RAM's generation, whether that rises when the
/// guest has been entered, and where ROM begins.
#[derive(Debug)]
pub struct Ram(RefCell<Vec<u8>>, pub(super) Cell<bool>, Cell<u64>, Cell<bool>, Cell<u64>);

impl Ram {
    fn range(
        &self,
        gpa: GuestPhysAddr,
        len: usize,
    ) -> Result<core::ops::Range<usize>, MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        match start.checked_add(len) {
            Some(end) if end <= self.0.borrow().len() => Ok(start..end),
            _ => Err(MemoryError::NotRam(gpa)),
        }
    }

    /// From now on something is taken away from the RAM, or not, each time the guest is entered.
    pub fn changes(&self, changes: bool) {
        self.3.set(changes);
    }

    /// From the address `start` on the RAM is ROM for the guest.
    pub fn seal(&self, start: u64) {
        self.4.set(start);
    }

    /// Puts `contents` into the RAM, which has as many bytes.
    pub fn fill(&self, contents: &[u8]) {
        self.0.borrow_mut().copy_from_slice(contents);
    }

    /// Contents of the RAM, from address 0 on.
    pub fn contents(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let range = self.range(gpa, buffer.len())?;
        buffer.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let range = self.range(gpa, data.len())?;
        self.0.borrow_mut()[range].copy_from_slice(data);
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes[..width.bytes()])?;
        let old = u64::from_le_bytes(bytes);
        if old == current {
            self.write(gpa, &new.to_le_bytes()[..width.bytes()])?;
        }
        Ok(old)
    }
}

impl HotRam for Touched {
    fn touch(&self, gpa: GuestPhysAddr) -> bool {
        gpa.as_u64() < RAM as u64 && gpa.as_u64() >= UNTOUCHED
    }
}

impl GuestRam for Ram {
    fn rights(&self, gpa: GuestPhysAddr) -> Option<Rights> {
        let rights = if gpa.as_u64() < self.4.get() { Rights::Ram } else { Rights::Rom };
        self.range(gpa, 1).is_ok().then_some(rights)
    }

    fn changed_to(&self) -> u64 {
        self.2.get()
    }

    fn pay(&self, seen: &mut u64) -> bool {
        let generation = self.2.get();
        self.2.set(generation + u64::from(self.3.get()));
        core::mem::replace(seen, generation) != generation
    }

    fn populate(&self, gpa: GuestPhysAddr) -> Result<(), MemoryError> {
        self.range(gpa, 1).map(|_| ())
    }

    fn open_apic_page(&self) {
        self.1.set(true);
    }

    fn close_apic_page(&self) {
        self.1.set(false);
    }
}

/// The RAM as the hot handler sees it.
#[derive(Debug)]
pub struct Touched;

/// RAM from here on has not been touched.
pub const UNTOUCHED: u64 = 1 << 20;

/// The hardware's part: registers, and the exits to come.
#[derive(Debug, Default)]
pub struct Script {
    /// The exits to come.
    pub exits: VecDeque<ExitWithEvent>,
    /// The event that each entry injected, if any.
    pub injected: Vec<Option<Event>>,
    /// An exit was asked for once the guest can take an interrupt.
    pub window: bool,
    /// RIP behind the exit's instruction, where this CPU tells.
    pub next_rip: Option<u64>,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The current privilege level.
    pub cpl: u8,
    /// Segment registers by number.
    pub segments: [Segment; 8],
    /// In the shadow of STI or MOV SS.
    pub shadow: bool,
    /// Ways in which this CPU differs.
    pub quirks: Quirks,
    /// DR0 to DR3.
    pub breakpoints: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Offset that is added to the host's TSC, in ticks.
    pub tsc_offset: u64,
    /// How often translations were flushed.
    pub flushes: u32,
    /// Rights of the protection keys.
    pub pkru: u32,
    rsp: u64,
    cr2: u64,
    gdtr: DescriptorTable,
    idtr: DescriptorTable,
    /// The virtual-APIC page, if the CPU delivers interrupts by itself.
    pub page: Option<std::boxed::Box<VirtualApicPage>>,
    /// The interrupt status that goes with that page.
    pub status: InterruptStatus,
    /// EFER.
    pub efer: u64,
    /// YMM registers by number.
    pub ymm: [[u8; 32]; 16],
    /// MMX registers by number, behind them MXCSR.
    pub mmx: [[u8; 8]; 9],
    /// An exception of the x87 waits.
    pub x87_waits: bool,
    /// The page-directory pointers.
    pub pointers: [u64; 4],
    /// The MSRs of [`OTHERS`].
    pub others: [u64; OTHERS.len()],
    injection: Option<Event>,
    nmi_blocked: bool,
}

/// MSRs that the hardware switches with the guest.
const OTHERS: [(Fields, Msr); 9] = [
    (Fields::STAR, Msr::STAR),
    (Fields::LSTAR, Msr::LSTAR),
    (Fields::CSTAR, Msr::CSTAR),
    (Fields::SFMASK, Msr::SFMASK),
    (Fields::KERNEL_GS_BASE, Msr::KERNEL_GS_BASE),
    (Fields::SYSENTER_CS, Msr::SYSENTER_CS),
    (Fields::SYSENTER_ESP, Msr::SYSENTER_ESP),
    (Fields::SYSENTER_EIP, Msr::SYSENTER_EIP),
    (Fields::PAT, Msr::PAT),
];

impl Backend for Script {
    fn fetch(&self, r: &Registers, fields: Fields) {
        for field in fields.iter() {
            match field {
                Fields::RIP => r.rip.fill(self.rip),
                Fields::RSP => r.rsp.fill(self.rsp),
                Fields::RFLAGS => r.rflags.fill(Rflags::from_bits_retain(self.rflags)),
                Fields::SHADOW => r.interrupt_shadow.fill(self.shadow),
                Fields::NMI_BLOCKED => r.nmi_blocked.fill(self.nmi_blocked),
                Fields::CR0 => r.cr0.fill(Cr0::from_bits_retain(self.cr0)),
                Fields::CR2 => r.cr2.fill(self.cr2),
                Fields::CR3 => r.cr3.fill(self.cr3),
                Fields::CR4 => r.cr4.fill(Cr4::from_bits_retain(self.cr4)),
                Fields::EFER => r.efer.fill(Efer::from_bits_retain(self.efer)),
                Fields::BREAKPOINTS => r.breakpoints.fill(self.breakpoints),
                Fields::DR6 => r.dr6.fill(self.dr6),
                Fields::DR7 => r.dr7.fill(self.dr7),
                Fields::GDTR => r.gdtr.fill(self.gdtr),
                Fields::IDTR => r.idtr.fill(self.idtr),
                Fields::CPL => r.cpl.fill(self.cpl),
                Fields::CODE => {
                    r.code.fill(self.segments[SegmentRegister::Cs as usize].attributes);
                }
                Fields::PKRU => r.pkru.fill(self.pkru),
                Fields::POINTERS => r.pointers.fill(self.pointers),
                _ => {
                    for ((other, msr), value) in OTHERS.into_iter().zip(self.others) {
                        if field == other {
                            r.msr(msr).unwrap().1.fill(value);
                        }
                    }
                    for register in SegmentRegister::ALL {
                        if field == Fields::segment(register) {
                            r.segment(register).fill(self.segments[register as usize]);
                        }
                    }
                }
            }
        }
    }
    fn store(&mut self, r: &Registers) {
        for field in r.changed().iter() {
            match field {
                Fields::RIP => self.rip = r.rip.get(),
                Fields::RSP => self.rsp = r.rsp.get(),
                Fields::RFLAGS => self.rflags = r.rflags.get().bits(),
                Fields::SHADOW => self.shadow = r.interrupt_shadow.get(),
                Fields::NMI_BLOCKED => self.nmi_blocked = r.nmi_blocked.get(),
                Fields::CR0 => self.cr0 = r.cr0.get().bits(),
                Fields::CR2 => self.cr2 = r.cr2.get(),
                Fields::CR3 => self.cr3 = r.cr3.get(),
                Fields::CR4 => self.cr4 = r.cr4.get().bits(),
                Fields::EFER => self.efer = r.efer.get().bits(),
                Fields::BREAKPOINTS => self.breakpoints = r.breakpoints.get(),
                Fields::DR6 => self.dr6 = r.dr6.get(),
                Fields::DR7 => self.dr7 = r.dr7.get(),
                Fields::GDTR => self.gdtr = r.gdtr.get(),
                Fields::IDTR => self.idtr = r.idtr.get(),
                Fields::POINTERS => self.pointers = r.pointers.get(),
                _ => {
                    for ((other, msr), value) in OTHERS.into_iter().zip(&mut self.others) {
                        if field == other {
                            *value = r.msr(msr).unwrap().1.get();
                        }
                    }
                    for register in SegmentRegister::ALL {
                        if field == Fields::segment(register) {
                            self.segments[register as usize] = r.segment(register).get();
                        }
                    }
                    if field == Fields::SS {
                        self.cpl = r.cpl.get();
                    }
                }
            }
        }
        self.flushes += u32::from(r.changed().intersects(Fields::TRANSLATION));
    }
    fn invalidate(&mut self) {
        self.flushes += 1;
    }
    fn inject(&mut self, event: Event) {
        self.injection = Some(event);
        self.nmi_blocked |= event.kind == EventKind::Nmi;
    }
    fn injection(&self) -> Option<Event> {
        self.injection
    }
    fn ask(&mut self, windows: Windows) {
        self.window = windows.interrupt;
    }
    fn interrupt_delivery(&self) -> InterruptDelivery {
        if self.page.is_some() { InterruptDelivery::Virtual } else { InterruptDelivery::Injected }
    }
    fn give_apic(&mut self, lapic: &mut Lapic) {
        if let Some(page) = &self.page {
            self.status = lapic.hand_over(page, self.status);
        }
    }
    fn take_apic(&mut self, lapic: &mut Lapic) {
        if let Some(page) = &self.page {
            lapic.take_back(page, self.status);
        }
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn vector(&mut self, register: VectorRegister) -> Option<[u8; 32]> {
        let mut value = [0; 32];
        match register {
            VectorRegister::Mmx(_) if self.x87_waits => return None,
            VectorRegister::Mmx(n) => value[..8].copy_from_slice(&self.mmx[usize::from(n)]),
            VectorRegister::Xmm(n) => value[..16].copy_from_slice(&self.ymm[usize::from(n)][..16]),
            VectorRegister::Ymm(n) => value = self.ymm[usize::from(n)],
            VectorRegister::Mxcsr => value[..8].copy_from_slice(&self.mmx[8]),
        }
        Some(value)
    }
    fn set_vector(&mut self, register: VectorRegister, value: [u8; 32]) -> Option<()> {
        match register {
            VectorRegister::Mmx(_) if self.x87_waits => return None,
            VectorRegister::Mmx(n) => self.mmx[usize::from(n)].copy_from_slice(&value[..8]),
            VectorRegister::Xmm(n) => self.ymm[usize::from(n)][..16].copy_from_slice(&value[..16]),
            VectorRegister::Ymm(n) => self.ymm[usize::from(n)] = value,
            VectorRegister::Mxcsr => self.mmx[8].copy_from_slice(&value[..8]),
        }
        Some(())
    }
    fn run(&mut self, core: &mut VcpuCore) {
        self.injected.push(self.injection.take());
        core.exit = self.exits.pop_front().expect("an exit in the script");
    }
    fn instruction_end(&self) -> InstructionEnd {
        self.next_rip.map_or(InstructionEnd::Unknown, InstructionEnd::Rip)
    }
    fn timer(&self) -> TimerKind {
        TimerKind::Machine
    }
    fn quirks(&self) -> Quirks {
        self.quirks
    }
    fn dump(&self, _: &mut dyn core::fmt::Write) -> core::fmt::Result {
        Ok(())
    }
}

/// Place of the device for tests.
pub const PLACE: DevFn = DevFn::new(3, 0).unwrap();

/// A console that keeps what it gets.
#[derive(Debug)]
pub struct Tape {
    /// Bytes that came.
    pub bytes: Mutex<Vec<u8>>,
    /// How much it says it would take.
    pub room: AtomicUsize,
}

impl Default for Tape {
    fn default() -> Self {
        Self { bytes: Mutex::default(), room: AtomicUsize::new(1 << 16) }
    }
}

impl ConsoleSink for Tape {
    fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    fn put(&self, bytes: &[u8]) {
        self.bytes.lock().extend_from_slice(bytes);
    }
}

/// The machine: a clock that stands where the test puts it, and the console.
#[derive(Debug)]
pub struct Stage {
    /// The TSC.
    pub tsc: u64,
    /// The TSC when the guest's time would have been 0 if it had always run here.
    pub boot: u64,
    /// The TSC since when the vCPU's waits for a CPU are counted.
    pub waits_since: u64,
    /// The console.
    pub console: Arc<Tape>,
    /// A device at [`PLACE`] of the PCI bus, which has its turn as soon as it is woken.
    pub device: Arc<TestDevice>,
    /// Deadline that the CPU's timer is armed for, as a value of the TSC.
    pub armed: u64,
    /// Entries into the guest's firmware that were told.
    pub firmware: Vec<FirmwareNews>,
    /// Refusals of programs that were told, each with how many were not.
    pub refused: Vec<(VmError, u64)>,
}

impl Host for Stage {
    fn tsc(&self) -> u64 {
        self.tsc
    }

    fn time(&self) -> HostTime {
        HostTime { tsc: self.tsc, wall: 1_700_000_000_000_000_000 + self.tsc - self.boot }
    }

    fn deadline(&self) -> u64 {
        NEVER
    }

    fn arm_timer(&mut self, deadline: u64) {
        self.armed = deadline;
    }

    fn note_armed(&mut self, deadline: u64) {
        self.armed = deadline;
    }

    fn firmware_entered(&mut self, _: &str, news: FirmwareNews) {
        self.firmware.push(news);
    }

    fn program_refused(&mut self, _: &str, why: &VmError, untold: u64) {
        self.refused.push((why.clone(), untold));
    }
}

/// A guest with one scripted vCPU.
#[derive(Debug)]
pub struct Play {
    /// The guest.
    pub vm: Vm<Ram>,
    /// The vCPU.
    pub vcpu: Vcpu<Script>,
    /// The machine.
    pub stage: Stage,
}

impl Default for Play {
    fn default() -> Self {
        Self::new()
    }
}

impl Play {
    /// A guest with [`RAM`], all NOPs.
    #[must_use]
    pub fn new() -> Self {
        Self::with_ram(RAM)
    }

    /// A guest with so many bytes of RAM, all NOPs.
    #[must_use]
    pub fn with_ram(ram: usize) -> Self {
        Self::with(ram, 1)
    }

    /// A guest with so many vCPUs, of which the first alone is played.
    #[must_use]
    pub fn with_vcpus(vcpus: usize) -> Self {
        Self::with(RAM, vcpus)
    }

    /// A guest with so many bytes of RAM and so many vCPUs, of which the first alone is played.
    #[must_use]
    pub fn with(ram: usize, vcpus: usize) -> Self {
        let host = |leaf: u32, _: u32| match leaf {
            0 => CpuidResult { eax: 0xd, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 },
            0x8000_0000 => CpuidResult { eax: 0x8000_001e, ..CpuidResult::default() },
            0x8000_0008 => CpuidResult { eax: 0x3030, ..CpuidResult::default() },
            _ => CpuidResult { eax: 0, ebx: 0, ecx: u32::MAX, edx: u32::MAX },
        };
        let frequency = TscFrequency::from_khz(KHZ).unwrap();
        let config = CpuidConfig {
            vcpus: 1,
            max_apic_id: 0,
            tsc: frequency,
            apic_timer_hz: 1_000_000_000,
            physical_address_bits: 39,
            xcr0: Xcr0::X87 | Xcr0::SSE,
            pv: PvFeatures::all(),
            calls: hvabi::CallSet::ALL,
            signature: config::Signature::Steward,
            withheld: &[],
            hidden: config::FeatureSet::default(),
        };
        let cpuid = Arc::new(CpuidTable::new(&host, &config));
        let msr_config = MsrConfig { microcode: 1, low_ram_end: ram as u64, high_ram_end: 1 << 32 };
        let msr_table = Arc::new(MsrTable::new(&cpuid, &msr_config));
        let memory = Ram(
            RefCell::new(vec![0x90; ram]),
            Cell::new(true),
            Cell::new(1),
            Cell::new(false),
            Cell::new(u64::MAX),
        );
        let mut clock = VmClock::new(frequency);
        let mut vcpu_clock = VcpuClock::default();
        let start = HostTime { tsc: 0, wall: 0 };
        clock.resume(start, &mut [&mut vcpu_clock], &memory, Interruption::None).unwrap();
        let mut lapic = Lapic::new(0, TickRatio::from_khz(KHZ), Role::Bootstrap);
        lapic.set_up_virtual_wire();
        let fabric = Arc::new(Fabric::new(vcpus, Kick(std::boxed::Box::new(|_| ()))));
        fabric.routes().publish(0, lapic.identity());
        let console = Arc::new(Tape::default());
        let mut settings = GuestSettings::new("guest", ram as u64, "kernel");
        settings.debug_exit = true;
        let sink = Arc::<Tape>::clone(&console);
        let wall = 1_700_000_000_000_000_000;
        let device = TestDevice::inline(PLACE, Arc::clone(&fabric)).unwrap();
        let any: Arc<dyn BoardDevice> = Arc::<TestDevice>::clone(&device);
        let devices = [(PLACE, any)];
        let board = Arc::new(Board::new(wall, &settings, Arc::clone(&fabric), sink, &devices));
        let view = VcpuView {
            cr4: Cr4::empty(),
            xcr0: Xcr0::X87,
            apic_base: lapic.apic_base(),
            apic_id: 0,
        };
        let core = VcpuCore {
            hot: HotState::default(),
            served: false,
            hold: chipset::HOT_DECLINES,
            ended_level: None,
            timer: HotTimer::new(LEAST, 5 * LEAST / 2),
            leaves: HotLeaves::new(&cpuid, view),
            board: Arc::clone(&board),
            memory: Arc::new(Touched),
            lapic,
            line: clock.line(),
            devices_due: (Nanos(u64::MAX), NEVER),
            clock: vcpu_clock,
            msrs: MsrFile::new(&msr_table),
            tsc_aux: 0,
            cpuid: Arc::clone(&cpuid),
            msr_table,
            shared: Arc::clone(fabric.mailbox(0).unwrap()),
            xcr0: 1,
            recent: Recorder::default(),
            counts: ExitCounts::default(),
            watch: Stopwatch::default(),
            pv: PvState::default(),
            counters: Counters::default(),
            ports: HotPorts::default(),
            owed: 0,
            owed_since: 0,
            memory_seen: 0,
            idle_cpus: Arc::default(),
            exit: ExitWithEvent::NOTHING,
        };
        let mut segments = [Segment::data32(16); 8];
        segments[SegmentRegister::Cs as usize] = Segment::code32(8);
        let script = Script { rip: 0x1000, rflags: 2, cr0: 0x11, segments, ..Script::default() };
        let vm = Vm {
            name: "play".into(),
            memory,
            clock: RwLock::new(Rank::Clock, clock),
            board,
            mtrrs: Mutex::new(Mtrrs::new(39)),
            fabric,
            refusals: Refusals::default(),
        };
        let stage = Stage {
            tsc: 0,
            boot: 0,
            waits_since: 0,
            console,
            device,
            armed: NEVER,
            firmware: Vec::new(),
            refused: Vec::new(),
        };
        Self { vm, vcpu: Vcpu::new(0, core, script), stage }
    }

    /// One turn that ends in `exit`.
    pub fn turn(&mut self, exit: VmExit) -> Next {
        self.turn_with(exit, None)
    }

    /// One turn that ends in `exit`, which interrupts the delivery of an event.
    pub fn turn_with(&mut self, exit: VmExit, interrupted: Option<Event>) -> Next {
        self.vcpu.hw.exits.push_back(ExitWithEvent { exit, interrupted });
        let next = turn(&mut self.vcpu, &self.vm, &mut self.stage);
        // Tests look at the script's registers, and change them.
        self.vcpu.settle();
        next
    }

    /// One turn of a vCPU that must not be entered.
    pub fn idle(&mut self) -> Next {
        let next = turn(&mut self.vcpu, &self.vm, &mut self.stage);
        self.vcpu.settle();
        next
    }

    /// Puts code at RIP.
    pub fn code(&mut self, bytes: &[u8]) {
        self.vm.memory.write(GuestPhysAddr::new(self.vcpu.hw.rip), bytes).unwrap();
    }

    /// The event that the last entry injected, if any.
    pub fn injected(&self) -> Option<Event> {
        *self.vcpu.hw.injected.last().unwrap()
    }
}
