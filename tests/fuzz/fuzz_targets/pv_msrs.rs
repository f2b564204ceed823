//! Anything in KVM's paravirtual registers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::pv_msrs::run(data));
