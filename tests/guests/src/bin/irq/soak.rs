//! Many interrupts, none lost; interrupts mixed with exceptions.

use guests::apic::{Lapic, bits, ioapic, reg};
use guests::cpu;
use guests::harness::{Outcome, Shared, Tests};
use guests::pc::{pic, pit};
use guests::trap::{self, vector};
use guests::{catch_asm, check_eq, info, time};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("soak_self_ipis", soak_self_ipis);
    tests.case("soak_hlt", soak_hlt);
    tests.case("soak_exceptions", soak_exceptions);
    tests.case("soak_two_sources", soak_two_sources);
}

const IPI: u8 = 0x61;
const TIMER: u8 = 0x71;
static COUNT: Shared<u64> = Shared::new(0);
static TICKS: Shared<u64> = Shared::new(0);
static APIC: Shared<Lapic> = Shared::new(Lapic::X1);

fn prepare() -> Lapic {
    cpu::cli();
    pit::stop();
    pic::init();
    ioapic::mask_all();
    let apic = Lapic::now();
    apic.enable();
    APIC.set(apic);
    COUNT.set(0);
    TICKS.set(0);
    trap::on(
        IPI,
        Some(|_| {
            COUNT.set(COUNT.get() + 1);
            APIC.get().eoi();
        }),
    );
    trap::on(
        TIMER,
        Some(|_| {
            TICKS.set(TICKS.get() + 1);
            APIC.get().eoi();
        }),
    );
    apic
}

/// How many rounds: `soak=N` on the command line, else 100,000.
fn rounds() -> u64 {
    info::number("soak").unwrap_or(100_000)
}

fn soak_self_ipis() -> Outcome {
    let apic = prepare();
    cpu::sti();
    for round in 1..=rounds() {
        apic.self_ipi(IPI);
        let mut patience = 1_000_000;
        while COUNT.get() < round && patience > 0 {
            patience -= 1;
        }
        if COUNT.get() != round {
            break;
        }
    }
    cpu::cli();
    check_eq!(COUNT.get(), rounds(), "interrupts");
    Ok(())
}

fn soak_hlt() -> Outcome {
    let apic = prepare();
    let rounds = rounds() / 20;
    for round in 1..=rounds {
        apic.self_ipi(IPI);
        cpu::wait_for_interrupt();
        check_eq!(COUNT.get(), round, "interrupts");
    }
    Ok(())
}

fn soak_exceptions() -> Outcome {
    let apic = prepare();
    let rounds = rounds() / 5;
    cpu::sti();
    for _ in 0..rounds {
        apic.self_ipi(IPI);
        let caught = catch_asm!(["ud2"]);
        if caught.map(|t| t.vector) != Some(vector::UD) {
            break;
        }
        let caught = catch_asm!(["mov rax, [{p}]"], p = in(reg) 0x70_0000_0000u64, out("rax") _);
        if caught.map(|t| t.vector) != Some(vector::PF) {
            break;
        }
    }
    cpu::cli();
    cpu::interrupt_window();
    check_eq!(COUNT.get(), rounds, "interrupts");
    Ok(())
}

fn soak_two_sources() -> Outcome {
    let apic = prepare();
    apic.write(reg::TIMER_DIVIDE, 0xb);
    apic.write(reg::LVT_TIMER, bits::PERIODIC | u32::from(TIMER));
    apic.write(reg::TIMER_INITIAL, 1_000_000);
    let mut sent = 0;
    cpu::sti();
    let end = cpu::rdtsc() + time::micros(500_000);
    while cpu::rdtsc() < end {
        apic.self_ipi(IPI);
        sent += 1;
        let _ = cpu::cpuid(0, 0);
        let mut patience = 1_000_000;
        while COUNT.get() < sent && patience > 0 {
            patience -= 1;
        }
    }
    cpu::cli();
    apic.write(reg::TIMER_INITIAL, 0);
    cpu::interrupt_window();
    check_eq!(COUNT.get(), sent, "self-IPIs, with {} timer interrupts between", TICKS.get());
    check_eq!(TICKS.get() > 10, true, "{} timer interrupts", TICKS.get());
    Ok(())
}
