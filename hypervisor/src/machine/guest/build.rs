//! From a guest's settings to a guest, in pieces that each take little time:
//! memory, tables and kernel ([`lay_out`]), then the vCPUs one by one
//! ([`Assembly`]).

use super::slots::{Private, Published, Slot, Slots};
use super::{Guest, Names, Places, Services, services};
use crate::cpu::{self, tsc};
use crate::error::HostError;
use crate::hw::{ExtendedState, GuestApic, VendorCpu};
use crate::machine::console::Console;
use crate::machine::world::World;
use crate::mm::guest::{GuestSpace, Reservation};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use chipset::fabric::{Fabric, Kick, Posted};
use chipset::test_device::LAID_BYTES;
use chipset::{Board, HotPorts};
use config::GuestSettings;
use core::sync::atomic::AtomicUsize;
use devices::lapic::{Lapic, Role, TickRatio};
use loader::{self, LoadError, LoadSettings, Loading, Module, TablesConfig, e820};
use locks::{Rank, RwLock};
use spin::Mutex;
use vmm::backend::{Backend, HotState};
use vmm::clock::{Interruption, TscAgreement, VcpuClock, VmClock};
use vmm::counters::Counters;
use vmm::cpuid::{CpuidConfig, CpuidTable, FeatureBit, VcpuView, model};
use vmm::hot::cpuid::HotLeaves;
use vmm::hot::timer::{HotTimer, NEVER};
use vmm::msr::mtrr::Mtrrs;
use vmm::msr::{MsrConfig, MsrFile, MsrTable};
use vmm::pv::{PvFeatures, PvState};
use vmm::recorder::Recorder;
use vmm::refusals::Refusals;
use vmm::stats::ExitCounts;
use vmm::stopwatch::Stopwatch;
use vmm::vcpu::{Vcpu, VcpuCore};
use vmm::vm::Vm;
use x86defs::bits::Low;
use x86defs::exit::ExitWithEvent;
use x86defs::time::Nanos;
use x86defs::{CpuState, Cr4, GuestPhysAddr, Xcr0};

/// The shortest time for which a guest is let in, in microseconds.
const MIN_SLICE_US: u64 = 20;
/// The longest time for which a vCPU owes a device its wake-up, in microseconds.
const DEBT_US: u64 = 50;

/// Parts that all vCPUs of a guest are made from.
struct Parts {
    khz: u64,
    cpuid: Arc<CpuidTable>,
    msrs: Arc<MsrTable>,
    fabric: Arc<Fabric>,
    board: Arc<Board>,
    space: Arc<GuestSpace>,
    apic: GuestApic,
    idle_cpus: Arc<AtomicUsize>,
}

/// A file of the bundle, or one that was uploaded.
pub(super) type FindFile<'a, 'f> = &'a dyn Fn(&str) -> Option<&'f [u8]>;

/// Begins to set a guest's memory aside.
///
/// # Errors
/// [`HostError`] says what is short.
pub(super) fn reserve(settings: &GuestSettings) -> Result<Reservation, HostError> {
    let regions = e820::ram_regions(settings.memory).into_iter().collect();
    // A test device may lay that much over RAM.
    let spare = if settings.debug_exit { LAID_BYTES } else { 0 };
    Reservation::new(&settings.name, regions, spare)
}

/// Makes a guest's memory of what was set aside, with the firmware's tables in it, and plans
/// what else is to be written there.
///
/// # Errors
/// [`HostError`] says what is wrong with its settings or files, or what is
/// short; nothing is left behind then.
pub(super) fn lay_out<'f, C: VendorCpu>(
    settings: &'f GuestSettings,
    reservation: Reservation,
    file: FindFile<'_, 'f>,
) -> Result<(Arc<GuestSpace>, Loading<'f>), HostError> {
    let fail = |why: String| HostError::Guest { guest: settings.name.clone(), why };
    let file =
        |name: &str| file(name).ok_or_else(|| fail(alloc::format!("there is no file \"{name}\"")));
    let kernel = file(&settings.kernel)?;
    let module = |name: &'f str, cmdline| Ok(Module { name, data: file(name)?, cmdline });
    let initrd = settings.initrd.as_deref().map(|name| module(name, "")).transpose()?;
    let modules = settings
        .modules
        .iter()
        .map(|m| module(&m.file, &m.cmdline))
        .collect::<Result<Vec<_>, HostError>>()?;
    let space = GuestSpace::new(reservation, C::NESTED)?;
    let config = TablesConfig {
        memory: settings.memory,
        vcpus: settings.vcpus,
        uuid: settings.machine_uuid().0,
    };
    let tables =
        space.enter(|| loader::write_tables(&space, &config)).map_err(|e| fail(e.to_string()))?;
    log::debug!("tables of \"{}\" at {:?}", settings.name, tables);
    let load_settings = LoadSettings {
        memory: settings.memory,
        kernel: &settings.kernel,
        cmdline: &settings.cmdline,
        initrd,
        modules: &modules,
        rsdp: tables.rsdp,
    };
    let loading = Loading::new(kernel, &load_settings).map_err(|e| refused(settings, &e))?;
    Ok((Arc::new(space), loading))
}

