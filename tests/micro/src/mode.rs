//! The modes of the CPU that programs run in.

use crate::random::Random;

/// A mode and privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode, ring 0.
    Long0,
    /// 64-bit mode, ring 3.
    Long3,
    /// Compatibility mode with 32-bit code, ring 0.
    Compat0,
    /// Compatibility mode with 32-bit code, ring 3.
    Compat3,
    /// Compatibility mode with 16-bit code, ring 0.
    Short0,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Long0, Self::Long3, Self::Compat0, Self::Compat3, Self::Short0];

    /// One of them; 64-bit mode more often.
    pub(crate) fn random(random: &mut Random) -> Self {
        match random.byte(10) {
            0..=3 => Self::Long0,
            4 | 5 => Self::Long3,
            6 | 7 => Self::Compat0,
            8 => Self::Compat3,
            _ => Self::Short0,
        }
    }

    /// Operand size of its code: 16, 32, or 64 for 64-bit mode.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Long0 | Self::Long3 => 64,
            Self::Compat0 | Self::Compat3 => 32,
            Self::Short0 => 16,
        }
    }

    /// Whether it is ring 0.
    #[must_use]
    pub const fn is_supervisor(self) -> bool {
        !matches!(self, Self::Long3 | Self::Compat3)
    }

    /// A letter for reports.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Long0 => 'L',
            Self::Long3 => 'l',
            Self::Compat0 => 'C',
            Self::Compat3 => 'c',
            Self::Short0 => 'S',
        }
    }
}
