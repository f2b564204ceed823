//! A vCPU of VT-x as the general code sees it.

use super::dump;
use super::vcpu::{GUEST_CR0, GUEST_CR4, VmxVcpu};
use crate::hw::extra::machine_check_of_host;
use core::fmt;
use devices::lapic::Lapic;
use vmm::backend::{Backend, InterruptDelivery};
use vmm::hot::timer::TimerKind;
use vmm::vcpu::VcpuCore;
use x86defs::bits::Low;
use x86defs::control::CpuMode;
use x86defs::exit::ExitWithEvent;
use x86defs::vmcs::{
    ACCESS_RIGHTS_UNUSABLE, Field16, Field32, Field64, FieldNatural, Interruptibility,
    InterruptionInfo, PENDING_DEBUG_BS, PrimaryControls,
};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Event, Msr, Rflags, Segment, SegmentAttributes,
    SegmentRegister,
};

impl Backend for VmxVcpu {
    fn rip(&self) -> u64 {
        self.current().read(FieldNatural::GUEST_RIP)
    }

    fn set_rip(&mut self, value: u64) {
        self.current().write(FieldNatural::GUEST_RIP, value);
    }

    fn rsp(&self) -> u64 {
        self.current().read(FieldNatural::GUEST_RSP)
    }

    fn set_rsp(&mut self, value: u64) {
        self.current().write(FieldNatural::GUEST_RSP, value);
    }

    fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.current().read(FieldNatural::GUEST_RFLAGS))
    }

    fn set_rflags(&mut self, value: Rflags) {
        self.current().write(FieldNatural::GUEST_RFLAGS, value.bits());
    }

    fn cr0(&self) -> Cr0 {
        let own = Cr0::from_bits_retain(self.current().read(FieldNatural::GUEST_CR0));
        (own & GUEST_CR0) | (self.cr0_shadow - GUEST_CR0)
    }

    fn set_cr0(&mut self, value: Cr0) {
        self.cr0_shadow = value;
        // Caches stay on, and VT-x wants NE.
        let real = (value - Cr0::CD - Cr0::NW) | Cr0::NE | Cr0::ET;
        let v = self.current();
        v.write(FieldNatural::GUEST_CR0, real.bits());
        v.write(FieldNatural::CR0_SHADOW, value.bits());
        self.flush = true;
    }

    fn cr2(&self) -> u64 {
        self.cr2
    }

    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }

    fn cr3(&self) -> u64 {
        self.current().read(FieldNatural::GUEST_CR3)
    }

    fn set_cr3(&mut self, value: u64) {
        self.current().write(FieldNatural::GUEST_CR3, value);
        self.flush = true;
    }

    fn cr4(&self) -> Cr4 {
        let own = Cr4::from_bits_retain(self.current().read(FieldNatural::GUEST_CR4));
        (own & GUEST_CR4) | (self.cr4_shadow - GUEST_CR4)
    }

    fn set_cr4(&mut self, value: Cr4) {
        self.cr4_shadow = value;
        // A machine check must reach the machine, whatever the guest thinks.
        let v = self.current();
        v.write(FieldNatural::GUEST_CR4, (value | Cr4::VMXE | machine_check_of_host()).bits());
        v.write(FieldNatural::CR4_SHADOW, value.bits());
        self.flush = true;
    }

    fn set_page_directory_pointers(&mut self, entries: [u64; 4]) {
        let v = self.current();
        let fields = [
            Field64::GUEST_PDPTE0,
            Field64::GUEST_PDPTE1,
            Field64::GUEST_PDPTE2,
            Field64::GUEST_PDPTE3,
        ];
        for (field, entry) in fields.into_iter().zip(entries) {
            v.write(field, entry);
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

    fn efer(&self) -> Efer {
        self.efer
    }

    fn set_efer(&mut self, value: Efer) {
        self.efer = value;
        self.current().write(Field64::GUEST_EFER, value.bits());
        self.set_long_mode(value.contains(Efer::LMA));
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
            6 => self.dr6,
            _ => self.current().read(FieldNatural::GUEST_DR7),
        }
    }

    fn set_dr(&mut self, number: u8, value: u64) {
        match number {
            0..=3 => self.debug[usize::from(number)] = value,
            6 => self.dr6 = value,
            _ => self.current().write(FieldNatural::GUEST_DR7, value),
        }
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        let v = self.current();
        let rights = v.read(Field32::guest_rights(register));
        let attributes = SegmentAttributes::from_bits(rights.low16() & 0xf0ff);
        let usable = rights & ACCESS_RIGHTS_UNUSABLE == 0;
        Segment {
            selector: v.read(Field16::guest_selector(register)),
            attributes: attributes.with_present(usable && attributes.present()),
            limit: v.read(Field32::guest_limit(register)),
            base: v.read(FieldNatural::guest_base(register)),
        }
    }

    fn set_segment(&mut self, register: SegmentRegister, value: Segment) {
        let v = self.current();
        let rights = u32::from(value.attributes.into_bits());
        let unusable = if value.attributes.present() { 0 } else { ACCESS_RIGHTS_UNUSABLE };
        v.write(Field16::guest_selector(register), value.selector);
        v.write(Field32::guest_rights(register), rights | unusable);
        v.write(Field32::guest_limit(register), value.limit);
        v.write(FieldNatural::guest_base(register), value.base);
    }

    fn gdtr(&self) -> DescriptorTable {
        let v = self.current();
        DescriptorTable {
            base: v.read(FieldNatural::GUEST_GDTR_BASE),
            limit: v.read(Field32::GUEST_GDTR_LIMIT).low16(),
        }
    }

    fn set_gdtr(&mut self, value: DescriptorTable) {
        let v = self.current();
        v.write(FieldNatural::GUEST_GDTR_BASE, value.base);
        v.write(Field32::GUEST_GDTR_LIMIT, value.limit.into());
    }

    fn idtr(&self) -> DescriptorTable {
        let v = self.current();
        DescriptorTable {
            base: v.read(FieldNatural::GUEST_IDTR_BASE),
            limit: v.read(Field32::GUEST_IDTR_LIMIT).low16(),
        }
    }

    fn set_idtr(&mut self, value: DescriptorTable) {
        let v = self.current();
        v.write(FieldNatural::GUEST_IDTR_BASE, value.base);
        v.write(Field32::GUEST_IDTR_LIMIT, value.limit.into());
    }

    fn cpl(&self) -> u8 {
        // SS's privilege level is the CPU's, even where SS is unusable.
        let rights = self.current().read(Field32::GUEST_SS_RIGHTS);
        SegmentAttributes::from_bits(rights.low16() & 0xf0ff).dpl()
    }

    fn msr(&self, msr: Msr) -> Option<u64> {
        let v = self.current();
        Some(match msr {
            Msr::FS_BASE => v.read(FieldNatural::GUEST_FS_BASE),
            Msr::GS_BASE => v.read(FieldNatural::GUEST_GS_BASE),
            Msr::SYSENTER_CS => v.read(Field32::GUEST_SYSENTER_CS).into(),
            Msr::SYSENTER_ESP => v.read(FieldNatural::GUEST_SYSENTER_ESP),
            Msr::SYSENTER_EIP => v.read(FieldNatural::GUEST_SYSENTER_EIP),
            Msr::PAT => v.read(Field64::GUEST_PAT),
            _ => return self.syscall.get(msr),
        })
    }

    fn set_msr(&mut self, msr: Msr, value: u64) -> bool {
        let v = self.current();
        match msr {
            Msr::FS_BASE => v.write(FieldNatural::GUEST_FS_BASE, value),
            Msr::GS_BASE => v.write(FieldNatural::GUEST_GS_BASE, value),
            Msr::SYSENTER_CS => v.write(Field32::GUEST_SYSENTER_CS, value.low32()),
            Msr::SYSENTER_ESP => v.write(FieldNatural::GUEST_SYSENTER_ESP, value),
            Msr::SYSENTER_EIP => v.write(FieldNatural::GUEST_SYSENTER_EIP, value),
            Msr::PAT => {
                v.write(Field64::GUEST_PAT, value);
                self.flush = true;
            }
            _ => return self.syscall.set(msr, value),
        }
        true
    }

    fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value;
    }

    fn interrupt_shadow(&self) -> bool {
        self.blocked().intersects(Interruptibility::SHADOW)
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) {
        if shadow {
            // The shadow of STI is refused where interrupts are off.
            let open = self.rflags().contains(Rflags::IF);
            let kind = if open { Interruptibility::STI } else { Interruptibility::MOV_SS };
            self.set_blocked(kind, true);
        } else if self.interrupt_shadow() {
            self.set_blocked(Interruptibility::SHADOW, false);
            // The step that was put off is the general code's to make.
            let v = self.current();
            let pending = v.read(FieldNatural::GUEST_PENDING_DEBUG);
            v.write(FieldNatural::GUEST_PENDING_DEBUG, pending & !PENDING_DEBUG_BS);
        }
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

    fn set_interrupt_window(&mut self, wanted: bool) {
        self.set_primary(PrimaryControls::INTERRUPT_WINDOW, wanted);
    }

    fn nmi_blocked(&self) -> bool {
        self.blocked().contains(Interruptibility::NMI)
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.set_blocked(Interruptibility::NMI, blocked);
    }

    fn nmi_window_sees_shadow(&self) -> bool {
        true
    }

    fn request_nmi_window(&mut self) {
        self.set_primary(PrimaryControls::NMI_WINDOW, true);
    }

    fn next_rip(&self) -> Option<u64> {
        let next = self.rip().wrapping_add(self.length?.into());
        let cs = self.segment(SegmentRegister::Cs).attributes;
        let mode = CpuMode::of(self.cr0(), self.efer, self.rflags(), cs.long(), cs.big());
        Some(match mode.bits() {
            64 => next,
            32 => next.low32().into(),
            _ => next.low16().into(),
        })
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.current().write(Field64::TSC_OFFSET, offset);
    }

    fn flush_translations(&mut self) {
        self.flush = true;
        self.flush_nested = true;
    }

    fn loses_shadow(&self) -> bool {
        false
    }

    fn timer(&self) -> TimerKind {
        self.timer_kind()
    }

    fn run(&mut self, core: &mut VcpuCore) -> ExitWithEvent {
        self.run_until_cold(core)
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(&self.refusal)?;
        dump::dump(self.current(), out)
    }
}