/// The guest's kernel can't be loaded, because of `error`.
pub(super) fn refused(settings: &GuestSettings, error: &LoadError) -> HostError {
    let why = alloc::format!("its kernel {}: {error}", settings.kernel);
    HostError::Guest { guest: settings.name.clone(), why }
}

/// A guest of which some vCPUs are still to be made.
pub(super) struct Assembly<C: VendorCpu> {
    settings: Arc<GuestSettings>,
    console: Arc<Console>,
    parts: Parts,
    clock: VmClock,
    state: CpuState,
    places: Arc<Places>,
    services: Services,
    slots: Vec<Slot<C::Vcpu>>,
}

impl<C: VendorCpu> Assembly<C> {
    /// Makes what the vCPUs share.
    ///
    /// # Errors
    /// [`HostError`] says what is short.
    pub(super) fn new(
        world: &'static World,
        vendor: &C,
        settings: &Arc<GuestSettings>,
        console: &Arc<Console>,
        space: Arc<GuestSpace>,
        state: CpuState,
    ) -> Result<Self, HostError> {
        let frequency = world.rate();
        let mut withheld = vendor.withheld().to_vec();
        let host = match tsc::is_dependable() {
            true => TscAgreement::Matched,
            false => {
                withheld.push(FeatureBit::INVARIANT_TSC);
                TscAgreement::Apart
            }
        };
        let vcpus = settings.vcpus;
        let mut pv = PvFeatures::all();
        pv.set(PvFeatures::EOI, !vendor.delivers_interrupts(settings.apic));
        let cpuid = Arc::new(CpuidTable::new(
            &cpu::cpuid,
            &CpuidConfig {
                vcpus: vcpus.low16(),
                max_apic_id: vcpus.saturating_sub(1),
                tsc: frequency,
                apic_timer_hz: model::APIC_TIMER_HZ,
                physical_address_bits: GuestPhysAddr::BITS,
                xcr0: model::XCR0,
                pv: pv.usable(settings.hypercalls.0),
                calls: settings.hypercalls.0,
                signature: settings.signature,
                withheld: &withheld,
                hidden: settings.cpu.hidden(),
            },
        ));
        if let Some(feature) = settings.cpu.show.iter().find(|name| !cpuid.shows(name)) {
            return Err(HostError::Guest {
                guest: settings.name.clone(),
                why: alloc::format!(
                    "it is to have the CPU feature \"{feature}\", which this machine's CPU or \
                     Steward does not have. Cure: take it out of the list `show`, or another machine"
                ),
            });
        }
        let msrs = Arc::new(MsrTable::new(
            &cpuid,
            &MsrConfig {
                microcode: model::MICROCODE,
                low_ram_end: e820::low_ram_end(settings.memory),
                high_ram_end: e820::high_ram_end(settings.memory),
            },
        ));
        let time = world.time();
        let places = Arc::new(Places::new(vcpus as usize));
        let kick = {
            let places = Arc::clone(&places);
            Kick(Box::new(move |index| places.kick(index, world)))
        };
        let fabric = Arc::new(Fabric::new(vcpus as usize, kick));
        let sink = Arc::<Console>::clone(console);
        let (devices, services) = services::make(settings, &space, &fabric, world);
        let board = Board::new(time.wall, settings, Arc::clone(&fabric), sink, &devices);
        let board = Arc::new(board);
        let watched = vendor.watches_apic_page(settings.apic);
        let page = watched.then(|| space.add_apic_page()).transpose()?;
        let apic = GuestApic { assist: settings.apic, page };
        let mut clock = VmClock::new(frequency).on_host(host);
        // No vCPU has a clock in memory yet that could be wrong.
        let _ = clock.resume(time, &mut [], &space, Interruption::None);
        Ok(Self {
            settings: Arc::clone(settings),
            console: Arc::clone(console),
            parts: Parts {
                khz: frequency.khz(),
                cpuid,
                msrs,
                fabric,
                board,
                space,
                apic,
                idle_cpus: Arc::clone(&world.idle_cpus),
            },
            clock,
            state,
            places,
            services,
            slots: Vec::new(),
        })
    }

