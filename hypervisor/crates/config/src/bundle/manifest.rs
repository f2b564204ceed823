//! The manifest: what the developer's machine tells the image.

use crate::bundle::{BundleError, MANIFEST_CRC_NAME, MANIFEST_NAME, OLDEST_VERSION, VERSION};
use crate::{GuestFault, GuestSettings, HostSettings};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's version: [`OLDEST_VERSION`] to [`VERSION`].
    pub version: u32,
    /// Settings of the hypervisor.
    pub host: HostSettings,
    /// The guests, in the order in which they are started.
    pub guests: Vec<GuestSettings>,
    /// The archive's other members.
    pub files: Vec<FileEntry>,
}

/// A file in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name, unique, at most 100 bytes.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32 (IEEE 802.3) of its contents.
    pub crc32: u32,
}

/// The part of a manifest that can be read whatever its version is.
#[derive(Deserialize)]
struct AnyManifest {
    version: u32,
}

impl Manifest {
    /// Reads the JSON text of a manifest.
    ///
    /// # Errors
    /// [`BundleError::Json`] with line and column, [`BundleError::Version`].
    pub fn from_json(json: &[u8]) -> Result<Self, BundleError> {
        // The version goes first: a newer manifest should be refused for what
        // it is, not for the first key that is new in it.
        let any: AnyManifest = parse(json)?;
        if !(OLDEST_VERSION..=VERSION).contains(&any.version) {
            return Err(BundleError::Version { got: any.version });
        }
        parse(json)
    }

    /// Checks what JSON can't say: ranges, unique names, files that exist.
    ///
    /// # Errors
    /// [`BundleError`] names the guest or file.
    pub fn check(&self) -> Result<(), BundleError> {
        if !(OLDEST_VERSION..=VERSION).contains(&self.version) {
            return Err(BundleError::Version { got: self.version });
        }
        let mut files = BTreeSet::new();
        for (index, FileEntry { name, .. }) in self.files.iter().enumerate() {
            let reserved = name == MANIFEST_NAME || name == MANIFEST_CRC_NAME;
            if name.is_empty() || name.len() > 100 || name.contains('\0') || reserved {
                return Err(BundleError::FileName { index, name: name.clone() });
            }
            if !files.insert(name.as_str()) {
                return Err(BundleError::DuplicateFile { index, name: name.clone() });
            }
        }
        if self.guests.is_empty() {
            return Err(BundleError::NoGuests);
        }
        let mut names = BTreeMap::new();
        let mut uuids = BTreeMap::new();
        for (index, guest) in self.guests.iter().enumerate() {
            guest
                .check(&files)
                .and_then(|()| match names.insert(guest.name.as_str(), index) {
                    Some(first) => Err(GuestFault::DuplicateName(first)),
                    None => Ok(()),
                })
                .and_then(|()| match uuids.insert(guest.machine_uuid(), index) {
                    Some(first) => Err(GuestFault::DuplicateUuid(first)),
                    None => Ok(()),
                })
                .map_err(|fault| BundleError::Guest { index, name: guest.name.clone(), fault })?;
        }
        Ok(())
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, BundleError> {
    serde_json::from_slice(json).map_err(|error| BundleError::Json {
        line: error.line(),
        column: error.column(),
        message: error.to_string(),
    })
}
