//! A vCPU of AMD-V: its VMCB, and what goes around it.

use super::caps::SvmFeatures;
use super::{Caps, Cpu, asid, entry, maps};
use crate::cpu::asm;
use crate::error::HostError;
use crate::hw::extra::{Extra, machine_check_of_host, write_cr2};
use crate::hw::vectors;
use crate::mm;
use alloc::string::String;
use core::fmt;
use core::ptr::NonNull;
use devices::lapic::Lapic;
use memory::tags::{Flush, Tag};
use vmm::backend::{Backend, InstructionEnd, InterruptDelivery, Quirks, Windows};
use vmm::hot::timer::TimerKind;
use vmm::registers::{Fields, Registers};
use vmm::vcpu::VcpuCore;
use x86defs::exit::{ExceptionExit, ExitWithEvent};
use x86defs::vmcb::{
    Clean, EventInjection, ExitCode, INTERRUPT_SHADOW, Intercepts, Intercepts3, TlbControl,
    VirtualInterrupt, Vmcb, VmcbSegment, decode, interrupted_event,
};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Event, EventKind, Exception, HostPhysAddr, Rflags,
    SegmentAttributes, SegmentRegister, VectorRegister, VmExit,
};

/// The exceptions that exit now. If an exit would lose DR6, #DB is left to the
/// guest, except while an NMI's IRET is stepped over.
fn exceptions(caps: &Caps, nmi: NmiState) -> u32 {
    if caps.switches_less() && !matches!(nmi, NmiState::Stepping { .. }) {
        Intercepts::ALWAYS.exceptions & !(1 << Exception::DB.0)
    } else {
        Intercepts::ALWAYS.exceptions
    }
}

/// PAUSEs in a loop before one exits: some tens of microseconds of spinning.
const PAUSES: u16 = 3000;
/// PAUSEs further apart than this many cycles are of no loop, where the CPU has
/// the threshold.
const PAUSE_GAP: u16 = 128;

/// PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// How far the end of an NMI's handler has been followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NmiState {
    /// NMIs can be taken.
    Open,
    /// Blocked until the next IRET, which exits.
    Blocked,
    /// The IRET at this address has been reached and nobody waits: NMIs open
    /// once the guest is seen behind it.
    Ending { rip: u64 },
    /// The IRET is being single-stepped; `own` if the guest set TF itself.
    Stepping { own: bool },
}

/// A vCPU.
pub struct SvmVcpu {
    vmcb: NonNull<Vmcb>,
    vmcb_phys: HostPhysAddr,
    host_vmcb: HostPhysAddr,
    pub(super) caps: Caps,
    asid: Tag,
    /// The ASID is good for as long as the vCPU has its CPU.
    has_asid: bool,
    flush: bool,
    extra: Extra,
    nmi: NmiState,
    nmi_window: bool,
    /// CR4.MCE as the guest has it; in the VMCB it is the machine's.
    machine_check: bool,
    /// Why an entry was refused, line by line.
    pub(super) refusal: String,
}

// SAFETY: the VMCB is a frame of the vCPU's own; whoever owns the vCPU may use
// it from any CPU.
unsafe impl Send for SvmVcpu {}

impl fmt::Debug for SvmVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvmVcpu").field("vmcb", &self.vmcb_phys).finish_non_exhaustive()
    }
}

impl Drop for SvmVcpu {
    fn drop(&mut self) {
        mm::free_page(self.vmcb_phys);
    }
}

