//! [`Call`]: Steward's own calls, and how they stand in registers.

use crate::{CONSOLE_WRITE_MAX, STEWARD_BASE, Status};

/// The registers of a call, as the caller loads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Registers {
    /// The call's number.
    pub rax: u64,
    /// First argument.
    pub rbx: u64,
    /// Second argument.
    pub rcx: u64,
    /// Third argument.
    pub rdx: u64,
    /// Fourth argument.
    pub rsi: u64,
}

impl Registers {
    /// The registers as they count outside of 64-bit mode: low halves only.
    #[must_use]
    pub const fn low_halves(self) -> Self {
        const LOW: u64 = 0xffff_ffff;
        Self {
            rax: self.rax & LOW,
            rbx: self.rbx & LOW,
            rcx: self.rcx & LOW,
            rdx: self.rdx & LOW,
            rsi: self.rsi & LOW,
        }
    }
}

/// The calls that a hypervisor serves, beside [`Call::Version`] itself: bit n
/// stands for call number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Features(pub u32);

impl Features {
    /// [`Call::ConsoleWrite`].
    pub const CONSOLE_WRITE: Self = Self(1 << Call::CONSOLE_WRITE);
    /// [`Call::Yield`].
    pub const YIELD: Self = Self(1 << Call::YIELD);
    /// [`Call::Time`].
    pub const TIME: Self = Self(1 << Call::TIME);
    /// [`Call::ShutDown`].
    pub const SHUT_DOWN: Self = Self(1 << Call::SHUT_DOWN);

    /// Whether all of `other` are here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Kind of end that a guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ShutDownKind {
    /// Power off.
    PowerOff = 0,
    /// Start anew.
    Reset = 1,
    /// Something went wrong: keep what helps to find out.
    Crash = 2,
}

impl TryFrom<u64> for ShutDownKind {
    type Error = Status;

    fn try_from(number: u64) -> Result<Self, Status> {
        match number {
            0 => Ok(Self::PowerOff),
            1 => Ok(Self::Reset),
            2 => Ok(Self::Crash),
            _ => Err(Status::InvalidArgument),
        }
    }
}

/// A call of Steward's own. Each names its results, beside the status in RAX (0 when
/// it went well); [`Reply`] holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Number 0. Returns [`INTERFACE_VERSION`](crate::INTERFACE_VERSION) in
    /// RBX and [`Features`] in RCX.
    Version,
    /// Number 1. Writes bytes to the guest's console. Returns in RBX how many
    /// were taken, which may be fewer than were offered: the console's buffer
    /// is bounded, and the caller tries again with the rest.
    ConsoleWrite {
        /// RBX: guest-physical address of the first byte; any alignment, and
        /// the range may cross pages.
        address: u64,
        /// RCX: bytes, at most [`CONSOLE_WRITE_MAX`]; 0 is fine.
        length: u32,
    },
    /// Number 2. Lets others run; returns when the scheduler comes back.
    Yield,
    /// Number 3. Returns nanoseconds since the guest was started (paused time
    /// does not count) and nanoseconds since 1970-01-01 UTC: in RBX and RCX in
    /// 64-bit mode, in ECX:EBX and ESI:EDX elsewhere.
    Time,
    /// Number 4. Ends the guest; does not return.
    ShutDown {
        /// RBX: kind of the end.
        kind: ShutDownKind,
        /// RCX, 0 to 255: a status for whoever started the guest.
        status: u8,
    },
}

impl Call {
    /// Number of [`Call::Version`].
    pub(crate) const VERSION: u16 = 0;
    /// Number of [`Call::ConsoleWrite`].
    pub(crate) const CONSOLE_WRITE: u16 = 1;
    /// Number of [`Call::Yield`].
    pub(crate) const YIELD: u16 = 2;
    /// Number of [`Call::Time`].
    pub(crate) const TIME: u16 = 3;
    /// Number of [`Call::ShutDown`].
    pub(crate) const SHUT_DOWN: u16 = 4;

