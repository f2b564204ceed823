//! The machine's report on itself: filled in one go, from what is counted anyway.

use super::Operator;
use super::lives::Record;
use crate::cpu::{asm, percpu};
use crate::machine::World;
use crate::machine::guest::Published;

use crate::mm;
use alloc::string::ToString;
use alloc::vec::Vec;
use control::status::{
    Counter, CpuInfo, CpusStatus, ExitStats, GuestInfo, GuestMemory, GuestState, GuestStats,
    HostMemory, MemoryOwner, MemoryStatus, SpentTimes, Statistics, Times, VcpuStats,
};
use vmm::lifecycle::{Cause, State};
use vmm::stats::Kind;
use vmm::stopwatch::HotCosts;
use x86defs::time::Scale;

const PAGE: u64 = 4096;
/// The state of a guest that is no longer known.
pub(super) const GONE: GuestState = GuestState::Ended;

/// The place of a guest in its life.
pub(super) fn state(record: &Record) -> GuestState {
    let crashed = || match record.life.last() {
        Some(Cause::Guest(reason)) => reason.is_crash(),
        Some(Cause::Start(_)) => true,
        _ => false,
    };
    match record.life.state() {
        State::Defined => GuestState::Defined,
        State::Starting { .. } => GuestState::Starting,
        State::Running => GuestState::Running,
        State::Paused => GuestState::Paused,
        State::Stopping { .. } => GuestState::Stopping,
        State::Clearing { .. } => GuestState::Clearing,
        State::Ended | State::Deleted if crashed() => GuestState::Crashed,
        State::Ended | State::Deleted => GuestState::Ended,
        State::Waiting { .. } => GuestState::Waiting,
    }
}

impl Operator {
    pub(super) fn list(&self, world: &World) -> Vec<GuestInfo> {
        self.records.iter().map(|record| self.info(world, record)).collect()
    }

    pub(super) fn info(&self, world: &World, record: &Record) -> GuestInfo {
        let settings = &record.settings;
        // Output that the hot handler has let the guest send counts, too.
        let _ = record.guest().map(|guest| guest.vm.board.try_flush_console());
        let (console_kept, console_dropped) = record.console.unread();
        let up = |started: u64| world.scale.nanos(asm::rdtsc().saturating_sub(started));
        GuestInfo {
            number: record.number,
            name: settings.name.clone(),
            uuid: Some(settings.machine_uuid().to_string()),
            state: state(record),
            attached: self.terminal.shows(record.number),
            memory: settings.memory,
            vcpus: settings.vcpus,
            weight: settings.weight,
            cap: settings.cap,
            up_ns: record.guest().map(|guest| up(guest.started)),
            starts: record.life.starts(),
            last_end: record.life.last().map(ToString::to_string),
            console_kept,
            console_dropped,
        }
    }

    /// Statistics of the machine and of all guests, or of one.
    pub(super) fn stats(&self, world: &World, only: Option<usize>) -> Statistics {
        let records = self.records.iter().enumerate();
        let chosen = records.filter(|(at, _)| only.is_none_or(|only| only == *at));
        Statistics {
            time_ns: world.nanos(asm::rdtsc()),
            cpus: self.cpu_infos(world),
            memory: self.host_memory(),
            guests: chosen.map(|(_, record)| guest_stats(world, record)).collect(),
        }
    }

    pub(super) fn memory(&self) -> MemoryStatus {
        let owner = |record: &Record| MemoryOwner {
            number: record.number,
            name: record.settings.name.clone(),
            memory: guest_memory(record),
        };
        MemoryStatus { host: self.host_memory(), guests: self.records.iter().map(owner).collect() }
    }

    fn host_memory(&self) -> HostMemory {
        let mm::FrameCounts { free, promised, total } = mm::frame_counts();
        let (heap_used, heap_size) = mm::heap_usage();
        let guests = self.records.iter().filter_map(Record::guest);
        let usage: Vec<_> = guests.map(|guest| guest.vm.memory.usage()).collect();
        let stock = usage.iter().fold(0, |sum, usage| sum + usage.stocked);
        let populated = usage.iter().fold(0, |sum, usage| sum + usage.populated);
        HostMemory {
            total: total * PAGE,
            free: free * PAGE,
            reserved: promised * PAGE,
            zeroed: 0,
            stock: stock * PAGE,
            hypervisor: total.saturating_sub(free + stock + populated) * PAGE,
            heap_used,
            heap_size,
        }
    }

    pub(super) fn cpus(&mut self, world: &World) -> CpusStatus {
        CpusStatus {
            model: crate::cpu::brand(),
            virtualization: world.vendor.virtualization.clone(),
            tsc_hz: world.frequency.hz(),
            longest_step_ns: world.scale.nanos(core::mem::take(&mut self.longest)),
            cpus: self.cpu_infos(world),
        }
    }

