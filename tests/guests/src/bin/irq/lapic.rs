//! The local APIC: timer, self-IPIs, priorities, NMI; first as xAPIC, then as x2APIC.

use crate::{ARRIVED, NOTE_AND_EOI, arrived, forget, note};
use guests::apic::{Lapic, bits, ioapic, reg};
use guests::cpu;
use guests::harness::{Outcome, Shared, Tests};
use guests::pc::{pic, pit};
use guests::trap::{self, vector};
use guests::{catch_asm, check, check_eq, skip, time};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("xapic_registers", xapic_registers);
    tests.case("self_ipi", self_ipi);
    tests.case("ipi_shorthands", ipi_shorthands);
    tests.case("priorities", priorities);
    tests.case("tpr_masks", tpr_masks);
    tests.case("cr8_masks", cr8_masks);
    tests.case("nested_interrupts", nested_interrupts);
    tests.case("eoi_order", eoi_order);
    tests.case("interrupt_window", interrupt_window);
    tests.case("one_pending_per_vector", one_pending_per_vector);
    tests.case("spurious_vector", spurious_vector);
    tests.case("illegal_vector", illegal_vector);
    tests.case("apic_disabled", apic_disabled);
    tests.case("timer_one_shot", timer_one_shot);
    tests.case("timer_periodic", timer_periodic);
    tests.case("timer_masked", timer_masked);
    tests.case("timer_count", timer_count);
    tests.case("timer_divider", timer_divider);
    tests.case("timer_tsc_deadline", timer_tsc_deadline);
    tests.case("nmi", nmi);
    tests.case("nmi_blocked_until_iret", nmi_blocked_until_iret);
    tests.case("nmi_wakes_hlt", nmi_wakes_hlt);
    tests.case("nmi_over_interrupt", nmi_over_interrupt);
    tests.case("x2apic_switch", x2apic_switch);
    tests.case("x2apic_self_ipi", x2apic_self_ipi);
    tests.case("x2apic_faults", x2apic_faults);
    tests.case("x2apic_tpr_masks", x2apic_in_turn);
}

const LOW: u8 = 0x45;
const MIDDLE: u8 = 0x75;
const HIGH: u8 = 0xa5;

fn prepare() -> Lapic {
    cpu::cli();
    pit::stop();
    pic::init();
    ioapic::mask_all();
    let apic = Lapic::now();
    apic.enable();
    for v in [LOW, MIDDLE, HIGH] {
        trap::on(v, Some(NOTE_AND_EOI));
    }
    forget();
    apic
}

fn wait(count: usize) -> bool {
    time::wait_for(2000, || {
        cpu::interrupt_window();
        ARRIVED.get() >= count
    })
}

fn xapic_registers() -> Outcome {
    let apic = prepare();
    let version = apic.read(reg::VERSION);
    check!((0x10..=0x1f).contains(&(version & 0xff)), "version {version:#x}");
    check!(version >> 16 & 0xff >= 3, "highest LVT entry in {version:#x}");
    check_eq!(apic.read(reg::ID) >> 24, cpu::cpuid(1, 0).ebx >> 24, "identity, by CPUID");
    for (register, value) in
        [(reg::TPR, 0x35), (reg::TPR, 0), (reg::LVT_LINT1, 0x1_0400), (reg::TIMER_DIVIDE, 0xb)]
    {
        apic.write(register, value);
        check_eq!(apic.read(register), value, "register {register:#x}");
    }
    apic.write(reg::LDR, 0x0100_0000);
    apic.write(reg::DFR, 0xffff_ffff);
    check_eq!(
        (apic.read(reg::LDR), apic.read(reg::DFR)),
        (0x0100_0000, 0xffff_ffff),
        "LDR and DFR"
    );
    Ok(())
}

fn self_ipi() -> Outcome {
    let apic = prepare();
    apic.self_ipi(LOW);
    check_eq!(apic.bit(reg::IRR, LOW), true, "requested while interrupts are off");
    cpu::interrupt_window();
    check_eq!(arrived::<1>(), ([LOW], 1), "vectors");
    check_eq!((apic.bit(reg::IRR, LOW), apic.in_service()), (false, None), "IRR, ISR");
    Ok(())
}

