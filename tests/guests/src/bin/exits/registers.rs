//! Control, debug and descriptor-table registers.

use guests::cpu;
use guests::harness::{Outcome, Tests};
use guests::trap::{self, TableRegister, vector};
use guests::{catch_asm, check, check_eq, skip, user};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("cr0_cache_bits", cr0_cache_bits);
    tests.case("cr0_invalid", cr0_invalid);
    tests.case("cr0_ts", cr0_ts);
    tests.case("lmsw", lmsw);
    tests.case("cr2_cr3", cr2_cr3);
    tests.case("cr4", cr4);
    tests.case("cr4_invalid", cr4_invalid);
    tests.case("vendor_msrs", vendor_msrs);
    tests.case("cr8", cr8);
    tests.case("cr_all_registers", cr_all_registers);
    tests.case("cr_ring3", cr_ring3);
    tests.case("debug_registers", debug_registers);
    tests.case("debug_register_aliases", debug_register_aliases);
    tests.case("breakpoint_hits", breakpoint_hits);
    tests.case("descriptor_tables", descriptor_tables);
    tests.case("task_register", task_register);
    tests.case("local_descriptor_table", local_descriptor_table);
}

const CD: u64 = 1 << 30;
const NW: u64 = 1 << 29;
const TS: u64 = 1 << 3;

fn cr0_cache_bits() -> Outcome {
    let old = cpu::cr0();
    let mut seen = [0; 3];
    for (seen, bits) in seen.iter_mut().zip([CD, CD | NW, 0]) {
        let caught = cpu::set_cr0(old & !(CD | NW) | bits);
        check!(caught.is_none(), "CD/NW = {bits:#x} raised {caught:x?}");
        *seen = cpu::cr0() & (CD | NW);
    }
    let _ = cpu::set_cr0(old);
    check_eq!(seen, [CD, CD | NW, 0], "CD and NW read back");
    Ok(())
}

fn cr0_invalid() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU does not check");
    }
    let old = cpu::cr0();
    for (value, what) in [
        (old & !CD | NW, "NW without CD"),
        (old & !1, "PG without PE"),
        (old | 1 << 40, "a bit above 31"),
        (old & !(1 << 31), "PG off in 64-bit code"),
    ] {
        let caught = cpu::set_cr0(value);
        check_eq!(caught.map(|t| (t.vector, t.error)), Some((vector::GP, 0)), "{what}");
    }
    check_eq!(cpu::cr0(), old, "CR0 afterwards");
    let _ = cpu::set_cr0(old & !0x10);
    check_eq!(cpu::cr0(), old | 0x10, "ET can't be cleared");
    Ok(())
}

fn cr0_ts() -> Outcome {
    let old = cpu::cr0();
    let _ = cpu::set_cr0(old | TS);
    let caught = catch_asm!(["movaps xmm0, xmm0"]);
    let set = cpu::cr0() & TS;
    let clts = catch_asm!(["clts"]);
    let clear = cpu::cr0() & TS;
    let after = catch_asm!(["movaps xmm0, xmm0"]);
    let _ = cpu::set_cr0(old);
    check_eq!(caught.map(|t| t.vector), Some(vector::NM), "SSE with TS set");
    check!(clts.is_none() && after.is_none(), "CLTS {clts:x?}, SSE after it {after:x?}");
    check_eq!((set, clear), (TS, 0), "TS before and after CLTS");
    Ok(())
}

fn lmsw() -> Outcome {
    let old = cpu::cr0();
    let word = cpu::low16(old) | 8;
    let caught = catch_asm!(["lmsw {v:x}"], v = in(reg) word);
    let set = cpu::cr0();
    let caught_clear = catch_asm!(["lmsw {v:x}"], v = in(reg) cpu::low16(old) & !9);
    let cleared = cpu::cr0();
    let smsw: u64;
    let caught_smsw = catch_asm!(["smsw {v}"], v = out(reg) smsw);
    // From memory.
    let memory = word;
    let caught_memory = catch_asm!(["lmsw [{p}]"], p = in(reg) &raw const memory);
    let from_memory = cpu::cr0();
    let _ = cpu::set_cr0(old);
    check!(caught.is_none() && caught_clear.is_none() && caught_smsw.is_none(), "a fault");
    check!(caught_memory.is_none(), "LMSW from memory raised {caught_memory:x?}");
    check_eq!(set, old | TS, "LMSW sets TS");
    check_eq!(cleared, old & !TS, "LMSW clears TS and never PE");
    check_eq!(smsw & 0xffff, old & 0xffff, "SMSW");
    check_eq!(from_memory, old | TS, "LMSW from memory");
    Ok(())
}

fn cr2_cr3() -> Outcome {
    let _ = cpu::set_cr2(0x1234_5678_9abc_def0);
    let _ = cpu::cpuid(0, 0);
    check_eq!(cpu::cr2(), 0x1234_5678_9abc_def0, "CR2");
    let cr3 = cpu::cr3();
    for _ in 0..10 {
        check!(cpu::set_cr3(cr3).is_none(), "MOV CR3 raised");
    }
    let caught = cpu::set_cr3(cr3 | 0x18);
    let read = cpu::cr3();
    let _ = cpu::set_cr3(cr3);
    check!(caught.is_none(), "PCD and PWT raised");
    check_eq!(read, cr3 | 0x18, "PCD and PWT in CR3");
    Ok(())
}

