//! Interrupts: the 8259 pair, the PIT, the I/O APIC, the local APIC, NMI.
#![no_std]
#![no_main]

mod ioapic;
mod lapic;
mod pic;
mod soak;

use guests::harness::{Shared, Tests};
use guests::trap::{self, Handler};

guests::entry!(main);

/// Vectors in the order of arrival.
pub(crate) static ORDER: Shared<[u8; 32]> = Shared::new([0; 32]);
/// How many of them.
pub(crate) static ARRIVED: Shared<usize> = Shared::new(0);

/// Notes that a vector arrived.
pub(crate) fn note(vector: u8) {
    let mut order = ORDER.get();
    if let Some(slot) = order.get_mut(ARRIVED.get()) {
        *slot = vector;
    }
    ORDER.set(order);
    ARRIVED.set(ARRIVED.get() + 1);
}

/// Forgets what arrived.
pub(crate) fn forget() {
    ARRIVED.set(0);
    ORDER.set([0; 32]);
}

/// Interrupts that arrived, as a fixed-size list to compare with.
pub(crate) fn arrived<const N: usize>() -> ([u8; N], usize) {
    let order = ORDER.get();
    (core::array::from_fn(|i| order[i]), ARRIVED.get())
}

/// Notes the vector and ends it at the local APIC.
pub(crate) const NOTE_AND_EOI: Handler = |frame| {
    note(guests::cpu::low8(frame.vector));
    guests::apic::Lapic::now().eoi();
};

fn main() -> ! {
    // Lines of the PIC that a test leaves behind must not end the guest.
    let mut tests = Tests::new();
    trap::on(0xff, Some(|_| {}));
    pic::run(&mut tests);
    ioapic::run(&mut tests);
    lapic::run(&mut tests);
    soak::run(&mut tests);
    tests.finish()
}
