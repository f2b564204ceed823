//! Contents of the ramdisk: the guests, their settings and their files.
//!
//! A bundle is a tar archive (POSIX: "ustar Interchange Format"). Its first
//! member, `manifest.json`, is a [`Manifest`]; the second, `manifest.crc32`,
//! guards it; the others are the files that the manifest lists with their
//! sizes and checksums. [`build`] writes a bundle on the developer's machine
//! and [`Bundle::open`] reads it in the image; both apply the same rules, so a
//! bundle that can be written can be read. Everything read here is untrusted:
//! a damaged bundle is a [`BundleError`] that names the place and the cure. Fuzz
//! target: `bundle`.
//!
//! `docs/bundle.md` describes the format.

mod error;
mod manifest;
mod tar;
#[cfg(test)]
mod tests;

pub use error::{BundleError, TarFault};
pub use manifest::{FileEntry, Manifest};

use crate::{GuestSettings, HostSettings};
use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The version of the format that this code writes.
pub const VERSION: u32 = 2;
/// The oldest version that this code reads: keys that a manifest of it lacks have defaults.
pub const OLDEST_VERSION: u32 = 1;
/// Name of the archive's first member.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Name of the second member: the manifest's CRC-32, eight hexadecimal digits.
pub const MANIFEST_CRC_NAME: &str = "manifest.crc32";

/// Bytes of a file whose checksum is computed in one piece: less than a millisecond.
const PIECE: usize = 512 << 10;

/// A bundle that was read and found whole.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    manifest: Manifest,
    files: BTreeMap<&'a str, &'a [u8]>,
}

impl<'a> Bundle<'a> {
    /// Reads the bundle in `data`, the whole ramdisk. Bytes behind the archive's end marker are
    /// ignored: a boot loader may pad.
    ///
    /// # Errors
    /// [`BundleError`] says what is wrong, where, and what to do about it.
    pub fn open(data: &'a [u8]) -> Result<Self, BundleError> {
        Self::open_piecewise(data, || ())
    }

    /// Does the same as [`Bundle::open`], and calls `other` now and then: the checksums of large
    /// files take long.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn open_piecewise(data: &'a [u8], mut other: impl FnMut()) -> Result<Self, BundleError> {
        let mut members = tar::Members::new(data);
        let json = expect_member(&mut members, MANIFEST_NAME)?;
        let crc = expect_member(&mut members, MANIFEST_CRC_NAME)?;
        check_manifest_crc(json, crc)?;
        let manifest = Manifest::from_json(json)?;
        manifest.check()?;

        let mut wanted: BTreeMap<&str, &FileEntry> =
            manifest.files.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        let mut files = BTreeMap::new();
        while let Some(member) = members.next()? {
            let Some(entry) = wanted.remove(member.name) else {
                return Err(BundleError::UnexpectedMember {
                    name: member.name.to_owned(),
                    offset: member.offset,
                });
            };
            let got = member.data.len() as u64;
            if got != entry.size {
                return Err(BundleError::FileSize {
                    name: entry.name.clone(),
                    wanted: entry.size,
                    got,
                });
            }
            let mut hasher = crc32fast::Hasher::new();
            for piece in member.data.chunks(PIECE) {
                hasher.update(piece);
                other();
            }
            let got = hasher.finalize();
            if got != entry.crc32 {
                return Err(BundleError::FileCrc {
                    name: entry.name.clone(),
                    wanted: entry.crc32,
                    got,
                });
            }
            files.insert(member.name, member.data);
        }
        if let Some((name, _)) = wanted.first_key_value() {
            return Err(BundleError::MissingMember { name: (*name).to_owned() });
        }
        Ok(Self { manifest, files })
    }

    /// The settings.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The contents of the file `name`, if the bundle has it. Every file that
    /// a guest's settings name is there.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        self.files.get(name).copied()
    }
}

/// Writes a bundle: the settings, and `files` as pairs of name and contents,
/// whose sizes and checksums it computes.
///
/// # Errors
/// [`BundleError`] where [`Bundle::open`] would refuse the result, and where a
/// name does not fit into a tar header (at most 100 bytes).
pub fn build(
    host: HostSettings,
    guests: Vec<GuestSettings>,
    files: &[(String, Vec<u8>)],
) -> Result<Vec<u8>, BundleError> {
    let entries = files
        .iter()
        .map(|(name, data)| FileEntry {
            name: name.clone(),
            size: data.len() as u64,
            crc32: crc32fast::hash(data),
        })
        .collect();
    let manifest = Manifest { version: VERSION, host, guests, files: entries };
    manifest.check()?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(|error| BundleError::Json {
        line: 0,
        column: 0,
        message: error.to_string(),
    })?;

    let mut archive = Vec::new();
    tar::append(&mut archive, MANIFEST_NAME, &json)?;
    tar::append(
        &mut archive,
        MANIFEST_CRC_NAME,
        format!("{:08x}\n", crc32fast::hash(&json)).as_bytes(),
    )?;
    for (name, data) in files {
        tar::append(&mut archive, name, data)?;
    }
    tar::finish(&mut archive);
    Ok(archive)
}

fn expect_member<'a>(
    members: &mut tar::Members<'a>,
    name: &'static str,
) -> Result<&'a [u8], BundleError> {
    match members.next()? {
        Some(member) if member.name == name => Ok(member.data),
        Some(member) => Err(BundleError::WrongMember { wanted: name, got: member.name.to_owned() }),
        None => Err(BundleError::MissingMember { name: name.to_owned() }),
    }
}

fn check_manifest_crc(json: &[u8], digits: &[u8]) -> Result<(), BundleError> {
    let wanted = core::str::from_utf8(digits)
        .ok()
        .map(str::trim_ascii_end)
        .filter(|text| text.len() == 8)
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .ok_or(BundleError::ManifestCrcFormat)?;
    let got = crc32fast::hash(json);
    if got == wanted {
        Ok(())
    } else {
        Err(BundleError::FileCrc { name: MANIFEST_NAME.to_owned(), wanted, got })
    }
}
