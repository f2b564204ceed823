//! A VMCS in words, for crash reports.

use super::vmcs::{Current, Field};
use core::fmt::{self, LowerHex, Write};
use x86defs::vmcs::check::Image;
use x86defs::vmcs::{Field16, Field32, Field64, FieldNatural};

/// Writes every field that the CPU has.
pub(super) fn dump(vmcs: Current<'_>, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "VMCS; fields that are not listed are 0")?;
    group(vmcs, out, Field16::ALL)?;
    group(vmcs, out, Field32::ALL)?;
    group(vmcs, out, Field64::ALL)?;
    group(vmcs, out, FieldNatural::ALL)
}

/// A copy of every field that the CPU has.
pub(super) fn image(vmcs: Current<'_>) -> Image {
    let mut image = Image::default();
    for (_, field) in Field16::ALL {
        image.set16(*field, vmcs.try_read(*field).unwrap_or(0));
    }
    for (_, field) in Field32::ALL {
        image.set32(*field, vmcs.try_read(*field).unwrap_or(0));
    }
    for (_, field) in Field64::ALL {
        image.set64(*field, vmcs.try_read(*field).unwrap_or(0));
    }
    for (_, field) in FieldNatural::ALL {
        image.set(*field, vmcs.try_read(*field).unwrap_or(0));
    }
    image
}

fn group<F: Field>(
    vmcs: Current<'_>,
    out: &mut dyn Write,
    fields: &[(&'static str, F)],
) -> fmt::Result
where
    F::Value: LowerHex + PartialEq,
{
    let listed = fields.iter().filter_map(|(name, field)| {
        let value = vmcs.try_read(*field)?;
        (value != F::Value::default()).then_some((name, value))
    });
    for (number, (name, value)) in listed.enumerate() {
        write!(out, "{}{name:26} {value:#018x}", if number % 2 == 0 { "\n  " } else { "  " })?;
    }
    writeln!(out)
}
