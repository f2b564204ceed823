//! Guests that do nothing any more: what the watchdog gives up, and what is halted for good.

use crate::machine::World;
use crate::machine::guest::AnyGuest;
use config::GuestSettings;
use vmm::end::{EndReason, VmError};
use vmm::hot::timer::NEVER;
use vmm::vcpu::Vcpu;

/// A guest is halted for good when it has been so for so many milliseconds.
const HALTED_MS: u64 = 1000;

/// State of a guest's watchdog.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Exits that only a guest that does something makes.
    signs: u64,
    /// The tick of the last new one; 0: it was not looked yet.
    since: u64,
}

/// Whether all vCPUs are halted for good, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Halt {
    /// Ticks that its vCPUs were in the guest, added up: a timer that rings for one which
    /// takes no interrupt wakes it, and it goes to sleep again without an entry.
    ran: u64,
    /// The tick at which the vCPUs were first seen to have executed no more than that.
    since: u64,
    /// The vCPUs have been looked at since then.
    looked: bool,
}

/// A guest is looked at so often in the time after which it is given up, or halted for good.
const LOOKS: u64 = 8;

impl Halt {
    /// Whether it has just turned out that nothing can wake the guest any more: for
    /// [`HALTED_MS`] none of its vCPUs has executed anything, and all of them are halted with
    /// interrupts disabled, or wait for one of the others to start them. (An NMI that a
    /// device may still send has come by then.) And the tick of the next look;
    /// [`NEVER`] while the guest would have to tell before.
    pub(super) fn look(&mut self, world: &World, guest: &AnyGuest, now: u64) -> (bool, u64) {
        if !guest.has_halted_deaf() {
            return (false, NEVER);
        }
        let is_over = self.is_over(world, guest, now);
        let due = now.saturating_sub(self.since) >= HALTED_MS * world.frequency.khz();
        // One that could not be looked at is tried again soon.
        let soon = if due && !self.looked {
            world.poll_interval()
        } else {
            HALTED_MS * world.frequency.khz() / LOOKS
        };
        (is_over, now + soon)
    }

    fn is_over(&mut self, world: &World, guest: &AnyGuest, now: u64) -> bool {
        let runs = (0..guest.vcpus.count()).any(|index| guest.places.cpu(index).is_some());
        let ran = guest.published().map(|vcpu| vcpu.spent.guest);
        let ran = ran.fold(0, u64::wrapping_add);
        if runs || ran != self.ran {
            *self = Self { ran, since: now, looked: false };
            return false;
        }
        let patience = HALTED_MS * world.frequency.khz();
        if self.looked || now.saturating_sub(self.since) < patience {
            return false;
        }
        // A vCPU that can't be had now is tried again in the next step.
        let Some(deaf) = guest.all_vcpus(world.reach(), Vcpu::is_deaf) else { return false };
        self.looked = true;
        let quiet = guest.vm.fabric.mailboxes().iter().all(|posted| posted.is_quiet());
        deaf && quiet
    }
}

impl Watch {
    /// Ends a guest that its watchdog gives up: one that was on a CPU, or can
    /// never be again, and did nothing that a living guest does. Returns the tick of the next look;
    /// [`NEVER`] for a guest without a watchdog.
    pub(super) fn look(
        &mut self,
        settings: &GuestSettings,
        world: &World,
        guest: &AnyGuest,
        now: u64,
    ) -> u64 {
        let Some(ms) = settings.watchdog_ms else { return NEVER };
        self.judge(ms, world, guest, now);
        let patience = u64::from(ms).saturating_mul(world.frequency.khz());
        // One that could not be looked at is tried again soon.
        let late = now.saturating_sub(self.since) >= patience;
        now.saturating_add(if late { world.poll_interval() } else { patience / LOOKS })
    }

    fn judge(&mut self, ms: u32, world: &World, guest: &AnyGuest, now: u64) {
        let signs = guest.published().map(|vcpu| vcpu.counts.signs_of_life());
        let signs: u64 = signs.sum();
        if self.since == 0 || signs != self.signs {
            *self = Self { signs, since: now };
            return;
        }
        let patience = u64::from(ms).saturating_mul(world.frequency.khz());
        let since = now.saturating_sub(self.since);
        if since < patience {
            return;
        }
        match guest.all_vcpus(world.reach(), Vcpu::sleeps_soundly) {
            // A guest that sleeps, and could be woken, is well.
            Some(true) => {
                self.since = now;
                return;
            }
            // A vCPU that can't be had now is tried again in the next step.
            None if since < patience.saturating_add(world.patience()) => return,
            Some(false) | None => {}
        }
        guest.stop(EndReason::Failed(VmError::Lifeless(ms)), Some(0), world);
    }
}
