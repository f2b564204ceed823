//! The operator's service context: the guests' lives, their consoles, the
//! monitor on the machine's serial port and the control line for programs.
//!
//! Key types: [`Operator`]; `Record`, a guest that is known, whether it runs or
//! not; `Terminal`; `Control`.

mod inspect;
mod line;
mod operations;
mod record;
mod snapshots;
mod terminal;

use super::World;
use super::cpu::Runner;
use super::guest::Guest;
use super::start::Files;
use super::time::Watch;
use crate::cpu::asm;
use crate::drivers::{framebuffer, serial};
use crate::error::HostError;
use crate::hw::VendorCpu;
use crate::monitor::{self, Status};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::bundle::Bundle;
use config::{ConsoleBytes, GuestSettings, WhenEmpty};
use control::protocol::event::EventGuest;
use control::protocol::{EventKind, EventLog};
use hvabi::ShutDownKind;
use line::Control;
use record::Record;
use sched::Kind;
use service::Stop;
use terminal::Terminal;
use vmm::end::EndReason;
use vmm::lifecycle::{Command, State};

/// How the machine is left, on the operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Reboot,
    PowerOff,
}

/// See the [module](self).
pub(super) struct Operator<C: VendorCpu> {
    records: Vec<Record<C>>,
    /// The number of the next guest.
    next: u32,
    when_empty: WhenEmpty,
    console_bytes: ConsoleBytes,
    events: EventLog,
    terminal: Terminal,
    control: Control,
    /// The first status that was not [`Status::OK`], or that.
    status: Option<(Status, String)>,
    leave: Option<Leave>,
    /// The tick from which on it draws the screen again.
    draws: u64,
    /// State of the looks at the machine's time.
    watch: Watch,
}

impl<C: VendorCpu> Operator<C> {
    /// Knows the guests of the bundle. None runs yet.
    pub(super) fn new(bundle: &Bundle<'static>, world: &World<C>) -> Self {
        let host = &bundle.manifest().host;
        let mut operator = Self {
            records: Vec::new(),
            next: 1,
            when_empty: host.when_empty,
            console_bytes: host.console,
            events: EventLog::new(),
            terminal: Terminal::new(host.escape.byte()),
            control: Control::new(world),
            status: None,
            leave: None,
            draws: 0,
            watch: Watch::NEW,
        };
        for settings in &bundle.manifest().guests {
            let files = Files::Bundle(bundle.clone());
            if let Err(refusal) = operator.define(world, settings.clone(), files) {
                operator.refused(&refusal.message);
            }
        }
        operator
    }

    /// Starts all guests, and shows the console of the first.
    pub(super) fn start_all(&mut self, world: &'static World<C>) {
        for at in 0..self.records.len() {
            // A guest that was just defined can be started.
            let _ = self.command(world, at, Command::Start);
        }
        if let Some(first) = self.records.first() {
            first.console.attach();
            self.terminal.show_guest(first.number);
        }
    }

    /// Works for a while.
    pub(super) fn step(&mut self, world: &'static World<C>, vendor: &C) -> Stop {
        serial::CONSOLE.drain();
        serial::CONTROL.drain();
        self.listen(world, vendor);
        self.serve_control(world, vendor);
        let mut busy = self.terminal.waits() || self.control.waits();
        for at in 0..self.records.len() {
            busy |= self.look_after(world, vendor, at);
        }
        self.records.retain(|record| record.life.state() != State::Deleted);
        self.watch.step(world);
        self.show(world);
        let now = asm::rdtsc();
        if now >= self.draws {
            // Nobody waits for the screen; guests wait for the CPU.
            self.draws = now + world.poll_interval() / 2;
            framebuffer::draw(now + world.step());
        }
        if let Some(leave) = self.leave
            && self.control.is_quiet()
        {
            self.detach();
            self.go(leave);
        }
        if self.when_empty == WhenEmpty::Exit && self.leave.is_none() && self.nothing_left() {
            self.detach();
            let (status, reason) = self.status.take().unwrap_or((Status::OK, String::new()));
            monitor::end(status, format_args!("{reason}"));
        }
        if busy { Stop::Ready } else { Stop::Blocked }
    }

    /// Whether no guest runs, and none will by itself.
    fn nothing_left(&self) -> bool {
        self.records.iter().all(|r| matches!(r.life.state(), State::Ended | State::Defined))
    }

    fn go(&self, leave: Leave) -> ! {
        match leave {
            Leave::Reboot => monitor::reboot(),
            Leave::PowerOff => monitor::power_off(),
        }
    }

    /// The run's status is the first that is not [`Status::OK`].
    fn note_end(&mut self, status: Status, words: &str) {
        if self.status.as_ref().is_none_or(|(first, _)| *first == Status::OK) {
            self.status = Some((status, words.into()));
        }
    }