fn cr4() -> Outcome {
    let old = cpu::cr4();
    for (bit, name) in [(2, "TSD"), (3, "DE"), (6, "MCE"), (7, "PGE"), (8, "PCE")] {
        let caught = cpu::set_cr4(old ^ 1 << bit);
        let read = cpu::cr4();
        let _ = cpu::set_cr4(old);
        check!(caught.is_none(), "{name} raised {caught:x?}");
        check_eq!(read, old ^ 1 << bit, "{name}");
    }
    Ok(())
}

fn cr4_invalid() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU does not check");
    }
    let old = cpu::cr4();
    for (value, what) in
        [(old | 1 << 63, "a reserved bit"), (old & !(1 << 5), "PAE off"), (old | 1 << 13, "VMXE")]
    {
        let caught = cpu::set_cr4(value);
        check_eq!(caught.map(|t| (t.vector, t.error)), Some((vector::GP, 0)), "{what}");
    }
    check_eq!(cpu::cr4(), old, "CR4 afterwards");
    Ok(())
}

/// MSRs that software finds by the CPU's vendor and family.
fn vendor_msrs() -> Outcome {
    const MISC_ENABLE: u32 = 0x1a0;
    if cpu::on_bare_tcg() {
        skip!("bare QEMU has other MSRs");
    }
    for counter in 0xc001_0000..0xc001_0008 {
        let wrote = cpu::wrmsr(counter, u64::MAX).is_ok();
        let wanted = (cpu::is_amd(), cpu::is_amd().then_some(0));
        check_eq!((wrote, cpu::rdmsr(counter).ok()), wanted, "counter {counter:#x}");
    }
    let old = cpu::rdmsr(MISC_ENABLE);
    if cpu::is_amd() {
        check!(old.is_err(), "AMD's CPUs have IA32_MISC_ENABLE");
        return Ok(());
    }
    let old = old.unwrap_or(0);
    // Read-only bits are lost, reserved ones fault.
    check!(cpu::wrmsr(MISC_ENABLE, old ^ 0x1881).is_ok(), "a write of read-only bits");
    check_eq!(cpu::rdmsr(MISC_ENABLE).ok(), Some(old ^ 1), "IA32_MISC_ENABLE");
    check!(cpu::wrmsr(MISC_ENABLE, old | 1 << 1).is_err(), "a reserved bit");
    check!(cpu::wrmsr(MISC_ENABLE, old).is_ok(), "the old value");
    Ok(())
}

fn cr8() -> Outcome {
    for value in (0..16).rev() {
        check!(cpu::set_cr8(value).is_none(), "CR8 = {value} raised");
        check_eq!(cpu::cr8(), value, "CR8");
        let tpr = guests::apic::Lapic::now().read(guests::apic::reg::TPR);
        check_eq!(u64::from(tpr), value << 4, "TPR");
    }
    if cpu::tcg_underneath() {
        return Ok(()); // takes the low bits of any value
    }
    check_eq!(cpu::set_cr8(16).map(|t| t.vector), Some(vector::GP), "CR8 = 16");
    check_eq!(cpu::cr8(), 0, "CR8 afterwards");
    Ok(())
}

fn cr_all_registers() -> Outcome {
    // Every general register can be the other operand.
    macro_rules! each {
        ($($register:literal)*) => { $(
            let value: u64;
            let caught = catch_asm!([
                "mov r8, rsp", "mov rsi, rbp", "mov rdi, rbx",
                concat!("mov ", $register, ", cr4"),
                concat!("mov cr4, ", $register),
                concat!("mov rcx, ", $register),
                "mov rsp, r8", "mov rbp, rsi", "mov rbx, rdi"],
                out("rcx") value, out("rsi") _, out("rdi") _, out("r8") _, out("rax") _,
                out("rdx") _, out("r9") _, out("r15") _);
            check!(caught.is_none(), "{} raised {caught:x?}", $register);
            check_eq!(value, cpu::cr4(), "CR4 through {}", $register);
        )* };
    }
    each!("rax" "rcx" "rdx" "rbx" "rsp" "rbp" "r9" "r15");
    Ok(())
}

fn cr_ring3() -> Outcome {
    for code in [[0x0f, 0x20, 0xc0], [0x0f, 0x22, 0xc0], [0x0f, 0x20, 0xd8], [0x0f, 0x23, 0xf8]] {
        let trap = user::run(&code, [0; 4]);
        check_eq!((trap.vector, trap.rip), (vector::GP, user::BASE), "{code:x?}");
    }
    check_eq!(user::run(&[0x0f, 0x06], [0; 4]).vector, vector::GP, "CLTS");
    Ok(())
}

