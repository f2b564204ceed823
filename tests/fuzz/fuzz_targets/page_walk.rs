//! Any page tables of a guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::page_walk::run(data));
