//! A vCPU of VT-x as the general code sees it.

use super::dump;
use super::vcpu::{GUEST_CR0, GUEST_CR4, VmxVcpu};
use crate::hw::extra::machine_check_of_host;
use crate::hw::vectors;
use core::fmt;
use devices::lapic::Lapic;
use vmm::backend::{Backend, InstructionEnd, InterruptDelivery, Quirks, Windows};
use vmm::hot::timer::TimerKind;
use vmm::registers::{Fields, Registers};
use vmm::vcpu::VcpuCore;
use x86defs::bits::Low;
use x86defs::vmcs::{
    ACCESS_RIGHTS_UNUSABLE, Field16, Field32, Field64, FieldNatural, Interruptibility,
    InterruptionInfo, PENDING_DEBUG_BS, PrimaryControls,
};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Event, Rflags, Segment, SegmentAttributes, SegmentRegister,
    VectorRegister,
};

impl VmxVcpu {
    /// CR0: the bits that the guest has, and those that it thinks it has.
    fn store_cr0(&mut self, value: Cr0) {
        self.cr0_shadow = value;
        // Caches stay on, and VT-x wants NE.
        let real = (value - Cr0::CD - Cr0::NW) | Cr0::NE | Cr0::ET;
        let v = self.current();
        v.write(FieldNatural::GUEST_CR0, real.bits());
        v.write(FieldNatural::CR0_SHADOW, value.bits());
    }

    fn store_cr4(&mut self, value: Cr4) {
        self.cr4_shadow = value;
        // A machine check must reach the machine, whatever the guest thinks.
        let v = self.current();
        v.write(FieldNatural::GUEST_CR4, (value | Cr4::VMXE | machine_check_of_host()).bits());
        v.write(FieldNatural::CR4_SHADOW, value.bits());
    }

    fn store_segment(&self, register: SegmentRegister, value: Segment) {
        let v = self.current();
        let rights = u32::from(value.attributes.into_bits());
        let unusable = if value.attributes.present() { 0 } else { ACCESS_RIGHTS_UNUSABLE };
        v.write(Field16::guest_selector(register), value.selector);
        v.write(Field32::guest_rights(register), rights | unusable);
        v.write(Field32::guest_limit(register), value.limit);
        v.write(FieldNatural::guest_base(register), value.base);
    }

    #[inline(always)]
    fn attributes(&self, register: SegmentRegister) -> SegmentAttributes {
        let rights = self.current().read(Field32::guest_rights(register));
        let attributes = SegmentAttributes::from_bits(rights.low16() & 0xf0ff);
        let usable = rights & ACCESS_RIGHTS_UNUSABLE == 0;
        attributes.with_present(usable && attributes.present())
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        let v = self.current();
        Segment {
            selector: v.read(Field16::guest_selector(register)),
            attributes: self.attributes(register),
            limit: v.read(Field32::guest_limit(register)),
            base: v.read(FieldNatural::guest_base(register)),
        }
    }

    /// Stores the causes that hold interrupts and NMIs off.
    fn store_blocked(&mut self, r: &Registers, changed: Fields) {
        if changed.contains(Fields::NMI_BLOCKED) {
            self.set_blocked(Interruptibility::NMI, r.nmi_blocked.get());
        }
        if !changed.contains(Fields::SHADOW) {
            return;
        }
        if r.interrupt_shadow.get() {
            // That of MOV SS, which holds debug traps off too: no STI is emulated. An entry with
            // both is refused.
            self.set_blocked(Interruptibility::STI, false);
            self.set_blocked(Interruptibility::MOV_SS, true);
        } else {
            // The step that was put off is the general code's to make.
            let v = self.current();
            let pending = v.read(FieldNatural::GUEST_PENDING_DEBUG);
            if pending & PENDING_DEBUG_BS != 0 {
                v.write(FieldNatural::GUEST_PENDING_DEBUG, pending & !PENDING_DEBUG_BS);
            }
            self.set_blocked(Interruptibility::SHADOW, false);
        }
    }

