//! The machine at work: guests made from the bundle, and the loop that runs
//! them.

use crate::cpu::{self, apic, asm, percpu, traps};
use crate::drivers::serial;
use crate::error::HostError;
use crate::hw::{GuestApic, VendorCpu, reset_extended_state};
use crate::mm::guest::GuestSpace;
use crate::mm::{self};
use crate::monitor::{self, Status};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use devices::lapic::{Lapic, Role, TickRatio};
use hvabi::ShutDownKind;
use spin::{Mutex, RwLock};
use vmm::bundle::{Bundle, GuestSettings, OnReset};
use vmm::chipset::{Chipset, DebugPorts};
use vmm::clock::{HostTime, Interruption, TscFrequency, VcpuClock, VmClock};
use vmm::cpuid::{CpuidConfig, CpuidTable, FeatureBit, QuickLeaves, VcpuView};
use vmm::e820;
use vmm::hw::{Backend, HotState};
use vmm::irq::{Posted, Routes};
use vmm::keys::{Keys, Typed};
use vmm::load::{self, LoadSettings, Module, TablesConfig};
use vmm::msr::{MsrConfig, MsrFile, MsrTable};
use vmm::mtrr::Mtrrs;
use vmm::recorder::Recorder;
use vmm::run::{Next, turn};
use vmm::stats::ExitCounts;
use vmm::timer::{HotTimer, NEVER};
use vmm::vcpu::{Vcpu, VcpuCore};
use vmm::vm::{EndReason, Flushed, Host, Kick, Vm};
use x86defs::{Cr4, Xcr0};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// The shortest time for which a guest is let in, in microseconds.
const MIN_SLICE_US: u64 = 20;
/// Without interrupts of the serial port, how often to look at it: 10 ms.
const POLL_HZ: u64 = 100;

/// The machine with virtualization switched on.
#[derive(Debug)]
pub struct Machine<C> {
    cpu: C,
    khz: u64,
    /// The wall clock at boot, and the TSC then.
    boot: HostTime,
}

impl<C: VendorCpu> Machine<C> {
    /// A machine whose TSC counts `khz` in a millisecond, at this wall time.
    #[must_use]
    pub fn new(cpu: C, khz: u64, unix_seconds: u64) -> Self {
        let boot = HostTime { tsc: asm::rdtsc(), wall: unix_seconds * NANOS_PER_SECOND };
        Self { cpu, khz, boot }
    }

    fn time(&self) -> HostTime {
        let tsc = asm::rdtsc();
        let ticks = u128::from(tsc.wrapping_sub(self.boot.tsc));
        let nanos = ticks * 1_000_000 / u128::from(self.khz);
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        HostTime { tsc, wall: self.boot.wall.saturating_add(nanos) }
    }
}

/// A guest's machine.
type Guest = Vm<Arc<GuestSpace>>;

/// This CPU, as the guest's loop sees it.
struct ThisCpu<'a, C> {
    machine: &'a Machine<C>,
    /// The deadline that the timer is armed for.
    armed: u64,
    /// When to look at the serial port again.
    next_poll: u64,
    /// The operator's escape key.
    keys: Keys,
}

impl<C: VendorCpu> Host for ThisCpu<'_, C> {
    fn time(&self) -> HostTime {
        self.machine.time()
    }

    fn console_write(&mut self, bytes: &[u8]) -> usize {
        serial::write(bytes)
    }

    fn console_room(&self) -> usize {
        serial::room()
    }

    fn deadline(&self) -> u64 {
        self.next_poll
    }

    fn arm_timer(&mut self, deadline: u64) {
        if deadline != self.armed {
            self.armed = deadline;
            apic::arm_timer_at(deadline, asm::rdtsc());
        }
    }

    fn note_armed(&mut self, deadline: u64) {
        self.armed = deadline;
    }
}

