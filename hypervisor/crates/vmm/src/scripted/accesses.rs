//! Accesses to devices as Linux makes them: the general decoder is never asked, which is counted.
//!
//! The instructions are those of `readb` to `writeq`, `memcpy_fromio`, `memcpy_toio`, `memset_io`,
//! `__iowrite32_copy`, `insb` to `outsl` (Linux: `arch/x86/include/asm/io.h`, `arch/x86/lib/iomem.c`)
//! and of the local APIC's registers, and what compilers make of volatile loads and stores. The case
//! `debian-uefi` and others of the machine tests look at the same count after a boot.

use super::Play;
use crate::run::Next;
use x86defs::exit::{Direction, NestedAccess, NestedFault, PortIo, StringIo};
use x86defs::{Efer, Gpr, GuestPhysAddr, Segment, SegmentRegister, VmExit, Width};

/// Device memory, in which RBX and RDI point.
const DEVICE: u64 = 0xd000_0000;
/// RAM, in which RSI points.
const BUFFER: u64 = 0x4000;

/// Instructions of 32- and of 64-bit code.
const BOTH: [&[u8]; 42] = [
    &[0x8a, 0x03],                               // mov al, [rbx]
    &[0x66, 0x8b, 0x03],                         // mov ax, [rbx]
    &[0x8b, 0x03],                               // mov eax, [rbx]
    &[0x8b, 0x43, 0x10],                         // mov eax, [rbx+10h]
    &[0x8b, 0x93, 0x00, 0x01, 0x00, 0x00],       // mov edx, [rbx+100h]
    &[0x8b, 0x04, 0x8b],                         // mov eax, [rbx+rcx*4]
    &[0x8b, 0x14, 0x25, 0x00, 0x00, 0x00, 0xd0], // mov edx, [d0000000h]
    &[0x3e, 0x8b, 0x03],                         // mov eax, ds:[rbx]
    &[0x88, 0x03],                               // mov [rbx], al
    &[0x88, 0x63, 0x01],                         // mov [rbx+1], ah
    &[0x66, 0x89, 0x03],                         // mov [rbx], ax
    &[0x89, 0x03],                               // mov [rbx], eax
    &[0x89, 0x4b, 0x10],                         // mov [rbx+10h], ecx
    &[0xc6, 0x03, 0x20],                         // mov byte [rbx], 20h
    &[0x66, 0xc7, 0x03, 0x20, 0x07],             // mov word [rbx], 720h
    &[0xc7, 0x03, 0x00, 0x00, 0x00, 0x00],       // mov dword [rbx], 0
    &[0x0f, 0xb6, 0x03],                         // movzx eax, byte [rbx]
    &[0x0f, 0xb7, 0x03],                         // movzx eax, word [rbx]
    &[0x0f, 0xbe, 0x03],                         // movsx eax, byte [rbx]
    &[0x0f, 0xbf, 0x03],                         // movsx eax, word [rbx]
    &[0x39, 0x03],                               // cmp [rbx], eax
    &[0x3b, 0x03],                               // cmp eax, [rbx]
    &[0x83, 0x3b, 0xff],                         // cmp dword [rbx], -1
    &[0x80, 0x3b, 0x00],                         // cmp byte [rbx], 0
    &[0x66, 0x81, 0x3b, 0x55, 0xaa],             // cmp word [rbx], aa55h
    &[0xf6, 0x03, 0x01],                         // test byte [rbx], 1
    &[0xf7, 0x03, 0x00, 0x10, 0x00, 0x00],       // test dword [rbx], 1000h
    &[0x85, 0x03],                               // test [rbx], eax
    &[0x83, 0x0b, 0x01],                         // or dword [rbx], 1
    &[0x81, 0x23, 0xff, 0xfe, 0xff, 0xff],       // and dword [rbx], fffffeffh
    &[0x21, 0x03],                               // and [rbx], eax
    &[0x0b, 0x03],                               // or eax, [rbx]
    &[0xa4],                                     // movsb
    &[0x66, 0xa5],                               // movsw
    &[0xa5],                                     // movsd
    &[0xf3, 0xa4],                               // rep movsb
    &[0x66, 0xf3, 0xa5],                         // rep movsw
    &[0xf3, 0xa5],                               // rep movsd
    &[0xaa],                                     // stosb
    &[0xf3, 0xaa],                               // rep stosb
    &[0xf3, 0x66, 0xab],                         // rep stosw
    &[0xf3, 0xab],                               // rep stosd
];

/// Instructions of 32-bit code only: addresses that the compiler knew.
const OF_32_BITS: [&[u8]; 6] = [
    &[0xa0, 0x00, 0x00, 0x00, 0xd0],       // mov al, [d0000000h]
    &[0xa1, 0x00, 0x00, 0x00, 0xd0],       // mov eax, [d0000000h]
    &[0x66, 0xa1, 0x00, 0x00, 0x00, 0xd0], // mov ax, [d0000000h]
    &[0xa3, 0x00, 0x00, 0x00, 0xd0],       // mov [d0000000h], eax
    &[0x89, 0x0d, 0x00, 0x00, 0x00, 0xd0], // mov [d0000000h], ecx
    &[0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x00, 0x00, 0x00, 0x00], // mov dword [d0000000h], 0
];

