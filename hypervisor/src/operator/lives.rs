//! The life of each guest that is known: what its [`Lifecycle`] asks for is done
//! here, and what happens is told to it.

use super::watch::{Halt, Watch};
use super::{Operator, verdict};
use crate::cpu::asm;
use crate::drivers::serial;
use crate::error::HostError;
use crate::journal::{self, Status};
use crate::machine::console::Console;
#[cfg(feature = "check-entries")]
use crate::machine::guest::exchange;
use crate::machine::guest::{AnyGuest, Files, Names, Reclaim, Start};
use crate::machine::{Vendor, World, send};
use crate::mm;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use chipset::Flushed;
use config::{ConsoleBytes, GuestSettings, OnHalt};
use control::protocol::EventKind;
use control::{ErrorCode, Limit, Refusal, Ring, Screen};
use core::fmt::Write;
use sched::{EntityId, GuestId, Kind, SchedError, Share};
use vmm::end::EndReason;
use vmm::hot::timer::NEVER;
use vmm::lifecycle::{Action, Cause, Command, Event, Lifecycle, State};

/// Guests that can be known.
const MAX_GUESTS: usize = control::PLACES;
/// Bytes of the heap that a definition takes beside its console, at most.
const DEFINITION: usize = 64 << 10;

/// A guest that is known.
pub(super) struct Record {
    pub(super) number: u32,
    /// The place of the guest on the agenda.
    pub(super) place: usize,
    pub(super) settings: Arc<GuestSettings>,
    pub(super) files: Files,
    pub(super) life: Lifecycle,
    pub(super) console: Arc<Console>,
    pub(super) stage: Stage,
    /// Its clock stands.
    clock_stands: bool,
    /// Ticks of services that are gone.
    pub(super) service: u64,
    watch: Watch,
    /// The part of the report of its end that is still to be shown.
    report: String,
    /// Why it could not be started last.
    refusal: String,
    halt: Halt,
    limit: Limit<PLACES>,
}

/// Messages about the starts and ends of a guest, which can come often.
#[derive(Clone, Copy)]
enum Place {
    Starts,
    StartsAgain,
    Refused,
    Report,
    Halted,
}

const PLACES: usize = Place::Halted as usize + 1;

/// The parts of a guest that exist.
pub(super) enum Stage {
    /// Nothing.
    Nothing,
    /// It is being made; its name in the scheduler, and its start's.
    Starting(Arc<dyn Start>, GuestId, EntityId),
    /// All of it.
    There(Arc<AnyGuest>),
    /// No CPU runs it any more; what it had is given back. Its name in the scheduler, and that of
    /// the service that does it.
    Leaving(Arc<Reclaim>, GuestId, EntityId),
}

impl Record {
    /// The guest, while it is there.
    pub(super) fn guest(&self) -> Option<&Arc<AnyGuest>> {
        match &self.stage {
            Stage::There(guest) => Some(guest),
            _ => None,
        }
    }
}

