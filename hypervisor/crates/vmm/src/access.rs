//! Registers of a vCPU as policy reads and writes them: [`Registers`] first, the
//! hardware only where they are not known yet.

use crate::backend::Backend;
use crate::registers::Fields;
#[cfg(doc)]
use crate::registers::Registers;
use crate::vcpu::Vcpu;
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Msr, Rflags, Segment, SegmentAttributes, SegmentRegister,
};

macro_rules! accessors {
    ($($(#[$doc:meta])* $get:ident, $set:ident: $field:ident, $type:ty;)*) => {
        impl<B: Backend + ?Sized> Vcpu<B> {$(
            $(#[$doc])*
            #[inline]
            pub fn $get(&self) -> $type {
                self.know(Fields::$field);
                self.registers.$get.get()
            }

            #[doc = concat!("Sets [`", stringify!($get), "`](Self::", stringify!($get), ").")]
            #[inline]
            pub fn $set(&mut self, value: $type) {
                self.registers.$get.fill(value);
                self.registers.change(Fields::$field);
            }
        )*}
    };
}

accessors! {
    /// RIP.
    rip, set_rip: RIP, u64;
    /// RSP.
    rsp, set_rsp: RSP, u64;
    /// RFLAGS.
    rflags, set_rflags: RFLAGS, Rflags;
    /// Whether interrupts are held off for one instruction (after STI, MOV SS).
    interrupt_shadow, set_interrupt_shadow: SHADOW, bool;
    /// Whether NMIs are blocked until the guest's next IRET.
    nmi_blocked, set_nmi_blocked: NMI_BLOCKED, bool;
    /// CR0, as the guest sees it.
    cr0, set_cr0: CR0, Cr0;
    /// CR2.
    cr2, set_cr2: CR2, u64;
    /// CR3.
    cr3, set_cr3: CR3, u64;
    /// CR4, as the guest sees it.
    cr4, set_cr4: CR4, Cr4;
    /// EFER, as the guest sees it.
    efer, set_efer: EFER, Efer;
    /// GDTR.
    gdtr, set_gdtr: GDTR, DescriptorTable;
    /// IDTR.
    idtr, set_idtr: IDTR, DescriptorTable;
}

impl<B: Backend + ?Sized> Vcpu<B> {
    #[inline]
    fn know(&self, field: Fields) {
        let known = self.registers.known.get();
        if !known.contains(field) {
            self.hw.fetch(&self.registers, field);
            self.registers.known.set(known | field);
        }
    }

    /// Gives the hardware all that was changed, and forgets what is known: what
    /// [`Backend`] holds is what the vCPU has.
    #[inline]
    pub fn settle(&mut self) {
        self.write_back();
        self.registers.known.set(Fields::empty());
    }

    /// Gives the hardware all that was changed. What is known stays known.
    #[inline]
    pub fn write_back(&mut self) {
        if !self.registers.changed.is_empty() {
            self.hw.store(&self.registers);
            self.registers.changed = Fields::empty();
        }
    }

    /// The current privilege level.
    #[inline]
    pub fn cpl(&self) -> u8 {
        self.know(Fields::CPL);
        self.registers.cpl.get()
    }

    /// The attributes of CS.
    #[inline]
    pub fn code(&self) -> SegmentAttributes {
        self.know(Fields::CODE);
        self.registers.code.get()
    }

    /// A segment register.
    #[inline]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        self.know(Fields::segment(register));
        self.registers.segment(register).get()
    }

    /// Sets a segment register; with SS the privilege level.
    pub fn set_segment(&mut self, register: SegmentRegister, value: Segment) {
        self.registers.segment(register).fill(value);
        self.registers.change(Fields::segment(register));
        match register {
            SegmentRegister::Ss => {
                self.registers.cpl.fill(value.attributes.dpl());
                *self.registers.known.get_mut() |= Fields::CPL;
            }
            SegmentRegister::Cs => {
                self.registers.code.fill(value.attributes);
                *self.registers.known.get_mut() |= Fields::CODE;
            }
            _ => {}
        }
    }

    /// LMSW of `status`: PE, MP, EM and TS change, and PE can't be cleared.
    pub fn load_machine_status(&mut self, status: u16) {
        let low = Cr0::PE | Cr0::MP | Cr0::EM | Cr0::TS;
        let new = Cr0::from_bits_truncate(status.into()) & low;
        let cr0 = self.cr0();
        self.set_cr0((cr0 - (low - Cr0::PE)) | new);
    }

    /// Sets the privilege level where it is not that of SS, which has just been set.
    pub(crate) fn set_cpl_beside_ss(&mut self, cpl: u8) {
        self.registers.cpl.fill(cpl);
    }

    /// The page-directory pointers of PAE paging, where the hardware keeps them apart from memory.
    pub fn pointers(&self) -> [u64; 4] {
        self.know(Fields::POINTERS);
        self.registers.pointers.get()
    }

    /// Sets the page-directory pointers of PAE paging, which were checked.
    pub fn set_pointers(&mut self, entries: [u64; 4]) {
        self.registers.pointers.fill(entries);
        self.registers.change(Fields::POINTERS);
    }

    /// Sets XCR0, to a value that the CPU supports.
    pub fn set_xcr0(&mut self, value: u64) {
        self.core.xcr0 = value;
        self.registers.xcr0.fill(value);
        self.registers.change(Fields::XCR0);
    }

    /// Sets TSC_AUX, which RDTSCP and RDPID read in the CPU.
    pub fn set_tsc_aux(&mut self, value: u64) {
        self.core.tsc_aux = value;
        self.registers.tsc_aux.fill(value);
        self.registers.change(Fields::TSC_AUX);
    }

    /// The rights that PKRU gives protection keys: 0, which is all of them, where the guest has
    /// not switched keys on.
    pub fn pkru(&self) -> u32 {
        if !self.cr4().contains(Cr4::PKE) {
            return 0;
        }
        self.know(Fields::PKRU);
        self.registers.pkru.get()
    }

    /// Debug register 0, 1, 2, 3, 6 or 7.
    pub fn dr(&self, number: u8) -> u64 {
        match number {
            6 => {
                self.know(Fields::DR6);
                self.registers.dr6.get()
            }
            7 => {
                self.know(Fields::DR7);
                self.registers.dr7.get()
            }
            _ => {
                self.know(Fields::BREAKPOINTS);
                let [d0, d1, d2, d3] = self.registers.breakpoints.get();
                match number & 3 {
                    0 => d0,
                    1 => d1,
                    2 => d2,
                    _ => d3,
                }
            }
        }
    }

    /// Sets debug register 0, 1, 2, 3, 6 or 7.
    pub fn set_dr(&mut self, number: u8, value: u64) {
        match number {
            6 => {
                self.registers.dr6.fill(value);
                self.registers.change(Fields::DR6);
            }
            7 => {
                self.registers.dr7.fill(value);
                self.registers.change(Fields::DR7);
            }
            _ => {
                self.know(Fields::BREAKPOINTS);
                let mut all = self.registers.breakpoints.get();
                if let Some(one) = all.get_mut(usize::from(number & 3)) {
                    *one = value;
                }
                self.registers.breakpoints.fill(all);
                self.registers.change(Fields::BREAKPOINTS);
            }
        }
    }

    /// An MSR that the hardware switches with the guest (SYSCALL, SYSENTER,
    /// segment bases, PAT); `None` for any other.
    pub fn msr(&self, msr: Msr) -> Option<u64> {
        Some(match msr {
            Msr::FS_BASE => self.segment(SegmentRegister::Fs).base,
            Msr::GS_BASE => self.segment(SegmentRegister::Gs).base,
            _ => {
                let (field, value) = self.registers.msr(msr)?;
                self.know(field);
                value.get()
            }
        })
    }

    /// Sets such an MSR to a value that was checked; `false` for any other.
    pub fn set_msr(&mut self, msr: Msr, value: u64) -> bool {
        let base = match msr {
            Msr::FS_BASE => Some(SegmentRegister::Fs),
            Msr::GS_BASE => Some(SegmentRegister::Gs),
            _ => None,
        };
        if let Some(register) = base {
            let segment = Segment { base: value, ..self.segment(register) };
            self.set_segment(register, segment);
            return true;
        }
        let Some((field, slot)) = self.registers.msr(msr) else { return false };
        slot.fill(value);
        self.registers.change(field);
        true
    }
}
