//! Instructions that a program may try: the opcode maps one-byte, 0F, 0F 38 and 0F 3A, each
//! opcode with a register and a memory operand, all eight /digits and the usual
//! prefixes, in ring 3. Each encoding must fault or complete; what ends this guest
//! instead is a fault of who runs it.
//!
//! Each is tried twice: in ordinary memory, single-stepped, and so that its last
//! byte is the last of a page with nothing behind it, where whatever comes next
//! faults. A timer finds what does neither.
//!
//! With `device`, on the command line, those with a memory operand are tried on memory and on a
//! device instead, and are compared ([`device`]).
//!
//! Other words of the command line: `from=` and `to=` choose opcodes by number, to search
//! for one that ends the run; `trace` prints each before it is tried.
#![no_std]
#![no_main]

mod device;

use core::arch::asm;
use guests::apic::{Lapic, bits as lvt, reg};
use guests::harness::{Outcome, Shared, Stop, Tests};
use guests::paging::{self, bits};
use guests::trap::{self, RECOVER_RIP, RECOVER_RSP, Trap, selector, vector};
use guests::{check, check_eq, cpu, info, io, print, println, user};

guests::entry!(main);

/// Prefixes, alone and in pairs that mean something.
const PREFIXES: &[&[u8]] = &[
    &[],
    &[0x66],
    &[0xf2],
    &[0xf3],
    &[0x48],
    &[0xf0],
    &[0x66, 0x48],
    &[0xf2, 0x48],
    &[0xf3, 0x48],
    &[0xf0, 0x48],
    &[0x66, 0xf0],
    &[0x66, 0xf2],
    &[0x66, 0xf3],
    &[0xf2, 0xf0],
    &[0xf3, 0xf0],
];

/// Opcode maps, by their first bytes.
const MAPS: &[&[u8]] = &[&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];

/// Opcodes whose register forms are instructions of their own: all 64 are tried.
const BY_MODRM: &[(usize, u8)] = &[
    (0, 0xd8),
    (0, 0xd9),
    (0, 0xda),
    (0, 0xdb),
    (0, 0xdc),
    (0, 0xdd),
    (0, 0xde),
    (0, 0xdf),
    (0, 0xc6),
    (0, 0xc7),
    (1, 0x00),
    (1, 0x01),
    (1, 0x1e),
    (1, 0xae),
    (1, 0xc7),
];

/// Address of the code in ordinary memory, among bytes of INT3.
const CODE: u64 = user::BASE + 0x8800;
/// A page that stands alone: nothing is mapped before and behind it.
const LONELY: u64 = 0x40_0000_1000;
/// Frame of that page.
const FRAME: u64 = user::BASE + 0xa000;
const PAGE: u64 = 4096;
/// INT3: what surrounds the code.
const INT3: u8 = 0xcc;
/// The most bytes of an encoding that are chosen here: prefixes, map, opcode, ModRM.
const LONGEST: usize = 6;
/// Bytes that are put back behind each encoding in ordinary memory.
const CLEAN: usize = 24;

/// Places that registers point to, behind the address of the data: most of them, RSI, RDI, RBP.
const PLACES: [u64; 4] = [0, 0x1000, 0x2000, 0x8_0000];

/// The watchdog's vector, and its ticks within one encoding that are too many.
const WATCHDOG: u8 = 0x41;
const PATIENCE: u64 = 3;

const EFER: u32 = 0xc000_0080;
const NXE: u64 = 1 << 11;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;

/// Number of the encoding at hand, for the watchdog; the one that it saw last, and
/// how often.
static CURRENT: Shared<u64> = Shared::new(0);
static SEEN: Shared<(u64, u64)> = Shared::new((0, 0));

/// How the encodings came out.
#[derive(Clone, Copy, Default)]
struct Counts {
    tried: u64,
    completed: u64,
    faults: [u64; 32],
}

static COUNTS: Shared<Counts> = Shared::new(Counts { tried: 0, completed: 0, faults: [0; 32] });

/// Place of an encoding: in ordinary memory, or at the edge of the lonely page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Ordinary,
    Edge,
}

