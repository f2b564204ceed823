//! The loop of a CPU: what the scheduler chose, until it is time to ask again.

use super::guest::{Guest, Private, Published, Slots};
use super::runners::{Machine, Runner};
use super::sleepers::Sleepers;
use super::world::World;
use crate::cpu::{apic, asm, cpuid_checked, msr, percpu, traps, vectors};
use crate::drivers::framebuffer;
use crate::hw::VendorCpu;
use core::sync::atomic::Ordering;
use devices::firmware::FirmwareNews;
use sched::{Choice, Decision, Stay};
use service::Stop;
use vmm::clock::HostTime;
use vmm::end::{EndReason, VmError};
use vmm::hot::timer::NEVER;
use vmm::predictors::Predictors;
use vmm::run::{Next, off_cpu, on_cpu, turn};
use vmm::vcpu::Vcpu;
use vmm::vm::Host;
use x86defs::Msr;
use x86defs::cpuid::has_branch_barrier;

/// IA32_PRED_CMD: forget indirect branches.
const PRED_CMD_IBPB: u64 = 1;

/// A CPU of the machine at work.
pub(super) struct ThisCpu<C: VendorCpu> {
    machine: &'static Machine<C>,
    world: &'static World,
    vendor: C,
    index: usize,
    /// The end of the running entity's time.
    until: u64,
    /// When to look whether somebody is to be woken: first when it has had its least.
    attend: u64,
    /// The scheduler was asked, at that time, whether anybody is in a hurry.
    asked: bool,
    /// When it had finished with what it did last: what follows is a switch to the next.
    since: u64,
    /// The deadline that the timer is armed for.
    armed: u64,
    /// State of its branch predictors: the guest that taught them last.
    predictors: Predictors,
    sleepers: Sleepers,
}

impl<C: VendorCpu> Host for ThisCpu<C> {
    fn tsc(&self) -> u64 {
        asm::rdtsc()
    }

    fn time(&self) -> HostTime {
        self.world.time()
    }

    fn deadline(&self) -> u64 {
        if percpu::this().asks_itself() {
            // Something else is to run here: no longer than it must be.
            return 0;
        }
        self.until.min(self.attend)
    }

    fn arm_timer(&mut self, deadline: u64) {
        if deadline != self.armed {
            self.armed = deadline;
            apic::arm_timer_at(deadline, asm::rdtsc());
        }
    }

    fn note_armed(&mut self, deadline: u64) {
        self.armed = deadline;
    }

    fn firmware_entered(&mut self, guest: &str, news: FirmwareNews) {
        match news {
            FirmwareNews::Entry(entry) => log::warn!("guest \"{guest}\" {entry}"),
            FirmwareNews::Last(entry) => {
                log::warn!("guest \"{guest}\" {entry}; others are not told any more");
            }
        }
    }

    fn program_refused(&mut self, guest: &str, why: &VmError, untold: u64) {
        log::warn!("guest \"{guest}\": a program got #UD ({untold} more times untold): {why}");
    }
}

impl<C: VendorCpu> ThisCpu<C> {
    pub(super) fn new(machine: &'static Machine<C>, vendor: C) -> Self {
        let index = percpu::this().index();
        Self {
            machine,
            world: machine.world,
            vendor,
            index,
            until: 0,
            attend: NEVER,
            asked: true,
            since: asm::rdtsc(),
            armed: NEVER,
            predictors: Predictors::new(has_branch_barrier(&cpuid_checked)),
            sleepers: Sleepers::new(),
        }
    }

