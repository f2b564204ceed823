//! Pictures of what happened between two snapshots.
//!
//! Shares are in tenths of a percent, rates in tenths of a thing in a second, and
//! both are `None` where no time has passed.

use std::cmp::Reverse;

use control::status::{GuestState, GuestStats, Statistics, Times};

const SECOND: u64 = 1_000_000_000;

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// How long it has been running, in nanoseconds.
    pub up_ns: u64,
    /// Its CPUs that take part.
    pub online: u64,
    /// The share of their time that they ran something.
    pub busy: Option<u64>,
    /// Bytes of its memory that are free.
    pub free: u64,
    /// Bytes of its memory.
    pub total: u64,
    /// The time that shares and rates are of is all since the start.
    pub since_start: bool,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its place in its life.
    pub state: GuestState,
    /// Its vCPUs.
    pub vcpus: usize,
    /// Share of one CPU that it used: its vCPUs' time and that of services for it.
    pub cpu: Option<u64>,
    /// Of that: the time of services for it.
    pub service: Option<u64>,
    /// For how much of the time its cap kept it from running.
    pub throttled: Option<u64>,
    /// The share of its vCPUs' time on a CPU.
    pub run: Option<u64>,
    /// The share without a CPU that they would have used.
    pub ready: Option<u64>,
    /// The share in which they waited for an interrupt.
    pub wait: Option<u64>,
    /// The rate of its exits.
    pub exits: Option<u64>,
    /// Bytes of its memory that it has touched.
    pub touched: u64,
    /// Bytes of its memory.
    pub memory: u64,
    /// The kinds of exits that there were, the most frequent first.
    pub kinds: Vec<Kind>,
}

/// Exits of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub reason: String,
    /// Their rate.
    pub rate: Option<u64>,
    /// Their share of all exits.
    pub share: Option<u64>,
    /// How long one took, in nanoseconds; `None` where that is not measured.
    pub each_ns: Option<u64>,
    /// Their share of the vCPUs' time on a CPU; `None` where that is not measured.
    pub of_run: Option<u64>,
}

/// The picture of what happened between two snapshots, or since the machine's start.
pub(super) fn picture(now: &Statistics, before: Option<&Statistics>) -> (Head, Vec<Row>) {
    let elapsed = now.time_ns.saturating_sub(before.map_or(0, |before| before.time_ns));
    let busy = now.cpus.iter().fold(0_u64, |sum, cpu| {
        let earlier = before
            .and_then(|before| before.cpus.iter().find(|other| other.index == cpu.index))
            .map_or(0, |other| other.busy_ns);
        sum.saturating_add(cpu.busy_ns.saturating_sub(earlier))
    });
    let online = now.cpus.iter().filter(|cpu| cpu.online).count() as u64;
    let head = Head {
        up_ns: now.time_ns,
        online,
        busy: share(busy, elapsed.saturating_mul(online)),
        free: now.memory.free,
        total: now.memory.total,
        since_start: before.is_none(),
    };
    let rows = now.guests.iter().map(|guest| {
        let earlier = before
            .and_then(|before| {
                let is_same = |other: &&GuestStats| {
                    (other.number, &other.name) == (guest.number, &guest.name)
                };
                before.guests.iter().find(is_same)
            })
            .filter(|earlier| !started_anew(guest, earlier, elapsed));
        row(guest, earlier, elapsed)
    });
    (head, rows.collect())
}

/// Whether the guest was started since `earlier`: its totals went back, and it has
/// not lived longer than since then. Then all that it counts is new.
fn started_anew(now: &GuestStats, earlier: &GuestStats, elapsed: u64) -> bool {
    let life = |times: Times| {
        let here = times.run_ns.saturating_add(times.ready_ns);
        here.saturating_add(times.wait_ns).saturating_add(times.paused_ns)
    };
    let went_back = now.exits() < earlier.exits() || life(now.times()) < life(earlier.times());
    went_back && now.vcpus.iter().all(|vcpu| life(vcpu.times) <= elapsed)
}

