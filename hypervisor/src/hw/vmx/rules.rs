//! Entries that the CPU refuses: which rule was broken. With the feature
//! `check-entries`, every entry of the general code is checked before it is
//! tried, so that a rule that an emulator does not check is found too.

use super::vcpu::VmxVcpu;
use super::{dump, entry};
use x86defs::VmExit;
use x86defs::exit::{ExitWithEvent, RawExit};
use x86defs::vmcs::InstructionError;
use x86defs::vmcs::check::{Image, Rule, Stage, Subject};

impl VmxVcpu {
    /// The CPU refused VMLAUNCH or VMRESUME.
    pub(super) fn refused(&self, outcome: u64) -> ExitWithEvent {
        let error = self.current().error();
        match error {
            InstructionError::INVALID_CONTROLS => self.explain(Stage::Controls),
            InstructionError::INVALID_HOST_STATE => self.explain(Stage::Host),
            _ => {}
        }
        if outcome == entry::FAILED_INVALID {
            log::error!("entry refused: no VMCS is current");
        } else {
            log::error!("entry refused: VM-instruction error {error}");
        }
        let raw = RawExit { reason: u64::MAX, info1: error.0.into(), info2: outcome };
        ExitWithEvent { exit: VmExit::InvalidState(raw), interrupted: None }
    }

    /// Names the rules that the VMCS breaks.
    pub(super) fn explain(&self, stage: Stage) {
        let image = dump::image(self.current());
        let mut found = false;
        self.each_broken(&image, stage, |rule| {
            log::error!("entry refused: {rule}");
            found = true;
        });
        if !found {
            log::error!("entry refused, and no rule that is known is broken");
        }
    }

    /// Calls `tell` with each rule of `stage` that `image` breaks.
    pub(super) fn each_broken(&self, image: &Image, stage: Stage, tell: impl FnMut(&'static Rule)) {
        let subject =
            Subject { image, limits: &self.caps.limits, task_priority: self.apic.task_priority() };
        stage.broken(&subject).for_each(tell);
    }

    /// What to report instead of an entry that would be refused.
    #[cfg(feature = "check-entries")]
    pub(super) fn broken_rule(&self) -> Option<ExitWithEvent> {
        let image = dump::image(self.current());
        let mut first = None;
        for stage in Stage::ALL {
            self.each_broken(&image, stage, |rule| {
                log::error!("entry would be refused: {rule}");
                first = first.or(Some(rule));
            });
        }
        let exit = VmExit::BrokenRule(first?.broken);
        Some(ExitWithEvent { exit, interrupted: None })
    }
}