impl Operator {
    /// Knows one more guest; returns its place.
    ///
    /// # Errors
    /// There is one of that name; there is no memory.
    pub(super) fn define(
        &mut self,
        world: &World,
        settings: GuestSettings,
        files: Files,
    ) -> Result<usize, Refusal> {
        if self.records.iter().any(|record| record.settings.name == settings.name) {
            let message = format!("there is a guest \"{}\" already", settings.name);
            return Err(Refusal::new(ErrorCode::Exists, message));
        }
        if self.records.len() >= MAX_GUESTS {
            let message = format!("there are {MAX_GUESTS} guests, no more can be known");
            return Err(Refusal::new(ErrorCode::NoMemory, message));
        }
        let bytes = settings.console_ring as usize;
        let ring = mm::has_room_for(bytes + DEFINITION).then(|| Ring::new(bytes).ok()).flatten();
        let ring = ring.ok_or_else(|| {
            let message = format!(
                "no memory for the {bytes} bytes of the guest's console that other guests were \
                 not promised: give it a smaller console.ring, or delete a guest"
            );
            Refusal::new(ErrorCode::NoMemory, message)
        })?;
        let screen = match self.console_bytes {
            ConsoleBytes::Filtered => Some(Screen::new()),
            ConsoleBytes::Raw => None,
        };
        let life = Lifecycle::new(settings.rules(world.frequency));
        let place = self.places.iter().position(|number| *number == 0);
        let place = place.unwrap_or(self.places.len());
        match self.places.get_mut(place) {
            Some(number) => *number = self.next,
            None => self.places.push(self.next),
        }
        self.records.push(Record {
            number: self.next,
            place,
            settings: Arc::new(settings),
            files,
            life,
            console: Arc::new(Console::new(ring, screen)),
            stage: Stage::Nothing,
            clock_stands: false,
            service: 0,
            watch: Watch::default(),
            report: String::new(),
            refusal: String::new(),
            halt: Halt::default(),
            limit: Limit::new(world.frequency.hz()),
        });
        self.next += 1;
        let at = self.records.len() - 1;
        self.tell(world, at, EventKind::Defined);
        Ok(at)
    }

    /// Obeys the operator.
    ///
    /// # Errors
    /// The guest's state does not allow it.
    pub(super) fn command(
        &mut self,
        world: &'static World,
        at: usize,
        command: Command,
    ) -> Result<(), Refusal> {
        let Some(record) = self.records.get_mut(at) else { return Ok(()) };
        let place = record.place;
        let waited = matches!(record.life.state(), State::Waiting { .. });
        let actions = record
            .life
            .command(command)
            .map_err(|refused| Refusal::new(ErrorCode::WrongState, refused.to_string()))?;
        if waited && matches!(record.life.state(), State::Ended | State::Deleted) {
            // The guest is not started again: how it ended last counts.
            self.note_last(at);
        }
        for action in actions {
            self.act(world, at, action);
        }
        world.note(place);
        Ok(())
    }

    fn event(&mut self, world: &'static World, at: usize, event: Event) {
        let Some(record) = self.records.get_mut(at) else { return };
        for action in record.life.event(event, asm::rdtsc()) {
            self.act(world, at, action);
        }
    }

    fn act(&mut self, world: &'static World, at: usize, action: Action) {
        let Some(record) = self.records.get_mut(at) else { return };
        match action {
            Action::Start => {
                self.tell(world, at, EventKind::Starting);
                if let Err(error) = self.begin(world, at) {
                    self.start_failed(world, at, &error);
                }
            }
            Action::CancelStart => {
                if let Stage::Starting(starter, ..) = &record.stage {
                    starter.cancel();
                }
            }
            Action::Pause => {
                if let Some(guest) = record.guest()
                    && let Ok(kicks) = world.scheduler.lock().pause(guest.id, asm::rdtsc())
                {
                    send(kicks);
                }
                self.tell(world, at, EventKind::Paused);
            }
            Action::Resume => {
                #[cfg(feature = "check-entries")]
                if record.clock_stands && exchange::is_requested(&record.settings) {
                    return self.exchange(world, at);
                }
                record.resume(world);
                self.tell(world, at, EventKind::Resumed);
            }
            Action::PressPowerButton => {
                if let Some(guest) = record.guest() {
                    guest.vm.board.press_power_button();
                }
                let left = match record.life.state() {
                    State::Stopping { deadline, .. } => deadline.saturating_sub(asm::rdtsc()),
                    _ => 0,
                };
                let seconds = u32::try_from(left.div_ceil(world.frequency.hz()));
                let seconds = seconds.unwrap_or(u32::MAX);
                self.tell(world, at, EventKind::Stopping { seconds });
            }
            Action::Reclaim => {
                if let Some(guest) = record.guest() {
                    guest.halt(world);
                }
                let words = record.life.last().map_or_else(String::new, ToString::to_string);
                let crashed =
                    matches!(record.life.last(), Some(Cause::Guest(reason)) if reason.is_crash());
                if !matches!(record.life.last(), Some(Cause::Start(_))) {
                    self.tell(world, at, EventKind::Ended { reason: words, crashed });
                }
            }
            Action::Forget => {
                self.tell(world, at, EventKind::Deleted);
                self.forget(at);
            }
        }
    }