fn debug_registers() -> Outcome {
    let values = [0x1111_2222_3333, 0x4444_5555, 0xffff_8000_0000_1234, 1];
    let _ = (cpu::set_dr0(values[0]), cpu::set_dr1(values[1]));
    let _ = (cpu::set_dr2(values[2]), cpu::set_dr3(values[3]));
    let _ = cpu::cpuid(0, 0);
    let read = [cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3()];
    let _ = (cpu::set_dr0(0), cpu::set_dr1(0), cpu::set_dr2(0), cpu::set_dr3(0));
    check_eq!(read, values, "DR0 to DR3");
    let _ = cpu::set_dr6(0);
    check_eq!(cpu::dr6() & 0xffff_0fff, 0xffff_0ff0, "fixed bits of DR6");
    let _ = cpu::set_dr7(0);
    check_eq!(cpu::dr7(), 0x400, "fixed bits of DR7");
    if !cpu::tcg_underneath() {
        check_eq!(cpu::set_dr7(1 << 32).map(|t| t.vector), Some(vector::GP), "DR7 bit 32");
        check_eq!(cpu::set_dr6(1 << 32).map(|t| t.vector), Some(vector::GP), "DR6 bit 32");
    }
    Ok(())
}

fn debug_register_aliases() -> Outcome {
    let cr4 = cpu::cr4();
    let _ = cpu::set_cr4(cr4 & !8);
    let value: u64;
    let caught = catch_asm!(["mov {v}, dr4"], v = out(reg) value);
    let six = cpu::dr6();
    let _ = cpu::set_cr4(cr4 | 8);
    let with = catch_asm!(["mov {v}, dr4"], v = out(reg) _);
    let _ = cpu::set_cr4(cr4);
    check!(caught.is_none(), "DR4 with CR4.DE clear raised {caught:x?}");
    check_eq!(value, six, "DR4 is DR6");
    check_eq!(with.map(|t| t.vector), Some(vector::UD), "DR4 with CR4.DE set");
    Ok(())
}

fn breakpoint_hits() -> Outcome {
    static WATCHED: guests::harness::Shared<u64> = guests::harness::Shared::new(0);
    static HITS: guests::harness::Shared<u64> = guests::harness::Shared::new(0);
    HITS.set(0);
    trap::on(vector::DB, Some(|_| HITS.set(HITS.get() + 1)));
    // General detect and single step: only software clears them.
    let _ = cpu::set_dr6(0x6000);
    let _ = cpu::set_dr0(WATCHED.address().addr() as u64);
    let _ = cpu::set_dr7(0x400 | 1 | 0xd << 16); // write, 8 bytes
    WATCHED.set(1);
    let _ = cpu::cpuid(0, 0);
    WATCHED.set(2);
    let six = cpu::dr6();
    let _ = cpu::set_dr7(0x400);
    WATCHED.set(3);
    trap::on(vector::DB, None);
    let _ = cpu::set_dr6(0);
    check_eq!(HITS.get(), 2, "hits of a data breakpoint");
    check_eq!(six & 0x600f, 0x6001, "DR6");
    Ok(())
}

fn descriptor_tables() -> Outcome {
    let mut gdt = TableRegister { limit: 0, base: 0 };
    let mut idt = gdt;
    let caught = catch_asm!(["sgdt [{g}]", "sidt [{i}]"], g = in(reg) &raw mut gdt, i = in(reg) &raw mut idt);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(idt, trap::idt_register(), "IDT register");
    let short = TableRegister { limit: 0x7ff, base: idt.base };
    let mut read = short;
    let caught = catch_asm!(["lidt [{s}]", "sidt [{r}]", "lidt [{o}]", "lgdt [{g}]"],
        s = in(reg) &raw const short, r = in(reg) &raw mut read, o = in(reg) &raw const idt, g = in(reg) &raw const gdt);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(read, short, "IDT register");
    for code in [[0x0f, 0x01, 0x12], [0x0f, 0x01, 0x1a]] {
        check_eq!(
            user::run(&code, [0, 0, 0, user::DATA]).vector,
            vector::GP,
            "{code:x?} in ring 3"
        );
    }
    Ok(())
}

fn task_register() -> Outcome {
    let read: u16;
    let caught = catch_asm!(["str {r:x}"], r = out(reg) read);
    check!(caught.is_none(), "STR raised {caught:x?}");
    check_eq!(read, trap::selector::TSS, "task register");
    let caught = catch_asm!(["ltr {r:x}"], r = in(reg) trap::selector::TSS);
    check_eq!(caught.map(|t| (t.vector, t.error)), Some((vector::GP, 0x30)), "LTR of a busy one");
    trap::load_task_register();
    check_eq!(user::run(&[0x0f, 0x00, 0xd8], [0x30, 0, 0, 0]).vector, vector::GP, "LTR in ring 3");
    Ok(())
}

fn local_descriptor_table() -> Outcome {
    let read: u16;
    let caught =
        catch_asm!(["xor eax, eax", "lldt ax", "sldt {r:x}"], r = out(reg) read, out("rax") _);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(read, 0, "LDT register");
    let caught = catch_asm!(["lldt {r:x}"], r = in(reg) trap::selector::DATA);
    check_eq!(
        caught.map(|t| (t.vector, t.error)),
        Some((vector::GP, 0x10)),
        "LLDT of a data segment"
    );
    Ok(())
}
