//! A vCPU of AMD-V: its VMCB, and what goes around it.

use super::caps::SvmFeatures;
use super::{Caps, Cpu, asid, dump, entry, maps};
use crate::cpu::asm;
use crate::error::HostError;
use crate::hw::extra::{
    load_tsc_aux, machine_check_of_host, read_debug, write_cr2, write_debug, xgetbv_if_enabled,
};
use crate::mm;
use alloc::string::String;
use core::fmt;
use core::ptr::NonNull;
use devices::lapic::Lapic;
use memory::tags::{Flush, Tag};
use vmm::backend::{Backend, InterruptDelivery};
use vmm::hot::timer::TimerKind;
use vmm::vcpu::VcpuCore;
use x86defs::exit::{ExceptionExit, ExitWithEvent};
use x86defs::vmcb::{
    Clean, EventInjection, INTERRUPT_SHADOW, Intercepts, Intercepts3, TlbControl, VirtualInterrupt,
    Vmcb, VmcbSegment, decode, interrupted_event,
};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Event, EventKind, Exception, HostPhysAddr, Msr, Rflags,
    Segment, SegmentRegister, VmExit,
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
    flush: bool,
    xcr0: u64,
    tsc_aux: u64,
    /// DR0 to DR3, while they are not in the CPU.
    debug: [u64; 4],
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
            flush: true,
            xcr0: 1,
            tsc_aux: 0,
            debug: [0; 4],
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

    /// Makes the vCPU ready to run on the CPU whose own registers are saved in
    /// `host_vmcb`.
    pub(super) fn load(&mut self, host_vmcb: HostPhysAddr) {
        self.host_vmcb = host_vmcb;
        // Another CPU gave the ASID, and this one has cached nothing of the VMCB.
        self.asid = Tag::default();
        self.change(Clean::all());
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
        let flush = asid::assign(&mut self.asid, stale);
        if self.asid.value != before {
            let value = self.asid.value;
            self.change(Clean::ASID).control.asid = value;
        }
        // The hot handler has cleared the field after the last entry.
        self.vmcb_mut().control.tlb_control = match flush {
            Flush::Nothing => return,
            Flush::ThisTag => TlbControl::ThisAsid,
            Flush::All => TlbControl::All,
        } as u8;
    }

    /// Puts into the CPU what VMRUN does not switch.
    fn load_extra_state(&self) -> u64 {
        let host = xgetbv_if_enabled();
        if let Some(host) = host
            && host != self.xcr0
            && !cfg!(planted = "xcr0-leaked")
        {
            // SAFETY: the value was checked against what the CPU offers.
            unsafe { asm::xsetbv(self.xcr0) };
        }
        write_debug(self.debug);
        load_tsc_aux(self.tsc_aux);
        if self.caps.switches_less() {
            write_cr2(self.vmcb().save.cr2);
        }
        host.unwrap_or(self.xcr0)
    }

    /// Puts the hypervisor's own values back.
    fn unload_extra_state(&mut self, host_xcr0: u64) {
        self.debug = read_debug();
        write_debug([0; 4]);
        // One emulator lets XSETBV through.
        self.xcr0 = xgetbv_if_enabled().unwrap_or(self.xcr0);
        if host_xcr0 != self.xcr0 {
            // SAFETY: the value was read from the register before.
            unsafe { asm::xsetbv(host_xcr0) };
        }
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

    /// The last exit; `None` if the general code need not know of it.
    fn after_exit(&mut self) -> Option<ExitWithEvent> {
        let assists = self.caps.features.contains(SvmFeatures::DECODE_ASSISTS);
        let c = &self.vmcb().control;
        let exit = decode(c.exit_code, c.exit_info1, c.exit_info2, assists);
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
        match exit {
            VmExit::InvalidState(_) => {
                self.explain();
                Some(ExitWithEvent { exit, interrupted })
            }
            // The IRET that ends an NMI's handler: NMIs stay blocked until it
            // has been executed, so it is stepped over.
            VmExit::NmiWindow if !self.nmi_window => {
                self.nmi = NmiState::Ending { rip: self.rip() };
                self.update_nmi_intercepts();
                None
            }
            VmExit::NmiWindow => {
                let own = self.rflags().contains(Rflags::TF);
                self.nmi = NmiState::Stepping { own };
                self.update_nmi_intercepts();
                let flags = self.rflags() | Rflags::TF;
                self.set_rflags(flags);
                None
            }
            VmExit::Exception(ExceptionExit { exception: Exception::DB, .. })
                if matches!(self.nmi, NmiState::Stepping { .. }) =>
            {
                let NmiState::Stepping { own } = self.nmi else { return None };
                self.nmi = NmiState::Open;
                self.update_nmi_intercepts();
                if own {
                    return Some(ExitWithEvent { exit, interrupted });
                }
                let dr6 = self.dr(6) & !DR6_SINGLE_STEP;
                self.set_dr(6, dr6);
                if dr6 & DR6_BREAKPOINTS != 0 {
                    return Some(ExitWithEvent { exit, interrupted });
                }
                if core::mem::take(&mut self.nmi_window) {
                    return Some(ExitWithEvent { exit: VmExit::NmiWindow, interrupted });
                }
                None
            }
            _ => Some(ExitWithEvent { exit, interrupted }),
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

impl Backend for SvmVcpu {
    fn rip(&self) -> u64 {
        self.vmcb().save.rip
    }

    fn set_rip(&mut self, value: u64) {
        self.vmcb_mut().save.rip = value;
    }

    fn rsp(&self) -> u64 {
        self.vmcb().save.rsp
    }

    fn set_rsp(&mut self, value: u64) {
        self.vmcb_mut().save.rsp = value;
    }

    fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.vmcb().save.rflags)
    }

    fn set_rflags(&mut self, value: Rflags) {
        self.vmcb_mut().save.rflags = value.bits();
    }

    fn cr0(&self) -> Cr0 {
        Cr0::from_bits_retain(self.vmcb().save.cr0)
    }

    fn set_cr0(&mut self, value: Cr0) {
        self.change(Clean::CR).save.cr0 = value.bits();
        self.flush = true;
    }

    fn cr2(&self) -> u64 {
        self.vmcb().save.cr2
    }

    fn set_cr2(&mut self, value: u64) {
        self.change(Clean::CR2).save.cr2 = value;
    }

    fn cr3(&self) -> u64 {
        self.vmcb().save.cr3
    }

    fn set_cr3(&mut self, value: u64) {
        self.change(Clean::CR).save.cr3 = value;
        self.flush = true;
    }

    fn cr4(&self) -> Cr4 {
        let mut cr4 = Cr4::from_bits_retain(self.vmcb().save.cr4);
        cr4.set(Cr4::MCE, self.machine_check);
        cr4
    }

    fn set_cr4(&mut self, value: Cr4) {
        self.machine_check = value.contains(Cr4::MCE);
        // A machine check must reach the machine, whatever the guest thinks.
        let real = value | machine_check_of_host();
        // A guest that thinks otherwise is told so.
        let reads = if real == value { 0 } else { 1 << 4 };
        let vmcb = self.change(Clean::CR | Clean::INTERCEPTS);
        vmcb.save.cr4 = real.bits();
        vmcb.control.intercept_cr_read = reads;
        self.flush = true;
    }

    fn set_page_directory_pointers(&mut self, _: [u64; 4]) {
        // They are read from memory as all other entries are (APM: "Legacy PAE Mode").
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

    fn efer(&self) -> Efer {
        // LMA is what it stands for: one emulator has changed it already when
        // the write of CR0 that does so exits.
        let mut efer = Efer::from_bits_retain(self.vmcb().save.efer) - Efer::SVME;
        efer.set(Efer::LMA, efer.contains(Efer::LME) && self.cr0().contains(Cr0::PG));
        efer
    }

    fn set_efer(&mut self, value: Efer) {
        self.change(Clean::CR).save.efer = (value | Efer::SVME).bits();
        self.flush = true;
    }

    fn pkru(&self) -> u32 {
        // Guests are not offered protection keys.
        0
    }

    fn xcr0(&self) -> u64 {
        self.xcr0
    }

    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }

    fn dr(&self, number: u8) -> u64 {
        match number {
            0..=3 => self.debug[usize::from(number)],
            6 => self.vmcb().save.dr6,
            _ => self.vmcb().save.dr7,
        }
    }

    fn set_dr(&mut self, number: u8, value: u64) {
        match number {
            0..=3 => self.debug[usize::from(number)] = value,
            6 => self.change(Clean::DR).save.dr6 = value,
            _ => self.change(Clean::DR).save.dr7 = value,
        }
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        let save = &self.vmcb().save;
        match register {
            SegmentRegister::Ldtr => save.ldtr,
            SegmentRegister::Tr => save.tr,
            other => save.segments[other as usize],
        }
        .into()
    }

    fn set_segment(&mut self, register: SegmentRegister, value: Segment) {
        *self.segment_slot(register) = value.into();
        // The CPL of a VMCB stands by itself; it is SS's, as in the CPU.
        if register == SegmentRegister::Ss {
            self.change(Clean::SEG).save.cpl = value.attributes.dpl();
        }
    }

    fn gdtr(&self) -> DescriptorTable {
        table(&self.vmcb().save.gdtr)
    }

    fn set_gdtr(&mut self, value: DescriptorTable) {
        let slot = &mut self.change(Clean::DT).save.gdtr;
        slot.base = value.base;
        slot.limit = value.limit.into();
    }

    fn idtr(&self) -> DescriptorTable {
        table(&self.vmcb().save.idtr)
    }

    fn set_idtr(&mut self, value: DescriptorTable) {
        let slot = &mut self.change(Clean::DT).save.idtr;
        slot.base = value.base;
        slot.limit = value.limit.into();
    }

    fn cpl(&self) -> u8 {
        self.vmcb().save.cpl
    }

    fn msr(&self, msr: Msr) -> Option<u64> {
        let s = &self.vmcb().save;
        Some(match msr {
            Msr::STAR => s.star,
            Msr::LSTAR => s.lstar,
            Msr::CSTAR => s.cstar,
            Msr::SFMASK => s.sfmask,
            Msr::KERNEL_GS_BASE => s.kernel_gs_base,
            Msr::FS_BASE => self.segment(SegmentRegister::Fs).base,
            Msr::GS_BASE => self.segment(SegmentRegister::Gs).base,
            Msr::SYSENTER_CS => s.sysenter_cs,
            Msr::SYSENTER_ESP => s.sysenter_esp,
            Msr::SYSENTER_EIP => s.sysenter_eip,
            Msr::PAT => s.g_pat,
            _ => return None,
        })
    }

    fn set_msr(&mut self, msr: Msr, value: u64) -> bool {
        let s = &mut self.vmcb_mut().save;
        match msr {
            Msr::STAR => s.star = value,
            Msr::LSTAR => s.lstar = value,
            Msr::CSTAR => s.cstar = value,
            Msr::SFMASK => s.sfmask = value,
            Msr::KERNEL_GS_BASE => s.kernel_gs_base = value,
            Msr::FS_BASE => self.segment_slot(SegmentRegister::Fs).base = value,
            Msr::GS_BASE => self.segment_slot(SegmentRegister::Gs).base = value,
            Msr::SYSENTER_CS => s.sysenter_cs = value,
            Msr::SYSENTER_ESP => s.sysenter_esp = value,
            Msr::SYSENTER_EIP => s.sysenter_eip = value,
            Msr::PAT => self.change(Clean::NP).save.g_pat = value,
            _ => return false,
        }
        true
    }

    fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value;
    }

    fn interrupt_shadow(&self) -> bool {
        self.vmcb().control.interrupt_shadow & INTERRUPT_SHADOW != 0
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) {
        let field = &mut self.vmcb_mut().control.interrupt_shadow;
        *field = if shadow { *field | INTERRUPT_SHADOW } else { *field & !INTERRUPT_SHADOW };
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

    fn nmi_blocked(&self) -> bool {
        self.nmi != NmiState::Open
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi = if blocked { NmiState::Blocked } else { NmiState::Open };
        self.update_nmi_intercepts();
    }

    fn nmi_window_sees_shadow(&self) -> bool {
        // IRET is all that is intercepted.
        false
    }

    fn request_nmi_window(&mut self) {
        self.nmi_window = true;
    }

    fn next_rip(&self) -> Option<u64> {
        let c = &self.vmcb().control;
        if self.caps.features.contains(SvmFeatures::NEXT_RIP) && c.next_rip != 0 {
            return Some(c.next_rip);
        }
        // IN and OUT always report it (APM: "IOIO Intercept Information").
        (c.exit_code == 0x7b).then_some(c.exit_info2)
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.change(Clean::INTERCEPTS).control.tsc_offset = offset;
    }

    fn flush_translations(&mut self) {
        self.flush = true;
    }

    fn loses_shadow(&self) -> bool {
        // Known of the one emulator that also lacks next-RIP save.
        !self.caps.features.contains(SvmFeatures::NEXT_RIP)
    }

    fn timer(&self) -> TimerKind {
        TimerKind::Machine
    }

    fn run(&mut self, core: &mut VcpuCore) -> ExitWithEvent {
        let host_xcr0 = self.load_extra_state();
        let result = loop {
            self.prepare_translations();
            #[cfg(feature = "check-entries")]
            if let Some(exit) = self.broken_rule() {
                break exit;
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
            if core.served {
                // The hot handler dealt with the exit but wants the general
                // code to look at what is pending.
                break ExitWithEvent { exit: VmExit::TimesliceExpired, interrupted: None };
            }
            if let Some(exit) = self.after_exit() {
                break exit;
            }
        };
        self.unload_extra_state(host_xcr0);
        result
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(&self.refusal)?;
        dump::dump(self.vmcb(), out)
    }
}

fn table(slot: &VmcbSegment) -> DescriptorTable {
    use x86defs::bits::Low;
    DescriptorTable { base: slot.base, limit: slot.limit.low16() }
}

// An event that is about to be injected can be told from none.
const _: () = assert!(EventInjection::new().into_bits() == 0);
