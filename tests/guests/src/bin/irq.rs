//! x
#![no_std]
#![no_main]
guests::entry!(main);
fn main() -> ! {
    guests::println!("hi {}", guests::info::command_line());
    guests::harness::Tests::new().finish()
}