    /// The guest's memory.
    pub(super) fn space(&self) -> &Arc<GuestSpace> {
        &self.parts.space
    }

    /// Makes one more vCPU; whether there are more to make.
    ///
    /// # Errors
    /// [`HostError`] says what is short.
    pub(super) fn add_vcpu(&mut self, vendor: &C) -> Result<bool, HostError> {
        let index = self.slots.len();
        let Some(mailbox) = self.parts.fabric.mailbox(index) else { return Ok(false) };
        let mut vcpu = self.parts.vcpu(vendor, index, mailbox, &self.clock)?;
        if index == 0 {
            vcpu.start_at(&self.state);
        } else {
            vcpu.init();
        }
        self.parts.fabric.routes().publish(index, vcpu.core.lapic.identity());
        vcpu.settle();
        C::unload(&mut vcpu.hw);
        let private = Private {
            vcpu,
            extended: ExtendedState::new()?,
            last_cpu: None,
            left: 0,
            published: 0,
        };
        let published = Mutex::new(Published::default());
        self.slots.push(Slot { private: locks::Mutex::new(Rank::Life, private), published });
        Ok(true)
    }

    /// The guest. Its time begins now.
    pub(super) fn finish(mut self, world: &World, names: Names) -> Arc<Guest<Slots<C>>> {
        let time = world.time();
        self.clock.pause(time.tsc);
        // No vCPU has a clock in memory yet that could be wrong, as in `new`.
        let _ = self.clock.resume(time, &mut [], &self.parts.space, Interruption::None);
        for slot in &mut self.slots {
            let vcpu = &mut slot.private.get_mut().vcpu;
            vcpu.hw.set_tsc_offset(self.clock.tsc_offset(&vcpu.core.clock));
            C::unload(&mut vcpu.hw);
        }
        let vm = Vm {
            name: self.settings.name.clone(),
            mtrrs: Mutex::new(Mtrrs::new(self.parts.cpuid.physical_address_bits())),
            memory: self.parts.space,
            clock: RwLock::new(Rank::Clock, self.clock),
            board: self.parts.board,
            fabric: self.parts.fabric,
            refusals: Refusals::default(),
        };
        let vcpus = Slots(self.slots);
        let scheduled = (self.places, self.services);
        Arc::new(Guest::new(self.settings, vm, vcpus, scheduled, self.console, names, time.tsc))
    }
}

impl Parts {
    /// vCPU `index`.
    fn vcpu<C: VendorCpu>(
        &self,
        vendor: &C,
        index: usize,
        mailbox: &Arc<Posted>,
        vm_clock: &VmClock,
    ) -> Result<Vcpu<C::Vcpu>, HostError> {
        let role = if index == 0 { Role::Bootstrap } else { Role::Application };
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        let has = |feature| self.cpuid.has(feature);
        let mut lapic = Lapic::new(id, TickRatio::from_khz(self.khz), role)
            .with_features(has(FeatureBit::X2APIC), has(FeatureBit::TSC_DEADLINE));
        if role == Role::Bootstrap {
            lapic.set_up_virtual_wire();
        }
        let mut hw = vendor.vcpu(self.space.nested_root(), self.apic)?;
        let clock = VcpuClock::default();
        hw.set_tsc_offset(vm_clock.tsc_offset(&clock));
        let view = VcpuView {
            cr4: Cr4::empty(),
            xcr0: Xcr0::X87,
            apic_base: lapic.apic_base(),
            apic_id: lapic.id(),
        };
        let core = VcpuCore {
            hot: HotState::default(),
            served: false,
            hold: chipset::HOT_DECLINES,
            ended_level: None,
            timer: HotTimer::new(self.khz / 1000 * MIN_SLICE_US, self.khz / 1000 * DEBT_US),
            leaves: HotLeaves::new(&self.cpuid, view),
            board: Arc::clone(&self.board),
            memory: Arc::<GuestSpace>::clone(&self.space),
            lapic,
            line: vm_clock.line(),
            devices_due: (Nanos(u64::MAX), NEVER),
            clock,
            msrs: MsrFile::new(&self.msrs),
            tsc_aux: 0,
            cpuid: Arc::clone(&self.cpuid),
            msr_table: Arc::clone(&self.msrs),
            shared: Arc::clone(mailbox),
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
            idle_cpus: Arc::clone(&self.idle_cpus),
            exit: ExitWithEvent::NOTHING,
        };
        Ok(Vcpu::new(index, core, hw))
    }
}
