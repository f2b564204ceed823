//! Each encoding with a memory operand on memory and on a device: it comes out the same, or is
//! refused on the device by an exception, with nothing done.

use crate::{CODE, CURRENT, Encoding, IF, PLACES, Place, TF, ends_qemu, for_each, put, run};
use core::arch::asm;
use guests::harness::{Outcome, Shared};
use guests::paging::{self, bits};
use guests::trap::{self, Trap, vector};
use guests::{check, check_eq, cpu, info, io, println, skip, user};

/// Linear address of the data, in both runs.
const WINDOW: u64 = 0x50_0000_0000;
/// The device: storage that the hypervisor serves by emulating the instruction.
const DEVICE: u64 = 0xfed4_0000;
/// Quadwords that are looked at: the place, the offset, and the contents before each run. Three
/// iterations of a string instruction go through that of RDI; a bit that ESI numbers is at 0x200.
const BEFORE: [(usize, u64, &[u64]); 5] = [
    (0, 0, &[0x8000_0000, 0x8877_6655_4433_2211, 0x0000_1f80_0000_1f80, u64::MAX]),
    (0, 0x200, &[2]),
    (1, 0, &[0x0102_0304_0506_0708]),
    (2, 0, &[0x3ff0_0000_3f80_0000, 0, 0x7fff_8000_0001_fffe]),
    (3, 0, &[0x0000_0000_0100_0023]),
];
/// How many they are.
const WORDS: usize = 10;

/// Opcodes whose digit says what is done, by map; of others two registers are tried.
fn is_group(map: usize, opcode: u8) -> bool {
    match map {
        0 => matches!(
            opcode,
            0x80..=0x83 | 0x8c | 0x8e | 0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xd8..=0xdf
                | 0xf6 | 0xf7 | 0xfe | 0xff
        ),
        1 => matches!(opcode, 0x00 | 0x01 | 0x0d | 0x18..=0x1f | 0xae | 0xba | 0xc7),
        _ => false,
    }
}

/// Flags that the instruction leaves undefined, where the CPU's and the emulator's differ.
fn undefined(encoding: &Encoding) -> u64 {
    const RF: u64 = 1 << 16;
    const OF: u64 = 1 << 11;
    const AF: u64 = 1 << 4;
    // All of the arithmetic ones but CF and ZF.
    const OTHERS: u64 = OF | 1 << 7 | AF | 1 << 2;
    // QEMU pushes no RF with a fault.
    let pushed = if cpu::tcg_underneath() { RF } else { 0 };
    pushed
        | match *encoding.bytes() {
            // Shifts by more than one.
            [.., 0x0f, 0xa4 | 0xa5 | 0xac | 0xad, _] => OF | AF,
            // BSF, BSR, TZCNT and LZCNT.
            [.., 0x0f, 0xbc | 0xbd, _] => OTHERS,
            [.., 0x0f, _, _] => 0,
            // Shifts and rotations by more than one.
            [.., 0xc0 | 0xc1 | 0xd2 | 0xd3, _] => OF | AF,
            // Bochs pushes no RF after an iteration that is not the last.
            [.., 0xa4..=0xa7 | 0xaa..=0xaf, _] => RF,
            _ => 0,
        }
}

/// Encodings that can't be compared: the time, what ends QEMU, and what an emulated CPU does wrong by itself.
fn is_left_out(encoding: &Encoding) -> bool {
    match *encoding.bytes() {
        [.., 0x0f, 0x31, _] => true,
        // LEAVE of 16 bits: Bochs pops 64.
        [0x66, .., 0xc9, _] => !cpu::tcg_underneath(),
        // QEMU does not know TEST by its second number, takes any MXCSR, sets flags with ADCX and ADOX
        // that do not exist, and has 16 bits of MOVBE with REX.W.
        [.., 0xf6 | 0xf7, 0x0b]
        | [.., 0x0f, 0xae, 0x13]
        | [.., 0x0f, 0x38, 0xf6, _]
        | [0x66, 0x48, 0x0f, 0x38, 0xf0 | 0xf1, _] => cpu::tcg_underneath(),
        // Far pointers of 64 bits, which CPUs of AMD do not have.
        [.., 0x48, 0x0f, 0xb2 | 0xb4 | 0xb5, _] => cpu::tcg_underneath(),
        _ => cpu::tcg_underneath() && ends_qemu(encoding),
    }
}

/// Storage behind the data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Memory,
    Device,
}

impl Backing {
    /// Physical address of the page of a place.
    fn page(self, place: usize) -> u64 {
        let page = place as u64 * 4096;
        match self {
            Self::Memory => user::DATA + 0x4_0000 + page,
            Self::Device => DEVICE + page,
        }
    }