/// An encoding, as far as it is chosen: what its displacement and its immediates
/// are is left to what stands behind it.
#[derive(Clone, Copy)]
struct Encoding {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Encoding {
    fn new(parts: &[&[u8]]) -> Self {
        let mut encoding = Self { bytes: [0; LONGEST], length: 0 };
        for byte in parts.iter().copied().flatten() {
            encoding.bytes[encoding.length] = *byte;
            encoding.length += 1;
        }
        encoding
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn main() -> ! {
    let mut tests = Tests::new();
    prepare();
    tests.case("known", known);
    if info::flag("device") {
        tests.case("on_device", device::opcodes);
    } else {
        tests.case("opcodes", opcodes);
    }
    tests.finish()
}

fn prepare() {
    user::init();
    user::place(CODE - 0x800, &[INT3; 0x1000]);
    user::place(FRAME, &[INT3; 0x1000]);
    paging::map(LONELY, FRAME, bits::PRESENT | bits::WRITE | bits::USER);
    // Code that returns or jumps to data must not run on through it.
    let efer = cpu::rdmsr(EFER).unwrap_or(0);
    if cpu::wrmsr(EFER, efer | NXE).is_ok() {
        for page in (user::DATA..user::STACK_TOP).step_by(4096) {
            paging::change(page, bits::NX, 0);
        }
    }
    if cpu::features().0 & 1 << 26 != 0 {
        // XSAVE and its kin, with the states that the CPU has beside AVX-512's.
        let _ = cpu::set_cr4(cpu::cr4() | 1 << 18);
        let states = cpu::cpuid(0xd, 0).eax & 7;
        let _ = cpu::xsetbv(0, u64::from(states));
    }
    // No interrupt but the watchdog's.
    io::outb(0x21, 0xff);
    io::outb(0xa1, 0xff);
    trap::on(WATCHDOG, Some(watch));
    let apic = Lapic::now();
    apic.enable();
    apic.write(reg::TIMER_DIVIDE, 0xb);
    apic.write(reg::LVT_TIMER, lvt::PERIODIC | u32::from(WATCHDOG));
    // The bus clock of a machine is 1 GHz at most: 20 ms or more.
    apic.write(reg::TIMER_INITIAL, 20_000_000);
}

/// The watchdog barks: if one encoding has been there too often, it is given up.
fn watch(_: &mut trap::Frame) {
    Lapic::now().eoi();
    let (encoding, times) = SEEN.get();
    let times = if encoding == CURRENT.get() { times + 1 } else { 1 };
    SEEN.set((CURRENT.get(), times));
    if times > PATIENCE {
        trap::catch_this();
    }
}

/// Puts `encoding` where `place` says; where it starts, and the flags to run it with.
fn put(encoding: &Encoding, place: Place) -> (u64, u64) {
    match place {
        Place::Ordinary => {
            let mut bytes = [INT3; CLEAN];
            bytes[..encoding.length].copy_from_slice(encoding.bytes());
            user::place(CODE, &bytes);
            (CODE, 2 | IF | TF)
        }
        Place::Edge => {
            let mut bytes = [INT3; CLEAN];
            bytes[CLEAN - encoding.length..].copy_from_slice(encoding.bytes());
            user::place(FRAME + PAGE - CLEAN as u64, &bytes);
            (LONELY + PAGE - encoding.length as u64, 2 | IF)
        }
    }
}

/// Tries an encoding in ring 3: what gave the CPU back.
fn try_at(encoding: &Encoding, place: Place) -> Trap {
    let (rip, rflags) = put(encoding, place);
    CURRENT.set(CURRENT.get() + 1);
    run(rip, rflags, user::DATA)
}

/// Runs ring 3 at `rip`: every register that can be an address points to memory, RSI, RDI and RBP
/// at places of their own behind `data`, and RCX counts to three.
fn run(rip: u64, rflags: u64, data: u64) -> Trap {
    // SAFETY: the frame leads to ring 3, which can reach its own region only; the
    // handler comes back to the label with this stack pointer, and RBX and RBP are
    // restored from it.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea r12, [rip + 66f]",
            "mov [rip + {recover_rip}], r12",
            "mov [rip + {recover_rsp}], rsp",
            "push {user_data}",
            "push {stack}",
            "push r9",
            "push {user_code}",
            "push r8",
            "mov rbx, rax",
            "lea rbp, [rax + {behind_rbp}]",
            "lea rsi, [rax + {behind_rsi}]",
            "lea rdi, [rax + {behind_rdi}]",
            "mov ecx, 3",
            "mov edx, 0x80",
            "mov r8, rax",
            "mov r9, rax",
            "mov r10, rax",
            "mov r11, rax",
            "mov r12, rax",
            "mov r13, rax",
            "mov r14, rax",
            "mov r15, rax",
            "iretq",
            "66:",
            // Whatever flags ring 3 had.
            "push 2",
            "popfq",
            "pop rbp",
            "pop rbx",
            user_data = const selector::USER_DATA,
            user_code = const selector::USER_CODE,
            stack = const user::DATA + 0xc_0000,
            recover_rip = sym RECOVER_RIP,
            recover_rsp = sym RECOVER_RSP,
            behind_rsi = const PLACES[1],
            behind_rdi = const PLACES[2],
            behind_rbp = const PLACES[3],
            inout("rax") data => _,
            inout("r8") rip => _,
            inout("r9") rflags => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    trap::take().unwrap_or_default()
}

/// The ways back are what they are taken for.
fn known() -> Outcome {
    let outcome = |bytes: &[u8], place| {
        let trap = try_at(&Encoding::new(&[bytes]), place);
        (trap.vector, trap.rip)
    };
    let edge = LONELY + PAGE;
    check_eq!(outcome(&[0x90], Place::Ordinary), (vector::DB, CODE + 1), "NOP");
    check_eq!(outcome(&[0x90], Place::Edge), (vector::PF, edge), "NOP at the edge");
    check_eq!(outcome(&[0x0f, 0x0b], Place::Ordinary), (vector::UD, CODE), "UD2");
    check_eq!(outcome(&[0x0f, 0x0b], Place::Edge), (vector::UD, edge - 2), "UD2 at the edge");
    check_eq!(outcome(&[0xf4], Place::Ordinary), (vector::GP, CODE), "HLT");
    check_eq!(outcome(&[0x05], Place::Edge), (vector::PF, edge - 1), "half an ADD");
    // CPUID exits wherever there is a hypervisor, and RDPRU where there is one and it.
    check_eq!(outcome(&[0x0f, 0xa2], Place::Ordinary), (vector::DB, CODE + 2), "CPUID");
    check_eq!(outcome(&[0x0f, 0xa2], Place::Edge), (vector::PF, edge), "CPUID at the edge");
    check_eq!(outcome(&[0x0f, 0x01, 0xfd], Place::Edge), (vector::UD, edge - 3), "RDPRU");
    // JMP to itself.
    check_eq!(outcome(&[0xeb, 0xfe], Place::Edge).0, WATCHDOG, "an endless loop");
    Ok(())
}

/// Does `each` for each opcode: its number, prefixes, map and last byte. Whether that was all of
/// them.
fn for_each(mut each: impl FnMut(u64, &[u8], (usize, &[u8]), u8) -> Outcome) -> Result<bool, Stop> {
    let from = info::number("from").unwrap_or(0);
    let to = info::number("to").unwrap_or(u64::MAX);
    let mut number = 0;
    for prefix in PREFIXES {
        for (map, first) in MAPS.iter().enumerate() {
            for opcode in 0..=255u8 {
                if (from..to).contains(&number) {
                    each(number, prefix, (map, first), opcode)?;
                }
                number += 1;
            }
            println!("{number} opcodes");
        }
    }
    Ok(from == 0 && to == u64::MAX)
}

fn opcodes() -> Outcome {
    let all = for_each(group)?;
    let counts = COUNTS.get();
    print!("{} encodings twice: {} completed", counts.tried / 2, counts.completed);
    for (vector, count) in counts.faults.iter().enumerate().filter(|(_, count)| **count != 0) {
        print!(", {count} with vector {vector}");
    }
    println!();
    if all {
        check!(counts.tried > 2 * 60_000, "only {} encodings", counts.tried / 2);
        let invalid = counts.faults[usize::from(vector::UD)];
        check!(counts.completed > counts.tried / 10, "only {} completed", counts.completed);
        check!(invalid > counts.tried / 10, "only {invalid} invalid ones");
    }
    Ok(())
}

/// One opcode with all its operands.
fn group(number: u64, prefix: &[u8], (map, first): (usize, &[u8]), opcode: u8) -> Outcome {
    // An instruction that unmasked exceptions must not hide those of the next ones.
    // SAFETY: no floating-point code is between.
    unsafe { asm!("fninit", options(nostack)) };
    let digits = (0..8u8).flat_map(|digit| [0xc3 | digit << 3, 0x03 | digit << 3]);
    for modrm in digits {
        try_both(number, &Encoding::new(&[prefix, first, &[opcode, modrm]]))?;
    }
    if BY_MODRM.contains(&(map, opcode)) {
        for modrm in 0xc0..=0xffu8 {
            try_both(number, &Encoding::new(&[prefix, first, &[opcode, modrm]]))?;
        }
    }
    Ok(())
}

/// Whether these bytes end QEMU 7.2 itself, wherever they run: seen with this guest
/// on its bare emulated CPU.
fn ends_qemu(encoding: &Encoding) -> bool {
    match *encoding.bytes() {
        // VPERMILPS without VEX: the decoder follows a null pointer (segmentation fault).
        [0x0f, 0x38, 0x0c, _] | [0x48, 0x0f, 0x38, 0x0c, _] => true,
        // LOCK before BT, BTS, BTR and BTC of a register, where it is no prefix: an
        // assertion of the code generator fails (abort).
        [.., 0x0f, 0xa3 | 0xab | 0xb3 | 0xbb, 0xc0..=0xff] | [.., 0x0f, 0xba, 0xe0..=0xff] => {
            encoding.bytes().contains(&0xf0)
        }
        _ => false,
    }
}

fn try_both(number: u64, encoding: &Encoding) -> Outcome {
    if cpu::tcg_underneath() && ends_qemu(encoding) {
        return Ok(());
    }
    if info::flag("trace") {
        println!("{number}: {:02x?}", encoding.bytes());
    }
    for place in [Place::Ordinary, Place::Edge] {
        let trap = try_at(encoding, place);
        let mut counts = COUNTS.get();
        counts.tried += 1;
        match trap.vector {
            vector::DB => counts.completed += 1,
            vector::PF if trap.rip == LONELY + PAGE => counts.completed += 1,
            vector::BP | vector::USER_RETURN => counts.completed += 1,
            // A double fault is one that could not be delivered.
            fault @ (0 | 4 | 5 | 6 | 7 | 10..=14 | 16 | 17 | 19 | 21) => {
                counts.faults[usize::from(fault)] += 1;
            }
            other => check!(
                false,
                "opcode {number}: {:02x?} in {place:?}: vector {other} at {:#x}",
                encoding.bytes(),
                trap.rip
            ),
        }
        COUNTS.set(counts);
    }
    Ok(())
}
