//! CPUID, MSRs, HLT, caches, time, XSETBV, MONITOR, hypercalls.

use guests::cpu::{self, cpuid, rdmsr, wrmsr};
use guests::harness::{Outcome, Tests};
use guests::pc::{pic, pit};
use guests::trap::{self, vector};
use guests::{catch_asm, check, check_eq, skip, user};

pub(crate) fn run(tests: &mut Tests) {
    tests.case("cpuid_values", cpuid_values);
    tests.case("cpuid_encodings", cpuid_encodings);
    tests.case("cpuid_across_pages", cpuid_across_pages);
    tests.case("cpuid_from_ring3", cpuid_from_ring3);
    tests.case("msr_known", msr_known);
    tests.case("msr_syscall", msr_syscall);
    tests.case("msr_not_canonical", msr_not_canonical);
    tests.case("msr_unknown", msr_unknown);
    tests.case("msr_ring3", msr_ring3);
    tests.case("hlt_wakes", hlt_wakes);
    tests.case("hlt_ring3", hlt_ring3);
    tests.case("cache_control", cache_control);
    tests.case("rdtsc", rdtsc);
    tests.case("rdtscp", rdtscp);
    tests.case("rdtsc_ring3", rdtsc_ring3);
    tests.case("xsetbv", xsetbv);
    tests.case("xsetbv_invalid", xsetbv_invalid);
    tests.case("monitor_mwait", monitor_mwait);
    tests.case("rdpmc", rdpmc);
    tests.case("pause", pause);
    tests.case("hypercall_ring0", hypercall_ring0);
    tests.case("hypercall_ring3", hypercall_ring3);
    tests.case("virtualization_instructions", virtualization_instructions);
    tests.case("rsm", rsm);
}

fn cpuid_values() -> Outcome {
    let id = cpuid(0, 0);
    check!(id.eax >= 1, "highest leaf is {}", id.eax);
    check!(id.ebx != 0 && id.ecx != 0 && id.edx != 0, "no vendor");
    let (_, edx) = cpu::features();
    for (bit, name) in [(0, "FPU"), (4, "TSC"), (5, "MSR"), (6, "PAE"), (9, "APIC"), (13, "PGE")] {
        check!(edx >> bit & 1 == 1, "leaf 1 lacks {name}");
    }
    check!(cpuid(0x8000_0000, 0).eax >= 0x8000_0008, "extended leaves are missing");
    check!(cpuid(0x8000_0001, 0).edx >> 29 & 1 == 1, "no long mode");
    // OSXSAVE follows CR4.
    if cpu::features().0 >> 26 & 1 == 1 {
        let cr4 = cpu::cr4();
        let _ = cpu::set_cr4(cr4 | 1 << 18);
        let with = cpu::features().0 >> 27 & 1;
        let _ = cpu::set_cr4(cr4 & !(1 << 18));
        let without = cpu::features().0 >> 27 & 1;
        let _ = cpu::set_cr4(cr4);
        check_eq!((with, without), (1, 0), "OSXSAVE with CR4.OSXSAVE set and clear");
    }
    Ok(())
}

/// Runs CPUID in the encoding given; R8 counts that what stands behind it runs.
macro_rules! cpuid_encoded {
    ($($code:literal),*) => {{
        let marker: u64;
        let caught = catch_asm!(
            ["xor r8d, r8d", "xor eax, eax", "xor ecx, ecx", "push rbx", $($code,)*
             "mov r8d, 0x11223344", "pop rbx"],
            out("r8") marker, out("rax") _, out("rcx") _, out("rdx") _
        );
        (caught.map(|trap| trap.vector), marker)
    }};
}

