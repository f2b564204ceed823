//! A vCPU of VT-x: its VMCS, and what goes around it.

use super::apicv::ApicHardware;
use super::syscall::SyscallMsrs;
use super::vmcs::{Current, Invvpid, Vmcs, invalidate_ept, invalidate_vpid};
use super::{Caps, Cpu, entry, host, maps, vpid};
use crate::cpu::asm;
use crate::error::HostError;
use crate::hw::GuestApic;
use crate::hw::extra::{Extra, read_dr6, write_cr2, write_dr6};
use alloc::string::String;
use core::arch::asm;
use core::fmt;
use memory::tags::{Flush, Tag};
use vmm::hot::timer::TimerKind;
use vmm::vcpu::VcpuCore;
use x86defs::bits::Low;
use x86defs::control::DR6_RESET;
use x86defs::event::EXITING_EXCEPTIONS;
use x86defs::exit::{ExceptionExit, ExitWithEvent};
use x86defs::vmcs::check::Stage;
use x86defs::vmcs::{
    ACCESS_RIGHTS_UNUSABLE, ENTRY_FAILED, EntryControls, ExitInformation, ExitReason, Field16,
    Field32, Field64, FieldNatural, Interruptibility, InterruptionInfo, InterruptionKind,
    PENDING_DEBUG_BS, PrimaryControls, SecondaryControls, apic_offset, decode, ept_pointer,
    interrupted_event, unblocks_nmi,
};
use x86defs::{
    Cr0, Cr4, Efer, Event, EventKind, Exception, HostPhysAddr, Rflags, SegmentRegister, VmExit,
};

/// PAUSEs further apart than this many ticks are of no loop, and a loop exits
/// after this many ticks: some tens of microseconds are spun by who waits long.
const PAUSE_GAP: u32 = 128;
const PAUSE_WINDOW: u32 = 1 << 16;

/// PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Bits of CR0 that the guest changes by itself. The mode of operation, the
/// caches (which are the machine's) and what VT-x insists on exit.
pub(super) const GUEST_CR0: Cr0 =
    Cr0::MP.union(Cr0::EM).union(Cr0::TS).union(Cr0::WP).union(Cr0::AM);
/// Bits of CR4 that the guest changes by itself: to flush its global pages.
pub(super) const GUEST_CR4: Cr4 = Cr4::PGE;

/// DR6: breakpoints, general detect, single step, as an exit's qualification
/// has them (SDM: "Exit Qualification for Debug Exceptions").
const DR6_CAUSES: u64 = DR6_BREAKPOINTS | 1 << 13 | 1 << 14;
/// DR6: breakpoints. The others stay set until software clears them.
const DR6_BREAKPOINTS: u64 = 0xf;
/// DR7.GD: general detect.
const DR7_GENERAL_DETECT: u64 = 1 << 13;

/// A vCPU.
pub struct VmxVcpu {
    pub(super) vmcs: Vmcs,
    pub(super) apic: ApicHardware,
    ept_pointer: u64,
    pub(super) caps: Caps,
    /// Copies of two control words of the VMCS: this one and the next.
    primary: PrimaryControls,
    entry: EntryControls,
    pub(super) launched: bool,
    pub(super) host_rsp: u64,
    host_cr3: u64,
    vpid: Tag,
    /// The VPID is good for as long as the vCPU has its CPU.
    has_vpid: bool,
    /// The guest's own translations must go.
    pub(super) flush: bool,
    /// Translations of the nested tables must go too.
    pub(super) flush_nested: bool,
    /// The guest's view of the bits of CR0 and CR4 that are ours.
    pub(super) cr0_shadow: Cr0,
    pub(super) cr4_shadow: Cr4,
    pub(super) efer: Efer,
    pub(super) cr2: u64,
    pub(super) extra: Extra,
    /// DR6, while the vCPU has no CPU.
    dr6: u64,
    pub(super) syscall: SyscallMsrs,
    pub(super) injection: Option<Event>,
    /// RIP behind the instruction that exited, where the manual defines it.
    pub(super) length: Option<u8>,
    /// Why an entry was refused, line by line.
    pub(super) refusal: String,
}

