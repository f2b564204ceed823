//! The part that all CPUs share, whatever their vendor: clocks and the scheduler.

use crate::cpu::{asm, is_virtual_machine, percpu, tsc, vectors};
use crate::drivers::rtc;
use crate::error::HostError;
use crate::hw::VendorCpu;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use control::Agenda;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use sched::turn_mutex::TurnMutex;
use sched::{Decision, EntityId, Kicks, Reason, Scheduler, Stay, Timing};
use service::{Stop, Vectors};
use spin::Once;
use vmm::clock::{HostClock, HostTime};
use vmm::stopwatch::HotCosts;
use x86defs::time::{Scale, TscFrequency};

/// Facts about the vendor of the machine's CPUs.
#[derive(Debug)]
pub(crate) struct Vendor {
    /// The extension that virtualizes the CPUs, with its abilities that are used.
    pub(crate) virtualization: String,
    /// Costs of the exits that the hot handler serves, in instructions.
    pub(crate) hot_costs: HotCosts,
    /// Instructions between the stamps around an exit and the exit or the entry itself.
    #[cfg(feature = "stamp-exits")]
    pub(crate) unstamped: u64,
}

/// See the [module](self).
pub(crate) struct World {
    pub(crate) frequency: TscFrequency,
    pub(crate) scale: Scale,
    /// The wall clock at boot, and the TSC then.
    pub(crate) boot: HostTime,
    /// The operator changes it.
    pub(crate) clock: HostClock,
    /// A second of the real-time clock may begin any moment.
    pub(crate) awaits_second: AtomicBool,
    /// In the order of asking: guests that wake each other all the time can't keep a CPU from it.
    pub(crate) scheduler: TurnMutex<Scheduler>,
    pub(crate) vendor: Vendor,
    /// The service that looks after the guests' ends and the machine's interrupts.
    operator: Once<EntityId>,
    /// The services that the machine's interrupts wake.
    pub(crate) vectors: Vectors,
    /// How many CPUs have nothing to do.
    pub(crate) idle_cpus: Arc<AtomicUsize>,
    /// The guests, by their places, that the operator is to look after.
    pub(crate) agenda: Agenda,
}

impl World {
    /// A machine of `cpus` CPUs such as this one, whose extension is `vendor`.
    pub(super) fn new<C: VendorCpu>(cpus: usize, vendor: &C) -> Result<&'static Self, HostError> {
        let frequency = TscFrequency::from_khz(tsc::khz()).ok_or(HostError::NoTsc)?;
        let scale = Scale::new(frequency);
        let start = asm::rdtsc();
        let clock = HostClock::new(start, scale);
        // A machine without a real-time clock is in 1970.
        if let Some(wall) = rtc::wall() {
            clock.set(wall.tsc, wall.nanos);
        }
        let boot = clock.at(start);
        Ok(Box::leak(Box::new(Self {
            frequency,
            scale,
            boot,
            clock,
            awaits_second: AtomicBool::new(true),
            scheduler: TurnMutex::new(
                Scheduler::new(cpus, Timing::new(frequency)),
                is_virtual_machine(),
            ),
            vendor: Vendor {
                virtualization: vendor.describe().to_string(),
                hot_costs: C::HOT_COSTS,
                #[cfg(feature = "stamp-exits")]
                unstamped: C::UNSTAMPED,
            },
            operator: Once::new(),
            vectors: Vectors::new(vectors::FREE),
            idle_cpus: Arc::default(),
            agenda: Agenda::new(),
        })))
    }

    /// The scheduler knows the operator by this name.
    pub(crate) fn set_operator(&self, entity: EntityId) {
        self.operator.call_once(|| entity);
        self.wake_operator();
    }

    /// The machine's clocks.
    pub(crate) fn time(&self) -> HostTime {
        self.clock.at(asm::rdtsc())
    }

    /// Nanoseconds from the machine's start to the tick `tsc`.
    pub(crate) fn nanos(&self, tsc: u64) -> u64 {
        self.scale.nanos(tsc.wrapping_sub(self.boot.tsc))
    }

    /// Ticks between two looks at the serial port without an interrupt of its: 10 ms. While a
    /// second of the real-time clock is awaited, 2 ms.
    pub(crate) fn poll_interval(&self) -> u64 {
        self.frequency.khz() * if self.awaits_second.load(Ordering::Relaxed) { 2 } else { 10 }
    }

    /// Ticks from which on a wait is worth a deep sleep: 2 ms.
    pub(crate) fn long_wait(&self) -> u64 {
        self.frequency.khz() * 2
    }

    /// Ticks that a step of a service may take: 50 µs.
    pub(crate) fn step(&self) -> u64 {
        self.frequency.khz() / 20
    }

    /// Ticks for which a step waits for a vCPU that another CPU runs: 100 µs.
    pub(crate) fn reach(&self) -> u64 {
        self.frequency.khz() / 10
    }

    /// Ticks for which such a wait is tried again, in one step after the other: 500 ms. The
    /// CPUs of an emulated machine may stand still for some ten of these milliseconds.
    pub(crate) fn patience(&self) -> u64 {
        self.frequency.khz() * 500
    }

    /// Work that CPU `cpu` does next.
    pub(crate) fn next(&self, cpu: usize) -> Decision {
        let (decision, kicks) = self.scheduler.lock().next(cpu, asm::rdtsc());
        send(kicks);
        decision
    }

    /// CPU `cpu` stopped running what [`next`](Self::next) told it to.
    pub(crate) fn stopped(&self, cpu: usize, stop: Stop, stay: Stay) {
        let kicks = self.scheduler.lock().stopped(cpu, asm::rdtsc(), stop, stay);
        send(kicks);
    }

    /// Whether somebody who woke is to run on CPU `cpu` instead, now that what runs
    /// there has had its least.
    pub(crate) fn is_hurried(&self, cpu: usize) -> bool {
        self.scheduler.lock().is_hurried(cpu, asm::rdtsc())
    }

    /// `entity` has something to do.
    pub(crate) fn wake(&self, entity: EntityId, reason: Reason) {
        let kicks = self.scheduler.lock().wake(entity, asm::rdtsc(), reason);
        send(kicks);
    }

    /// The timer of `entity` was due at the tick `due`.
    pub(crate) fn wake_late(&self, entity: EntityId, due: u64) {
        let kicks = self.scheduler.lock().wake_late(entity, asm::rdtsc(), due, Reason::Interrupt);
        send(kicks);
    }

    /// Something has happened to the guest at `place` of the operator's.
    pub(crate) fn note(&self, place: usize) {
        self.agenda.note(place);
        self.wake_operator();
    }

    pub(crate) fn wake_operator(&self) {
        if let Some(entity) = self.operator.get() {
            self.wake(*entity, Reason::Interrupt);
        }
    }
}

/// Tells CPUs to ask the scheduler again.
pub(crate) fn send(kicks: Kicks) {
    for cpu in kicks.0.iter() {
        if let Some(cpu) = percpu::cpu(cpu) {
            cpu.request(percpu::RESCHEDULE);
        }
    }
}
