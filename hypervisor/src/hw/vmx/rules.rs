//! Entries that the CPU refuses: which rule was broken. With the feature
//! `check-entries`, every entry of the general code is checked before it is
//! tried, so that a rule that an emulator does not check is found too.
//!
//! Broken rules stand in the guest's report: the log is not for guests to fill.

use super::vcpu::VmxVcpu;
use super::{dump, entry};
use alloc::format;
use alloc::string::String;
use core::fmt::Write;
use x86defs::VmExit;
use x86defs::exit::{ExitWithEvent, RawExit};
use x86defs::vmcs::InstructionError;
use x86defs::vmcs::check::{Image, Rule, Stage, Subject};

impl VmxVcpu {
    /// The CPU refused VMLAUNCH or VMRESUME.
    pub(super) fn refused(&mut self, outcome: u64) -> ExitWithEvent {
        let error = self.current().error();
        match error {
            InstructionError::INVALID_CONTROLS => self.explain(Stage::Controls),
            InstructionError::INVALID_HOST_STATE => self.explain(Stage::Host),
            _ => {}
        }
        if outcome == entry::FAILED_INVALID {
            self.refusal.push_str("  entry refused: no VMCS is current\n");
        } else {
            self.refusal.push_str(&format!("  entry refused: VM-instruction error {error}\n"));
        }
        let raw = RawExit { reason: u64::MAX, info1: error.0.into(), info2: outcome };
        ExitWithEvent { exit: VmExit::InvalidState(raw), interrupted: None }
    }

    /// Names the rules that the VMCS breaks.
    pub(super) fn explain(&mut self, stage: Stage) {
        let image = dump::image(self.current());
        let mut text = String::new();
        self.each_broken(&image, stage, |rule| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  entry refused: {rule}");
        });
        if text.is_empty() {
            text.push_str("  entry refused, and no rule that is known is broken\n");
        }
        self.refusal = text;
    }

    /// Calls `tell` with each rule of `stage` that `image` breaks.
    pub(super) fn each_broken(&self, image: &Image, stage: Stage, tell: impl FnMut(&'static Rule)) {
        let subject =
            Subject { image, limits: &self.caps.limits, task_priority: self.apic.task_priority() };
        stage.broken(&subject).for_each(tell);
    }

    /// The exit to report instead of an entry that would be refused.
    #[cfg(feature = "check-entries")]
    pub(super) fn broken_rule(&mut self) -> Option<ExitWithEvent> {
        let image = dump::image(self.current());
        let mut first = None;
        let mut text = String::new();
        for stage in Stage::ALL {
            self.each_broken(&image, stage, |rule| {
                // Writing to a string does not fail.
                let _ = writeln!(text, "  entry would be refused: {rule}");
                first = first.or(Some(rule));
            });
        }
        self.refusal = text;
        let exit = VmExit::BrokenRule(first?.broken);
        Some(ExitWithEvent { exit, interrupted: None })
    }
}
