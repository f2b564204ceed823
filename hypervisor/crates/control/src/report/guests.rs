//! Guests: the list, `top`, and one guest's statistics.

use crate::report::table::{Left, Right, Table, cut};
use crate::report::units::{bytes, count, duration, percent};
use crate::status::{ExitStats, GuestInfo, GuestStats, Statistics};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt::Write;

/// The guests, and why those ended that do not run.
#[must_use]
pub fn list(guests: &[GuestInfo]) -> String {
    if guests.is_empty() {
        return "there are no guests\n".into();
    }
    let mut table = Table::new([
        ("#", Right),
        ("NAME", Left),
        ("STATE", Left),
        ("UP", Right),
        ("MEMORY", Right),
        ("VCPUS", Right),
        ("WEIGHT", Right),
        ("CAP", Right),
        ("STARTS", Right),
        ("UNREAD", Right),
    ]);
    for guest in guests {
        let mark = if guest.attached { "*" } else { "" };
        table.row([
            format!("{mark}{}", guest.number),
            guest.name.clone(),
            guest.state.as_str().into(),
            guest.up_ns.map_or_else(|| "-".into(), duration),
            bytes(guest.memory),
            guest.vcpus.to_string(),
            guest.weight.to_string(),
            guest.cap.map_or_else(|| "-".into(), |cap| format!("{cap} %")),
            count(guest.starts),
            bytes(guest.console_kept.saturating_add(guest.console_dropped)),
        ]);
    }
    let mut text = String::new();
    table.render(&mut text);
    for guest in guests.iter().filter(|guest| guest.up_ns.is_none()) {
        if let Some(end) = &guest.last_end {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{} {}: {end}", guest.number, guest.name);
        }
    }
    text
}

/// The guests' use of the machine between two snapshots, or since the machine's start.
#[must_use]
pub fn top(now: &Statistics, before: Option<&Statistics>) -> String {
    let elapsed = now.time_ns.saturating_sub(before.map_or(0, |before| before.time_ns));
    let mut text = heading(now, before, elapsed);
    let mut table = Table::new([
        ("#", Right),
        ("NAME", Left),
        ("STATE", Left),
        ("CPU%", Right),
        ("RUN%", Right),
        ("READY%", Right),
        ("WAIT%", Right),
        ("EXITS/S", Right),
        ("TOUCHED", Right),
        ("MEMORY", Right),
    ]);
    for guest in &now.guests {
        let earlier = before.and_then(|before| {
            before
                .guests
                .iter()
                .find(|other| (other.number, &other.name) == (guest.number, &guest.name))
        });
        let times = earlier.map_or(guest.times(), |other| guest.times().since(other.times()));
        let service = guest.service_ns.saturating_sub(earlier.map_or(0, |other| other.service_ns));
        let exits = guest.exits().saturating_sub(earlier.map_or(0, GuestStats::exits));
        let all = times.run_ns.saturating_add(times.ready_ns).saturating_add(times.wait_ns);
        let per_second = u128::from(exits) * 1_000_000_000 / u128::from(elapsed.max(1));
        table.row([
            guest.number.to_string(),
            guest.name.clone(),
            guest.state.as_str().into(),
            percent(times.run_ns.saturating_add(service), elapsed),
            percent(times.run_ns, all),
            percent(times.ready_ns, all),
            percent(times.wait_ns, all),
            count(u64::try_from(per_second).unwrap_or(u64::MAX)),
            bytes(guest.memory.populated),
            bytes(guest.memory.ram),
        ]);
    }
    table.render(&mut text);
    text
}

