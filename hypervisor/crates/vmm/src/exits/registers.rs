//! Control and debug registers, XSETBV.

use super::instruction::{Done, Served, behind, decode, emulated, raise};
use crate::backend::Backend;
use crate::end::VmError;
use crate::vcpu::{DR7_GENERAL_DETECT, Vcpu};
use crate::vm::{Host, Vm};
use memory::GuestRam;
use x86defs::bits::{Low, join};
use x86defs::control::CR8_MASK;
use x86defs::exit::{CrAccess, DrAccess};
use x86defs::{Cr0, Cr4, Efer, Event, Exception, Gpr, GuestPhysAddr, VmExit};
use x86emu::{Fault, SystemOp};

/// DR6.BD.
const DR6_GENERAL_DETECT: u64 = 1 << 13;
/// Bits of DR6 and DR7 that software may change.
const DR6_WRITABLE: u64 = 0xe00f;
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_FIXED: u64 = 0x400;

/// An access to a control register.
pub(super) fn control<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    access: CrAccess,
) -> Served {
    let Some(found) = decode(vcpu, vm, host, &VmExit::CrAccess(access))? else { return Ok(None) };
    let next_rip = behind(vcpu, found.length);
    let result = match found.op {
        SystemOp::ReadCr(number, gpr) => match read_cr(vcpu, number) {
            Some(value) => {
                set_full(vcpu, gpr, value);
                Ok(())
            }
            None => Err(Event::ud()),
        },
        SystemOp::WriteCr(number, gpr) => {
            let value = full(vcpu, gpr);
            write_cr(vcpu, vm, number, value)
        }
        SystemOp::Clts => {
            let cr0 = vcpu.cr0() - Cr0::TS;
            vcpu.set_cr0(cr0);
            Ok(())
        }
        SystemOp::Lmsw(operand) => {
            let read =
                x86emu::read_operand(&mut emulated(vcpu, vm, host), &operand, x86defs::Width::B2);
            match read {
                Ok(value) => {
                    vcpu.load_machine_status(value.low16());
                    Ok(())
                }
                Err(Fault::Exception(exception)) => {
                    raise(vcpu, exception);
                    return Ok(None);
                }
                Err(Fault::Host(error)) => return Err(error),
            }
        }
        _ => return Err(VmError::NotOffered("this access to a control register")),
    };
    finish(vcpu, next_rip, result)
}

fn finish<B: Backend>(vcpu: &mut Vcpu<B>, next_rip: u64, result: Result<(), Event>) -> Served {
    match result {
        Ok(()) => vcpu.complete(next_rip),
        Err(event) => vcpu.raise(event),
    }
    Ok(None)
}

/// A register operand: 64 bits in 64-bit mode, else 32.
fn full<B: Backend>(vcpu: &Vcpu<B>, gpr: Gpr) -> u64 {
    let value = vcpu.gpr(gpr);
    if vcpu.mode().bits() == 64 { value } else { value.low32().into() }
}

fn set_full<B: Backend>(vcpu: &mut Vcpu<B>, gpr: Gpr, value: u64) {
    let value = if vcpu.mode().bits() == 64 { value } else { value.low32().into() };
    vcpu.set_gpr(gpr, value);
}

fn read_cr<B: Backend>(vcpu: &Vcpu<B>, number: u8) -> Option<u64> {
    Some(match number {
        0 => vcpu.cr0().bits(),
        2 => vcpu.cr2(),
        3 => vcpu.cr3(),
        4 => vcpu.cr4().bits(),
        8 => vcpu.core.lapic.cr8().into(),
        _ => return None,
    })
}