impl<C: VendorCpu> ThisCpu<'_, C> {
    /// Looks after the machine's interrupts and serial port.
    fn look_after_machine(&mut self, vm: &Guest) {
        asm::take_pending_interrupts();
        let seen = traps::take_seen();
        let timer = traps::TIMER_VECTOR;
        if seen[usize::from(timer / 64)] & 1 << (timer % 64) != 0 {
            self.armed = NEVER;
        }
        let nmis = traps::take_nmis();
        if nmis != 0 {
            log::error!("{nmis} NMI(s) of the machine");
        }
        let stray = traps::take_stray_debug_traps();
        if stray != 0 {
            log::debug!("{stray} debug trap(s) of a guest in the hypervisor");
        }
        let legacy = seen[0] >> traps::LEGACY_VECTOR_BASE & 0xffff;
        let now = asm::rdtsc();
        if legacy != 0 || now >= self.next_poll {
            self.next_poll = now + self.machine.khz * 1000 / POLL_HZ;
            self.console(vm);
        }
    }

    /// Moves bytes between the machine's serial port and the guest's.
    fn console(&mut self, vm: &Guest) {
        serial::drain();
        let tsc = asm::rdtsc();
        // One byte typed can be two for the guest.
        let mut buffer = [0; 8];
        let space = (vm.chipset.console_space() / 2).min(buffer.len());
        let count = serial::read(&mut buffer[..space]);
        for byte in &buffer[..count] {
            match self.keys.feed(*byte) {
                Typed::Guest(bytes) => {
                    vm.console_input(&bytes, vm.now(tsc));
                }
                Typed::PowerButton => vm.press_power_button(),
            }
        }
        vm.flush_console(serial::write, serial::room());
    }
}

/// What a CPU does that has no guest to run.
pub fn idle_cpu() -> ! {
    loop {
        percpu::stop_if_asked(percpu::this().take_requests());
        asm::halt_until_interrupt();
    }
}

/// Runs the bundle's guests until all have ended, then ends the machine's run.
pub fn run<C: VendorCpu>(machine: Machine<C>, bundle: &Bundle<'static>) -> ! {
    let guests = &bundle.manifest().guests;
    let [settings] = guests.as_slice() else {
        monitor::refuse(&HostError::Guest {
            guest: guests.get(1).map(|g| g.name.clone()).unwrap_or_default(),
            why: "this version runs one guest at a time. Cure: leave one in the bundle".into(),
        })
    };
    loop {
        match run_guest(&machine, bundle, settings) {
            Ok(EndReason::Reset) if settings.on_reset == OnReset::Restart => {
                log::info!("guest \"{}\" was reset and starts again", settings.name);
            }
            Ok(reason) => {
                let (status, words) = verdict(&reason);
                monitor::end(status, format_args!("guest {} {words}", settings.name));
            }
            Err(error) => monitor::refuse(&error),
        }
    }
}

/// What a guest's end means for the run.
fn verdict(reason: &EndReason) -> (Status, String) {
    match reason {
        EndReason::PowerOff => (Status::OK, "powered off".into()),
        EndReason::Reset => (Status::OK, "reset".into()),
        EndReason::DebugExit(value) => {
            let [low, ..] = (value << 1 | 1).to_le_bytes();
            (Status(low), alloc::format!("wrote {value:#x} to the debug-exit port"))
        }
        EndReason::ShutDown { kind, status } => match kind {
            ShutDownKind::PowerOff => (Status(*status), "shut down".into()),
            ShutDownKind::Reset => (Status(*status), "asked for a reset".into()),
            ShutDownKind::Crash => (Status((*status).max(Status::CRASHED.0)), "crashed".into()),
        },
        EndReason::Panicked => (Status::CRASHED, "reported a panic".into()),
        EndReason::TripleFault => (Status::CRASHED, "shut its CPU down (triple fault)".into()),
        EndReason::Failed(error) => (Status::CRASHED, alloc::format!("can't go on: {error}")),
    }
}

