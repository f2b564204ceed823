//! ACPI's tables, as far as the hypervisor needs them: the way to them and the machine's CPUs
//! ([`tables`]); the registers that switch the machine off ([`FixedTable`]), and their values
//! ([`soft_off_types`]); and its clocks ([`PmTimer`], [`hpet_base`]). Fuzz target: `acpi`.

pub mod tables;
#[cfg(test)]
mod tests;

use tables::{byte, long, word};

/// In a generic address: the space of memory.
const MEMORY: u8 = 0;
/// In a generic address: the space of ports.
const PORTS: u8 = 1;

const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const NAME: u8 = 0x08;
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;
const PACKAGE: u8 = 0x12;
const ROOT: u8 = b'\\';
const ONES: u8 = 0xff;

/// Registers of the Fixed ACPI Description Table that switch the machine off
/// (ACPI: "Fixed ACPI Description Table (FADT)").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedTable {
    /// The ports of PM1a's control register and of PM1b's, if there is one.
    pub control: (u16, Option<u16>),
    /// The port, and what to write there, by which firmware hands these over.
    pub enable: Option<(u16, u8)>,
    /// Address of the DSDT.
    pub dsdt: u64,
}

impl FixedTable {
    /// Reads a table, header and all, as long as it is: firmware's word on its revision
    /// is not to be trusted. `None` if the registers are no ports, or the table ends before
    /// them.
    #[must_use]
    pub fn read(table: &[u8]) -> Option<Self> {
        let command = port(word(table, 48)?.into());
        let dsdt =
            long(table, 140).filter(|at| *at != 0).or_else(|| word(table, 40).map(u64::from))?;
        Some(Self {
            control: (register(table, 64, 172)?, register(table, 68, 184)),
            enable: command.zip(byte(table, 52)).filter(|(_, value)| *value != 0),
            dsdt,
        })
    }
}

/// The power-management timer, as the Fixed ACPI Description Table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// The port of its 32-bit register.
    pub port: u16,
    /// Whether it counts all 32 bits, or only 24.
    pub wide: bool,
}

impl PmTimer {
    /// Reads a Fixed ACPI Description Table; `None` where the timer is no port, or the
    /// machine has none (ACPI: "Hardware-Reduced ACPI").
    #[must_use]
    pub fn read(table: &[u8]) -> Option<Self> {
        const WIDE: u32 = 1 << 8;
        const HARDWARE_REDUCED: u32 = 1 << 20;
        let flags = word(table, 112)?;
        if flags & HARDWARE_REDUCED != 0 {
            return None;
        }
        Some(Self { port: register(table, 76, 208)?, wide: flags & WIDE != 0 })
    }
}

/// Address of the high-precision event timer's registers in memory, by its table
/// (Intel: "IA-PC HPET Specification", "The ACPI 2.0 HPET Description Table (HPET)").
#[must_use]
pub fn hpet_base(table: &[u8]) -> Option<u64> {
    let space = byte(table, 40)?;
    // The registers take a kilobyte, aligned to a kilobyte.
    long(table, 44).filter(|at| space == MEMORY && *at != 0 && *at % 1024 == 0)
}

fn port(address: u64) -> Option<u16> {
    u16::try_from(address).ok().filter(|port| *port != 0)
}

/// A register's port: the extended field, a generic address in the space of ports, or the
/// old one.
fn register(table: &[u8], old: usize, extended: usize) -> Option<u16> {
    let wide = byte(table, extended).filter(|space| *space == PORTS);
    wide.and_then(|_| port(long(table, extended + 4)?)).or_else(|| port(word(table, old)?.into()))
}

/// The values of SLP_TYP, 0 to 7, that mean the state S5 (soft off) to the first and
/// second power-management block: the package `_S5_` of a definition block, without its
/// header. `None` where it has no such package, or none of constants.
///
/// ACPI: "\_Sx (System States)", "Name Objects Encoding", "Data Objects Encoding".
#[must_use]
pub fn soft_off_types(block: &[u8]) -> Option<[u8; 2]> {
    let mut places = block.windows(4).enumerate().filter(|(_, name)| *name == b"_S5_");
    places.find_map(|(at, _)| {
        let (before, name) = block.split_at_checked(at)?;
        let [.., NAME] = before.strip_suffix(&[ROOT]).unwrap_or(before) else { return None };
        let rest = name.get(4..)?.strip_prefix(&[PACKAGE])?;
        // The top two bits of a package's length say how many more bytes it has.
        let (lead, rest) = rest.split_first()?;
        let (_, rest) = rest.split_at_checked(usize::from(lead >> 6))?;
        let (count, rest) = rest.split_first()?;
        let (first, rest) = constant(rest)?;
        // Some machines have one block only, and one element.
        let second = if *count > 1 { constant(rest)?.0 } else { 0 };
        Some([first & 7, second & 7])
    })
}

/// The low byte of an integer constant, and what stands behind it.
fn constant(code: &[u8]) -> Option<(u8, &[u8])> {
    let (operation, rest) = code.split_first()?;
    let bytes = match *operation {
        ZERO => return Some((0, rest)),
        ONE => return Some((1, rest)),
        ONES => return Some((0xff, rest)),
        BYTE => 1,
        WORD => 2,
        DWORD => 4,
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(bytes)?;
    Some((*value.first()?, rest))
}
