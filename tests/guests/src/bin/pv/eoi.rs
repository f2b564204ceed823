//! Ends of interrupts by a bit in memory, in both modes of the local APIC.

use crate::need;
use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use guests::apic::{Lapic, bits, ioapic, reg};
use guests::cpu::{self, rdmsr, wrmsr};
use guests::harness::{Outcome, Tests};
use guests::io::{inb, outb};
use guests::trap::{self, vector};
use guests::{check, check_eq, console, skip, time};
use hvabi::kvm::feature;

const MSR: u32 = 0x4b56_4d04;
const HIGH: u8 = 0x71;
const LOW: u8 = 0x51;
const SERIAL_PIN: u32 = 4;

pub(crate) fn run(tests: &mut Tests) {
    tests.case("eoi_msr", msr);
    for mode in ["", "_x2apic"] {
        if !mode.is_empty() {
            cpu::cli();
            if !Lapic::x2apic_offered() || Lapic::to_x2apic() != Lapic::X2 {
                break;
            }
        }
        let name = |plain, x2apic| if mode.is_empty() { plain } else { x2apic };
        tests.case(name("eoi", "eoi_x2apic"), single);
        tests.case(name("eoi_by_register", "eoi_by_register_x2apic"), by_register);
        tests.case(name("eoi_both_ways", "eoi_both_ways_x2apic"), both_ways);
        tests.case(name("eoi_pending", "eoi_pending_x2apic"), pending);
        tests.case(name("eoi_nested", "eoi_nested_x2apic"), nested);
        tests.case(name("eoi_level", "eoi_level_x2apic"), level);
        tests.case(name("eoi_off", "eoi_off_x2apic"), off);
    }
}

/// The word; bit 0 says that the interrupt in service ends when it is cleared.
#[repr(align(64))]
struct Word(AtomicU32);
static WORD: Word = Word(AtomicU32::new(0));

fn at() -> u64 {
    ptr::from_ref(&WORD.0).expose_provenance() as u64
}

/// Takes the bit, as Linux does: whether it was there.
fn take() -> bool {
    let taken: u8;
    // SAFETY: the word is this program's; the instruction changes nothing else. It is
    // one instruction, so that no exit comes in between.
    unsafe {
        core::arch::asm!("btr dword ptr [{at}], 0", "setc {taken}", at = in(reg) at(),
            taken = out(reg_byte) taken, options(nostack));
    }
    taken != 0
}

fn end() -> bool {
    let taken = take();
    if !taken {
        Lapic::now().eoi();
    }
    taken
}

/// For each interrupt, in order, its vector and whether it ended without the
/// register.
static LOG: [AtomicU8; 8] = [const { AtomicU8::new(0) }; 8];
static LOGGED: AtomicU8 = AtomicU8::new(0);

fn log(vector: u8, taken: bool) {
    let index = usize::from(LOGGED.fetch_add(1, SeqCst));
    if let Some(slot) = LOG.get(index) {
        slot.store(vector | u8::from(taken) << 7, SeqCst);
    }
}

/// The log's entries, then zeros.
fn logged() -> [u8; 4] {
    [0, 1, 2, 3].map(|index: usize| LOG[index].load(SeqCst))
}

const TAKEN: u8 = 0x80;

fn prepare() -> Outcome {
    cpu::cli();
    let apic = Lapic::now();
    apic.enable();
    ioapic::mask_all();
    for slot in &LOG {
        slot.store(0, SeqCst);
    }
    LOGGED.store(0, SeqCst);
    WORD.0.store(0xabcd_0000, SeqCst);
    trap::on(HIGH, Some(|_| log(HIGH, end())));
    trap::on(LOW, Some(|_| log(LOW, end())));
    check!(wrmsr(MSR, at() | 1).is_ok(), "the MSR can't be written");
    Ok(())
}

/// The end of a case: nothing is in service, and the word is as it was.
fn done() -> Outcome {
    check_eq!(Lapic::now().in_service(), None, "in service at the end");
    check_eq!(WORD.0.load(SeqCst), 0xabcd_0000, "the word at the end");
    Ok(())
}

fn msr() -> Outcome {
    if crate::offered().0 & feature::PV_EOI == 0 {
        // The CPU ends interrupts by itself: then it is not there at all.
        for refused in [rdmsr(MSR).err(), wrmsr(MSR, at() | 1).err()] {
            check_eq!(refused.map(|trap| trap.vector), Some(vector::GP), "not offered");
        }
        skip!("not offered");
    }
    check_eq!(rdmsr(MSR).ok(), Some(0), "before it is written");
    check!(wrmsr(MSR, at() | 1).is_ok(), "can't be written");
    for bad in [at() | 2, at() | 3, 0xfee0_0001, 0xd000_0001] {
        let caught = wrmsr(MSR, bad).err().map(|trap| trap.vector);
        check_eq!(caught, Some(vector::GP), "{bad:#x}");
    }
    check_eq!(rdmsr(MSR).ok(), Some(at() | 1), "reads back");
    Ok(())
}

