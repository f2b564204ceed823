//! Little-endian fields at offsets, bounded.

/// An image, or a part of one.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    /// Size in bytes.
    pub(crate) const fn len(self) -> u64 {
        self.0.len() as u64
    }

    /// `size` bytes at `offset`, if they are there.
    pub(crate) fn get(self, offset: u64, size: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = usize::try_from(offset.checked_add(size)?).ok()?;
        self.0.get(start..end)
    }

    fn array<const N: usize>(self, offset: u64) -> Option<[u8; N]> {
        self.get(offset, N as u64)?.try_into().ok()
    }

    pub(crate) fn u8(self, offset: u64) -> Option<u8> {
        self.array(offset).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(self, offset: u64) -> Option<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(self, offset: u64) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(self, offset: u64) -> Option<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

/// Overwrites part of `bytes` with `value`, as far as it reaches.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}
