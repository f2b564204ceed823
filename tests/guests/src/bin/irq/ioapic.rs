//! The I/O APIC: edges and levels, masks, remote IRR.

use crate::{ARRIVED, NOTE_AND_EOI, arrived, forget, note};
use guests::apic::{Lapic, bits, ioapic, reg};
use guests::cpu;
use guests::harness::{Outcome, Tests};
use guests::io::{inb, mmio_read32, mmio_write32, outb};
use guests::pc::{pic, pit, rtc};
use guests::trap;
use guests::{check, check_eq, console, skip, time};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("ioapic_registers", ioapic_registers);
    tests.case("pit_through_ioapic", pit_through_ioapic);
    tests.case("ioapic_mask", ioapic_mask);
    tests.case("ioapic_level", ioapic_level);
    tests.case("ioapic_level_lowered", ioapic_level_lowered);
    tests.case("ioapic_rtc_edge", ioapic_rtc_edge);
    tests.case("ioapic_serial_edge", ioapic_serial_edge);
    tests.case("ioapic_extint", ioapic_extint);
    tests.case("ioapic_nmi", ioapic_nmi);
}

const PIT_PIN: u32 = 2;
const SERIAL_PIN: u32 = 4;
const RTC_PIN: u32 = 8;
const VECTOR: u8 = 0x51;

fn prepare() {
    cpu::cli();
    pit::stop();
    pic::init();
    serial_off();
    let apic = Lapic::now();
    apic.enable();
    ioapic::mask_all();
    trap::on(VECTOR, Some(NOTE_AND_EOI));
    forget();
}

fn serial_on() {
    outb(console::COM1 + 4, 0xb);
    outb(console::COM1 + 1, 2);
}

fn serial_off() {
    outb(console::COM1 + 1, 0);
    let _ = inb(console::COM1 + 2);
}

fn wait(count: usize) -> bool {
    time::wait_for(1000, || {
        cpu::interrupt_window();
        ARRIVED.get() >= count
    })
}

fn ioapic_registers() -> Outcome {
    prepare();
    check_eq!(ioapic::pins(), 24, "inputs");
    check!(ioapic::read(1) & 0xff >= 0x11, "version {:#x}", ioapic::read(1));
    for (low, high) in [(0x1_a9a5 & !0x5000, 0x5a00_0000), (0x1_0030, 0)] {
        ioapic::write(0x10 + 2 * 5, low);
        ioapic::write(0x11 + 2 * 5, high);
        check_eq!((ioapic::read(0x10 + 2 * 5), ioapic::read(0x11 + 2 * 5)), (low, high), "entry 5");
    }
    // The select register reads back; bits that only the hardware writes stay.
    mmio_write32(0xfec0_0000, 0x1a);
    check_eq!(mmio_read32(0xfec0_0000) & 0xff, 0x1a, "select register");
    ioapic::write(0x10 + 2 * 5, bits::MASKED | bits::REMOTE_IRR | 1 << 12 | 0x30);
    check_eq!(ioapic::entry(5), bits::MASKED | 0x30, "remote IRR and status can't be written");
    Ok(())
}

fn pit_through_ioapic() -> Outcome {
    prepare();
    ioapic::route(PIT_PIN, u32::from(VECTOR));
    pit::program(0, 2, 2386);
    let came = wait(5);
    pit::stop();
    cpu::interrupt_window();
    check!(came, "{} interrupts", ARRIVED.get());
    Ok(())
}

fn ioapic_mask() -> Outcome {
    prepare();
    ioapic::route(PIT_PIN, bits::MASKED | u32::from(VECTOR));
    pit::program(0, 2, 2386);
    time::delay(10_000);
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 0, "interrupts while masked");
    ioapic::route(PIT_PIN, u32::from(VECTOR));
    let came = wait(2);
    pit::stop();
    cpu::interrupt_window();
    check!(came, "no interrupt after unmasking");
    Ok(())
}