fn ipi_shorthands() -> Outcome {
    let apic = prepare();
    // All including self; then one's own identity; then a logical destination.
    apic.command(2 << 18 | bits::ASSERT | u32::from(LOW));
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 1, "all including self");
    apic.write(reg::ICR_HIGH, apic.read(reg::ID));
    apic.command(bits::ASSERT | u32::from(LOW));
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 2, "physical destination");
    apic.write(reg::LDR, 0x0100_0000);
    apic.write(reg::DFR, 0xffff_ffff);
    apic.write(reg::ICR_HIGH, 0x0100_0000);
    apic.command(1 << 11 | bits::ASSERT | u32::from(LOW));
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 3, "logical destination");
    apic.command(3 << 18 | bits::ASSERT | u32::from(LOW));
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 3, "all excluding self");
    Ok(())
}

fn priorities() -> Outcome {
    let apic = prepare();
    for v in [LOW, HIGH, MIDDLE] {
        apic.self_ipi(v);
    }
    cpu::interrupt_window();
    cpu::interrupt_window();
    cpu::interrupt_window();
    check_eq!(arrived::<3>(), ([HIGH, MIDDLE, LOW], 3), "order");
    Ok(())
}

fn masks(set: fn(u8)) -> Outcome {
    let apic = prepare();
    set(0x7);
    for v in [LOW, MIDDLE, HIGH] {
        apic.self_ipi(v);
    }
    cpu::interrupt_window();
    cpu::interrupt_window();
    check_eq!(arrived::<2>(), ([HIGH, 0], 1), "vectors above priority 7");
    set(0x6);
    cpu::interrupt_window();
    check_eq!(arrived::<3>(), ([HIGH, MIDDLE, 0], 2), "vectors above priority 6");
    set(0);
    cpu::interrupt_window();
    check_eq!(arrived::<3>(), ([HIGH, MIDDLE, LOW], 3), "vectors above priority 0");
    Ok(())
}

fn tpr_masks() -> Outcome {
    masks(|priority| Lapic::now().write(reg::TPR, u32::from(priority) << 4))
}

fn cr8_masks() -> Outcome {
    masks(|priority| {
        let _ = cpu::set_cr8(u64::from(priority));
    })
}

fn nested_interrupts() -> Outcome {
    let apic = prepare();
    trap::on(
        LOW,
        Some(|_| {
            note(LOW);
            let apic = Lapic::now();
            apic.self_ipi(LOW + 1); // same class: has to wait
            apic.self_ipi(HIGH);
            cpu::interrupt_window();
            note(1);
            apic.eoi();
            cpu::interrupt_window();
            note(2);
        }),
    );
    trap::on(LOW + 1, Some(NOTE_AND_EOI));
    apic.self_ipi(LOW);
    cpu::interrupt_window();
    check_eq!(arrived::<5>(), ([LOW, HIGH, 1, LOW + 1, 2], 5), "order");
    Ok(())
}

fn eoi_order() -> Outcome {
    let apic = prepare();
    static SERVICE: Shared<[Option<u8>; 3]> = Shared::new([None; 3]);
    static PPR: Shared<u32> = Shared::new(0);
    trap::on(
        LOW,
        Some(|_| {
            let apic = Lapic::now();
            apic.self_ipi(HIGH);
            cpu::interrupt_window();
        }),
    );
    trap::on(
        HIGH,
        Some(|_| {
            let apic = Lapic::now();
            let both = apic.in_service();
            PPR.set(apic.read(reg::PPR));
            apic.eoi();
            let one = apic.in_service();
            apic.eoi();
            SERVICE.set([both, one, apic.in_service()]);
        }),
    );
    apic.self_ipi(LOW);
    cpu::interrupt_window();
    check_eq!(SERVICE.get(), [Some(HIGH), Some(LOW), None], "highest in service around two EOIs");
    check_eq!(PPR.get() & 0xf0, u32::from(HIGH) & 0xf0, "processor priority");
    Ok(())
}

fn interrupt_window() -> Outcome {
    let apic = prepare();
    for round in 1..=1000 {
        apic.self_ipi(LOW);
        let _ = cpu::cpuid(0, 0);
        check_eq!(ARRIVED.get(), round - 1, "interrupts while IF is clear");
        cpu::interrupt_window();
        check_eq!(ARRIVED.get(), round, "interrupts after STI");
    }
    // POPF and IRET open the window too.
    apic.self_ipi(LOW);
    // SAFETY: interrupts are off again afterwards.
    unsafe { core::arch::asm!("push 0x202", "popfq", "nop", "nop", "cli") };
    check_eq!(ARRIVED.get(), 1001, "interrupts after POPF");
    Ok(())
}