impl fmt::Debug for VmxVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmxVcpu").field("vmcs", &self.vmcs).finish_non_exhaustive()
    }
}

impl VmxVcpu {
    /// A vCPU in its reset state, on the nested tables at `nested_root`.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn new(cpu: &Cpu, nested_root: HostPhysAddr, guest: GuestApic) -> Result<Self, HostError> {
        let caps = *cpu.caps();
        let maps = maps::get()?;
        let apic = ApicHardware::new(&caps, guest, maps)?;
        let vcpu = Self {
            vmcs: Vmcs::new(caps.basic.revision())?,
            ept_pointer: ept_pointer(nested_root),
            caps,
            primary: apic.words.primary,
            entry: apic.words.entry,
            apic,
            launched: false,
            host_rsp: 0,
            host_cr3: host::cr3(),
            vpid: Tag::default(),
            has_vpid: false,
            flush: true,
            flush_nested: true,
            cr0_shadow: Cr0::empty(),
            cr4_shadow: Cr4::empty(),
            efer: Efer::empty(),
            cr2: 0,
            extra: Extra::new(),
            dr6: DR6_RESET,
            syscall: SyscallMsrs::new(),
            injection: None,
            length: None,
            refusal: String::new(),
        };
        vcpu.write_controls(&maps);
        vcpu.apic.write_controls(vcpu.current(), guest.page);
        host::write(vcpu.current());
        Ok(vcpu)
    }

    /// Gives the vCPU this CPU, which is not that where it ran last if it has `moved`.
    pub(super) fn load(&mut self, core: &VcpuCore, moved: bool) {
        self.vmcs.hold();
        if moved {
            host::write(self.current());
            self.host_cr3 = host::cr3();
            // The VPID and the stack pointer are those of another CPU.
            self.vpid = Tag::default();
            self.host_rsp = 0;
            // A guest that had this EPT pointer before may have left translations.
            self.flush_nested = true;
            self.syscall.forget();
        }
        // Others may have spent all VPIDs meanwhile.
        self.has_vpid = false;
        self.extra.load(core.xcr0, core.tsc_aux);
        write_dr6(self.dr6);
        self.syscall.load();
    }

    /// Takes the vCPU off this CPU.
    pub(super) fn unload(&mut self) {
        if self.extra.is_loaded() {
            self.syscall.note();
            self.dr6 = read_dr6();
            self.extra.unload();
        }
        self.vmcs.clear();
        self.launched = false;
    }

    /// DR6, which the CPU has while the vCPU has the CPU.
    pub(super) fn dr6(&self) -> u64 {
        if self.extra.is_loaded() { read_dr6() } else { self.dr6 }
    }

    /// Sets DR6.
    pub(super) fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
        if self.extra.is_loaded() {
            write_dr6(value);
        }
    }

    /// Writes the fields that do not change while the vCPU exists, and the part of the
    /// guest's state that nobody else sets.
    fn write_controls(&self, maps: &maps::Maps) {
        let v = self.current();
        v.write(Field32::PIN_CONTROLS, self.caps.words.pin.bits());
        v.write(Field32::PRIMARY_CONTROLS, self.primary.bits());
        v.write(Field32::EXIT_CONTROLS, self.caps.words.exit.bits());
        v.write(Field32::ENTRY_CONTROLS, self.entry.bits());
        v.write(Field32::EXCEPTION_BITMAP, EXITING_EXCEPTIONS);
        // Page faults exit if (error code & mask) == match says so and their
        // bit in the bitmap agrees: never.
        for zero in [
            Field32::PAGE_FAULT_MASK,
            Field32::PAGE_FAULT_MATCH,
            Field32::CR3_TARGET_COUNT,
            Field32::EXIT_MSR_STORE_COUNT,
            Field32::EXIT_MSR_LOAD_COUNT,
            Field32::ENTRY_MSR_LOAD_COUNT,
            Field32::ENTRY_INTERRUPTION_INFO,
            Field32::GUEST_INTERRUPTIBILITY,
            Field32::GUEST_ACTIVITY,
            Field32::GUEST_SYSENTER_CS,
        ] {
            v.write(zero, 0);
        }
        if self.caps.words.secondary.contains(SecondaryControls::PAUSE_LOOP_EXITING) {
            v.write(Field32::PLE_GAP, PAUSE_GAP);
            v.write(Field32::PLE_WINDOW, PAUSE_WINDOW);
        }
        if self.caps.words.secondary.contains(SecondaryControls::ENCLS_EXITING) {
            v.write(Field64::ENCLS_EXITING, u64::MAX);
        }
        v.write(Field64::IO_BITMAP_A, maps.io_a.as_u64());
        v.write(Field64::IO_BITMAP_B, maps.io_b.as_u64());
        v.write(Field64::EPT_POINTER, self.ept_pointer);
        v.write(Field64::TSC_OFFSET, 0);
        v.write(FieldNatural::CR0_MASK, !GUEST_CR0.bits());
        v.write(FieldNatural::CR4_MASK, !GUEST_CR4.bits());
        v.write(Field64::GUEST_VMCS_LINK, u64::MAX);
        v.write(Field64::GUEST_DEBUGCTL, 0);
        v.write(Field64::GUEST_PAT, PAT_RESET);
        v.write(Field64::GUEST_EFER, 0);
        v.write(FieldNatural::GUEST_PENDING_DEBUG, 0);
        v.write(FieldNatural::GUEST_SYSENTER_ESP, 0);
        v.write(FieldNatural::GUEST_SYSENTER_EIP, 0);
    }

    /// The VMCS's fields.
    #[inline(always)]
    pub(super) fn current(&self) -> Current<'_> {
        self.vmcs.current()
    }

    /// Sets or clears one of the primary controls.
    pub(super) fn set_primary(&mut self, control: PrimaryControls, on: bool) {
        if self.primary.contains(control) != on {
            self.primary.set(control, on);
            self.current().write(Field32::PRIMARY_CONTROLS, self.primary.bits());
        }
    }

    /// Tells the entry whether the guest is in long mode.
    pub(super) fn set_long_mode(&mut self, on: bool) {
        if self.entry.contains(EntryControls::IA32E_GUEST) != on {
            self.entry.set(EntryControls::IA32E_GUEST, on);
            self.current().write(Field32::ENTRY_CONTROLS, self.entry.bits());
        }
    }

    /// The causes that block interrupts.
    pub(super) fn blocked(&self) -> Interruptibility {
        Interruptibility::from_bits_retain(self.current().read(Field32::GUEST_INTERRUPTIBILITY))
    }

    /// Sets or clears causes that block interrupts.
    pub(super) fn set_blocked(&mut self, which: Interruptibility, on: bool) {
        let old = self.blocked();
        let mut new = old;
        new.set(which, on);
        if new != old {
            self.current().write(Field32::GUEST_INTERRUPTIBILITY, new.bits());
        }
    }

    /// Takes a VPID if the old one is spent, and forgets what must be forgotten.
    fn prepare_translations(&mut self) {
        if core::mem::take(&mut self.flush_nested) {
            invalidate_ept(self.ept_pointer);
        }
        let stale = core::mem::take(&mut self.flush);
        if self.has_vpid && !stale || !self.caps.has_vpid() {
            // Without VPIDs every entry and exit forgets them.
            return;
        }
        self.has_vpid = true;
        let before = self.vpid.value;
        let flush = vpid::assign(&mut self.vpid, stale);
        let value = self.vpid.value.low16();
        if self.vpid.value != before {
            self.current().write(Field16::VPID, value);
        }
        match flush {
            Flush::Nothing => {}
            Flush::ThisTag => invalidate_vpid(Invvpid::Single, value),
            Flush::All => invalidate_vpid(Invvpid::All, 0),
        }
    }

    /// Sets the fields that depend on the code that enters, and mends state that the entry would
    /// refuse.
    pub(super) fn prepare_entry(&mut self) {
        self.prepare_translations();
        let cr3 = host::cr3();
        if self.host_cr3 != cr3 {
            self.host_cr3 = cr3;
            self.current().write(FieldNatural::HOST_CR3, cr3);
        }
        if !self.cr0_shadow.contains(Cr0::PE) {
            self.mark_accessed();
        }
        // In a shadow, single-stepping must be pending exactly if TF is set
        // (SDM: "Checks on Guest Non-Register State").
        if self.blocked().intersects(Interruptibility::SHADOW) {
            let v = self.current();
            let flags = Rflags::from_bits_retain(v.read(FieldNatural::GUEST_RFLAGS));
            let pending = v.read(FieldNatural::GUEST_PENDING_DEBUG);
            let step = if flags.contains(Rflags::TF) { PENDING_DEBUG_BS } else { 0 };
            v.write(FieldNatural::GUEST_PENDING_DEBUG, pending & !PENDING_DEBUG_BS | step);
        }
    }

    /// Loading a register in real mode may leave it usable with a descriptor
    /// that was never accessed, which an entry refuses
    /// (SDM: "Checks on Guest Segment Registers").
    fn mark_accessed(&self) {
        const ACCESSED: u32 = 1;
        let v = self.current();
        for register in [
            SegmentRegister::Es,
            SegmentRegister::Ss,
            SegmentRegister::Ds,
            SegmentRegister::Fs,
            SegmentRegister::Gs,
        ] {
            let field = Field32::guest_rights(register);
            let rights = v.read(field);
            if rights & (ACCESS_RIGHTS_UNUSABLE | ACCESSED) == 0 {
                v.write(field, rights | ACCESSED);
            }
        }
    }

    /// The timer that ends the guest's turn.
    pub(super) fn timer_kind(&self) -> TimerKind {
        match self.caps.words.preemption_timer {
            Some(shift) => TimerKind::Own { shift },
            None => TimerKind::Machine,
        }
    }

    /// Runs the guest until an exit that the hot handler declines.
    pub(super) fn run_until_cold(&mut self, core: &mut VcpuCore) {
        loop {
            self.prepare_entry();
            if let Some(shift) = self.caps.words.preemption_timer {
                let counts = core.timer.counts(shift, asm::rdtsc());
                self.current().write(Field32::PREEMPTION_TIMER, counts);
            }
            #[cfg(feature = "check-entries")]
            if let Some(exit) = self.broken_rule() {
                core.exit = exit;
                return;
            }
            core.served = false;
            core.watch.enter(asm::rdtsc());
            write_cr2(self.cr2);
            // SAFETY: the VMCS is current: `prepare_entry` used it. It makes
            // everything exit that the guest may not do by itself, its nested
            // tables map nothing but its RAM, its host state was read from
            // this CPU; interrupts are off.
            let outcome =
                unsafe { entry::enter(core, self.launched.into(), &raw mut self.host_rsp) };
            core.watch.exit(asm::rdtsc());
            self.cr2 = read_cr2();
            self.injection = None;
            if outcome != entry::EXITED {
                core.exit = self.refused(outcome);
                return;
            }
            if core.served {
                self.launched = true;
                // The hot handler dealt with the exit but wants the general
                // code to look at what is pending.
                self.length = None;
                core.exit = ExitWithEvent::NOTHING;
                return;
            }
            if self.after_exit(core) {
                return;
            }
        }
    }

    /// Reads what the exit left, as far as its reason defines it.
    fn information(&self) -> ExitInformation {
        let v = self.current();
        let mut information = ExitInformation {
            reason: v.read(Field32::EXIT_REASON),
            qualification: v.read(FieldNatural::EXIT_QUALIFICATION),
            ..ExitInformation::default()
        };
        match information.basic() {
            ExitReason::EXCEPTION_OR_NMI => {
                information.interruption = v.read(Field32::EXIT_INTERRUPTION_INFO);
                information.interruption_error = v.read(Field32::EXIT_INTERRUPTION_ERROR);
            }
            ExitReason::EPT_VIOLATION | ExitReason::EPT_MISCONFIGURATION => {
                information.guest_physical = v.read(Field64::GUEST_PHYSICAL_ADDRESS);
                information.guest_linear = v.read(FieldNatural::GUEST_LINEAR_ADDRESS);
            }
            ExitReason::IO => information.instruction = v.read(Field32::EXIT_INSTRUCTION_INFO),
            ExitReason::APIC_WRITE => {
                let offset = apic_offset(information.qualification);
                information.apic_register = self.apic.register(offset);
            }
            _ => {}
        }
        information
    }

    /// The event whose delivery the exit interrupted.
    fn vectoring(&self) -> Option<Event> {
        let v = self.current();
        let info = InterruptionInfo::from_bits(v.read(Field32::IDT_VECTORING_INFO));
        if !info.valid() {
            return None;
        }
        let length = info.length_field().map(|field| v.read(field).low8());
        if length == Some(0)
            && let Some(vector) = self.apic.servicing(v)
        {
            // No instruction is that short. One emulator reports the event
            // before last when it was an interrupt of the virtual-APIC page
            // whose delivery exited.
            return Some(Event::interrupt(vector));
        }
        let length = length.unwrap_or(0);
        interrupted_event(info, v.read(Field32::IDT_VECTORING_ERROR), length)
    }

    /// Leaves the last exit in `core`. `false` if the general code need not know of it.
    fn after_exit(&mut self, core: &mut VcpuCore) -> bool {
        let information = self.information();
        core.exit.exit = decode(&information);
        // An entry that fails after VMLAUNCH has begun exits, but launches nothing.
        self.launched |= information.reason & ENTRY_FAILED == 0;
        let interrupted = self.vectoring();
        let length = information.basic().length_field();
        self.length = length.map(|field| self.current().read(field).low8());
        if let Some(Event { kind: EventKind::Nmi, .. }) = interrupted {
            // Its delivery did not happen: it will be injected again.
            self.set_blocked(Interruptibility::NMI, false);
        }
        if unblocks_nmi(&information, interrupted.is_some()) {
            self.set_blocked(Interruptibility::NMI, true);
        }
        core.exit.interrupted = interrupted;
        match core.exit.exit {
            VmExit::NmiWindow => self.set_primary(PrimaryControls::NMI_WINDOW, false),
            VmExit::Nmi => raise_host_nmi(),
            VmExit::NestedFault(_) => self.forget_step(),
            VmExit::InvalidState(_) => self.explain(Stage::Guest),
            VmExit::Exception(ExceptionExit { exception: Exception::DB, .. }) => {
                let info = InterruptionInfo::from_bits(information.interruption);
                if info.kind() == InterruptionKind::PRIVILEGED_SOFTWARE_EXCEPTION {
                    self.deliver_int1(info);
                    return false;
                }
                self.note_debug_exception(information.qualification);
            }
            _ => {}
        }
        true
    }

    /// The instruction has not run: a step over it is not due. One emulator
    /// leaves it pending, and would make it before the instruction runs again.
    fn forget_step(&self) {
        let v = self.current();
        let pending = v.read(FieldNatural::GUEST_PENDING_DEBUG);
        if pending & PENDING_DEBUG_BS != 0 {
            v.write(FieldNatural::GUEST_PENDING_DEBUG, pending & !PENDING_DEBUG_BS);
        }
    }

    /// Neither the exit nor an injection changes DR6 and DR7 as the exception
    /// would have (SDM: "Debug Exceptions").
    fn note_debug_exception(&mut self, qualification: u64) {
        write_dr6(read_dr6() & !DR6_BREAKPOINTS | qualification & DR6_CAUSES);
        let v = self.current();
        let dr7 = v.read(FieldNatural::GUEST_DR7);
        v.write(FieldNatural::GUEST_DR7, dr7 & !DR7_GENERAL_DETECT);
    }

    /// INT1 is delivered as what it is, with its length.
    fn deliver_int1(&self, info: InterruptionInfo) {
        let v = self.current();
        let word = InterruptionInfo::new()
            .with_vector(info.vector())
            .with_kind_number(info.kind_number())
            .with_valid(true);
        let length = info.length_field().map_or(0, |field| v.read(field));
        v.write(Field32::ENTRY_INTERRUPTION_INFO, word.into_bits());
        v.write(Field32::ENTRY_INSTRUCTION_LENGTH, length);
    }
}

fn read_cr2() -> u64 {
    let value: u64;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// An NMI that exited is the machine's: its handler runs, and its IRET
/// unblocks NMIs (SDM: "Effect of NMI Unblocking").
fn raise_host_nmi() {
    // SAFETY: the handler of vector 2 saves all registers, has its own stack,
    // and only notes that it ran.
    unsafe { asm!("int 2", options(nostack)) };
}