    /// A guest could not be defined.
    fn refused(&mut self, why: &str) {
        monitor::refused(format_args!("{why}"));
        self.note_end(Status::REFUSED, &format!("refused: {why}"));
    }

    fn tell(&mut self, world: &World<C>, at: usize, what: EventKind) {
        let guest = self
            .records
            .get(at)
            .map(|record| EventGuest { number: record.number, name: record.settings.name.clone() });
        self.events.push(world.nanos(asm::rdtsc()), guest, what);
    }
}

impl<C: VendorCpu> World<C> {
    /// The operator's turn.
    pub(super) fn operate(&'static self, vendor: &C) -> Stop {
        match self.operator.get() {
            Some(operator) => operator.lock().step(self, vendor),
            None => Stop::Blocked,
        }
    }

    /// Enters the guest with one broken rule after the other, and ends the run.
    #[cfg(feature = "check-entries")]
    fn try_broken(&self, vendor: &C, guest: &Guest<C>) {
        let cmdline = &guest.settings.cmdline;
        let plan = crate::hw::broken::Plan { cmdline, slice: self.poll_interval() };
        if let Some(slot) = guest.slots.first() {
            let vcpu = &mut slot.private.lock().vcpu;
            crate::mm::with_root(guest.vm.memory.root(), || {
                vendor.load(&mut vcpu.hw);
                C::try_broken(&mut vcpu.hw, &mut vcpu.core, plan);
            });
        }
        monitor::end(Status::OK, format_args!("guest {} powered off", guest.vm.name));
    }

    /// A guest's vCPUs may run.
    fn admit(&'static self, guest: &Arc<Guest<C>>) {
        // The wall clock may have become known better since the guest was made.
        self.correct_time_of(guest);
        if let Some(offset) = guest.vm.clock.read().offset() {
            let begun = offset.wrapping_neg();
            log::debug!("guest \"{}\": its time began at the tick {begun}", guest.vm.name);
        }
        {
            let mut runners = self.runners.write();
            for (index, entity) in guest.places.entities().enumerate() {
                runners.insert(entity, Runner::Vcpu(Arc::clone(guest), index));
            }
        }
        self.guests.write().push(Arc::clone(guest));
        if let Some(first) = guest.places.entity(0) {
            self.wake(first, sched::Reason::Other);
        }
    }

    /// Whether a CPU runs one of the guest's vCPUs, or is about to.
    fn runs(&self, guest: &Guest<C>) -> bool {
        let scheduler = self.scheduler.lock();
        let mut running = scheduler.cpus().iter().filter_map(|cpu| scheduler.running(cpu));
        running.any(|entity| guest.places.entities().any(|other| other == entity))
    }

    /// Gives a guest's vCPUs their places in the scheduler.
    fn schedule(&self, guest: &Guest<C>) -> Result<(), HostError> {
        let mut scheduler = self.scheduler.lock();
        let cpus = guest.settings.cpus();
        for index in 0..guest.slots.len() {
            let added = scheduler.add(guest.id, Kind::Vcpu, cpus, asm::rdtsc());
            let entity = added.map_err(|error| HostError::Guest {
                guest: guest.settings.name.clone(),
                why: error.to_string(),
            })?;
            guest.places.set_entity(index, entity);
        }
        Ok(())
    }

    /// A guest's vCPUs are not scheduled any more.
    fn remove(&self, guest: &Arc<Guest<C>>) {
        let kicks = self.scheduler.lock().remove_guest(guest.id, asm::rdtsc());
        if let Ok(kicks) = kicks {
            super::send(kicks);
        }
        let mut runners = self.runners.write();
        for entity in guest.places.entities() {
            runners.remove(&entity);
        }
        drop(runners);
        self.guests.write().retain(|other| !Arc::ptr_eq(other, guest));
    }
}

/// Status of the run after the end of a guest with these settings, and the reason in words.
fn verdict(settings: &GuestSettings, reason: &EndReason) -> (Status, String) {
    match reason {
        EndReason::PowerOff => (Status::OK, "powered off".into()),
        EndReason::Reset => (Status::OK, "reset".into()),
        EndReason::Halted => {
            (Status::OK, "halted for good: all its vCPUs, with interrupts disabled".into())
        }
        EndReason::DebugExit(value) => {
            let status = settings.debug_status.status(*value);
            (Status(status), format!("wrote {value:#x} to the debug-exit port"))
        }
        EndReason::ShutDown { kind, status } => match kind {
            ShutDownKind::PowerOff => (Status(*status), "shut down".into()),
            ShutDownKind::Reset => (Status(*status), "asked for a reset".into()),
            ShutDownKind::Crash => (Status((*status).max(Status::CRASHED.0)), "crashed".into()),
        },
        EndReason::Panicked => (Status::CRASHED, "reported a panic".into()),
        EndReason::TripleFault => (Status::CRASHED, "shut its CPU down (triple fault)".into()),
        EndReason::Failed(error) => (Status::CRASHED, format!("can't go on: {error}")),
    }
}