impl SvmVcpu {
    /// A vCPU in its reset state, on the nested tables at `nested_root`.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn new(cpu: &Cpu, nested_root: HostPhysAddr) -> Result<Self, HostError> {
        let maps = maps::get()?;
        let page = mm::allocate_page().ok_or(HostError::OutOfMemory("a VMCB"))?;
        let pointer = mm::direct(page) as *mut Vmcb;
        let vmcb = NonNull::new(pointer).ok_or(HostError::OutOfMemory("a VMCB"))?;
        let mut vcpu = Self {
            vmcb,
            vmcb_phys: page,
            host_vmcb: cpu.host_vmcb,
            caps: *cpu.caps(),
            asid: Tag::default(),
            has_asid: false,
            flush: true,
            extra: Extra::new(),
            nmi: NmiState::Open,
            nmi_window: false,
            machine_check: false,
            refusal: String::new(),
        };
        let (caps, cr_writes) = (vcpu.caps, vcpu.cr_writes());
        let control = &mut vcpu.vmcb_mut().control;
        control.intercept_exceptions = exceptions(&caps, NmiState::Open);
        control.intercepts3 = Intercepts::ALWAYS.third;
        control.intercepts4 = Intercepts::ALWAYS.fourth;
        if caps.features.contains(SvmFeatures::NEXT_RIP) {
            control.intercepts3 |= Intercepts3::CR0_SELECTIVE;
        }
        if caps.features.contains(SvmFeatures::PAUSE_FILTER) {
            control.intercepts3 |= Intercepts3::PAUSE;
            control.pause_filter_count = PAUSES;
            control.pause_filter_threshold = PAUSE_GAP;
        }
        control.intercept_cr_write = cr_writes;
        control.iopm_base = maps.io.as_u64();
        control.msrpm_base = maps.msr.as_u64();
        control.virtual_interrupt = VirtualInterrupt::new().with_masking(true);
        control.nested_control = 1;
        control.nested_cr3 = nested_root.as_u64();
        let save = &mut vcpu.vmcb_mut().save;
        save.g_pat = PAT_RESET;
        save.efer = Efer::SVME.bits();
        Ok(vcpu)
    }

    /// Gives the vCPU the CPU whose own registers are saved in `host_vmcb`, which is not that
    /// where it ran last if it has `moved`.
    pub(super) fn load(&mut self, host_vmcb: HostPhysAddr, core: &VcpuCore, moved: bool) {
        if moved {
            self.host_vmcb = host_vmcb;
            // Another CPU gave the ASID, and this one has cached nothing of the VMCB.
            self.asid = Tag::default();
            self.change(Clean::all());
        }
        // Others may have spent all ASIDs meanwhile.
        self.has_asid = false;
        self.extra.load(core.xcr0, core.tsc_aux);
    }

    /// Takes the vCPU off this CPU.
    pub(super) fn unload(&mut self) {
        self.extra.unload();
    }

    /// Writes of control registers that always exit: of CR4, whose bits CPUID
    /// may not offer. Of CR0 those that change more than TS and MP do, by
    /// another intercept; the emulator that compares only half of the register
    /// there is told by its lack of next-RIP save.
    fn cr_writes(&self) -> u16 {
        let always = Intercepts::ALWAYS.cr_writes;
        if self.caps.features.contains(SvmFeatures::NEXT_RIP) { always } else { always | 1 << 0 }
    }

    /// CR8, as the guest has it.
    fn task_priority(&self) -> u8 {
        self.vmcb().control.virtual_interrupt.tpr() & 0xf
    }

    pub(super) fn vmcb(&self) -> &Vmcb {
        // SAFETY: the page belongs to this vCPU; the CPU changes it only
        // during `entry::enter`, which borrows the vCPU mutably.
        unsafe { self.vmcb.as_ref() }
    }

    pub(super) fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as for `vmcb`, and the borrow is exclusive.
        unsafe { self.vmcb.as_mut() }
    }

    /// The VMCB, for a change of fields of these groups.
    fn change(&mut self, groups: Clean) -> &mut Vmcb {
        let vmcb = self.vmcb_mut();
        vmcb.control.clean.remove(groups);
        vmcb
    }

    /// Takes an ASID if the old one is spent or stale.
    pub(super) fn prepare_translations(&mut self) {
        let before = self.asid.value;
        let stale = core::mem::take(&mut self.flush);
        if self.has_asid && !stale {
            // The hot handler has cleared TLB_CONTROL after the last entry.
            return;
        }
        self.has_asid = true;
        let flush = asid::assign(&mut self.asid, stale);
        if self.asid.value != before {
            let value = self.asid.value;
            self.change(Clean::ASID).control.asid = value;
        }
        self.vmcb_mut().control.tlb_control = match flush {
            Flush::Nothing => return,
            Flush::ThisTag => TlbControl::ThisAsid,
            Flush::All => TlbControl::All,
        } as u8;
    }

    /// Enters.
    ///
    /// # Safety
    /// As for [`entry::enter`].
    #[inline]
    pub(super) unsafe fn enter(&mut self, core: &mut VcpuCore) {
        let (phys, host) = (self.vmcb_phys.as_u64(), self.host_vmcb.as_u64());
        // SAFETY: the caller vouches for what the VMCB says, and both
        // addresses are this vCPU's.
        unsafe { entry::enter(core, self.vmcb.as_ptr(), phys, host) };
    }

    /// Leaves the last exit in `core`. `false` if the general code need not know of it.
    fn after_exit(&mut self, core: &mut VcpuCore) -> bool {
        let assists = self.caps.features.contains(SvmFeatures::DECODE_ASSISTS);
        let c = &self.vmcb().control;
        core.exit.exit = decode(c.exit_code, c.exit_info1, c.exit_info2, assists);
        let mut interrupted = interrupted_event(c.exit_int_info);
        if self.caps.switches_less() && c.next_rip != self.vmcb().save.rip {
            // An INT n: of it the CPU reports the event before. The guest
            // executes it again.
            interrupted = None;
        }
        if let NmiState::Ending { rip } = self.nmi
            && rip != self.rip()
        {
            self.nmi = NmiState::Open;
        }
        if let Some(Event { kind: EventKind::Nmi, .. }) = interrupted {
            // Its delivery did not happen: it will be injected again.
            self.set_nmi_blocked(false);
        }
        core.exit.interrupted = interrupted;
        match core.exit.exit {
            VmExit::InvalidState(_) => {
                self.explain();
                true
            }
            // The IRET that ends an NMI's handler: NMIs stay blocked until it
            // has been executed, so it is stepped over.
            VmExit::NmiWindow if !self.nmi_window => {
                self.nmi = NmiState::Ending { rip: self.rip() };
                self.update_nmi_intercepts();
                false
            }
            VmExit::NmiWindow => {
                let own = self.rflags().contains(Rflags::TF);
                self.nmi = NmiState::Stepping { own };
                self.update_nmi_intercepts();
                self.vmcb_mut().save.rflags |= Rflags::TF.bits();
                false
            }
            VmExit::Exception(ExceptionExit { exception: Exception::DB, .. })
                if matches!(self.nmi, NmiState::Stepping { .. }) =>
            {
                let NmiState::Stepping { own } = self.nmi else { return false };
                self.nmi = NmiState::Open;
                self.update_nmi_intercepts();
                if own {
                    return true;
                }
                let dr6 = self.vmcb().save.dr6 & !DR6_SINGLE_STEP;
                self.change(Clean::DR).save.dr6 = dr6;
                if dr6 & DR6_BREAKPOINTS != 0 {
                    return true;
                }
                if core::mem::take(&mut self.nmi_window) {
                    core.exit.exit = VmExit::NmiWindow;
                    return true;
                }
                false
            }
            _ => true,
        }
    }

    fn update_nmi_intercepts(&mut self) {
        let wanted = self.nmi == NmiState::Blocked;
        let exceptions = exceptions(&self.caps, self.nmi);
        let control = &mut self.change(Clean::INTERCEPTS).control;
        control.intercepts3.set(Intercepts3::IRET, wanted);
        control.intercept_exceptions = exceptions;
    }

    fn segment_slot(&mut self, register: SegmentRegister) -> &mut VmcbSegment {
        let save = &mut self.change(Clean::SEG).save;
        match register {
            SegmentRegister::Ldtr => &mut save.ldtr,
            SegmentRegister::Tr => &mut save.tr,
            other => &mut save.segments[other as usize],
        }
    }
}

