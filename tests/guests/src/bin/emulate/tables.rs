//! Instructions of the families.
//!
//! Forms are written as assembly. RBX points to the operand; R14 and R15 are free for those that
//! move the stack there.

use core::arch::asm;
use guests::cpu;

/// The flags that arithmetic leaves defined: CF, PF, AF, ZF, SF, OF.
pub(crate) const ALL: u64 = 0x8d5;
/// CF and OF.
const OVERFLOW: u64 = 0x801;
/// ZF.
const ZERO: u64 = 0x40;
/// CF and ZF.
const COUNT: u64 = 0x41;
/// CF, ZF, SF and OF.
const FIELD: u64 = 0x8c1;
/// CF, PF, ZF and SF.
const SHIFTED: u64 = 0xc5;
/// All but OF, which emulated CPUs leave clear after ADOX (QEMU's of 32 bits, Bochs' of any).
const NO_OVERFLOW: u64 = ALL & !0x800;
/// No flag.
const NONE: u64 = 0;

/// A feature: CPUID's leaf, register (0 is EAX) and bit.
pub(crate) type Feature = (u32, usize, u32);
/// Every CPU of 64 bits has it.
const BASE: Feature = (1, 3, 26);
const SSE3: Feature = (1, 2, 0);
const SSE41: Feature = (1, 2, 19);
const SSE42: Feature = (1, 2, 20);
const POPCNT: Feature = (1, 2, 23);
pub(crate) const AVX: Feature = (1, 2, 28);
pub(crate) const AVX2: Feature = (7, 1, 5);
const BMI1: Feature = (7, 1, 3);
const BMI2: Feature = (7, 1, 8);
const ADX: Feature = (7, 1, 19);
const LZCNT: Feature = (0x8000_0001, 2, 5);
const MOVDIRI: Feature = (7, 2, 27);

pub(crate) fn has((leaf, register, bit): Feature) -> bool {
    let most = if leaf < 0x8000_0000 { cpu::max_leaf() } else { cpu::cpuid(0x8000_0000, 0).eax };
    let found = cpu::cpuid(leaf, 0);
    let value = [found.eax, found.ebx, found.ecx, found.edx][register];
    leaf <= most && value >> bit & 1 != 0
}

/// Instructions with their name, how the operand is aligned, the flags that they leave defined, and
/// the feature that they need.
pub(crate) struct Form {
    pub(crate) name: &'static str,
    pub(crate) code: fn() -> &'static [u8],
    pub(crate) alignment: u64,
    pub(crate) flags: u64,
    pub(crate) feature: Feature,
}

macro_rules! form {
    ($name:literal, $alignment:literal, $flags:expr, $feature:expr, $($text:literal),*) => {
        Form {
            name: $name,
            code: || {
                let (start, end): (*const u8, *const u8);
                // SAFETY: the instructions are jumped over; only their addresses are taken.
                unsafe {
                    asm!("lea {start}, [rip + 77f]", "lea {end}, [rip + 88f]", "jmp 88f",
                         "77:", $($text,)* "88:",
                         start = out(reg) start, end = out(reg) end, options(nomem, nostack));
                }
                let length = end.addr() - start.addr();
                // SAFETY: that is the guest's own code, which nobody changes.
                unsafe { core::slice::from_raw_parts(start, length) }
            },
            alignment: $alignment,
            flags: $flags,
            feature: $feature,
        }
    };
}

/// Instructions with the stack at the operand.
macro_rules! stack {
    ($name:literal, $flags:expr, $($text:literal),*) => {
        form!($name, 8, $flags, BASE, "mov r15, rsp", "mov rsp, rbx", $($text,)*
              "mov r14, rsp", "mov rsp, r15")
    };
}