    /// Runs what there is to run, for good.
    pub(super) fn run(mut self) -> ! {
        loop {
            let _ = self.look();
            self.sleepers.wake(self.world, asm::rdtsc());
            // The scheduler is asked next anyway: it knows those that this CPU has just woken.
            percpu::this().forget_own_requests();
            percpu::this().set_timers(self.sleepers.len());
            match self.world.next(self.index) {
                Decision::Run(choice) => {
                    let (stop, stay) = self.serve(choice);
                    self.since = asm::rdtsc();
                    // A sleeper that has waited for this one's least is to be owed that by it, too.
                    self.sleepers.wake(self.world, self.since);
                    self.world.stopped(self.index, stop, stay);
                }
                Decision::Idle { until } => {
                    self.idle(until.unwrap_or(NEVER));
                    self.since = asm::rdtsc();
                }
            }
        }
    }

    /// Takes the machine's interrupts and other CPUs' requests. Whether the
    /// scheduler wants to be asked again.
    fn look(&mut self) -> bool {
        asm::take_pending_interrupts();
        let this = percpu::this();
        let mut requests = this.take_requests();
        percpu::stop_if_asked(requests);
        if let Some(seen) = traps::take_seen() {
            let timer = vectors::TIMER_VECTOR;
            if seen[usize::from(timer / 64)] & 1 << (timer % 64) != 0 {
                self.armed = NEVER;
            }
            if self.world.vectors.wake(&seen) {
                // This CPU may be the one that is to run what was woken.
                requests |= this.take_requests();
                percpu::stop_if_asked(requests);
            }
        }
        requests & percpu::RESCHEDULE != 0
    }

    /// Wakes the sleepers whose time has come, as the one that runs has had its least time.
    /// Whether somebody who woke meanwhile has waited for that.
    #[inline(never)]
    fn look_after_sleepers(&mut self, now: u64) -> bool {
        let first = !core::mem::replace(&mut self.asked, true);
        let hurried = first && self.world.is_hurried(self.index);
        self.sleepers.wake(self.world, now);
        self.attend = self.sleepers.first();
        hurried
    }

    fn idle(&mut self, until: u64) {
        // Long work is done while nobody waits.
        if framebuffer::draw(asm::rdtsc() + self.world.step() / 4) {
            return;
        }
        if percpu::this().asks_itself() {
            return;
        }
        let until = until.min(self.sleepers.first());
        self.arm_timer(until);
        self.world.idle_cpus.fetch_add(1, Ordering::Relaxed);
        percpu::wait(until.saturating_sub(asm::rdtsc()) > self.world.long_wait());
        self.world.idle_cpus.fetch_sub(1, Ordering::Relaxed);
    }

    fn serve(&mut self, choice: Choice) -> (Stop, Stay) {
        (self.until, self.attend, self.asked) = (choice.until, choice.least, false);
        let stop = match self.machine.runner(choice.id) {
            Some(Runner::Vcpu(guest, index)) => return self.run_vcpu(&guest, index, &choice),
            Some(Runner::Starter(starter)) => starter.step(&self.vendor, choice.until),
            Some(Runner::Service(service)) => {
                // The service is awake. If it is the operator, the timers that it tells of are the
                // others'.
                self.sleepers.forget(choice.id);
                percpu::this().set_timers(self.sleepers.len());
                let stop = service.step(choice.until);
                if stop == Stop::Blocked
                    && let Some(rest) = service.rest()
                {
                    self.sleepers.add(choice.id, asm::rdtsc() + rest);
                }
                stop
            }
            // The entity is on its way out.
            None => Stop::Blocked,
        };
        (stop, Stay::default())
    }

