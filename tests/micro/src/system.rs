//! Instructions of the system: most of them exit, or fault in ring 3.

use crate::asm::{Mem, Width};
use crate::layout::{self, IPI_VECTORS, Page, selector};
use crate::program::{
    CR0_AM, CR0_EM, CR0_MP, CR0_NE, CR0_TS, CR0_WP, CR4_DE, CR4_MCE, CR4_OSXMMEXCPT, CR4_PGE,
    CR4_TSD, Generator,
};
use crate::{Vendor, layout::PAGE};

type Item = fn(&mut Generator);

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;

pub(crate) fn item(g: &mut Generator) {
    const ITEMS: [Item; 26] = [
        cpuid,
        cpuid,
        read_msr,
        read_msr,
        write_msr,
        write_msr,
        hypercall,
        hypercall,
        halt,
        self_ipi,
        shadow,
        stack_shadow,
        control_register,
        control_register,
        read_control,
        debug_register,
        machine_status,
        caches,
        extended_state,
        counters,
        time,
        descriptor_tables,
        virtualization,
        local_apic,
        io_apic,
        task_priority,
    ];
    let item: Item = g.random.pick(&ITEMS);
    item(g);
}

/// Answers that every CPU gives alike are kept, the rest forgotten.
fn cpuid(g: &mut Generator) {
    let leaf = g.random.pick(&[
        0u64,
        1,
        2,
        4,
        6,
        7,
        0xd,
        0x14,
        0x1234,
        0x4000_0000,
        0x4000_0000,
        0x4000_0001,
        0x4000_0100,
        0x4000_0101,
        0x8000_0000,
        0x8000_0001,
        0x8000_0008,
        0xdead_beef,
    ]);
    let subleaf = g.random.below(3);
    g.set(RAX, leaf);
    g.set(RCX, subleaf);
    g.raw(&[0x0f, 0xa2]);
    if !matches!(leaf, 0x4000_0000 | 0x4000_0001) {
        g.forget(&[RAX, RCX, RDX, RBX]);
    }
}

/// Registers that all CPUs of both vendors have, and some that none has.
const MSRS: [u32; 34] = [
    0xc000_0080, // EFER
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
    0xc000_0103, // TSC_AUX
    0x1b,        // APIC_BASE
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0x277,       // PAT
    0xfe,        // MTRR_CAP
    0x200,       // MTRR_PHYS_BASE0
    0x201,       // MTRR_PHYS_MASK0
    0x250,       // MTRR_FIX_64K
    0x26f,       // MTRR_FIX_4K_F8000
    0x2ff,       // MTRR_DEF_TYPE
    0x179,       // MCG_CAP
    0x17a,       // MCG_STATUS
    0x1d9,       // DEBUGCTL
    0x11,        // KVM_WALL_CLOCK_OLD
    0x12,        // KVM_SYSTEM_TIME_OLD
    0x4b56_4d00, // KVM_WALL_CLOCK
    0x4b56_4d01, // KVM_SYSTEM_TIME
    0x40,
    0x802,
    0x83f,
    0x1234,
    0x4000_0000,
    0xc000_0200,
    0xdead_beef,
];

fn read_msr(g: &mut Generator) {
    let msr = g.random.pick(&MSRS);
    g.set(RCX, msr.into());
    g.raw(&[0x0f, 0x32]);
}

