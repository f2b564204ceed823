//! The way into a guest and back (SDM: "VM Entries", "VM Exits").
//!
//! Interrupts are off from before the entry until after the exit; one that
//! arrives meanwhile ends the guest's turn and stays pending in the local APIC.

use super::vmcs::Current;
use crate::cpu::{apic, asm};
use core::arch::naked_asm;
use core::mem::offset_of;
use vmm::backend::{ExitRegs, Handled, HotReason, HotState, Instruction};
use vmm::hot::exit;
use vmm::hot::timer::{HotTimer, TimerKind};
use vmm::vcpu::VcpuCore;
use x86defs::bits::Low;
use x86defs::exit::PlainPort;
use x86defs::vmcs::{
    ExitReason, Field32, Field64, FieldNatural, Interruptibility, InterruptionInfo, byte_port,
    is_first_touch, is_low_byte_port, plain_port,
};
use x86defs::{GuestPhysAddr, Msr, Rflags};

const _: () = assert!(offset_of!(VcpuCore, hot) == 0);
const _: () = assert!(offset_of!(HotState, gpr) == 0);

/// [`enter`] came back from the guest.
pub(super) const EXITED: u64 = 0;
/// The entry failed, and no VMCS was current.
pub(super) const FAILED_INVALID: u64 = 1;

/// Goes back in, with the zero flag clear, where it is.
#[cfg(not(feature = "stamp-exits"))]
macro_rules! reenter {
    () => {
        "jnz 3b"
    };
}

#[cfg(feature = "stamp-exits")]
macro_rules! reenter {
    () => {
        // The TSC, which the stamp leaves in RDX, is not zero.
        concat!("jz 8f\n", stamp!(hot), "test rdx, rdx\n", "jnz 3b\n", "8:\n")
    };
}

/// Enters the guest, and comes back with [`EXITED`] when the hot handler
/// declines an exit, or with another number when the CPU refuses the entry.
/// `launched` is 0 for a VMCS that was not entered since it was cleared.
/// `host_rsp` remembers what HOST_RSP holds; 0 where it is not known.
///
/// # Safety
/// The vCPU's VMCS must be current and describe a guest that can't reach
/// anything of the host's, and a host state that is this CPU's own but for RSP
/// and RIP; interrupts are off.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn enter(
    core: *mut VcpuCore,
    launched: u64,
    host_rsp: *mut u64,
) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "cmp rsp, [rdx]",
        "je 2f",
        "mov [rdx], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "lea rcx, [rip + 5f]",
        "mov eax, {host_rip}",
        "vmwrite rax, rcx",
        "2:",
        stamp!(cold),
        "test rsi, rsi",
        // From here to the entry no flag changes: zero means VMLAUNCH.
        "3:",
        "mov rax, [rdi]",
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
        "jz 4f",
        "vmresume",
        "jmp 6f",
        "4:",
        "vmlaunch",
        "jmp 6f",
        // HOST_RIP. RSP is as it was when HOST_RSP was written: at `core`.
        "5:",
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 1 * 8], rcx",
        "pop rcx",
        "mov [rdi + 2 * 8], rdx",
        "mov [rdi + 3 * 8], rbx",
        "mov [rdi + 5 * 8], rbp",
        "mov [rdi + 6 * 8], rsi",
        "mov [rdi + 7 * 8], rcx",
        "mov [rdi + 8 * 8], r8",
        "mov [rdi + 9 * 8], r9",
        "mov [rdi + 10 * 8], r10",
        "mov [rdi + 11 * 8], r11",
        "mov [rdi + 12 * 8], r12",
        "mov [rdi + 13 * 8], r13",
        "mov [rdi + 14 * 8], r14",
        "mov [rdi + 15 * 8], r15",
        stamp!(guest),
        "call {hot}",
        "mov rdi, [rsp]",
        "test al, {reenter}",
        reenter!(),
        "xor eax, eax",
        "jmp 7f",
        // The entry failed: carry means that no VMCS was current.
        "6:",
        "mov eax, 1",
        "jc 7f",
        "mov eax, 2",
        "7:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const FieldNatural::HOST_RSP.0,
        host_rip = const FieldNatural::HOST_RIP.0,
        reenter = const Handled::Reenter as u8,
        hot = sym hot_exit,
    )
}

/// The instruction length, which every reason that is hot has.
const HOT_LENGTH: Field32 = match ExitReason::common_length_field(&[
    ExitReason::CPUID,
    ExitReason::RDMSR,
    ExitReason::WRMSR,
    ExitReason::VMCALL,
    ExitReason::IO,
]) {
    Some(field) => field,
    None => panic!("a hot reason without an instruction length"),
};

/// The hot handler's view of the current VMCS.
struct Regs<'a> {
    vmcs: Current<'a>,
}

