//! [`Saved`]: the contents of a section.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A function that makes a state of a payload of the version before, if it is one.
pub type ReadPrevious<T> = fn(&[u8]) -> Option<T>;

/// A state that has a section of its own.
///
/// The layout is that of `postcard`: the order and the types of its fields. Whatever changes them
/// makes the version grow, and gives [`PREVIOUS`](Self::PREVIOUS) a function that reads what was
/// before.
pub trait Saved: Serialize + DeserializeOwned {
    /// Name of the section: small letters, digits and hyphens.
    const NAME: &'static str;
    /// Version of the layout, from 1 on.
    const VERSION: u16;
    /// The function that makes a state of a payload of the version before; `None` if that can't
    /// be. A version above 1 without one does not compile.
    const PREVIOUS: Option<ReadPrevious<Self>> = None;
}

/// The value that `payload` holds, and nothing else behind it.
#[must_use]
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// The state that a payload of `version` holds; `None` where it holds none, or nothing reads that
/// version.
pub(crate) fn read<T: Saved>(version: u16, payload: &[u8]) -> Option<T> {
    if version == T::VERSION {
        decode(payload)
    } else {
        T::PREVIOUS.filter(|_| reads::<T>(version)).and_then(|previous| previous(payload))
    }
}

/// Whether sections of `version` are read.
pub(crate) fn reads<T: Saved>(version: u16) -> bool {
    (oldest::<T>()..=T::VERSION).contains(&version)
}

/// The oldest version that is read.
pub(crate) fn oldest<T: Saved>() -> u16 {
    T::VERSION.saturating_sub(T::PREVIOUS.is_some().into())
}

/// Checks, when the crate that names `T` is compiled, that `T` has a name and a version that can
/// be, and reads the version before.
pub(crate) const fn check<T: Saved>() {
    assert!(T::VERSION >= 1, "versions begin with 1");
    assert!(T::VERSION == 1 || T::PREVIOUS.is_some(), "nothing reads the version before");
    assert!(!T::NAME.is_empty() && T::NAME.len() <= crate::format::MOST_NAME, "a name is short");
}
