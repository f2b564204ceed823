//! External interrupts whose delivery itself causes an exit or a fault.

use guests::apic::Lapic;
use guests::cpu;
use guests::harness::{Outcome, Shared, Tests};
use guests::trap::{self, Handler};
use guests::{check, check_eq, info, skip, user};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("interrupt_on_fresh_stack", interrupt_on_fresh_stack);
    tests.case("interrupt_handler_on_fresh_page", interrupt_handler_on_fresh_page);
    tests.case("interrupt_in_ring3", interrupt_in_ring3);
    tests.case("interrupt_during_exits", interrupt_during_exits);
}

const IPI: u8 = 0x42;
static COUNT: Shared<u64> = Shared::new(0);
const ON_IPI: Handler = |_| {
    COUNT.set(COUNT.get() + 1);
    Lapic::now().eoi();
};

fn arm() {
    cpu::cli();
    Lapic::now().enable();
    COUNT.set(0);
    trap::on(IPI, Some(ON_IPI));
}

/// Pages that nothing has touched since the guest was started.
const FRESH: u64 = 0x180_0000;
const FRESH_PAGES: u64 = 256;

fn enough_ram() -> bool {
    info::ram_bytes() > FRESH + 0x40_0000
}

/// The interrupt's frame is the first write to a page that the hypervisor may
/// not have populated yet: the delivery exits, and must be done again.
fn interrupt_on_fresh_stack() -> Outcome {
    if !enough_ram() {
        skip!("less than 28 MiB of RAM");
    }
    arm();
    let old = trap::set_gate(IPI, trap::gate(trap::stub(IPI), 2, 0));
    let mut lost = 0;
    let mut twice = 0;
    let old_ist = trap::set_ist(2, 0);
    for page in 0..FRESH_PAGES {
        // 2 MiB apart as well as neighbours, so that large pages count too.
        trap::set_ist(2, FRESH + page * 0x1000 + 0x1000);
        let before = COUNT.get();
        Lapic::now().self_ipi(IPI);
        cpu::interrupt_window();
        match COUNT.get() - before {
            0 => lost += 1,
            1 => {}
            _ => twice += 1,
        }
    }
    trap::set_ist(2, old_ist);
    trap::set_gate(IPI, old);
    trap::on(IPI, None);
    check!(lost == 0 && twice == 0, "{lost} interrupts lost, {twice} came twice");
    Ok(())
}

fn interrupt_handler_on_fresh_page() -> Outcome {
    if !enough_ram() {
        skip!("less than 28 MiB of RAM");
    }
    arm();
    // jmp [rip + 0]; address: a way station to the real stub, in a fresh page.
    let station = FRESH + 0x30_0000;
    let mut code = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    code[6..].copy_from_slice(&trap::stub(IPI).to_le_bytes());
    user::place(station, &code);
    let old = trap::set_gate(IPI, trap::gate(station, 0, 0));
    for _ in 0..10 {
        Lapic::now().self_ipi(IPI);
        cpu::interrupt_window();
    }
    trap::set_gate(IPI, old);
    trap::on(IPI, None);
    check_eq!(COUNT.get(), 10, "interrupts");
    Ok(())
}

fn interrupt_in_ring3() -> Outcome {
    arm();
    Lapic::now().self_ipi(IPI);
    // pause; int 0x80, with interrupts on: the pending one comes first.
    user::place(user::BASE, &[0xf3, 0x90, 0xf3, 0x90, 0xcd, 0x80]);
    let trap =
        user::run_at(user::BASE, trap::selector::USER_CODE, user::STACK_TOP, 0x202, [9, 0, 0, 0]);
    cpu::cli();
    trap::on(IPI, None);
    check_eq!(trap.vector, 0x80, "how ring 3 ended");
    check_eq!(COUNT.get(), 1, "interrupts");
    check_eq!(trap.rax, 9, "RAX");
    Ok(())
}

/// A periodic timer while the guest does nothing but exit.
fn interrupt_during_exits() -> Outcome {
    use guests::apic::{bits, reg};
    arm();
    let apic = Lapic::now();
    apic.write(reg::TIMER_DIVIDE, 0xb);
    apic.write(reg::LVT_TIMER, bits::PERIODIC | u32::from(IPI));
    apic.write(reg::TIMER_INITIAL, 1_000_000);
    cpu::sti();
    let end = cpu::rdtsc() + guests::time::micros(200_000);
    let mut rounds = 0u64;
    while cpu::rdtsc() < end {
        let _ = cpu::cpuid(0, 0);
        let _ = cpu::rdmsr(0x1b);
        let _ = guests::io::inb(0x61);
        let _ = apic.read(reg::VERSION);
        rounds += 1;
    }
    cpu::cli();
    apic.write(reg::LVT_TIMER, bits::MASKED);
    apic.write(reg::TIMER_INITIAL, 0);
    cpu::interrupt_window();
    trap::on(IPI, None);
    check!(COUNT.get() >= 2, "{} timer interrupts in {rounds} rounds of exits", COUNT.get());
    Ok(())
}