impl ExitRegs for Regs<'_> {
    #[inline(always)]
    fn rip(&self) -> u64 {
        self.vmcs.read(FieldNatural::GUEST_RIP)
    }

    #[inline(always)]
    fn instruction(&self) -> Option<Instruction> {
        // Every reason that asks for it has a length.
        let length = self.vmcs.read(HOT_LENGTH);
        let rip = self.rip();
        let next_rip = rip.wrapping_add(length.into());
        // A RIP that may wrap at 16 or 32 bits is left to the general code, which knows more.
        ((rip ^ next_rip) & !0xffff == 0).then_some(Instruction { rip, next_rip })
    }

    #[inline(always)]
    fn advance(&mut self, instruction: Instruction, hold: Rflags) -> bool {
        let rflags = Rflags::from_bits_retain(self.vmcs.read(FieldNatural::GUEST_RFLAGS));
        if rflags.intersects(hold) {
            return false;
        }
        self.vmcs.write(FieldNatural::GUEST_RIP, instruction.next_rip);
        let blocked =
            Interruptibility::from_bits_retain(self.vmcs.read(Field32::GUEST_INTERRUPTIBILITY));
        if blocked.intersects(Interruptibility::SHADOW) {
            let open = blocked - Interruptibility::SHADOW;
            self.vmcs.write(Field32::GUEST_INTERRUPTIBILITY, open.bits());
        }
        true
    }

    #[inline(always)]
    fn cpl(&self) -> u8 {
        (self.vmcs.read(Field32::GUEST_SS_RIGHTS) >> 5).low8() & 3
    }

    fn port(&self) -> Option<PlainPort> {
        plain_port(self.vmcs.read(FieldNatural::EXIT_QUALIFICATION))
    }

    #[inline(always)]
    fn byte_port(&self) -> Option<PlainPort> {
        byte_port(self.vmcs.read(FieldNatural::EXIT_QUALIFICATION))
    }

    #[inline(always)]
    fn touched(&self) -> Option<GuestPhysAddr> {
        let qualification = self.vmcs.read(FieldNatural::EXIT_QUALIFICATION);
        let vectoring =
            InterruptionInfo::from_bits(self.vmcs.read(Field32::IDT_VECTORING_INFO)).valid();
        // One emulator leaves a step pending that is not due.
        let pending = self.vmcs.read(FieldNatural::GUEST_PENDING_DEBUG) != 0;
        (is_first_touch(qualification) && !vectoring && !pending)
            .then(|| GuestPhysAddr::new(self.vmcs.read(Field64::GUEST_PHYSICAL_ADDRESS)))
    }

    #[inline(always)]
    fn tsc(&self) -> u64 {
        asm::rdtsc()
    }

    #[inline(always)]
    fn arm(&mut self, timer: &HotTimer, now: u64) {
        match timer.kind {
            TimerKind::Own { shift } => {
                self.vmcs.write(Field32::PREEMPTION_TIMER, timer.counts(shift, now));
            }
            TimerKind::Machine => apic::arm_timer_at(timer.armed, now),
        }
    }
}

/// Called for every exit, with the guest's registers saved and its VMCS current.
///
/// A function for each reason, entered by a jump: each is one straight path
/// that saves no more registers than it uses. A failed entry has bit 31 of the
/// reason set and is none of these.
#[unsafe(naked)]
extern "C" fn hot_exit(core: &mut VcpuCore) -> Handled {
    naked_asm!(
        "mov ecx, {field}",
        "vmread rax, rcx",
        "cmp eax, {is_wrmsr}",
        "je 2f",
        "cmp eax, {is_io}",
        "je {port}",
        "cmp eax, {is_cpuid}",
        "je {cpuid}",
        "cmp eax, {is_violation}",
        "je {touch}",
        "cmp eax, {is_rdmsr}",
        "je {read_msr}",
        "cmp eax, {is_vmcall}",
        "je {hypercall}",
        "xor eax, eax",
        "ret",
        "2:",
        "cmp dword ptr [rdi + 8], {is_tsc_deadline}",
        "je {write_tsc_deadline}",
        "jmp {write_msr}",
        field = const Field32::EXIT_REASON.0,
        is_wrmsr = const ExitReason::WRMSR.0,
        is_io = const ExitReason::IO.0,
        is_cpuid = const ExitReason::CPUID.0,
        is_violation = const ExitReason::EPT_VIOLATION.0,
        is_rdmsr = const ExitReason::RDMSR.0,
        is_vmcall = const ExitReason::VMCALL.0,
        is_tsc_deadline = const Msr::TSC_DEADLINE.0,
        port = sym port,
        cpuid = sym cpuid,
        touch = sym touch,
        read_msr = sym read_msr,
        hypercall = sym hypercall,
        write_tsc_deadline = sym write_tsc_deadline,
        write_msr = sym write_msr,
    )
}

const _: () = assert!(Handled::Cold as u8 == 0);

macro_rules! hot {
    ($($name:ident: $reason:ident;)*) => {$(
        #[inline(never)]
        extern "C" fn $name(core: &mut VcpuCore) -> Handled {
            // SAFETY: called by `hot_exit` only.
            let vmcs = unsafe { Current::assume() };
            exit::serve(core, &mut Regs { vmcs }, HotReason::$reason)
        }
    )*};
}

/// An access to a port.
#[inline(never)]
extern "C" fn port(core: &mut VcpuCore) -> Handled {
    // SAFETY: called by `hot_exit` only.
    let vmcs = unsafe { Current::assume() };
    if !is_low_byte_port(vmcs.read(FieldNatural::EXIT_QUALIFICATION)) {
        return doorbell(core);
    }
    exit::serve(core, &mut Regs { vmcs }, HotReason::Port)
}

hot! {
    cpuid: Cpuid;
    read_msr: ReadMsr;
    write_msr: WriteMsr;
    write_tsc_deadline: WriteTscDeadline;
    hypercall: Hypercall;
    doorbell: Doorbell;
    touch: Touch;
}
