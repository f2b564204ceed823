//! Images that are no kernel for this machine, known by name: firmware, option ROMs, boot
//! sectors, real-mode programs in a Linux kernel's clothes, GRUB for coreboot or Xen.
//!
//! Each look reads a bounded number of bytes, whatever the image's size.

use crate::bytes::Bytes;
use crate::elf::Elf;
use crate::error::LoadError;
use crate::multiboot;
use crate::pvh::{NOTE_ENTRY, NOTE_NAME};
use alloc::format;
use alloc::string::String;

/// How far the name of the platform that a GRUB is made for stands from its start, at most:
/// behind its core's code, which has 45 to 58 KiB in version 2.06.
const GRUB_SEARCHED: u64 = 0x1_8000;
/// ELF note `XEN_ELFNOTE_GUEST_OS` (Xen: "ELF notes"): kernels for its paravirtual mode have it.
const NOTE_GUEST_OS: u32 = 6;

/// Refusal of an ELF image that can't run here, though it may have a header that says it can.
///
/// # Errors
/// Errors of damaged notes.
pub(crate) fn elf(image: Bytes<'_>, elf: &Elf<'_>) -> Result<Option<LoadError>, LoadError> {
    let foreign = |what, cure| Ok(Some(LoadError::Foreign { what, cure }));
    match grub_platform(image, elf) {
        Some(Platform::Coreboot) => {
            return foreign(
                "GRUB for coreboot",
                "it needs coreboot's tables, which a guest has not; boot the kernel itself",
            );
        }
        Some(Platform::Xen) => {
            return foreign(
                "GRUB for Xen",
                "it needs Xen's hypercalls, which a guest has not; boot the kernel itself",
            );
        }
        None => {}
    }
    let of_xen = |kind| Ok::<_, LoadError>(elf.note(NOTE_NAME, kind)?.is_some());
    if of_xen(NOTE_GUEST_OS)? && !of_xen(NOTE_ENTRY)? && multiboot::find_header(image)?.is_none() {
        return foreign(
            "a kernel for Xen's paravirtual mode only",
            "boot its bzImage, or one with a PVH entry (Linux: CONFIG_PVH)",
        );
    }
    Ok(None)
}

/// The machines that a GRUB in an ELF image may be made for.
enum Platform {
    Coreboot,
    Xen,
}

/// An image is GRUB's if a segment of it holds GRUB's modules; the platform has a name in the
/// core. Others (`i386-multiboot`) are kernels like any other.
fn grub_platform(image: Bytes<'_>, elf: &Elf<'_>) -> Option<Platform> {
    /// First bytes of the modules (GRUB: `struct grub_module_info`).
    const MODULES: &[u8] = b"mimg";
    const KNOWN: [(&[u8], Platform); 4] = [
        (b"i386-coreboot\0", Platform::Coreboot),
        (b"i386-xen_pvh\0", Platform::Xen),
        (b"i386-xen\0", Platform::Xen),
        (b"x86_64-xen\0", Platform::Xen),
    ];
    if !elf.segments_begin().any(|begin| begin == MODULES) {
        return None;
    }
    let core = image.get(0, image.len().min(GRUB_SEARCHED))?;
    // All names have this in common: little is compared at most places.
    let mut names =
        core.windows(2).enumerate().filter(|(_, pair)| matches!(pair, [b'i', b'3'] | [b'x', b'8']));
    names.find_map(|(at, _)| {
        let here = core.get(at..)?;
        KNOWN.into_iter().find(|(name, _)| here.starts_with(name)).map(|(_, platform)| platform)
    })
}

/// Refusal of an image that has no header of a kernel; `None` if its kind is not known.
pub(crate) fn flat(image: Bytes<'_>) -> Option<LoadError> {
    const INSTEAD: &str = "a guest has no firmware that could run it; boot a kernel";
    let foreign = |what| Some(LoadError::Foreign { what, cure: INSTEAD });
    // UEFI PI: "Firmware Volume Header": the signature stands behind 16 zeros, a GUID and the size.
    if image.get(0x28, 4) == Some(b"_FVH") {
        return foreign("a UEFI firmware image (OVMF)");
    }
    // The last 16 bytes are the reset vector: a far jump, then the date of the release.
    let end = image.len();
    let vector = Bytes(image.get(end.checked_sub(16)?, 16)?);
    let date = [7, 10].map(|at| vector.u8(at));
    if vector.u8(0) == Some(0xea) && date == [Some(b'/'); 2] && end.is_multiple_of(0x1_0000) {
        return foreign("a PC BIOS image (SeaBIOS)");
    }
    // A near jump backward into the image, as qboot has it: forward there is nothing.
    let is_jump = vector.u8(0) == Some(0xe9) && vector.u16(1).is_some_and(|by| by >= 0x8000);
    if is_jump && end.is_multiple_of(0x1000) {
        return foreign("a firmware image (its last 16 bytes are a reset vector)");
    }
    if image.u16(0) == Some(0xaa55) {
        return foreign("an option ROM");
    }
    if image.u16(510) == Some(0xaa55) {
        return foreign("a disk image or boot sector");
    }
    None
}

/// Refusal of a program whose setup header is older than any that can be booted here, and whose
/// version text is this: `None` for a Linux kernel, whose text goes on with the builder's name in
/// parentheses behind the release.
pub(crate) fn real_mode(version: &[u8]) -> Option<LoadError> {
    let is_linux = version.first().is_some_and(u8::is_ascii_digit)
        && version.windows(2).any(|pair| pair == b" (");
    if is_linux {
        return None;
    }
    let text: String = version
        .iter()
        .map(|byte| char::from(*byte))
        .take_while(|c| c.is_ascii_graphic() || *c == ' ')
        .collect();
    let version =
        if text.is_empty() { text } else { format!(" and the version \"{}\"", text.trim()) };
    Some(LoadError::RealMode { version })
}
