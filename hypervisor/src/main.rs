//! Entry point and panic handler of the image.
#![no_std]
#![no_main]

use bootloader_api::BootInfo;
use core::panic::PanicInfo;

bootloader_api::entry_point!(main, config = &hypervisor::boot::CONFIG);

fn main(info: &'static mut BootInfo) -> ! {
    hypervisor::boot::start(info)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hypervisor::journal::panicked(info)
}
