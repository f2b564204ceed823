//! Numbers of the format, which `docs/state.md` describes.

/// The first bytes of a saved machine.
pub(crate) const MAGIC: [u8; 8] = *b"STEWARDM";
/// The version of the format around the sections.
pub const FORMAT: u16 = 1;
/// Bytes before the first section: [`MAGIC`] and [`FORMAT`].
pub(crate) const HEADER: usize = 10;
/// Characters of a section's name at the most.
pub const MOST_NAME: usize = 32;
/// Bytes of a section's payload at the most.
pub const MOST_PAYLOAD: usize = 1 << 20;
/// Sections of a machine at the most.
pub const MOST_SECTIONS: usize = 4096;
/// Name of the last section, which has the number of those before it.
pub(crate) const END: &str = "end";
/// Version of the last section.
pub(crate) const END_VERSION: u16 = 1;

/// Whether a section may have this name: small letters, digits and hyphens.
pub(crate) fn is_name(name: &[u8]) -> bool {
    let is_fit = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-';
    (1..=MOST_NAME).contains(&name.len()) && name.iter().all(is_fit)
}