    fn cpu_infos(&self, world: &World) -> Vec<CpuInfo> {
        let scheduler = world.scheduler.lock();
        let now = asm::rdtsc();
        let each = percpu::online().map(|cpu| {
            let times = scheduler.cpu_times(cpu.index(), now).unwrap_or_default();
            (cpu, times, scheduler.running(cpu.index()))
        });
        let each: Vec<_> = each.collect();
        drop(scheduler);
        let info = |(cpu, times, running): (&percpu::PerCpu, sched::CpuTimes, Option<_>)| CpuInfo {
            index: u32::try_from(cpu.index()).unwrap_or(u32::MAX),
            apic_id: cpu.apic_id(),
            online: cpu.is_online(),
            timers: cpu.timers(),
            busy_ns: world.scale.nanos(times.busy),
            idle_ns: world.scale.nanos(times.idle),
            running: running.and_then(|entity| self.machine.name_of(entity)),
        };
        each.into_iter().map(info).collect()
    }
}

fn guest_memory(record: &Record) -> GuestMemory {
    let Some(guest) = record.guest() else {
        return GuestMemory { overhead: record.console.memory(), ..GuestMemory::default() };
    };
    let usage = guest.vm.memory.usage();
    GuestMemory {
        ram: usage.reserved * PAGE,
        populated: usage.populated * PAGE,
        tables: usage.tables * PAGE,
        overhead: guest.overhead(),
    }
}

fn guest_stats(world: &World, record: &Record) -> GuestStats {
    let mut stats = GuestStats {
        number: record.number,
        name: record.settings.name.clone(),
        uuid: Some(record.settings.machine_uuid().to_string()),
        state: state(record),
        memory: guest_memory(record),
        service_ns: 0,
        zeroing_ns: 0,
        throttled_ns: 0,
        vcpus: Vec::new(),
        counters: Vec::new(),
    };
    let Some(guest) = record.guest() else { return stats };
    let scheduler = world.scheduler.lock();
    let now = asm::rdtsc();
    for (index, entity) in guest.places.entities().enumerate() {
        let times = scheduler.entity_times(entity, now).unwrap_or_default();
        stats.vcpus.push(VcpuStats {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            times: Times {
                run_ns: world.scale.nanos(times.run),
                ready_ns: world.scale.nanos(times.ready),
                wait_ns: world.scale.nanos(times.wait),
                paused_ns: world.scale.nanos(times.paused),
            },
            longest_ready_ns: world.scale.nanos(times.longest_ready),
            migrations: times.migrations,
            cpu: guest.places.cpu(index).and_then(|cpu| u32::try_from(cpu).ok()),
            exits: Vec::new(),
            spent: SpentTimes::default(),
        });
    }
    if let Some(all) = scheduler.guest_times(guest.id, now) {
        let vcpus = stats.vcpus.iter().fold(0, |sum, vcpu| sum + vcpu.times.run_ns);
        let service = world.scale.nanos(all.run).saturating_sub(vcpus);
        stats.zeroing_ns = world.scale.nanos(guest.services.zeroed_for());
        stats.service_ns = service.saturating_add(world.scale.nanos(record.service));
        stats.throttled_ns = world.scale.nanos(all.throttled);
    }
    drop(scheduler);
    for (vcpu, published) in stats.vcpus.iter_mut().zip(guest.published()) {
        vcpu.exits = exit_stats(&published, world.vendor.hot_costs, world.scale);
        let account = published.account(world.vendor.hot_costs);
        vcpu.spent = SpentTimes {
            guest_ns: world.scale.nanos(account.guest),
            hot_ns: world.scale.nanos(account.hot),
            exits_ns: world.scale.nanos(account.exits),
            switches_ns: world.scale.nanos(account.switches),
        };
        for (name, count) in published.counters() {
            match stats.counters.iter_mut().find(|counter| counter.name == name) {
                Some(counter) => counter.count += count,
                None => stats.counters.push(Counter { name: name.into(), count }),
            }
        }
    }
    stats
}

/// Exits by kind, with their time: those of the hot handler are counted, not timed.
fn exit_stats(published: &Published, costs: HotCosts, scale: Scale) -> Vec<ExitStats> {
    let stats = |name: &str, count, ticks, estimated| ExitStats {
        reason: name.into(),
        count,
        time_ns: Some(scale.nanos(ticks)),
        estimated,
    };
    let Published { counts, spent, .. } = published;
    let hot = counts.hot.kinds().zip(costs.times(&counts.hot));
    let hot = hot.map(|((name, count), (_, ticks))| stats(name, count, ticks, true));
    let cold = Kind::ALL.into_iter();
    let cold = cold.map(|kind| stats(kind.name(), counts.of(kind), spent.exits(kind), false));
    hot.chain(cold).filter(|exit| exit.count != 0).collect()
}
