//! The 8259 pair and the PIT, as the BIOS leaves them wired: INTR through
//! LINT0 as ExtINT, or straight to the CPU while the local APIC is off.

use crate::{ARRIVED, arrived, forget, note};
use guests::apic::{Lapic, bits, reg};
use guests::cpu;
use guests::harness::{Outcome, Tests};
use guests::io::{inb, outb};
use guests::pc::{pic, pit};
use guests::trap::{self, Frame};
use guests::{check, check_eq, console, time};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("pic_mask_register", pic_mask_register);
    tests.case("pit_through_pic", pit_through_pic);
    tests.case("pit_periodic", pit_periodic);
    tests.case("pic_mask_holds_back", pic_mask_holds_back);
    tests.case("pic_eoi", pic_eoi);
    tests.case("pic_specific_eoi", pic_specific_eoi);
    tests.case("pic_auto_eoi", pic_auto_eoi);
    tests.case("pic_rotation", pic_rotation);
    tests.case("pic_poll", pic_poll);
    tests.case("pic_spurious", pic_spurious);
    tests.case("pic_second", pic_second);
    tests.case("pit_count_and_latch", pit_count_and_latch);
    tests.case("pit_read_back", pit_read_back);
    tests.case("pit_modes", pit_modes);
    tests.case("pit_against_tsc", pit_against_tsc);
}

fn on_line(frame: &mut Frame) {
    note(cpu::low8(frame.vector));
    pic::eoi(cpu::low8(frame.vector) - pic::VECTOR);
}

/// Virtual wire: the PIC's output reaches the CPU through LINT0.
fn prepare() {
    cpu::cli();
    pit::stop();
    let apic = Lapic::now();
    apic.enable();
    apic.write(reg::LVT_LINT0, bits::EXTINT);
    guests::apic::ioapic::mask_all();
    pic::init();
    for line in 0..16 {
        trap::on(pic::VECTOR + line, Some(on_line));
    }
    forget();
}

fn fire_pit() {
    pit::program(0, 0, 100);
}

fn wait_request(lines: u16) -> bool {
    time::wait_for(1000, || pic::requested() & lines == lines)
}

fn pic_mask_register() -> Outcome {
    prepare();
    for value in [0x00, 0xff, 0x5a] {
        outb(pic::FIRST + 1, value);
        outb(pic::SECOND + 1, !value);
        check_eq!((inb(pic::FIRST + 1), inb(pic::SECOND + 1)), (value, !value), "masks");
    }
    pic::unmask_only(0);
    Ok(())
}

fn pit_through_pic() -> Outcome {
    prepare();
    pic::unmask_only(1);
    fire_pit();
    let came = time::wait_for(1000, || {
        cpu::interrupt_window();
        ARRIVED.get() == 1
    });
    check!(came, "no interrupt");
    // One shot: no second.
    time::delay(5000);
    cpu::interrupt_window();
    check_eq!(arrived::<1>(), ([pic::VECTOR], 1), "interrupts");
    Ok(())
}

fn pit_periodic() -> Outcome {
    for mode in [2, 3] {
        prepare();
        pic::unmask_only(1);
        pit::program(0, mode, 2386); // 2 ms
        let came = time::wait_for(3000, || {
            cpu::interrupt_window();
            ARRIVED.get() >= 5
        });
        pit::stop();
        cpu::interrupt_window();
        check!(came, "mode {mode}: {} interrupts", ARRIVED.get());
    }
    Ok(())
}

fn pic_mask_holds_back() -> Outcome {
    prepare();
    fire_pit();
    check!(wait_request(1), "line 0 is not requested");
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 0, "interrupts while masked");
    pic::unmask_only(1);
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 1, "interrupts after unmasking");
    Ok(())
}

fn pic_eoi() -> Outcome {
    prepare();
    trap::on(pic::VECTOR, Some(|_| note(pic::VECTOR)));
    pic::unmask_only(1);
    fire_pit();
    check!(wait_request(1), "line 0 is not requested");
    cpu::interrupt_window();
    check_eq!((ARRIVED.get(), pic::in_service()), (1, 1), "interrupts, in service");
    fire_pit();
    check!(wait_request(1), "line 0 is not requested again");
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 1, "interrupts before the EOI");
    pic::eoi(0);
    check_eq!(pic::in_service(), 0, "in service after the EOI");
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 2, "interrupts after the EOI");
    pic::eoi(0);
    Ok(())
}

