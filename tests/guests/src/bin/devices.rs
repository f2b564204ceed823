//! A test guest.
#![no_std]
#![no_main]
guests::entry!(main);
fn main() -> ! {
    guests::harness::Tests::new().finish()
}
