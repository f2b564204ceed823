//! The test device on the PCI bus: doorbells by port and by memory behind BARs that move under
//! fire, MSI-X, MSI and INTA#. Made for two vCPUs: one rings while the other moves.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use guests::apic::{Lapic, bits, ioapic};
use guests::harness::{Outcome, Tests};
use guests::io::{mmio_read32, mmio_write32, outb, outl, outw};
use guests::pc::{pci, pic, pit};
use guests::trap::{self, Frame};
use guests::{check, check_eq, cpu, info, smp, time};

guests::entry!(main);

/// Place of the device on the bus.
const DEVICE: u32 = 3;
/// Vendor and device.
const IDENTITY: u32 = 0x5354_1234;
/// Places for the doorbells' ports.
const PORTS: [u16; 4] = [0xc000, 0xc100, 0xd000, 0xc200];
/// Places for the registers.
const REGISTERS: [u64; 4] = [0xc100_0000, 0xc200_0000, 0xc100_1000, 0xd000_0000];
/// Place of the MSI-X table.
const TABLE: u64 = 0xe000_0000;
/// Doorbells.
const BELLS: u32 = 64;
/// The doorbell that is rung only where the device is no more.
const GONE: u32 = 63;
/// Registers of the device.
const INTX: u64 = 0x100;
const NOTIFY: u64 = 0x104;
const ECHO: u64 = 0x108;
const TURNS: u64 = 0x10c;
/// The I/O APIC's input of INTA# of the device.
const PIN: u32 = 19;
/// The first of the vectors.
const VECTOR: u8 = 0x50;
const VECTORS: usize = 4;

/// How often each vector came, on the first CPU.
static CAME: [AtomicU32; VECTORS] = [const { AtomicU32::new(0) }; VECTORS];
/// How often INTA# did.
static PINNED: AtomicU32 = AtomicU32::new(0);
/// Where the ports or the registers are: a count that is odd while they move, and the place.
static PLACE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Work of the second CPU: 0 is none.
static JOB: AtomicU32 = AtomicU32::new(0);
/// Rounds of it, and its faults.
static DONE: AtomicU32 = AtomicU32::new(0);
static LOST: AtomicU32 = AtomicU32::new(0);

/// Rings while a BAR moves, and interrupts while a vector does: `rounds=` of the command line.
static ROUNDS: AtomicU32 = AtomicU32::new(400);

const RING_PORTS: u32 = 1;
const RING_MEMORY: u32 = 2;
const NOTIFY_ALL: u32 = 3;

fn main() -> ! {
    let mut tests = Tests::new();
    cpu::cli();
    pit::stop();
    pic::init();
    ioapic::mask_all();
    Lapic::X1.enable();
    for vector in VECTOR..VECTOR + 4 {
        trap::on(vector, Some(count));
    }
    trap::on(VECTOR + 4, Some(pinned));
    if let Some(rounds) = info::number("rounds") {
        ROUNDS.store(cpu::low32(rounds), SeqCst);
    }
    let started = smp::start(1, second);
    tests.case("found", || {
        check_eq!(started, Ok(()), "the second CPU");
        found()
    });
    tests.case("rung_by_port", rung_by_port);
    tests.case("rung_by_memory", rung_by_memory);
    tests.case("ports_move_under_fire", ports_move_under_fire);
    tests.case("memory_moves_under_fire", memory_moves_under_fire);
    tests.case("pin", pin);
    tests.case("msi", msi);
    tests.case("msix", msix);
    tests.case("msix_moves_under_fire", msix_moves_under_fire);
    tests.case("echo", echo);
    tests.finish()
}

fn count(frame: &mut Frame) {
    if let Some(came) = CAME.get(usize::from(cpu::low8(frame.vector) - VECTOR)) {
        came.fetch_add(1, SeqCst);
    }
    Lapic::X1.eoi();
}

fn pinned(_: &mut Frame) {
    PINNED.fetch_add(1, SeqCst);
    mmio_write32(REGISTERS[0] + INTX, 0);
    Lapic::X1.eoi();
}

fn came(vector: usize) -> u32 {
    CAME[vector].load(SeqCst)
}

/// Interrupts are taken until `condition` holds.
fn taken(mut condition: impl FnMut() -> bool) -> bool {
    time::wait_for(2000, || {
        cpu::interrupt_window();
        condition()
    })
}

/// No interrupt comes for a while.
fn quiet() -> bool {
    let all = || CAME.iter().fold(PINNED.load(SeqCst), |sum, came| sum + came.load(SeqCst));
    let before = all();
    let end = cpu::rdtsc() + time::micros(300);
    while cpu::rdtsc() < end {
        cpu::interrupt_window();
    }
    all() == before
}

