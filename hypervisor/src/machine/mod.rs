//! The machine at work: its guests, the scheduler that shares the CPUs between
//! them, and the loop of each CPU.
//!
//! Key types: [`World`], which all CPUs share; `ThisCpu`, a CPU's loop;
//! `Guest`, a guest while it exists; `Operator`, the service context that looks
//! after consoles and the guests' ends.

mod build;
mod console;
mod cpu;
mod guest;
mod operator;
mod start;
mod time;
#[cfg(feature = "check-entries")]
mod violations;

use crate::cpu::{asm, is_virtual_machine, percpu, tsc};
use crate::drivers::rtc;
use crate::error::HostError;
use crate::hw::VendorCpu;
use crate::monitor;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::bundle::Bundle;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};
use cpu::{Runner, ThisCpu};
use guest::Guest;
use operator::Operator;
use sched::turn_mutex::TurnMutex;
use sched::{Decision, EntityId, Kicks, Kind, Reason, Scheduler, Share, Stay, Timing};
use service::Stop;
use spin::{Mutex, Once, RwLock};
use vmm::clock::{HostClock, HostTime};
use x86defs::time::{Scale, TscFrequency};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What all CPUs share.
pub struct World<C: VendorCpu> {
    frequency: TscFrequency,
    scale: Scale,
    /// The wall clock at boot, and the TSC then.
    boot: HostTime,
    /// The operator changes it.
    clock: HostClock,
    /// A second of the real-time clock may begin any moment.
    awaits_second: AtomicBool,
    /// In the order of asking: guests that wake each other all the time can't keep a CPU from it.
    scheduler: TurnMutex<Scheduler>,
    /// What the scheduler's names stand for.
    runners: RwLock<BTreeMap<EntityId, Runner<C>>>,
    /// The guests that exist.
    guests: RwLock<Vec<Arc<Guest<C>>>>,
    operator: Once<Mutex<Operator<C>>>,
    operator_entity: Once<EntityId>,
}

/// The one [`World`], for the CPUs that come later.
static WORLD: Once<&'static (dyn Any + Send + Sync)> = Once::new();

/// Makes the guests of `bundle` and runs them with all CPUs, of which there are
/// `cpus`; this one's extension is `vendor`.
pub fn run<C: VendorCpu>(vendor: C, cpus: usize, bundle: Bundle<'static>) -> ! {
    match World::<C>::new(cpus, &bundle) {
        Ok(world) => {
            WORLD.call_once(|| world);
            ThisCpu::new(world, vendor).run()
        }
        Err(error) => monitor::refuse(&error),
    }
}

/// What a CPU does that was started later: it switches its extension on, and
/// joins the others.
pub fn join<C: VendorCpu>() -> ! {
    let vendor = match C::enable() {
        Ok(vendor) => vendor,
        Err(error) => {
            log::error!("CPU {} stays idle: {error}", percpu::this().index());
            loop {
                percpu::stop_if_asked(percpu::this().take_requests());
                percpu::wait(true);
            }
        }
    };
    let world = loop {
        match WORLD.get() {
            Some(world) => break *world,
            None => {
                percpu::stop_if_asked(percpu::this().take_requests());
                core::hint::spin_loop();
            }
        }
    };
    match world.downcast_ref::<World<C>>() {
        Some(world) => ThisCpu::new(world, vendor).run(),
        None => asm::stop(),
    }
}

