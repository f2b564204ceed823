//! RAM that ROM, devices and RAM again lie over, by the test device on the PCI bus. Made for two
//! vCPUs: one changes what lies there, while the other reads and writes.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use guests::harness::{Outcome, Tests};
use guests::io::{mmio_read32, mmio_write32};
use guests::pc::pci;
use guests::{boot, check, check_eq, cpu, info, smp, time};

guests::entry!(main);

/// Place of the device on the bus.
const DEVICE: u32 = 3;
/// Vendor and device.
const IDENTITY: u32 = 0x5354_1234;
/// Place of the device's registers.
const REGISTERS: u64 = 0xc100_0000;
const LAID: u64 = 0x110;
const OVER: u64 = 0x114;
const ACCESSES: u64 = 0x118;
/// Things that can lie over RAM.
const NOTHING: u32 = 0;
const ROM: u32 = 1;
const DEVICES: u32 = 2;
const ROM_AS_RAM: u32 = 3;
/// The RAM that they lie over: in the middle of 2 MiB.
const AT: u64 = 0x91_0000;
const PAGES: u64 = 16;
const BYTES: u64 = PAGES * 4096;
/// Pages beside it, in the same 2 MiB, that the second vCPU writes to.
const BESIDE: [u64; 2] = [AT - 4096, AT + BYTES];

/// The first half of a page's second word, where RAM shows, and where ROM does. The device shows a
/// number of its own.
const RAM_SHOWS: u32 = 0xaaaa_0000;
const ROM_SHOWS: u32 = 0x5555_0000;
const DEVICE_SHOWS: u32 = 0xdede_0000;

/// The second vCPU is to go on.
static GOES_ON: AtomicU32 = AtomicU32::new(0);
/// Rounds of it.
static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// How often it saw each of the three.
static SAW: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
/// The first wrong value that it saw, and where.
static WRONG: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn main() -> ! {
    let mut tests = Tests::new();
    cpu::cli();
    let started = smp::start(1, second);
    tests.case("found", || {
        check_eq!(started, Ok(()), "the second CPU");
        found()
    });
    tests.case("each_shows_its_own", each_shows_its_own);
    tests.case("refused", refused);
    tests.case("changes_under_the_other", changes_under_the_other);
    tests.finish()
}

fn config(register: u32) -> u32 {
    pci::read(DEVICE, 0, register)
}

fn set_config(register: u32, value: u32) {
    pci::write(DEVICE, 0, register, value);
}

fn found() -> Outcome {
    check_eq!(config(0), IDENTITY, "vendor and device");
    check!(boot::image_end_address() < AT - 4096, "the RAM is the image's");
    set_config(0x14, cpu::low32(REGISTERS));
    // The device's counted memory stands where the RAM is, and is not seen as long as that is there.
    set_config(0x1c, cpu::low32(AT));
    set_config(4, 2);
    mmio_write32(REGISTERS + OVER, cpu::low32(AT >> 12));
    check_eq!(mmio_read32(REGISTERS + OVER), cpu::low32(AT >> 12), "the first page");
    Ok(())
}

/// Lets this lie over the RAM, and waits until all CPUs have it so. Whether they do.
fn lay(what: u32) -> bool {
    // A change that finds too much still in use is refused.
    time::wait_for(3000, || {
        mmio_write32(REGISTERS + LAID, what);
        mmio_read32(REGISTERS + LAID) != 2
    }) && time::wait_for(3000, || mmio_read32(REGISTERS + LAID) == 1)
}

fn accesses() -> u32 {
    mmio_read32(REGISTERS + ACCESSES)
}

/// The first and the second word of page `page`.
fn words(page: u64) -> (u64, u64) {
    (AT + page * 4096, AT + page * 4096 + 8)
}

fn each_shows_its_own() -> Outcome {
    for page in 0..PAGES {
        let (first, second) = words(page);
        mmio_write32(first, 7);
        mmio_write32(second, RAM_SHOWS | cpu::low32(page));
    }
    check!(lay(ROM_AS_RAM), "the ROM as RAM");
    for page in 0..PAGES {
        let (first, second) = words(page);
        check_eq!(mmio_read32(first), 0, "fresh memory");
        mmio_write32(first, 0x1234);
        mmio_write32(second, ROM_SHOWS | cpu::low32(page));
    }
    check!(lay(DEVICES), "devices");
    let before = accesses();
    check_eq!(mmio_read32(AT) & 0xffff_0000, DEVICE_SHOWS, "the device's memory");
    mmio_write32(AT + BYTES - 4, 1);
    check_eq!(accesses() - before, 2, "accesses");
    check!(lay(NOTHING), "RAM again");
    for page in 0..PAGES {
        let (first, second) = words(page);
        check_eq!(mmio_read32(first), 7, "RAM, page {page}");
        check_eq!(mmio_read32(second), RAM_SHOWS | cpu::low32(page), "RAM, page {page}");
    }
    check_eq!(accesses() - before, 2, "accesses");
    Ok(())
}

