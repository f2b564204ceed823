//! The hypervisor's trace of this guest's exits: it stands behind two ports.

use guests::io::{inl, outl};

const CONTROL: u16 = 0xf8;
const WORDS: u16 = 0xfc;

/// Exits are written down from now on.
pub(crate) fn start() {
    outl(CONTROL, 1);
}

/// No longer.
pub(crate) fn stop() {
    outl(CONTROL, 0);
}

/// The digest of all of them.
pub(crate) fn digest() -> u64 {
    outl(WORDS, 0);
    let low = inl(WORDS);
    u64::from(inl(WORDS)) << 32 | u64::from(low)
}

/// Calls `visit` with each of those that were kept one by one.
pub(crate) fn each(mut visit: impl FnMut([u32; 4])) {
    let count = inl(CONTROL);
    outl(WORDS, 2);
    for _ in 0..count.min(256) {
        visit(core::array::from_fn(|_| inl(WORDS)));
    }
}