fn heading(now: &Statistics, before: Option<&Statistics>, elapsed: u64) -> String {
    let busy = now.cpus.iter().fold(0_u64, |sum, cpu| {
        let earlier = before
            .and_then(|before| before.cpus.iter().find(|other| other.index == cpu.index))
            .map_or(0, |other| other.busy_ns);
        sum.saturating_add(cpu.busy_ns.saturating_sub(earlier))
    });
    let online = now.cpus.iter().filter(|cpu| cpu.online).count() as u64;
    format!(
        "up {}; {online} CPU(s), {} % busy; {} of {} free\n",
        duration(now.time_ns),
        percent(busy, elapsed.saturating_mul(online)),
        bytes(now.memory.free),
        bytes(now.memory.total),
    )
}

/// A guest's statistics: its vCPUs' time, its exits by kind, what else was counted.
#[must_use]
pub fn stats(guest: &GuestStats) -> String {
    let times = guest.times();
    let mut text = format!(
        "{} {}: {}; run {}, service {}, throttled {}\n",
        guest.number,
        cut(&guest.name, 16),
        guest.state.as_str(),
        duration(times.run_ns),
        duration(guest.service_ns),
        duration(guest.throttled_ns),
    );
    let mut table = Table::new([
        ("VCPU", Right),
        ("CPU", Right),
        ("RUN", Right),
        ("READY", Right),
        ("WAIT", Right),
        ("PAUSED", Right),
        ("LONGEST", Right),
        ("MOVES", Right),
        ("EXITS", Right),
    ]);
    for vcpu in &guest.vcpus {
        table.row([
            vcpu.index.to_string(),
            vcpu.cpu.map_or_else(|| "-".into(), |cpu| cpu.to_string()),
            duration(vcpu.times.run_ns),
            duration(vcpu.times.ready_ns),
            duration(vcpu.times.wait_ns),
            duration(vcpu.times.paused_ns),
            duration(vcpu.longest_ready_ns),
            count(vcpu.migrations),
            count(vcpu.exits()),
        ]);
    }
    table.render(&mut text);
    let account = guest.account();
    if account.total() != 0 {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{account}");
    }
    exits(guest, times.run_ns, &mut text);
    for counter in guest.counters.iter().filter(|counter| counter.count != 0) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:<20}{:>12}", counter.name, counter.count);
    }
    text
}

/// Exits of all vCPUs together; the most frequent first.
fn exits(guest: &GuestStats, run_ns: u64, text: &mut String) {
    let mut kinds: Vec<ExitStats> = Vec::new();
    for exit in guest.vcpus.iter().flat_map(|vcpu| &vcpu.exits) {
        match kinds.iter_mut().find(|kind| kind.reason == exit.reason) {
            Some(kind) => {
                kind.count = kind.count.saturating_add(exit.count);
                kind.estimated |= exit.estimated;
                let (Some(sum), Some(time)) = (kind.time_ns, exit.time_ns) else { continue };
                kind.time_ns = Some(sum.saturating_add(time));
            }
            None => kinds.push(exit.clone()),
        }
    }
    kinds.retain(|kind| kind.count != 0);
    kinds.sort_by_key(|kind| Reverse(kind.count));
    let all = kinds.iter().fold(0_u64, |sum, kind| sum.saturating_add(kind.count));
    let mut table = Table::new([
        ("EXIT", Left),
        ("COUNT", Right),
        ("% OF EXITS", Right),
        ("TIME", Right),
        ("EACH", Right),
        ("% OF RUN", Right),
    ]);
    let estimated = kinds.iter().any(|kind| kind.estimated);
    for kind in kinds {
        let each = kind.time_ns.and_then(|time| time.checked_div(kind.count));
        let mark = if kind.estimated { "~" } else { "" };
        let or_none =
            |text: Option<String>| text.map_or_else(|| "-".into(), |text| format!("{mark}{text}"));
        table.row([
            kind.reason,
            kind.count.to_string(),
            percent(kind.count, all),
            or_none(kind.time_ns.map(duration)),
            or_none(each.map(duration)),
            or_none(kind.time_ns.map(|time| percent(time, run_ns))),
        ]);
    }
    table.render(text);
    if estimated {
        *text += "~: not timed, but counted: the benchmark's instructions for each, one a tick\n";
    }
}