fn refused() -> Outcome {
    mmio_write32(REGISTERS + LAID, 4);
    check_eq!(mmio_read32(REGISTERS + LAID), 2, "there is no such thing");
    mmio_write32(REGISTERS + OVER, 0xffff_ffff);
    mmio_write32(REGISTERS + LAID, ROM);
    check_eq!(mmio_read32(REGISTERS + LAID), 2, "there are no such addresses");
    mmio_write32(REGISTERS + OVER, cpu::low32(AT >> 12));
    check!(lay(NOTHING), "nothing");
    Ok(())
}

fn second() -> ! {
    let mut own = [0_u32; 2];
    loop {
        // Others may have this CPU meanwhile.
        cpu::interrupt_window();
        if GOES_ON.load(SeqCst) == 0 {
            cpu::pause();
            continue;
        }
        let round = ROUNDS.fetch_add(1, SeqCst);
        let (_, at) = words(round % PAGES);
        let seen = mmio_read32(at);
        let page = cpu::low32(round % PAGES);
        if seen == RAM_SHOWS | page {
            SAW[0].fetch_add(1, SeqCst);
        } else if seen == ROM_SHOWS | page {
            SAW[1].fetch_add(1, SeqCst);
        } else if seen & 0xffff_0000 == DEVICE_SHOWS {
            SAW[2].fetch_add(1, SeqCst);
        } else {
            wrong(at, seen);
        }
        let which = usize::from(round % 2 == 1);
        let beside = BESIDE[which];
        let seen = mmio_read32(beside);
        if seen != own[which] {
            wrong(beside, seen);
        }
        own[which] = own[which].wrapping_add(1);
        mmio_write32(beside, own[which]);
    }
}

fn wrong(at: u64, seen: u32) {
    if WRONG[0].load(SeqCst) == 0 {
        WRONG[1].store(seen.into(), SeqCst);
        WRONG[0].store(at, SeqCst);
    }
}

/// Now and then waits until the other vCPU has seen what is laid: where both share a CPU, it runs only
/// when this one gives way, which would always be at the same place.
fn await_other(round: u32, what: usize) {
    if round % 25 == 1 {
        let before = SAW[what].load(SeqCst);
        time::wait_for(2000, || {
            cpu::interrupt_window();
            SAW[what].load(SeqCst) != before
        });
    }
}

fn changes_under_the_other() -> Outcome {
    let rounds = cpu::low32(info::number("rounds").unwrap_or(10_000));
    for beside in BESIDE {
        mmio_write32(beside, 0);
    }
    let (before, mut own) = (accesses(), 0);
    GOES_ON.store(1, SeqCst);
    for round in 1..=rounds {
        let page = u64::from(round) % PAGES;
        let (first, second) = words(page);
        mmio_write32(first, round);
        check!(lay(ROM), "ROM, round {round}");
        await_other(round, 1);
        check_eq!(mmio_read32(first), 0x1234, "ROM, round {round}");
        // Lost.
        mmio_write32(first, 1);
        mmio_write32(second, 1);
        check_eq!(mmio_read32(first), 0x1234, "ROM, round {round}");
        check!(lay(DEVICES), "devices, round {round}");
        await_other(round, 2);
        check_eq!(mmio_read32(first) & 0xffff_0000, DEVICE_SHOWS, "a device, round {round}");
        own += 1;
        check!(lay(NOTHING), "RAM, round {round}");
        await_other(round, 0);
        check_eq!(mmio_read32(first), round, "RAM, round {round}");
        check_eq!(mmio_read32(second), RAM_SHOWS | cpu::low32(page), "RAM, round {round}");
        let seen = WRONG[0].load(SeqCst);
        check!(seen == 0, "the other saw {:#x} at {seen:#x}", WRONG[1].load(SeqCst));
    }
    GOES_ON.store(0, SeqCst);
    let all = ROUNDS.load(SeqCst);
    time::wait_for(100, || {
        cpu::interrupt_window();
        false
    });
    check!(ROUNDS.load(SeqCst) - all < 2, "the other does not stop");
    let saw = || SAW.iter().map(|saw| saw.load(SeqCst));
    check!(
        saw().all(|times| times > 0),
        "the other saw RAM, ROM and device {saw:?} times",
        saw = saw().fold([0; 3], |[_, a, b], times| [a, b, times])
    );
    check_eq!(accesses() - before, own + SAW[2].load(SeqCst), "accesses to the device");
    Ok(())
}