fn cpuid_encodings() -> Outcome {
    let good = (None, 0x1122_3344);
    check_eq!(cpuid_encoded!("cpuid"), good, "plain");
    check_eq!(cpuid_encoded!(".balign 16", "nop", "cpuid"), good, "odd address");
    check_eq!(cpuid_encoded!(".byte 0x66, 0x0f, 0xa2"), good, "operand-size prefix");
    check_eq!(cpuid_encoded!(".byte 0x67, 0x0f, 0xa2"), good, "address-size prefix");
    check_eq!(cpuid_encoded!(".byte 0x48, 0x0f, 0xa2"), good, "REX.W");
    check_eq!(cpuid_encoded!(".byte 0xf3, 0x0f, 0xa2"), good, "REP");
    check_eq!(cpuid_encoded!(".byte 0x2e, 0x66, 0x4f, 0x0f, 0xa2"), good, "CS, 66, REX.WRXB");
    check_eq!(
        cpuid_encoded!(
            ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x0f,0xa2"
        ),
        good,
        "15 bytes"
    );
    Ok(())
}

fn cpuid_across_pages() -> Outcome {
    let at = user::DATA + 0xfff;
    user::place(at, &[0x0f, 0xa2, 0xc3]);
    let eax: u32;
    let caught = catch_asm!(["push rbx", "call {f}", "pop rbx"], f = in(reg) at,
        inout("eax") 0 => eax, inout("ecx") 0 => _, out("edx") _);
    check!(caught.is_none(), "it raised {caught:x?}");
    check_eq!(eax, cpuid(0, 0).eax, "highest leaf");
    Ok(())
}

fn cpuid_from_ring3() -> Outcome {
    // xor eax, eax; xor ecx, ecx; cpuid; int 0x80
    let trap = user::run(&[0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2, 0xcd, 0x80], [1; 4]);
    check_eq!(trap.vector, vector::USER_RETURN, "how it came back");
    check_eq!(trap.rax, u64::from(cpuid(0, 0).eax), "highest leaf");
    Ok(())
}

fn msr_known() -> Outcome {
    check_eq!(rdmsr(0xc000_0080).map(|v| v & 0x500).ok(), Some(0x500), "EFER.LME, LMA");
    let base = rdmsr(0x1b).unwrap_or(0);
    check_eq!(base & 0xffff_f900, 0xfee0_0900, "APIC_BASE: address, enabled, bootstrap CPU");
    let pat = rdmsr(0x277).unwrap_or(0);
    check_eq!(pat, 0x0007_0406_0007_0406, "PAT after reset");
    check!(wrmsr(0x277, 0x0007_0406_0007_0106).is_ok(), "PAT can't be written");
    let read = rdmsr(0x277).ok();
    let _ = wrmsr(0x277, pat);
    check_eq!(read, Some(0x0007_0406_0007_0106), "PAT reads back");
    let caps = rdmsr(0xfe).unwrap_or(0);
    check!(caps & 0xff >= 8 && caps & 0x100 != 0, "MTRR capabilities {caps:#x}");
    check!(cpu::on_bare_tcg() || rdmsr(0x10).is_ok_and(|tsc| tsc != 0), "TSC");
    check!(rdmsr(0x8b).is_ok(), "microcode revision");
    // SYSENTER's.
    for msr in [0x175, 0x176] {
        check!(wrmsr(msr, 0xffff_8000_1234_5678).is_ok(), "MSR {msr:#x} can't be written");
        check_eq!(rdmsr(msr).ok(), Some(0xffff_8000_1234_5678), "MSR {msr:#x}");
        let _ = wrmsr(msr, 0);
    }
    Ok(())
}

fn msr_syscall() -> Outcome {
    let registers = [
        (0xc000_0081, 0x0023_0008_0000_0000),
        (0xc000_0082, 0xffff_ffff_8123_4567),
        (0xc000_0083, 0x0000_7fff_1234_5678),
        (0xc000_0084, 0x0004_7700),
        (0xc000_0100, 0x0000_1234_5678_9abc),
        (0xc000_0101, 0xffff_8888_0000_1000),
        (0xc000_0102, 0xffff_9999_0000_2000),
    ];
    for (msr, value) in registers {
        check!(wrmsr(msr, value).is_ok(), "MSR {msr:#x} can't be written");
    }
    let mut wrong = None;
    for (msr, value) in registers {
        if rdmsr(msr).ok() != Some(value) {
            wrong = Some(msr);
        }
        let _ = wrmsr(msr, 0);
    }
    check!(wrong.is_none(), "MSR {wrong:#x?} does not read back");
    Ok(())
}

