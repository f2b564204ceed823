//! Firmware's tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steward_fuzz::acpi::run(data));