fn single() -> Outcome {
    need!(feature::PV_EOI);
    prepare()?;
    let mut taken = 0;
    for _ in 0..200 {
        LOGGED.store(0, SeqCst);
        Lapic::now().self_ipi(HIGH);
        cpu::interrupt_window();
        let [first, ..] = logged();
        check_eq!(LOGGED.load(SeqCst), 1, "interrupts");
        check_eq!(first & !TAKEN, HIGH, "vector");
        taken += u32::from(first & TAKEN != 0);
        // One that has ended lets a lower one through.
        LOGGED.store(0, SeqCst);
        Lapic::now().self_ipi(LOW);
        cpu::interrupt_window();
        check_eq!(LOGGED.load(SeqCst), 1, "interrupts behind it");
    }
    check!(taken >= 190, "{taken} of 200 ended without the register");
    done()
}

fn by_register() -> Outcome {
    need!(feature::PV_EOI);
    prepare()?;
    // The bit is left alone.
    trap::on(
        HIGH,
        Some(|_| {
            log(HIGH, WORD.0.load(SeqCst) & 1 != 0);
            Lapic::now().eoi();
        }),
    );
    for round in 0..20 {
        LOGGED.store(0, SeqCst);
        Lapic::now().self_ipi(HIGH);
        cpu::interrupt_window();
        check_eq!(LOGGED.load(SeqCst), 1, "round {round}: interrupts");
        check_eq!(Lapic::now().in_service(), None, "round {round}: in service");
    }
    Lapic::now().self_ipi(LOW);
    cpu::interrupt_window();
    check_eq!(LOGGED.load(SeqCst), 2, "interrupts");
    done()
}

fn both_ways() -> Outcome {
    need!(feature::PV_EOI);
    prepare()?;
    // Ended twice: the second end is for nobody.
    trap::on(
        HIGH,
        Some(|_| {
            log(HIGH, take());
            Lapic::now().eoi();
        }),
    );
    for _ in 0..20 {
        LOGGED.store(0, SeqCst);
        Lapic::now().self_ipi(HIGH);
        cpu::interrupt_window();
        Lapic::now().self_ipi(LOW);
        cpu::interrupt_window();
        check_eq!(LOGGED.load(SeqCst), 2, "interrupts");
    }
    done()
}

fn pending() -> Outcome {
    need!(feature::PV_EOI);
    prepare()?;
    Lapic::now().self_ipi(HIGH);
    Lapic::now().self_ipi(LOW);
    cpu::interrupt_window();
    cpu::interrupt_window();
    // The first must tell, as the second waits for its end.
    check_eq!(logged(), [HIGH, LOW | TAKEN, 0, 0], "interrupts");
    done()
}

fn nested() -> Outcome {
    need!(feature::PV_EOI);
    prepare()?;
    trap::on(
        LOW,
        Some(|_| {
            log(LOW, WORD.0.load(SeqCst) & 1 != 0);
            Lapic::now().self_ipi(HIGH);
            cpu::interrupt_window();
            // Let the hypervisor look again.
            let _ = Lapic::now().read(reg::ID);
            log(LOW, end());
        }),
    );
    Lapic::now().self_ipi(LOW);
    cpu::interrupt_window();
    check_eq!(logged(), [LOW | TAKEN, HIGH, LOW | TAKEN, 0], "interrupts");
    done()
}

fn serial_off() {
    outb(console::COM1 + 1, 0);
    let _ = inb(console::COM1 + 2);
}

fn level() -> Outcome {
    need!(feature::PV_EOI);
    prepare()?;
    serial_off();
    trap::on(
        HIGH,
        Some(|_| {
            serial_off();
            log(HIGH, end());
        }),
    );
    ioapic::route(SERIAL_PIN, bits::LEVEL | u32::from(HIGH));
    outb(console::COM1 + 4, 0xb);
    outb(console::COM1 + 1, 2);
    time::wait_for(1000, || {
        cpu::interrupt_window();
        LOGGED.load(SeqCst) != 0
    });
    serial_off();
    check_eq!(logged(), [HIGH, 0, 0, 0], "interrupts");
    check_eq!(ioapic::entry(SERIAL_PIN) & bits::REMOTE_IRR, 0, "remote IRR");
    ioapic::mask_all();
    // The same vector, once more as an edge.
    trap::on(HIGH, Some(|_| log(HIGH, end())));
    Lapic::now().self_ipi(HIGH);
    cpu::interrupt_window();
    check_eq!(logged(), [HIGH, HIGH | TAKEN, 0, 0], "interrupts");
    done()
}

fn off() -> Outcome {
    need!(feature::PV_EOI);
    prepare()?;
    check!(wrmsr(MSR, 0).is_ok(), "can't be switched off");
    Lapic::now().self_ipi(HIGH);
    cpu::interrupt_window();
    check_eq!(logged(), [HIGH, 0, 0, 0], "interrupts");
    done()
}
