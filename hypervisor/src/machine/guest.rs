//! A guest while it exists: its VM, its vCPUs as the scheduler sees them, and
//! how it ended.

use super::World;
use super::console::Console;
use crate::cpu::{asm, percpu};
use crate::hw::{ExtendedState, VendorCpu};
use crate::mm::guest::GuestSpace;
use alloc::sync::Arc;
use alloc::vec::Vec;
use chipset::Board;
use chipset::fabric::{Posted, Requests};
use config::{GuestSettings, OnTripleFault};
use control::{Account, attempt};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use sched::{EntityId, GuestId, Reason};
use spin::{Mutex, Once};
use vmm::end::EndReason;
use vmm::pv::PvCounts;
#[cfg(feature = "stamp-exits")]
use vmm::stamps::Stamps;
use vmm::stats::ExitCounts;
use vmm::stopwatch::{HotCosts, Spent};
use vmm::vcpu::Vcpu;
use vmm::vm::Vm;

/// No CPU.
const NOWHERE: usize = usize::MAX;
/// No vCPU.
const NONE: usize = usize::MAX;

/// What a CPU has to itself while it runs a vCPU.
#[derive(Debug)]
pub(super) struct Private<B> {
    /// The vCPU.
    pub(super) vcpu: Vcpu<B>,
    /// Its extended state, while it does not run.
    pub(super) extended: ExtendedState,
    /// The CPU that ran it last.
    pub(super) last_cpu: Option<usize>,
}

/// A vCPU as other CPUs may touch it.
#[derive(Debug)]
pub(super) struct Slot<B> {
    /// Taken by the CPU that runs it, for as long as it does.
    pub(super) private: Mutex<Private<B>>,
    /// What it was when it last left a CPU.
    pub(super) published: Mutex<Published>,
}

/// What anybody may know of a vCPU while it runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Published {
    /// Its exits by kind.
    pub(super) counts: ExitCounts,
    /// Time on CPUs by what it was spent on, in ticks.
    pub(super) spent: Spent,
    /// The same, to the exit.
    #[cfg(feature = "stamp-exits")]
    pub(super) stamps: Stamps,
    /// What it used of KVM's paravirtual interface.
    pub(super) pv: PvCounts,
    /// The TSC then.
    pub(super) left: u64,
}

impl Published {
    /// What else was counted of it.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        self.pv.iter()
    }
}

/// Where a guest's vCPUs are: what a kick has to know.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    entity: Once<EntityId>,
    /// The CPU that runs it, or [`NOWHERE`].
    cpu: AtomicUsize,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        let place = || Place { entity: Once::new(), cpu: AtomicUsize::new(NOWHERE) };
        Self { places: core::iter::repeat_with(place).take(count).collect() }
    }

    /// The scheduler knows vCPU `index` by this name.
    pub(super) fn set_entity(&self, index: usize, entity: EntityId) {
        if let Some(place) = self.places.get(index) {
            place.entity.call_once(|| entity);
        }
    }

    /// The scheduler's name of vCPU `index`.
    pub(super) fn entity(&self, index: usize) -> Option<EntityId> {
        self.places.get(index)?.entity.get().copied()
    }

    /// The scheduler's names of all vCPUs.
    pub(super) fn entities(&self) -> impl Iterator<Item = EntityId> {
        self.places.iter().filter_map(|place| place.entity.get().copied())
    }

    /// CPU `cpu` runs vCPU `index` from now on.
    pub(super) fn enter(&self, index: usize, cpu: usize) {
        if let Some(place) = self.places.get(index) {
            place.cpu.store(cpu, Ordering::SeqCst);
        }
    }

    /// No CPU runs vCPU `index` any more. Whoever posts to it after this wakes it
    /// through the scheduler; who has posted before is seen in its mailbox.
    pub(super) fn leave(&self, index: usize) {
        self.enter(index, NOWHERE);
    }

    /// The CPU that runs vCPU `index`.
    pub(super) fn cpu(&self, index: usize) -> Option<usize> {
        let cpu = self.places.get(index)?.cpu.load(Ordering::SeqCst);
        (cpu != NOWHERE).then_some(cpu)
    }

    /// Makes the CPU that runs vCPU `index` ask the scheduler again.
    fn interrupt(&self, index: usize) {
        if let Some(cpu) = self.cpu(index).and_then(percpu::cpu) {
            cpu.request(percpu::RESCHEDULE);
        }
    }

    /// Makes vCPU `index` look at its mailbox.
    pub(super) fn kick<C: VendorCpu>(&self, index: usize, world: &World<C>) {
        let Some(place) = self.places.get(index) else { return };
        match place.cpu.load(Ordering::SeqCst) {
            NOWHERE => {
                if let Some(entity) = place.entity.get() {
                    world.wake(*entity, Reason::Interrupt);
                }
            }
            cpu => {
                // The CPU itself looks before it next enters.
                if cpu != percpu::this().index()
                    && let Some(cpu) = percpu::cpu(cpu)
                {
                    cpu.request(percpu::LOOK);
                }
            }
        }
    }
}