fn row(guest: &GuestStats, earlier: Option<&GuestStats>, elapsed: u64) -> Row {
    let times = guest.times().since(earlier.map_or_else(Times::default, GuestStats::times));
    let since =
        |total: fn(&GuestStats) -> u64| total(guest).saturating_sub(earlier.map_or(0, total));
    let service = since(|guest| guest.service_ns);
    let all = times.run_ns.saturating_add(times.ready_ns).saturating_add(times.wait_ns);
    Row {
        number: guest.number,
        name: guest.name.clone(),
        state: guest.state,
        vcpus: guest.vcpus.len(),
        cpu: share(times.run_ns.saturating_add(service), elapsed),
        service: share(service, elapsed),
        throttled: share(since(|guest| guest.throttled_ns), elapsed),
        run: share(times.run_ns, all),
        ready: share(times.ready_ns, all),
        wait: share(times.wait_ns, all),
        exits: rate(since(GuestStats::exits), elapsed),
        touched: guest.memory.populated,
        memory: guest.memory.ram,
        kinds: kinds(guest, earlier, times.run_ns, elapsed),
    }
}

/// The exits of one kind, as totals.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    time_ns: Option<u64>,
}

fn sums(guest: &GuestStats) -> Vec<(&str, Sum)> {
    let mut sums: Vec<(&str, Sum)> = Vec::new();
    for exit in guest.vcpus.iter().flat_map(|vcpu| &vcpu.exits) {
        match sums.iter_mut().find(|(reason, _)| *reason == exit.reason) {
            None => sums.push((&exit.reason, Sum { count: exit.count, time_ns: exit.time_ns })),
            Some((_, sum)) => {
                sum.count = sum.count.saturating_add(exit.count);
                sum.time_ns = match (sum.time_ns, exit.time_ns) {
                    (Some(sum), Some(time)) => Some(sum.saturating_add(time)),
                    (one, other) => one.or(other),
                };
            }
        }
    }
    sums
}

fn kinds(guest: &GuestStats, earlier: Option<&GuestStats>, run_ns: u64, elapsed: u64) -> Vec<Kind> {
    let before = earlier.map(sums).unwrap_or_default();
    let mut new: Vec<(&str, Sum)> = sums(guest);
    for (reason, sum) in &mut new {
        let of_it = before.iter().find(|(other, _)| other == reason);
        let earlier = of_it.map(|(_, sum)| *sum).unwrap_or_default();
        sum.count = sum.count.saturating_sub(earlier.count);
        sum.time_ns =
            sum.time_ns.map(|time| time.saturating_sub(earlier.time_ns.unwrap_or_default()));
    }
    new.retain(|(_, sum)| sum.count != 0);
    new.sort_by_key(|(_, sum)| Reverse(sum.count));
    let all = new.iter().fold(0_u64, |all, (_, sum)| all.saturating_add(sum.count));
    let kind = |(reason, sum): (&str, Sum)| Kind {
        reason: reason.to_owned(),
        rate: rate(sum.count, elapsed),
        share: share(sum.count, all),
        each_ns: sum.time_ns.and_then(|time| time.checked_div(sum.count)),
        of_run: sum.time_ns.and_then(|time| share(time, run_ns)),
    };
    new.into_iter().map(kind).collect()
}

/// A part in tenths of a percent, rounded.
fn share(part: u64, whole: u64) -> Option<u64> {
    let tenths = (u128::from(part) * 1000 + u128::from(whole) / 2).checked_div(whole.into())?;
    Some(u64::try_from(tenths).unwrap_or(u64::MAX))
}

/// Tenths of things in a second.
fn rate(count: u64, elapsed: u64) -> Option<u64> {
    let tenths = (u128::from(count) * 10 * u128::from(SECOND)).checked_div(elapsed.into())?;
    Some(u64::try_from(tenths).unwrap_or(u64::MAX))
}