/// DR6.BS.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// DR6.B0 to B3.
const DR6_BREAKPOINTS: u64 = 0xf;

impl SvmVcpu {
    /// Known of the one emulator that also lacks next-RIP save.
    fn loses_shadow(&self) -> bool {
        !self.caps.features.contains(SvmFeatures::NEXT_RIP)
    }

    /// The same emulator executes XSETBV without an exit.
    fn lets_xsetbv_through(&self) -> bool {
        self.loses_shadow()
    }

    fn rip(&self) -> u64 {
        self.vmcb().save.rip
    }

    fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.vmcb().save.rflags)
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi = if blocked { NmiState::Blocked } else { NmiState::Open };
        self.update_nmi_intercepts();
    }

    fn store_cr4(&mut self, value: Cr4) {
        self.machine_check = value.contains(Cr4::MCE);
        // A machine check must reach the machine, whatever the guest thinks.
        let real = value | machine_check_of_host();
        // A guest that thinks otherwise is told so.
        let reads = if real == value { 0 } else { 1 << 4 };
        let vmcb = self.change(Clean::CR | Clean::INTERCEPTS);
        vmcb.save.cr4 = real.bits();
        vmcb.control.intercept_cr_read = reads;
    }

    fn set_interrupt_window(&mut self, wanted: bool) {
        if self.vmcb().control.virtual_interrupt.irq() == wanted {
            return;
        }
        let control = &mut self.change(Clean::INTERCEPTS | Clean::TPR).control;
        // A virtual interrupt that ignores the task priority: its only purpose
        // is the exit at the moment when the guest could take it.
        let v = control.virtual_interrupt;
        control.virtual_interrupt =
            v.with_irq(wanted).with_ignore_tpr(wanted).with_priority(0xf).with_vector(0);
        control.intercepts3.set(Intercepts3::VINTR, wanted);
    }

    /// The registers that most exits leave as they are.
    #[cold]
    fn store_others(&mut self, r: &Registers, changed: Fields) {
        let has = |field| changed.contains(field);
        if has(Fields::NMI_BLOCKED) {
            self.set_nmi_blocked(r.nmi_blocked.get());
        }
        if has(Fields::CR0) {
            self.change(Clean::CR).save.cr0 = r.cr0.get().bits();
        }
        if has(Fields::CR2) {
            self.change(Clean::CR2).save.cr2 = r.cr2.get();
        }
        if has(Fields::CR3) {
            self.change(Clean::CR).save.cr3 = r.cr3.get();
        }
        if has(Fields::CR4) {
            self.store_cr4(r.cr4.get());
        }
        if has(Fields::XCR0) {
            self.extra.set_xcr0(r.xcr0.get());
        }
        if has(Fields::TSC_AUX) {
            self.extra.set_tsc_aux(r.tsc_aux.get());
        }
        if has(Fields::EFER) {
            self.change(Clean::CR).save.efer = (r.efer.get() | Efer::SVME).bits();
        }
        if has(Fields::BREAKPOINTS) {
            self.extra.set_breakpoints(r.breakpoints.get());
        }
        if has(Fields::DR6) {
            self.change(Clean::DR).save.dr6 = r.dr6.get();
        }
        if has(Fields::DR7) {
            self.change(Clean::DR).save.dr7 = r.dr7.get();
        }
        if has(Fields::GDTR) {
            let slot = &mut self.change(Clean::DT).save.gdtr;
            (slot.base, slot.limit) = (r.gdtr.get().base, r.gdtr.get().limit.into());
        }
        if has(Fields::IDTR) {
            let slot = &mut self.change(Clean::DT).save.idtr;
            (slot.base, slot.limit) = (r.idtr.get().base, r.idtr.get().limit.into());
        }
        for register in SegmentRegister::ALL {
            if has(Fields::segment(register)) {
                *self.segment_slot(register) = r.segment(register).get().into();
            }
        }
        if has(Fields::SS) {
            // The CPL of a VMCB stands by itself; it is SS's, as in the CPU.
            self.change(Clean::SEG).save.cpl = r.cpl.get();
        }
        if has(Fields::PAT) {
            self.change(Clean::NP).save.g_pat = r.pat.get();
        }
        let s = &mut self.vmcb_mut().save;
        for (field, own, value) in [
            (Fields::STAR, &mut s.star, &r.star),
            (Fields::LSTAR, &mut s.lstar, &r.lstar),
            (Fields::CSTAR, &mut s.cstar, &r.cstar),
            (Fields::SFMASK, &mut s.sfmask, &r.sfmask),
            (Fields::KERNEL_GS_BASE, &mut s.kernel_gs_base, &r.kernel_gs_base),
            (Fields::SYSENTER_CS, &mut s.sysenter_cs, &r.sysenter_cs),
            (Fields::SYSENTER_ESP, &mut s.sysenter_esp, &r.sysenter_esp),
            (Fields::SYSENTER_EIP, &mut s.sysenter_eip, &r.sysenter_eip),
        ] {
            if has(field) {
                *own = value.get();
            }
        }
        self.flush |= changed.intersects(Fields::TRANSLATION);
    }
}

