//! From a guest's settings to a guest: memory, devices and vCPUs made, the
//! kernel loaded, its place in the scheduler taken.

use super::console::Console;
use super::guest::{Guest, Places, Private, Slot};
use super::{NANOS_PER_SECOND, World, scheduling};
use crate::cpu::{self, asm};
use crate::error::HostError;
use crate::hw::{ExtendedState, GuestApic, VendorCpu};
use crate::mm;
use crate::mm::guest::GuestSpace;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use devices::lapic::{Lapic, Role, TickRatio};
use spin::{Mutex, RwLock};
use vmm::bundle::{Bundle, GuestSettings};
use vmm::chipset::{Chipset, DebugPorts};
use vmm::clock::{Interruption, TscFrequency, VcpuClock, VmClock};
use vmm::cpuid::{CpuidConfig, CpuidTable, FeatureBit, QuickLeaves, VcpuView};
use vmm::e820;
use vmm::hw::{Backend, HotState};
use vmm::irq::{Posted, Routes};
use vmm::load::{self, EntryState, LoadSettings, Module, TablesConfig};
use vmm::msr::{MsrConfig, MsrFile, MsrTable};
use vmm::mtrr::Mtrrs;
use vmm::recorder::Recorder;
use vmm::sched::{self, CpuSet, Kind};
use vmm::stats::ExitCounts;
use vmm::timer::HotTimer;
use vmm::vcpu::{Vcpu, VcpuCore};
use vmm::vm::{Kick, Vm};
use x86defs::bits::Low;
use x86defs::{Cr4, Xcr0};

/// The shortest time for which a guest is let in, in microseconds.
const MIN_SLICE_US: u64 = 20;

/// What all vCPUs of a guest are made from.
struct Parts {
    khz: u64,
    cpuid: Arc<CpuidTable>,
    msrs: Arc<MsrTable>,
    chipset: Arc<Chipset>,
    space: Arc<GuestSpace>,
    apic: GuestApic,
}

impl<C: VendorCpu> World<C> {
    /// Makes a guest. Nothing of it runs before [`admit`](Self::admit).
    ///
    /// # Errors
    /// [`HostError`] says what is wrong with its settings or files, or what is
    /// short; nothing is left behind then.
    pub(super) fn build(
        &'static self,
        vendor: &C,
        bundle: &Bundle<'static>,
        settings: &GuestSettings,
        console: Arc<Console>,
    ) -> Result<Arc<Guest<C>>, HostError> {
        let fail = |why: String| HostError::Guest { guest: settings.name.clone(), why };
        let (space, state) = self.load(bundle, settings)?;
        let frequency = TscFrequency::from_khz(self.khz).ok_or(HostError::NoClock)?;
        let mut withheld = vendor.withheld().to_vec();
        withheld.push(FeatureBit::PKU);
        let vcpus = settings.vcpus;
        let cpuid = Arc::new(CpuidTable::new(
            &cpu::cpuid,
            &CpuidConfig {
                vcpus: vcpus.low16(),
                max_apic_id: vcpus.saturating_sub(1),
                tsc: frequency,
                apic_timer_hz: 1_000_000_000,
                physical_address_bits: 39,
                xcr0: Xcr0::X87 | Xcr0::SSE | Xcr0::AVX,
                withheld: &withheld,
            },
        ));
        let msrs = Arc::new(MsrTable::new(
            &cpuid,
            &MsrConfig {
                microcode: 0x0100_0065,
                low_ram_end: e820::low_ram_end(settings.memory),
                high_ram_end: e820::high_ram_end(settings.memory),
            },
        ));
        let time = self.time();
        let debug = if settings.debug_exit { DebugPorts::Present } else { DebugPorts::Absent };
        let chipset = Arc::new(Chipset::new(time.wall / NANOS_PER_SECOND, debug));
        let watched = vendor.watches_apic_page(settings.apic);
        let page = watched.then(|| space.add_apic_page()).transpose()?;
        let apic = GuestApic { assist: settings.apic, page };
        let parts = Parts { khz: self.khz, cpuid, msrs, chipset, space, apic };

        let mut clock = VmClock::new(frequency);
        let mut clocks: Vec<VcpuClock> = (0..vcpus).map(|_| VcpuClock::default()).collect();
        let mut each: Vec<&mut VcpuClock> = clocks.iter_mut().collect();
        clock
            .resume(time, &mut each, &parts.space, Interruption::None)
            .map_err(|(_, error)| fail(error.to_string()))?;
        let routes = Routes::new();
        let mut slots = Vec::new();
        let mut posted = Vec::new();
        for (index, vcpu_clock) in clocks.into_iter().enumerate() {
            let mut vcpu = parts.vcpu(vendor, index, vcpu_clock, &clock)?;
            if index == 0 {
                vcpu.start_at(&state);
            } else {
                vcpu.init();
            }
            routes.publish(index, vcpu.core.lapic.identity());
            posted.push(Arc::clone(&vcpu.core.shared));
            vendor.unload(&mut vcpu.hw);
            let extended = ExtendedState::new()?;
            let private = Private { vcpu, extended, last_cpu: None };
            slots.push(Slot { private: Mutex::new(private) });
        }
        let places = Arc::new(Places::new(slots.len()));
        let kick = {
            let places = Arc::clone(&places);
            Kick(Box::new(move |index| places.kick(index, self)))
        };
        let vm = Vm {
            name: settings.name.clone(),
            mtrrs: Mutex::new(Mtrrs::new(parts.cpuid.physical_address_bits())),
            memory: parts.space,
            clock: RwLock::new(clock),
            chipset: parts.chipset,
            vcpus: posted,
            routes,
            kick,
        };
        let id = self.schedule(settings, &places, slots.len())?;
        Ok(Arc::new(Guest::new(settings.clone(), vm, slots, places, console, id)))
    }

