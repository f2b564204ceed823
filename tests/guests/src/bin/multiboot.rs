//! A Multiboot 1 kernel: the header with address fields (so that the 64-bit
//! image loads as it lies in the file), then the checks of what the loader
//! must hand over. `llvm-objcopy -O elf32-i386` makes the same a flat ELF32.
//! A module whose command line begins with `module` is expected to start with
//! the text `module contents`, when `modules=N` says that there are any.
#![no_std]
#![no_main]

use core::arch::global_asm;
use guests::harness::{Outcome, Tests};
use guests::{check, check_eq, info, skip};

guests::entry!(main);

global_asm!(
    r#"
    .section .multiboot, "a", @progbits
    .balign 4
multiboot_header:
    .long 0x1badb002
    .long 0x00010003            # page-aligned modules, memory map, addresses below
    .long -(0x1badb002 + 0x00010003)
    .long multiboot_header
    .long image_start
    .long image_file_end
    .long image_end
    .long start32
"#,
    options(att_syntax)
);

fn main() -> ! {
    let mut tests = Tests::new();
    tests.case("magic", magic);
    tests.case("memory_sizes", memory_sizes);
    tests.case("command_line", command_line);
    tests.case("memory_map", memory_map);
    tests.case("modules", modules);
    tests.case("image_is_whole", image_is_whole);
    tests.finish()
}

fn word(offset: u64) -> u32 {
    info::peek(u64::from(guests::boot::registers().1) + offset)
}

fn magic() -> Outcome {
    check_eq!(guests::boot::registers().0, info::MULTIBOOT_MAGIC, "EAX at entry");
    check!(
        word(0) & 0x45 == 0x45,
        "flags {:#x}: memory, command line and map are asked for",
        word(0)
    );
    Ok(())
}

fn memory_sizes() -> Outcome {
    check!((256..=640).contains(&word(4)), "lower memory {} KiB", word(4));
    check!(word(8) >= 1024, "upper memory {} KiB", word(8));
    Ok(())
}

fn command_line() -> Outcome {
    let line = info::command_line();
    if info::flag("second") {
        // Kernels of the kind drop the first word: the loader must put one there.
        check_eq!(line, "guest0/kernel first second", "the command line");
    }
    if !info::flag("hello") {
        skip!("the command line is \"{line}\", without the word `hello`");
    }
    check_eq!(info::option("answer"), Some("42"), "answer= in \"{line}\"");
    Ok(())
}

fn memory_map() -> Outcome {
    let mut ram = 0;
    let mut covers_image = false;
    let count = info::memory_map(|range| {
        if range.kind == 1 {
            ram += range.size;
            covers_image |= range.start <= 0x20_0000
                && range.start + range.size >= guests::boot::image_end_address();
        }
    });
    check!(count >= 2, "{count} ranges");
    check!(covers_image, "the image lies in no RAM");
    let upper = u64::from(word(8)) << 10;
    check!(ram >= upper, "{ram:#x} bytes of RAM, upper memory {upper:#x}");
    Ok(())
}

fn modules() -> Outcome {
    if info::flag("second") {
        let line = |index: u64| {
            info::c_string(info::peek::<u32>(u64::from(word(24)) + index * 16 + 8).into())
        };
        check_eq!(word(20), 2, "modules");
        check_eq!(line(0), "guest0/module0 alpha", "the first module's command line");
        check_eq!(line(1), "guest0/module1 beta gamma", "the second module's command line");
    }
    let Some(expected) = info::number("modules") else { skip!("no modules=N on the command line") };
    check!(word(0) & 8 != 0, "flags {:#x}: no modules", word(0));
    check_eq!(u64::from(word(20)), expected, "modules");
    for index in 0..word(20) {
        let Some((start, size)) = info::module(index) else {
            check!(false, "module {index} ends before it starts");
            return Ok(());
        };
        check!(start & 0xfff == 0, "module {index} at {start:#x} is not page-aligned");
        check!(
            start >= guests::boot::image_end_address() || start + size <= 0x20_0000,
            "module {index} overlaps the image"
        );
        let text = *b"module contents";
        check!(size >= text.len() as u64, "module {index} has {size} bytes");
        for (i, byte) in (0u64..).zip(text) {
            check_eq!(info::peek::<u8>(start + i), byte, "byte {i} of module {index}");
        }
    }
    Ok(())
}

/// Data and zeroed data came as they should.
fn image_is_whole() -> Outcome {
    static DATA: guests::harness::Shared<[u64; 4]> =
        guests::harness::Shared::new([1, 2, 3, u64::MAX]);
    static ZERO: guests::harness::Shared<[u64; 512]> = guests::harness::Shared::new([0; 512]);
    check_eq!(DATA.get(), [1, 2, 3, u64::MAX], "initialised data");
    check!(ZERO.get().iter().all(|word| *word == 0), "zeroed data is not zero");
    Ok(())
}