/// Registers that exits change often. The page-directory pointers are read from memory as all
/// other entries are (APM: "Legacy PAE Mode").
const OFTEN: Fields = Fields::RIP
    .union(Fields::RSP)
    .union(Fields::RFLAGS)
    .union(Fields::SHADOW)
    .union(Fields::CPL)
    .union(Fields::POINTERS);

impl Backend for SvmVcpu {
    // Most callers ask for one register, and get one load.
    #[inline(always)]
    fn fetch(&self, r: &Registers, fields: Fields) {
        let has = |field| fields.contains(field);
        let (s, c) = (&self.vmcb().save, &self.vmcb().control);
        if has(Fields::RIP) {
            r.rip.fill(s.rip);
        }
        if has(Fields::RSP) {
            r.rsp.fill(s.rsp);
        }
        if has(Fields::RFLAGS) {
            r.rflags.fill(Rflags::from_bits_retain(s.rflags));
        }
        if has(Fields::SHADOW) {
            r.interrupt_shadow.fill(c.interrupt_shadow & INTERRUPT_SHADOW != 0);
        }
        if has(Fields::NMI_BLOCKED) {
            r.nmi_blocked.fill(self.nmi != NmiState::Open);
        }
        if has(Fields::CR0) {
            r.cr0.fill(Cr0::from_bits_retain(s.cr0));
        }
        if has(Fields::CR2) {
            r.cr2.fill(s.cr2);
        }
        if has(Fields::CR3) {
            r.cr3.fill(s.cr3);
        }
        if has(Fields::CR4) {
            let mut cr4 = Cr4::from_bits_retain(s.cr4);
            cr4.set(Cr4::MCE, self.machine_check);
            r.cr4.fill(cr4);
        }
        if has(Fields::EFER) {
            // LMA is what it stands for: one emulator has changed it already when
            // the write of CR0 that does so exits.
            let mut efer = Efer::from_bits_retain(s.efer) - Efer::SVME;
            let paging = Cr0::from_bits_retain(s.cr0).contains(Cr0::PG);
            efer.set(Efer::LMA, efer.contains(Efer::LME) && paging);
            r.efer.fill(efer);
        }
        if has(Fields::PKRU) {
            r.pkru.fill(self.extra.pkru());
        }
        if has(Fields::BREAKPOINTS) {
            r.breakpoints.fill(self.extra.breakpoints());
        }
        if has(Fields::DR6) {
            r.dr6.fill(s.dr6);
        }
        if has(Fields::DR7) {
            r.dr7.fill(s.dr7);
        }
        if has(Fields::GDTR) {
            r.gdtr.fill(table(&s.gdtr));
        }
        if has(Fields::IDTR) {
            r.idtr.fill(table(&s.idtr));
        }
        if has(Fields::CPL) {
            r.cpl.fill(s.cpl);
        }
        if has(Fields::CODE) {
            let cs = s.segments[SegmentRegister::Cs as usize];
            r.code.fill(SegmentAttributes::from_svm(cs.attributes));
        }
        for (field, value, own) in [
            (Fields::STAR, &r.star, s.star),
            (Fields::LSTAR, &r.lstar, s.lstar),
            (Fields::CSTAR, &r.cstar, s.cstar),
            (Fields::SFMASK, &r.sfmask, s.sfmask),
            (Fields::KERNEL_GS_BASE, &r.kernel_gs_base, s.kernel_gs_base),
            (Fields::SYSENTER_CS, &r.sysenter_cs, s.sysenter_cs),
            (Fields::SYSENTER_ESP, &r.sysenter_esp, s.sysenter_esp),
            (Fields::SYSENTER_EIP, &r.sysenter_eip, s.sysenter_eip),
            (Fields::PAT, &r.pat, s.g_pat),
        ] {
            if has(field) {
                value.fill(own);
            }
        }
        for register in SegmentRegister::ALL {
            if has(Fields::segment(register)) {
                let slot = match register {
                    SegmentRegister::Ldtr => s.ldtr,
                    SegmentRegister::Tr => s.tr,
                    other => s.segments[other as usize],
                };
                r.segment(register).fill(slot.into());
            }
        }
    }

