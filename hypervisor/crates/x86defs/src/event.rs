//! Exceptions, interrupts and their injection.

/// An interrupt vector.
pub type Vector = u8;

/// An exception of the architecture, by vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Exception(pub u8);

impl Exception {
    /// #DE, divide error.
    pub const DE: Self = Self(0);
    /// #DB, debug.
    pub const DB: Self = Self(1);
    /// #BP, breakpoint.
    pub const BP: Self = Self(3);
    /// #OF, overflow.
    pub const OF: Self = Self(4);
    /// #BR, bound range.
    pub const BR: Self = Self(5);
    /// #UD, invalid opcode.
    pub const UD: Self = Self(6);
    /// #NM, device not available.
    pub const NM: Self = Self(7);
    /// #DF, double fault.
    pub const DF: Self = Self(8);
    /// #TS, invalid TSS.
    pub const TS: Self = Self(10);
    /// #NP, segment not present.
    pub const NP: Self = Self(11);
    /// #SS, stack.
    pub const SS: Self = Self(12);
    /// #GP, general protection.
    pub const GP: Self = Self(13);
    /// #PF, page fault.
    pub const PF: Self = Self(14);
    /// #MF, x87.
    pub const MF: Self = Self(16);
    /// #AC, alignment check.
    pub const AC: Self = Self(17);
    /// #MC, machine check.
    pub const MC: Self = Self(18);
    /// #XM, SIMD.
    pub const XM: Self = Self(19);
    /// #CP, control protection.
    pub const CP: Self = Self(21);

    /// Whether the CPU pushes an error code for it, outside real mode
    /// (APM: "Error Codes").
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21)
    }

    /// Whether it is always a fault: RIP stays at the instruction, and RF is set in
    /// the flags that are pushed. #DB is a fault only where it is reported before
    /// the instruction, #DF and #MC are aborts
    /// (SDM: "Exception Classifications", "Instruction-Breakpoint Exception Condition").
    #[must_use]
    pub const fn is_fault(self) -> bool {
        !matches!(self, Self::DB | Self::BP | Self::OF | Self::DF | Self::MC)
    }

    /// Whether it counts as contributory towards a double fault
    /// (SDM: "Interrupt 8—Double Fault Exception").
    #[must_use]
    pub const fn is_contributory(self) -> bool {
        matches!(self.0, 0 | 10..=13 | 21)
    }
}

/// Exceptions of a guest that exit, by vector: #DB and #AC because a guest can
/// make their delivery loop for ever, #MC because it is the machine's.
pub const EXITING_EXCEPTIONS: u32 =
    1 << Exception::DB.0 | 1 << Exception::AC.0 | 1 << Exception::MC.0;

/// Kind of an event that is delivered to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// An external interrupt.
    Interrupt,
    /// A non-maskable interrupt.
    Nmi,
    /// A fault, trap or abort.
    Exception,
    /// INT n; carries the instruction's length in bytes.
    SoftwareInterrupt(u8),
    /// INT3 or INTO; carries the instruction's length in bytes.
    SoftwareException(u8),
}

/// An event to deliver to a guest at its next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// The vector; 2 for an NMI.
    pub vector: Vector,
    /// The kind.
    pub kind: EventKind,
    /// The error code that goes with it, for exceptions that have one.
    pub error_code: Option<u32>,
}

impl Event {
    /// An external interrupt.
    #[must_use]
    pub const fn interrupt(vector: Vector) -> Self {
        Self { vector, kind: EventKind::Interrupt, error_code: None }
    }

    /// A non-maskable interrupt.
    #[must_use]
    pub const fn nmi() -> Self {
        Self { vector: 2, kind: EventKind::Nmi, error_code: None }
    }

    /// An exception without an error code.
    #[must_use]
    pub const fn exception(exception: Exception) -> Self {
        Self { vector: exception.0, kind: EventKind::Exception, error_code: None }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn exception_with_code(exception: Exception, code: u32) -> Self {
        Self { vector: exception.0, kind: EventKind::Exception, error_code: Some(code) }
    }

    /// #GP(0).
    #[must_use]
    pub const fn gp0() -> Self {
        Self::exception_with_code(Exception::GP, 0)
    }

    /// #UD.
    #[must_use]
    pub const fn ud() -> Self {
        Self::exception(Exception::UD)
    }
}
