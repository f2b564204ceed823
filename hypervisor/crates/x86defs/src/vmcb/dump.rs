//! A VMCB in words, for crash reports.

use super::{Vmcb, VmcbSegment};
use crate::reg::SegmentRegister;
use core::fmt::{self, Write};

fn segment(out: &mut dyn Write, name: &str, s: &VmcbSegment) -> fmt::Result {
    writeln!(
        out,
        "  {name:4} selector {:#06x} attributes {:#05x} limit {:#010x} base {:#018x}",
        s.selector, s.attributes, s.limit, s.base
    )
}

/// Writes every field of the VMCB.
///
/// # Errors
/// Those of `out`.
pub fn dump(vmcb: &Vmcb, out: &mut dyn Write) -> fmt::Result {
    let c = &vmcb.control;
    let s = &vmcb.save;
    writeln!(out, "VMCB control area")?;
    writeln!(
        out,
        "  EXITCODE {:#x} EXITINFO1 {:#x} EXITINFO2 {:#x} EXITINTINFO {:#x} EVENTINJ {:#x}",
        c.exit_code,
        c.exit_info1,
        c.exit_info2,
        c.exit_int_info.into_bits(),
        c.event_injection.into_bits()
    )?;
    writeln!(
        out,
        "  intercepts CR read {:#06x} write {:#06x} DR read {:#06x} write {:#06x} exceptions {:#010x}",
        c.intercept_cr_read,
        c.intercept_cr_write,
        c.intercept_dr_read,
        c.intercept_dr_write,
        c.intercept_exceptions
    )?;
    writeln!(
        out,
        "  intercepts {:#010x} {:#010x} {:#010x} pause {}/{}",
        c.intercepts3.bits(),
        c.intercepts4.bits(),
        c.intercepts5,
        c.pause_filter_count,
        c.pause_filter_threshold
    )?;
    writeln!(
        out,
        "  IOPM {:#x} MSRPM {:#x} TSC offset {:#x} ASID {} TLB control {}",
        c.iopm_base, c.msrpm_base, c.tsc_offset, c.asid, c.tlb_control
    )?;
    writeln!(
        out,
        "  virtual interrupt {:#x} shadow {:#x} nested control {:#x} nested CR3 {:#x}",
        c.virtual_interrupt.into_bits(),
        c.interrupt_shadow,
        c.nested_control,
        c.nested_cr3
    )?;
    writeln!(
        out,
        "  extensions {:#x} clean {:#x} next RIP {:#x} fetched {:02x?}",
        c.virtualization_extensions,
        c.clean.bits(),
        c.next_rip,
        c.fetched.get(..usize::from(c.fetched_len).min(15)).unwrap_or(&[])
    )?;
    writeln!(
        out,
        "  AVIC bar {:#x} backing {:#x} logical {:#x} physical {:#x} GHCB {:#x}",
        c.avic_apic_bar, c.avic_backing_page, c.avic_logical_table, c.avic_physical_table, c.ghcb
    )?;
    writeln!(out, "VMCB state-save area")?;
    for (register, value) in SegmentRegister::ALL.iter().zip(&s.segments) {
        let name = match register {
            SegmentRegister::Es => "ES",
            SegmentRegister::Cs => "CS",
            SegmentRegister::Ss => "SS",
            SegmentRegister::Ds => "DS",
            SegmentRegister::Fs => "FS",
            _ => "GS",
        };
        segment(out, name, value)?;
    }
    segment(out, "GDTR", &s.gdtr)?;
    segment(out, "LDTR", &s.ldtr)?;
    segment(out, "IDTR", &s.idtr)?;
    segment(out, "TR", &s.tr)?;
    writeln!(
        out,
        "  CPL {} EFER {:#x} CR0 {:#x} CR2 {:#x} CR3 {:#x} CR4 {:#x}",
        s.cpl, s.efer, s.cr0, s.cr2, s.cr3, s.cr4
    )?;
    writeln!(
        out,
        "  RIP {:#x} RSP {:#x} RAX {:#x} RFLAGS {:#x} DR6 {:#x} DR7 {:#x}",
        s.rip, s.rsp, s.rax, s.rflags, s.dr6, s.dr7
    )?;
    writeln!(
        out,
        "  STAR {:#x} LSTAR {:#x} CSTAR {:#x} SFMASK {:#x} KERNEL_GS_BASE {:#x}",
        s.star, s.lstar, s.cstar, s.sfmask, s.kernel_gs_base
    )?;
    writeln!(
        out,
        "  SYSENTER {:#x} {:#x} {:#x} PAT {:#x} DEBUGCTL {:#x} last branch {:#x} {:#x} {:#x} {:#x}",
        s.sysenter_cs,
        s.sysenter_esp,
        s.sysenter_eip,
        s.g_pat,
        s.debugctl,
        s.br_from,
        s.br_to,
        s.last_exception_from,
        s.last_exception_to
    )
}
