//! Entries that the CPU refuses: which rule was broken. With the feature
//! `check-entries`, every entry of the general code is checked before it is
//! tried, so that a rule that an emulator does not check is found too.
//!
//! Broken rules stand in the guest's report: the log is not for guests to fill.

use super::vcpu::SvmVcpu;
#[cfg(feature = "check-entries")]
use crate::hw::extra::machine_check_of_host;
use alloc::string::String;
use core::fmt::Write;
#[cfg(feature = "check-entries")]
use x86defs::vmcb::Intercepts;
use x86defs::vmcb::check::Subject;
#[cfg(feature = "check-entries")]
use x86defs::{Cr4, VmExit, exit::ExitWithEvent};

impl SvmVcpu {
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject { vmcb: self.vmcb(), limits: &self.caps.limits }
    }

    /// Names the rules that the VMCB breaks, which the CPU refused.
    pub(super) fn explain(&mut self) {
        let mut text = String::new();
        for rule in self.subject().broken() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  entry refused: {rule}");
        }
        if text.is_empty() {
            // One emulator saves the guest's state, what it has of it, even then.
            text.push_str("  entry refused, and no rule that is known is broken any more\n");
        }
        self.refusal = text;
    }

    /// Exit to report instead of an entry that would be refused, or breaks a rule of
    /// the hypervisor's own.
    #[cfg(feature = "check-entries")]
    pub(super) fn broken_rule(&mut self) -> Option<ExitWithEvent> {
        let mut first = None;
        let mut text = String::new();
        if !Intercepts::POSSIBLE.cover(&self.vmcb().control) {
            text.push_str("  entry with an intercept that is not among the possible ones\n");
            first = Some("an intercept that is not among the possible ones");
        }
        let cr4 = Cr4::from_bits_retain(self.vmcb().save.cr4);
        if !cr4.contains(machine_check_of_host()) {
            text.push_str("  entry with the machine's machine checks off\n");
            first = Some("guest CR4.MCE = 0, although the machine has it");
        }
        for rule in self.subject().broken() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  entry would be refused: {rule}");
            first = first.or(Some(rule.broken));
        }
        self.refusal = text;
        first.map(|rule| ExitWithEvent { exit: VmExit::BrokenRule(rule), interrupted: None })
    }
}