/// A guest.
pub(super) struct Guest<C: VendorCpu> {
    /// Its settings.
    pub(super) settings: Arc<GuestSettings>,
    /// What its vCPUs share.
    pub(super) vm: Vm<Arc<GuestSpace>>,
    /// Its vCPUs.
    pub(super) slots: Vec<Slot<C::Vcpu>>,
    /// Where they are.
    pub(super) places: Arc<Places>,
    /// Where its output goes.
    pub(super) console: Arc<Console>,
    /// Its name in the scheduler.
    pub(super) id: GuestId,
    /// The TSC when it was started.
    pub(super) started: u64,
    /// Ticks for which memory was zeroed ahead for it since then, while a CPU was idle.
    zeroing: AtomicU64,
    /// The vCPUs are not to run any more.
    stopping: AtomicBool,
    /// The vCPU that is not to run for a moment, as somebody wants to look at it, or [`NONE`].
    /// The others go on.
    wanted: AtomicUsize,
    /// A vCPU has halted with interrupts disabled, once.
    halted_deaf: AtomicBool,
    end: Once<End>,
}

/// How a guest ended.
#[derive(Debug)]
pub(super) struct End {
    /// Why.
    pub(super) reason: EndReason,
    /// The vCPU that ended it; `None` for the operator.
    pub(super) vcpu: Option<usize>,
}

impl<C: VendorCpu> core::fmt::Debug for Guest<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Guest").field("name", &self.vm.name).finish_non_exhaustive()
    }
}

impl<C: VendorCpu> Guest<C> {
    /// A guest around its parts.
    pub(super) fn new(
        settings: Arc<GuestSettings>,
        vm: Vm<Arc<GuestSpace>>,
        slots: Vec<Slot<C::Vcpu>>,
        places: Arc<Places>,
        console: Arc<Console>,
        id: GuestId,
        started: u64,
    ) -> Self {
        Self {
            settings,
            vm,
            slots,
            places,
            console,
            id,
            started,
            zeroing: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            wanted: AtomicUsize::new(NONE),
            halted_deaf: AtomicBool::new(false),
            end: Once::new(),
        }
    }

    /// Zeroes some memory ahead, if there is any to zero: for a CPU that is idle.
    pub(super) fn zero_ahead(&self) -> bool {
        let from = asm::rdtsc();
        let zeroed = self.vm.memory.prepare();
        if zeroed {
            self.zeroing.fetch_add(asm::rdtsc().saturating_sub(from), Ordering::Relaxed);
        }
        zeroed
    }

    /// Ticks for which that was done.
    pub(super) fn zeroing(&self) -> u64 {
        self.zeroing.load(Ordering::Relaxed)
    }

    /// Account of its time, in ticks, up to when each vCPU last left a CPU.
    pub(super) fn account(&self) -> Account {
        let ahead = Account { services: self.zeroing(), ..Account::default() };
        self.slots.iter().fold(ahead, |sum, slot| {
            let Published { spent, counts, .. } = *slot.published.lock();
            sum.plus(account_of(&spent, &counts, C::HOT_COSTS))
        })
    }

    /// The stamps of all its vCPUs.
    #[cfg(feature = "stamp-exits")]
    pub(super) fn stamps(&self) -> Stamps {
        let each = self.slots.iter().map(|slot| slot.published.lock().stamps);
        each.fold(Stamps::default(), Stamps::plus)
    }

    /// Ticks from its first instruction to when its vCPUs last left their CPUs.
    pub(super) fn up(&self) -> u64 {
        let left = self.slots.iter().map(|slot| slot.published.lock().left).max();
        left.unwrap_or(0).saturating_sub(self.started)
    }