/// Values that leave the harness in control; it restores the registers.
fn write_msr(g: &mut Generator) {
    const EFER: u64 = 0xd00;
    let random = g.random.value();
    let canonical = random.cast_signed() << 17 >> 17;
    let canonical = canonical.cast_unsigned();
    let (msr, value): (u32, u64) = match g.random.byte(18) {
        // SCE and NXE, then bits that are reserved, not offered or fixed.
        0 => (0xc000_0080, EFER | 1),
        1 => (0xc000_0080, EFER & !0x800),
        2 => (0xc000_0080, EFER ^ g.random.pick(&[1 << 8, 1 << 12, 1 << 1, 1 << 63, 1 << 9])),
        3 => (g.random.pick(&[0xc000_0100, 0xc000_0101, 0xc000_0102]), canonical),
        4 => (g.random.pick(&[0xc000_0083, 0x175, 0x176]), canonical),
        // Rare, as one emulated CPU does not refuse it.
        5 if g.random.chance(4) => (
            g.random.pick(&[0xc000_0082, 0xc000_0083, 0xc000_0100, 0xc000_0102, 0x175]),
            0x1234_5678_9abc_def0,
        ),
        6 => (0xc000_0084, random & 0xffff_ffff),
        7 => (0xc000_0103, random & 0xffff_ffff),
        8 => (0xc000_0103, random | 1 << 40),
        9 => (0x174, random & 0xffff),
        10 => (0x277, g.random.pick(&[0x0007_0406_0007_0406, 0x0606_0606_0606_0606])),
        11 => (0x277, random | 0x0200),
        12 => (0x2ff, 0xc06 | g.random.pick(&[1 << 12, 2, 1 << 40])),
        13 => (0xfe, random),
        14 => (0x1d9, g.random.pick(&[0, 1, 2])),
        15 => (0x17a, random & 0xff),
        16 => (0x1b, g.random.pick(&[0xfee0_0900, 1 << 60 | 0xfee0_0900, 0xfee0_0901])),
        _ => (g.random.pick(&[0x40, 0x1234, 0x4000_0000, 0xc000_0200, 0xdead_beef]), random),
    };
    g.set(RCX, msr.into());
    g.set(RAX, value & 0xffff_ffff);
    g.set(RDX, value >> 32);
    g.raw(&[0x0f, 0x30]);
}

/// Calls that return something that does not depend on time.
fn hypercall(g: &mut Generator) {
    const STEWARD: u64 = 0x8000_0000 | 0x5354 << 16;
    let number = g.random.pick(&[1u64, 1, 2, 3, 5, 77, STEWARD, STEWARD | 0x7fff, 0x8000_0000]);
    g.set(RAX, number);
    let last = match g.vendor {
        Vendor::Intel => 0xc1,
        Vendor::Amd => 0xd9,
    };
    g.raw(&[0x0f, 0x01, last]);
}

/// A store of 32 bits to a register of the local APIC.
fn apic_store(g: &mut Generator, offset: i32, value: u32) {
    let base = i32::try_from(layout::address(Page::Lapic)).unwrap_or(0);
    let mem = Mem { disp: base + offset, ..Mem::default() };
    g.begin();
    g.asm.mem(Width::B4, &[0xc7], 0, &mem, 4);
    g.asm.imm(Width::B4, value.into());
}

/// Commands an interrupt to itself.
fn send(g: &mut Generator) {
    let vector = g.random.pick(&IPI_VECTORS);
    apic_store(g, 0x300, 0x4_0000 | u32::from(vector));
}

fn self_ipi(g: &mut Generator) {
    send(g);
    if g.random.chance(3) {
        send(g);
    }
}

/// HLT with a wake-up that waits; in ring 3 it is refused.
fn halt(g: &mut Generator) {
    if g.is_supervisor() {
        g.raw(&[0xfa]);
        // So that nothing holds the interrupt back.
        apic_store(g, 0x80, 0);
        send(g);
        g.raw(&[0xfb]);
    }
    g.raw(&[0xf4]);
}

/// STI with an interrupt that waits, and an instruction in its shadow.
fn shadow(g: &mut Generator) {
    g.raw(&[0xfa]);
    send(g);
    g.raw(&[0xfb]);
    follower(g);
}

/// MOV SS, and an instruction in its shadow.
fn stack_shadow(g: &mut Generator) {
    let own = if g.is_supervisor() { selector::DATA } else { selector::USER_DATA };
    g.set(RAX, own.into());
    if g.random.chance(2) {
        send(g);
    }
    g.raw(&[0x8e, 0xd0]);
    follower(g);
}