    /// A fresh guest with the memory and the machine of one that is paused goes on in its place.
    #[cfg(feature = "check-entries")]
    fn exchange(&mut self, world: &'static World, at: usize) {
        let Some(record) = self.records.get_mut(at) else { return };
        let Some(guest) = record.guest().map(Arc::clone) else { return };
        let saved = exchange::save(&guest).inspect_err(|why| log::error!("{why}"));
        let Ok(saved) = saved else { return };
        log::info!("guest \"{}\": saved in {} bytes", guest.vm.name, saved.len());
        let saved = Files::Saved(Arc::clone(&guest.vm.memory), Arc::new(saved));
        let files = core::mem::replace(&mut record.files, saved);
        self.machine.unschedule(&guest);
        self.leave_scheduler(world, guest.id);
        if let Err(error) = self.begin(world, at) {
            self.start_failed(world, at, &error);
        }
        if let Some(record) = self.records.get_mut(at) {
            record.files = files;
        }
    }

    /// Has a guest made.
    fn begin(&mut self, world: &'static World, at: usize) -> Result<(), HostError> {
        let Some(record) = self.records.get_mut(at) else { return Ok(()) };
        let settings = &record.settings;
        let fail = |error: SchedError| HostError::Guest {
            guest: settings.name.clone(),
            why: error.to_string(),
        };
        let mut scheduler = world.scheduler.lock();
        let now = asm::rdtsc();
        let id = scheduler.add_guest(Share::of(settings), now).map_err(fail)?;
        let entity = match scheduler.add(id, Kind::Service, settings.cpus(), now) {
            Ok(entity) => entity,
            Err(error) => {
                // The guest was just added, and nothing of it runs.
                let _ = scheduler.remove_guest(id, now);
                return Err(fail(error));
            }
        };
        drop(scheduler);
        let (files, console) = (record.files.clone(), Arc::clone(&record.console));
        let names = Names { id, place: record.place };
        let starter = self.machine.start(entity, names, Arc::clone(settings), files, console);
        record.stage = Stage::Starting(starter, id, entity);
        Ok(())
    }

    fn start_failed(&mut self, world: &'static World, at: usize, error: &HostError) {
        let Some(record) = self.records.get_mut(at) else { return };
        let reason = error.to_string();
        record.refusal.clone_from(&reason);
        if !record.may_say(Place::Refused) {
            // The reason is in the event, and in the monitor's list.
        } else if record.life.is_cancelled() {
            log::info!("{reason}");
        } else {
            journal::refused(format_args!("{reason}"));
        }
        self.tell(world, at, EventKind::StartFailed { reason });
        self.event(world, at, Event::StartFailed("make the guest"));
    }

    /// Does the work that there is for a guest now, and notes when there will be more.
    pub(super) fn visit(&mut self, world: &'static World, at: usize) {
        let Some(record) = self.records.get(at) else { return };
        let (place, before, now) = (record.place, record.life.state(), asm::rdtsc());
        let next = self.look_after(world, at, now);
        let Some(record) = self.records.get_mut(at) else { return };
        if record.life.deadline().is_some_and(|deadline| deadline <= now) {
            for action in record.life.timer(now) {
                self.act(world, at, action);
            }
        }
        let Some(record) = self.records.get(at) else { return };
        let next = if record.life.state() == before { next } else { now };
        match next.min(record.life.deadline().unwrap_or(NEVER)).min(record.limit.due()) {
            NEVER => self.due.remove(place),
            next => self.due.set(place, next),
        }
        self.stirred = true;
    }

