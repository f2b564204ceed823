//! A machine that is saved in the middle of a script, and one of which a part is arbitrary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::restore::run(data));