    /// Addresses of the words, and what is there before each run.
    fn words(self) -> impl Iterator<Item = (u64, u64)> {
        BEFORE.into_iter().flat_map(move |(place, offset, words)| {
            (0..).zip(words).map(move |(n, word)| (self.page(place) + offset + n * 8, *word))
        })
    }
}

/// How the encodings came out.
#[derive(Clone, Copy, Default)]
struct Counts {
    tried: u64,
    completed: u64,
    refused: u64,
}

static COUNTS: Shared<Counts> = Shared::new(Counts { tried: 0, completed: 0, refused: 0 });

pub(crate) fn opcodes() -> Outcome {
    for (at, word) in Backing::Memory.words().chain(Backing::Device.words()) {
        io::mmio_write64(at, word);
    }
    if Backing::Device.words().any(|(at, word)| io::mmio_read64(at) != word) {
        skip!("no scratch device at {DEVICE:#x}");
    }
    let all = for_each(|number, prefix, (map, first), opcode| {
        let digits: &[u8] = if is_group(map, opcode) { &[0, 1, 2, 3, 4, 5, 6, 7] } else { &[1, 6] };
        for digit in digits {
            let encoding = Encoding::new(&[prefix, first, &[opcode, 0x03 | digit << 3]]);
            if !is_left_out(&encoding) {
                compare(number, &encoding)?;
            }
        }
        Ok(())
    })?;
    let Counts { tried, completed, refused } = COUNTS.get();
    println!("{tried} encodings: {completed} completed on both, {refused} refused on the device");
    if all {
        check!(tried > 30_000, "only {tried} encodings");
        check!(completed > tried / 10, "only {completed} completed");
    }
    Ok(())
}

/// State that a run leaves.
struct Left {
    trap: Trap,
    gprs: [u64; 15],
    words: [u64; WORDS],
}

/// Runs the encoding on data in `backing`.
fn run_on(encoding: &Encoding, backing: Backing) -> Left {
    // As those of the data: code that jumps there must not run.
    let never_code = paging::leaf(user::DATA) & bits::NX;
    for (place, offset) in PLACES.into_iter().enumerate() {
        let flags = bits::PRESENT | bits::WRITE | bits::USER | never_code;
        paging::map(WINDOW + offset, backing.page(place), flags);
    }
    let (rip, flags) = put(encoding, Place::Ordinary);
    debug_assert!(rip == CODE && flags == 2 | IF | TF);
    let mxcsr: u32 = 0x1f80;
    // SAFETY: no floating-point code is between.
    unsafe { asm!("fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack)) };
    CURRENT.set(CURRENT.get() + 1);
    let trap = run(rip, flags, WINDOW);
    let gprs = trap::caught_gprs();
    let mut words = [0; WORDS];
    for ((at, before), word) in backing.words().zip(&mut words) {
        *word = io::mmio_read64(at);
        if *word != before {
            io::mmio_write64(at, before);
        }
    }
    Left { trap, gprs, words }
}

fn compare(number: u64, encoding: &Encoding) -> Outcome {
    if info::flag("trace") {
        println!("{number}: {:02x?}", encoding.bytes());
    }
    let memory = run_on(encoding, Backing::Memory);
    let device = run_on(encoding, Backing::Device);
    let mut counts = COUNTS.get();
    counts.tried += 1;
    let context = (number, encoding.bytes());
    let (wanted, got) = (&memory.trap, &device.trap);
    if got.vector == vector::UD && wanted.vector != vector::UD {
        counts.refused += 1;
        COUNTS.set(counts);
        check_eq!(got.rip, CODE, "{context:02x?}: a refused instruction");
        let before = Backing::Device.words().map(|(_, word)| word);
        check!(before.eq(device.words), "{context:02x?}: refused, and wrote");
        return Ok(());
    }
    check_eq!((got.vector, got.error), (wanted.vector, wanted.error), "{context:02x?}: exception");
    check_eq!((got.rip, got.rsp), (wanted.rip, wanted.rsp), "{context:02x?}: RIP and RSP");
    if wanted.vector == vector::PF {
        check_eq!(got.cr2, wanted.cr2, "{context:02x?}: CR2");
    }
    check_eq!(device.gprs, memory.gprs, "{context:02x?}: registers");
    let flags = !undefined(encoding);
    check_eq!(got.rflags & flags, wanted.rflags & flags, "{context:02x?}: flags");
    check_eq!(device.words, memory.words, "{context:02x?}: memory");
    if wanted.vector == vector::DB {
        counts.completed += 1;
    }
    COUNTS.set(counts);
    Ok(())
}