fn pic_specific_eoi() -> Outcome {
    prepare();
    trap::on(pic::VECTOR, Some(|_| note(pic::VECTOR)));
    pic::unmask_only(1);
    fire_pit();
    check!(wait_request(1), "line 0 is not requested");
    cpu::interrupt_window();
    outb(pic::FIRST, 0x63);
    check_eq!(pic::in_service(), 1, "in service after a specific EOI of line 3");
    outb(pic::FIRST, 0x60);
    check_eq!(pic::in_service(), 0, "in service after a specific EOI of line 0");
    Ok(())
}

fn pic_auto_eoi() -> Outcome {
    prepare();
    trap::on(pic::VECTOR, Some(|_| note(pic::VECTOR)));
    outb(pic::FIRST, 0x11);
    outb(pic::FIRST + 1, pic::VECTOR);
    outb(pic::FIRST + 1, 4);
    outb(pic::FIRST + 1, 3);
    pic::unmask_only(1);
    for round in 1..=2 {
        fire_pit();
        check!(
            time::wait_for(1000, || {
                cpu::interrupt_window();
                ARRIVED.get() == round
            }),
            "interrupt {round}"
        );
        check_eq!(pic::in_service(), 0, "in service");
    }
    Ok(())
}

/// Lets COM1 (line 4) ask for an interrupt: transmitter empty.
fn raise_serial() {
    outb(console::COM1 + 4, 0xb);
    outb(console::COM1 + 1, 2);
}

fn lower_serial() {
    outb(console::COM1 + 1, 0);
    let _ = inb(console::COM1 + 2);
}

fn pic_rotation() -> Outcome {
    prepare();
    trap::on(
        pic::VECTOR,
        Some(|_| {
            note(pic::VECTOR);
            pic::eoi(0)
        }),
    );
    trap::on(
        pic::VECTOR + 4,
        Some(|_| {
            note(pic::VECTOR + 4);
            lower_serial();
            pic::eoi(4)
        }),
    );
    // The two interrupts wait; line 0 has the highest priority.
    for (lowest, order) in [(7, [0x20, 0x24]), (0, [0x24, 0x20])] {
        forget();
        pic::unmask_only(0);
        fire_pit();
        raise_serial();
        let both = wait_request(0x11);
        outb(pic::FIRST, 0xc0 | lowest); // this line gets the lowest priority
        pic::unmask_only(0x11);
        cpu::interrupt_window();
        cpu::interrupt_window();
        lower_serial();
        check!(both, "lines 0 and 4 are not both requested");
        check_eq!(arrived::<2>(), (order, 2), "order with line {lowest} lowest");
    }
    outb(pic::FIRST, 0xc7);
    Ok(())
}

fn pic_poll() -> Outcome {
    prepare();
    outb(pic::FIRST, 0x0c);
    check_eq!(inb(pic::FIRST) & 0x80, 0, "poll with nothing requested");
    pic::unmask_only(1);
    fire_pit();
    check!(wait_request(1), "line 0 is not requested");
    outb(pic::FIRST, 0x0c);
    check_eq!(inb(pic::FIRST), 0x80, "poll with line 0 requested");
    pic::eoi(0);
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 0, "interrupts after the poll took it");
    Ok(())
}

fn pic_spurious() -> Outcome {
    prepare();
    trap::on(
        pic::VECTOR + 4,
        Some(|_| {
            note(pic::VECTOR + 4);
            lower_serial();
            pic::eoi(4)
        }),
    );
    trap::on(pic::VECTOR + 7, Some(|_| note(pic::VECTOR + 7)));
    pic::unmask_only(0x10);
    raise_serial();
    check!(wait_request(0x10), "line 4 is not requested");
    lower_serial();
    // The edge is gone before the CPU asks. The chip then answers with line 7
    // and nothing in service; emulations that latch the edge deliver line 4.
    cpu::interrupt_window();
    let service = pic::in_service();
    check!(ARRIVED.get() <= 1, "{} interrupts", ARRIVED.get());
    let first = arrived::<1>().0[0];
    check!(
        ARRIVED.get() == 0 || [pic::VECTOR + 7, pic::VECTOR + 4].contains(&first),
        "vector {first:#x}"
    );
    check_eq!(service, 0, "in service after a spurious interrupt");
    Ok(())
}

