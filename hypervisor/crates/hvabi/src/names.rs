//! [`CallName`]: names of calls in settings, and [`CallSet`]: the calls that a guest
//! may make.

use crate::{Call, Features, STEWARD_BASE, kvm};

/// A call that settings can name. [`Call::Version`] has no name: every guest may
/// ask which calls there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CallName {
    /// [`Call::ConsoleWrite`].
    ConsoleWrite,
    /// [`Call::Yield`].
    Yield,
    /// [`Call::Time`].
    Time,
    /// [`Call::ShutDown`].
    ShutDown,
    /// [`kvm::call::VAPIC_POLL_IRQ`].
    KvmPollIrq,
    /// [`kvm::call::KICK_CPU`].
    KvmKickCpu,
    /// [`kvm::call::CLOCK_PAIRING`].
    KvmClockPairing,
    /// [`kvm::call::SEND_IPI`].
    KvmSendIpi,
    /// [`kvm::call::SCHED_YIELD`].
    KvmSchedYield,
}

impl CallName {
    /// Every call that has a name.
    pub const ALL: [Self; 9] = [
        Self::ConsoleWrite,
        Self::Yield,
        Self::Time,
        Self::ShutDown,
        Self::KvmPollIrq,
        Self::KvmKickCpu,
        Self::KvmClockPairing,
        Self::KvmSendIpi,
        Self::KvmSchedYield,
    ];
    /// The names, in the order of [`CallName::ALL`].
    pub const NAMES: [&'static str; 9] = [
        Self::ConsoleWrite.as_str(),
        Self::Yield.as_str(),
        Self::Time.as_str(),
        Self::ShutDown.as_str(),
        Self::KvmPollIrq.as_str(),
        Self::KvmKickCpu.as_str(),
        Self::KvmClockPairing.as_str(),
        Self::KvmSendIpi.as_str(),
        Self::KvmSchedYield.as_str(),
    ];

    /// The name: lower case with hyphens, KVM's calls begin with `kvm-`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsoleWrite => "console-write",
            Self::Yield => "yield",
            Self::Time => "time",
            Self::ShutDown => "shut-down",
            Self::KvmPollIrq => "kvm-poll-irq",
            Self::KvmKickCpu => "kvm-kick-cpu",
            Self::KvmClockPairing => "kvm-clock-pairing",
            Self::KvmSendIpi => "kvm-send-ipi",
            Self::KvmSchedYield => "kvm-sched-yield",
        }
    }

    /// The call of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.as_str() == name)
    }

    /// RAX of this call.
    #[must_use]
    pub const fn rax(self) -> u64 {
        match self {
            Self::ConsoleWrite => STEWARD_BASE + Call::CONSOLE_WRITE as u64,
            Self::Yield => STEWARD_BASE + Call::YIELD as u64,
            Self::Time => STEWARD_BASE + Call::TIME as u64,
            Self::ShutDown => STEWARD_BASE + Call::SHUT_DOWN as u64,
            Self::KvmPollIrq => kvm::call::VAPIC_POLL_IRQ,
            Self::KvmKickCpu => kvm::call::KICK_CPU,
            Self::KvmClockPairing => kvm::call::CLOCK_PAIRING,
            Self::KvmSendIpi => kvm::call::SEND_IPI,
            Self::KvmSchedYield => kvm::call::SCHED_YIELD,
        }
    }

    /// The call that `rax` stands for, if it has a name.
    #[must_use]
    pub fn from_rax(rax: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.rax() == rax)
    }

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// A set of calls that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallSet(u16);

impl CallSet {
    /// No call.
    pub const NONE: Self = Self(0);
    /// Every call.
    pub const ALL: Self = Self((1 << CallName::ALL.len()) - 1);

    /// Whether `call` is in it.
    #[must_use]
    pub const fn contains(self, call: CallName) -> bool {
        self.0 & call.bit() != 0
    }

    /// Steward's own calls in it, as [`Call::Version`] reports them.
    #[must_use]
    pub const fn features(self) -> Features {
        let mut bits = 0;
        if self.contains(CallName::ConsoleWrite) {
            bits |= Features::CONSOLE_WRITE.0;
        }
        if self.contains(CallName::Yield) {
            bits |= Features::YIELD.0;
        }
        if self.contains(CallName::Time) {
            bits |= Features::TIME.0;
        }
        if self.contains(CallName::ShutDown) {
            bits |= Features::SHUT_DOWN.0;
        }
        Features(bits)
    }

    /// The calls in it, in the order of [`CallName::ALL`].
    pub fn iter(self) -> impl Iterator<Item = CallName> {
        CallName::ALL.into_iter().filter(move |call| self.contains(*call))
    }
}

impl FromIterator<CallName> for CallSet {
    fn from_iter<I: IntoIterator<Item = CallName>>(calls: I) -> Self {
        Self(calls.into_iter().fold(0, |bits, call| bits | call.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back() {
        for (call, name) in CallName::ALL.into_iter().zip(CallName::NAMES) {
            assert_eq!(call.as_str(), name);
            assert_eq!(CallName::from_name(name), Some(call));
            assert_eq!(CallName::from_rax(call.rax()), Some(call));
        }
        assert_eq!(CallName::from_name("version"), None);
        assert_eq!(CallName::from_rax(STEWARD_BASE), None);
    }

    #[test]
    fn sets() {
        assert_eq!(CallSet::ALL.features(), Features(0b1_1110));
        assert_eq!(CallSet::NONE.features(), Features(0));
        assert_eq!(CallSet::from_iter(CallName::ALL), CallSet::ALL);
        for call in CallName::ALL {
            let one = CallSet::from_iter([call]);
            assert!(one.iter().eq([call]));
            for other in CallName::ALL.into_iter().filter(|other| *other != call) {
                assert!(!one.contains(other));
            }
        }
    }
}
