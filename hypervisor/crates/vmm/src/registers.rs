//! The architectural registers of a vCPU that does not run.
//!
//! Policy, the emulator and the page walk read and write [`Registers`] through
//! the vCPU (module [`access`](crate::access)); the hardware's copy is read when a value is first
//! asked for and written once before the next entry. The general registers but for RSP are not
//! among them: their only home is [`HotState`].
//!
//! A value is *known* if it is what the vCPU has, and *changed* if the hardware does not have it
//! yet; what is changed is known. Both are forgotten before an entry: the guest and the hot
//! handler change the hardware's copies alone.
//!
//! [`HotState`]: crate::backend::HotState

use bitflags::bitflags;
use core::cell::Cell;
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Msr, Rflags, Segment, SegmentAttributes, SegmentRegister,
};

bitflags! {
    /// A set of registers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Fields: u64 {
        /// RIP.
        const RIP = 1 << 0;
        /// RSP.
        const RSP = 1 << 1;
        /// RFLAGS.
        const RFLAGS = 1 << 2;
        /// Whether interrupts are held off for one instruction (after STI, MOV SS).
        const SHADOW = 1 << 3;
        /// Whether NMIs are blocked until the guest's next IRET.
        const NMI_BLOCKED = 1 << 4;
        /// CR0, as the guest sees it.
        const CR0 = 1 << 5;
        /// CR2.
        const CR2 = 1 << 6;
        /// CR3.
        const CR3 = 1 << 7;
        /// CR4, as the guest sees it.
        const CR4 = 1 << 8;
        /// EFER, as the guest sees it.
        const EFER = 1 << 9;
        /// The page-directory pointers of PAE paging, where the hardware keeps them apart from
        /// memory.
        const POINTERS = 1 << 10;
        /// DR0 to DR3.
        const BREAKPOINTS = 1 << 11;
        /// DR6.
        const DR6 = 1 << 12;
        /// DR7.
        const DR7 = 1 << 13;
        /// GDTR.
        const GDTR = 1 << 14;
        /// IDTR.
        const IDTR = 1 << 15;
        /// The current privilege level. It is that of SS, and is written with it.
        const CPL = 1 << 16;
        /// IA32_STAR.
        const STAR = 1 << 17;
        /// IA32_LSTAR.
        const LSTAR = 1 << 18;
        /// IA32_CSTAR.
        const CSTAR = 1 << 19;
        /// IA32_FMASK.
        const SFMASK = 1 << 20;
        /// IA32_KERNEL_GS_BASE.
        const KERNEL_GS_BASE = 1 << 21;
        /// IA32_SYSENTER_CS.
        const SYSENTER_CS = 1 << 22;
        /// IA32_SYSENTER_ESP.
        const SYSENTER_ESP = 1 << 23;
        /// IA32_SYSENTER_EIP.
        const SYSENTER_EIP = 1 << 24;
        /// IA32_PAT.
        const PAT = 1 << 25;
        /// XCR0. Its home is [`VcpuCore::xcr0`]; a change is the hardware's to make.
        ///
        /// [`VcpuCore::xcr0`]: crate::vcpu::VcpuCore::xcr0
        const XCR0 = 1 << 26;
        /// TSC_AUX. Its home is [`VcpuCore::tsc_aux`].
        ///
        /// [`VcpuCore::tsc_aux`]: crate::vcpu::VcpuCore::tsc_aux
        const TSC_AUX = 1 << 27;
        /// PKRU, while the vCPU has a CPU. Only the guest writes it.
        const PKRU = 1 << 28;
        /// The attributes of CS alone. They are written with it.
        const CODE = 1 << 29;
        /// ES. The other segment registers follow by their numbers.
        const ES = 1 << 32;
        /// CS.
        const CS = 1 << 33;
        /// SS.
        const SS = 1 << 34;
        /// DS.
        const DS = 1 << 35;
        /// FS.
        const FS = 1 << 36;
        /// GS.
        const GS = 1 << 37;
        /// LDTR.
        const LDTR = 1 << 38;
        /// TR.
        const TR = 1 << 39;

        /// Registers on which cached translations depend: a change of one makes the
        /// hardware forget them.
        const TRANSLATION = Self::CR0.bits() | Self::CR3.bits() | Self::CR4.bits()
            | Self::EFER.bits() | Self::PAT.bits();
        /// The debug registers.
        const DEBUG = Self::BREAKPOINTS.bits() | Self::DR6.bits() | Self::DR7.bits();
        /// The MSRs that SYSCALL and SWAPGS use.
        const SYSCALL = Self::STAR.bits() | Self::LSTAR.bits() | Self::CSTAR.bits()
            | Self::SFMASK.bits() | Self::KERNEL_GS_BASE.bits();
    }
}