    fn run_vcpu(&mut self, guest: &Guest<Slots<C>>, index: usize, choice: &Choice) -> (Stop, Stay) {
        let nothing = |stop| (stop, Stay::default());
        let Some(slot) = guest.vcpus.0.get(index) else { return nothing(Stop::Blocked) };
        if guest.is_stopping() {
            self.world.note(guest.place);
            return nothing(Stop::Blocked);
        }
        if guest.is_wanted(index) {
            return nothing(Stop::Ready);
        }
        let mut private = slot.private.lock();
        // A guest that was stopped before the lock was taken may be taken apart already.
        if guest.is_stopping() {
            drop(private);
            self.world.note(guest.place);
            return nothing(Stop::Blocked);
        }
        guest.places.enter(index, self.index);
        // A guest's name is when it was started.
        self.predictors.hand_to(guest.started, || {
            // SAFETY: the CPU has the command, which changes no state that programs see.
            unsafe { msr::write(Msr::PRED_CMD, PRED_CMD_IBPB) };
        });
        self.sleepers.forget(choice.id);
        let mut stay = Stay::default();
        let (stop, end) = guest.vm.memory.enter(|| {
            private.extended.load();
            let moved = private.last_cpu.replace(self.index) != Some(self.index);
            let Vcpu { hw, core, .. } = &mut private.vcpu;
            self.vendor.load(hw, core, moved);
            private.vcpu.core.watch.begin(self.since);
            #[cfg(feature = "stamp-exits")]
            private.vcpu.core.hot.stamps.begin(self.since);
            on_cpu(&mut private.vcpu, &guest.vm, choice.steal);
            let result = self.turns(guest, index, choice, &mut private, &mut stay);
            private.vcpu.core.watch.leave(asm::rdtsc());
            off_cpu(&mut private.vcpu, &guest.vm);
            if guest.vm.memory.take_touched() {
                guest.services.zero_ahead();
            }
            C::unload(&mut private.vcpu.hw);
            private.extended.save();
            result
        });
        guest.places.leave(index);
        let core = &mut private.vcpu.core;
        let left = asm::rdtsc();
        core.watch.end(left);
        #[cfg(feature = "stamp-exits")]
        core.hot.stamps.end(left);
        private.left = left;
        if stop != Stop::Blocked
            || left.saturating_sub(private.published) >= self.world.poll_interval()
        {
            // It may be on a CPU whenever somebody asks.
            private.published = left;
            *slot.published.lock() = Published::of(&private);
        }
        drop(private);
        if let Some(reason) = end {
            guest.stop(reason, Some(index), self.world);
        } else if guest.is_stopping() {
            // The operator waits until the last one has left.
            self.world.note(guest.place);
        }
        (stop, stay)
    }

    /// Lets the guest run until its time is up, it waits, or it ends. `stay` says from
    /// when to when.
    fn turns(
        &mut self,
        guest: &Guest<Slots<C>>,
        index: usize,
        choice: &Choice,
        private: &mut Private<C::Vcpu>,
        stay: &mut Stay,
    ) -> (Stop, Option<EndReason>) {
        stay.entered = asm::rdtsc();
        loop {
            // The time that this exit takes is caused by the one that it is for.
            stay.left = asm::rdtsc();
            let again =
                self.look() || stay.left >= self.attend && self.look_after_sleepers(stay.left);
            if guest.is_stopping() {
                return (Stop::Blocked, None);
            }
            if again
                || percpu::this().asks_itself()
                || guest.is_wanted(index)
                || stay.left >= self.until
            {
                return (Stop::Ready, None);
            }
            match turn(&mut private.vcpu, &guest.vm, self) {
                Next::Continue => {}
                Next::Yield => return (Stop::Yielded, None),
                Next::Idle(deadline) => {
                    if private.vcpu.is_deaf() {
                        guest.note_halted_deaf(self.world);
                    }
                    guest.places.leave(index);
                    // A sender that posts from now on wakes the vCPU through the scheduler.
                    if guest.vm.fabric.mailbox(index).is_some_and(|posted| !posted.is_quiet()) {
                        guest.places.enter(index, self.index);
                        continue;
                    }
                    if deadline != NEVER {
                        // A vCPU that ends before its deadline is not remembered for longer
                        // than a second.
                        let until = deadline.min(asm::rdtsc() + self.world.frequency.hz());
                        self.sleepers.add(choice.id, until);
                    }
                    return (Stop::Blocked, None);
                }
                Next::End(reason) => return (Stop::Blocked, Some(reason)),
            }
        }
    }
}
