//! Values that are written as text: a [`Uuid`], an [`EscapeKey`], [`Hypercalls`].

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use hvabi::{CallName, CallSet};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A UUID, its bytes in the order of the text form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Reads the text form: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12
    /// with hyphens between them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut groups = text.split('-');
        for length in [8, 4, 4, 4, 12] {
            let group = groups.next()?;
            if group.len() != length || !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
        }
        if groups.next().is_some() {
            return None;
        }
        let digits: String = text.split('-').collect();
        Some(Self(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes()))
    }

    /// The UUID that a guest of this name has if its settings give none: the same each time (RFC
    /// 9562, "UUID Version 8").
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        // FNV-1a, 64 bits, with two offsets.
        let hash = |offset: u64| {
            name.bytes()
                .fold(offset, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        };
        let high = hash(0xcbf2_9ce4_8422_2325) & !0xf000 | 0x8000;
        let low = hash(0x9e37_79b9_7f4a_7c15) & !(3 << 62) | 2 << 62;
        Self((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let hyphen = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Uuid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| {
            format!(
                "\"{text}\" is no UUID: 32 hexadecimal digits as in \
                 01234567-89ab-cdef-0123-456789abcdef"
            )
        })
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> Self {
        uuid.to_string()
    }
}

/// The key that begins what the operator tells Steward from a guest's console.
/// Its text form is `Ctrl-]`, `Ctrl-A` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EscapeKey(u8);

impl EscapeKey {
    /// `Ctrl-]`.
    pub const DEFAULT: Self = Self(0x1d);

    /// The key that sends `byte`: 1 to 31, but for backspace, tab, line feed,
    /// carriage return and Escape, which have keys of their own.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x08 | 0x09 | 0x0a | 0x0d | 0x1b => None,
            1..=31 => Some(Self(byte)),
            _ => None,
        }
    }

    /// Reads the text form; the letter may be small.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let [prefix @ .., key] = text.as_bytes() else { return None };
        let upper = key.to_ascii_uppercase();
        if !prefix.eq_ignore_ascii_case(b"ctrl-") || !(b'@'..=b'_').contains(&upper) {
            return None;
        }
        Self::from_byte(upper & 0x1f)
    }

    /// The byte that the key sends.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self.0
    }
}

impl Default for EscapeKey {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ctrl-{}", char::from(self.0 | 0x40))
    }
}

impl TryFrom<String> for EscapeKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| {
            format!(
                "\"{text}\" can't be the escape key: Ctrl-A to Ctrl-Z but for H, I, J and M, or \
                 one of Ctrl-\\ Ctrl-] Ctrl-^ Ctrl-_"
            )
        })
    }
}

impl From<EscapeKey> for String {
    fn from(key: EscapeKey) -> Self {
        key.to_string()
    }
}

/// The hypercalls that a guest may make: a list of names ([`CallName`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hypercalls(pub CallSet);

impl Default for Hypercalls {
    /// All.
    fn default() -> Self {
        Self(CallSet::ALL)
    }
}

impl Serialize for Hypercalls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(CallName::as_str))
    }
}

impl<'de> Deserialize<'de> for Hypercalls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<Name>::deserialize(deserializer)?;
        Ok(Self(names.into_iter().map(|Name(call)| call).collect()))
    }
}

/// One name: a type of its own, so that JSON's errors know its place in the list.
struct Name(CallName);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        CallName::from_name(&name)
            .map(Self)
            .ok_or_else(|| D::Error::unknown_variant(&name, &CallName::NAMES))
    }
}