fn pic_second() -> Outcome {
    use guests::pc::rtc;
    prepare();
    trap::on(
        pic::VECTOR + 8,
        Some(|_| {
            note(pic::VECTOR + 8);
            let _ = rtc::read(12);
            pic::eoi(8);
        }),
    );
    let b = rtc::read(11);
    rtc::write(10, 0x26);
    rtc::write(11, b | 0x40);
    let _ = rtc::read(12);
    pic::unmask_only(0x100);
    let came = time::wait_for(2000, || {
        cpu::interrupt_window();
        ARRIVED.get() >= 3
    });
    rtc::write(11, b & !0x70);
    let _ = rtc::read(12);
    cpu::interrupt_window();
    check!(came, "{} periodic interrupts of the RTC", ARRIVED.get());
    check_eq!(pic::in_service(), 0, "in service");
    Ok(())
}

fn pit_count_and_latch() -> Outcome {
    prepare();
    pit::program(2, 2, 0);
    outb(0x61, inb(0x61) & !2 | 1);
    let first = pit::count(2);
    time::delay(2000);
    let second = pit::count(2);
    let ticks = u64::from(first.wrapping_sub(second));
    check!(ticks > 1000, "the count went from {first} to {second} in 2 ms");
    // A latched count does not move until it was read.
    outb(0x43, 0x80);
    time::delay(500);
    outb(0x43, 0x80);
    let latched = u16::from_le_bytes([inb(0x42), inb(0x42)]);
    let live = pit::count(2);
    check!(latched.wrapping_sub(live) > 300, "latched {latched}, live {live}");
    Ok(())
}

fn pit_read_back() -> Outcome {
    prepare();
    for (mode, shown) in [(0, 0), (2, 2), (3, 3), (4, 4)] {
        pit::program(2, mode, 0x4000);
        check_eq!(pit::status(2) & 0x3f, 0x30 | shown << 1, "status in mode {mode}");
    }
    outb(0x43, 0x90); // low byte only, mode 0
    outb(0x42, 50);
    check_eq!(pit::status(2) & 0x3f, 0x10, "status, low byte only");
    Ok(())
}

fn pit_modes() -> Outcome {
    prepare();
    // Mode 0: output low while counting, high at the end.
    outb(0x61, inb(0x61) & !2 | 1);
    pit::program(2, 0, 60_000);
    check_eq!(pit::status(2) & 0x80, 0, "mode 0: output while it counts");
    check_eq!(inb(0x61) & 0x20, 0, "mode 0: port 0x61 shows it");
    pit::program(2, 0, 100);
    check!(time::wait_for(1000, || pit::status(2) & 0x80 != 0), "mode 0: output never rose");
    check_eq!(inb(0x61) & 0x20, 0x20, "mode 0: port 0x61 shows it");
    // Mode 3 toggles.
    pit::program(2, 3, 2000);
    let high = time::wait_for(1000, || inb(0x61) & 0x20 != 0);
    let low = time::wait_for(1000, || inb(0x61) & 0x20 == 0);
    check!(high && low, "mode 3: the output does not toggle");
    if cpu::on_bare_tcg() {
        return Ok(()); // QEMU's PIT counts on with the gate low
    }
    pit::program(2, 2, 0);
    outb(0x61, inb(0x61) & !3);
    let first = pit::count(2);
    time::delay(1000);
    check_eq!(pit::count(2), first, "mode 2: count with the gate low");
    Ok(())
}

fn pit_against_tsc() -> Outcome {
    prepare();
    let mut best = 0;
    for _ in 0..5 {
        let Some(ticks) = time::pit_wait(23_864) else {
            check!(false, "the PIT's output never rose");
            break;
        };
        let hz = ticks * time::PIT_HZ / 23_864;
        best = if best == 0 { hz } else { best.min(hz) };
    }
    check!(
        time::close(best, time::tsc_hz(), 10),
        "TSC by the PIT {best}, by the PM timer {}",
        time::tsc_hz()
    );
    Ok(())
}