    /// Takes the guest's place in the scheduler.
    fn schedule(
        &self,
        _settings: &GuestSettings,
        places: &Places,
        vcpus: usize,
    ) -> Result<sched::GuestId, HostError> {
        let mut scheduler = self.scheduler.lock();
        let now = asm::rdtsc();
        let id = scheduler.add_guest(sched::GuestSettings::default(), now).map_err(scheduling)?;
        for index in 0..vcpus {
            match scheduler.add(id, Kind::Vcpu, CpuSet::ALL, now) {
                Ok(entity) => places.set_entity(index, entity),
                Err(error) => {
                    // It was just added, and nothing of it runs.
                    let _ = scheduler.remove_guest(id, now);
                    return Err(scheduling(error));
                }
            }
        }
        Ok(id)
    }

    /// Makes the guest's memory and puts its kernel there.
    fn load(
        &self,
        bundle: &Bundle<'static>,
        settings: &GuestSettings,
    ) -> Result<(Arc<GuestSpace>, EntryState), HostError> {
        let fail = |why: String| HostError::Guest { guest: settings.name.clone(), why };
        let file = |name: &str| {
            bundle
                .file(name)
                .ok_or_else(|| fail(alloc::format!("the bundle has no file \"{name}\"")))
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
        Ok((Arc::new(space), state))
    }
}

impl Parts {
    /// vCPU `index`.
    fn vcpu<C: VendorCpu>(
        &self,
        vendor: &C,
        index: usize,
        clock: VcpuClock,
        vm_clock: &VmClock,
    ) -> Result<Vcpu<C::Vcpu>, HostError> {
        let role = if index == 0 { Role::Bootstrap } else { Role::Application };
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        let mut lapic = Lapic::new(id, TickRatio::from_khz(self.khz), role);
        if role == Role::Bootstrap {
            lapic.set_up_virtual_wire();
        }
        let mut hw = vendor.vcpu(self.space.nested_root(), self.apic)?;
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
        hold: vmm::trace::HOT_DECLINES,
            ended_level: None,
            timer: HotTimer::new(self.khz / 1000 * MIN_SLICE_US),
            leaves: QuickLeaves::new(&self.cpuid, view),
            chipset: Arc::clone(&self.chipset),
            memory: Arc::<GuestSpace>::clone(&self.space),
            lapic,
            clock,
            msrs: MsrFile::new(&self.msrs),
            tsc_aux: 0,
            cpuid: Arc::clone(&self.cpuid),
            msr_table: Arc::clone(&self.msrs),
            shared: Arc::new(Posted::new()),
            xcr0: 1,
            recent: Recorder::default(),
            counts: ExitCounts::default(),
        };
        Ok(Vcpu::new(index, core, hw))
    }
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
