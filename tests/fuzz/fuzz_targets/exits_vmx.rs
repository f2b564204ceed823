//! Any exit of VT-x.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::exits_vmx::run(data));