const GENERAL: &[Form] = &[
    form!("mul", 1, OVERFLOW, BASE, "mul qword ptr [rbx]"),
    form!("mul32", 1, OVERFLOW, BASE, "mul dword ptr [rbx]"),
    form!("mul16", 1, OVERFLOW, BASE, "mul word ptr [rbx]"),
    form!("mul8", 1, OVERFLOW, BASE, "mul byte ptr [rbx]"),
    form!("imul", 1, OVERFLOW, BASE, "imul qword ptr [rbx]"),
    form!("imul32", 1, OVERFLOW, BASE, "imul dword ptr [rbx]"),
    form!("imul16", 1, OVERFLOW, BASE, "imul word ptr [rbx]"),
    form!("imul8", 1, OVERFLOW, BASE, "imul byte ptr [rbx]"),
    form!("imul2", 1, OVERFLOW, BASE, "imul rcx, [rbx]"),
    form!("imul2_32", 1, OVERFLOW, BASE, "imul ecx, [rbx]"),
    form!("imul2_16", 1, OVERFLOW, BASE, "imul cx, [rbx]"),
    form!("imul3", 1, OVERFLOW, BASE, "imul rcx, [rbx], -77777"),
    form!("imul3_byte", 1, OVERFLOW, BASE, "imul ecx, [rbx], -77"),
    form!("imul3_16", 1, OVERFLOW, BASE, "imul cx, [rbx], 7777"),
    form!("div", 1, NONE, BASE, "xor edx, edx", "div qword ptr [rbx]"),
    form!("div32", 1, NONE, BASE, "div dword ptr [rbx]"),
    form!("div16", 1, NONE, BASE, "shr edx, 20", "div word ptr [rbx]"),
    form!("div8", 1, NONE, BASE, "movzx eax, al", "div byte ptr [rbx]"),
    form!("idiv", 1, NONE, BASE, "cqo", "idiv qword ptr [rbx]"),
    form!("idiv32", 1, NONE, BASE, "cdq", "idiv dword ptr [rbx]"),
    form!("idiv16", 1, NONE, BASE, "cwd", "idiv word ptr [rbx]"),
    form!("idiv8", 1, NONE, BASE, "cbw", "idiv byte ptr [rbx]"),
    form!("bsf", 1, ZERO, BASE, "or byte ptr [rbx + 1], 0x80", "bsf rcx, [rbx]"),
    form!("bsr16", 1, ZERO, BASE, "or byte ptr [rbx + 1], 0x10", "bsr cx, [rbx]"),
    form!("bsr", 1, ZERO, BASE, "or byte ptr [rbx], 1", "bsr rcx, [rbx]"),
    form!("tzcnt", 1, COUNT, BMI1, "tzcnt rcx, [rbx]"),
    form!("tzcnt16", 1, COUNT, BMI1, "and word ptr [rbx], 0x800", "tzcnt cx, [rbx]"),
    form!("lzcnt", 1, COUNT, LZCNT, "lzcnt ecx, [rbx]"),
    form!("popcnt", 1, ALL, POPCNT, "popcnt rcx, [rbx]"),
    form!("shld", 1, SHIFTED, BASE, "shld qword ptr [rbx], rdx, 13"),
    form!("shld_cl", 1, SHIFTED, BASE, "or ecx, 1", "shld dword ptr [rbx], edx, cl"),
    form!("shld16", 1, SHIFTED, BASE, "shld word ptr [rbx], dx, 5"),
    form!("shrd", 1, SHIFTED, BASE, "shrd qword ptr [rbx], rdx, 61"),
    form!("shrd_cl", 1, SHIFTED, BASE, "or ecx, 1", "shrd qword ptr [rbx], rdx, cl"),
    form!("shrd16", 1, SHIFTED, BASE, "shrd word ptr [rbx], dx, 16"),
    form!("shrd_1", 1, SHIFTED | 0x800, BASE, "shrd dword ptr [rbx], edx, 1"),
    form!("andn", 1, FIELD, BMI1, "andn rcx, rdx, [rbx]"),
    form!("bextr", 1, FIELD & !0x80, BMI1, "and edx, 0x3f3f", "bextr rcx, [rbx], rdx"),
    form!("blsi", 1, FIELD, BMI1, "blsi rcx, [rbx]"),
    form!("blsmsk", 1, FIELD, BMI1, "blsmsk ecx, [rbx]"),
    form!("blsr", 1, FIELD, BMI1, "blsr rcx, [rbx]"),
    form!("bzhi", 1, FIELD, BMI2, "bzhi rcx, [rbx], rdx"),
    form!("pdep", 1, ALL, BMI2, "pdep rcx, rdx, [rbx]"),
    form!("pext", 1, ALL, BMI2, "pext rcx, rdx, [rbx]"),
    form!("shlx", 1, ALL, BMI2, "shlx rcx, [rbx], rdx"),
    form!("shrx", 1, ALL, BMI2, "shrx ecx, [rbx], edx"),
    form!("sarx", 1, ALL, BMI2, "sarx rcx, [rbx], rdx"),
    form!("rorx", 1, ALL, BMI2, "rorx rcx, [rbx], 21"),
    form!("mulx", 1, ALL, BMI2, "mulx rcx, rax, [rbx]"),
    form!("mulx32", 1, ALL, BMI2, "mulx esi, esi, [rbx]"),
    form!("adcx", 1, ALL, ADX, "adcx rcx, [rbx]"),
    form!("adox", 1, NO_OVERFLOW, ADX, "adox ecx, [rbx]"),
    form!("crc32", 1, ALL, SSE42, "crc32 rcx, qword ptr [rbx]"),
    form!("crc32_byte", 1, ALL, SSE42, "crc32 ecx, byte ptr [rbx]"),
    form!("crc32_16", 1, ALL, SSE42, "crc32 ecx, word ptr [rbx]"),
    form!("rcl", 1, OVERFLOW & 1, BASE, "rcl dword ptr [rbx], cl"),
    form!("rcr", 1, OVERFLOW & 1, BASE, "rcr byte ptr [rbx], cl"),
    form!("xlat", 1, ALL, BASE, "and al, 31", "xlatb"),
    form!("movnti", 1, ALL, BASE, "movnti [rbx], rcx"),
    form!("movdiri", 1, ALL, MOVDIRI, "movdiri [rbx], rcx"),
    form!(
        "cmpxchg16b",
        16,
        ALL,
        BASE,
        "mov rax, [rbx]",
        "mov rdx, [rbx + 8]",
        "mov rdi, rbx",
        "cmpxchg16b [rdi]"
    ),
];

