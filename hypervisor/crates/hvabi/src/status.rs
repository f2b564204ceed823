//! [`Status`]: what a failed call leaves in RAX.

use core::fmt;

/// Why a call failed. RAX holds the negated code: as a signed number of 64
/// bits in 64-bit mode, of 32 bits (upper half clear) elsewhere. The codes are
/// those that KVM's calls use, so that one reading serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Status {
    /// The caller runs in user mode (CPL above 0).
    NotPermitted = -1,
    /// A buffer is longer than the call takes.
    TooLong = -7,
    /// A buffer lies, even in part, outside of the guest's RAM.
    Fault = -14,
    /// An argument has a value that the call does not know.
    InvalidArgument = -22,
    /// The call is known, but this machine can't serve it.
    NotSupported = -95,
    /// There is no such call.
    UnknownCall = -1000,
}

impl Status {
    /// Every status.
    const ALL: [Self; 6] = [
        Self::NotPermitted,
        Self::TooLong,
        Self::Fault,
        Self::InvalidArgument,
        Self::NotSupported,
        Self::UnknownCall,
    ];

    /// The negative number that stands for this status.
    const fn code(self) -> i16 {
        self as i16
    }

    /// The value of RAX that says so to a caller in 64-bit mode. Elsewhere EAX
    /// is the low half of it.
    #[must_use]
    pub const fn to_rax(self) -> u64 {
        (self.code() as i64).cast_unsigned()
    }

    /// The status with the number `code`, if there is one.
    fn from_code(code: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|status| i64::from(status.code()) == code)
    }

    /// Reads the RAX that a call returned to a caller in 64-bit mode.
    ///
    /// # Errors
    /// The status of a failed call, `None` where its number is not known here
    /// (an interface newer than the caller).
    pub fn from_rax(rax: u64) -> Result<(), Option<Self>> {
        match rax.cast_signed() {
            0.. => Ok(()),
            code => Err(Self::from_code(code)),
        }
    }

    /// Reads the EAX that a call returned to a caller outside of 64-bit mode.
    ///
    /// # Errors
    /// Those of [`Status::from_rax`].
    pub fn from_eax(eax: u32) -> Result<(), Option<Self>> {
        match eax.cast_signed() {
            0.. => Ok(()),
            code => Err(Self::from_code(i64::from(code))),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "not permitted from user mode",
            Self::TooLong => "buffer too long",
            Self::Fault => "buffer outside of RAM",
            Self::InvalidArgument => "invalid argument",
            Self::NotSupported => "not supported on this machine",
            Self::UnknownCall => "unknown call",
        })
    }
}

impl core::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_kvm() {
        assert_eq!(Status::NotPermitted.to_rax(), u64::MAX);
        assert_eq!(Status::UnknownCall.code(), -1000);
        assert_eq!(Status::UnknownCall.to_rax(), 0xffff_ffff_ffff_fc18);
    }

    #[test]
    fn status_survives_both_register_widths() {
        for status in Status::ALL {
            assert_eq!(Status::from_rax(status.to_rax()), Err(Some(status)));
            let eax = i32::from(status.code()).cast_unsigned();
            assert_eq!(Status::from_eax(eax), Err(Some(status)));
        }
        assert_eq!(Status::from_rax(7), Ok(()));
        assert_eq!(Status::from_eax(0x7fff_ffff), Ok(()));
        assert_eq!(Status::from_rax((-5i64).cast_unsigned()), Err(None));
    }
}
