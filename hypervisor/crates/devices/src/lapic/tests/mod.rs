//! Tests of the local APIC, a file for each chapter of the manual, and
//! properties over random accesses.

mod delivery;
mod identity;
mod page;
mod property;
mod registers;
mod timer;

use super::*;
use x86defs::{Msr, Width};

/// A tick a nanosecond.
const RATIO: TickRatio = TickRatio::from_khz(1_000_000);
const NOW: Ticks = Ticks(1_000);

/// An APIC in xAPIC mode, software-enabled.
fn xapic(id: u32) -> Lapic {
    let mut apic = Lapic::new(id, RATIO, Role::Bootstrap);
    assert_eq!(store(&mut apic, 0xf0, 0x1ff), Effect::IdentityChanged);
    apic
}

/// An APIC in x2APIC mode, software-enabled.
fn x2apic(id: u32) -> Lapic {
    let mut apic = xapic(id);
    assert_eq!(apic.write_apic_base(0xfee0_0c00), Ok(Effect::IdentityChanged));
    apic
}

fn store(apic: &mut Lapic, offset: u64, value: u32) -> Effect {
    apic.mmio_write(offset, Width::B4, value, NOW).unwrap()
}

fn load(apic: &mut Lapic, offset: u64) -> u32 {
    apic.mmio_read(offset, Width::B4, NOW).unwrap()
}

fn wrmsr(apic: &mut Lapic, msr: u32, value: u64) -> Result<Effect, Gp> {
    apic.msr_write(Msr(msr), value, NOW)
}

fn rdmsr(apic: &mut Lapic, msr: u32) -> Result<u64, Gp> {
    apic.msr_read(Msr(msr), NOW)
}

/// The posted-interrupt words with just `vector` in them.
fn posted(vector: u8) -> [u64; 4] {
    let mut set = VectorSet::EMPTY;
    set.insert(vector);
    set.0
}