const STACK: &[Form] = &[
    stack!("push_immediate", ALL, "push -5"),
    stack!("push_immediate32", ALL, "push 0x12345678"),
    form!(
        "push_immediate16",
        8,
        ALL,
        BASE,
        "mov r15, rsp",
        "mov rsp, rbx",
        ".byte 0x66, 0x6a, 0xfe",
        "mov r14, rsp",
        "mov rsp, r15"
    ),
    stack!("push_memory", ALL, "push qword ptr [rbx + 8]"),
    stack!("push_register", ALL, "push rcx"),
    stack!("push_segment", ALL, "mov qword ptr [rbx - 8], 0", "push fs"),
    stack!("pop_memory", ALL, "pop qword ptr [rbx + 16]"),
    stack!("pop_own", ALL, "pop qword ptr [rsp + 16]"),
    stack!("pop_register16", ALL, "pop cx"),
    stack!("pop_segment", ALL, "mov eax, ds", "mov [rbx], rax", "pop fs", "mov ecx, fs"),
    stack!(
        "call",
        ALL,
        "lea rax, [rip + 55f]",
        "mov [rbx + 8], rax",
        "call [rbx + 8]",
        "ud2",
        "55:"
    ),
    stack!("call_direct", ALL, "call 55f", "ud2", "55:"),
    stack!("jmp", ALL, "lea rax, [rip + 55f]", "mov [rbx + 8], rax", "jmp [rbx + 8]", "ud2", "55:"),
    stack!("ret", ALL, "lea rax, [rip + 55f]", "mov [rbx], rax", "ret", "ud2", "55:"),
    stack!("ret_more", ALL, "lea rax, [rip + 55f]", "mov [rbx], rax", "ret 24", "ud2", "55:"),
    stack!("enter", ALL, "enter 40, 0", "mov rdi, rbp"),
    stack!("enter_nested", ALL, "lea rbp, [rbx + 40]", "enter 8, 3", "mov rdi, rbp"),
    stack!("leave", ALL, "lea rbp, [rbx + 8]", "leave", "mov rdi, rbp"),
    stack!("flags", ALL, "pushfq", "add eax, ecx", "popfq"),
    stack!(
        "flags_from_memory",
        ALL | 0x4000,
        "and qword ptr [rbx], 0x48d5",
        "popfq",
        "pushfq",
        "pop rcx",
        "push 2",
        "popfq"
    ),
];