    #[inline]
    fn store(&mut self, r: &Registers) {
        let changed = r.changed();
        let vmcb = self.vmcb_mut();
        if changed.contains(Fields::RIP) {
            vmcb.save.rip = r.rip.get();
        }
        if changed.contains(Fields::RSP) {
            vmcb.save.rsp = r.rsp.get();
        }
        if changed.contains(Fields::RFLAGS) {
            vmcb.save.rflags = r.rflags.get().bits();
        }
        if changed.contains(Fields::SHADOW) {
            let field = &mut vmcb.control.interrupt_shadow;
            *field &= !INTERRUPT_SHADOW;
            if r.interrupt_shadow.get() {
                *field |= INTERRUPT_SHADOW;
            }
        }
        if !OFTEN.contains(changed) {
            self.store_others(r, changed);
        }
    }

    fn invalidate(&mut self) {
        self.flush = true;
    }

    fn inject(&mut self, event: Event) {
        self.vmcb_mut().control.event_injection = event.into();
        if event.kind == EventKind::Nmi {
            self.set_nmi_blocked(true);
        }
    }

    fn injection(&self) -> Option<Event> {
        interrupted_event(self.vmcb().control.event_injection)
    }

    #[inline]
    fn ask(&mut self, windows: Windows) {
        self.set_interrupt_window(windows.interrupt);
        self.nmi_window |= windows.nmi;
    }