/// One instruction, most of them such as exit.
fn follower(g: &mut Generator) {
    match g.random.byte(6) {
        0 => g.raw(&[0x90]),
        1 => g.raw(&[0xe4, 0x80]),
        2 => g.raw(&[0xe6, 0x80]),
        3 => g.raw(&[0x0f, 0x09]),
        4 => apic_store(g, 0x80, 0x20),
        _ => g.raw(&[0xfa]),
    }
}

fn move_control(g: &mut Generator, number: u8, register: u8, write: bool) {
    g.raw(&[0x0f, if write { 0x22 } else { 0x20 }, 0xc0 | number << 3 | register]);
}

fn control_register(g: &mut Generator) {
    const CR0_BASE: u64 = 0x8000_0031;
    const CR4_BASE: u64 = 0x4_0220;
    let register = g.random.byte(4);
    match g.random.byte(8) {
        0 | 1 => {
            let mut value = CR0_BASE;
            for bit in [CR0_WP, CR0_AM, CR0_MP, CR0_TS, CR0_EM, CR0_NE] {
                value ^= if g.random.chance(3) { bit } else { 0 };
            }
            g.set(register, value);
            move_control(g, 0, register, true);
        }
        // NW without CD, PG without PE; in 64-bit mode a high bit, no paging.
        2 => {
            let bad = g.random.pick(&[1u64 << 29, 1, 1 << 31, 1 << 40]);
            let bad = if g.is_64() { bad } else { 1 << 29 };
            g.set(register, CR0_BASE ^ bad);
            move_control(g, 0, register, true);
        }
        3 => {
            move_control(g, 3, register, false);
            move_control(g, 3, register, true);
        }
        4 | 5 => {
            let mut value = CR4_BASE;
            for bit in [CR4_TSD, CR4_DE, CR4_MCE, CR4_PGE, CR4_OSXMMEXCPT] {
                value ^= if g.random.chance(3) { bit } else { 0 };
            }
            g.set(register, value);
            move_control(g, 4, register, true);
        }
        // Not PAE, VMXE, SMXE, a reserved bit.
        6 => {
            let bad = g.random.pick(&[1u64 << 5, 1 << 13, 1 << 14, 1 << 31, 1 << 15]);
            g.set(register, CR4_BASE ^ bad);
            move_control(g, 4, register, true);
        }
        _ => {
            let number = g.random.pick(&[1, 5, 6, 7]);
            let write = g.random.chance(2);
            move_control(g, number, register, write);
        }
    }
}

fn read_control(g: &mut Generator) {
    let number = g.random.pick(&[0u8, 2, 3, 4]);
    let register = g.random.byte(4);
    move_control(g, number, register, false);
}

fn debug_register(g: &mut Generator) {
    let register = g.random.byte(4);
    let number = g.random.byte(8);
    if g.random.chance(2) {
        g.raw(&[0x0f, 0x21, 0xc0 | number << 3 | register]);
        return;
    }
    let data = layout::address(Page::Data) + g.random.below(2 * PAGE);
    let value = match number {
        0..=3 => data,
        4 | 6 => g.random.pick(&[0, 0xffff_0ff0, 0xe00f, 0x1_0000_0000]),
        // Breakpoints of writes and of both; general detect.
        _ => g.random.pick(&[0, 0x400, 0x0001_0403, 0x00ff_04ff, 0x2400, 0x1_0000_0400]),
    };
    g.set(register, value);
    g.raw(&[0x0f, 0x23, 0xc0 | number << 3 | register]);
}