fn config(register: u32) -> u32 {
    pci::read(DEVICE, 0, register)
}

fn set_config(register: u32, value: u32) {
    pci::write(DEVICE, 0, register, value);
}

/// The capability `id`.
fn capability(id: u32) -> Option<u32> {
    let mut at = config(0x34) & 0xfc;
    for _ in 0..16 {
        if at == 0 {
            return None;
        }
        let header = config(at);
        if header & 0xff == id {
            return Some(at);
        }
        at = header >> 8 & 0xfc;
    }
    None
}

/// Puts the BARs to their first places.
fn place() {
    set_config(0x10, u32::from(PORTS[0]));
    set_config(0x14, cpu::low32(REGISTERS[0]));
    set_config(0x18, cpu::low32(TABLE));
    // I/O, memory, bus master.
    set_config(4, 7);
}

fn seen(bell: u32) -> u32 {
    mmio_read32(REGISTERS[0] + u64::from(bell) * 4)
}

fn found() -> Outcome {
    check_eq!(config(0), IDENTITY, "the device");
    place();
    check_eq!(config(0x10), u32::from(PORTS[0]) | 1, "ports");
    check_eq!(config(0x14), cpu::low32(REGISTERS[0]), "registers");
    check!(capability(0x11).is_some() && capability(5).is_some(), "no MSI-X, or no MSI");
    for bell in 0..BELLS {
        check_eq!(seen(bell), 0, "doorbell {bell} at the start");
    }
    Ok(())
}

fn rung_by_port() -> Outcome {
    for bell in 0..BELLS - 1 {
        let port = PORTS[0] + cpu::low16(u64::from(bell)) * 4;
        match bell % 3 {
            0 => outb(port, 0xff),
            1 => outw(port, 0),
            _ => outl(port, bell),
        }
        check!(time::wait_for(1000, || seen(bell) == 1), "doorbell {bell} was not seen");
    }
    let turns = mmio_read32(REGISTERS[0] + TURNS);
    // Between two doorbells there is none.
    outb(PORTS[0] + 1, 1);
    outw(PORTS[0] + 2, 1);
    time::delay(500);
    check_eq!(mmio_read32(REGISTERS[0] + TURNS), turns, "turns");
    // A burst is one turn or few.
    for bell in 0..16 {
        outw(PORTS[0] + bell * 4, 0);
    }
    check!(time::wait_for(1000, || (0..16).all(|bell| seen(bell) == 2)), "a burst was not seen");
    Ok(())
}

fn rung_by_memory() -> Outcome {
    for bell in 0..BELLS - 1 {
        let before = seen(bell);
        mmio_write32(REGISTERS[0] + u64::from(bell) * 4, 1);
        check!(time::wait_for(1000, || seen(bell) == before + 1), "doorbell {bell} was not seen");
    }
    Ok(())
}

/// The second CPU does jobs.
fn second() -> ! {
    loop {
        match JOB.load(SeqCst) {
            RING_PORTS => ring(|place, bell| outw(cpu::low16(place) + bell * 4, 0), seen),
            RING_MEMORY => ring_memory(),
            NOTIFY_ALL => notify_all(),
            _ => cpu::pause(),
        }
    }
}

/// The place, if it does not move now, with its count.
fn now() -> Option<(u64, u64)> {
    let count = PLACE[0].load(SeqCst);
    let place = PLACE[1].load(SeqCst);
    (count.is_multiple_of(2) && PLACE[0].load(SeqCst) == count).then_some((count, place))
}

fn stands(count: u64) -> bool {
    PLACE[0].load(SeqCst) == count
}

/// Rings the doorbells in turn. One that was rung while the place stood must be seen.
fn ring(ring: impl Fn(u64, u16), seen: impl Fn(u32) -> u32) {
    let mut rounds = 0;
    while rounds < ROUNDS.load(SeqCst) && LOST.load(SeqCst) == 0 {
        let bell = rounds % (BELLS - 1);
        let Some((count, place)) = now() else {
            // The first CPU may wait for the machine's CPU, which Bochs never takes from a guest of
            // AMD-V that was entered with IF clear and spins.
            cpu::interrupt_window();
            continue;
        };
        let before = seen(bell);
        ring(place, cpu::low16(bell.into()));
        let rung = stands(count);
        // One that was rung meanwhile may be seen or not; then it is rung once more.
        if rung {
            if !time::wait_for(3000, || seen(bell) > before) {
                LOST.fetch_add(1, SeqCst);
            }
            rounds += 1;
        }
        DONE.store(rounds, SeqCst);
    }
    JOB.store(0, SeqCst);
}

