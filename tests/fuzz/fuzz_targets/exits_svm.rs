//! Any exit of AMD-V.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::exits_svm::run(data));