impl Fields {
    /// A segment register.
    #[inline]
    #[must_use]
    pub const fn segment(register: SegmentRegister) -> Self {
        Self::from_bits_retain(1 << (32 + register as u32))
    }
}

/// A register's value: backends fill it when it is asked for.
#[derive(Debug, Default)]
pub struct Value<T: Copy>(Cell<T>);

impl<T: Copy> Value<T> {
    /// The value.
    #[inline]
    pub fn get(&self) -> T {
        self.0.get()
    }

    /// Notes what the hardware has.
    #[inline]
    pub fn fill(&self, value: T) {
        self.0.set(value);
    }
}

/// The registers of a vCPU that does not run, as far as they are known.
#[derive(Debug, Default)]
pub struct Registers {
    pub(crate) known: Cell<Fields>,
    pub(crate) changed: Fields,
    /// RIP.
    pub rip: Value<u64>,
    /// RSP.
    pub rsp: Value<u64>,
    /// RFLAGS.
    pub rflags: Value<Rflags>,
    /// [`Fields::SHADOW`].
    pub interrupt_shadow: Value<bool>,
    /// [`Fields::NMI_BLOCKED`].
    pub nmi_blocked: Value<bool>,
    /// CR0.
    pub cr0: Value<Cr0>,
    /// CR2.
    pub cr2: Value<u64>,
    /// CR3.
    pub cr3: Value<u64>,
    /// CR4.
    pub cr4: Value<Cr4>,
    /// EFER.
    pub efer: Value<Efer>,
    /// [`Fields::POINTERS`].
    pub pointers: Value<[u64; 4]>,
    /// DR0 to DR3.
    pub breakpoints: Value<[u64; 4]>,
    /// DR6.
    pub dr6: Value<u64>,
    /// DR7.
    pub dr7: Value<u64>,
    /// GDTR.
    pub gdtr: Value<DescriptorTable>,
    /// IDTR.
    pub idtr: Value<DescriptorTable>,
    /// [`Fields::CPL`].
    pub cpl: Value<u8>,
    /// IA32_STAR.
    pub star: Value<u64>,
    /// IA32_LSTAR.
    pub lstar: Value<u64>,
    /// IA32_CSTAR.
    pub cstar: Value<u64>,
    /// IA32_FMASK.
    pub sfmask: Value<u64>,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: Value<u64>,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: Value<u64>,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: Value<u64>,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: Value<u64>,
    /// IA32_PAT.
    pub pat: Value<u64>,
    /// PKRU.
    pub pkru: Value<u32>,
    /// [`Fields::CODE`].
    pub code: Value<SegmentAttributes>,
    /// XCR0, if it is changed.
    pub xcr0: Value<u64>,
    /// TSC_AUX, if it is changed.
    pub tsc_aux: Value<u64>,
    segments: [Value<Segment>; 8],
}

impl Registers {
    /// Registers that the hardware does not have yet.
    #[inline]
    #[must_use]
    pub const fn changed(&self) -> Fields {
        self.changed
    }

    pub(crate) fn msr(&self, msr: Msr) -> Option<(Fields, &Value<u64>)> {
        Some(match msr {
            Msr::STAR => (Fields::STAR, &self.star),
            Msr::LSTAR => (Fields::LSTAR, &self.lstar),
            Msr::CSTAR => (Fields::CSTAR, &self.cstar),
            Msr::SFMASK => (Fields::SFMASK, &self.sfmask),
            Msr::KERNEL_GS_BASE => (Fields::KERNEL_GS_BASE, &self.kernel_gs_base),
            Msr::SYSENTER_CS => (Fields::SYSENTER_CS, &self.sysenter_cs),
            Msr::SYSENTER_ESP => (Fields::SYSENTER_ESP, &self.sysenter_esp),
            Msr::SYSENTER_EIP => (Fields::SYSENTER_EIP, &self.sysenter_eip),
            Msr::PAT => (Fields::PAT, &self.pat),
            _ => return None,
        })
    }

    /// A segment register.
    #[inline]
    #[must_use]
    pub fn segment(&self, register: SegmentRegister) -> &Value<Segment> {
        let [es, cs, ss, ds, fs, gs, ldtr, tr] = &self.segments;
        match register {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
            SegmentRegister::Ldtr => ldtr,
            SegmentRegister::Tr => tr,
        }
    }

    #[inline]
    pub(crate) fn change(&mut self, fields: Fields) {
        *self.known.get_mut() |= fields;
        self.changed |= fields;
    }
}
