//! Any hypercall.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::hypercalls::run(data));
