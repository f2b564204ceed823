//! [`StateError`]: why a machine can't be saved or restored, and what to do about it.

use crate::format::FORMAT;
use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

/// Name and instance of a section, for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionName {
    /// The name: small letters, digits and hyphens.
    pub name: String,
    /// The instance among those of that name.
    pub instance: u32,
}

impl SectionName {
    pub(crate) fn new(name: &str, instance: u32) -> Self {
        Self { name: name.to_owned(), instance }
    }
}

impl fmt::Display for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.name, self.instance)
    }
}

/// Why a machine can't be saved or restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The bytes do not begin as a saved machine does.
    #[error("this is no saved machine: give the file that a machine was saved to")]
    NotAMachine,
    /// The format around the sections is another one.
    #[error(
        "the saved machine has format {0}, and this Steward reads format {FORMAT}: restore it \
         with the Steward that saved it, or save it anew"
    )]
    Format(u16),
    /// The bytes end too early.
    #[error("the saved machine ends at byte {0}, too early: copy it again, whole")]
    Truncated(usize),
    /// The head of a section can't be.
    #[error("the saved machine is damaged at byte {0}, where a section begins: copy it again")]
    Head(usize),
    /// A section's checksum is wrong.
    #[error("section {0} of the saved machine is damaged: copy it again")]
    Damaged(SectionName),
    /// A section is there twice.
    #[error("section {0} of the saved machine is there twice: save it anew")]
    Twice(SectionName),
    /// Sections are missing, or something follows the last one.
    #[error(
        "the saved machine is not whole: it has {found} sections before its end: copy it again"
    )]
    Count {
        /// How many there are.
        found: usize,
    },
    /// A section is too large.
    #[error("section {section} has {length} bytes, more than may be: save a smaller machine")]
    TooLong {
        /// The section.
        section: SectionName,
        /// Bytes of its payload.
        length: usize,
    },
    /// There are more sections than may be.
    #[error("there are too many sections, with {0} the first too many: save a smaller machine")]
    TooMany(SectionName),
    /// A section that the machine needs is not there.
    #[error(
        "section {0} is missing: the saved machine lacks that part, so restore it into one with \
         the same settings, by the Steward that saved it"
    )]
    Missing(SectionName),
    /// Nothing in the machine has this section.
    #[error(
        "section {section}, version {version}, is unknown here: restore it into a machine with \
         the same settings, by the Steward that saved it"
    )]
    Unknown {
        /// The section.
        section: SectionName,
        /// The version that it has.
        version: u16,
    },
    /// A section's version is not one that is read.
    #[error(
        "section {section} has version {found}, and this Steward reads {oldest} to {newest}: \
         restore it with the Steward that saved it"
    )]
    Version {
        /// The section.
        section: SectionName,
        /// The version that it has.
        found: u16,
        /// The oldest version that is read.
        oldest: u16,
        /// The newest version that is read.
        newest: u16,
    },
    /// A section's payload is not what its version says.
    #[error(
        "section {section}, version {version}, is not made as that version is: save the machine \
         anew"
    )]
    Payload {
        /// The section.
        section: SectionName,
        /// The version that it has.
        version: u16,
    },
    /// A section was read, and holds what can't be.
    #[error("section {section} holds what can't be ({why}): save the machine anew")]
    Refused {
        /// The section.
        section: SectionName,
        /// The impossible part of it.
        why: &'static str,
    },
    /// The machine that it is to be restored into does not offer what the guest has seen.
    #[error("this machine can't take the guest: {0}")]
    Lacks(String),
}

impl StateError {
    /// The state of section `name` can't be, as `why` says.
    #[must_use]
    pub fn refused(name: &str, instance: u32, why: &'static str) -> Self {
        Self::Refused { section: SectionName::new(name, instance), why }
    }
}
