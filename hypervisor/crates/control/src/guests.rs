//! How the operator names a guest: by its name or its number.

use crate::refusal::{ErrorCode, Refusal};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Guests that an error lists at the most.
const LISTED: usize = 12;
/// Characters of a wrong name that an error repeats.
const REPEATED: usize = 64;

/// A guest as the operator named it. In JSON a number is its number; a text is
/// its name, or its number in digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestRef {
    /// Its number, from 1.
    Number(u32),
    /// Its name; where no guest has it, its number in digits.
    Text(String),
}

impl GuestRef {
    /// A guest as it was typed.
    #[must_use]
    pub fn typed(text: &str) -> Self {
        Self::Text(text.to_string())
    }

    /// The number of the guest that is meant.
    ///
    /// # Errors
    /// There is no such guest: [`ErrorCode::NoGuest`], naming the guests that there are.
    pub fn resolve(&self, guests: &[Known<'_>]) -> Result<u32, Refusal> {
        let by_number = |number: u32| guests.iter().find(|guest| guest.number == number);
        let found = match self {
            Self::Number(number) => by_number(*number),
            Self::Text(text) => guests
                .iter()
                .find(|guest| guest.name == text)
                .or_else(|| text.parse().ok().and_then(by_number)),
        };
        found.map(|guest| guest.number).ok_or_else(|| self.unknown(guests))
    }

    fn unknown(&self, guests: &[Known<'_>]) -> Refusal {
        let mut message = format!("there is no guest {self}; ");
        if guests.is_empty() {
            message.push_str("there are none");
        }
        for (index, guest) in guests.iter().take(LISTED).enumerate() {
            let before = if index == 0 { "there are " } else { ", " };
            message.push_str(&format!("{before}{} {}", guest.number, guest.name));
        }
        if let Some(more @ 1..) = guests.len().checked_sub(LISTED) {
            message.push_str(&format!(" and {more} more"));
        }
        Refusal::new(ErrorCode::NoGuest, message)
    }
}

impl fmt::Display for GuestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{}", Quoted(text)),
        }
    }
}

/// Text that somebody wrote, for a message: in quotation marks, on one line, and not too much of
/// it.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for character in self.0.chars().take(REPEATED) {
            write!(f, "{}", character.escape_debug())?;
        }
        f.write_str(if self.0.chars().nth(REPEATED).is_some() { "…\"" } else { "\"" })
    }
}

/// A guest that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    /// Its number, from 1; it keeps it until it is deleted.
    pub number: u32,
    /// Its name.
    pub name: &'a str,
}

impl Serialize for GuestRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u32(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for GuestRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = GuestRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a guest's name or number")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<GuestRef, E> {
                u32::try_from(value)
                    .map(GuestRef::Number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<GuestRef, E> {
                Ok(GuestRef::typed(value))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUESTS: [Known<'_>; 3] = [
        Known { number: 1, name: "debian" },
        Known { number: 3, name: "tiny" },
        Known { number: 4, name: "1" },
    ];

    #[test]
    fn by_name_or_number() {
        assert_eq!(GuestRef::typed("tiny").resolve(&GUESTS), Ok(3));
        assert_eq!(GuestRef::typed("3").resolve(&GUESTS), Ok(3));
        assert_eq!(GuestRef::Number(1).resolve(&GUESTS), Ok(1));
        // A guest's name goes before another's number.
        assert_eq!(GuestRef::typed("1").resolve(&GUESTS), Ok(4));
    }

    #[test]
    fn an_unknown_guest_is_told_who_there_is() {
        let words = |guest: GuestRef, guests| guest.resolve(guests).unwrap_err().message;
        assert_eq!(
            words(GuestRef::typed("deb\n"), &GUESTS),
            r#"there is no guest "deb\n"; there are 1 debian, 3 tiny, 4 1"#
        );
        assert_eq!(words(GuestRef::Number(2), &[]), "there is no guest 2; there are none");
        let many = [Known { number: 1, name: "a" }; 20];
        assert!(words(GuestRef::typed("b"), &many).ends_with(", 1 a and 8 more"));
        let long = "x".repeat(1000);
        assert!(words(GuestRef::Text(long), &[]).len() < 120);
    }

    #[test]
    fn in_json() {
        let read = |json| serde_json::from_str::<GuestRef>(json);
        assert_eq!(read("\"a\"").unwrap(), GuestRef::typed("a"));
        assert_eq!(read("7").unwrap(), GuestRef::Number(7));
        for bad in ["-1", "4294967296", "1.5", "null", "[]"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("a guest's name or number"), "{error}");
        }
        assert_eq!(serde_json::to_string(&GuestRef::Number(7)).unwrap(), "7");
        assert_eq!(serde_json::to_string(&GuestRef::typed("7")).unwrap(), "\"7\"");
    }
}
