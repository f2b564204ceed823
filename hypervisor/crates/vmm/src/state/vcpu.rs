//! A vCPU that is saved and restored.

use super::extended::Extended;
use super::refused;
use super::registers::{RegistersState, takes};
use crate::apic;
use crate::backend::Backend;
use crate::clock::VcpuClock;
use crate::msr::{MsrFile, validate};
use crate::pv::PvState;
use crate::vcpu::{Activity, Vcpu, VcpuCore};
use crate::vm::Vm;
use alloc::vec::Vec;
use devices::lapic::{Effect, LapicState};
use devices::{Device, RestoreError};
use memory::GuestRam;
use serde::{Deserialize, Serialize};
use state::{Saved, Sections, StateError, Writer};
use x86defs::{Event, EventKind, Exception, GuestPhysAddr, Msr};

impl Saved for MsrFile {
    const NAME: &'static str = "msr-file";
    const VERSION: u16 = 1;
}

impl Saved for VcpuClock {
    const NAME: &'static str = "vcpu-clock";
    const VERSION: u16 = 1;
}

impl Saved for PvState {
    const NAME: &'static str = "kvm";
    const VERSION: u16 = 1;
}

/// An event that waits to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EventState {
    vector: u8,
    kind: KindState,
    error_code: Option<u32>,
}

/// The kind of an event; those of software carry the length of their instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum KindState {
    Interrupt,
    Nmi,
    Exception,
    SoftwareInterrupt(u8),
    SoftwareException(u8),
}

impl From<Event> for EventState {
    fn from(Event { vector, kind, error_code }: Event) -> Self {
        let kind = match kind {
            EventKind::Interrupt => KindState::Interrupt,
            EventKind::Nmi => KindState::Nmi,
            EventKind::Exception => KindState::Exception,
            EventKind::SoftwareInterrupt(length) => KindState::SoftwareInterrupt(length),
            EventKind::SoftwareException(length) => KindState::SoftwareException(length),
        };
        Self { vector, kind, error_code }
    }
}

impl From<EventState> for Event {
    fn from(EventState { vector, kind, error_code }: EventState) -> Self {
        let kind = match kind {
            KindState::Interrupt => EventKind::Interrupt,
            KindState::Nmi => EventKind::Nmi,
            KindState::Exception => EventKind::Exception,
            KindState::SoftwareInterrupt(length) => EventKind::SoftwareInterrupt(length),
            KindState::SoftwareException(length) => EventKind::SoftwareException(length),
        };
        Self { vector, kind, error_code }
    }
}

impl EventState {
    /// Whether an entry may inject it (SDM: "VM-Entry Controls for Event Injection").
    fn is_possible(&self) -> bool {
        let with_code = self.error_code.is_some();
        match self.kind {
            KindState::Interrupt => !with_code,
            KindState::Nmi => self.vector == 2 && !with_code,
            KindState::Exception => {
                let may_have = Exception(self.vector).has_error_code();
                self.vector < 32 && self.vector != 2 && (!with_code || may_have)
            }
            KindState::SoftwareInterrupt(length) | KindState::SoftwareException(length) => {
                (1..=15).contains(&length) && !with_code
            }
        }
    }
}

/// Whether a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ActivityState {
    Running,
    Halted,
    WaitForStartup,
}

/// The state of a vCPU, but for what has a section of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VcpuState {
    /// By number; RSP's place is unused.
    gprs: [u64; 16],
    registers: RegistersState,
    activity: ActivityState,
    event: Option<EventState>,
    nmi_pending: bool,
    extint: bool,
    mismatch_rip: Option<u64>,
    xcr0: u64,
    tsc_aux: u64,
}

impl Saved for VcpuState {
    const NAME: &'static str = "vcpu";
    const VERSION: u16 = 1;
}

impl VcpuState {
    fn of<B: Backend>(vcpu: &Vcpu<B>) -> Self {
        // A field of which nothing is said here does not compile.
        let Vcpu {
            core,
            index: _,
            activity,
            event,
            nmi_pending,
            extint,
            mismatch_rip,
            // A guest whose vCPU has shut down has ended.
            shutdown: _,
            // Between an entry and its exit, or its turn.
            shadow_rip: _,
            gives_way: _,
            // Copies, which are compared before they are used.
            fetched: _,
            decoded: _,
            registers: _,
            hw: _,
        } = vcpu;
        let activity = match activity {
            Activity::Running => ActivityState::Running,
            Activity::Halted => ActivityState::Halted,
            Activity::WaitForStartup => ActivityState::WaitForStartup,
        };
        let mut gprs = core.hot.gpr;
        if let Some(unused) = gprs.get_mut(usize::from(x86defs::Gpr::Rsp.number())) {
            *unused = 0;
        }
        Self {
            gprs,
            registers: RegistersState::of(vcpu),
            activity,
            event: event.map(EventState::from),
            nmi_pending: *nmi_pending,
            extint: *extint,
            mismatch_rip: *mismatch_rip,
            xcr0: core.xcr0,
            tsc_aux: core.tsc_aux,
        }
    }

    fn check<B: Backend>(&self, vcpu: &Vcpu<B>) -> Result<(), RestoreError> {
        let require = |holds: bool, what| if holds { Ok(()) } else { Err(RestoreError(what)) };
        self.registers.check(vcpu)?;
        let possible = self.event.as_ref().is_none_or(EventState::is_possible);
        require(possible, "an event that can't be injected")?;
        let xstate = vcpu.core.cpuid.xstate();
        require(self.xcr0 == 1 || xstate.xsetbv(0, self.xcr0, 0).is_ok(), "an impossible XCR0")?;
        require(takes(&vcpu.core.msr_table, Msr::TSC_AUX, self.tsc_aux), "an impossible TSC_AUX")
    }

