//! Entries that the CPU refuses: which rule was broken. With the feature
//! `check-entries`, every entry of the general code is checked before it is
//! tried, so that a rule that an emulator does not check is found too.

use super::vcpu::SvmVcpu;
#[cfg(feature = "check-entries")]
use crate::hw::extra::machine_check_of_host;
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
    pub(super) fn explain(&self) {
        let mut found = false;
        for rule in self.subject().broken() {
            log::error!("entry refused: {rule}");
            found = true;
        }
        if !found {
            // One emulator saves the guest's state, what it has of it, even then.
            log::error!("entry refused, and no rule that is known is broken any more");
        }
    }

    /// What to report instead of an entry that would be refused, or breaks a rule of
    /// the hypervisor's own.
    #[cfg(feature = "check-entries")]
    pub(super) fn broken_rule(&self) -> Option<ExitWithEvent> {
        let mut first = None;
        if !Intercepts::POSSIBLE.cover(&self.vmcb().control) {
            log::error!("entry with an intercept that is not among the possible ones");
            first = Some("an intercept that is not among the possible ones");
        }
        let cr4 = Cr4::from_bits_retain(self.vmcb().save.cr4);
        if !cr4.contains(machine_check_of_host()) {
            log::error!("entry with the machine's machine checks off");
            first = Some("guest CR4.MCE = 0, although the machine has it");
        }
        for rule in self.subject().broken() {
            log::error!("entry would be refused: {rule}");
            first = first.or(Some(rule.broken));
        }
        first.map(|rule| ExitWithEvent { exit: VmExit::BrokenRule(rule), interrupted: None })
    }
}
