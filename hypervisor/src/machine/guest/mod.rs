//! A guest while it exists: its VM, its vCPUs as the scheduler sees them, and
//! how it ended.

mod build;
#[cfg(feature = "check-entries")]
pub(crate) mod exchange;
mod places;
mod reclaim;
mod services;
mod slots;
mod start;
#[cfg(feature = "check-entries")]
mod violations;

pub(crate) use places::Places;
pub(crate) use reclaim::Reclaim;
pub(crate) use services::{GuestService, Services};
pub(crate) use slots::{Private, Published, Slots, Vcpus};
pub(crate) use start::{Files, Start, Starter};

use super::console::Console;
use super::world::World;
use crate::cpu::asm;
use crate::error::HostError;
use crate::mm::guest::GuestSpace;
use alloc::string::ToString;
use alloc::sync::Arc;
use chipset::Board;
use chipset::fabric::Requests;
use config::{GuestSettings, OnTripleFault};
use control::{Account, attempt};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use sched::{EntityId, GuestId, Kind};
use spin::Once;
use vmm::backend::Backend;
use vmm::end::EndReason;
#[cfg(feature = "stamp-exits")]
use vmm::stamps::Stamps;
use vmm::stopwatch::HotCosts;
use vmm::vcpu::Vcpu;
use vmm::vm::Vm;

/// No vCPU.
const NONE: usize = usize::MAX;

/// A guest. Its vCPUs are of the vendor of the machine's CPUs, which only those who run them
/// have to know: to all others it is an [`AnyGuest`].
pub(crate) struct Guest<V: ?Sized> {
    /// Its settings.
    pub(crate) settings: Arc<GuestSettings>,
    /// The part that its vCPUs share.
    pub(crate) vm: Vm<Arc<GuestSpace>>,
    /// Places of its vCPUs.
    pub(crate) places: Arc<Places>,
    /// The services that run on its account.
    pub(crate) services: Services,
    /// The console that takes its output.
    pub(crate) console: Arc<Console>,
    /// Its name in the scheduler.
    pub(crate) id: GuestId,
    /// The place on the operator's agenda.
    pub(crate) place: usize,
    /// The TSC when it was started.
    pub(crate) started: u64,
    /// The vCPUs are not to run any more.
    stopping: AtomicBool,
    /// The vCPU that is not to run for a moment, as somebody wants to look at it, or [`NONE`].
    /// The others go on.
    wanted: AtomicUsize,
    /// A vCPU has halted with interrupts disabled, once.
    halted_deaf: AtomicBool,
    end: Once<End>,
    /// Its vCPUs.
    pub(crate) vcpus: V,
}

/// A guest, whatever the vendor of its vCPUs.
pub(crate) type AnyGuest = Guest<dyn Vcpus>;

/// Names by which others know a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// The scheduler.
    pub(crate) id: GuestId,
    /// The operator: its place on the [agenda](World::agenda).
    pub(crate) place: usize,
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct End {
    /// Why.
    pub(crate) reason: EndReason,
    /// The vCPU that ended it; `None` for the operator.
    pub(crate) vcpu: Option<usize>,
}

impl<V: ?Sized> core::fmt::Debug for Guest<V> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Guest").field("name", &self.vm.name).finish_non_exhaustive()
    }
}

impl<V> Guest<V> {
    /// A guest around its parts.
    pub(crate) fn new(
        settings: Arc<GuestSettings>,
        vm: Vm<Arc<GuestSpace>>,
        vcpus: V,
        (places, services): (Arc<Places>, Services),
        console: Arc<Console>,
        names: Names,
        started: u64,
    ) -> Self {
        Self {
            settings,
            vm,
            places,
            services,
            console,
            id: names.id,
            place: names.place,
            started,
            stopping: AtomicBool::new(false),
            wanted: AtomicUsize::new(NONE),
            halted_deaf: AtomicBool::new(false),
            end: Once::new(),
            vcpus,
        }
    }
}

impl<V: Vcpus + ?Sized> Guest<V> {
    /// Account of its time, in ticks, up to when each vCPU last left a CPU.
    pub(crate) fn account(&self, costs: HotCosts) -> Account {
        let ahead = Account { services: self.services.zeroed_for(), ..Account::default() };
        self.published().fold(ahead, |sum, vcpu| sum.plus(vcpu.account(costs)))
    }

    /// Figures of its vCPUs, in their order, as of when each last left a CPU.
    pub(crate) fn published(&self) -> impl Iterator<Item = Published> {
        (0..self.vcpus.count()).filter_map(|index| self.vcpus.published(index))
    }

    /// The stamps of all its vCPUs.
    #[cfg(feature = "stamp-exits")]
    pub(crate) fn stamps(&self) -> Stamps {
        self.published().map(|vcpu| vcpu.stamps).fold(Stamps::default(), Stamps::plus)
    }

    /// Ticks from its first instruction to when its vCPUs last left their CPUs.
    pub(crate) fn up(&self) -> u64 {
        let left = self.published().map(|vcpu| vcpu.left).max();
        left.unwrap_or(0).saturating_sub(self.started)
    }