fn msr_not_canonical() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU does not check");
    }
    let untested = if cpu::tcg_underneath() { 5 } else { 0 };
    for msr in
        [0xc000_0082, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102].into_iter().skip(untested)
    {
        let vector = wrmsr(msr, 0x8000_0000_0000_0000).err().map(|trap| trap.vector);
        check_eq!(vector, Some(vector::GP), "MSR {msr:#x}");
    }
    let vector = wrmsr(0x277, 0x0202_0202_0202_0202).err().map(|trap| trap.vector);
    check_eq!(vector, Some(vector::GP), "reserved memory types in PAT");
    let vector = wrmsr(0xc000_0080, 1 << 63).err().map(|trap| trap.vector);
    check_eq!(vector, Some(vector::GP), "reserved bits of EFER");
    let vector = wrmsr(0xc000_0080, 0).err().map(|trap| trap.vector);
    check_eq!(vector, Some(vector::GP), "EFER.LME cleared while paging");
    Ok(())
}

fn msr_unknown() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU reads unknown MSRs as zero");
    }
    for msr in [0x4000_1234, 0x0000_1fff, 0xc000_1ffe, 0xc001_1ffe, 0x1234_5678, 0xdead_beef] {
        let trap = rdmsr(msr).err();
        check_eq!(trap.map(|t| (t.vector, t.error)), Some((vector::GP, 0)), "RDMSR {msr:#x}");
        let trap = wrmsr(msr, 0).err();
        check_eq!(trap.map(|t| (t.vector, t.error)), Some((vector::GP, 0)), "WRMSR {msr:#x}");
    }
    Ok(())
}

fn msr_ring3() -> Outcome {
    for code in [[0x0f, 0x32], [0x0f, 0x30]] {
        let trap = user::run(&code, [0, 0, 0x10, 0]);
        check_eq!((trap.vector, trap.rip), (vector::GP, user::BASE), "{code:x?}");
    }
    Ok(())
}

fn hlt_wakes() -> Outcome {
    pic::init();
    trap::on(pic::VECTOR, Some(|_| pic::eoi(0)));
    let before = trap::count(pic::VECTOR);
    for round in 1..=3 {
        pit::program(0, 0, 12_000);
        pic::unmask_only(1);
        cpu::wait_for_interrupt();
        check_eq!(trap::count(pic::VECTOR) - before, round, "interrupts");
    }
    pic::unmask_only(0);
    trap::on(pic::VECTOR, None);
    Ok(())
}

fn hlt_ring3() -> Outcome {
    let trap = user::run(&[0xf4], [0; 4]);
    check_eq!((trap.vector, trap.rip), (vector::GP, user::BASE), "HLT");
    Ok(())
}

fn cache_control() -> Outcome {
    let marker: u64;
    let caught =
        catch_asm!(["xor r8d, r8d", "wbinvd", "inc r8", "invd", "inc r8"], out("r8") marker);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(marker, 2, "instructions behind");
    for code in [[0x0f, 0x08], [0x0f, 0x09]] {
        let trap = user::run(&code, [0; 4]);
        check_eq!(trap.vector, vector::GP, "{code:x?} in ring 3");
    }
    Ok(())
}

fn rdtsc() -> Outcome {
    let mut last = cpu::rdtsc();
    for _ in 0..1000 {
        let now = cpu::rdtsc();
        check!(now >= last, "went back from {last} to {now}");
        last = now;
    }
    Ok(())
}

