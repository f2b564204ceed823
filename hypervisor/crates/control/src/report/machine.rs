//! The machine's memory and CPUs.

use crate::report::table::{Left, Right, Table};
use crate::report::units::{bytes, duration, percent};
use crate::status::{CpusStatus, MemoryStatus};
use alloc::format;
use alloc::string::{String, ToString};

/// The machine's memory, and who has it.
#[must_use]
pub fn memory(snapshot: &MemoryStatus) -> String {
    let host = &snapshot.host;
    let used = host.total.saturating_sub(host.free);
    let mut text = format!(
        "frames: {} in all, {} used, {} free\n\
         free:   {} promised to guests, {} zeroed; in guests' stocks {}\n\
         own:    {}, heap {} of {}\n",
        bytes(host.total),
        bytes(used),
        bytes(host.free),
        bytes(host.reserved),
        bytes(host.zeroed),
        bytes(host.stock),
        bytes(host.hypervisor),
        bytes(host.heap_used),
        bytes(host.heap_size),
    );
    if snapshot.guests.is_empty() {
        return text;
    }
    let mut table = Table::new([
        ("#", Right),
        ("NAME", Left),
        ("RAM", Right),
        ("TOUCHED", Right),
        ("TABLES", Right),
        ("OVERHEAD", Right),
    ]);
    for guest in &snapshot.guests {
        table.row([
            guest.number.to_string(),
            guest.name.clone(),
            bytes(guest.memory.ram),
            bytes(guest.memory.populated),
            bytes(guest.memory.tables),
            bytes(guest.memory.overhead),
        ]);
    }
    table.render(&mut text);
    text
}

/// The machine's CPUs and what they run.
#[must_use]
pub fn cpus(snapshot: &CpusStatus) -> String {
    let mut text = format!(
        "{}\n{}; TSC {}.{:03} MHz; the operator's longest step since the last look: {}\n",
        snapshot.model,
        snapshot.virtualization,
        snapshot.tsc_hz / 1_000_000,
        snapshot.tsc_hz / 1_000 % 1_000,
        duration(snapshot.longest_step_ns),
    );
    let mut table = Table::new([
        ("CPU", Right),
        ("APIC", Right),
        ("STATE", Left),
        ("BUSY", Right),
        ("IDLE", Right),
        ("BUSY%", Right),
        ("RUNS", Left),
    ]);
    for cpu in &snapshot.cpus {
        table.row([
            cpu.index.to_string(),
            cpu.apic_id.to_string(),
            if cpu.online { "online" } else { "offline" }.into(),
            duration(cpu.busy_ns),
            duration(cpu.idle_ns),
            percent(cpu.busy_ns, cpu.busy_ns.saturating_add(cpu.idle_ns)),
            cpu.running.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    table.render(&mut text);
    text
}