    /// The call's number within Steward's.
    const fn number(self) -> u16 {
        match self {
            Self::Version => Self::VERSION,
            Self::ConsoleWrite { .. } => Self::CONSOLE_WRITE,
            Self::Yield => Self::YIELD,
            Self::Time => Self::TIME,
            Self::ShutDown { .. } => Self::SHUT_DOWN,
        }
    }

    /// Whether `rax` names one of Steward's calls, known or not: bits 63:32
    /// clear, bit 31 set, the tag in bits 30:16.
    #[must_use]
    pub const fn is_steward(rax: u64) -> bool {
        rax & !0xffff == STEWARD_BASE
    }
}

impl TryFrom<Registers> for Call {
    type Error = Status;

    /// Reads a call from the registers of a caller (those of 32 bits
    /// zero-extended).
    fn try_from(registers: Registers) -> Result<Self, Status> {
        let Registers { rax, rbx, rcx, .. } = registers;
        let number = rax
            .checked_sub(STEWARD_BASE)
            .and_then(|number| u16::try_from(number).ok())
            .ok_or(Status::UnknownCall)?;
        match number {
            Self::VERSION => Ok(Self::Version),
            Self::CONSOLE_WRITE => match u32::try_from(rcx) {
                Ok(length) if length <= CONSOLE_WRITE_MAX => {
                    Ok(Self::ConsoleWrite { address: rbx, length })
                }
                _ => Err(Status::TooLong),
            },
            Self::YIELD => Ok(Self::Yield),
            Self::TIME => Ok(Self::Time),
            Self::SHUT_DOWN => Ok(Self::ShutDown {
                kind: rbx.try_into()?,
                status: u8::try_from(rcx).map_err(|_| Status::InvalidArgument)?,
            }),
            _ => Err(Status::UnknownCall),
        }
    }
}

impl From<Call> for Registers {
    fn from(call: Call) -> Self {
        let (rbx, rcx) = match call {
            Call::Version | Call::Yield | Call::Time => (0, 0),
            Call::ConsoleWrite { address, length } => (address, length.into()),
            Call::ShutDown { kind, status } => (kind as u64, status.into()),
        };
        Self { rax: STEWARD_BASE | u64::from(call.number()), rbx, rcx, rdx: 0, rsi: 0 }
    }
}

/// Results of a call that went well, beside RAX = 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// Reply to [`Call::Version`].
    Version {
        /// The interface's version.
        version: u32,
        /// The calls that it serves.
        features: Features,
    },
    /// Reply to [`Call::ConsoleWrite`].
    ConsoleWrite {
        /// Bytes that were taken, from the buffer's start.
        taken: u32,
    },
    /// Reply to [`Call::Time`].
    Time {
        /// Nanoseconds since the guest was started.
        since_start: u64,
        /// Nanoseconds since 1970-01-01 UTC.
        wall_clock: u64,
    },
}

impl Reply {
    /// The registers after the call, for a caller in 64-bit mode that had
    /// `before`.
    #[must_use]
    pub fn encode64(self, before: Registers) -> Registers {
        let after = Registers { rax: 0, ..before };
        match self {
            Self::Version { version, features } => {
                Registers { rbx: version.into(), rcx: features.0.into(), ..after }
            }
            Self::ConsoleWrite { taken } => Registers { rbx: taken.into(), ..after },
            Self::Time { since_start, wall_clock } => {
                Registers { rbx: since_start, rcx: wall_clock, ..after }
            }
        }
    }