fn rdtscp() -> Outcome {
    if cpuid(0x8000_0001, 0).edx >> 27 & 1 == 0 {
        let caught = catch_asm!(["rdtscp"], out("eax") _, out("ecx") _, out("edx") _);
        check_eq!(caught.map(|t| t.vector), Some(vector::UD), "RDTSCP, not offered");
        return Ok(());
    }
    check!(wrmsr(0xc000_0103, 0xabcd_1234).is_ok(), "TSC_AUX can't be written");
    let (low, aux, high): (u32, u32, u32);
    let before = cpu::rdtsc();
    let caught = catch_asm!(["rdtscp"], out("eax") low, out("ecx") aux, out("edx") high);
    let now = u64::from(high) << 32 | u64::from(low);
    let _ = wrmsr(0xc000_0103, 0);
    check!(caught.is_none(), "raised {caught:x?}");
    check_eq!(aux, 0xabcd_1234, "TSC_AUX");
    check!(now >= before && now <= cpu::rdtsc(), "counter {now} out of order");
    Ok(())
}

fn rdtsc_ring3() -> Outcome {
    let code = [0x0f, 0x31, 0xcd, 0x80];
    check_eq!(user::run(&code, [0; 4]).vector, vector::USER_RETURN, "with CR4.TSD clear");
    let cr4 = cpu::cr4();
    let _ = cpu::set_cr4(cr4 | 4);
    let trap = user::run(&code, [0; 4]);
    let _ = cpu::set_cr4(cr4);
    check_eq!(trap.vector, vector::GP, "with CR4.TSD set");
    Ok(())
}

fn xsave_offered() -> bool {
    cpu::features().0 >> 26 & 1 == 1
}

fn xsetbv() -> Outcome {
    if !xsave_offered() {
        let caught = cpu::xsetbv(0, 1);
        check_eq!(caught.map(|t| t.vector), Some(vector::UD), "XSETBV, not offered");
        return Ok(());
    }
    let cr4 = cpu::cr4();
    let _ = cpu::set_cr4(cr4 | 1 << 18);
    let leaf = cpuid(0xd, 0);
    let supported = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    check!(supported & 3 == 3, "x87 and SSE states are missing: {supported:#x}");
    for value in [1, 3, supported & 7, 3] {
        let caught = cpu::xsetbv(0, value);
        check!(caught.is_none(), "XCR0 = {value:#x} raised {caught:x?}");
        check_eq!(cpu::xgetbv(0).ok(), Some(value), "XCR0");
    }
    let sized = cpuid(0xd, 0).ebx;
    check!(sized >= 576, "size for XCR0 = 3 is {sized}");
    let trap = user::run(&[0x0f, 0x01, 0xd1], [3, 0, 0, 0]);
    check_eq!(trap.vector, vector::GP, "XSETBV in ring 3");
    let _ = cpu::xsetbv(0, 1);
    let _ = cpu::set_cr4(cr4);
    Ok(())
}

fn xsetbv_invalid() -> Outcome {
    if !xsave_offered() {
        skip!("no XSAVE");
    }
    let cr4 = cpu::cr4();
    let _ = cpu::set_cr4(cr4 & !(1 << 18));
    check_eq!(cpu::xsetbv(0, 1).map(|t| t.vector), Some(vector::UD), "CR4.OSXSAVE clear");
    let _ = cpu::set_cr4(cr4 | 1 << 18);
    for (index, value, what) in [
        (0, 0, "x87 off"),
        (0, 5, "AVX without SSE"),
        (0, 1 | 1 << 62, "a bit unknown"),
        (1, 1, "XCR1"),
    ] {
        let caught = cpu::xsetbv(index, value);
        check_eq!(caught.map(|t| (t.vector, t.error)), Some((vector::GP, 0)), "{what}");
    }
    check_eq!(cpu::xgetbv(0).ok(), Some(1), "XCR0 afterwards");
    let _ = cpu::set_cr4(cr4);
    Ok(())
}

