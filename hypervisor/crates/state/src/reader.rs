//! [`Sections`]: from bytes to states.

use crate::error::{SectionName, StateError};
use crate::format::{
    END, END_VERSION, FORMAT, HEADER, MAGIC, MOST_PAYLOAD, MOST_SECTIONS, is_name,
};
use crate::saved::{self, Saved};
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;

/// A section as it was found: whole, but not understood.
#[derive(Clone, Copy, Debug)]
struct Section<'a> {
    version: u16,
    payload: &'a [u8],
}

/// The sections of a saved machine that nobody has taken yet.
#[derive(Clone, Debug)]
pub struct Sections<'a> {
    left: BTreeMap<(&'a str, u32), Section<'a>>,
}

/// The rest of the bytes.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let end = self.at.checked_add(count);
        let found = end.and_then(|end| self.bytes.get(self.at..end));
        self.at = self.at.saturating_add(count);
        found.ok_or(StateError::Truncated(self.bytes.len()))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let found = self.take(N)?.first_chunk();
        found.copied().ok_or(StateError::Truncated(self.bytes.len()))
    }

    /// The next section, with a checksum that is right.
    fn section(&mut self) -> Result<((&'a str, u32), Section<'a>), StateError> {
        let start = self.at;
        let [length] = self.array()?;
        let name = self.take(length.into())?;
        let name = core::str::from_utf8(name).ok().filter(|name| is_name(name.as_bytes()));
        let name = name.ok_or(StateError::Head(start))?;
        let instance = u32::from_le_bytes(self.array()?);
        let version = u16::from_le_bytes(self.array()?);
        let length = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
        if length > MOST_PAYLOAD {
            let section = SectionName::new(name, instance);
            return Err(StateError::TooLong { section, length });
        }
        let payload = self.take(length)?;
        let crc = crc32fast::hash(self.bytes.get(start..self.at).unwrap_or_default());
        if u32::from_le_bytes(self.array()?) != crc {
            return Err(StateError::Damaged(SectionName::new(name, instance)));
        }
        Ok(((name, instance), Section { version, payload }))
    }
}

impl<'a> Sections<'a> {
    /// Reads the saved machine in `bytes`, all of them: each section is whole, and none is missing.
    ///
    /// # Errors
    /// [`StateError`] says what is wrong, where, and what to do about it.
    pub fn open(bytes: &'a [u8]) -> Result<Self, StateError> {
        let header = bytes.first_chunk::<HEADER>().ok_or(StateError::NotAMachine)?;
        let [magic @ .., low, high] = header;
        if *magic != MAGIC {
            return Err(StateError::NotAMachine);
        }
        let format = u16::from_le_bytes([*low, *high]);
        if format != FORMAT {
            return Err(StateError::Format(format));
        }
        let mut rest = Rest { bytes, at: HEADER };
        let mut left = BTreeMap::new();
        loop {
            let (key, section) = rest.section()?;
            if key == (END, 0) && section.version == END_VERSION {
                let counted = u32::try_from(left.len()).unwrap_or(u32::MAX).to_le_bytes();
                if section.payload != counted || rest.at != bytes.len() {
                    return Err(StateError::Count { found: left.len() });
                }
                return Ok(Self { left });
            }
            let name = || SectionName::new(key.0, key.1);
            if left.len() >= MOST_SECTIONS {
                return Err(StateError::TooMany(name()));
            }
            match left.entry(key) {
                Entry::Vacant(place) => _ = place.insert(section),
                Entry::Occupied(_) => return Err(StateError::Twice(name())),
            }
        }
    }

    /// Takes the state of instance `instance`.
    ///
    /// # Errors
    /// There is no such section, its version is none that is read, or its payload is not what its
    /// version says.
    pub fn take<T: Saved>(&mut self, instance: u32) -> Result<T, StateError> {
        const { saved::check::<T>() };
        let section = || SectionName::new(T::NAME, instance);
        let found = self.left.remove(&(T::NAME, instance));
        let Section { version, payload } = found.ok_or_else(|| StateError::Missing(section()))?;
        if !saved::reads::<T>(version) {
            let (oldest, newest) = (saved::oldest::<T>(), T::VERSION);
            return Err(StateError::Version { section: section(), found: version, oldest, newest });
        }
        let state = saved::read(version, payload);
        state.ok_or_else(|| StateError::Payload { section: section(), version })
    }

    /// Nothing more is wanted.
    ///
    /// # Errors
    /// Names a section that nobody has taken: what it holds would be lost.
    pub fn finish(self) -> Result<(), StateError> {
        match self.left.first_key_value() {
            None => Ok(()),
            Some(((name, instance), section)) => Err(StateError::Unknown {
                section: SectionName::new(name, *instance),
                version: section.version,
            }),
        }
    }
}