/// CLTS, SMSW, LMSW.
fn machine_status(g: &mut Generator) {
    match g.random.byte(3) {
        0 => g.raw(&[0x0f, 0x06]),
        1 => {
            let register = g.register() & 7;
            let register = if register == 4 { 3 } else { register };
            g.raw(&[0x0f, 0x01, 0xe0 | register]);
        }
        _ => {
            let value = 0x31 | g.random.below(16);
            g.set(RAX, value);
            g.raw(&[0x0f, 0x01, 0xf0]);
        }
    }
}

fn caches(g: &mut Generator) {
    match g.random.byte(3) {
        0 => g.raw(&[0x0f, 0x09]),
        1 => g.raw(&[0x0f, 0x08]),
        _ => {
            let mem = g.operand(Width::B1, 4);
            g.begin();
            g.asm.mem(Width::B4, &[0x0f, 0x01], 7, &mem, 0);
        }
    }
}

/// XSETBV and XGETBV.
fn extended_state(g: &mut Generator) {
    let value = g.random.pick(&[1u64, 3, 7, 0, 2, 5, 1 << 63 | 1]);
    let register = if g.random.chance(5) { 1 } else { 0 };
    if g.random.chance(2) {
        g.set(RCX, 0);
        g.raw(&[0x0f, 0x01, 0xd0]);
        return;
    }
    g.set(RAX, value & 0xffff_ffff);
    g.set(RDX, value >> 32);
    g.set(RCX, register);
    g.raw(&[0x0f, 0x01, 0xd1]);
}

/// RDPMC, MONITOR, MWAIT, PAUSE: the first three are not offered.
fn counters(g: &mut Generator) {
    match g.random.byte(4) {
        0 => {
            let counter = g.random.below(4);
            g.set(RCX, counter);
            g.raw(&[0x0f, 0x33]);
        }
        1 => {
            // One CPU touches the operand before it looks who is to know: a
            // page that is in use anyway.
            g.set(RAX, layout::address(Page::Code));
            g.set(RCX, 0);
            g.raw(&[0x0f, 0x01, 0xc8]);
        }
        2 => {
            g.set(RCX, 0);
            g.raw(&[0x0f, 0x01, 0xc9]);
        }
        _ => g.raw(&[0xf3, 0x90]),
    }
}

/// RDTSC and RDTSCP; in ring 3 CR4.TSD refuses them.
fn time(g: &mut Generator) {
    if g.random.chance(2) {
        g.raw(&[0x0f, 0x31]);
    } else {
        g.raw(&[0x0f, 0x01, 0xf9]);
    }
    g.forget(&[RAX, RDX]);
}

fn descriptor_tables(g: &mut Generator) {
    let data = i32::try_from(layout::address(Page::Data)).unwrap_or(0) + 0x100;
    let mem = Mem { disp: data, ..Mem::default() };
    match g.random.byte(6) {
        // Stored and loaded again: GDTR, IDTR. In 16-bit code a load takes only
        // 24 bits of the base.
        0 | 1 => {
            let table = g.random.byte(2);
            g.begin();
            g.asm.mem(Width::B4, &[0x0f, 0x01], table, &mem, 0);
            if g.asm.bits == 64 || !g.is_supervisor() {
                g.begin();
                g.asm.mem(Width::B4, &[0x0f, 0x01], 2 + table, &mem, 0);
            }
        }
        2 => g.raw(&[0x0f, 0x00, 0xc0]), // SLDT EAX
        3 => g.raw(&[0x0f, 0x00, 0xc8]), // STR EAX
        // LLDT and LTR of what is refused, but for LTR of a null selector: QEMU's CPU
        // takes it, and ends the emulator at the next interrupt.
        4 => {
            let value = g.random.pick(&[selector::EMPTY, selector::DATA, selector::BEYOND]);
            g.set(RAX, value.into());
            g.raw(&[0x0f, 0x00, 0xd0]);
        }
        _ => {
            let value = g.random.pick(&[selector::EMPTY, selector::TSS, selector::BEYOND]);
            g.set(RAX, value.into());
            g.raw(&[0x0f, 0x00, 0xd8]);
        }
    }
}