    /// Does the work that there is for a guest. The tick from which on there is more;
    /// [`NEVER`]: there is once somebody has noted that.
    fn look_after(&mut self, world: &'static World, at: usize, now: u64) -> u64 {
        let Some(record) = self.records.get_mut(at) else { return NEVER };
        if let Some(count) = record.limit.overdue(now) {
            let name = &record.settings.name;
            log::info!("guest \"{name}\": {count} messages were left out");
        }
        let state = record.life.state();
        match &mut record.stage {
            Stage::Starting(starter, id, entity) => {
                let (starter, id, entity) = (Arc::clone(starter), *id, *entity);
                if let Some(result) = starter.result() {
                    self.start_over(world, at, entity);
                    match result.and_then(|guest| guest.schedule(world).map(|()| guest)) {
                        Ok(guest) => self.started(world, at, &*starter, guest),
                        Err(error) => self.not_started(world, at, id, &error),
                    }
                }
            }
            Stage::There(guest) => {
                let guest = Arc::clone(guest);
                // Output of its vCPUs from before they left is in its serial port now.
                let left = guest.is_left();
                let console = &guest.console;
                console.show();
                let flushed = guest.vm.board.try_flush_console();
                let said = flushed == Some(Flushed::All) && console.unread().0 == 0;
                if let Some(end) = guest.end()
                    && !matches!(state, State::Clearing { .. })
                {
                    let reason = end.reason.clone();
                    self.event(world, at, Event::Ended(reason));
                    return now;
                }
                match state {
                    // Its last output is shown first, as the line takes it: it is attached, and
                    // so visited in each step.
                    State::Clearing { .. }
                        if left
                            && console.is_attached()
                            && !said
                            && !serial::CONSOLE.stands_still() => {}
                    State::Clearing { .. } if left => {
                        self.reap(world, at);
                        return now;
                    }
                    State::Paused if !record.clock_stands => {
                        record.clock_stands = !guest.is_running(world);
                        if !record.clock_stands {
                            return now;
                        }
                        guest.vm.pause(asm::rdtsc());
                    }
                    State::Running => {
                        let watched = record.watch.look(&record.settings, world, &guest, now);
                        let (is_over, next) = record.halt.look(world, &guest, now);
                        if is_over {
                            record.halted(world, &guest);
                        }
                        let again = if flushed.is_none() { world.poll_interval() } else { NEVER };
                        return watched.min(next).min(now.saturating_add(again));
                    }
                    _ => {}
                }
                if flushed.is_none() {
                    // A vCPU was at the serial port: what stands there is fetched soon.
                    return now + world.poll_interval();
                }
            }
            Stage::Leaving(reclaim, id, entity) => {
                if !record.report.is_empty() {
                    record.show_report(now + world.step());
                    return now;
                }
                if reclaim.is_done() {
                    let (id, entity) = (*id, *entity);
                    self.machine.forget(entity);
                    self.leave_scheduler(world, id);
                    if let Some(record) = self.records.get_mut(at) {
                        record.stage = Stage::Nothing;
                    }
                    self.cleared(world, at);
                }
            }
            Stage::Nothing => {
                if matches!(state, State::Clearing { .. }) {
                    self.cleared(world, at);
                }
            }
        }
        NEVER
    }

    /// A guest has no place among the others any more.
    fn leave_scheduler(&self, world: &World, id: GuestId) {
        if let Ok(kicks) = world.scheduler.lock().remove_guest(id, asm::rdtsc()) {
            send(kicks);
        }
    }

    /// The start of a guest is over, whatever came of it: nothing is run for it any more.
    fn start_over(&mut self, world: &World, at: usize, entity: EntityId) {
        self.machine.forget(entity);
        let mut scheduler = world.scheduler.lock();
        let now = asm::rdtsc();
        let service = scheduler.entity_times(entity, now).unwrap_or_default().run;
        let kicks = scheduler.remove(entity, now);
        drop(scheduler);
        if let Ok(kicks) = kicks {
            send(kicks);
        }
        if let Some(record) = self.records.get_mut(at) {
            record.service = service;
        }
    }