/// The same by memory, where what was seen is behind the place that moves, too.
fn ring_memory() {
    let seen = |bell: u32| loop {
        let Some((count, place)) = now() else {
            // The first CPU may wait for the machine's CPU, which Bochs never takes from a guest of
            // AMD-V that was entered with IF clear and spins.
            cpu::interrupt_window();
            continue;
        };
        let value = mmio_read32(place + u64::from(bell) * 4);
        if stands(count) {
            return value;
        }
    };
    ring(|place, bell| mmio_write32(place + u64::from(bell) * 4, 1), seen);
}

/// Moves `register` among `places` while the second CPU does `job`. `probe` is called with the
/// place that was left.
fn move_under_fire(job: u32, register: u32, places: [u64; 4], probe: impl Fn(u64)) -> Outcome {
    PLACE[1].store(places[0], SeqCst);
    DONE.store(0, SeqCst);
    LOST.store(0, SeqCst);
    JOB.store(job, SeqCst);
    let mut moves = 0;
    let mut at = 0;
    while JOB.load(SeqCst) != 0 {
        let old = places[at];
        at = (at + 1) % places.len();
        PLACE[0].fetch_add(1, SeqCst);
        if moves % 3 == 0 {
            // Off and on again, as some drivers do.
            set_config(4, 4);
        }
        set_config(register, cpu::low32(places[at]));
        set_config(4, 7);
        probe(old);
        PLACE[1].store(places[at], SeqCst);
        PLACE[0].fetch_add(1, SeqCst);
        moves += 1;
        time::delay(moves % 7 * 40);
    }
    set_config(register, cpu::low32(places[0]));
    check_eq!(LOST.load(SeqCst), 0, "doorbells were lost, of {}", DONE.load(SeqCst));
    check_eq!(DONE.load(SeqCst), ROUNDS.load(SeqCst), "rounds");
    check!(moves > 10, "it moved {moves} times only");
    time::delay(500);
    check_eq!(seen(GONE), 0, "a doorbell was rung after the device was gone");
    Ok(())
}

fn ports_move_under_fire() -> Outcome {
    move_under_fire(RING_PORTS, 0x10, PORTS.map(u64::from), |old| {
        outw(cpu::low16(old) + cpu::low16(GONE.into()) * 4, 0);
    })
}

fn memory_moves_under_fire() -> Outcome {
    move_under_fire(RING_MEMORY, 0x14, REGISTERS, |old| {
        mmio_write32(old + u64::from(GONE) * 4, 1);
    })
}

fn pin() -> Outcome {
    ioapic::route(PIN, bits::LEVEL | 1 << 13 | u32::from(VECTOR + 4));
    mmio_write32(REGISTERS[0] + INTX, 1);
    check!(taken(|| PINNED.load(SeqCst) == 1), "INTA# did not come");
    check!(quiet(), "INTA# came again");
    // The status bit tells of it, even where it is disabled.
    set_config(4, 7 | 1 << 10);
    mmio_write32(REGISTERS[0] + INTX, 1);
    check!(quiet(), "INTA# came though it is disabled");
    check_eq!(config(4) >> 16 & 8, 8, "interrupt status");
    set_config(4, 7);
    check!(taken(|| PINNED.load(SeqCst) == 2), "INTA# did not come when it was enabled");
    check_eq!(config(4) >> 16 & 8, 0, "interrupt status afterwards");
    ioapic::mask_all();
    Ok(())
}

fn notify(vector: u32) {
    mmio_write32(REGISTERS[0] + NOTIFY, vector);
}

fn msi() -> Outcome {
    let Some(at) = capability(5) else {
        check!(false, "no MSI");
        return Ok(());
    };
    set_config(at + 4, 0xfee0_0000);
    set_config(at + 8, 0);
    set_config(at + 12, VECTOR.into());
    let before: [u32; VECTORS] = core::array::from_fn(came);
    notify(0);
    check!(quiet(), "a message came while MSI is off");
    // Four messages; the mask of the third.
    set_config(at + 16, 1 << 2);
    set_config(at, 1 << 16 | 2 << 20);
    for message in [0, 1, 3] {
        notify(message);
        let number = message as usize;
        check!(taken(|| came(number) == before[number] + 1), "message {message} did not come");
    }
    notify(2);
    check!(quiet(), "a masked message came");
    check_eq!(config(at + 20), 1 << 2, "pending");
    set_config(at + 16, 0);
    check!(taken(|| came(2) == before[2] + 1), "the message did not come when it was unmasked");
    check_eq!(config(at + 20), 0, "pending afterwards");
    set_config(at, 0);
    Ok(())
}

