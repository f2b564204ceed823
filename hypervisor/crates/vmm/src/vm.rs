//! A virtual machine: memory, clock, devices and what its vCPUs share.

use crate::clock::{HostTime, TscAgreement, VmClock};
use crate::msr::mtrr::Mtrrs;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use chipset::Board;
use chipset::fabric::{Posted, Requests, Routes, VcpuSet, send};
use devices::firmware::FirmwareNews;
use devices::lapic::{Destination, DestinationMode, InterruptMessage, IpiCommand, Ticks};
use memory::GuestRam;
use spin::{Mutex, RwLock};
use x86defs::time::Nanos;

/// Bytes fetched from the guest's console at a time.
const CONSOLE_CHUNK: usize = 64;
/// Bytes moved in one go.
const CONSOLE_TURN: usize = 4096;

/// Services of the machine for a guest.
pub trait Host {
    /// The TSC of the machine.
    fn tsc(&self) -> u64;

    /// The machine's clocks, read at one moment.
    fn time(&self) -> HostTime;

    /// Takes bytes for the guest's console; returns how many, from the start,
    /// it had room for.
    fn console_write(&mut self, bytes: &[u8]) -> usize;

    /// Takes all of what the guest's serial port sent, if need be for later.
    fn console_put(&mut self, bytes: &[u8]);

    /// How many bytes [`console_write`](Self::console_write) would take.
    fn console_room(&self) -> usize;

    /// The TSC at which the machine itself wants to be looked after.
    fn deadline(&self) -> u64;

    /// Arms this CPU's timer for when its TSC reaches `deadline`.
    fn arm_timer(&mut self, deadline: u64);

    /// The guest with this name has entered its ROM in a way that it had not before.
    fn firmware_entered(&mut self, guest: &str, news: FirmwareNews);

    /// The hot handler may have armed the timer since, for `deadline`.
    fn note_armed(&mut self, deadline: u64);
}

/// How far [`Vm::flush_console`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// There was no room for more; something may be left.
    OutOfRoom,
}

/// Makes a vCPU, by index, look at its mailbox: the vCPU is woken, or leaves the guest if it runs
/// on another CPU.
pub struct Kick(pub Box<dyn Fn(usize) + Send + Sync>);

impl core::fmt::Debug for Kick {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Kick")
    }
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
    /// Its vCPUs, as others may touch them, by index.
    pub vcpus: Vec<Arc<Posted>>,
    /// Destinations that the vCPUs' local APICs answer to.
    pub routes: Routes,
    /// How to reach a vCPU that something was posted to.
    pub kick: Kick,
    /// Held by whoever moves output of the console: bytes stay in their order.
    pub console: Mutex<()>,
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
        TscAgreement::of(self.vcpus.iter().map(|posted| posted.tsc_adjust()))
    }

    /// The TSC of vCPU `index` was changed: all others tell what that means for kvmclock
    /// before they go on.
    pub(crate) fn tsc_changed(&self, index: usize) {
        for (other, posted) in self.vcpus.iter().enumerate() {
            if other != index && posted.request(Requests::CLOCK) {
                (self.kick.0)(other);
            }
        }
    }

    /// The vCPU whose local APIC has the identity `id`.
    pub fn vcpu_of(&self, id: u64) -> Option<usize> {
        let id = u32::try_from(id).ok().filter(|id| *id != Destination::BROADCAST)?;
        let destination = Destination { id, mode: DestinationMode::Physical };
        self.routes.matching(destination).into_iter().next()
    }

    /// Ends the HLT of vCPU `index`, or the next one that it executes.
    pub fn unhalt(&self, index: usize) {
        if self.vcpus.get(index).is_some_and(|posted| posted.request(Requests::UNHALT)) {
            (self.kick.0)(index);
        }
    }

    /// Sends an interrupt to the vCPUs that it is for.
    pub fn deliver(&self, message: InterruptMessage) {
        let targets = self.routes.route(&message);
        self.send(&message, targets);
    }

    /// Sends the IPI that vCPU `sender` commanded.
    pub fn deliver_ipi(&self, sender: usize, command: &IpiCommand) {
        let targets = self.routes.route_ipi(sender, command);
        self.send(&command.message, targets);
    }

    /// Sends `message` to `targets`, whatever its destination.
    pub fn send(&self, message: &InterruptMessage, targets: VcpuSet) {
        let mailbox = |index: usize| self.vcpus.get(index).map(|vcpu| &**vcpu);
        send(message, targets, mailbox, |index| (self.kick.0)(index));
    }

    /// Devices whose time has come act.
    pub fn advance(&self, now: Nanos) {
        if self.board.deadline() <= now {
            self.board.advance(now, |message| self.deliver(message));
        }
    }

    /// Bytes typed at the guest's console; returns how many were taken.
    pub fn console_input(&self, bytes: &[u8], now: Nanos) -> usize {
        let taken = self.board.console_input(bytes, now, |message| self.deliver(message));
        self.look_at_devices();
        taken
    }

    /// Has the first vCPU look whether the 8259s ask for it, and how long it may
    /// sleep: what happened to a device may change either without a message.
    pub fn look_at_devices(&self) {
        if self.vcpus.first().is_some_and(|posted| posted.request(Requests::KICK)) {
            (self.kick.0)(0);
        }
    }

    /// Moves what the guest sent to its console to `to`, which has `room`;
    /// the rest waits in the guest's serial port.
    pub fn flush_console<T>(
        &self,
        to: &mut T,
        put: impl Fn(&mut T, &[u8]),
        room: impl FnOnce(&T) -> usize,
    ) -> Flushed {
        let _alone = self.console.lock();
        self.move_console(to, put, room)
    }

    /// The same as [`flush_console`](Self::flush_console), for a caller that must not wait. `None`
    /// while a vCPU moves the output.
    pub fn try_flush_console<T>(
        &self,
        to: &mut T,
        put: impl Fn(&mut T, &[u8]),
        room: impl FnOnce(&T) -> usize,
    ) -> Option<Flushed> {
        let _alone = self.console.try_lock()?;
        Some(self.move_console(to, put, room))
    }

    fn move_console<T>(
        &self,
        to: &mut T,
        put: impl Fn(&mut T, &[u8]),
        room: impl FnOnce(&T) -> usize,
    ) -> Flushed {
        let mut buffer = [0; CONSOLE_CHUNK];
        // Other vCPUs may go on sending.
        let mut room = room(to).min(CONSOLE_TURN);
        while room != 0 {
            let part = buffer.get_mut(..room.min(CONSOLE_CHUNK)).unwrap_or_default();
            let count = self.board.console_output(part, |message| self.deliver(message));
            if count == 0 {
                return Flushed::All;
            }
            put(to, part.get(..count).unwrap_or_default());
            room -= count;
        }
        Flushed::OutOfRoom
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.board.press_power_button(|message| self.deliver(message));
        self.look_at_devices();
    }
}
