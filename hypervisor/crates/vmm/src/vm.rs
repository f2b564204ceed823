//! A virtual machine: memory, clock, devices and what its vCPUs share.

use crate::clock::{HostTime, TscAgreement, VmClock};
use crate::end::VmError;
use crate::msr::mtrr::Mtrrs;
use crate::refusals::Refusals;
use alloc::string::String;
use alloc::sync::Arc;
use chipset::Board;
use chipset::fabric::{Fabric, Requests};
use devices::firmware::FirmwareNews;
use devices::lapic::Ticks;
use locks::RwLock;
use memory::GuestRam;
use spin::Mutex;
use x86defs::time::Nanos;

/// Services of the machine for a guest.
pub trait Host {
    /// The TSC of the machine.
    fn tsc(&self) -> u64;

    /// The machine's clocks, read at one moment.
    fn time(&self) -> HostTime;

    /// The TSC at which the machine itself wants to be looked after.
    fn deadline(&self) -> u64;

    /// Arms this CPU's timer for when its TSC reaches `deadline`.
    fn arm_timer(&mut self, deadline: u64);

    /// The guest with this name has entered its ROM in a way that it had not before.
    fn firmware_entered(&mut self, guest: &str, news: FirmwareNews);

    /// A program of the guest with this name got #UD, for what `why` says; it was so as well with
    /// `untold` others since this was told last.
    fn program_refused(&mut self, guest: &str, why: &VmError, untold: u64);

    /// The hot handler may have armed the timer since, for `deadline`.
    fn note_armed(&mut self, deadline: u64);
}

/// A virtual machine.
#[derive(Debug)]
pub struct Vm<M> {
    /// Its name.
    pub name: String,
    /// Its RAM.
    pub memory: M,
    /// Its clock.
    pub clock: RwLock<VmClock>,
    /// Its devices.
    pub board: Arc<Board>,
    /// Its memory-type ranges.
    pub mtrrs: Mutex<Mtrrs>,
    /// Interrupts on their way to its vCPUs.
    pub fabric: Arc<Fabric>,
    /// Instructions that the guest's programs were refused.
    pub refusals: Refusals,
}

impl<M: GuestRam> Vm<M> {
    /// The guest's time when the host's TSC is `tsc`.
    pub fn now(&self, tsc: u64) -> Nanos {
        self.clock.read().now(tsc)
    }

    /// The guest's ticks when the host's TSC is `tsc`.
    pub fn ticks(&self, tsc: u64) -> Ticks {
        Ticks(self.clock.read().ticks(tsc))
    }

    /// The host's TSC when the guest's ticks reach `ticks`.
    pub fn host_tsc_of(&self, ticks: Ticks, tsc: u64) -> u64 {
        let left = ticks.0.saturating_sub(self.ticks(tsc).0);
        tsc.saturating_add(left)
    }

    /// Stops the guest's time, when none of its vCPUs runs any more.
    pub fn pause(&self, tsc: u64) {
        self.clock.write().pause(tsc);
    }

    /// Lets the guest's time run on from where it stood, before its vCPUs may
    /// run. Each learns of the pause by itself when it gets a CPU
    /// ([`crate::run::on_cpu`]), so that no watchdog of the guest counts it. One
    /// that sleeps until a deadline may wake early for nothing, never late.
    pub fn resume(&self, time: HostTime) {
        self.clock.write().resume_later(time);
    }

    /// Whether the TSCs of all vCPUs agree.
    #[must_use]
    pub fn tsc_agreement(&self) -> TscAgreement {
        TscAgreement::of(self.fabric.mailboxes().iter().map(|posted| posted.tsc_adjust()))
    }

    /// The TSC of vCPU `index` was changed: all others tell what that means for kvmclock
    /// before they go on.
    pub(crate) fn tsc_changed(&self, index: usize) {
        for other in (0..self.fabric.mailboxes().len()).filter(|other| *other != index) {
            self.fabric.request(other, Requests::CLOCK);
        }
    }

    /// Devices whose time has come act.
    pub fn advance(&self, now: Nanos) {
        if self.board.deadline() <= now {
            self.board.advance(now);
        }
    }
}
