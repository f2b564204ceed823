//! Why guests end.

use alloc::string::String;
use chipset::BoardEnd;
use hvabi::ShutDownKind;
use memory::MemoryError;
use x86defs::exit::RawExit;

/// Why a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// All its vCPUs are halted with interrupts disabled.
    Halted,
    /// It wrote this to the debug-exit port.
    DebugExit(u32),
    /// It asked by hypercall.
    ShutDown {
        /// The kind of shutdown that it asked for.
        kind: ShutDownKind,
        /// The status that it gave.
        status: u8,
    },
    /// It said through pvpanic that its kernel has panicked.
    Panicked,
    /// Its CPU shut down: a triple fault.
    TripleFault,
    /// It can't go on.
    Failed(VmError),
}

impl EndReason {
    /// Whether the guest broke, rather than came to an end of its own choice, be it a
    /// good one or not: its state is worth a look then.
    #[must_use]
    pub const fn is_crash(&self) -> bool {
        match self {
            Self::PowerOff | Self::Reset | Self::Halted | Self::DebugExit(_) => false,
            Self::ShutDown { kind, .. } => matches!(kind, ShutDownKind::Crash),
            Self::Panicked | Self::TripleFault | Self::Failed(_) => true,
        }
    }
}

impl From<BoardEnd> for EndReason {
    fn from(end: BoardEnd) -> Self {
        match end {
            BoardEnd::PowerOff => Self::PowerOff,
            BoardEnd::Reset => Self::Reset,
            BoardEnd::Panicked => Self::Panicked,
            BoardEnd::DebugExit(value) => Self::DebugExit(value),
        }
    }
}

/// Why a guest can't go on. Other guests are not affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmError {
    /// The hardware refused its state.
    #[error("the CPU refused to enter the guest: {0:x?}")]
    InvalidState(RawExit),
    /// An exit that nothing here knows.
    #[error("unknown exit: {0:x?}")]
    UnknownExit(RawExit),
    /// An instruction on device memory that is not emulated.
    #[error("an access to device memory by an instruction that is not emulated: {0}")]
    Instruction(String),
    /// Something else that is not offered.
    #[error("{0}")]
    NotOffered(&'static str),
    /// Memory that should be there is not.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its watchdog saw nothing of it for so many milliseconds.
    #[error("no sign of life for {0} ms")]
    Lifeless(u32),
    /// The machine reported an error of its hardware.
    #[error("machine check")]
    MachineCheck,
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(&'static str),
}
