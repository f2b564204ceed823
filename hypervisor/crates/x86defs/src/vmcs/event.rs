//! Events: what an entry injects, what an exit was about, and what it
//! interrupted (SDM: "VM-Entry Controls for Event Injection", "Information for
//! VM Exits That Occur During Event Delivery").

use super::fields::Field32;
use crate::event::{Event, EventKind};
use bitfield_struct::bitfield;

/// The kinds of events in [`InterruptionInfo::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct InterruptionKind(pub u8);

impl InterruptionKind {
    /// External interrupt.
    pub const INTERRUPT: Self = Self(0);
    /// NMI.
    pub const NMI: Self = Self(2);
    /// Exception of the hardware.
    pub const EXCEPTION: Self = Self(3);
    /// INT n.
    pub const SOFTWARE_INTERRUPT: Self = Self(4);
    /// INT1.
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: Self = Self(5);
    /// INT3, INTO.
    pub const SOFTWARE_EXCEPTION: Self = Self(6);
    /// Something else.
    pub const OTHER: Self = Self(7);
}

/// The interruption-information fields, all in one layout.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptionInfo {
    /// The vector.
    pub vector: u8,
    /// An [`InterruptionKind`].
    #[bits(3)]
    pub kind_number: u8,
    /// There is an error code.
    pub error_code_valid: bool,
    /// Of an exit: its instruction was an IRET that unblocked NMIs.
    pub nmi_unblocked: bool,
    #[bits(18)]
    __: u32,
    /// There is an event at all.
    pub valid: bool,
}

impl InterruptionInfo {
    /// The kind.
    #[must_use]
    pub const fn kind(self) -> InterruptionKind {
        InterruptionKind(self.kind_number())
    }

    /// The field with the VM-exit instruction length, if it is defined for an
    /// exit by this exception, or one that interrupted the delivery of this
    /// event: of those that an instruction makes by itself, INT n, INT1, INT3
    /// and INTO (SDM: "Information for VM Exits Due to Instruction Execution").
    #[must_use]
    pub const fn length_field(self) -> Option<Field32> {
        if self.valid() && matches!(self.kind_number(), 4..=6) {
            Some(Field32::EXIT_INSTRUCTION_LENGTH)
        } else {
            None
        }
    }

    /// The event as an entry injects it: this word, the error code and the
    /// instruction's length, which the CPU ignores where they do not apply.
    #[must_use]
    pub const fn inject(event: Event) -> (Self, u32, u32) {
        let (kind, length) = match event.kind {
            EventKind::Interrupt => (InterruptionKind::INTERRUPT, 0),
            EventKind::Nmi => (InterruptionKind::NMI, 0),
            EventKind::Exception => (InterruptionKind::EXCEPTION, 0),
            EventKind::SoftwareInterrupt(length) => (InterruptionKind::SOFTWARE_INTERRUPT, length),
            EventKind::SoftwareException(length) => (InterruptionKind::SOFTWARE_EXCEPTION, length),
        };
        let (error_code_valid, error_code) = match event.error_code {
            Some(code) => (true, code),
            None => (false, 0),
        };
        let word = Self::new()
            .with_vector(event.vector)
            .with_kind_number(kind.0)
            .with_error_code_valid(error_code_valid)
            .with_valid(true);
        (word, error_code, length as u32)
    }
}

/// The event whose delivery the exit interrupted. `length` is the VM-exit
/// instruction length, which is defined where a software event was interrupted.
/// INT1 is not an event that can be asked for: RIP stands at it, so that it is
/// executed again.
#[must_use]
pub fn interrupted_event(info: InterruptionInfo, error_code: u32, length: u8) -> Option<Event> {
    if !info.valid() {
        return None;
    }
    let kind = match info.kind() {
        InterruptionKind::INTERRUPT => EventKind::Interrupt,
        InterruptionKind::NMI => EventKind::Nmi,
        InterruptionKind::EXCEPTION => EventKind::Exception,
        InterruptionKind::SOFTWARE_INTERRUPT => EventKind::SoftwareInterrupt(length),
        InterruptionKind::SOFTWARE_EXCEPTION => EventKind::SoftwareException(length),
        _ => return None,
    };
    let error_code = info.error_code_valid().then_some(error_code);
    Some(Event { vector: info.vector(), kind, error_code })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Exception;

    #[test]
    fn words_from_the_manual() {
        for (event, word, error, length) in [
            (Event::interrupt(0x31), 0x8000_0031, 0, 0),
            (Event::nmi(), 0x8000_0202, 0, 0),
            (Event::ud(), 0x8000_0306, 0, 0),
            (Event::exception_with_code(Exception::PF, 2), 0x8000_0b0e, 2, 0),
            (
                Event { vector: 0x80, kind: EventKind::SoftwareInterrupt(2), error_code: None },
                0x8000_0480,
                0,
                2,
            ),
            (
                Event { vector: 3, kind: EventKind::SoftwareException(1), error_code: None },
                0x8000_0603,
                0,
                1,
            ),
        ] {
            let injected = InterruptionInfo::inject(event);
            assert_eq!(injected, (InterruptionInfo::from_bits(word), error, length));
            let length = u8::try_from(length).unwrap();
            assert_eq!(interrupted_event(injected.0, error, length), Some(event));
        }
    }

    /// Software events alone have a length.
    #[test]
    fn instruction_lengths() {
        for kind in 0..8 {
            let info = InterruptionInfo::new().with_kind_number(kind);
            assert_eq!(info.length_field(), None, "{kind}");
            let defined = info.with_valid(true).length_field().is_some();
            assert_eq!(defined, [4, 5, 6].contains(&kind), "{kind}");
        }
    }

    #[test]
    fn nothing_to_deliver_again() {
        assert_eq!(interrupted_event(InterruptionInfo::from_bits(0x31), 0, 0), None);
        // INT1.
        assert_eq!(interrupted_event(InterruptionInfo::from_bits(0x8000_0501), 0, 1), None);
    }
}