    /// The registers after the call, for a caller outside of 64-bit mode.
    #[must_use]
    pub fn encode32(self, before: Registers) -> Registers {
        match self {
            Self::Version { .. } | Self::ConsoleWrite { .. } => self.encode64(before).low_halves(),
            Self::Time { since_start, wall_clock } => Registers {
                rax: 0,
                rbx: since_start & 0xffff_ffff,
                rcx: since_start >> 32,
                rdx: wall_clock & 0xffff_ffff,
                rsi: wall_clock >> 32,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: [Call; 6] = [
        Call::Version,
        Call::ConsoleWrite { address: 0x1234_5678_9abc, length: CONSOLE_WRITE_MAX },
        Call::Yield,
        Call::Time,
        Call::ShutDown { kind: ShutDownKind::PowerOff, status: 0 },
        Call::ShutDown { kind: ShutDownKind::Crash, status: 255 },
    ];

    #[test]
    fn calls_survive_registers() {
        for call in CALLS {
            let registers = Registers::from(call);
            assert!(Call::is_steward(registers.rax));
            assert_eq!(Call::try_from(registers), Ok(call));
        }
    }

    #[test]
    fn numbers_are_fixed() {
        let numbers = CALLS.map(|call| Registers::from(call).rax);
        assert_eq!(
            numbers,
            [0xd354_0000, 0xd354_0001, 0xd354_0002, 0xd354_0003, 0xd354_0004, 0xd354_0004]
        );
    }

    #[test]
    fn bad_calls_are_refused() {
        let call = |rax, rbx, rcx| Call::try_from(Registers { rax, rbx, rcx, rdx: 0, rsi: 0 });
        for (rax, rbx, rcx, status) in [
            (0, 0, 0, Status::UnknownCall),
            (0x8000_0000, 0, 0, Status::UnknownCall),
            (STEWARD_BASE + 5, 0, 0, Status::UnknownCall),
            (STEWARD_BASE + 0xffff, 0, 0, Status::UnknownCall),
            (STEWARD_BASE + 0x1_0000, 0, 0, Status::UnknownCall),
            (STEWARD_BASE | 1 << 32, 0, 0, Status::UnknownCall),
            (STEWARD_BASE + 1, 0, 4097, Status::TooLong),
            (STEWARD_BASE + 1, 0, 1 << 32, Status::TooLong),
            (STEWARD_BASE + 4, 3, 0, Status::InvalidArgument),
            (STEWARD_BASE + 4, 0, 256, Status::InvalidArgument),
        ] {
            assert_eq!(call(rax, rbx, rcx), Err(status), "{rax:#x} {rbx:#x} {rcx:#x}");
        }
    }

    #[test]
    fn only_the_tag_is_ours() {
        assert!(Call::is_steward(STEWARD_BASE + 0xffff));
        assert!(!Call::is_steward(STEWARD_BASE + 0x1_0000));
        assert!(!Call::is_steward(0x8000_0000));
        assert!(!Call::is_steward(STEWARD_BASE & !STEWARD_BASE_BIT));
        assert!(!Call::is_steward(0xffff_ffff_d354_0000));
    }
    const STEWARD_BASE_BIT: u64 = crate::STEWARD_BIT;

    #[test]
    fn replies_in_both_modes() {
        let before = Registers { rax: 9, rbx: u64::MAX, rcx: 2, rdx: 3, rsi: 4 };
        let time = Reply::Time { since_start: 0x1_0000_0002, wall_clock: 0x3_0000_0004 };
        let wide = time.encode64(before);
        assert_eq!((wide.rax, wide.rbx, wide.rcx), (0, 0x1_0000_0002, 0x3_0000_0004));
        assert_eq!((wide.rdx, wide.rsi), (3, 4));
        let narrow = time.encode32(before);
        assert_eq!(narrow, Registers { rax: 0, rbx: 2, rcx: 1, rdx: 4, rsi: 3 });
        let version = Reply::Version { version: 1, features: Features(0b1_1110) };
        assert_eq!(
            version.encode32(before),
            Registers { rax: 0, rbx: 1, rcx: 0b11110, rdx: 3, rsi: 4 }
        );
        assert!(!Features::YIELD.contains(Features::TIME));
    }
}
