//! Time of a vCPU's turns by what it is spent on, in ticks of the host's TSC: the guest, exits
//! by kind, and switches.
//!
//! [`Stopwatch`] is told of each border: the vCPU gets a CPU, the general code enters the guest and
//! comes back, the turns are over, the CPU goes to another. The time between two borders is added
//! to one place, so that the places add up to the time between the first and the last. Exits that
//! the hot handler serves look at no clock: their time counts as the guest's, and [`HotCosts`] says
//! what to take off.

use crate::stats::{HotCounts, Kind};

/// Time of a vCPU on CPUs by what it was spent on, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// In the guest, with the exits that the hot handler served.
    pub guest: u64,
    /// To get a CPU and to give it up: the scheduler's part is charged elsewhere.
    pub switches: u64,
    exits: [u64; Kind::ALL.len()],
}

impl Spent {
    /// In exits of one kind that the general code served, with the way there and back.
    #[must_use]
    pub fn exits(&self, kind: Kind) -> u64 {
        self.exits.get(kind as usize).copied().unwrap_or(0)
    }

    /// In all exits that the general code served.
    #[must_use]
    pub fn all_exits(&self) -> u64 {
        self.exits.iter().fold(0, |sum, ticks| sum.saturating_add(*ticks))
    }
}

/// Adds up where time goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stopwatch {
    spent: Spent,
    /// The last border.
    mark: u64,
    /// The exit that is being served; `None`: a switch.
    serves: Option<Kind>,
}

impl Stopwatch {
    /// The vCPU gets a CPU, at this TSC of the host.
    pub fn begin(&mut self, tsc: u64) {
        self.mark = tsc;
        self.serves = None;
    }

    /// The general code enters the guest.
    #[inline]
    pub fn enter(&mut self, tsc: u64) {
        let ticks = self.pass(tsc);
        match self.serves {
            Some(kind) => {
                if let Some(slot) = self.spent.exits.get_mut(kind as usize) {
                    *slot = slot.wrapping_add(ticks);
                }
            }
            None => self.spent.switches = self.spent.switches.wrapping_add(ticks),
        }
    }

    /// The general code comes back from the guest.
    #[inline]
    pub fn exit(&mut self, tsc: u64) {
        let ticks = self.pass(tsc);
        self.spent.guest = self.spent.guest.wrapping_add(ticks);
    }

    /// The host's TSC at the last border: behind [`Backend::run`](crate::backend::Backend::run),
    /// that is the exit.
    #[inline]
    #[must_use]
    pub const fn mark(&self) -> u64 {
        self.mark
    }

    /// The exit that the general code came back for is of this kind.
    #[inline]
    pub fn serve(&mut self, kind: Kind) {
        self.serves = Some(kind);
    }

    /// The turns are over; what follows is a switch.
    pub fn leave(&mut self, tsc: u64) {
        self.enter(tsc);
        self.serves = None;
    }

    /// Time that was spent up to this TSC, at which the vCPU's CPU goes to another.
    pub fn end(&mut self, tsc: u64) {
        self.enter(tsc);
    }

    /// All time up to the last border.
    #[must_use]
    pub const fn spent(&self) -> Spent {
        self.spent
    }

    fn pass(&mut self, tsc: u64) -> u64 {
        // On another CPU the TSC may be a little behind.
        let ticks = tsc.saturating_sub(self.mark);
        self.mark = tsc;
        ticks
    }
}

/// Costs of exits that the hot handler serves, in instructions as the benchmark counts them: the
/// figures of `docs/performance.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotCosts {
    /// `cpuid_1`.
    pub cpuid: u64,
    /// `rdmsr_apic_base`.
    pub read_msr: u64,
    /// `tsc_deadline_near`.
    pub write_msr: u64,
    /// `null_hypercall`.
    pub hypercall: u64,
    /// `uart_lsr_read`.
    pub port_io: u64,
    /// `first_touch_exits`.
    pub touch: u64,
}

impl HotCosts {
    /// On VT-x.
    pub const VMX: Self =
        Self { cpuid: 115, read_msr: 98, write_msr: 136, hypercall: 99, port_io: 137, touch: 233 };

    /// On AMD-V.
    pub const SVM: Self = Self {
        cpuid: 120,
        read_msr: 102,
        write_msr: 136,
        hypercall: 100,
        port_io: 147,
        touch: 237,
    };

    /// Splits `guest` ticks that passed in a guest with its hot exits: into the guest's own, and
    /// those of the exits, which are never more than there are.
    #[must_use]
    pub fn split(self, guest: u64, counts: &HotCounts) -> (u64, u64) {
        let hot = self.times(counts).fold(0, |sum, (_, ticks)| ticks.saturating_add(sum));
        let hot = hot.min(guest);
        (guest - hot, hot)
    }