    /// What it costs beside its RAM and page tables, in bytes: vCPUs, device
    /// models, rings.
    pub(super) fn overhead(&self) -> u64 {
        let vcpus = self.slots.len() as u64;
        let each = size_of::<Slot<C::Vcpu>>() + size_of::<Posted>() + ExtendedState::BYTES;
        let shared = size_of::<Self>() + size_of::<Board>();
        vcpus * (each as u64 + C::VCPU_BYTES) + shared as u64 + self.console.memory()
    }

    /// Lets `look` see vCPU `index`, taken off its CPU for as long. `None` if
    /// there is no such vCPU, or it could not be had within `ticks`: nobody else runs on
    /// this CPU meanwhile, and a guest can make a vCPU's exit long.
    pub(super) fn with_vcpu<R>(
        &self,
        index: usize,
        ticks: u64,
        look: impl FnOnce(&mut Vcpu<C::Vcpu>) -> R,
    ) -> Option<R> {
        let slot = self.slots.get(index)?;
        self.wanted.store(index, Ordering::SeqCst);
        self.places.interrupt(index);
        let from = asm::rdtsc();
        let private = loop {
            if let Some(private) = slot.private.try_lock() {
                break Some(private);
            }
            if asm::rdtsc().saturating_sub(from) >= ticks {
                break None;
            }
            core::hint::spin_loop();
        };
        let result = private.map(|mut private| {
            let result = crate::mm::with_root(self.vm.memory.root(), || look(&mut private.vcpu));
            C::unload(&mut private.vcpu.hw);
            result
        });
        self.wanted.store(NONE, Ordering::SeqCst);
        result
    }

    /// Whether `ask` is so for all its vCPUs, each of which may take `ticks` to be had.
    /// `None`: one could not be had.
    pub(super) fn all_vcpus(
        &self,
        ticks: u64,
        ask: impl Fn(&Vcpu<C::Vcpu>) -> bool,
    ) -> Option<bool> {
        attempt::all(
            (0..self.slots.len()).map(|index| self.with_vcpu(index, ticks, |vcpu| ask(vcpu))),
        )
    }

    /// Lets its vCPUs leave it, for good.
    pub(super) fn halt(&self, world: &World<C>) {
        self.stopping.store(true, Ordering::SeqCst);
        for (index, posted) in self.vm.vcpus.iter().enumerate() {
            posted.request(Requests::STOP);
            self.places.kick(index, world);
        }
    }

    /// Whether its vCPUs are to leave it.
    #[inline]
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether vCPU `index` is to stay away from the CPUs for a moment.
    pub(super) fn is_wanted(&self, index: usize) -> bool {
        self.wanted.load(Ordering::Relaxed) == index
    }

    /// A vCPU has halted with interrupts disabled.
    pub(super) fn note_halted_deaf(&self) {
        if !self.halted_deaf.load(Ordering::Relaxed) {
            self.halted_deaf.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a vCPU has ever done that.
    pub(super) fn has_halted_deaf(&self) -> bool {
        self.halted_deaf.load(Ordering::Relaxed)
    }

    /// Ends it: the first reason counts. Its vCPUs leave it at their next look;
    /// the operator's context takes it apart then.
    pub(super) fn stop(&self, reason: EndReason, vcpu: Option<usize>, world: &World<C>) {
        let reason = match (reason, self.settings.on_triple_fault) {
            (EndReason::TripleFault, OnTripleFault::Reset) => EndReason::Reset,
            (reason, _) => reason,
        };
        self.end.call_once(|| End { reason, vcpu });
        self.halt(world);
        world.wake_operator();
    }

    /// Whether no CPU runs any of its vCPUs. None will any more once it is
    /// [halted](Self::halt).
    pub(super) fn is_left(&self) -> bool {
        self.slots.iter().all(|slot| !slot.private.is_locked())
    }

    /// How it ended, once it has.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.get()
    }
}

/// The account of a vCPU's time, in ticks.
pub(super) fn account_of(spent: &Spent, counts: &ExitCounts, costs: HotCosts) -> Account {
    let (guest, hot) = costs.split(spent.guest, &counts.hot);
    let (exits, switches) = (spent.all_exits(), spent.switches);
    Account { guest, hot, exits, switches, services: 0 }
}
