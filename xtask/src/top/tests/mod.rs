//! Tests of `top`: what is computed, how it looks, and the whole against a server
//! in this process.

mod live;
mod model;
mod view;

use control::status::{
    CpuInfo, ExitStats, GuestMemory, GuestState, GuestStats, HostMemory, Statistics, Times,
    VcpuStats,
};

const S: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

fn exit(reason: &str, count: u64, time_ns: Option<u64>) -> ExitStats {
    ExitStats { reason: reason.into(), count, time_ns, estimated: false }
}

/// A guest with one vCPU that ran so long, was ready half as long and waited a
/// quarter of it.
fn guest(number: u32, name: &str, run_ns: u64, exits: u64) -> GuestStats {
    let times = Times { run_ns, ready_ns: run_ns / 2, wait_ns: run_ns / 4, paused_ns: 0 };
    let exits =
        vec![exit("halt", exits / 4, None), exit("port_io", exits - exits / 4, Some(run_ns / 10))];
    GuestStats {
        number,
        name: name.into(),
        uuid: None,
        state: GuestState::Running,
        memory: GuestMemory {
            ram: 512 * MIB,
            populated: u64::from(number) * 10 * MIB,
            tables: MIB,
            overhead: 9,
        },
        zeroing_ns: 0,
        service_ns: run_ns / 20,
        throttled_ns: run_ns / 8,
        vcpus: vec![VcpuStats { times, exits, ..VcpuStats::default() }],
        counters: Vec::new(),
    }
}

/// Two CPUs, one of them off; the other was busy half of the time.
fn statistics(time_ns: u64, guests: Vec<GuestStats>) -> Statistics {
    let cpu = |index| CpuInfo {
        index,
        apic_id: index,
        timers: 0,
        online: index == 0,
        busy_ns: if index == 0 { time_ns / 2 } else { 0 },
        idle_ns: time_ns / 2,
        running: None,
    };
    Statistics {
        time_ns,
        cpus: vec![cpu(0), cpu(1)],
        memory: HostMemory { total: 4 << 30, free: 3 << 30, ..HostMemory::default() },
        guests,
    }
}
