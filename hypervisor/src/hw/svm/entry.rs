//! The way into a guest and back.
//!
//! While a guest is in, and in the hot handler, the global interrupt flag is
//! clear and the guest's FS, GS, TR and SYSCALL registers stay loaded: the
//! hypervisor uses none of them there. They are swapped only when the general
//! code takes over.

use crate::cpu::{apic, asm};
use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use vmm::backend::{ExitRegs, Handled, HotReason, HotState, Instruction};
use vmm::hot::exit;
use vmm::hot::timer::HotTimer;
use vmm::vcpu::VcpuCore;
use x86defs::exit::PlainPort;
use x86defs::vmcb::{
    EventInjection, ExitCode, INTERRUPT_SHADOW, Save, Vmcb, byte_port, is_first_touch,
    is_low_byte_port, plain_port,
};
use x86defs::{GuestPhysAddr, HostPhysAddr, Rflags};

const VMCB_RAX: usize = offset_of!(Vmcb, save) + offset_of!(Save, rax);

const _: () = assert!(offset_of!(VcpuCore, hot) == 0);
const _: () = assert!(offset_of!(HotState, gpr) == 0);

/// Saves the host's FS, GS, TR, LDTR and SYSCALL registers to `vmcb`.
///
/// # Safety
/// SVM must be on, and `vmcb` a page of the caller's.
pub(super) unsafe fn save_host(vmcb: HostPhysAddr) {
    // SAFETY: the caller vouches for the page.
    unsafe { asm!("vmsave rax", in("rax") vmcb.as_u64(), options(nostack)) };
}

/// Enters the guest, and comes back when the hot handler declines an exit.
///
/// # Safety
/// SVM must be on; `vmcb` and `vmcb_phys` are the same VMCB, which describes a
/// guest that can't reach anything of the host's; `host_phys` was filled by
/// [`save_host`]; interrupts are off.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn enter(
    core: *mut VcpuCore,
    vmcb: *mut Vmcb,
    vmcb_phys: u64,
    host_phys: u64,
) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        // From RSP + 8 on: core, vmcb, its address, the host's.
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "sub rsp, 8",
        // From here on only GIF holds interrupts off: IF must be set for the
        // machine's interrupts to end the guest's turn.
        "clgi",
        "sti",
        stamp!(cold),
        "mov rax, [rsp + 24]",
        "vmload rax",
        "mov rcx, [rdi]",
        "mov [rsi + {rax}], rcx",
        "2:",
        "mov rcx, [rdi + 1 * 8]",
        "mov rdx, [rdi + 2 * 8]",
        "mov rbx, [rdi + 3 * 8]",
        "mov rbp, [rdi + 5 * 8]",
        "mov rsi, [rdi + 6 * 8]",
        "mov r8, [rdi + 8 * 8]",
        "mov r9, [rdi + 9 * 8]",
        "mov r10, [rdi + 10 * 8]",
        "mov r11, [rdi + 11 * 8]",
        "mov r12, [rdi + 12 * 8]",
        "mov r13, [rdi + 13 * 8]",
        "mov r14, [rdi + 14 * 8]",
        "mov r15, [rdi + 15 * 8]",
        "mov rdi, [rdi + 7 * 8]",
        "vmrun rax",
        "mov rax, [rsp + 8]",
        "mov [rax + 7 * 8], rdi",
        "mov rdi, rax",
        "mov [rdi + 6 * 8], rsi",
        "mov rsi, [rsp + 16]",
        "mov [rdi + 1 * 8], rcx",
        "mov rcx, [rsi + {rax}]",
        "mov [rdi], rcx",
        "mov [rdi + 2 * 8], rdx",
        "mov [rdi + 3 * 8], rbx",
        "mov [rdi + 5 * 8], rbp",
        "mov [rdi + 8 * 8], r8",
        "mov [rdi + 9 * 8], r9",
        "mov [rdi + 10 * 8], r10",
        "mov [rdi + 11 * 8], r11",
        "mov [rdi + 12 * 8], r12",
        "mov [rdi + 13 * 8], r13",
        "mov [rdi + 14 * 8], r14",
        "mov [rdi + 15 * 8], r15",
        "mov rbx, rdi",
        "mov rbp, rsi",
        stamp!(guest),
        "call {hot}",
        "test al, {reenter}",
        "jz 3f",
        "mov rdi, rbx",
        stamp!(hot),
        "mov rcx, [rdi]",
        "mov [rbp + {rax}], rcx",
        "mov rax, [rsp + 24]",
        "jmp 2b",
        "3:",
        "mov rax, [rsp + 24]",
        "vmsave rax",
        "mov rax, [rsp + 32]",
        "vmload rax",
        "cli",
        "stgi",
        "add rsp, 40",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        rax = const VMCB_RAX,
        reenter = const Handled::Reenter as u8,
        hot = sym hot_exit,
    )
}