    /// The registers that most exits leave as they are.
    #[cold]
    fn store_others(&mut self, r: &Registers, changed: Fields) {
        let has = |field| changed.contains(field);
        if has(Fields::CR0) {
            self.store_cr0(r.cr0.get());
        }
        if has(Fields::CR4) {
            self.store_cr4(r.cr4.get());
        }
        if has(Fields::CR2) {
            self.cr2 = r.cr2.get();
        }
        if has(Fields::BREAKPOINTS) {
            self.extra.set_breakpoints(r.breakpoints.get());
        }
        if has(Fields::DR6) {
            self.set_dr6(r.dr6.get());
        }
        if has(Fields::XCR0) {
            self.extra.set_xcr0(r.xcr0.get());
        }
        if has(Fields::TSC_AUX) {
            self.extra.set_tsc_aux(r.tsc_aux.get());
        }
        if has(Fields::EFER) {
            self.efer = r.efer.get();
            self.set_long_mode(self.efer.contains(Efer::LMA));
        }
        let v = self.current();
        if has(Fields::EFER) {
            v.write(Field64::GUEST_EFER, self.efer.bits());
        }
        if has(Fields::CR3) {
            v.write(FieldNatural::GUEST_CR3, r.cr3.get());
        }
        if has(Fields::POINTERS) {
            for (field, entry) in POINTERS.into_iter().zip(r.pointers.get()) {
                v.write(field, entry);
            }
        }
        if has(Fields::DR7) {
            v.write(FieldNatural::GUEST_DR7, r.dr7.get());
        }
        if has(Fields::GDTR) {
            v.write(FieldNatural::GUEST_GDTR_BASE, r.gdtr.get().base);
            v.write(Field32::GUEST_GDTR_LIMIT, r.gdtr.get().limit.into());
        }
        if has(Fields::IDTR) {
            v.write(FieldNatural::GUEST_IDTR_BASE, r.idtr.get().base);
            v.write(Field32::GUEST_IDTR_LIMIT, r.idtr.get().limit.into());
        }
        if has(Fields::SYSENTER_CS) {
            v.write(Field32::GUEST_SYSENTER_CS, r.sysenter_cs.get().low32());
        }
        if has(Fields::SYSENTER_ESP) {
            v.write(FieldNatural::GUEST_SYSENTER_ESP, r.sysenter_esp.get());
        }
        if has(Fields::SYSENTER_EIP) {
            v.write(FieldNatural::GUEST_SYSENTER_EIP, r.sysenter_eip.get());
        }
        if has(Fields::PAT) {
            v.write(Field64::GUEST_PAT, r.pat.get());
        }
        for register in SegmentRegister::ALL {
            if has(Fields::segment(register)) {
                self.store_segment(register, r.segment(register).get());
            }
        }
        if changed.intersects(Fields::SYSCALL) {
            self.syscall.store(r, changed, self.extra.is_loaded());
        }
        self.flush |= changed.intersects(Fields::TRANSLATION);
    }
}

/// The page-directory pointers.
const POINTERS: [Field64; 4] =
    [Field64::GUEST_PDPTE0, Field64::GUEST_PDPTE1, Field64::GUEST_PDPTE2, Field64::GUEST_PDPTE3];

/// Registers that exits change often.
const OFTEN: Fields =
    Fields::RIP.union(Fields::RSP).union(Fields::RFLAGS).union(BLOCKED).union(Fields::CPL);
const BLOCKED: Fields = Fields::SHADOW.union(Fields::NMI_BLOCKED);

impl Backend for VmxVcpu {
    // Most callers ask for one register, and get one VMREAD.
    #[inline(always)]
    fn fetch(&self, r: &Registers, fields: Fields) {
        let has = |field| fields.contains(field);
        let v = self.current();
        if has(Fields::RIP) {
            r.rip.fill(v.read(FieldNatural::GUEST_RIP));
        }
        if has(Fields::RSP) {
            r.rsp.fill(v.read(FieldNatural::GUEST_RSP));
        }
        if has(Fields::RFLAGS) {
            r.rflags.fill(Rflags::from_bits_retain(v.read(FieldNatural::GUEST_RFLAGS)));
        }
        if has(Fields::SHADOW) {
            r.interrupt_shadow.fill(self.blocked().intersects(Interruptibility::SHADOW));
        }
        if has(Fields::NMI_BLOCKED) {
            r.nmi_blocked.fill(self.blocked().contains(Interruptibility::NMI));
        }
        if has(Fields::CR0) {
            let own = Cr0::from_bits_retain(v.read(FieldNatural::GUEST_CR0));
            r.cr0.fill((own & GUEST_CR0) | (self.cr0_shadow - GUEST_CR0));
        }
        if has(Fields::CR2) {
            r.cr2.fill(self.cr2);
        }
        if has(Fields::CR3) {
            r.cr3.fill(v.read(FieldNatural::GUEST_CR3));
        }
        if has(Fields::CR4) {
            let own = Cr4::from_bits_retain(v.read(FieldNatural::GUEST_CR4));
            r.cr4.fill((own & GUEST_CR4) | (self.cr4_shadow - GUEST_CR4));
        }
        if has(Fields::EFER) {
            r.efer.fill(self.efer);
        }
        if has(Fields::POINTERS) {
            r.pointers.fill(POINTERS.map(|field| v.read(field)));
        }
        if has(Fields::PKRU) {
            r.pkru.fill(self.extra.pkru());
        }
        if has(Fields::BREAKPOINTS) {
            r.breakpoints.fill(self.extra.breakpoints());
        }
        if has(Fields::DR6) {
            r.dr6.fill(self.dr6());
        }
        if has(Fields::DR7) {
            r.dr7.fill(v.read(FieldNatural::GUEST_DR7));
        }
        if has(Fields::GDTR) {
            let base = v.read(FieldNatural::GUEST_GDTR_BASE);
            let limit = v.read(Field32::GUEST_GDTR_LIMIT).low16();
            r.gdtr.fill(DescriptorTable { base, limit });
        }
        if has(Fields::IDTR) {
            let base = v.read(FieldNatural::GUEST_IDTR_BASE);
            let limit = v.read(Field32::GUEST_IDTR_LIMIT).low16();
            r.idtr.fill(DescriptorTable { base, limit });
        }
        if has(Fields::CPL) {
            // SS's privilege level is the CPU's, even where SS is unusable.
            let rights = v.read(Field32::GUEST_SS_RIGHTS);
            r.cpl.fill(SegmentAttributes::from_bits(rights.low16() & 0xf0ff).dpl());
        }
        if has(Fields::CODE) {
            r.code.fill(self.attributes(SegmentRegister::Cs));
        }
        if has(Fields::SYSENTER_CS) {
            r.sysenter_cs.fill(v.read(Field32::GUEST_SYSENTER_CS).into());
        }
        if has(Fields::SYSENTER_ESP) {
            r.sysenter_esp.fill(v.read(FieldNatural::GUEST_SYSENTER_ESP));
        }
        if has(Fields::SYSENTER_EIP) {
            r.sysenter_eip.fill(v.read(FieldNatural::GUEST_SYSENTER_EIP));
        }
        if has(Fields::PAT) {
            r.pat.fill(v.read(Field64::GUEST_PAT));
        }
        if fields.intersects(Fields::SYSCALL) {
            self.syscall.fetch(r, fields, self.extra.is_loaded());
        }
        for register in SegmentRegister::ALL {
            if has(Fields::segment(register)) {
                r.segment(register).fill(self.segment(register));
            }
        }
    }