const SYSTEM: &[Form] = &[
    form!("smsw", 1, ALL, BASE, "smsw [rbx]"),
    form!("lmsw", 1, ALL, BASE, "smsw [rbx]", "lmsw [rbx]"),
    form!("sldt", 1, ALL, BASE, "sldt [rbx]"),
    form!("lldt", 1, ALL, BASE, "mov word ptr [rbx], 0", "lldt [rbx]", "sldt ecx"),
    form!("lldt_bad", 1, ALL, BASE, "mov word ptr [rbx], ds", "lldt [rbx]"),
    form!("str", 1, ALL, BASE, "str [rbx]"),
    form!(
        "ltr",
        1,
        NONE,
        BASE,
        "str [rbx]",
        "sgdt [rbx + 8]",
        "mov rax, [rbx + 10]",
        "movzx ecx, word ptr [rbx]",
        "and byte ptr [rax + rcx + 5], 0xfd",
        "ltr [rbx]",
        "mov dl, [rax + rcx + 5]"
    ),
    form!("ltr_busy", 1, NONE, BASE, "str [rbx]", "ltr [rbx]"),
    form!("sgdt", 1, ALL, BASE, "sgdt [rbx]"),
    form!("lgdt", 1, ALL, BASE, "sgdt [rbx]", "lgdt [rbx]", "sgdt [rbx + 16]"),
    form!("lidt", 1, ALL, BASE, "sidt [rbx]", "lidt [rbx]", "sidt [rbx + 16]"),
    form!("store_segment", 1, ALL, BASE, "mov [rbx], ss"),
    form!("load_segment", 1, ALL, BASE, "mov [rbx], ds", "mov es, [rbx]", "mov ecx, es"),
    form!("load_stack_segment", 1, ALL, BASE, "mov [rbx], ss", "mov ss, [rbx]", "mov ecx, ss"),
    form!(
        "load_null",
        1,
        ALL,
        BASE,
        "mov word ptr [rbx], 0",
        "mov es, [rbx]",
        "mov ecx, es",
        "mov eax, ds",
        "mov es, eax"
    ),
    form!("load_bad", 1, ALL, BASE, "mov word ptr [rbx], 0x7ff8", "mov es, [rbx]"),
    form!("load_far", 1, ALL, BASE, "mov [rbx + 4], ds", "lfs ecx, [rbx]", "mov edx, fs"),
    form!("verr", 1, ZERO, BASE, "mov [rbx], ds", "verr [rbx]"),
    form!("verw", 1, ZERO, BASE, "mov [rbx], cs", "verw [rbx]"),
    form!("lar", 1, ZERO, BASE, "mov [rbx], cs", "lar ecx, [rbx]", "and ecx, 0xf0ff00"),
    form!("lsl", 1, ZERO, BASE, "mov [rbx], ds", "lsl ecx, [rbx]"),
    form!("lar_bad", 1, ZERO, BASE, "mov word ptr [rbx], 0x7ff8", "lar ecx, [rbx]"),
];

const MMX: &[Form] = &[
    form!("mmx_movd_load", 1, ALL, BASE, "movd mm1, dword ptr [rbx]"),
    form!("mmx_movd_store", 1, ALL, BASE, "movd dword ptr [rbx], mm1"),
    form!("mmx_movq_load", 1, ALL, BASE, "movq mm7, qword ptr [rbx]"),
    form!("mmx_movq_store", 1, ALL, BASE, "movq qword ptr [rbx], mm2"),
    form!("mmx_movntq", 1, ALL, BASE, "movntq [rbx], mm3"),
    form!("mmx_pinsrw", 1, ALL, BASE, "pinsrw mm4, word ptr [rbx], 2"),
    form!("mmx_maskmovq", 1, ALL, BASE, "mov rdi, rbx", "maskmovq mm5, mm6"),
];