/// The hot handler's view of a VMCB.
struct Regs<'a> {
    vmcb: &'a mut Vmcb,
}

impl ExitRegs for Regs<'_> {
    #[inline(always)]
    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    #[inline(always)]
    fn instruction(&self) -> Option<Instruction> {
        let control = &self.vmcb.control;
        // Zero where the CPU does not save it; IN and OUT always report it
        // (APM: "IOIO Intercept Information").
        let next_rip = match control.next_rip {
            0 if control.exit_code == u64::from(ExitCode::IOIO.0) => control.exit_info2,
            next_rip => next_rip,
        };
        (next_rip != 0).then_some(Instruction { rip: self.vmcb.save.rip, next_rip })
    }

    #[inline(always)]
    fn advance(&mut self, instruction: Instruction, hold: Rflags) -> bool {
        if self.vmcb.save.rflags & hold.bits() != 0 {
            return false;
        }
        self.vmcb.save.rip = instruction.next_rip;
        self.vmcb.control.interrupt_shadow &= !INTERRUPT_SHADOW;
        true
    }

    #[inline(always)]
    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    fn port(&self) -> Option<PlainPort> {
        plain_port(self.vmcb.control.exit_info1)
    }

    #[inline(always)]
    fn byte_port(&self) -> Option<PlainPort> {
        byte_port(self.vmcb.control.exit_info1)
    }

    #[inline(always)]
    fn touched(&self) -> Option<GuestPhysAddr> {
        let control = &self.vmcb.control;
        (is_first_touch(control.exit_info1) && !control.exit_int_info.valid())
            .then(|| GuestPhysAddr::new(control.exit_info2))
    }

    #[inline(always)]
    fn tsc(&self) -> u64 {
        asm::rdtsc()
    }

    #[inline(always)]
    fn arm(&mut self, timer: &HotTimer, now: u64) {
        apic::arm_timer_at(timer.armed, now);
    }
}

/// Whether an interrupt waits for a window that is open now.
#[inline(always)]
fn window_open(vmcb: &Vmcb) -> bool {
    vmcb.control.virtual_interrupt.irq() && vmcb.save.rflags & Rflags::IF.bits() != 0
}

/// Called for every exit, with the guest's registers saved.
///
/// A function for each reason, entered by a jump: each is one straight path
/// that saves no more registers than it uses.
extern "C" fn hot_exit(core: &mut VcpuCore, vmcb: &mut Vmcb) -> Handled {
    vmcb.control.event_injection = EventInjection::new();
    vmcb.control.tlb_control = 0;
    let code = vmcb.control.exit_code;
    let is = |wanted: ExitCode| code == u64::from(wanted.0);
    if is(ExitCode::CPUID) {
        cpuid(core, vmcb)
    } else if is(ExitCode::MSR) {
        if vmcb.control.exit_info1 == 0 { read_msr(core, vmcb) } else { write_msr(core, vmcb) }
    } else if is(ExitCode::VMMCALL) {
        hypercall(core, vmcb)
    } else if is(ExitCode::IOIO) {
        if is_low_byte_port(vmcb.control.exit_info1) {
            port(core, vmcb)
        } else {
            doorbell(core, vmcb)
        }
    } else if is(ExitCode::NPF) {
        touch(core, vmcb)
    } else {
        Handled::Cold
    }
}

macro_rules! hot {
    ($($name:ident: $reason:ident;)*) => {$(
        #[inline(never)]
        extern "C" fn $name(core: &mut VcpuCore, vmcb: &mut Vmcb) -> Handled {
            let handled = exit::serve(core, &mut Regs { vmcb }, HotReason::$reason);
            // The guest is open for the interrupt that waits for a window: it
            // may have it now, without an exit more (and one emulator would not
            // open the window again).
            if handled == Handled::Reenter && window_open(vmcb) {
                core.served = true;
                return Handled::Recheck;
            }
            handled
        }
    )*};
}

hot! {
    cpuid: Cpuid;
    read_msr: ReadMsr;
    write_msr: WriteMsr;
    hypercall: Hypercall;
    port: Port;
    doorbell: Doorbell;
    touch: Touch;
}