fn write_cr<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    number: u8,
    value: u64,
) -> Result<(), Event> {
    match number {
        0 => write_cr0(vcpu, vm, value),
        2 => {
            vcpu.set_cr2(value);
            Ok(())
        }
        3 => {
            let pointers = directory_pointers(vcpu, vm, vcpu.cr0(), vcpu.cr4(), value)?;
            vcpu.set_cr3(value);
            set_directory_pointers(vcpu, pointers);
            Ok(())
        }
        4 => write_cr4(vcpu, vm, value),
        8 => {
            if value & !CR8_MASK != 0 {
                return Err(Event::gp0());
            }
            vcpu.core.lapic.set_cr8(value.low8());
            Ok(())
        }
        _ => Err(Event::ud()),
    }
}

/// MOV to CR0 (SDM: "MOV—Move to/from Control Registers").
fn write_cr0<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    value: u64,
) -> Result<(), Event> {
    let new = Cr0::from_bits_truncate(value) | Cr0::ET;
    let old = vcpu.cr0();
    let efer = vcpu.efer();
    let bad = value >> 32 != 0
        || new.contains(Cr0::PG) && !new.contains(Cr0::PE)
        || new.contains(Cr0::NW) && !new.contains(Cr0::CD);
    if bad {
        return Err(Event::gp0());
    }
    let enters = new.contains(Cr0::PG) && !old.contains(Cr0::PG);
    let leaves = !new.contains(Cr0::PG) && old.contains(Cr0::PG);
    if enters && efer.contains(Efer::LME) {
        let cs = vcpu.code();
        if !vcpu.cr4().contains(Cr4::PAE) || cs.long() {
            return Err(Event::gp0());
        }
        vcpu.set_efer(efer | Efer::LMA);
    }
    let loads = Cr0::CD | Cr0::NW | Cr0::PG;
    let pointers = if (new ^ old).intersects(loads) && !efer.contains(Efer::LME) {
        directory_pointers(vcpu, vm, new, vcpu.cr4(), vcpu.cr3())?
    } else {
        None
    };
    if leaves && efer.contains(Efer::LMA) {
        if vcpu.mode().bits() == 64 || vcpu.cr4().contains(Cr4::PCIDE) {
            return Err(Event::gp0());
        }
        vcpu.set_efer(efer - Efer::LMA);
    }
    vcpu.set_cr0(new);
    set_directory_pointers(vcpu, pointers);
    Ok(())
}

/// Bits that must be 0 in a present page-directory pointer of PAE paging.
const POINTER_RESERVED: u64 = 0x1c6;
/// Bit 5: reserved too, but one emulator sets it as an accessed bit.
const POINTER_ACCESSED: u64 = 1 << 5;

/// The page-directory pointers that a write to a control register loads: none
/// unless PAE paging is in force after it; #GP where one is malformed
/// (SDM: "PDPTE Registers").
pub(super) fn directory_pointers<B: Backend, M: GuestRam>(
    vcpu: &Vcpu<B>,
    vm: &Vm<M>,
    cr0: Cr0,
    cr4: Cr4,
    cr3: u64,
) -> Result<Option<[u64; 4]>, Event> {
    let long = vcpu.efer().contains(Efer::LMA);
    if long || !cr0.contains(Cr0::PG) || !cr4.contains(Cr4::PAE) {
        return Ok(None);
    }
    let mut bytes = [0xff; 32];
    // All ones are read where there is no RAM.
    let _ = vm.memory.read(GuestPhysAddr::new(cr3 & 0xffff_ffe0), &mut bytes);
    let (words, _) = bytes.as_chunks::<8>();
    let mut pointers = [0; 4];
    for (pointer, word) in pointers.iter_mut().zip(words) {
        *pointer = u64::from_le_bytes(*word);
    }
    let too_high = u64::MAX << vcpu.core.cpuid.physical_address_bits();
    if pointers.iter().any(|p| p & 1 != 0 && p & (POINTER_RESERVED | too_high) != 0) {
        return Err(Event::gp0());
    }
    Ok(Some(pointers.map(|pointer| pointer & !POINTER_ACCESSED)))
}

fn set_directory_pointers<B: Backend>(vcpu: &mut Vcpu<B>, pointers: Option<[u64; 4]>) {
    if let Some(pointers) = pointers {
        vcpu.set_pointers(pointers);
    }
}

