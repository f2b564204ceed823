//! How the machine switches itself off: ACPI's state S5 (soft off), through the fixed
//! power-management registers (ACPI: "PM1 Control Registers").

use super::asm::{inw, outb, outw};
use spin::Once;

/// PM1 control: the machine's power management is ACPI's, not firmware's.
const SCI_EN: u16 = 1 << 0;
/// The lowest bit of SLP_TYP.
const SLP_TYP_SHIFT: u32 = 10;
const SLP_TYP: u16 = 7 << SLP_TYP_SHIFT;
const SLP_EN: u16 = 1 << 13;

/// Looks at a register until firmware has given it up: a second or more.
const LOOKS: u32 = 1_000_000;

/// The registers to write, and their values.
#[derive(Clone, Copy, Debug)]
pub struct SoftOff {
    /// The ports of PM1a's control register and of PM1b's, if there is one.
    pub control: (u16, Option<u16>),
    /// The SLP_TYP of S5 in each.
    pub types: [u8; 2],
    /// The port, and what to write there, by which firmware hands the registers over.
    pub enable: Option<(u16, u8)>,
}

static SOFT_OFF: Once<SoftOff> = Once::new();

/// Remembers how the machine is switched off.
pub fn set_soft_off(how: SoftOff) {
    SOFT_OFF.call_once(|| how);
}

/// Switches the machine off. Returns where it is not known how, or did not work.
pub fn off() {
    let Some(how) = SOFT_OFF.get() else { return };
    let (first, second) = how.control;
    if let Some((port, value)) = how.enable.filter(|_| read(first) & SCI_EN == 0) {
        // SAFETY: firmware's tables say that this hands the registers over.
        unsafe { outb(port, value) };
        for _ in (0..LOOKS).take_while(|_| read(first) & SCI_EN == 0) {
            core::hint::spin_loop();
        }
    }
    let ports = [Some(first), second].into_iter().zip(how.types);
    let known = ports.filter_map(|(port, kind)| Some((port?, u16::from(kind) << SLP_TYP_SHIFT)));
    // First the type, in each register; then SLP_EN, in each.
    for (port, kind) in known.clone() {
        write(port, read(port) & !(SLP_TYP | SLP_EN) | kind);
    }
    for (port, kind) in known {
        write(port, read(port) & !SLP_TYP | kind | SLP_EN);
    }
    // The machine takes its time to go off.
    for _ in 0..LOOKS {
        let _ = read(first);
    }
}

fn read(port: u16) -> u16 {
    // SAFETY: firmware's tables say that this is the power management's control register:
    // reading it has no effect.
    unsafe { inw(port) }
}

fn write(port: u16, value: u16) {
    // SAFETY: the port is the power management's control register, as for `read`; nothing of
    // the machine is needed any more.
    unsafe { outw(port, value) };
}