impl<C: VendorCpu> World<C> {
    fn new(cpus: usize, bundle: &Bundle<'static>) -> Result<&'static Self, HostError> {
        let frequency = TscFrequency::from_khz(tsc::khz()).ok_or(HostError::NoTsc)?;
        let scale = Scale::new(frequency);
        let start = asm::rdtsc();
        let clock = HostClock::new(start, scale);
        // A machine without a real-time clock is in 1970.
        if let Some(wall) = rtc::wall() {
            clock.set(wall.tsc, wall.nanos);
        }
        let boot = clock.at(start);
        let world: &'static Self = Box::leak(Box::new(Self {
            frequency,
            scale,
            boot,
            clock,
            awaits_second: AtomicBool::new(true),
            scheduler: TurnMutex::new(
                Scheduler::new(cpus, Timing::new(frequency)),
                is_virtual_machine(),
            ),
            runners: RwLock::new(BTreeMap::new()),
            guests: RwLock::new(Vec::new()),
            operator: Once::new(),
            operator_entity: Once::new(),
        }));
        world.add_operator()?;
        let operator = world.operator.call_once(|| Mutex::new(Operator::new(bundle, world)));
        monitor::guests_run();
        operator.lock().start_all(world);
        Ok(world)
    }

    fn add_operator(&'static self) -> Result<(), HostError> {
        let settings = Share { reserve: OPERATOR_RESERVE, ..Share::default() };
        let mut scheduler = self.scheduler.lock();
        let now = asm::rdtsc();
        let id = scheduler.add_guest(settings, now).map_err(scheduling)?;
        // The machine's interrupts come to the first CPU.
        let first = config::CpuSet::one(0);
        let entity = scheduler.add(id, Kind::Service, first, now).map_err(scheduling)?;
        drop(scheduler);
        self.runners.write().insert(entity, Runner::Operator);
        self.operator_entity.call_once(|| entity);
        self.wake_operator();
        Ok(())
    }

    /// The machine's clocks.
    fn time(&self) -> HostTime {
        self.clock.at(asm::rdtsc())
    }

    /// Nanoseconds from the machine's start to the tick `tsc`.
    fn nanos(&self, tsc: u64) -> u64 {
        self.scale.nanos(tsc.wrapping_sub(self.boot.tsc))
    }

    /// Ticks between two looks at the serial port without an interrupt of its: 10 ms. While a
    /// second of the real-time clock is awaited, 2 ms.
    fn poll_interval(&self) -> u64 {
        self.frequency.khz() * if self.awaits_second.load(Ordering::Relaxed) { 2 } else { 10 }
    }

    /// Ticks from which on a wait is worth a deep sleep: 2 ms.
    fn long_wait(&self) -> u64 {
        self.frequency.khz() * 2
    }

    /// Ticks that a step of a service context may take: 50 µs.
    fn step(&self) -> u64 {
        self.frequency.khz() / 20
    }

    /// Ticks for which a step waits for a vCPU that another CPU runs: 100 µs.
    fn reach(&self) -> u64 {
        self.frequency.khz() / 10
    }

    /// Ticks for which it is tried again, in one step after the other: 500 ms. Where the
    /// machine is emulated, its CPUs may stand still for some ten of them.
    fn patience(&self) -> u64 {
        self.frequency.khz() * 500
    }

    /// What CPU `cpu` does next.
    fn next(&self, cpu: usize) -> Decision {
        let (decision, kicks) = self.scheduler.lock().next(cpu, asm::rdtsc());
        send(kicks);
        decision
    }

    /// CPU `cpu` stopped running what [`next`](Self::next) told it to.
    fn stopped(&self, cpu: usize, stop: Stop, stay: Stay) {
        let kicks = self.scheduler.lock().stopped(cpu, asm::rdtsc(), stop, stay);
        send(kicks);
    }

    /// Whether somebody who woke is to run on CPU `cpu` instead, now that what runs
    /// there has had its least.
    fn is_hurried(&self, cpu: usize) -> bool {
        self.scheduler.lock().is_hurried(cpu, asm::rdtsc())
    }

    /// `entity` has something to do.
    fn wake(&self, entity: EntityId, reason: Reason) {
        let kicks = self.scheduler.lock().wake(entity, asm::rdtsc(), reason);
        send(kicks);
    }

    /// The timer of `entity` was due at the tick `due`.
    fn wake_late(&self, entity: EntityId, due: u64) {
        let kicks = self.scheduler.lock().wake_late(entity, asm::rdtsc(), due, Reason::Interrupt);
        send(kicks);
    }

    fn wake_operator(&self) {
        if let Some(entity) = self.operator_entity.get() {
            self.wake(*entity, Reason::Interrupt);
        }
    }

    fn runner(&self, entity: EntityId) -> Option<Runner<C>> {
        self.runners.read().get(&entity).cloned()
    }

    /// Zeroes a little memory ahead. `false` if there is none to be zeroed.
    fn prepare_memory(&self) -> bool {
        // Nobody waits for the list meanwhile.
        let guest = |at: usize| self.guests.try_read()?.get(at).map(Arc::clone);
        (0..).map_while(guest).any(|guest| guest.zero_ahead())
    }
}

/// Percent of a CPU that the operator gets before all guests.
const OPERATOR_RESERVE: u32 = 5;

/// The scheduler has no room for the operator.
fn scheduling(error: sched::SchedError) -> HostError {
    log::error!("scheduler: {error}");
    HostError::OutOfMemory("the scheduler")
}

/// Tells CPUs to ask the scheduler again.
fn send(kicks: Kicks) {
    for cpu in kicks.0.iter() {
        if let Some(cpu) = percpu::cpu(cpu) {
            cpu.request(percpu::RESCHEDULE);
        }
    }
}