    /// Names as the counts have them, and what so many exits took, one tick for an instruction.
    pub fn times(self, counts: &HotCounts) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("hot_cpuid", self.cpuid, counts.cpuid),
            ("hot_read_msr", self.read_msr, counts.read_msr),
            ("hot_write_msr", self.write_msr, counts.write_msr),
            ("hot_hypercall", self.hypercall, counts.hypercall),
            ("hot_port_io", self.port_io, counts.port_io),
            ("hot_touch", self.touch, counts.touch),
        ]
        .into_iter()
        .map(|(name, cost, count)| (name, cost.saturating_mul(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    #[test]
    fn each_stretch_has_its_place() {
        let mut watch = Stopwatch::default();
        watch.begin(1000);
        watch.enter(1010); // a switch of 10
        watch.exit(1110); // 100 in the guest
        watch.serve(Kind::PortIo);
        watch.enter(1117); // 7 for the port
        watch.exit(1200); // 83 in the guest
        watch.serve(Kind::Halt);
        watch.leave(1203); // 3 for HLT
        watch.end(1253); // a switch of 50
        let spent = watch.spent();
        assert_eq!((spent.guest, spent.switches), (183, 60));
        assert_eq!((spent.exits(Kind::PortIo), spent.exits(Kind::Halt)), (7, 3));
        assert_eq!(spent.all_exits(), 10);
        // The time without a CPU is nobody's.
        watch.begin(9000);
        watch.leave(9001);
        watch.end(9002);
        assert_eq!(watch.spent().switches, 62);
    }

    #[test]
    fn hot_exits_are_counted_and_priced() {
        let counts = HotCounts { cpuid: 2, touch: 1, ..HotCounts::default() };
        let times: alloc::vec::Vec<_> =
            HotCosts::SVM.times(&counts).filter(|(_, ticks)| *ticks != 0).collect();
        assert_eq!(times, [("hot_cpuid", 240), ("hot_touch", 237)]);
    }

    #[test]
    fn an_estimate_is_never_more_than_there_is_to_take_it_from() {
        let counts = HotCounts { read_msr: 1000, ..HotCounts::default() };
        assert_eq!(HotCosts::VMX.split(9_900_000, &counts), (9_802_000, 98_000));
        let counts = HotCounts { touch: u64::MAX, ..HotCounts::default() };
        assert_eq!(HotCosts::VMX.split(9_900_000, &counts), (0, 9_900_000));
    }

    /// Costs that are shown for exits that nobody times are those of the document.
    #[test]
    fn the_costs_of_hot_exits_are_the_documents() {
        let document = include_str!("../../../../docs/performance.md");
        let figures = |name: &str| {
            let name = format!("| `{name}` |");
            let line = document.lines().find(|line| line.contains(&name)).unwrap();
            let mut cells = line.split_once(&name).unwrap().1.split('|').map(str::trim);
            // The first figure counts; one of the emulated local APIC may stand behind it.
            let mut next = || cells.next().unwrap().split(' ').next().unwrap().parse().unwrap();
            (next(), next())
        };
        let costs = |figure: fn((u64, u64)) -> u64| HotCosts {
            cpuid: figure(figures("cpuid_1")),
            read_msr: figure(figures("rdmsr_apic_base")),
            write_msr: figure(figures("tsc_deadline_near")),
            hypercall: figure(figures("null_hypercall")),
            port_io: figure(figures("uart_lsr_read")),
            touch: figure(figures("first_touch_exits")),
        };
        assert_eq!(costs(|(vmx, _)| vmx), HotCosts::VMX);
        assert_eq!(costs(|(_, svm)| svm), HotCosts::SVM);
    }

    proptest! {
        /// Whatever happens in whatever order: nothing is lost and nothing counts twice.
        #[test]
        fn the_places_add_up(steps in proptest::collection::vec((0..3u8, 0..1000u64), 0..50)) {
            let mut watch = Stopwatch::default();
            watch.begin(5);
            let mut now = 5;
            for (step, ticks) in steps {
                now += ticks;
                match step {
                    0 => watch.enter(now),
                    1 => {
                        watch.exit(now);
                        watch.serve(Kind::ALL[usize::try_from(ticks).unwrap() % Kind::ALL.len()]);
                    }
                    _ => watch.leave(now),
                }
            }
            watch.end(now + 1);
            let spent = watch.spent();
            prop_assert_eq!(spent.guest + spent.switches + spent.all_exits(), now + 1 - 5);
        }
    }
}
