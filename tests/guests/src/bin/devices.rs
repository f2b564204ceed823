//! Devices: UART, RTC, PM timer, keyboard controller, PCI, ACPI, SMBIOS, pvpanic.
#![no_std]
#![no_main]

use guests::console::COM1;
use guests::cpu;
use guests::harness::{Outcome, Tests};
use guests::info::{self, peek};
use guests::io::{inb, inl, inw, outb, outl};
use guests::pc::{pci, rtc};
use guests::{check, check_eq, skip, time};

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    tests.case("uart_registers", uart_registers);
    tests.case("uart_loopback", uart_loopback);
    tests.case("uart_fifo", uart_fifo);
    tests.case("uart_overrun", uart_overrun);
    tests.case("uart_modem_loopback", uart_modem_loopback);
    tests.case("uart_interrupt_identity", uart_interrupt_identity);
    tests.case("rtc_time", rtc_time);
    tests.case("rtc_update", rtc_update);
    tests.case("cmos_memory", cmos_memory);
    tests.case("pm_timer", pm_timer);
    tests.case("port_61", port_61);
    tests.case("keyboard_controller", keyboard_controller);
    tests.case("pci_scan", pci_scan);
    tests.case("pci_absent", pci_absent);
    tests.case("pci_sizing", pci_sizing);
    tests.case("acpi_root", acpi_root);
    tests.case("acpi_tables", acpi_tables);
    tests.case("acpi_fixed", acpi_fixed);
    tests.case("smbios", smbios);
    tests.case("pvpanic", pvpanic);
    tests.finish()
}

fn loopback<T>(body: impl FnOnce() -> T) -> T {
    time::delay(2000); // let what was printed go out
    outb(COM1 + 2, 7);
    outb(COM1 + 4, 0x10);
    let result = body();
    outb(COM1 + 2, 7);
    outb(COM1 + 4, 3);
    result
}

fn uart_registers() -> Outcome {
    for value in [0x55, 0xaa, 0] {
        outb(COM1 + 7, value);
        check_eq!(inb(COM1 + 7), value, "scratch");
    }
    let line = inb(COM1 + 3);
    outb(COM1 + 3, line | 0x80);
    outb(COM1, 0x0c);
    outb(COM1 + 1, 0x01);
    let divisor = (inb(COM1), inb(COM1 + 1));
    outb(COM1, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, line);
    check_eq!(divisor, (0x0c, 0x01), "divisor");
    check_eq!(inb(COM1 + 3), line, "line control");
    outb(COM1 + 1, 0xff);
    let enable = inb(COM1 + 1);
    outb(COM1 + 1, 0);
    check_eq!(enable, 0x0f, "interrupt enable keeps four bits");
    check_eq!(inb(COM1 + 2) & 0xc0, 0xc0, "FIFOs on, by interrupt identity");
    Ok(())
}

fn received() -> bool {
    time::wait_for(500, || inb(COM1 + 5) & 1 != 0)
}

fn uart_loopback() -> Outcome {
    let wrong = loopback(|| {
        (0..=255u8).find(|byte| {
            time::wait_for(500, || inb(COM1 + 5) & 0x20 != 0);
            outb(COM1, *byte);
            !received() || inb(COM1) != *byte
        })
    });
    check_eq!(wrong, None, "byte that did not come back");
    Ok(())
}

fn uart_fifo() -> Outcome {
    let (got, empty) = loopback(|| {
        for byte in 0..16u8 {
            outb(COM1, byte);
        }
        let mut got = 0;
        while got < 16 && received() && inb(COM1) == got {
            got += 1;
        }
        (got, inb(COM1 + 5) & 1)
    });
    check_eq!((got, empty), (16, 0), "bytes through the FIFO, data ready afterwards");
    Ok(())
}

fn uart_overrun() -> Outcome {
    let (status, again) = loopback(|| {
        for byte in 0..20u8 {
            time::wait_for(500, || inb(COM1 + 5) & 0x20 != 0);
            outb(COM1, byte);
        }
        time::delay(5000);
        let status = inb(COM1 + 5);
        (status, inb(COM1 + 5))
    });
    if cpu::on_bare_tcg() && status & 2 == 0 {
        skip!("bare QEMU holds the sender back");
    }
    check_eq!(status & 2, 2, "overrun with 20 bytes in a FIFO of 16");
    check_eq!(again & 2, 0, "overrun is cleared by reading it");
    Ok(())
}

