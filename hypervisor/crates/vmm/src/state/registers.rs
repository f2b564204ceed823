//! The architectural registers of a vCPU, as they are saved.

use crate::backend::Backend;
use crate::msr::MsrTable;
use crate::vcpu::Vcpu;
use devices::RestoreError;
use serde::{Deserialize, Serialize};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, GuestVirtAddr, Msr, Rflags, Segment, SegmentAttributes,
    SegmentRegister,
};

/// The MSRs that the hardware switches with the guest, segment bases aside.
const MSRS: [Msr; 9] = [
    Msr::STAR,
    Msr::LSTAR,
    Msr::CSTAR,
    Msr::SFMASK,
    Msr::KERNEL_GS_BASE,
    Msr::SYSENTER_CS,
    Msr::SYSENTER_ESP,
    Msr::SYSENTER_EIP,
    Msr::PAT,
];

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SegmentState {
    selector: u16,
    attributes: u16,
    limit: u32,
    base: u64,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TableState {
    base: u64,
    limit: u16,
}

impl From<DescriptorTable> for TableState {
    fn from(DescriptorTable { base, limit }: DescriptorTable) -> Self {
        Self { base, limit }
    }
}

impl From<TableState> for DescriptorTable {
    fn from(TableState { base, limit }: TableState) -> Self {
        Self { base, limit }
    }
}

/// The registers that the hardware keeps; general registers but for RSP have another home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RegistersState {
    rip: u64,
    rsp: u64,
    rflags: u64,
    interrupt_shadow: bool,
    nmi_blocked: bool,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// The page-directory pointers of PAE paging.
    pointers: [u64; 4],
    breakpoints: [u64; 4],
    dr6: u64,
    dr7: u64,
    gdtr: TableState,
    idtr: TableState,
    /// The privilege level. After SYSRET it may differ from that in SS, on AMD's CPUs.
    cpl: u8,
    /// In the order of [`MSRS`].
    msrs: [u64; MSRS.len()],
    /// In the order of their numbers.
    segments: [SegmentState; 8],
}

impl RegistersState {
    /// The registers of `vcpu`.
    pub(super) fn of<B: Backend>(vcpu: &Vcpu<B>) -> Self {
        Self {
            rip: vcpu.rip(),
            rsp: vcpu.rsp(),
            rflags: vcpu.rflags().bits(),
            interrupt_shadow: vcpu.interrupt_shadow(),
            nmi_blocked: vcpu.nmi_blocked(),
            cr0: vcpu.cr0().bits(),
            cr2: vcpu.cr2(),
            cr3: vcpu.cr3(),
            cr4: vcpu.cr4().bits(),
            efer: vcpu.efer().bits(),
            pointers: vcpu.pointers(),
            breakpoints: [0, 1, 2, 3].map(|number| vcpu.dr(number)),
            dr6: vcpu.dr(6),
            dr7: vcpu.dr(7),
            gdtr: vcpu.gdtr().into(),
            idtr: vcpu.idtr().into(),
            cpl: vcpu.cpl(),
            msrs: MSRS.map(|msr| vcpu.msr(msr).unwrap_or(0)),
            segments: SegmentRegister::ALL.map(|register| {
                let Segment { selector, attributes, limit, base } = vcpu.segment(register);
                SegmentState { selector, attributes: attributes.into_bits(), limit, base }
            }),
        }
    }

    /// Refuses values that the hypervisor itself would put into registers of the CPU which do not
    /// take them, and those that policy relies upon. All others the CPU checks at the entry: it
    /// refuses them, and the guest ends.
    pub(super) fn check<B: Backend>(&self, vcpu: &Vcpu<B>) -> Result<(), RestoreError> {
        let require = |holds: bool, what| if holds { Ok(()) } else { Err(RestoreError(what)) };
        let cpuid = &vcpu.core.cpuid;
        let (cr0, efer) = (Cr0::from_bits(self.cr0), Efer::from_bits(self.efer));
        let cr0 = cr0.ok_or(RestoreError("CR0 has an unknown bit"))?;
        let efer = efer.ok_or(RestoreError("EFER has an unknown bit"))?;
        require(cr0.contains(Cr0::PE) || !cr0.contains(Cr0::PG), "paging without protection")?;
        require(cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW), "CR0.NW without CD")?;
        require(self.cr4 & !cpuid.cr4_allowed().bits() == 0, "CR4 has a bit that is not offered")?;
        require(cpuid.efer_allowed().contains(efer), "EFER has a bit that is not offered")?;
        require((self.dr6 | self.dr7) >> 32 == 0, "an impossible debug register")?;
        require(self.cpl < 4, "an impossible privilege level")?;
        let table = &vcpu.core.msr_table;
        for (msr, value) in MSRS.into_iter().zip(self.msrs) {
            require(takes(table, msr, value), "an MSR holds a value that it can't")?;
        }
        let canonical = |segment: &SegmentState| GuestVirtAddr::new(segment.base).is_canonical();
        require(self.segments.iter().all(canonical), "a segment's base is no address")
    }

    /// Gives `vcpu` the registers, which have been checked.
    pub(super) fn put_into<B: Backend>(&self, vcpu: &mut Vcpu<B>) {
        vcpu.set_rip(self.rip);
        vcpu.set_rsp(self.rsp);
        vcpu.set_rflags(Rflags::from_bits_retain(self.rflags));
        vcpu.set_interrupt_shadow(self.interrupt_shadow);
        vcpu.set_nmi_blocked(self.nmi_blocked);
        vcpu.set_cr0(Cr0::from_bits_retain(self.cr0));
        vcpu.set_cr2(self.cr2);
        vcpu.set_cr3(self.cr3);
        vcpu.set_cr4(Cr4::from_bits_retain(self.cr4));
        vcpu.set_efer(Efer::from_bits_retain(self.efer));
        vcpu.set_pointers(self.pointers);
        for (number, value) in (0..).zip(self.breakpoints) {
            vcpu.set_dr(number, value);
        }
        vcpu.set_dr(6, self.dr6);
        vcpu.set_dr(7, self.dr7);
        vcpu.set_gdtr(self.gdtr.into());
        vcpu.set_idtr(self.idtr.into());
        for (msr, value) in MSRS.into_iter().zip(self.msrs) {
            let _ = vcpu.set_msr(msr, value);
        }
        for (register, saved) in SegmentRegister::ALL.into_iter().zip(self.segments) {
            let SegmentState { selector, attributes, limit, base } = saved;
            let attributes = SegmentAttributes::from_bits(attributes);
            vcpu.set_segment(register, Segment { selector, attributes, limit, base });
        }
        vcpu.set_cpl_beside_ss(self.cpl);
    }
}

/// Whether a register of the guest takes `value`; one that it does not have is 0.
pub(super) fn takes(table: &MsrTable, msr: Msr, value: u64) -> bool {
    value == 0 || table.lookup(msr).is_some_and(|line| line.rule.takes(value, line.reset))
}
