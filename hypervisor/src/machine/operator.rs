//! The operator's service context: moves bytes between the machine's serial
//! port and the guests' consoles, and takes guests apart that have ended.

use super::World;
use super::console::Console;
use super::cpu::Runner;
use super::guest::Guest;
use crate::cpu::asm;
use crate::drivers::serial;
use crate::error::HostError;
use crate::hw::VendorCpu;
use crate::monitor::{self, Status};
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write;
use hvabi::ShutDownKind;
use vmm::bundle::{Bundle, GuestSettings, OnReset};
use vmm::keys::{Keys, Typed};
use vmm::sched::Stop;
use vmm::vm::EndReason;

/// See the [module](self).
pub(super) struct Operator<C: VendorCpu> {
    bundle: Bundle<'static>,
    keys: Keys,
    consoles: Vec<Arc<Console>>,
    /// The console that the operator sees.
    attached: usize,
    /// Guests that start again once nothing of them is left: their memory is
    /// the next one's.
    restarts: Vec<(Weak<Guest<C>>, GuestSettings)>,
    /// The first status that was not [`Status::OK`], or that.
    status: Option<(Status, String)>,
    vendor: core::marker::PhantomData<fn() -> C>,
}

impl<C: VendorCpu> Operator<C> {
    pub(super) fn new(bundle: Bundle<'static>) -> Self {
        Self {
            bundle,
            keys: Keys::default(),
            consoles: Vec::new(),
            attached: 0,
            restarts: Vec::new(),
            status: None,
            vendor: core::marker::PhantomData,
        }
    }

    /// Makes and starts all guests of the bundle.
    ///
    /// # Errors
    /// The first that can't be made.
    pub(super) fn start_all(
        &mut self,
        world: &'static World<C>,
        vendor: &C,
    ) -> Result<(), HostError> {
        let guests = self.bundle.manifest().guests.clone();
        for settings in &guests {
            self.consoles.push(Arc::new(Console::new(&settings.name)));
        }
        if let Some(console) = self.consoles.get(self.attached) {
            console.attach();
        }
        for settings in &guests {
            self.start(world, vendor, settings)?;
        }
        Ok(())
    }

    fn start(
        &mut self,
        world: &'static World<C>,
        vendor: &C,
        settings: &GuestSettings,
    ) -> Result<(), HostError> {
        let console = self.consoles.iter().find(|console| console.name == settings.name);
        let console = match console {
            Some(console) => Arc::clone(console),
            None => Arc::new(Console::new(&settings.name)),
        };
        let guest = world.build(vendor, &self.bundle, settings, console)?;
        monitor::stage(
            "guest",
            format_args!("\"{}\" starts: {} MiB", settings.name, settings.memory >> 20),
        );
        #[cfg(feature = "check-entries")]
        if crate::hw::broken::requested(&settings.cmdline).is_some() {
            world.try_broken(vendor, &guest);
        }
        // Its first touches find zeroed memory.
        while guest.vm.memory.prepare() {}
        world.admit(guest);
        Ok(())
    }

    /// Works for a while.
    pub(super) fn step(&mut self, world: &'static World<C>, vendor: &C) -> Stop {
        serial::drain();
        self.input(world);
        let guests: Vec<Arc<Guest<C>>> = world.guests.read().clone();
        for guest in &guests {
            self.output(guest);
            if guest.end().is_some() && guest.is_left() {
                self.reap(world, guest);
            }
        }
        drop(guests);
        self.restart(world, vendor);
        if self.restarts.is_empty() {
            if world.guests.read().is_empty() {
                let (status, reason) = self.status.take().unwrap_or((Status::OK, String::new()));
                monitor::end(status, format_args!("{reason}"));
            }
            Stop::Blocked
        } else {
            Stop::Ready
        }
    }

    /// Starts the guests again of which nothing is left.
    fn restart(&mut self, world: &'static World<C>, vendor: &C) {
        let gone = |(guest, _): &mut (Weak<Guest<C>>, GuestSettings)| guest.strong_count() == 0;
        let ready: Vec<_> = self.restarts.extract_if(.., gone).collect();
        for (_, settings) in ready {
            log::info!("guest \"{}\" was reset and starts again", settings.name);
            if let Err(error) = self.start(world, vendor, &settings) {
                log::error!("{error}");
                let words = format!("guest {} can't start again", settings.name);
                self.note_end(Status::REFUSED, &words);
            }
        }
    }

    /// Gives what was typed to the guest that the operator sees.
    fn input(&mut self, world: &World<C>) {
        let Some(guest) = self.attached_guest(world) else {
            // Nobody listens.
            let mut lost = [0; 16];
            while serial::read(&mut lost) != 0 {}
            return;
        };
        // One byte typed can be two for the guest.
        let mut buffer = [0; 16];
        let space = (guest.vm.chipset.console_space() / 2).min(buffer.len());
        let count = serial::read(&mut buffer[..space]);
        for byte in &buffer[..count] {
            match self.keys.feed(*byte) {
                Typed::Guest(bytes) => {
                    guest.vm.console_input(&bytes, guest.vm.now(asm::rdtsc()));
                }
                Typed::PowerButton => guest.vm.press_power_button(),
                Typed::Attach(number) => self.attach(number),
            }
        }
    }