const SSE: &[Form] = &[
    form!("movaps_load", 16, ALL, BASE, "movaps xmm1, [rbx]"),
    form!("movaps_store", 16, ALL, BASE, "movaps [rbx], xmm9"),
    form!("movaps_misaligned", 16, ALL, BASE, "movaps xmm1, [rbx + 4]"),
    form!("movapd_store", 16, ALL, BASE, "movapd [rbx], xmm2"),
    form!("movups_load", 1, ALL, BASE, "movups xmm15, [rbx]"),
    form!("movups_store", 1, ALL, BASE, "movups [rbx], xmm3"),
    form!("movupd_load", 1, ALL, BASE, "movupd xmm4, [rbx]"),
    form!("movdqa_load", 16, ALL, BASE, "movdqa xmm5, [rbx]"),
    form!("movdqa_store", 16, ALL, BASE, "movdqa [rbx], xmm6"),
    form!("movdqu_load", 1, ALL, BASE, "movdqu xmm7, [rbx]"),
    form!("movdqu_store", 1, ALL, BASE, "movdqu [rbx], xmm8"),
    form!("movd_load", 1, ALL, BASE, "movd xmm9, dword ptr [rbx]"),
    form!("movd_store", 1, ALL, BASE, "movd dword ptr [rbx], xmm10"),
    form!("movq_load", 1, ALL, BASE, "movq xmm11, qword ptr [rbx]"),
    form!("movq_store", 1, ALL, BASE, "movq qword ptr [rbx], xmm12"),
    form!("movss_load", 1, ALL, BASE, "movss xmm13, [rbx]"),
    form!("movss_store", 1, ALL, BASE, "movss [rbx], xmm14"),
    form!("movsd_load", 1, ALL, BASE, "movsd xmm0, [rbx]"),
    form!("movsd_store", 1, ALL, BASE, "movsd [rbx], xmm1"),
    form!("movlps_load", 1, ALL, BASE, "movlps xmm2, [rbx]"),
    form!("movlps_store", 1, ALL, BASE, "movlps [rbx], xmm3"),
    form!("movhps_load", 1, ALL, BASE, "movhps xmm4, [rbx]"),
    form!("movhps_store", 1, ALL, BASE, "movhps [rbx], xmm5"),
    form!("movlpd_load", 1, ALL, BASE, "movlpd xmm6, [rbx]"),
    form!("movhpd_store", 1, ALL, BASE, "movhpd [rbx], xmm7"),
    form!("movntdq", 16, ALL, BASE, "movntdq [rbx], xmm8"),
    form!("movntps", 16, ALL, BASE, "movntps [rbx], xmm9"),
    form!("movntpd", 16, ALL, BASE, "movntpd [rbx], xmm10"),
    form!("maskmovdqu", 1, ALL, BASE, "mov rdi, rbx", "maskmovdqu xmm1, xmm2"),
    form!("stmxcsr", 1, ALL, BASE, "stmxcsr [rbx]"),
    form!(
        "ldmxcsr",
        1,
        ALL,
        BASE,
        "and dword ptr [rbx], 0x603f",
        "or dword ptr [rbx], 0x1f80",
        "ldmxcsr [rbx]"
    ),
    form!("ldmxcsr_reserved", 1, ALL, BASE, "or dword ptr [rbx], 0x10000000", "ldmxcsr [rbx]"),
    form!("lddqu", 1, ALL, SSE3, "lddqu xmm3, [rbx]"),
    form!("movddup", 1, ALL, SSE3, "movddup xmm4, [rbx]"),
    form!("movsldup", 16, ALL, SSE3, "movsldup xmm5, [rbx]"),
    form!("movshdup", 16, ALL, SSE3, "movshdup xmm6, [rbx]"),
    form!("movntdqa", 16, ALL, SSE41, "movntdqa xmm7, [rbx]"),
    form!("pinsrb", 1, ALL, SSE41, "pinsrb xmm8, byte ptr [rbx], 11"),
    form!("pinsrw", 1, ALL, BASE, "pinsrw xmm9, word ptr [rbx], 3"),
    form!("pinsrd", 1, ALL, SSE41, "pinsrd xmm10, dword ptr [rbx], 2"),
    form!("pinsrq", 1, ALL, SSE41, "pinsrq xmm11, qword ptr [rbx], 1"),
    form!("pextrb", 1, ALL, SSE41, "pextrb byte ptr [rbx], xmm12, 15"),
    form!("pextrw", 1, ALL, SSE41, "pextrw word ptr [rbx], xmm13, 6"),
    form!("pextrd", 1, ALL, SSE41, "pextrd dword ptr [rbx], xmm14, 3"),
    form!("pextrq", 1, ALL, SSE41, "pextrq qword ptr [rbx], xmm15, 1"),
    form!("insertps", 1, ALL, SSE41, "insertps xmm0, dword ptr [rbx], 0x29"),
    form!("extractps", 1, ALL, SSE41, "extractps dword ptr [rbx], xmm1, 2"),
    form!("pmovzxbw", 1, ALL, SSE41, "pmovzxbw xmm2, qword ptr [rbx]"),
    form!("pmovsxbq", 1, ALL, SSE41, "pmovsxbq xmm3, word ptr [rbx]"),
    form!("pmovsxwd", 1, ALL, SSE41, "pmovsxwd xmm4, qword ptr [rbx]"),
    form!("pmovzxdq", 1, ALL, SSE41, "pmovzxdq xmm5, qword ptr [rbx]"),
];