fn uart_modem_loopback() -> Outcome {
    let status = loopback(|| {
        outb(COM1 + 4, 0x1f);
        let all = inb(COM1 + 6) & 0xf0;
        outb(COM1 + 4, 0x12); // RTS is CTS
        let rts = inb(COM1 + 6) & 0xf0;
        outb(COM1 + 4, 0x11); // DTR is DSR
        (all, rts, inb(COM1 + 6) & 0xf0)
    });
    check_eq!(status, (0xf0, 0x10, 0x20), "modem status looped back");
    Ok(())
}

fn uart_interrupt_identity() -> Outcome {
    let seen = loopback(|| {
        outb(COM1 + 4, 0x10);
        outb(COM1 + 1, 0);
        let none = inb(COM1 + 2) & 0xf;
        outb(COM1 + 1, 2);
        let transmit = inb(COM1 + 2) & 0xf;
        let cleared = inb(COM1 + 2) & 0xf;
        outb(COM1 + 1, 1);
        outb(COM1, 0x41);
        received();
        // One byte is under the trigger level of 1? FCR 7 sets it to 1.
        let receive = inb(COM1 + 2) & 0xf;
        let _ = inb(COM1);
        let after = inb(COM1 + 2) & 0xf;
        outb(COM1 + 1, 0);
        [none, transmit, cleared, receive, after]
    });
    check_eq!(
        seen,
        [1, 2, 1, 4, 1],
        "none, transmitter empty, cleared by reading, received data, none"
    );
    Ok(())
}

fn field(index: u8) -> u64 {
    let value = rtc::read(index);
    u64::from(if rtc::read(11) & 4 == 0 { (value >> 4) * 10 + (value & 15) } else { value })
}

fn rtc_time() -> Outcome {
    time::wait_for(100, || rtc::read(10) & 0x80 == 0);
    check_eq!(rtc::read(13), 0x80, "register D: the battery is good");
    let fields = [0, 2, 4, 7, 8, 9].map(field);
    for (value, (low, high)) in
        fields.into_iter().zip([(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 99)])
    {
        check!((low..=high).contains(&value), "{value} of {fields:?}");
    }
    check_eq!(rtc::read(11) & 2, 2, "24-hour mode");
    Ok(())
}

fn rtc_update() -> Outcome {
    let second = field(0);
    let start = cpu::rdtsc();
    check!(time::wait_for(3000, || field(0) != second), "the seconds stand still");
    let next = field(0);
    check!(time::wait_for(3000, || field(0) != next), "the seconds stand still");
    let spent = (cpu::rdtsc() - start) / (time::tsc_hz() / 1000);
    check!(spent < 3500, "two seconds took {spent} ms");
    // SET stops the clock.
    let b = rtc::read(11);
    rtc::write(11, b | 0x80);
    let stopped = field(0);
    time::delay(1_200_000);
    let still = field(0);
    rtc::write(11, b);
    check_eq!(still, stopped, "seconds while SET is on");
    Ok(())
}

fn cmos_memory() -> Outcome {
    let old = rtc::read(0x5f);
    for value in [0x55, 0xaa] {
        rtc::write(0x5f, value);
        check_eq!(rtc::read(0x5f), value, "CMOS byte 0x5f");
    }
    rtc::write(0x5f, old);
    Ok(())
}

fn pm_timer() -> Outcome {
    let mut last = time::pm_timer();
    let mut moved = 0u64;
    for _ in 0..10_000 {
        let now = time::pm_timer();
        moved += now.wrapping_sub(last) & 0xff_ffff;
        check!(
            now.wrapping_sub(last) & 0xff_ffff < 0x80_0000,
            "went back from {last:#x} to {now:#x}"
        );
        last = now;
    }
    check!(moved > 0, "the timer stands still");
    Ok(())
}

fn port_61() -> Outcome {
    let old = inb(0x61);
    for bits in [0, 1, 2, 3] {
        outb(0x61, old & !3 | bits);
        check_eq!(inb(0x61) & 3, bits, "gate and speaker bits");
    }
    outb(0x61, old);
    let first = inb(0x61) & 0x10;
    check!(time::wait_for(100, || inb(0x61) & 0x10 != first), "the refresh bit does not toggle");
    Ok(())
}