    fn attached_guest(&self, world: &World<C>) -> Option<Arc<Guest<C>>> {
        let name = &self.consoles.get(self.attached)?.name;
        world.guests.read().iter().find(|guest| guest.vm.name == *name).cloned()
    }

    /// Shows the console of guest `number`, from 0.
    fn attach(&mut self, number: usize) {
        let Some(console) = self.consoles.get(number) else {
            let count = self.consoles.len();
            monitor::note(format_args!("there are {count} guests, numbered from 1"));
            return;
        };
        if let Some(before) = self.consoles.get(self.attached) {
            before.detach();
        }
        let dropped = console.attach();
        monitor::note(format_args!("console of \"{}\", {dropped} bytes dropped", console.name));
        console.show();
        self.attached = number;
    }

    /// Moves a guest's output on.
    fn output(&self, guest: &Guest<C>) {
        guest.console.show();
        guest.vm.flush_console(|bytes| guest.console.write(bytes), guest.console.room());
    }

    /// A guest has ended and no CPU runs it any more.
    fn reap(&mut self, world: &World<C>, guest: &Arc<Guest<C>>) {
        let Some(end) = guest.end() else { return };
        world.remove(guest);
        // What is still in its serial port.
        self.output(guest);
        serial::flush();
        self.output(guest);
        report(guest);
        let settings = guest.settings.clone();
        if end.reason == EndReason::Reset && settings.on_reset == OnReset::Restart {
            self.restarts.push((Arc::downgrade(guest), settings));
        } else {
            let (status, words) = verdict(&end.reason);
            self.note_end(status, &format!("guest {} {words}", settings.name));
        }
    }

    /// The run's status is the first that is not [`Status::OK`].
    fn note_end(&mut self, status: Status, words: &str) {
        if self.status.as_ref().is_none_or(|(first, _)| *first == Status::OK) {
            self.status = Some((status, words.into()));
        }
    }
}

impl<C: VendorCpu> World<C> {
    /// The operator's turn.
    pub(super) fn operate(&'static self, vendor: &C) -> Stop {
        self.operator.lock().step(self, vendor)
    }

    /// Enters the guest with one broken rule after the other, and ends the run.
    #[cfg(feature = "check-entries")]
    fn try_broken(&self, vendor: &C, guest: &Guest<C>) {
        let cmdline = &guest.settings.cmdline;
        let plan = crate::hw::broken::Plan { cmdline, slice: self.khz * 10 };
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
    fn admit(&'static self, guest: Arc<Guest<C>>) {
        let first = guest.places.entity(0);
        {
            let mut runners = self.runners.write();
            for (index, entity) in guest.places.entities().enumerate() {
                runners.insert(entity, Runner::Vcpu(Arc::clone(&guest), index));
            }
        }
        self.guests.write().push(guest);
        if let Some(entity) = first {
            self.wake(entity, vmm::sched::Reason::Other);
        }
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

/// What a guest's end means for the run.
fn verdict(reason: &EndReason) -> (Status, String) {
    match reason {
        EndReason::PowerOff => (Status::OK, "powered off".into()),
        EndReason::Reset => (Status::OK, "reset".into()),
        EndReason::DebugExit(value) => {
            let [low, ..] = (value << 1 | 1).to_le_bytes();
            (Status(low), format!("wrote {value:#x} to the debug-exit port"))
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

/// What the operator should know of a guest's end.
fn report<C: VendorCpu>(guest: &Guest<C>) {
    let Some(end) = guest.end() else { return };
    let crash =
        matches!(end.reason, EndReason::TripleFault | EndReason::Failed(_) | EndReason::Panicked);
    let mut text = String::new();
    for (index, slot) in guest.slots.iter().enumerate() {
        let private = slot.private.lock();
        if crash && end.vcpu == Some(index) {
            let mut dump = String::new();
            // Writing to a string does not fail.
            let _ = private.vcpu.dump(&mut dump);
            log::error!("guest \"{}\" {}\n{dump}", guest.vm.name, verdict(&end.reason).1);
        }
        if guest.slots.len() > 1 {
            // Writing to a string does not fail.
            let _ = write!(text, " vCPU {index}:");
        }
        for (name, count) in private.vcpu.core.counts.iter().filter(|(_, count)| *count != 0) {
            // Writing to a string does not fail.
            let _ = write!(text, " {name}={count}");
        }
    }
    log::info!(
        "guest \"{}\": {} MiB of RAM touched, exits:{text}",
        guest.vm.name,
        guest.vm.memory.populated_frames() / 256
    );
}
