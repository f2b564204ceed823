//! [`Writer`]: from states to bytes.

use crate::error::{SectionName, StateError};
use crate::format::{END, END_VERSION, FORMAT, MAGIC, MOST_PAYLOAD, MOST_SECTIONS, is_name};
use crate::saved::{self, Saved};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// The sections of a machine, as they are written.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    written: BTreeSet<(&'static str, u32)>,
    /// The first failure: all that comes after it is lost.
    failed: Option<StateError>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A machine without sections.
    #[must_use]
    pub fn new() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        Self { bytes, written: BTreeSet::new(), failed: None }
    }

    /// Appends the section of `state`, instance `instance` of those with its name. What goes wrong
    /// is told by [`finish`](Self::finish).
    pub fn put<T: Saved>(&mut self, instance: u32, state: &T) {
        const { saved::check::<T>() };
        if self.failed.is_none() {
            self.failed = self.try_put(instance, state).err();
        }
    }

    fn try_put<T: Saved>(&mut self, instance: u32, state: &T) -> Result<(), StateError> {
        let section = || SectionName::new(T::NAME, instance);
        let unfit = |why| StateError::refused(T::NAME, instance, why);
        if !is_name(T::NAME.as_bytes()) || T::NAME == END {
            return Err(unfit("a name has small letters, digits and hyphens"));
        }
        if self.written.len() >= MOST_SECTIONS {
            return Err(StateError::TooMany(section()));
        }
        let payload = postcard::to_extend(state, Vec::new())
            .map_err(|_| unfit("the state can't be written down"))?;
        if payload.len() > MOST_PAYLOAD {
            return Err(StateError::TooLong { section: section(), length: payload.len() });
        }
        if !self.written.insert((T::NAME, instance)) {
            return Err(StateError::Twice(section()));
        }
        append(&mut self.bytes, T::NAME, instance, T::VERSION, &payload);
        Ok(())
    }

    /// The saved machine.
    ///
    /// # Errors
    /// The first section that could not be written, and why.
    pub fn finish(mut self) -> Result<Vec<u8>, StateError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let count = u32::try_from(self.written.len()).unwrap_or(u32::MAX);
        append(&mut self.bytes, END, 0, END_VERSION, &count.to_le_bytes());
        Ok(self.bytes)
    }
}

/// Appends a section, whose name and payload are as short as they may be.
pub(crate) fn append(bytes: &mut Vec<u8>, name: &str, instance: u32, version: u16, payload: &[u8]) {
    let start = bytes.len();
    bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&instance.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(payload);
    let crc = crc32fast::hash(bytes.get(start..).unwrap_or_default());
    bytes.extend_from_slice(&crc.to_le_bytes());
}
