//! The operator, one of the machine's services: the guests' lives, their consoles, the
//! monitor on the machine's serial port and the control line for programs.
//!
//! Key types: [`Operator`]; `Record`, a guest that is known, whether it runs or
//! not; `Terminal`; `Control`.

mod control_line;
mod inspect;
mod lives;
mod perform;
mod status;
mod terminal;
mod uploads;
mod watch;

use crate::cpu::asm;
use crate::drivers::{framebuffer, serial};
use crate::error::HostError;
use crate::journal::{self, Status};
use crate::machine::guest::Files;
use crate::machine::time::Watch;
use crate::machine::{AnyMachine, World};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::bundle::Bundle;
use config::{ConsoleBytes, CpuSet, GuestSettings, WhenEmpty};
use control::protocol::event::EventGuest;
use control::protocol::{EventKind, EventLog};
use control_line::Control;
use core::fmt;
use hvabi::ShutDownKind;
use lives::Record;
use locks::{Mutex, Rank};
use sched::{Alarms, EntityId, Kind, SchedError, Share};
use service::{Service, Stop, Wake, Waker};
use terminal::Terminal;
use vmm::end::EndReason;
use vmm::lifecycle::{Command, State};

/// How the machine is left, on the operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Reboot,
    PowerOff,
}

/// The operator's service.
struct Desk {
    operator: Mutex<Operator>,
    world: &'static World,
}

impl Service for Desk {
    fn name(&self) -> &str {
        "operator"
    }

    /// Every part of a step is short by itself.
    fn step(&self, _until: u64) -> Stop {
        let operator = &mut *self.operator.lock();
        let from = asm::rdtsc();
        let stop = operator.step();
        operator.longest = operator.longest.max(asm::rdtsc().saturating_sub(from));
        stop
    }

    /// Without interrupts of the serial port, it looks all the same.
    fn rest(&self) -> Option<u64> {
        let first = self.operator.lock().due.first().saturating_sub(asm::rdtsc());
        Some(first.min(self.world.poll_interval()))
    }
}

/// Wakes the operator.
struct Caller(&'static World);

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caller")
    }
}

impl Wake for Caller {
    fn wake(&self) {
        self.0.wake_operator();
    }
}

/// Percent of a CPU that the operator gets before all guests.
const RESERVE: u32 = 5;

/// Makes the operator a service of `machine`; it knows the guests of `bundle` and starts them.
///
/// # Errors
/// There is no room for it.
pub(crate) fn begin(
    machine: &'static dyn AnyMachine,
    bundle: &Bundle<'static>,
) -> Result<(), HostError> {
    let world = machine.world();
    let entity = schedule(world)?;
    let operator = Mutex::new(Rank::Operator, Operator::new(bundle, machine));
    let desk = Arc::new(Desk { operator, world });
    machine.serve(entity, Arc::<Desk>::clone(&desk));
    let waker: Waker = Arc::new(Caller(world));
    for port in [&serial::CONSOLE, &serial::CONTROL] {
        world.vectors.route(port.vector(), Arc::clone(&waker));
    }
    world.set_operator(entity);
    journal::guests_run();
    desk.operator.lock().start_all();
    Ok(())
}

/// Its name in the scheduler.
fn schedule(world: &World) -> Result<EntityId, HostError> {
    let fail = |error: SchedError| {
        log::error!("scheduler: {error}");
        HostError::OutOfMemory("the scheduler")
    };
    let settings = Share { reserve: RESERVE, ..Share::default() };
    let mut scheduler = world.scheduler.lock();
    let now = asm::rdtsc();
    let id = scheduler.add_guest(settings, now).map_err(fail)?;
    // The machine's interrupts come to the first CPU.
    scheduler.add(id, Kind::Service, CpuSet::one(0), now).map_err(fail)
}