fn one_pending_per_vector() -> Outcome {
    let apic = prepare();
    for _ in 0..5 {
        apic.self_ipi(LOW);
    }
    cpu::interrupt_window();
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 1, "interrupts of five requests");
    Ok(())
}

fn spurious_vector() -> Outcome {
    let apic = prepare();
    check_eq!(apic.read(reg::SVR) & 0x1ff, 0x1ff, "spurious vector register");
    trap::on(0xff, Some(|_| note(0xff)));
    // A timer's vector arrives, then TPR rises before the CPU takes it.
    apic.self_ipi(LOW);
    apic.write(reg::TPR, 0xf0);
    cpu::interrupt_window();
    check!(ARRIVED.get() <= 1 && arrived::<1>().0[0] != LOW, "the masked vector came");
    apic.write(reg::TPR, 0);
    cpu::interrupt_window();
    check!(apic.in_service().is_none(), "a spurious interrupt is in service");
    Ok(())
}

fn illegal_vector() -> Outcome {
    let apic = prepare();
    if cpu::on_bare_tcg() {
        skip!("bare QEMU does not check");
    }
    apic.write(reg::ESR, 0);
    apic.self_ipi(0x0e);
    apic.write(reg::ESR, 0);
    let esr = apic.read(reg::ESR);
    cpu::interrupt_window();
    apic.write(reg::ESR, 0);
    check!(esr & 0x60 != 0, "ESR {esr:#x} after sending vector 14");
    Ok(())
}

fn apic_disabled() -> Outcome {
    let apic = prepare();
    apic.write(reg::SVR, 0xff);
    let lvt = apic.read(reg::LVT_TIMER);
    apic.write(reg::LVT_TIMER, u32::from(LOW));
    let still = apic.read(reg::LVT_TIMER);
    apic.write(reg::SVR, 0x1ff);
    check!(lvt & bits::MASKED != 0, "LVT not masked when disabled");
    if !cpu::on_bare_tcg() {
        check!(still & bits::MASKED != 0, "LVT can be unmasked while disabled");
    }
    Ok(())
}

fn timer_one_shot() -> Outcome {
    let apic = prepare();
    apic.write(reg::TIMER_DIVIDE, 0xb);
    apic.write(reg::LVT_TIMER, u32::from(LOW));
    for round in 1..=3 {
        apic.write(reg::TIMER_INITIAL, 100_000);
        check!(wait(round), "interrupt {round} never came");
        check_eq!(apic.read(reg::TIMER_CURRENT), 0, "current count at the end");
        time::delay(1000);
        cpu::interrupt_window();
        check_eq!(ARRIVED.get(), round, "interrupts");
    }
    // Zero stops it.
    apic.write(reg::TIMER_INITIAL, 100_000_000);
    apic.write(reg::TIMER_INITIAL, 0);
    time::delay(150_000);
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 3, "interrupts after it was stopped");
    Ok(())
}

fn timer_periodic() -> Outcome {
    let apic = prepare();
    apic.write(reg::TIMER_DIVIDE, 0xb);
    apic.write(reg::LVT_TIMER, bits::PERIODIC | u32::from(LOW));
    apic.write(reg::TIMER_INITIAL, 500_000);
    let came = wait(10);
    apic.write(reg::TIMER_INITIAL, 0);
    cpu::interrupt_window();
    let seen = ARRIVED.get();
    time::delay(5000);
    cpu::interrupt_window();
    check!(came, "{seen} interrupts");
    check_eq!(ARRIVED.get(), seen, "interrupts after it was stopped");
    Ok(())
}

fn timer_masked() -> Outcome {
    let apic = prepare();
    apic.write(reg::TIMER_DIVIDE, 0xb);
    apic.write(reg::LVT_TIMER, bits::MASKED | u32::from(LOW));
    apic.write(reg::TIMER_INITIAL, 10_000);
    let done = time::wait_for(2000, || apic.read(reg::TIMER_CURRENT) == 0);
    cpu::interrupt_window();
    check!(done, "a masked timer does not count");
    check_eq!(ARRIVED.get(), 0, "interrupts of a masked timer");
    Ok(())
}

