//! Any turn of a vCPU.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::turn::run(data));
