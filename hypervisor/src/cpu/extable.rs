//! The exception table: instructions that may fault on purpose, and where to
//! go on when they do.
//!
//! Each entry is a pair of 32-bit distances from their own places: to the
//! instruction and to its fix-up. The linker gathers them in the section
//! `extable` and provides the symbols around it.

/// One entry.
#[repr(C)]
struct Entry {
    instruction: i32,
    fixup: i32,
}

unsafe extern "C" {
    static __start_extable: Entry;
    static __stop_extable: Entry;
}

/// The address to go on at after a fault at `rip`, if that was foreseen.
#[must_use]
pub fn fixup(rip: u64) -> Option<u64> {
    let start = &raw const __start_extable;
    let stop = &raw const __stop_extable;
    let bytes = stop as usize - start as usize;
    let count = bytes / size_of::<Entry>();
    // SAFETY: the linker lays the section out as an array of entries between
    // the two symbols, all in read-only memory of the image.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    table.iter().find_map(|entry| {
        let at = |field: &i32| {
            (core::ptr::from_ref(field) as u64).wrapping_add_signed(i64::from(*field))
        };
        (at(&entry.instruction) == rip).then(|| at(&entry.fixup))
    })
}