/// Ticks of the timer in 20 ms.
fn ticks(apic: Lapic, divide: u32) -> u64 {
    apic.write(reg::TIMER_DIVIDE, divide);
    apic.write(reg::LVT_TIMER, bits::MASKED);
    apic.write(reg::TIMER_INITIAL, u32::MAX);
    let first = apic.read(reg::TIMER_CURRENT);
    let start = cpu::rdtsc();
    time::delay(20_000);
    let last = apic.read(reg::TIMER_CURRENT);
    let spent = cpu::rdtsc() - start;
    apic.write(reg::TIMER_INITIAL, 0);
    u64::from(first - last) * time::micros(20_000) / spent
}

fn timer_count() -> Outcome {
    let apic = prepare();
    let (first, second) = (ticks(apic, 0xb), ticks(apic, 0xb));
    check!(first > 1000, "{first} ticks in 20 ms");
    check!(time::close(first, second, 20), "{first} ticks, then {second}");
    Ok(())
}

fn timer_divider() -> Outcome {
    let apic = prepare();
    // The least of several: a machine that is interrupted itself counts too much.
    let ticks = |code| (0..3).map(|_| ticks(apic, code)).min().unwrap_or(0);
    let whole = ticks(0xb);
    for (code, divisor) in [(0, 2), (1, 4), (8, 32), (0xa, 128)] {
        let divided = ticks(code) * divisor;
        check!(
            time::close(whole, divided, 20),
            "undivided {whole}, by {divisor} times {divisor} {divided}"
        );
    }
    Ok(())
}

fn timer_tsc_deadline() -> Outcome {
    if cpu::features().0 >> 24 & 1 == 0 {
        skip!("not offered");
    }
    let apic = prepare();
    const DEADLINE: u32 = 0x6e0;
    apic.write(reg::LVT_TIMER, bits::TSC_DEADLINE | u32::from(LOW));
    for round in 1..=5 {
        let deadline = cpu::rdtsc() + time::micros(50_000);
        check!(cpu::wrmsr(DEADLINE, deadline).is_ok(), "can't be written");
        check_eq!(cpu::rdmsr(DEADLINE).ok(), Some(deadline), "reads back while armed");
        check!(wait(round), "interrupt {round} never came");
        check!(cpu::rdtsc() >= deadline, "it came before its time");
        check_eq!(cpu::rdmsr(DEADLINE).ok(), Some(0), "reads zero once it fired");
    }
    let _ = cpu::wrmsr(DEADLINE, 1);
    check!(wait(6), "a deadline in the past never fired");
    let _ = cpu::wrmsr(DEADLINE, cpu::rdtsc() + time::micros(100_000));
    let _ = cpu::wrmsr(DEADLINE, 0);
    time::delay(150_000);
    cpu::interrupt_window();
    check_eq!(ARRIVED.get(), 6, "interrupts after it was disarmed");
    apic.write(reg::TIMER_INITIAL, 1000);
    time::delay(1000);
    cpu::interrupt_window();
    check_eq!(
        (ARRIVED.get(), apic.read(reg::TIMER_CURRENT)),
        (6, 0),
        "the initial count is ignored"
    );
    apic.write(reg::LVT_TIMER, bits::MASKED);
    check!(cpu::wrmsr(DEADLINE, u64::MAX).is_ok(), "outside its mode it is ignored, not refused");
    check_eq!(cpu::rdmsr(DEADLINE).ok(), Some(0), "outside its mode it reads zero");
    Ok(())
}

fn nmi() -> Outcome {
    let apic = prepare();
    trap::on(vector::NMI, Some(|_| note(vector::NMI)));
    for round in 1..=100 {
        apic.self_nmi();
        check!(
            time::wait_for(1000, || ARRIVED.get() >= round),
            "NMI {round} never came, interrupts off"
        );
    }
    trap::on(vector::NMI, None);
    check_eq!(ARRIVED.get(), 100, "NMIs");
    Ok(())
}

fn nmi_blocked_until_iret() -> Outcome {
    let apic = prepare();
    trap::on(
        vector::NMI,
        Some(|_| {
            note(vector::NMI);
            if ARRIVED.get() == 1 {
                let apic = Lapic::now();
                apic.self_nmi();
                apic.self_nmi(); // only one can wait
                let _ = cpu::cpuid(0, 0);
                note(1);
            }
        }),
    );
    apic.self_nmi();
    let came = time::wait_for(1000, || ARRIVED.get() >= 3);
    time::delay(1000);
    trap::on(vector::NMI, None);
    check!(came, "{} events", ARRIVED.get());
    check_eq!(arrived::<3>(), ([2, 1, 2], 3), "order: handler, its end, next NMI");
    Ok(())
}