    /// A guest is there, and may run, unless the operator has changed its mind.
    fn started(
        &mut self,
        world: &'static World,
        at: usize,
        starter: &dyn Start,
        guest: Arc<AnyGuest>,
    ) {
        let Some(record) = self.records.get_mut(at) else { return };
        record.stage = Stage::There(guest);
        record.clock_stands = false;
        if !record.life.is_cancelled() {
            if record.may_say(Place::Starts) {
                let GuestSettings { name, memory, .. } = &*record.settings;
                journal::stage("guest", format_args!("\"{name}\" starts: {} MiB", memory >> 20));
            }
            record.watch = Watch::default();
            record.halt = Halt::default();
            starter.admit();
            self.tell(world, at, EventKind::Started);
        }
        self.event(world, at, Event::Started);
    }

    /// A guest could not be made.
    fn not_started(&mut self, world: &'static World, at: usize, id: GuestId, error: &HostError) {
        if let Some(record) = self.records.get_mut(at) {
            record.stage = Stage::Nothing;
        }
        self.leave_scheduler(world, id);
        self.start_failed(world, at, error);
    }

    /// A guest has ended and no CPU runs it any more.
    fn reap(&mut self, world: &World, at: usize) {
        let Some(record) = self.records.get_mut(at) else { return };
        let Some(guest) = record.guest().map(Arc::clone) else { return };
        // Without room it is tried again.
        let Ok((entity, reclaim)) = self.machine.reclaim(&guest) else { return };
        // The guest's report must be seen.
        self.terminal.pass(&record.console.end());
        if record.may_say(Place::Report) {
            record.report = report(&guest, &world.vendor);
        }
        record.stage = Stage::Leaving(reclaim, guest.id, entity);
    }

    /// Nothing of a guest is left.
    fn cleared(&mut self, world: &'static World, at: usize) {
        self.tell(world, at, EventKind::Cleared);
        self.event(world, at, Event::Reclaimed);
        let Some(record) = self.records.get_mut(at) else { return };
        let name = record.settings.name.clone();
        match record.life.state() {
            State::Waiting { until } => {
                let ticks = until.saturating_sub(asm::rdtsc());
                let delay_ns = world.scale.nanos(ticks);
                let ms = (delay_ns + 500_000) / 1_000_000;
                if record.may_say(Place::StartsAgain) {
                    log::info!("guest \"{name}\" starts again in {ms} ms");
                }
                self.tell(world, at, EventKind::Waiting { delay_ns });
            }
            State::Starting { .. } if record.may_say(Place::StartsAgain) => {
                log::info!("guest \"{name}\" starts again");
            }
            State::Ended => self.note_last(at),
            _ => {}
        }
    }

    /// A guest has ended for good.
    fn note_last(&mut self, at: usize) {
        let Some(record) = self.records.get(at) else { return };
        let name = &record.settings.name;
        let (status, words) = match record.life.last() {
            Some(Cause::Guest(reason)) => verdict(&record.settings, reason),
            Some(cause @ (Cause::Forced | Cause::Killed | Cause::Cancelled)) => {
                (Status::OK, cause.to_string())
            }
            Some(Cause::Start(_)) => {
                let words = format!("refused: {}", record.refusal);
                return self.note_end(Status::REFUSED, &words);
            }
            None => return,
        };
        let words = format!("guest {name} {words}");
        self.note_end(status, &words);
    }
}

impl Record {
    /// Whether something may be said of it now, which is not often.
    fn may_say(&mut self, place: Place) -> bool {
        self.limit.admits(place as usize, asm::rdtsc())
    }