/// VT-x and AMD-V, which guests are not offered.
fn virtualization(g: &mut Generator) {
    let encodings: [&[u8]; 11] = [
        &[0x0f, 0x01, 0xc2], // VMLAUNCH
        &[0x0f, 0x01, 0xc3], // VMRESUME
        &[0x0f, 0x01, 0xc4], // VMXOFF
        &[0x0f, 0x78, 0xc3], // VMREAD
        &[0x0f, 0x79, 0xc3], // VMWRITE
        &[0x0f, 0x01, 0xd8], // VMRUN
        &[0x0f, 0x01, 0xda], // VMLOAD
        &[0x0f, 0x01, 0xdb], // VMSAVE
        &[0x0f, 0x01, 0xdc], // STGI
        &[0x0f, 0x01, 0xdd], // CLGI
        &[0x0f, 0x01, 0xde], // SKINIT
    ];
    let encoding = g.random.pick(&encodings);
    g.raw(encoding);
}

/// Registers of the local APIC that tell no time.
fn local_apic(g: &mut Generator) {
    if g.random.chance(2) {
        let offset = g.random.pick(&[
            0x20i32, 0x30, 0x80, 0x90, 0xa0, 0xc0, 0xd0, 0xe0, 0xf0, 0x110, 0x120, 0x210, 0x220,
            0x230, 0x270, 0x280, 0x300, 0x310, 0x320, 0x350, 0x370, 0x380, 0x3e0, 0x3f0, 0x40,
        ]);
        let base = i32::try_from(layout::address(Page::Lapic)).unwrap_or(0);
        let register = g.register();
        let mem = Mem { disp: base + offset, ..Mem::default() };
        g.begin();
        g.asm.mem(Width::B4, &[0x8b], register, &mem, 0);
        return;
    }
    let random = g.random.draw().to_le_bytes();
    let byte = u32::from(random[0]);
    match g.random.byte(8) {
        0 => apic_store(g, 0x80, byte),
        1 => apic_store(g, 0xb0, 0),
        2 => apic_store(g, 0xd0, byte << 24),
        3 => apic_store(g, 0x280, 0),
        4 => apic_store(g, 0x310, byte << 24),
        5 => apic_store(g, 0x320, 0x1_0000 | byte),
        6 => apic_store(g, 0x370, 0x1_0000 | byte),
        _ => apic_store(g, 0x30, byte),
    }
}

/// The I/O APIC: its index, what stands there.
fn io_apic(g: &mut Generator) {
    let base = i32::try_from(layout::address(Page::IoApic)).unwrap_or(0);
    let index = g.random.below(0x42);
    let mem = Mem { disp: base, ..Mem::default() };
    g.begin();
    g.asm.mem(Width::B4, &[0xc7], 0, &mem, 4);
    g.asm.imm(Width::B4, index);
    let register = g.register();
    let mem = Mem { disp: base + 0x10, ..Mem::default() };
    g.begin();
    g.asm.mem(Width::B4, &[0x8b], register, &mem, 0);
}

/// CR8, with an interrupt that may have to wait for it.
fn task_priority(g: &mut Generator) {
    if !g.is_64() {
        return send(g);
    }
    // Reserved bits are rare, as one emulated CPU does not refuse them.
    let bad = if g.random.chance(24) { g.random.pick(&[16u64, 1 << 32]) } else { 0 };
    let value = g.random.pick(&[0u64, 4, 5, 6, 13, 15]) | bad;
    g.set(RAX, value);
    g.raw(&[0x44, 0x0f, 0x22, 0xc0]);
    send(g);
    g.raw(&[0x44, 0x0f, 0x20, 0xc3]);
    if g.random.chance(2) {
        g.set(RAX, 0);
        g.raw(&[0x44, 0x0f, 0x22, 0xc0]);
    }
}