fn keyboard_controller() -> Outcome {
    let status = inb(0x64);
    if status == 0xff {
        skip!("there is none");
    }
    while inb(0x64) & 1 != 0 {
        let _ = inb(0x60);
    }
    outb(0x64, 0xaa);
    if !time::wait_for(200, || inb(0x64) & 1 != 0) {
        skip!("no answer to the self-test: a controller for resets only");
    }
    check_eq!(inb(0x60), 0x55, "self-test");
    Ok(())
}

fn pci_scan() -> Outcome {
    let host = pci::read(0, 0, 0);
    check!(host != u32::MAX && host & 0xffff != 0, "host bridge {host:#x}");
    check_eq!(pci::read(0, 0, 8) >> 16, 0x0600, "its class");
    let mut found = 0;
    for device in 0..32 {
        let functions = if pci::read(device, 0, 12) >> 16 & 0x80 != 0 { 8 } else { 1 };
        for function in 0..functions {
            let id = pci::read(device, function, 0);
            if id != u32::MAX {
                found += 1;
                check!(id & 0xffff != 0, "device {device} function {function}: {id:#x}");
                let kind = pci::read(device, function, 12) >> 16 & 0x7f;
                check!(kind <= 2, "device {device} function {function}: header type {kind}");
            }
        }
    }
    check!(found >= 1, "nothing found");
    Ok(())
}

fn pci_absent() -> Outcome {
    let Some(device) = (1..32).rev().find(|device| pci::read(*device, 0, 0) == u32::MAX) else {
        skip!("every device is there");
    };
    for register in [0, 4, 8, 0x3c] {
        check_eq!(
            pci::read(device, 0, register),
            u32::MAX,
            "register {register:#x} of an absent device"
        );
    }
    pci::write(device, 0, 4, 0);
    // Another bus, and the address register switched off.
    outl(0xcf8, 1 << 31 | 0x55 << 16);
    check_eq!(inl(0xcfc), u32::MAX, "an absent bus");
    outl(0xcf8, 0);
    check_eq!(inl(0xcfc), u32::MAX, "configuration data with the address switched off");
    Ok(())
}

fn pci_sizing() -> Outcome {
    for device in 0..32 {
        if pci::read(device, 0, 0) == u32::MAX || pci::read(device, 0, 12) >> 16 & 0x7f != 0 {
            continue;
        }
        let command = pci::read(device, 0, 4);
        pci::write(device, 0, 4, command & 0xfff8);
        for register in (0x10..0x28).step_by(4) {
            let old = pci::read(device, 0, register);
            pci::write(device, 0, register, u32::MAX);
            let sizing = pci::read(device, 0, register);
            pci::write(device, 0, register, old);
            check_eq!(
                pci::read(device, 0, register),
                old,
                "BAR {register:#x} of device {device} restored"
            );
            let mask = if sizing & 1 != 0 { sizing & 0xfffc } else { sizing & !0xf };
            if sizing == 0 || mask == 0 || mask == u32::MAX {
                continue; // absent, or the upper half of a 64-bit one
            }
            let low = mask & mask.wrapping_neg();
            let width = if sizing & 1 != 0 { 0xffff } else { u32::MAX };
            check_eq!(
                mask | (low - 1),
                width,
                "BAR {register:#x} of device {device} is no power of two"
            );
        }
        pci::write(device, 0, 4, command & 0xffff);
    }
    Ok(())
}

fn sum(address: u64, length: u64) -> u8 {
    (0..length).fold(0u8, |sum, i| sum.wrapping_add(peek::<u8>(address + i)))
}

fn rsdp_by_scan() -> Option<u64> {
    (0xe_0000..0x10_0000).step_by(16).find(|at| peek::<[u8; 8]>(*at) == *b"RSD PTR ")
}

fn acpi_root() -> Outcome {
    let scanned = rsdp_by_scan();
    check!(scanned.is_some(), "no root pointer between 0xe0000 and 1 MiB");
    let at = scanned.unwrap_or(0);
    check_eq!(sum(at, 20), 0, "checksum of the first 20 bytes");
    let revision: u8 = peek(at + 15);
    if revision >= 2 {
        check_eq!(sum(at, u64::from(peek::<u32>(at + 20))), 0, "extended checksum");
    }
    if info::rsdp() != 0 && !cpu::on_bare_tcg() {
        check_eq!(info::rsdp(), at, "root pointer in the start information");
    }
    Ok(())
}