    /// Does what is set for a guest that is halted for good.
    fn halted(&mut self, world: &World, guest: &AnyGuest) {
        match guest.settings.on_halt {
            OnHalt::End => guest.stop(EndReason::Halted, None, world),
            OnHalt::Stay if self.may_say(Place::Halted) => {
                let name = &guest.settings.name;
                log::warn!(
                    "guest \"{name}\" is halted for good: all its vCPUs, with interrupts disabled"
                );
            }
            OnHalt::Stay => {}
        }
    }

    /// Shows lines of the report, until the tick `until`.
    fn show_report(&mut self, until: u64) {
        let mut shown = 0;
        for line in self.report.split_inclusive('\n') {
            shown += line.len();
            journal::line(format_args!("{}", line.trim_end()));
            if asm::rdtsc() >= until {
                break;
            }
        }
        self.report.drain(..shown);
    }

    /// Lets a paused guest go on: its clock first.
    fn resume(&mut self, world: &World) {
        let Some(guest) = self.guest().map(Arc::clone) else { return };
        self.watch = Watch::default();
        if core::mem::take(&mut self.clock_stands) {
            guest.vm.resume(world.time());
        }
        if let Ok(kicks) = world.scheduler.lock().resume(guest.id, asm::rdtsc()) {
            send(kicks);
        }
    }
}

/// Line about the stamps of the guest's exits, for the report.
#[cfg(feature = "stamp-exits")]
fn report_stamps(guest: &AnyGuest, unstamped: u64, text: &mut String) {
    let stamps = guest.stamps();
    let sum = stamps.sum(unstamped, guest.services.zeroed_for());
    let [bytes, quadwords] = crate::mm::copied();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "steward: INFO: guest \"{}\": stamped: {sum}: hot exits {}, other exits and switches {}, \
         {} exits of {} instructions more, zeroing ahead {}, in the guest {}; copied on this \
         machine: 1 byte {bytes} times, 8 bytes {quadwords} times",
        guest.vm.name, stamps.hot, stamps.cold, stamps.exits, unstamped, sum.services, sum.guest,
    );
}

/// The operator's report of a guest's end.
fn report(guest: &AnyGuest, vendor: &Vendor) -> String {
    let mut all = String::new();
    let name = &guest.vm.name;
    let end = guest.end();
    let crash = end.filter(|end| end.reason.is_crash());
    let mut text = String::new();
    for (index, published) in guest.published().enumerate() {
        if let Some(end) = crash.filter(|end| end.vcpu.is_none_or(|vcpu| vcpu == index)) {
            let mut dump = String::new();
            // Writing to a string does not fail, and nobody runs the vCPU.
            let _ = guest.with_vcpu(index, 0, |vcpu| vcpu.dump(&mut dump));
            if log::log_enabled!(log::Level::Error) {
                let how = verdict(&guest.settings, &end.reason).1;
                // Nor does this.
                let _ = writeln!(all, "steward: ERROR: guest \"{name}\" {how}\n{dump}");
            }
        }
        if guest.vcpus.count() > 1 {
            // Writing to a string does not fail.
            let _ = write!(text, " vCPU {index}:");
        }
        let counts = published.counts.iter().chain(published.counters());
        for (name, count) in counts.filter(|(_, count)| *count != 0) {
            // Writing to a string does not fail.
            let _ = write!(text, " {name}={count}");
        }
    }
    if log::log_enabled!(log::Level::Info) {
        let touched = guest.vm.memory.populated_frames() / 256;
        // Nor does this.
        let _ = writeln!(
            all,
            "steward: INFO: guest \"{name}\": {touched} MiB of RAM touched, exits:{text}"
        );
        let (up, account) = (guest.up(), guest.account(vendor.hot_costs));
        // Nor does this.
        let _ = writeln!(
            all,
            "steward: INFO: guest \"{name}\": {up} ticks up, {} busy: {account}",
            account.total()
        );
        #[cfg(feature = "stamp-exits")]
        report_stamps(guest, vendor.unstamped, &mut all);
    }
    all
}
