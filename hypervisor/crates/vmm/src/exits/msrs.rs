//! RDMSR and WRMSR.

use super::instruction::Done;
use crate::apic;
use crate::backend::Backend;
use crate::clock::Interruption;
use crate::end::VmError;
use crate::msr::{HardwareMsr, MsrRead, MsrWrite, SpecialMsr, validate};
use crate::vcpu::Vcpu;
use crate::vm::{Host, Vm};
use devices::lapic::Ticks;
use memory::GuestRam;
use x86defs::bits::{Low, high32, join};
use x86defs::{Event, Gp, Gpr, Msr};

pub(super) fn read<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut H,
) -> Result<Done, VmError> {
    let msr = Msr(vcpu.gpr(Gpr::Rcx).low32());
    match value(vcpu, vm, host, msr) {
        Ok(value) => {
            vcpu.set_gpr(Gpr::Rax, value.low32().into());
            vcpu.set_gpr(Gpr::Rdx, high32(value).into());
            Ok(Done::Complete)
        }
        Err(Gp) => Ok(Done::Fault(Event::gp0())),
    }
}

fn value<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &H,
    msr: Msr,
) -> Result<u64, Gp> {
    let tsc = host.tsc();
    match vcpu.core.msrs.read(&vcpu.core.msr_table, msr)? {
        MsrRead::Value(value) => Ok(value),
        MsrRead::Hardware(HardwareMsr::TscAux) => Ok(vcpu.core.tsc_aux),
        MsrRead::Hardware(_) => vcpu.msr(msr).ok_or(Gp),
        MsrRead::Special(special) => match special {
            SpecialMsr::Tsc => Ok(vm.clock.read().tsc(&vcpu.core.clock, tsc)),
            SpecialMsr::TscAdjust => Ok(vcpu.core.clock.tsc_adjust()),
            SpecialMsr::Efer => Ok(vcpu.efer().bits()),
            SpecialMsr::ApicBase | SpecialMsr::TscDeadline | SpecialMsr::X2Apic(_) => {
                vcpu.core.lapic.msr_read(msr, Ticks(vcpu.core.line.ticks(tsc))).map_err(|_| Gp)
            }
            SpecialMsr::Mtrr(register) => Ok(vm.mtrrs.lock().read(register)),
            SpecialMsr::KvmSystemTime => Ok(vcpu.core.clock.system_time()),
            SpecialMsr::KvmWallClock => Ok(vcpu.core.clock.wall_clock()),
            SpecialMsr::KvmStealTime => Ok(vcpu.core.pv.steal.msr()),
            SpecialMsr::KvmPvEoi => Ok(vcpu.core.pv.eoi.msr()),
        },
    }
}

pub(super) fn write<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut H,
) -> Result<Done, VmError> {
    let msr = Msr(vcpu.gpr(Gpr::Rcx).low32());
    let value = join(vcpu.gpr(Gpr::Rdx).low32(), vcpu.gpr(Gpr::Rax).low32());
    match set(vcpu, vm, host, msr, value) {
        Ok(()) => Ok(Done::Complete),
        Err(Gp) => Ok(Done::Fault(Event::gp0())),
    }
}

fn set<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &H,
    msr: Msr,
    value: u64,
) -> Result<(), Gp> {
    let tsc = host.tsc();
    let ticks = Ticks(vcpu.core.line.ticks(tsc));
    let core = &mut vcpu.core;
    match core.msrs.write(&core.msr_table, msr, value)? {
        MsrWrite::Done => Ok(()),
        MsrWrite::Hardware(HardwareMsr::TscAux) => {
            vcpu.set_tsc_aux(value);
            Ok(())
        }
        MsrWrite::Hardware(_) => {
            if vcpu.set_msr(msr, value) {
                Ok(())
            } else {
                Err(Gp)
            }
        }
        MsrWrite::Special(special) => match special {
            SpecialMsr::Tsc => {
                let changed = vm.clock.read().write_tsc(&mut core.clock, tsc, value);
                tsc_changed(vcpu, vm, changed.offset, ticks);
                Ok(())
            }
            SpecialMsr::TscAdjust => {
                let changed = vm.clock.read().write_tsc_adjust(&mut core.clock, value);
                tsc_changed(vcpu, vm, changed.offset, ticks);
                Ok(())
            }
            SpecialMsr::Efer => {
                let allowed = core.cpuid.efer_allowed();
                let efer = validate::efer(vcpu.efer(), value, allowed, vcpu.cr0())?;
                vcpu.set_efer(efer);
                Ok(())
            }
            SpecialMsr::ApicBase | SpecialMsr::TscDeadline | SpecialMsr::X2Apic(_) => {
                if special == SpecialMsr::ApicBase {
                    let bits = core.cpuid.physical_address_bits();
                    validate::apic_base(value, bits.into(), |page| vm.memory.is_ram(page))?;
                }
                let effect = core.lapic.msr_write(msr, value, ticks).map_err(|_| Gp)?;
                apic::apply(vcpu, vm, effect);
                Ok(())
            }
            SpecialMsr::Mtrr(register) => vm.mtrrs.lock().write(register, value),
            SpecialMsr::KvmSystemTime => vm.clock.read().write_system_time(
                &mut core.clock,
                value,
                &vm.memory,
                vm.tsc_agreement(),
            ),
            SpecialMsr::KvmWallClock => {
                vm.clock.read().write_wall_clock(&mut core.clock, value, &vm.memory, host.time())
            }
            SpecialMsr::KvmStealTime => core.pv.steal.write(value, &vm.memory),
            SpecialMsr::KvmPvEoi => core.pv.eoi.write(value, &vm.memory),
        },
    }
}

/// After a change of the guest's TSC: the hardware's offset, the local APIC's
/// deadline, kvmclock, in this order.
fn tsc_changed<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>, offset: u64, ticks: Ticks) {
    let offset = if cfg!(planted = "tsc-offset-sign") { offset.wrapping_neg() } else { offset };
    vcpu.hw.set_tsc_offset(offset);
    let adjust = vcpu.core.clock.tsc_adjust();
    vcpu.core.lapic.set_tsc_offset(adjust, ticks);
    vcpu.core.shared.set_tsc_adjust(adjust);
    tell_clock(vcpu, vm);
    vm.tsc_changed(vcpu.index);
}

/// Brings kvmclock up to date, if the guest has registered it.
pub(crate) fn tell_clock<B: Backend, M: GuestRam>(vcpu: &mut Vcpu<B>, vm: &Vm<M>) {
    let clock = &mut vcpu.core.clock;
    // The page was writable when it was registered; if the guest has put something else there
    // since, it loses its clock and nothing else.
    let _ = vm.clock.read().publish(clock, &vm.memory, vm.tsc_agreement(), Interruption::None);
}