/// Instructions of 64-bit code only.
const OF_64_BITS: [&[u8]; 12] = [
    &[0x48, 0x8b, 0x03],                         // mov rax, [rbx]
    &[0x48, 0x89, 0x03],                         // mov [rbx], rax
    &[0x40, 0x88, 0x33],                         // mov [rbx], sil
    &[0x44, 0x89, 0x03],                         // mov [rbx], r8d
    &[0x41, 0x8b, 0x04, 0x24],                   // mov eax, [r12]
    &[0x45, 0x89, 0x45, 0x00],                   // mov [r13], r8d
    &[0x65, 0x8b, 0x03],                         // mov eax, gs:[rbx]
    &[0x89, 0x05, 0x00, 0xf0, 0xff, 0xcf],       // mov [rip-30001000h], eax
    &[0x89, 0x04, 0x25, 0x00, 0x00, 0x00, 0xd0], // mov [ffffffffd0000000h], eax
    &[0x48, 0xc7, 0x03, 0x00, 0x00, 0x00, 0x00], // mov qword [rbx], 0
    &[0xf3, 0x48, 0xa5],                         // rep movsq
    &[0xf3, 0x48, 0xab],                         // rep stosq
];

/// Plays a vCPU that has stopped at `code` for `exit`, and returns it afterwards.
fn played(long: bool, code: &[u8], exit: VmExit) -> Play {
    let mut play = Play::new();
    if long {
        play.vcpu.hw.efer = (Efer::LME | Efer::LMA).bits();
        play.vcpu.hw.segments[SegmentRegister::Cs as usize] = Segment::code64(8);
    }
    play.code(code);
    for gpr in [Gpr::Rbx, Gpr::Rdi, Gpr::R12, Gpr::R13] {
        play.vcpu.set_gpr(gpr, DEVICE);
    }
    play.vcpu.set_gpr(Gpr::Rsi, BUFFER);
    play.vcpu.set_gpr(Gpr::Rcx, 4);
    play.vcpu.set_gpr(Gpr::Rdx, 0x80);
    assert_eq!(play.turn(exit), Next::Continue, "{code:02x?}");
    assert_eq!(play.injected(), None, "{code:02x?}");
    assert_eq!(play.vcpu.hw.rip, 0x1000 + code.len() as u64, "{code:02x?} is done");
    play
}

fn access() -> VmExit {
    let (gpa, access) = (GuestPhysAddr::new(DEVICE), NestedAccess::empty());
    VmExit::NestedFault(NestedFault { gpa, access, gva: None })
}

fn general_decodes(play: &Play) -> u64 {
    play.vcpu.core.counters.general_decodes
}

#[test]
fn what_linux_does_to_devices_needs_no_general_decoder() {
    let both = BOTH.into_iter();
    let all = both.clone().chain(OF_32_BITS).map(|code| (false, code));
    for (long, code) in all.chain(both.chain(OF_64_BITS).map(|code| (true, code))) {
        assert_eq!(general_decodes(&played(long, code, access())), 0, "{code:02x?} {long}");
    }
}

#[test]
fn strings_of_ports_need_none() {
    let rep = |string: &[u8]| [&[0xf3], string].concat();
    for (direction, width, code) in [
        (Direction::In, Width::B1, [0x6c].as_slice()),
        (Direction::In, Width::B2, &[0x66, 0x6d]),
        (Direction::In, Width::B4, &[0x6d]),
        (Direction::Out, Width::B1, &[0x6e]),
        (Direction::Out, Width::B2, &[0x66, 0x6f]),
        (Direction::Out, Width::B4, &[0x6f]),
    ] {
        for (is_repeated, code) in [(false, code.to_vec()), (true, rep(code))] {
            let string = Some(StringIo { rep: is_repeated, address_width: None, segment: None });
            let exit = VmExit::PortIo(PortIo { port: 0x80, width, direction, string });
            for long in [false, true] {
                let play = played(long, &code, exit);
                assert_eq!(general_decodes(&play), 0, "{code:02x?} {long}");
                assert_eq!(play.vcpu.gpr(Gpr::Rcx), if is_repeated { 0 } else { 4 });
            }
        }
    }
}

#[test]
fn others_are_counted_once() {
    // lock or dword [rbx], 1
    let code = [0xf0, 0x83, 0x0b, 0x01];
    let mut play = played(true, &code, access());
    assert_eq!(general_decodes(&play), 1);
    // The decoded instruction is kept.
    play.vcpu.hw.rip = 0x1000;
    assert_eq!(play.turn(access()), Next::Continue);
    assert_eq!(general_decodes(&play), 1);
    let names = play.vcpu.core.counters.iter().filter(|(_, count)| *count != 0);
    assert!(names.into_iter().any(|(name, _)| name == "general_decodes"));
}