const WIDE: &[Form] = &[
    form!("vmovaps_load", 32, ALL, AVX, "vmovaps ymm1, [rbx]"),
    form!("vmovaps_store", 32, ALL, AVX, "vmovaps [rbx], ymm2"),
    form!("vmovaps_misaligned", 32, ALL, AVX, "vmovaps ymm1, [rbx + 16]"),
    form!("vmovaps_128", 16, ALL, AVX, "vmovaps xmm3, [rbx]"),
    form!("vmovups_load", 1, ALL, AVX, "vmovups ymm14, [rbx]"),
    form!("vmovups_store", 1, ALL, AVX, "vmovups [rbx], ymm15"),
    form!("vmovdqu_load", 1, ALL, AVX, "vmovdqu ymm0, [rbx]"),
    form!("vmovdqu_128", 1, ALL, AVX, "vmovdqu xmm1, [rbx]"),
    form!("vmovdqu_store", 1, ALL, AVX, "vmovdqu [rbx], ymm2"),
    form!("vmovdqa_store", 32, ALL, AVX, "vmovdqa [rbx], ymm3"),
    form!("vmovd_load", 1, ALL, AVX, "vmovd xmm4, dword ptr [rbx]"),
    form!("vmovq_load", 1, ALL, AVX, "vmovq xmm5, qword ptr [rbx]"),
    form!("vmovq_store", 1, ALL, AVX, "vmovq qword ptr [rbx], xmm6"),
    form!("vmovss_load", 1, ALL, AVX, "vmovss xmm7, [rbx]"),
    form!("vmovsd_store", 1, ALL, AVX, "vmovsd [rbx], xmm8"),
    form!("vmovlps", 1, ALL, AVX, "vmovlps xmm9, xmm10, [rbx]"),
    form!("vmovhpd", 1, ALL, AVX, "vmovhpd xmm11, xmm12, [rbx]"),
    form!("vmovntdq", 32, ALL, AVX, "vmovntdq [rbx], ymm13"),
    form!("vmovntps", 32, ALL, AVX, "vmovntps [rbx], ymm14"),
    form!("vmovddup", 1, ALL, AVX, "vmovddup ymm15, [rbx]"),
    form!("vmovshdup", 1, ALL, AVX, "vmovshdup ymm0, [rbx]"),
    form!("vlddqu", 1, ALL, AVX, "vlddqu ymm1, [rbx]"),
    form!("vbroadcastss", 1, ALL, AVX, "vbroadcastss ymm2, [rbx]"),
    form!("vbroadcastf128", 1, ALL, AVX, "vbroadcastf128 ymm3, [rbx]"),
    form!("vinsertf128", 1, ALL, AVX, "vinsertf128 ymm4, ymm5, [rbx], 1"),
    form!("vextractf128", 1, ALL, AVX, "vextractf128 [rbx], ymm6, 1"),
    form!("vmaskmovps_load", 1, ALL, AVX, "vmaskmovps ymm7, ymm8, [rbx]"),
    form!("vmaskmovpd_store", 1, ALL, AVX, "vmaskmovpd [rbx], ymm9, ymm10"),
    form!("vpinsrd", 1, ALL, AVX, "vpinsrd xmm11, xmm12, dword ptr [rbx], 1"),
    form!("vmovntdqa", 32, ALL, AVX2, "vmovntdqa ymm13, [rbx]"),
    form!("vpbroadcastb", 1, ALL, AVX2, "vpbroadcastb ymm14, byte ptr [rbx]"),
    form!("vpbroadcastq", 1, ALL, AVX2, "vpbroadcastq xmm15, qword ptr [rbx]"),
    form!("vinserti128", 1, ALL, AVX2, "vinserti128 ymm0, ymm1, [rbx], 0"),
    form!("vpmaskmovd_store", 1, ALL, AVX2, "vpmaskmovd [rbx], ymm2, ymm3"),
    form!("vpmovsxbw", 1, ALL, AVX2, "vpmovsxbw ymm4, [rbx]"),
];

pub(crate) const FAMILIES: &[(&str, &[Form])] = &[
    ("general", GENERAL),
    ("stack", STACK),
    ("system", SYSTEM),
    ("mmx", MMX),
    ("sse", SSE),
    ("avx", WIDE),
];
