//! Any saved machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::state::run(data));