/// Calls `visit` with the address of each table that the root names.
fn tables(mut visit: impl FnMut(u64, [u8; 4])) -> Result<u32, &'static str> {
    let at = rsdp_by_scan().ok_or("no root pointer")?;
    let extended = peek::<u8>(at + 15) >= 2 && peek::<u64>(at + 24) != 0;
    let (root, step) =
        if extended { (peek::<u64>(at + 24), 8) } else { (u64::from(peek::<u32>(at + 16)), 4) };
    if sum(root, u64::from(peek::<u32>(root + 4))) != 0 {
        return Err("checksum of the root table");
    }
    let mut count = 0;
    for entry in (root + 36..root + u64::from(peek::<u32>(root + 4))).step_by(step) {
        let table = if extended { peek::<u64>(entry) } else { u64::from(peek::<u32>(entry)) };
        visit(table, peek(table));
        count += 1;
    }
    Ok(count)
}

fn find(name: [u8; 4]) -> Option<u64> {
    let mut found = None;
    let _ = tables(|at, signature| {
        if signature == name {
            found = Some(at);
        }
    });
    found
}

fn acpi_tables() -> Outcome {
    let mut bad = None;
    let count = tables(|at, signature| {
        let length = u64::from(peek::<u32>(at + 4));
        if !(36..0x10_0000).contains(&length) || sum(at, length) != 0 {
            bad = Some(signature);
        }
    });
    check!(count.is_ok_and(|count| count >= 2), "{count:?} tables");
    check!(bad.is_none(), "table {bad:x?}: length or checksum");
    let Some(madt) = find(*b"APIC") else {
        check!(false, "no APIC table");
        return Ok(());
    };
    check_eq!(peek::<u32>(madt + 36), 0xfee0_0000, "local APIC in the APIC table");
    let (mut at, end) = (madt + 44, madt + u64::from(peek::<u32>(madt + 4)));
    let (mut cpus, mut ioapics, mut pit_override) = (0, 0, false);
    while at < end {
        match peek::<u8>(at) {
            0 | 9 => cpus += 1,
            1 => {
                ioapics += 1;
                check_eq!(peek::<u32>(at + 4), 0xfec0_0000, "I/O APIC");
            }
            2 => pit_override |= peek::<u8>(at + 3) == 0 && peek::<u32>(at + 4) == 2,
            _ => {}
        }
        let length = u64::from(peek::<u8>(at + 1));
        check!(length >= 2, "an entry of no length");
        at += length;
    }
    check!(
        cpus >= 1 && ioapics == 1 && pit_override,
        "{cpus} CPUs, {ioapics} I/O APICs, PIT on input 2: {pit_override}"
    );
    Ok(())
}

fn acpi_fixed() -> Outcome {
    let Some(fadt) = find(*b"FACP") else {
        check!(false, "no FADT");
        return Ok(());
    };
    check_eq!(peek::<u32>(fadt + 76), u32::from(time::PM_TIMER), "PM timer's port");
    check_eq!(peek::<u32>(fadt + 64), 0x604, "PM1a control's port");
    let dsdt = u64::from(peek::<u32>(fadt + 40));
    check_eq!(peek::<[u8; 4]>(dsdt), *b"DSDT", "signature");
    check_eq!(sum(dsdt, u64::from(peek::<u32>(dsdt + 4))), 0, "DSDT's checksum");
    let event = cpu::low16(u64::from(peek::<u32>(fadt + 56)));
    check!(inw(event) & 0x8000 == 0, "PM1a status {:#x}", inw(event));
    check_eq!(inw(0x604) & 1, inw(0x604) & 1, "PM1a control");
    Ok(())
}

fn smbios() -> Outcome {
    let anchor = (0xf_0000..0x10_0000)
        .step_by(16)
        .find(|at| peek::<[u8; 5]>(*at) == *b"_SM3_" || peek::<[u8; 4]>(*at) == *b"_SM_");
    let Some(at) = anchor else {
        check!(false, "no anchor between 0xf0000 and 1 MiB");
        return Ok(());
    };
    let length =
        if peek::<[u8; 5]>(at) == *b"_SM3_" { peek::<u8>(at + 6) } else { peek::<u8>(at + 5) };
    check_eq!(sum(at, u64::from(length)), 0, "the anchor's checksum");
    Ok(())
}

fn pvpanic() -> Outcome {
    let events = inb(0x505);
    if events == 0xff {
        skip!("there is none");
    }
    check_eq!(events & 1, 1, "it takes panics");
    Ok(())
}