fn ioapic_level() -> Outcome {
    prepare();
    trap::on(VECTOR, Some(|_| note(VECTOR))); // no EOI
    ioapic::route(SERIAL_PIN, bits::LEVEL | u32::from(VECTOR));
    serial_on();
    check!(wait(1), "no interrupt");
    let apic = Lapic::now();
    check!(ioapic::entry(SERIAL_PIN) & bits::REMOTE_IRR != 0, "remote IRR is clear in service");
    check!(apic.bit(reg::TMR, VECTOR), "the trigger-mode register does not say level");
    check!(apic.bit(reg::ISR, VECTOR), "not in service");
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 1, "interrupts before the EOI");
    // The line is still up: the EOI brings the next one.
    apic.eoi();
    check!(wait(2), "none after the EOI though the line is up");
    serial_off();
    apic.eoi();
    time::delay(1000);
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 2, "interrupts after the line went down");
    check_eq!(ioapic::entry(SERIAL_PIN) & bits::REMOTE_IRR, 0, "remote IRR at the end");
    Ok(())
}

fn ioapic_level_lowered() -> Outcome {
    prepare();
    // Up and down again while masked: nothing is remembered of a level.
    ioapic::route(SERIAL_PIN, bits::MASKED | bits::LEVEL | u32::from(VECTOR));
    serial_on();
    time::delay(1000);
    serial_off();
    time::delay(1000);
    ioapic::write(0x10 + SERIAL_PIN * 2, bits::LEVEL | u32::from(VECTOR));
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 0, "interrupts of a level that is gone");
    // Up while masked, then unmasked: delivered.
    ioapic::write(0x10 + SERIAL_PIN * 2, bits::MASKED | bits::LEVEL | u32::from(VECTOR));
    trap::on(
        VECTOR,
        Some(|_| {
            note(VECTOR);
            serial_off();
            Lapic::now().eoi()
        }),
    );
    serial_on();
    time::delay(1000);
    ioapic::write(0x10 + SERIAL_PIN * 2, bits::LEVEL | u32::from(VECTOR));
    let came = wait(1);
    serial_off();
    check!(came, "no interrupt of a level that is up when unmasked");
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 1, "interrupts");
    Ok(())
}

fn ioapic_rtc_edge() -> Outcome {
    prepare();
    let b = rtc::read(11);
    rtc::write(10, 0x26);
    let _ = rtc::read(12);
    ioapic::route(RTC_PIN, u32::from(VECTOR));
    rtc::write(11, b | 0x40);
    // Without reading register C the line stays up: one edge only.
    let came = wait(1);
    time::delay(10_000);
    cpu::interrupt_window();
    let unread = ARRIVED.get();
    trap::on(
        VECTOR,
        Some(|_| {
            note(VECTOR);
            let _ = rtc::read(12);
            Lapic::now().eoi()
        }),
    );
    let _ = rtc::read(12);
    let more = wait(4);
    rtc::write(11, b & !0x70);
    let _ = rtc::read(12);
    cpu::interrupt_window();
    check!(came, "no interrupt");
    // Bare QEMU takes each period for a new edge.
    check!(unread == 1 || cpu::on_bare_tcg(), "{unread} interrupts while register C was not read");
    check!(unread >= 1, "interrupts while register C was not read");
    check!(more, "{} interrupts", ARRIVED.get());
    Ok(())
}

fn ioapic_serial_edge() -> Outcome {
    prepare();
    ioapic::route(SERIAL_PIN, u32::from(VECTOR));
    for round in 1..=3 {
        serial_on();
        let came = wait(round);
        cpu::interrupt_window();
        serial_off();
        check!(came, "no interrupt {round}");
        check_eq!(ARRIVED.get(), round, "interrupts of {round} edges");
    }
    Ok(())
}

fn ioapic_extint() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU wires the PIC to the local APIC only");
    }
    prepare();
    trap::on(
        pic::VECTOR,
        Some(|_| {
            note(pic::VECTOR);
            pic::eoi(0)
        }),
    );
    ioapic::route(0, bits::EXTINT);
    pic::unmask_only(1);
    pit::program(0, 0, 100);
    let came = wait(1);
    pic::unmask_only(0);
    ioapic::mask_all();
    check!(came, "the PIC's interrupt did not come through input 0");
    check_eq!(arrived::<1>(), ([pic::VECTOR], 1), "vectors");
    Ok(())
}

fn ioapic_nmi() -> Outcome {
    prepare();
    trap::on(2, Some(|_| note(2)));
    ioapic::route(PIT_PIN, bits::NMI);
    pit::program(0, 0, 100);
    // With interrupts off all the time, one emulator lets no interrupt of the
    // machine end a guest's turn.
    let came = wait(1);
    ioapic::mask_all();
    pit::stop();
    trap::on(2, None);
    check!(came, "no NMI");
    check_eq!(ARRIVED.get(), 1, "NMIs of one edge");
    Ok(())
}