/// MOV to CR4: bits that CPUID does not offer are reserved.
fn write_cr4<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    value: u64,
) -> Result<(), Event> {
    let allowed = vcpu.core.cpuid.cr4_allowed();
    let new = Cr4::from_bits_truncate(value);
    let old = vcpu.cr4();
    let long = vcpu.efer().contains(Efer::LMA);
    let pcid_on = new.contains(Cr4::PCIDE) && !old.contains(Cr4::PCIDE);
    let bad = value & !allowed.bits() != 0
        || long && !new.contains(Cr4::PAE)
        || pcid_on && (!long || vcpu.cr3() & 0xfff != 0);
    if bad {
        return Err(Event::gp0());
    }
    let loads = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
    let pointers = if (new ^ old).intersects(loads) {
        directory_pointers(vcpu, vm, vcpu.cr0(), new, vcpu.cr3())?
    } else {
        None
    };
    vcpu.set_cr4(new);
    set_directory_pointers(vcpu, pointers);
    Ok(())
}

/// An access to a debug register.
pub(super) fn debug<B: Backend, M: GuestRam>(
    vcpu: &mut Vcpu<B>,
    vm: &Vm<M>,
    host: &mut impl Host,
    access: DrAccess,
) -> Served {
    let Some(found) = decode(vcpu, vm, host, &VmExit::DrAccess(access))? else { return Ok(None) };
    let next_rip = behind(vcpu, found.length);
    let (number, gpr, write) = match found.op {
        SystemOp::ReadDr(number, gpr) => (number, gpr, false),
        SystemOp::WriteDr(number, gpr) => (number, gpr, true),
        _ => return Err(VmError::Internal("a debug-register exit without its instruction")),
    };
    let aliased = vcpu.cr4().contains(Cr4::DE) && matches!(number, 4 | 5);
    if aliased || number > 7 {
        vcpu.raise(Event::ud());
        return Ok(None);
    }
    if vcpu.dr(7) & DR7_GENERAL_DETECT != 0 {
        let dr6 = vcpu.dr(6) | DR6_GENERAL_DETECT;
        vcpu.set_dr(6, dr6);
        let dr7 = vcpu.dr(7) & !DR7_GENERAL_DETECT;
        vcpu.set_dr(7, dr7);
        // General detect is a fault.
        vcpu.set_resume_flag();
        vcpu.raise(Event::exception(Exception::DB));
        return Ok(None);
    }
    let number = if matches!(number, 4 | 5) { number + 2 } else { number };
    if !write {
        let value = vcpu.dr(number);
        set_full(vcpu, gpr, value);
        return finish(vcpu, next_rip, Ok(()));
    }
    let value = full(vcpu, gpr);
    let value = match number {
        6 | 7 if value >> 32 != 0 => return finish(vcpu, next_rip, Err(Event::gp0())),
        6 => value & DR6_WRITABLE | DR6_FIXED,
        7 => value & DR7_WRITABLE | DR7_FIXED,
        _ => value,
    };
    vcpu.set_dr(number, value);
    finish(vcpu, next_rip, Ok(()))
}

/// XSETBV.
pub(super) fn xsetbv<B: Backend, M: GuestRam, H: Host>(
    vcpu: &mut Vcpu<B>,
    _: &Vm<M>,
    _: &mut H,
) -> Result<Done, VmError> {
    let register = vcpu.gpr(Gpr::Rcx).low32();
    let value = join(vcpu.gpr(Gpr::Rdx).low32(), vcpu.gpr(Gpr::Rax).low32());
    match vcpu.core.cpuid.xstate().xsetbv(register, value, vcpu.cpl()) {
        Ok(xcr0) => {
            vcpu.set_xcr0(xcr0.bits());
            Ok(Done::Complete)
        }
        Err(_) => Ok(Done::Fault(Event::gp0())),
    }
}
