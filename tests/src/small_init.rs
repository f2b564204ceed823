//! An initial ramdisk with one program, which prints a line and switches the machine off: a boot of
//! Linux with nothing behind it.

use anyhow::Result;
use xtask::guest;

/// Address at which the program is loaded.
const BASE: u64 = 0x40_0000;
/// Bytes of the ELF header and its one program header.
const HEADERS: u64 = 64 + 56;

/// The ramdisk; its program prints sixteen hexadecimal digits, the TSC when it begins, and `line`.
///
/// # Errors
/// The line is longer than a ramdisk's file can be.
pub(crate) fn ramdisk(line: &str) -> Result<Vec<u8>> {
    guest::ramdisk_of(&program(&format!("{:16}{line}\n", ""))?)
}

/// An ELF program: the headers, the code, and the text right behind it.
fn program(text: &str) -> Result<Vec<u8>> {
    let code = code(u32::try_from(text.len())?);
    let size = HEADERS + (code.len() + text.len()) as u64;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Executable, x86-64, version 1.
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Entry point, program headers, no section headers, no flags.
    for value in [BASE + HEADERS, 64, 0] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    // Sizes: header, program header and their number, section header and their number.
    for value in [64u16, 56, 1, 64, 0, 0] {
        bytes.extend(value.to_le_bytes());
    }
    // Loaded whole, to be read, written and executed.
    bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for value in [0, BASE, BASE, size, size, 0x1000] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(code);
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

/// Puts the TSC's digits before the text; write(1, …); tcdrain(1); reboot(power off).
fn code(length: u32) -> Vec<u8> {
    let [l0, l1, l2, l3] = length.to_le_bytes();
    [
        &[0x0f, 0x31][..],                  // rdtsc
        &[0x48, 0xc1, 0xe2, 0x20],          // shl rdx, 32
        &[0x48, 0x09, 0xd0],                // or rax, rdx
        &[0x48, 0x8d, 0x3d, 0x65, 0, 0, 0], // lea rdi, [the end of the code]
        &[0xb9, 0x10, 0, 0, 0],             // mov ecx, 16
        &[0x89, 0xc2],                      // mov edx, eax: the last digit
        &[0x83, 0xe2, 0x0f],                // and edx, 15
        &[0x83, 0xfa, 0x0a],                // cmp edx, 10
        &[0x72, 0x03],                      // jb over the next
        &[0x83, 0xc2, 0x27],                // add edx, 'a' - 10 - '0'
        &[0x83, 0xc2, 0x30],                // add edx, '0'
        &[0x88, 0x54, 0x0f, 0xff],          // mov [rdi + rcx - 1], dl
        &[0x48, 0xc1, 0xe8, 0x04],          // shr rax, 4
        &[0xe2, 0xe6],                      // loop to the last digit
        &[0xb8, 0x01, 0, 0, 0],             // mov eax, 1 (write)
        &[0xbf, 0x01, 0, 0, 0],             // mov edi, 1
        &[0x48, 0x8d, 0x35, 0x35, 0, 0, 0], // lea rsi, [the end of the code]
        &[0xba, l0, l1, l2, l3],            // mov edx, length
        &[0x0f, 0x05],                      // syscall
        &[0xb8, 0x10, 0, 0, 0],             // mov eax, 16 (ioctl)
        &[0xbf, 0x01, 0, 0, 0],             // mov edi, 1
        &[0xbe, 0x09, 0x54, 0, 0],          // mov esi, TCSBRK
        &[0xba, 0x01, 0, 0, 0],             // mov edx, 1
        &[0x0f, 0x05],                      // syscall
        &[0xb8, 0xa9, 0, 0, 0],             // mov eax, 169 (reboot)
        &[0xbf, 0xad, 0xde, 0xe1, 0xfe],    // mov edi, LINUX_REBOOT_MAGIC1
        &[0xbe, 0x69, 0x19, 0x12, 0x28],    // mov esi, LINUX_REBOOT_MAGIC2
        &[0xba, 0xdc, 0xfe, 0x21, 0x43],    // mov edx, LINUX_REBOOT_CMD_POWER_OFF
        &[0x0f, 0x05],                      // syscall
        &[0xeb, 0xfe],                      // jmp to itself
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_stands_where_the_code_looks_for_it() {
        let program = program("abc").unwrap();
        let code = code(3);
        // The instructions that name its place end there in the code.
        assert_eq!((16 + 0x65, 64 + 0x35), (code.len(), code.len()));
        assert!(program.ends_with(&[&code[..], b"abc"].concat()));
        let size = u64::from_le_bytes(program[64 + 32..64 + 40].try_into().unwrap());
        assert_eq!(size, program.len() as u64);
    }
}
