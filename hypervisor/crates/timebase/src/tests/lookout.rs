use crate::{Finding, Look, Lookout};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;

/// A machine whose operator steps every 10 ms, and every 2 ms while it is to look.
struct Run {
    lookout: Lookout,
    now: u64,
    looks: usize,
    findings: std::vec::Vec<(u64, Finding)>,
    forgotten: usize,
}

impl Run {
    fn new() -> Self {
        let findings = std::vec::Vec::new();
        Self { lookout: Lookout::NEW, now: 5, looks: 0, findings, forgotten: 0 }
    }

    /// Steps until `until`; the machine's own reckoning is `off` ahead of the real-time clock,
    /// which `looks` like this at a time of its own.
    fn to(&mut self, until: u64, off: u64, look: impl Fn(u64) -> Look) {
        while self.now < until {
            let forgotten = &mut self.forgotten;
            if self.lookout.is_due(self.now, self.now + off, || *forgotten += 1) {
                self.looks += 1;
                let finding = self.lookout.saw(self.now, look(self.now));
                if finding != Finding::None {
                    self.findings.push((self.now / MILLI, finding));
                }
                self.now += 2 * MILLI;
            } else {
                self.now += 10 * MILLI;
            }
        }
    }
}

/// A second was seen to begin where one did since the look before.
fn healthy(now: u64) -> Look {
    if now % SECOND < 2 * MILLI { Look::Edge } else { Look::Date }
}

#[test]
fn a_clock_is_looked_at_until_a_second_begins_and_seldom_afterwards() {
    let mut run = Run::new();
    run.now = 300 * MILLI;
    run.to(80 * SECOND, 0, healthy);
    assert_eq!(run.findings, [(1_000, Finding::First)]);
    assert!(run.looks <= 351, "{}", run.looks);
    // Later about when a second must begin only.
    let before = run.looks;
    for off in [0, 9 * MILLI, 991 * MILLI] {
        let (mut again, until) = (Run { looks: 0, ..Run::new() }, 3_600 * SECOND);
        again.to(until, off, healthy);
        let anew = again.findings.iter().filter(|(_, f)| *f == Finding::Anew).count();
        assert!((35..=40).contains(&anew), "{anew} in an hour");
        assert_eq!(again.forgotten, anew);
        assert!(again.looks <= 600 + anew * 100, "{} for {anew}", again.looks);
    }
    assert!(before <= run.looks);
}

#[test]
fn a_clock_that_somebody_set_is_found_again() {
    let mut run = Run::new();
    run.to(2 * SECOND, 0, healthy);
    run.to(200 * SECOND, 400 * MILLI, healthy);
    assert!(matches!(
        run.findings[..],
        [(_, Finding::First), (91_000..=97_000, Finding::Anew), ..]
    ));
}

#[test]
fn without_a_clock_nobody_looks_for_ever() {
    let mut run = Run::new();
    run.to(3_600 * SECOND, 0, |_| Look::NoDate);
    assert!(matches!(run.findings[..], [(_, Finding::NoClock)]), "{:?}", run.findings);
    assert!(run.looks <= 100 && run.forgotten == 0, "{}", run.looks);
    // The same if the operator seldom gets a CPU.
    let mut lookout = Lookout::NEW;
    let findings = [0, 1, 2, 3].map(|at| lookout.saw(at * SECOND, Look::NoDate));
    assert_eq!(findings[2..], [Finding::None, Finding::NoClock]);
    assert!(!lookout.is_due(1_000 * SECOND, 0, || panic!()));
}

#[test]
fn a_clock_that_stands_is_not_awaited_for_ever() {
    let mut run = Run::new();
    run.to(3_600 * SECOND, 0, |_| Look::Date);
    assert!(matches!(run.findings[..], [(10_000..=10_010, Finding::NoEdge)]), "{:?}", run.findings);
    assert!(run.looks <= 5_001);
}

#[test]
fn a_clock_that_stops_later_costs_little() {
    let mut run = Run::new();
    run.to(2 * SECOND, 0, healthy);
    let before = run.looks;
    run.to(3_600 * SECOND, 0, |_| Look::NoDate);
    assert_eq!(run.findings.len(), 1);
    // A bad time of ten seconds in a hundred.
    assert!(run.looks - before <= 36 * 3_600, "{}", run.looks);
}

#[test]
fn a_clock_may_be_busy_for_a_while() {
    let mut run = Run::new();
    run.to(190 * MILLI, 0, |_| Look::NoDate);
    run.to(10 * SECOND, 0, healthy);
    assert_eq!(run.findings, [(1_000, Finding::First)]);
    // The clock is about to change when an operator looks that has not seen an edge yet.
    let mut run = Run::new();
    run.to(5 * SECOND, 0, |now| if now >= 4_999 * MILLI { Look::NoDate } else { Look::Date });
    run.to(7 * SECOND, 0, healthy);
    assert_eq!(run.findings, [(5_000, Finding::First)]);
}