fn monitor_mwait() -> Outcome {
    static LINE: guests::harness::Shared<u64> = guests::harness::Shared::new(0);
    let at = LINE.address().addr() as u64;
    let caught = catch_asm!(["monitor"], in("rax") at, in("ecx") 0, in("edx") 0);
    if cpu::features().0 >> 3 & 1 == 0 {
        check_eq!(caught.map(|t| t.vector), Some(vector::UD), "MONITOR, not offered");
        let caught = catch_asm!(["mwait"], in("eax") 0, in("ecx") 0);
        check_eq!(caught.map(|t| t.vector), Some(vector::UD), "MWAIT, not offered");
        return Ok(());
    }
    check!(caught.is_none(), "MONITOR raised {caught:x?}");
    // A timer makes sure that it ends.
    pic::init();
    trap::on(pic::VECTOR, Some(|_| pic::eoi(0)));
    pit::program(0, 0, 12_000);
    pic::unmask_only(1);
    let caught = catch_asm!(["sti", "mwait", "cli"], in("eax") 0, in("ecx") 0);
    pit::stop();
    cpu::interrupt_window();
    pic::unmask_only(0);
    trap::on(pic::VECTOR, None);
    check!(caught.is_none(), "MWAIT raised {caught:x?}");
    Ok(())
}

fn rdpmc() -> Outcome {
    if cpu::on_bare_tcg() {
        skip!("bare QEMU raises #UD");
    }
    let caught = catch_asm!(["rdpmc"], in("ecx") 0x1234, out("eax") _, out("edx") _);
    check_eq!(caught.map(|t| t.vector), Some(vector::GP), "a counter that does not exist");
    check_eq!(user::run(&[0x0f, 0x33], [0; 4]).vector, vector::GP, "ring 3, CR4.PCE clear");
    Ok(())
}

fn pause() -> Outcome {
    for _ in 0..10_000 {
        cpu::pause();
    }
    Ok(())
}

/// KVM's answer to a hypercall number that it does not know.
const KVM_ENOSYS: i64 = -1000;

fn hypercall_ring0() -> Outcome {
    let (with_vmmcall, with_vmcall): (i64, i64);
    let first = catch_asm!(["vmmcall"], inout("rax") 0x1234i64 => with_vmmcall);
    let second = catch_asm!(["vmcall"], inout("rax") 0x1234i64 => with_vmcall);
    for (name, caught, value) in [("VMMCALL", first, with_vmmcall), ("VMCALL", second, with_vmcall)]
    {
        match caught {
            None => check_eq!(value, KVM_ENOSYS, "{name} with an unknown number"),
            Some(trap) => check_eq!(trap.vector, vector::UD, "{name}"),
        }
    }
    if !cpu::on_bare_tcg() {
        check!(first.is_none() || second.is_none(), "neither VMMCALL nor VMCALL is a hypercall");
    }
    Ok(())
}

fn hypercall_ring3() -> Outcome {
    for code in [[0x0f, 0x01, 0xd9, 0xcd, 0x80], [0x0f, 0x01, 0xc1, 0xcd, 0x80]] {
        let trap = user::run(&code, [0x1234, 0, 0, 0]);
        match trap.vector {
            vector::USER_RETURN => check_eq!(trap.rax, u64::MAX, "{code:x?}: not -EPERM"),
            other => check_eq!(other, vector::UD, "{code:x?}"),
        }
    }
    Ok(())
}

fn virtualization_instructions() -> Outcome {
    macro_rules! undefined {
        ($($code:literal)*) => { $(
            let caught = catch_asm!([$code], in("rax") 0x1000u64, in("rcx") 0u64, in("rdx") 0u64);
            check_eq!(caught.map(|t| t.vector), Some(vector::UD), "{}", $code);
        )* };
    }
    undefined!("vmrun rax" "vmload rax" "vmsave rax" "stgi" "clgi" "skinit eax" "invlpga rax, ecx"
        "vmxon [rsp - 64]" "vmxoff" "vmlaunch" "vmresume" "vmptrld [rsp - 64]" "vmread rax, rcx"
        "vmwrite rax, rcx" "invept rax, [rsp - 64]" "invvpid rax, [rsp - 64]" "getsec");
    Ok(())
}

fn rsm() -> Outcome {
    let caught = catch_asm!(["rsm"]);
    check_eq!(caught.map(|t| t.vector), Some(vector::UD), "RSM outside SMM");
    Ok(())
}