/// See the [module](self).
struct Operator {
    machine: &'static dyn AnyMachine,
    /// The guests that are known, in the order of their numbers.
    records: Vec<Record>,
    /// By place on the agenda: the number of the guest that has it; 0 for nobody.
    places: Vec<u32>,
    /// By place: when there is something to do for a guest, though nobody notes that.
    due: Alarms<usize>,
    /// Guests were looked after, or commanded, since it was last seen whether any is left.
    stirred: bool,
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
    /// Ticks of its longest step since somebody asked.
    longest: u64,
    /// The tick from which on it draws the screen again.
    draws: u64,
    /// State of the looks at the machine's time.
    watch: Watch,
}

impl Operator {
    /// Knows the guests of the bundle. None runs yet.
    fn new(bundle: &Bundle<'static>, machine: &'static dyn AnyMachine) -> Self {
        let world = machine.world();
        let host = &bundle.manifest().host;
        let mut operator = Self {
            machine,
            records: Vec::new(),
            places: Vec::new(),
            due: Alarms::new(|place| place),
            stirred: true,
            next: 1,
            when_empty: host.when_empty,
            console_bytes: host.console,
            events: EventLog::new(),
            terminal: Terminal::new(host.escape.byte()),
            control: Control::new(world),
            status: None,
            leave: None,
            longest: 0,
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
    fn start_all(&mut self) {
        let world = self.machine.world();
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
    fn step(&mut self) -> Stop {
        let world = self.machine.world();
        serial::CONSOLE.drain();
        serial::CONTROL.drain();
        self.listen(world);
        self.serve_control(world);
        self.visit_guests(world);
        self.watch.step(self.machine);
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
        let stirred = core::mem::take(&mut self.stirred);
        if stirred && self.when_empty == WhenEmpty::Exit && self.leave.is_none() && self.is_empty()
        {
            self.detach();
            let (status, reason) = self.status.take().unwrap_or((Status::OK, String::new()));
            journal::end(status, format_args!("{reason}"));
        }
        let busy = self.terminal.waits() || self.control.waits();
        if busy || self.due.first() <= asm::rdtsc() { Stop::Ready } else { Stop::Blocked }
    }

    /// Looks after the guests to which something has happened, those whose time has come, and the
    /// one whose console is shown.
    fn visit_guests(&mut self, world: &'static World) {
        let now = asm::rdtsc();
        while let Some((place, _)) = self.due.ring(now) {
            world.agenda.note(place);
        }
        if let Some(number) = self.terminal.shown()
            && let Some(record) = self.at(number).and_then(|at| self.records.get(at))
        {
            world.agenda.note(record.place);
        }
        for place in world.agenda.take() {
            let number = self.places.get(place).copied().unwrap_or(0);
            let Some(at) = self.at(number) else { continue };
            self.visit(world, at);
            if self.records.get(at).is_some_and(|record| record.life.state() == State::Deleted) {
                self.records.remove(at);
                self.due.remove(place);
                if let Some(number) = self.places.get_mut(place) {
                    *number = 0;
                }
            }
        }
    }

    /// The place of guest `number` among the records.
    fn at(&self, number: u32) -> Option<usize> {
        self.records.binary_search_by_key(&number, |record| record.number).ok()
    }

    /// Whether no guest runs, and none will by itself.
    fn is_empty(&self) -> bool {
        self.records.iter().all(|r| matches!(r.life.state(), State::Ended | State::Defined))
    }

    fn go(&self, leave: Leave) -> ! {
        match leave {
            Leave::Reboot => journal::reboot(),
            Leave::PowerOff => journal::power_off(),
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
        journal::refused(format_args!("{why}"));
        self.note_end(Status::REFUSED, &format!("refused: {why}"));
    }

    fn tell(&mut self, world: &World, at: usize, what: EventKind) {
        let guest = self
            .records
            .get(at)
            .map(|record| EventGuest { number: record.number, name: record.settings.name.clone() });
        self.events.push(world.nanos(asm::rdtsc()), guest, what);
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
