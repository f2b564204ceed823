//! The one thing in ACPI's machine language that the hypervisor wants to know: what to
//! write to switch the machine off.

#[cfg(test)]
mod tests;

const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const NAME: u8 = 0x08;
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;
const PACKAGE: u8 = 0x12;
const ROOT: u8 = b'\\';
const ONES: u8 = 0xff;

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
