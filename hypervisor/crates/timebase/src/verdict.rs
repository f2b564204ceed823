//! [`judge`]: which rate is to be believed.

use crate::counter::Source;
use crate::rate::Rate;
use core::fmt;

/// Two sources agree where they are no further apart than this, in parts per million, and
/// neither could be off by more.
pub const AGREEMENT_PPM: u64 = 100;

/// Source of a rate of the TSC: a clock, or CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// A measurement against this clock.
    Counter(Source),
    /// CPUID leaf 0x15: crystal and ratio.
    CpuidCrystal,
    /// CPUID leaf 0x16: the base frequency, in whole MHz.
    CpuidBase,
    /// The hypervisor that this machine is a guest of, by CPUID leaf 0x4000_0010.
    HypervisorLeaf,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counter(source) => source.fmt(f),
            Self::CpuidCrystal => f.write_str("CPUID leaf 0x15"),
            Self::CpuidBase => f.write_str("CPUID leaf 0x16"),
            Self::HypervisorLeaf => f.write_str("the hypervisor's CPUID leaf 0x40000010"),
        }
    }
}

/// Rate of the TSC that was measured against a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The clock.
    pub source: Source,
    /// The TSC's rate by it.
    pub rate: Rate,
}

/// Rate of the TSC that a witness states without a measurement here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The witness.
    pub by: Witness,
    /// The rate, in Hz.
    pub hz: u64,
}

/// A witness and the rate that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// The witness.
    pub by: Witness,
    /// The rate, in Hz.
    pub hz: u64,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let khz = self.hz.saturating_add(500) / 1000;
        write!(f, "{} {}.{:03} MHz", self.by, khz / 1000, khz % 1000)
    }
}

/// Judgement on the TSC's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Two sources agree, at least one of them measured.
    Agreed {
        /// The rate, in Hz.
        hz: u64,
        /// The two sources.
        by: [Witness; 2],
    },
    /// The best figure, which nothing confirms.
    Alone(Figure),
    /// The best figure, and the next best, which is another.
    Apart(Figure, Figure),
    /// No clock runs.
    Nothing,
}

/// Decides between what was `measured` and what others `claim`.
///
/// A claim never stands alone. One that lies within what two clocks allow is more exact than
/// they are: it is the rate then.
#[must_use]
pub fn judge(measured: &[Measured], claims: &[Claim]) -> Verdict {
    let spread = |m: &Measured| m.rate.high().saturating_sub(m.rate.low());
    let sharp = || measured.iter().filter(|m| m.rate.spread_ppm() <= AGREEMENT_PPM);
    let pairs = sharp().flat_map(|a| {
        let others = sharp().filter(move |b| a.source != b.source && spread(a) <= spread(b));
        others.map(move |b| (a, b))
    });
    let agreeing = pairs.filter(|(a, b)| a.rate.apart_ppm(b.rate.middle()) <= AGREEMENT_PPM);
    if let Some((a, b)) = agreeing.min_by_key(|(a, b)| spread(a).saturating_add(spread(b))) {
        let rate = a.rate.meet(b.rate).unwrap_or(a.rate);
        let exact = claims.iter().find(|claim| rate.contains(claim.hz));
        let hz = exact.map_or(rate.middle(), |claim| claim.hz);
        return Verdict::Agreed { hz, by: [a, b].map(|m| Witness::Counter(m.source)) };
    }
    let confirmed = sharp().flat_map(|m| claims.iter().map(move |claim| (m, claim)));
    let agreeing = confirmed.filter(|(m, claim)| m.rate.apart_ppm(claim.hz) <= AGREEMENT_PPM);
    if let Some((m, claim)) = agreeing.min_by_key(|(m, claim)| m.rate.apart_ppm(claim.hz)) {
        let hz = if m.rate.contains(claim.hz) { claim.hz } else { m.rate.middle() };
        return Verdict::Agreed { hz, by: [Witness::Counter(m.source), claim.by] };
    }
    let figure = |m: &Measured| Figure { by: Witness::Counter(m.source), hz: m.rate.middle() };
    let Some(best) = measured.iter().min_by_key(|m| m.rate.spread_ppm()) else {
        return Verdict::Nothing;
    };
    let others = measured.iter().filter(|m| m.source != best.source);
    let next = others.min_by_key(|m| m.rate.spread_ppm()).map(figure);
    let claimed = || claims.first().map(|claim| Figure { by: claim.by, hz: claim.hz });
    match next.or_else(claimed) {
        Some(next) => Verdict::Apart(figure(best), next),
        None => Verdict::Alone(figure(best)),
    }
}
