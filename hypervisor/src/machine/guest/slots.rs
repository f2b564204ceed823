//! A guest's vCPUs as CPUs run them, and as others may touch them.

use crate::cpu::asm;
use crate::hw::{ExtendedState, VendorCpu};
use crate::mm::guest::GuestSpace;
use alloc::vec::Vec;
use chipset::fabric::Posted;
use control::Account;
use core::fmt::Debug;
use spin::Mutex;
#[cfg(feature = "check-entries")]
use state::Writer;
use vmm::backend::Backend;
use vmm::counters::Counters;
#[cfg(feature = "stamp-exits")]
use vmm::stamps::Stamps;
use vmm::stats::ExitCounts;
use vmm::stopwatch::{HotCosts, Spent};
use vmm::vcpu::Vcpu;

/// The part of a vCPU that a CPU has to itself while it runs it.
#[derive(Debug)]
pub(crate) struct Private<B> {
    /// The vCPU.
    pub(crate) vcpu: Vcpu<B>,
    /// Its extended state, while it does not run.
    pub(crate) extended: ExtendedState,
    /// The CPU that ran it last.
    pub(crate) last_cpu: Option<usize>,
    /// The TSC when it left a CPU last, and when it published its figures last.
    pub(crate) left: u64,
    pub(crate) published: u64,
}

/// A vCPU as other CPUs may touch it.
#[derive(Debug)]
pub(crate) struct Slot<B> {
    /// Taken by the CPU that runs it, for as long as it does.
    pub(crate) private: locks::Mutex<Private<B>>,
    /// Figures of the vCPU as of when its time on a CPU last was up, or somebody asked for them.
    pub(crate) published: Mutex<Published>,
}

/// Figures of a vCPU that anybody may know while it runs, as of when it last left a CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Published {
    /// Its exits by kind.
    pub(crate) counts: ExitCounts,
    /// Time on CPUs by what it was spent on, in ticks.
    pub(crate) spent: Spent,
    /// Time by what it was spent on, measured at each exit.
    #[cfg(feature = "stamp-exits")]
    pub(crate) stamps: Stamps,
    /// Its counts that are no exits by kind.
    pub(crate) counters: Counters,
    /// The TSC when it left.
    pub(crate) left: u64,
}

impl Published {
    /// Figures of a vCPU that no CPU runs.
    pub(crate) fn of<B>(private: &Private<B>) -> Self {
        let core = &private.vcpu.core;
        Self {
            counts: core.counts,
            spent: core.watch.spent(),
            #[cfg(feature = "stamp-exits")]
            stamps: core.hot.stamps,
            counters: core.counters,
            left: private.left,
        }
    }

    /// Its other counters.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        self.counters.iter()
    }

    /// Account of its time, in ticks; exits that the hot handler served have these `costs`.
    pub(crate) fn account(&self, costs: HotCosts) -> Account {
        let (guest, hot) = costs.split(self.spent.guest, &self.counts.hot);
        let (exits, switches) = (self.spent.all_exits(), self.spent.switches);
        Account { guest, hot, exits, switches, services: 0 }
    }
}

/// The vCPUs of a guest, in their order.
#[derive(Debug)]
pub(crate) struct Slots<C: VendorCpu>(pub(crate) Vec<Slot<C::Vcpu>>);

/// The vCPUs of a guest, whatever their vendor.
pub(crate) trait Vcpus: Debug + Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// Figures of vCPU `index` as of when it last left a CPU.
    fn published(&self, index: usize) -> Option<Published>;

    /// Whether no CPU runs any of them.
    fn are_left(&self) -> bool;

    /// Bytes of memory that they take.
    fn bytes(&self) -> u64;

    /// Writes the sections of all of them of which no CPU runs one.
    #[cfg(feature = "check-entries")]
    fn save(&self, memory: &GuestSpace, writer: &mut Writer);

    /// Lets `look` see vCPU `index`, in the address space of its guest's `memory`, unless it does
    /// not leave its CPU within `ticks`.
    fn look(
        &self,
        index: usize,
        memory: &GuestSpace,
        ticks: u64,
        look: &mut dyn FnMut(&mut Vcpu<dyn Backend>),
    );
}

impl<C: VendorCpu> Vcpus for Slots<C> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn published(&self, index: usize) -> Option<Published> {
        let slot = self.0.get(index)?;
        // A vCPU that waits leaves its figures where they are. Whoever has seen them keeps them,
        // so that none ever goes back.
        let private = slot.private.try_lock();
        let mut published = slot.published.lock();
        if let Some(private) = private {
            *published = Published::of(&private);
        }
        Some(*published)
    }

    fn are_left(&self) -> bool {
        self.0.iter().all(|slot| !slot.private.is_locked())
    }

    fn bytes(&self) -> u64 {
        let each = size_of::<Slot<C::Vcpu>>() + size_of::<Posted>() + ExtendedState::BYTES;
        self.0.len() as u64 * (each as u64 + C::VCPU_BYTES)
    }

    #[cfg(feature = "check-entries")]
    fn save(&self, memory: &GuestSpace, writer: &mut Writer) {
        for mut private in self.0.iter().filter_map(|slot| slot.private.try_lock()) {
            let Private { vcpu, extended, .. } = &mut *private;
            let save = || vmm::state::save_vcpu(vcpu, &extended.bytes(), writer);
            memory.enter(save);
            C::unload(&mut vcpu.hw);
        }
    }

    fn look(
        &self,
        index: usize,
        memory: &GuestSpace,
        ticks: u64,
        look: &mut dyn FnMut(&mut Vcpu<dyn Backend>),
    ) {
        let Some(slot) = self.0.get(index) else { return };
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
        if let Some(mut private) = private {
            memory.enter(|| look(&mut private.vcpu));
            C::unload(&mut private.vcpu.hw);
        }
    }
}