    fn put_into<B: Backend>(&self, vcpu: &mut Vcpu<B>) {
        vcpu.core.hot.gpr = self.gprs;
        self.registers.put_into(vcpu);
        vcpu.activity = match self.activity {
            ActivityState::Running => Activity::Running,
            ActivityState::Halted => Activity::Halted,
            ActivityState::WaitForStartup => Activity::WaitForStartup,
        };
        vcpu.event = self.event.map(Event::from);
        vcpu.nmi_pending = self.nmi_pending;
        vcpu.extint = self.extint;
        vcpu.mismatch_rip = self.mismatch_rip;
        vcpu.set_xcr0(self.xcr0);
        vcpu.set_tsc_aux(self.tsc_aux);
        vcpu.write_back();
    }
}

/// Writes the sections of a vCPU that has no CPU. `extended` is its extended state, in the standard
/// format of XSAVE or that of FXSAVE.
pub fn save_vcpu<B: Backend>(vcpu: &Vcpu<B>, extended: &[u8], writer: &mut Writer) {
    let instance = instance(vcpu);
    // A field of which nothing is said here does not compile.
    let VcpuCore {
        lapic,
        clock,
        msrs,
        pv,
        // In the vCPU's section.
        hot: _,
        tsc_aux: _,
        xcr0: _,
        // In the mailbox's, which is the fabric's.
        shared: _,
        // Of one turn, or of one stay on a CPU; what is owed was paid when it left that.
        served: _,
        ended_level: _,
        timer: _,
        hold: _,
        line: _,
        devices_due: _,
        owed: _,
        owed_since: _,
        memory_seen: _,
        exit: _,
        // Copies, which are renewed before an entry.
        leaves: _,
        ports: _,
        // The machine's own, made with the vCPU.
        board: _,
        memory: _,
        cpuid: _,
        msr_table: _,
        idle_cpus: _,
        // For whoever looks after the host.
        recent: _,
        counts: _,
        watch: _,
        counters: _,
    } = &vcpu.core;
    writer.put(instance, &VcpuState::of(vcpu));
    writer.put(instance, &lapic.save());
    writer.put(instance, clock);
    writer.put(instance, msrs);
    writer.put(instance, pv);
    writer.put(instance, &Extended(extended.to_vec()));
}

/// Restores a vCPU that has just been made, in a machine that has been restored. Its extended state
/// is returned, and is the caller's to put in place: it is one that XRSTOR, or FXRSTOR if it has 512
/// bytes, takes; without bytes it is that after reset.
///
/// # Errors
/// Names the section that is missing, or that can't be.
pub fn restore_vcpu<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    sections: &mut Sections<'_>,
) -> Result<Vec<u8>, StateError> {
    let instance = instance(vcpu);
    let state: VcpuState = sections.take(instance)?;
    state.check(vcpu).map_err(refused::<VcpuState>(instance))?;

    let lapic: LapicState = sections.take(instance)?;
    let refuse = refused::<LapicState>(instance);
    vcpu.core.lapic.restore(lapic).map_err(refuse)?;
    let bits = vcpu.core.cpuid.physical_address_bits();
    let is_ram = |page: GuestPhysAddr| vm.memory.is_ram(page);
    validate::apic_base(vcpu.core.lapic.apic_base(), bits.into(), is_ram).map_err(|_| {
        StateError::refused(LapicState::NAME, instance, "the registers lie where they can't")
    })?;

    let clock: VcpuClock = sections.take(instance)?;
    vcpu.core.clock = clock.restored().map_err(refused::<VcpuClock>(instance))?;
    vcpu.core.shared.set_tsc_adjust(vcpu.core.clock.tsc_adjust());

    let msrs: MsrFile = sections.take(instance)?;
    let msrs = MsrFile::restored(&vcpu.core.msr_table, msrs);
    vcpu.core.msrs = msrs.map_err(refused::<MsrFile>(instance))?;

    let pv: PvState = sections.take(instance)?;
    vcpu.core.pv = pv.restored().map_err(refused::<PvState>(instance))?;

    let extended: Extended = sections.take(instance)?;
    extended.check(vcpu.core.cpuid.xstate().offered()).map_err(refused::<Extended>(instance))?;

    state.put_into(vcpu);
    apic::apply(vcpu, vm, Effect::IdentityChanged);
    Ok(extended.0)
}

fn instance<B>(vcpu: &Vcpu<B>) -> u32 {
    u32::try_from(vcpu.index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::used;

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), || VcpuState::of(&used().vcpu));
    }

    #[test]
    fn an_event_that_no_entry_takes_is_refused() {
        let possible =
            |vector, kind, error_code| EventState { vector, kind, error_code }.is_possible();
        assert!(
            possible(14, KindState::Exception, Some(2)) && possible(14, KindState::Exception, None)
        );
        assert!(possible(0x80, KindState::SoftwareInterrupt(2), None));
        assert!(possible(2, KindState::Nmi, None) && possible(0xff, KindState::Interrupt, None));
        for (vector, kind, error_code) in [
            (2, KindState::Exception, None),
            (32, KindState::Exception, None),
            (6, KindState::Exception, Some(0)),
            (3, KindState::Nmi, None),
            (0x31, KindState::Interrupt, Some(0)),
            (0x80, KindState::SoftwareInterrupt(0), None),
            (3, KindState::SoftwareException(16), None),
        ] {
            assert!(!possible(vector, kind, error_code), "{vector} {kind:?} {error_code:?}");
        }
    }
}