fn nmi_wakes_hlt() -> Outcome {
    let _ = prepare();
    trap::on(vector::NMI, Some(|_| note(vector::NMI)));
    ioapic::route(2, bits::NMI);
    pit::program(0, 0, 20_000); // 17 ms
    let caught = catch_asm!(["cli", "hlt"]);
    ioapic::mask_all();
    trap::on(vector::NMI, None);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(arrived::<1>(), ([vector::NMI], 1), "what ended HLT with interrupts off");
    Ok(())
}

fn nmi_over_interrupt() -> Outcome {
    let apic = prepare();
    trap::on(vector::NMI, Some(|_| note(vector::NMI)));
    apic.self_ipi(HIGH);
    apic.self_nmi();
    let _ = cpu::cpuid(0, 0);
    let before = arrived::<2>();
    cpu::interrupt_window();
    trap::on(vector::NMI, None);
    check_eq!(before, ([2, 0], 1), "before STI");
    check_eq!(arrived::<2>(), ([2, HIGH], 2), "after STI");
    Ok(())
}

fn x2apic_switch() -> Outcome {
    if !Lapic::x2apic_offered() {
        let error = cpu::rdmsr(0x802).err();
        if !cpu::on_bare_tcg() {
            check_eq!(error.map(|t| t.vector), Some(vector::GP), "x2APIC MSR, not offered");
        }
        skip!("x2APIC is not offered");
    }
    let apic = prepare();
    check_eq!(
        cpu::rdmsr(0x802).err().map(|t| t.vector),
        Some(vector::GP),
        "MSR 0x802 in xAPIC mode"
    );
    let id = apic.read(reg::ID) >> 24;
    check_eq!(Lapic::to_x2apic(), Lapic::X2, "mode");
    let apic = prepare();
    check_eq!(apic.read(reg::ID), id, "identity");
    check_eq!(apic.read(reg::LDR), (id & !0xf) << 12 | 1 << (id & 0xf), "logical identity");
    check_eq!(cpu::cpuid(0xb, 0).edx, id, "identity, by CPUID leaf 0xb");
    Ok(())
}

fn x2apic_self_ipi() -> Outcome {
    if Lapic::now() != Lapic::X2 {
        skip!("not in x2APIC mode");
    }
    let _ = prepare();
    check!(cpu::wrmsr(0x83f, u64::from(LOW)).is_ok(), "SELF_IPI can't be written");
    cpu::interrupt_window();
    check_eq!(arrived::<1>(), ([LOW], 1), "vectors");
    check_eq!(
        cpu::rdmsr(0x83f).err().map(|t| t.vector),
        Some(vector::GP),
        "SELF_IPI is write-only"
    );
    Ok(())
}

fn x2apic_faults() -> Outcome {
    if Lapic::now() != Lapic::X2 {
        skip!("not in x2APIC mode");
    }
    let _ = prepare();
    let gp = Some(vector::GP);
    check_eq!(cpu::wrmsr(0x80b, 1).err().map(|t| t.vector), gp, "EOI with a value");
    check_eq!(cpu::wrmsr(0x802, 0).err().map(|t| t.vector), gp, "identity is read-only");
    check_eq!(cpu::rdmsr(0x80e).err().map(|t| t.vector), gp, "there is no DFR");
    check_eq!(cpu::rdmsr(0x831).err().map(|t| t.vector), gp, "there is no high half of ICR");
    check_eq!(cpu::wrmsr(0x808, 0x100).err().map(|t| t.vector), gp, "reserved bits of TPR");
    let base = cpu::rdmsr(0x1b).unwrap_or(0);
    check_eq!(cpu::wrmsr(0x1b, base & !(1 << 10)).err().map(|t| t.vector), gp, "back to xAPIC");
    Ok(())
}

fn x2apic_in_turn() -> Outcome {
    if Lapic::now() != Lapic::X2 {
        skip!("not in x2APIC mode");
    }
    self_ipi()?;
    priorities()?;
    tpr_masks()?;
    cr8_masks()?;
    nested_interrupts()?;
    eoi_order()?;
    timer_one_shot()?;
    timer_tsc_deadline()?;
    nmi()
}
