//! The built-in guest: says what machine it sees, then offers a little console.
//!
//! On the command line, `once` switches off after the banner, `reboot` resets.
#![no_std]
#![no_main]

use guests::apic::{Lapic, bits, reg};
use guests::cpu::{self, CpuidResult, cpuid};
use guests::harness::{halt, power_off};
use guests::pc::{self, pic};
use guests::trap::{self, Frame};
use guests::{console, info, io, print, println, time};

guests::entry!(main);

fn main() -> ! {
    println!();
    println!("  Hello from a guest.");
    println!();
    processor();
    memory();
    clocks();
    println!("command line: {}", info::command_line());
    if info::flag("once") {
        println!("Good-bye.");
        power_off();
    }
    if info::flag("reboot") {
        println!("Resetting.");
        reset();
    }
    listen();
    println!("Type `help` for the commands.");
    let mut line = [0u8; 80];
    loop {
        print!("guest> ");
        let length = read_line(&mut line);
        match core::str::from_utf8(&line[..length]).unwrap_or("").trim() {
            "" => {}
            "help" => println!("help, cpuid, mem, time, uptime, poweroff, reboot"),
            "cpuid" => leaves(),
            "mem" => memory(),
            "time" | "uptime" => clocks(),
            "poweroff" => {
                println!("Good-bye.");
                power_off()
            }
            "reboot" => reset(),
            other => println!("{other}: no such command; try `help`"),
        }
    }
}

fn reset() -> ! {
    io::outb(0xcf9, 6);
    halt()
}

/// The serial port's interrupt line.
const SERIAL_LINE: u8 = 4;

/// Lets what is typed interrupt, so that waiting for it takes no CPU.
fn listen() {
    let apic = Lapic::now();
    apic.enable();
    // The 8259s' interrupts come through it.
    apic.write(reg::LVT_LINT0, bits::EXTINT);
    pic::init();
    trap::on(pic::VECTOR + SERIAL_LINE, Some(on_serial));
    pic::unmask_only(1 << SERIAL_LINE);
    console::interrupt_on_input();
}

/// The byte is fetched by who waits for it: it is enough that HLT ends.
fn on_serial(_: &mut Frame) {
    pic::eoi(SERIAL_LINE);
}

/// The next byte that is typed.
fn wait_for_byte() -> u8 {
    loop {
        // An interrupt between the look and the HLT must still end the HLT.
        cpu::cli();
        let byte = console::get();
        if let Some(byte) = byte {
            return byte;
        }
        cpu::wait_for_interrupt();
    }
}

/// Reads a line with echo; backspace works, what does not fit is dropped.
fn read_line(line: &mut [u8]) -> usize {
    let mut length = 0;
    loop {
        match wait_for_byte() {
            b'\r' | b'\n' => {
                println!();
                return length;
            }
            8 | 127 => {
                if length > 0 {
                    length -= 1;
                    print!("\x08 \x08");
                }
            }
            byte => {
                if let Some(slot) = line.get_mut(length) {
                    *slot = byte;
                    length += 1;
                    console::put(byte);
                }
            }
        }
    }
}

/// Prints the characters in CPUID registers.
fn characters(registers: &[u32]) {
    for register in registers {
        for byte in register.to_le_bytes() {
            if byte.is_ascii_graphic() || byte == b' ' {
                console::put(byte);
            }
        }
    }
}

fn processor() {
    let id = cpuid(0, 0);
    print!("processor: ");
    characters(&[id.ebx, id.edx, id.ecx]);
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0004 {
        print!(", ");
        for leaf in 0x8000_0002..=0x8000_0004 {
            let CpuidResult { eax, ebx, ecx, edx } = cpuid(leaf, 0);
            characters(&[eax, ebx, ecx, edx]);
        }
    }
    println!();
    if cpu::features().0 >> 31 == 0 {
        println!("hypervisor: none that says so");
        return;
    }
    for base in [0x4000_0000, 0x4000_0100] {
        let id = cpuid(base, 0);
        if id.eax >= base && id.eax < base + 0x100 {
            print!("hypervisor at leaf {base:#x}: \"");
            characters(&[id.ebx, id.ecx, id.edx]);
            println!("\"");
        }
    }
}

fn leaves() {
    for first in [0, 0x4000_0000, 0x4000_0100, 0x8000_0000] {
        let last = cpuid(first, 0).eax;
        if last < first || last > first + 0x40 {
            continue;
        }
        for leaf in first..=last {
            let CpuidResult { eax, ebx, ecx, edx } = cpuid(leaf, 0);
            println!("{leaf:08x}: {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}");
        }
    }
}

fn memory() {
    println!("memory: {} KiB of RAM", info::ram_bytes() >> 10);
    info::memory_map(|range| {
        let kind = match range.kind {
            1 => "RAM",
            2 => "reserved",
            3 => "ACPI tables",
            4 => "ACPI, to be kept",
            5 => "defective",
            _ => "other",
        };
        println!("  {:#014x} to {:#014x}  {kind}", range.start, range.start + range.size);
    });
}

fn clocks() {
    let rtc = |index| {
        let value = pc::rtc::read(index);
        if pc::rtc::read(11) & 4 == 0 { (value >> 4) * 10 + (value & 15) } else { value }
    };
    println!(
        "clocks: TSC {} at {} MHz, PM timer {}, RTC 20{:02}-{:02}-{:02} {:02}:{:02}:{:02}",
        cpu::rdtsc(),
        time::tsc_hz() / 1_000_000,
        time::pm_timer(),
        rtc(9),
        rtc(8),
        rtc(7),
        rtc(4),
        rtc(2),
        rtc(0)
    );
}
