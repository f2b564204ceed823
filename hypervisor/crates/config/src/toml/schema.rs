//! The keys of a configuration, as serde reads them: types, and which keys there
//! are. Ranges and everything else are [`check`](super::check)'s.

use crate::plain::plain_settings;
use crate::{
    ApicAssist, CpuSettings, DebugStatus, GuestSettings, Hypercalls, LogLevel, OnHalt, OnReset,
    OnTripleFault, Populate, RestartPolicy, Signature, WhenEmpty,
};
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// A whole configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) host: Host,
    #[serde(default)]
    pub(super) guest: Vec<Spanned<Guest>>,
}

/// `[host]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Host {
    pub(super) log: Option<LogLevel>,
    pub(super) when_empty: WhenEmpty,
    pub(super) escape: Option<Spanned<String>>,
    pub(super) cpus: Option<Spanned<Number>>,
    pub(super) memory: Option<Spanned<String>>,
}

macro_rules! guest {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $words:tt;)*) => {
        /// `[[guest]]`
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct Guest {
            pub(super) name: Spanned<String>,
            pub(super) kernel: Spanned<String>,
            pub(super) uuid: Option<Spanned<String>>,
            pub(super) initrd: Option<Spanned<String>>,
            #[serde(default)]
            pub(super) modules: Vec<Module>,
            pub(super) cmdline: Option<Spanned<String>>,
            pub(super) memory: Option<Spanned<Memory>>,
            pub(super) vcpus: Option<Spanned<Number>>,
            pub(super) weight: Option<Spanned<Number>>,
            pub(super) cap: Option<Spanned<Number>>,
            pub(super) affinity: Option<Spanned<Vec<Spanned<Number>>>>,
            #[serde(default)]
            pub(super) back_off: BackOff,
            pub(super) watchdog: Option<Spanned<Time>>,
            #[serde(default)]
            pub(super) console: Console,
            pub(super) debug_exit: Option<bool>,
            $(#[serde(default)]
            pub(super) $name: $type,)*
        }

        impl Guest {
            /// Sets the plain settings.
            pub(super) fn set_plain(&self, settings: &mut GuestSettings) {
                $(settings.$name = self.$name;)*
            }
        }
    };
}
plain_settings!(guest);

/// One of `guest.modules`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Module {
    pub(super) file: Spanned<String>,
    pub(super) cmdline: Option<Spanned<String>>,
}

/// `guest.back_off`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BackOff {
    pub(super) first: Option<Spanned<Time>>,
    pub(super) most: Option<Spanned<Time>>,
    pub(super) healthy: Option<Spanned<Time>>,
}

/// `guest.console`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Console {
    pub(super) ring: Option<Spanned<String>>,
}

/// `guest.memory`: a size, or a table.
#[derive(Debug)]
pub(super) enum Memory {
    Size(String),
    Table(MemoryTable),
}

/// `guest.memory` as a table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MemoryTable {
    pub(super) size: Option<Spanned<String>>,
    pub(super) populate: Populate,
}

/// A whole number of whatever range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number(pub(super) i64);

/// A time: a number counts seconds, text has a unit.
#[derive(Debug)]
pub(super) enum Time {
    Seconds(i64),
    Text(String),
}

/// The parts of a message that stand between backquotes.
pub(super) fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number))
            }
        }
        deserializer.deserialize_i64(Whole)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds, or text such as \"500ms\" or \"2m\"")
            }
            fn visit_i64<E>(self, seconds: i64) -> Result<Time, E> {
                Ok(Time::Seconds(seconds))
            }
            fn visit_str<E>(self, text: &str) -> Result<Time, E> {
                Ok(Time::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Memory;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\", or a table with the keys size and populate")
            }
            fn visit_str<E>(self, text: &str) -> Result<Memory, E> {
                Ok(Memory::Size(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Memory, A::Error> {
                MemoryTable::deserialize(MapAccessDeserializer::new(map)).map(Memory::Table)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