fn run_guest<C: VendorCpu>(
    machine: &Machine<C>,
    bundle: &Bundle<'static>,
    settings: &GuestSettings,
) -> Result<EndReason, HostError> {
    let (vm, mut vcpu) = build(machine, bundle, settings)?;
    monitor::stage(
        "guest",
        format_args!("\"{}\" starts: {} MiB", settings.name, settings.memory >> 20),
    );
    reset_extended_state();
    #[cfg(feature = "check-entries")]
    if crate::hw::broken::requested(&settings.cmdline).is_some() {
        let plan = crate::hw::broken::Plan { cmdline: &settings.cmdline, slice: machine.khz * 10 };
        mm::with_root(vm.memory.root(), || C::try_broken(&mut vcpu.hw, &mut vcpu.core, plan));
        return Ok(EndReason::PowerOff);
    }
    let mut host = ThisCpu { machine, armed: NEVER, next_poll: 0, keys: Keys::default() };
    while vm.memory.prepare() {}
    let reason = mm::with_root(vm.memory.root(), || {
        loop {
            host.look_after_machine(&vm);
            match turn(&mut vcpu, &vm, &mut host) {
                Next::Continue => {}
                Next::Idle(deadline) => {
                    // What takes long is done while nobody waits.
                    if !vm.memory.prepare() {
                        host.arm_timer(deadline.min(host.deadline()));
                        asm::halt_until_interrupt();
                    }
                }
                Next::End(reason) => break reason,
            }
        }
    });
    // What does not fit is waited for: nothing else is to do.
    while vm.flush_console(serial::write, serial::room()) == Flushed::OutOfRoom {
        serial::drain();
    }
    report(&vm, &vcpu, &reason);
    Ok(reason)
}

/// What the operator should know of a guest's end.
fn report<B: Backend>(vm: &Guest, vcpu: &Vcpu<B>, reason: &EndReason) {
    let crash =
        matches!(reason, EndReason::TripleFault | EndReason::Failed(_) | EndReason::Panicked);
    if crash {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = vcpu.dump(&mut text);
        log::error!("guest \"{}\" {}\n{text}", vm.name, verdict(reason).1);
    }
    let mut text = String::new();
    for (name, count) in vcpu.core.counts.iter().filter(|(_, count)| *count != 0) {
        // Writing to a string does not fail.
        let _ = write!(text, " {name}={count}");
    }
    log::info!(
        "guest \"{}\": {} MiB of RAM touched, exits:{text}",
        vm.name,
        vm.memory.populated_frames() / 256
    );
}

