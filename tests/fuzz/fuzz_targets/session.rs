//! A session on the control line.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::session::run(data));