    /// Its cost beside its RAM and page tables, in bytes: vCPUs, device
    /// models, rings.
    pub(crate) fn overhead(&self) -> u64 {
        let shared = size_of_val(self) + size_of::<Board>();
        self.vcpus.bytes() + shared as u64 + self.console.memory()
    }

    /// Lets `look` see vCPU `index`, taken off its CPU for as long. `None` if
    /// there is no such vCPU, or it could not be had within `ticks`: nobody else runs on
    /// this CPU meanwhile, and a guest can make a vCPU's exit long.
    pub(crate) fn with_vcpu<R>(
        &self,
        index: usize,
        ticks: u64,
        look: impl FnOnce(&mut Vcpu<dyn Backend>) -> R,
    ) -> Option<R> {
        if index >= self.vcpus.count() {
            return None;
        }
        self.wanted.store(index, Ordering::SeqCst);
        self.places.interrupt(index);
        let (mut look, mut result) = (Some(look), None);
        self.vcpus.look(index, &self.vm.memory, ticks, &mut |vcpu| {
            result = look.take().map(|look| look(vcpu));
        });
        self.wanted.store(NONE, Ordering::SeqCst);
        result
    }

    /// Whether `ask` is so for all its vCPUs, each of which may take `ticks` to be had.
    /// `None`: one could not be had.
    pub(crate) fn all_vcpus(
        &self,
        ticks: u64,
        ask: impl Fn(&Vcpu<dyn Backend>) -> bool,
    ) -> Option<bool> {
        attempt::all(
            (0..self.vcpus.count()).map(|index| self.with_vcpu(index, ticks, |vcpu| ask(vcpu))),
        )
    }

    /// Whether a CPU runs one of its vCPUs, or is about to.
    pub(crate) fn is_running(&self, world: &World) -> bool {
        let scheduler = world.scheduler.lock();
        let mut running = scheduler.cpus().iter().filter_map(|cpu| scheduler.running(cpu));
        running.any(|entity| self.places.entities().any(|other| other == entity))
    }

    /// Gives its vCPUs and services their places in the scheduler.
    pub(crate) fn schedule(&self, world: &World) -> Result<(), HostError> {
        let mut scheduler = world.scheduler.lock();
        let cpus = self.settings.cpus();
        let mut add = |kind| {
            scheduler.add(self.id, kind, cpus, asm::rdtsc()).map_err(|error| HostError::Guest {
                guest: self.settings.name.clone(),
                why: error.to_string(),
            })
        };
        for index in 0..self.vcpus.count() {
            self.places.set_entity(index, add(Kind::Vcpu)?);
        }
        for service in self.services.each() {
            service.set_entity(add(Kind::Service)?);
        }
        Ok(())
    }

    /// The scheduler's names of its vCPUs and services.
    pub(crate) fn entities(&self) -> impl Iterator<Item = EntityId> {
        let services = self.services.each().filter_map(GuestService::entity);
        self.places.entities().chain(services)
    }

    /// Tells it what time it is by now.
    pub(crate) fn correct_time(&self, world: &World) {
        let now = world.time();
        let mut clock = self.vm.clock.write();
        clock.correct_wall(now);
        self.vm.board.correct_rtc(now.wall, clock.now(now.tsc));
    }

    /// Lets its vCPUs leave it, for good.
    pub(crate) fn halt(&self, world: &World) {
        self.stopping.store(true, Ordering::SeqCst);
        for (index, posted) in self.vm.fabric.mailboxes().iter().enumerate() {
            posted.request(Requests::STOP);
            self.places.kick(index, world);
        }
    }

    /// Whether its vCPUs are to leave it.
    #[inline]
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether vCPU `index` is to stay away from the CPUs for a moment.
    pub(crate) fn is_wanted(&self, index: usize) -> bool {
        self.wanted.load(Ordering::Relaxed) == index
    }

    /// A vCPU has halted with interrupts disabled.
    pub(crate) fn note_halted_deaf(&self, world: &World) {
        if !self.halted_deaf.load(Ordering::Relaxed) {
            self.halted_deaf.store(true, Ordering::Relaxed);
            world.note(self.place);
        }
    }

    /// Whether a vCPU has ever done that.
    pub(crate) fn has_halted_deaf(&self) -> bool {
        self.halted_deaf.load(Ordering::Relaxed)
    }

    /// Ends the guest: the first reason counts. Its vCPUs leave it at their next look;
    /// the operator's service takes it apart then.
    pub(crate) fn stop(&self, reason: EndReason, vcpu: Option<usize>, world: &World) {
        let reason = match (reason, self.settings.on_triple_fault) {
            (EndReason::TripleFault, OnTripleFault::Reset) => EndReason::Reset,
            (reason, _) => reason,
        };
        self.end.call_once(|| End { reason, vcpu });
        self.halt(world);
        world.note(self.place);
    }

    /// Whether no CPU runs any of its vCPUs. None will any more once it is
    /// [halted](Self::halt).
    pub(crate) fn is_left(&self) -> bool {
        self.vcpus.are_left()
    }

    /// How it ended, once it has.
    pub(crate) fn end(&self) -> Option<&End> {
        self.end.get()
    }
}
