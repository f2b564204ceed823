//! Any kernel image.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::loaders::run(data));