/// A UUID that is the same each time for a guest of this name (RFC 9562,
/// version 8).
fn uuid(name: &str) -> [u8; 16] {
    let hash = |seed: u64| {
        name.bytes()
            .fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325).to_be_bytes());
    bytes[8..].copy_from_slice(&hash(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Makes a guest: its memory, devices and vCPU, its kernel loaded.
fn build<C: VendorCpu>(
    machine: &Machine<C>,
    bundle: &Bundle<'static>,
    settings: &GuestSettings,
) -> Result<(Guest, Vcpu<C::Vcpu>), HostError> {
    let fail = |why: String| HostError::Guest { guest: settings.name.clone(), why };
    if settings.vcpus != 1 {
        return Err(fail(alloc::format!(
            "it asks for {} vCPUs, but this version gives a guest one. Cure: vcpus = 1",
            settings.vcpus
        )));
    }
    let file = |name: &str| {
        bundle.file(name).ok_or_else(|| fail(alloc::format!("the bundle has no file \"{name}\"")))
    };
    let kernel = file(&settings.kernel)?;
    let initrd = settings.initrd.as_deref().map(file).transpose()?;
    let modules = settings
        .modules
        .iter()
        .map(|m| Ok(Module { data: file(&m.file)?, cmdline: &m.cmdline }))
        .collect::<Result<Vec<_>, HostError>>()?;

    let regions = e820::ram_regions(settings.memory).into_iter().collect();
    let space = GuestSpace::new(&settings.name, 0, regions, C::NESTED)?;
    let (tables, state) = mm::with_root(space.root(), || {
        let config = TablesConfig {
            memory: settings.memory,
            vcpus: settings.vcpus,
            uuid: uuid(&settings.name),
        };
        let tables = load::write_tables(&space, &config).map_err(|e| fail(e.to_string()))?;
        let load_settings = LoadSettings {
            memory: settings.memory,
            cmdline: &settings.cmdline,
            initrd,
            modules: &modules,
            rsdp: tables.rsdp,
        };
        let state = load::load(kernel, &space, &load_settings)
            .map_err(|e| fail(alloc::format!("its kernel {}: {e}", settings.kernel)))?;
        Ok::<_, HostError>((tables, state))
    })?;
    space.seal_rom();
    log::debug!("tables of \"{}\" at {:?}", settings.name, tables);

    let frequency = TscFrequency::from_khz(machine.khz).ok_or(HostError::NoClock)?;
    let mut withheld = machine.cpu.withheld().to_vec();
    withheld.push(FeatureBit::PKU);
    let cpuid = Arc::new(CpuidTable::new(
        &cpu::cpuid,
        &CpuidConfig {
            vcpus: 1,
            max_apic_id: 0,
            tsc: frequency,
            apic_timer_hz: 1_000_000_000,
            physical_address_bits: 39,
            xcr0: Xcr0::X87 | Xcr0::SSE | Xcr0::AVX,
            withheld: &withheld,
        },
    ));
    let msr_table = Arc::new(MsrTable::new(
        &cpuid,
        &MsrConfig {
            microcode: 0x0100_0065,
            low_ram_end: e820::low_ram_end(settings.memory),
            high_ram_end: e820::high_ram_end(settings.memory),
        },
    ));
    let shared = Arc::new(Posted::new());
    let mut lapic = Lapic::new(0, TickRatio::from_khz(machine.khz), Role::Bootstrap);
    lapic.set_up_virtual_wire();
    let routes = Routes::new();
    routes.publish(0, lapic.identity());

    let time = machine.time();
    let mut clock = VmClock::new(frequency);
    let mut vcpu_clock = VcpuClock::default();
    clock
        .resume(time, &mut [&mut vcpu_clock], &space, Interruption::None)
        .map_err(|(_, error)| fail(error.to_string()))?;
    let watched = machine.cpu.watches_apic_page(settings.apic);
    let page = watched.then(|| space.add_apic_page()).transpose()?;
    let apic = GuestApic { assist: settings.apic, page };
    let mut hw = machine.cpu.vcpu(space.nested_root(), apic)?;
    hw.set_tsc_offset(clock.tsc_offset(&vcpu_clock));
    let debug = if settings.debug_exit { DebugPorts::Present } else { DebugPorts::Absent };
    let chipset = Arc::new(Chipset::new(time.wall / NANOS_PER_SECOND, debug));
    let space = Arc::new(space);
    let view = VcpuView {
        cr4: Cr4::empty(),
        xcr0: Xcr0::X87,
        apic_base: lapic.apic_base(),
        apic_id: lapic.id(),
    };
    let core = VcpuCore {
        hot: HotState::default(),
        served: false,
        ended_level: None,
        timer: HotTimer::new(machine.khz / 1000 * MIN_SLICE_US),
        leaves: QuickLeaves::new(&cpuid, view),
        chipset: Arc::clone(&chipset),
        memory: Arc::<GuestSpace>::clone(&space),
        lapic,
        clock: vcpu_clock,
        msrs: MsrFile::new(&msr_table),
        tsc_aux: 0,
        cpuid: Arc::clone(&cpuid),
        msr_table,
        shared: Arc::clone(&shared),
        xcr0: 1,
        recent: Recorder::default(),
        counts: ExitCounts::default(),
    };
    let mut vcpu = Vcpu::new(0, core, hw);
    vcpu.start_at(&state);
    let vm = Vm {
        name: settings.name.clone(),
        memory: space,
        clock: RwLock::new(clock),
        chipset,
        mtrrs: Mutex::new(Mtrrs::new(cpuid.physical_address_bits())),
        vcpus: alloc::vec![shared],
        routes,
        // The only vCPU runs on the only CPU that posts to it.
        kick: Kick(Box::new(|_| ())),
    };
    Ok((vm, vcpu))
}