    #[inline]
    fn store(&mut self, r: &Registers) {
        let changed = r.changed();
        let v = self.current();
        if changed.contains(Fields::RIP) {
            v.write(FieldNatural::GUEST_RIP, r.rip.get());
        }
        if changed.contains(Fields::RSP) {
            v.write(FieldNatural::GUEST_RSP, r.rsp.get());
        }
        if changed.contains(Fields::RFLAGS) {
            v.write(FieldNatural::GUEST_RFLAGS, r.rflags.get().bits());
        }
        if changed.intersects(BLOCKED) {
            self.store_blocked(r, changed);
        }
        if !OFTEN.contains(changed) {
            self.store_others(r, changed);
        }
    }

    fn invalidate(&mut self) {
        self.flush = true;
        self.flush_nested = true;
    }

    fn inject(&mut self, event: Event) {
        let (word, error_code, length) = InterruptionInfo::inject(event);
        let v = self.current();
        v.write(Field32::ENTRY_INTERRUPTION_INFO, word.into_bits());
        v.write(Field32::ENTRY_EXCEPTION_ERROR, error_code);
        v.write(Field32::ENTRY_INSTRUCTION_LENGTH, length);
        self.injection = Some(event);
    }

    fn injection(&self) -> Option<Event> {
        self.injection
    }

    #[inline]
    fn ask(&mut self, windows: Windows) {
        self.set_primary(PrimaryControls::INTERRUPT_WINDOW, windows.interrupt);
        if windows.nmi {
            self.set_primary(PrimaryControls::NMI_WINDOW, true);
        }
    }

    fn interrupt_delivery(&self) -> InterruptDelivery {
        self.apic.delivery()
    }

    fn give_apic(&mut self, lapic: &mut Lapic) {
        self.apic.give(self.vmcs.current(), lapic);
    }

    fn take_apic(&mut self, lapic: &mut Lapic) {
        self.apic.take(self.vmcs.current(), lapic);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.current().write(Field64::TSC_OFFSET, offset);
    }

    fn run(&mut self, core: &mut VcpuCore) {
        self.run_until_cold(core);
    }

    fn instruction_end(&self) -> InstructionEnd {
        self.length.map_or(InstructionEnd::Unknown, InstructionEnd::Length)
    }

    fn timer(&self) -> TimerKind {
        self.timer_kind()
    }

    fn vector(&mut self, register: VectorRegister) -> Option<[u8; 32]> {
        vectors::read(register)
    }

    fn set_vector(&mut self, register: VectorRegister, value: [u8; 32]) -> Option<()> {
        vectors::write(register, &value)
    }

    fn quirks(&self) -> Quirks {
        Quirks::NMI_WINDOW_SEES_SHADOW
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(&self.refusal)?;
        dump::dump(self.current(), out)
    }
}