fn set_entry(entry: u64, vector: u8, masked: bool) {
    mmio_write32(TABLE + entry * 16, 0xfee0_0000);
    mmio_write32(TABLE + entry * 16 + 4, 0);
    mmio_write32(TABLE + entry * 16 + 8, vector.into());
    mmio_write32(TABLE + entry * 16 + 12, masked.into());
}

fn pending() -> u32 {
    mmio_read32(TABLE + 0x800)
}

fn msix() -> Outcome {
    let Some(at) = capability(0x11) else {
        check!(false, "no MSI-X");
        return Ok(());
    };
    check_eq!(config(at) >> 16 & 0x7ff, BELLS - 1, "size of the table");
    let before: [u32; VECTORS] = core::array::from_fn(came);
    set_config(at, 1 << 31);
    for (entry, vector) in (0..).zip(VECTOR..VECTOR + 4) {
        set_entry(entry, vector, entry == 2);
    }
    for vector in [0, 1, 3] {
        notify(vector);
        let number = vector as usize;
        check!(taken(|| came(number) == before[number] + 1), "vector {vector} did not come");
    }
    notify(2);
    check!(quiet(), "a masked vector came");
    check_eq!(pending(), 1 << 2, "pending");
    set_entry(2, VECTOR + 2, false);
    check!(taken(|| came(2) == before[2] + 1), "the vector did not come when it was unmasked");
    check_eq!(pending(), 0, "pending afterwards");
    // All of them.
    set_config(at, 3 << 30);
    notify(0);
    notify(3);
    check!(quiet(), "a vector came though all are masked");
    check_eq!(pending(), 1 | 1 << 3, "pending");
    set_config(at, 1 << 31);
    check!(
        taken(|| came(0) == before[0] + 2 && came(3) == before[3] + 2),
        "the vectors did not come when all were unmasked"
    );
    // No interrupts from one that may not access memory by itself.
    set_config(4, 3);
    notify(1);
    check!(quiet(), "a vector came from a device that is no bus master");
    set_config(4, 7);
    set_entry(1, VECTOR + 1, true);
    notify(1);
    set_config(4, 3);
    let waiting = came(1);
    set_entry(1, VECTOR + 1, false);
    check!(quiet(), "one that waited came from a device that is no bus master");
    set_config(4, 7);
    check!(taken(|| came(1) == waiting + 1), "one that waited is lost");
    Ok(())
}

/// Sends one interrupt after the other, each when the last one came.
fn notify_all() {
    let all = || CAME.iter().fold(0, |sum, came| sum + came.load(SeqCst));
    for round in 0..ROUNDS.load(SeqCst) {
        let before = all();
        notify(0);
        if !time::wait_for(3000, || all() > before) {
            LOST.fetch_add(1, SeqCst);
            break;
        }
        DONE.store(round + 1, SeqCst);
    }
    JOB.store(0, SeqCst);
}

fn msix_moves_under_fire() -> Outcome {
    let before: [u32; VECTORS] = core::array::from_fn(came);
    DONE.store(0, SeqCst);
    LOST.store(0, SeqCst);
    JOB.store(NOTIFY_ALL, SeqCst);
    let mut moves = 0;
    while JOB.load(SeqCst) != 0 {
        // As Linux does it: masked, moved, unmasked.
        mmio_write32(TABLE + 12, 1);
        mmio_write32(TABLE + 8, u32::from(VECTOR) + moves % 4);
        mmio_write32(TABLE + 12, 0);
        moves += 1;
        for _ in 0..moves % 5 {
            cpu::interrupt_window();
        }
    }
    let _ = taken(|| since(&before) == DONE.load(SeqCst));
    check_eq!(LOST.load(SeqCst), 0, "interrupts were lost, after {}", DONE.load(SeqCst));
    check_eq!(since(&before), ROUNDS.load(SeqCst), "interrupts that came");
    check!(moves > 10, "it moved {moves} times only");
    Ok(())
}

/// How many interrupts have come since.
fn since(before: &[u32; VECTORS]) -> u32 {
    before.iter().zip(0..).fold(0, |sum, (before, vector)| sum + came(vector) - before)
}

fn echo() -> Outcome {
    set_entry(0, VECTOR, false);
    mmio_write32(REGISTERS[0] + ECHO, 1);
    let before = came(1);
    outw(PORTS[0] + 4, 0);
    check!(taken(|| came(1) == before + 1), "no interrupt for a doorbell");
    // Halted, the device works all the same.
    outw(PORTS[0] + 4, 0);
    let end = cpu::rdtsc() + 2 * time::tsc_hz();
    while came(1) == before + 1 && cpu::rdtsc() < end {
        cpu::wait_for_interrupt();
    }
    check_eq!(came(1), before + 2, "interrupts");
    mmio_write32(REGISTERS[0] + ECHO, 0);
    Ok(())
}
