//! Any access to a guest's devices.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::board::run(data));