    fn interrupt_delivery(&self) -> InterruptDelivery {
        InterruptDelivery::Injected
    }

    fn give_apic(&mut self, lapic: &mut Lapic) {
        if self.task_priority() != lapic.cr8() {
            let vmcb = self.change(Clean::TPR);
            vmcb.control.virtual_interrupt.set_tpr(lapic.cr8());
        }
        // The emulator that loses shadows also stops for good where CR8 is
        // written while a virtual interrupt waits.
        let fatal = self.loses_shadow() && self.vmcb().control.virtual_interrupt.irq();
        let exits = lapic.cr8_threshold() != 0 || fatal;
        let writes = self.cr_writes() | if exits { 1 << 8 } else { 0 };
        if self.vmcb().control.intercept_cr_write != writes {
            self.change(Clean::INTERCEPTS).control.intercept_cr_write = writes;
        }
    }

    fn take_apic(&mut self, lapic: &mut Lapic) {
        // V_TPR has the class only: the rest is kept unless that changed.
        let class = self.task_priority();
        if class != lapic.cr8() {
            lapic.set_cr8(class);
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.change(Clean::INTERCEPTS).control.tsc_offset = offset;
    }

    fn run(&mut self, core: &mut VcpuCore) {
        loop {
            self.prepare_translations();
            if self.caps.switches_less() {
                write_cr2(self.vmcb().save.cr2);
            }
            #[cfg(feature = "check-entries")]
            if let Some(exit) = self.broken_rule() {
                core.exit = exit;
                return;
            }
            core.served = false;
            core.watch.enter(asm::rdtsc());
            // SAFETY: SVM is on; the VMCB intercepts all that the guest may not
            // do by itself, and its nested tables map nothing but its RAM; the
            // host's save area was filled at start; interrupts are off.
            unsafe { self.enter(core) };
            core.watch.exit(asm::rdtsc());
            let clean = self.caps.features.contains(SvmFeatures::VMCB_CLEAN);
            self.vmcb_mut().control.clean = if clean { Clean::all() } else { Clean::empty() };
            if self.lets_xsetbv_through() {
                core.xcr0 = self.extra.look_at_xcr0();
            }
            if core.served {
                // The hot handler dealt with the exit but wants the general
                // code to look at what is pending.
                core.exit = ExitWithEvent::NOTHING;
                return;
            }
            if self.after_exit(core) {
                return;
            }
        }
    }

    fn instruction_end(&self) -> InstructionEnd {
        let c = &self.vmcb().control;
        if self.caps.features.contains(SvmFeatures::NEXT_RIP) && c.next_rip != 0 {
            return InstructionEnd::Rip(c.next_rip);
        }
        // IN and OUT always report it (APM: "IOIO Intercept Information").
        if c.exit_code == u64::from(ExitCode::IOIO.0) {
            return InstructionEnd::Rip(c.exit_info2);
        }
        InstructionEnd::Unknown
    }

    fn timer(&self) -> TimerKind {
        TimerKind::Machine
    }

    fn vector(&mut self, register: VectorRegister) -> Option<[u8; 32]> {
        vectors::read(register)
    }

    fn set_vector(&mut self, register: VectorRegister, value: [u8; 32]) -> Option<()> {
        vectors::write(register, &value)
    }

    fn quirks(&self) -> Quirks {
        // IRET is all that is intercepted for NMIs: their window sees no shadow.
        if self.loses_shadow() { Quirks::LOSES_SHADOW } else { Quirks::empty() }
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(&self.refusal)?;
        x86defs::vmcb::dump(self.vmcb(), out)
    }
}

fn table(slot: &VmcbSegment) -> DescriptorTable {
    use x86defs::bits::Low;
    DescriptorTable { base: slot.base, limit: slot.limit.low16() }
}

// An event that is about to be injected can be told from none.
const _: () = assert!(EventInjection::new().into_bits() == 0);
