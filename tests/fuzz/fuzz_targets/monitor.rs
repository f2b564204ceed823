//! Anything that is typed at the monitor.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::monitor::run(data));
