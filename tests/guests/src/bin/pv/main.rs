//! KVM's paravirtual CPU interface: steal time, kicks, interrupts and turns by
//! hypercall, ends of interrupts. Made for two vCPUs that share one CPU: then one
//! of them always waits.
#![no_std]
#![no_main]

mod eoi;
mod other;

use guests::apic::Lapic;
use guests::cpu::{self, cpuid, rdmsr, rdtsc, wrmsr};
use guests::harness::{Outcome, Tests};
use guests::trap::{self, vector};
use guests::{check, check_eq, paging, skip, time, user};
use hvabi::kvm::{self, call, feature};
use hvabi::{Registers, Status};
use other::{Job, Phase, STEAL_MSR};

guests::entry!(main);

fn main() -> ! {
    let mut tests = Tests::new();
    tests.case("features", features);
    tests.case("user_mode", user_mode);
    tests.case("steal_msr", steal_msr);
    tests.case("calls_refused", calls_refused);
    tests.case("kick_oneself", kick_oneself);
    tests.case("other_cpu", other_cpu);
    tests.case("preempted", preempted);
    tests.case("steal_time", steal_time);
    tests.case("spinning_gives_way", spinning_gives_way);
    tests.case("no_steal_alone", no_steal_alone);
    tests.case("steal_off", steal_off);
    tests.case("flush_waits", flush_waits);
    tests.case("kick", kick);
    tests.case("kick_before_hlt", kick_before_hlt);
    tests.case("sched_yield", sched_yield);
    tests.case("send_ipi", send_ipi);
    tests.case("send_nmi", send_nmi);
    eoi::run(&mut tests);
    tests.finish()
}

/// EAX and EDX of KVM's features.
fn offered() -> (u32, u32) {
    let id = cpuid(0x4000_0100, 0);
    if (id.ebx, id.ecx, id.edx) != (0x4b4d_564b, 0x564b_4d56, 0x4d) {
        return (0, 0);
    }
    let features = cpuid(0x4000_0101, 0);
    (features.eax, features.edx)
}

macro_rules! need {
    ($feature:expr) => {
        if crate::offered().0 & $feature == 0 {
            skip!("not offered");
        }
    };
}
pub(crate) use need;

/// As `need`, and a second CPU.
macro_rules! need_other {
    ($feature:expr) => {
        need!($feature);
        if !other::runs() {
            skip!("there is no second CPU");
        }
    };
}

/// A hypercall, of which the guest knows that it exists.
fn call(before: Registers) -> u64 {
    let mut rax = before.rax;
    macro_rules! with {
        ($instruction:literal) => {
            // SAFETY: RBX is restored; the calls here change no memory of the program's.
            unsafe {
                core::arch::asm!("xchg rbx, rdi", $instruction, "xchg rbx, rdi",
                    inout("rax") rax, inout("rdi") before.rbx => _, in("rcx") before.rcx,
                    in("rdx") before.rdx, in("rsi") before.rsi)
            }
        };
    }
    if cpu::is_amd() {
        with!("vmmcall");
    } else {
        with!("vmcall");
    }
    rax
}

fn kick_cpu(id: u64) -> u64 {
    call(Registers { rax: call::KICK_CPU, rcx: id, ..Registers::default() })
}

fn ipis(low: u64, high: u64, first: u64, command: u64) -> u64 {
    call(Registers { rax: call::SEND_IPI, rbx: low, rcx: high, rdx: first, rsi: command })
}

fn features() -> Outcome {
    let (eax, edx) = offered();
    if eax == 0 {
        skip!("no KVM signature");
    }
    let always = feature::STEAL_TIME
        | feature::PV_UNHALT
        | feature::PV_TLB_FLUSH
        | feature::PV_SEND_IPI
        | feature::PV_SCHED_YIELD;
    check_eq!(eax & always, always, "features {eax:#x}");
    check_eq!(edx, 0, "hints");
    // Linux gives flushes that wait up where MWAIT is offered.
    check_eq!(cpuid(1, 0).ecx >> 3 & 1, 0, "MWAIT");
    Ok(())
}

fn user_mode() -> Outcome {
    need!(feature::PV_SEND_IPI);
    let code: [u8; 5] =
        if cpu::is_amd() { [0x0f, 1, 0xd9, 0xcd, 0x80] } else { [0x0f, 1, 0xc1, 0xcd, 0x80] };
    for rax in [call::KICK_CPU, call::SEND_IPI, call::SCHED_YIELD] {
        let trap = user::run(&code, [rax, 1, 0, 0]);
        check_eq!(trap.vector, vector::USER_RETURN, "how ring 3 ended");
        check_eq!(trap.rax, Status::NotPermitted.to_rax(), "call {rax}");
    }
    Ok(())
}

fn steal_msr() -> Outcome {
    need!(feature::STEAL_TIME);
    let steal = &other::STEAL[0];
    let at = steal.address();
    check_eq!(rdmsr(STEAL_MSR).ok(), Some(0), "before it is written");
    steal.put(7, 5);
    check!(wrmsr(STEAL_MSR, at | 1).is_ok(), "can't be written");
    check_eq!(rdmsr(STEAL_MSR).ok(), Some(at | 1), "reads back");
    check!(steal.version() > 5 && steal.version() & 1 == 0, "version {}", steal.version());
    check!(steal.nanos() >= 7, "steal of {}", steal.nanos());
    check_eq!(steal.preempted(), 0, "preempted");
    for bad in [at | 3, at | 5, at | 9, at | 17, at | 33, 0xfee0_0001, 0xd000_0001, u64::MAX - 62] {
        let caught = wrmsr(STEAL_MSR, bad).err().map(|trap| trap.vector);
        check_eq!(caught, Some(vector::GP), "{bad:#x}");
    }
    check_eq!(rdmsr(STEAL_MSR).ok(), Some(at | 1), "after what was refused");
    // The registers next to it are another matter.
    for none in [0x4b56_4d02, 0x4b56_4d05, 0x4b56_4d06] {
        check!(rdmsr(none).is_err(), "{none:#x} can be read");
    }
    Ok(())
}

fn calls_refused() -> Outcome {
    need!(feature::PV_SEND_IPI);
    let invalid = Status::InvalidArgument.to_rax();
    // Vector 0 and 15; SMI, reserved, INIT, start-up, ExtINT; logical; shorthands.
    for command in [
        0,
        15,
        0x2f1,
        0x3f1,
        0x5f1,
        0x6f1,
        0x7f1,
        0x8f1,
        0x4_00f1,
        0x8_00f1,
        0xc_00f1,
        1 << 32 | 0xf1,
    ] {
        check_eq!(ipis(1, 0, 0, command), invalid, "command {command:#x}");
    }
    // Nobody is there.
    check_eq!(ipis(0, 0, 0, 0xf1), 0, "an empty set");
    check_eq!(ipis(u64::MAX, u64::MAX, 2, 0xf1), 0, "ids from 2");
    check_eq!(ipis(u64::MAX, u64::MAX, 0xffff_fff0, 0xf1), 0, "ids up to the broadcast id");
    check_eq!(ipis(3, 3, u64::MAX, 0xf1), 0, "ids that wrap");
    for id in [2, 0xff, 0xffff_ffff, 1 << 32, u64::MAX] {
        check_eq!(kick_cpu(id), 0, "kick of {id:#x}");
        let to = Registers { rax: call::SCHED_YIELD, rbx: id, ..Registers::default() };
        check_eq!(call(to), 0, "yield to {id:#x}");
    }
    Ok(())
}

/// HLT with interrupts off, and no NMI to come: only a kick ends it.
fn halt() {
    // SAFETY: it goes on after the kick; a hang is the test's failure.
    unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
}

fn kick_oneself() -> Outcome {
    need!(feature::PV_UNHALT);
    check_eq!(kick_cpu(0), 0, "kick");
    halt();
    // Two are one.
    check_eq!((kick_cpu(0), kick_cpu(0)), (0, 0), "kicks");
    halt();
    Ok(())
}

/// Brings the second CPU up, with interrupts on from here on: one emulator lets
/// nobody else run while they are off.
fn other_cpu() -> Outcome {
    need!(feature::STEAL_TIME);
    other::start()
}

fn preempted() -> Outcome {
    need_other!(feature::STEAL_TIME);
    other::begin(Job::Count)?;
    let (mine, its) = (&other::STEAL[0], &other::STEAL[1]);
    let before = other::count();
    let mut seen = [0u32; 4];
    let end = rdtsc() + time::micros(100_000);
    while rdtsc() < end {
        check_eq!(mine.preempted(), 0, "a vCPU that runs is preempted");
        seen[usize::from(its.preempted()).min(3)] += 1;
    }
    check!(other::count() > before, "the other CPU did not run");
    check_eq!((seen[2], seen[3]), (0, 0), "flushes that nobody asked for");
    check!(seen[1] != 0, "the other CPU was never seen preempted");
    if other::one_cpu() {
        check_eq!(seen[0], 0, "both CPUs ran at once");
    }
    Ok(())
}

fn steal_time() -> Outcome {
    need_other!(feature::STEAL_TIME);
    if !other::one_cpu() {
        skip!("the vCPUs have a CPU each");
    }
    other::begin(Job::Count)?;
    let read = || (rdtsc(), other::STEAL[0].nanos(), other::STEAL[1].nanos());
    let (start, mine, its) = read();
    // Without PAUSE, which would give the CPU to the other.
    while rdtsc() - start < time::tsc_hz() * 2 / 5 {}
    let (end, mine_after, its_after) = read();
    let elapsed = (end - start) * 1000 / (time::tsc_hz() / 1_000_000);
    let (mine, its) = (mine_after - mine, its_after - its);
    // One of the two vCPUs waits at every moment.
    check!(
        time::close(mine + its, elapsed, 5),
        "steal of {mine} and {its} in {elapsed} ns, in which one CPU served both"
    );
    for steal in [mine, its] {
        check!(
            steal > elapsed * 35 / 100 && steal < elapsed * 65 / 100,
            "steal of {mine} and {its} in {elapsed} ns"
        );
    }
    Ok(())
}

/// A vCPU that spins with PAUSE leaves the CPU to the other.
fn spinning_gives_way() -> Outcome {
    need_other!(feature::STEAL_TIME);
    if !other::one_cpu() {
        skip!("the vCPUs have a CPU each");
    }
    if cpu::tcg_underneath() {
        skip!("the CPU does not notice loops of PAUSE");
    }
    other::begin(Job::Count)?;
    let (start, mine) = (rdtsc(), other::STEAL[0].nanos());
    time::delay(200_000);
    let elapsed = (rdtsc() - start) * 1000 / (time::tsc_hz() / 1_000_000);
    let mine = other::STEAL[0].nanos() - mine;
    check!(mine > elapsed * 75 / 100, "steal of {mine} in {elapsed} ns of spinning");
    Ok(())
}

fn no_steal_alone() -> Outcome {
    need_other!(feature::STEAL_TIME);
    other::begin(Job::Halt)?;
    time::delay(20_000);
    let (start, steal) = (rdtsc(), [other::STEAL[0].nanos(), other::STEAL[1].nanos()]);
    time::delay(100_000);
    let elapsed = (rdtsc() - start) * 1000 / (time::tsc_hz() / 1_000_000);
    let mine = other::STEAL[0].nanos() - steal[0];
    check!(mine < elapsed / 20, "steal of {mine} in {elapsed} ns, alone on the CPU");
    check_eq!(other::STEAL[1].nanos(), steal[1], "steal of one that sleeps");
    check_eq!(other::STEAL[1].preempted(), 1, "one that sleeps has no CPU");
    other::wake();
    other::reached(Phase::Woken)
}

fn steal_off() -> Outcome {
    need_other!(feature::STEAL_TIME);
    other::begin(Job::Count)?;
    check!(wrmsr(STEAL_MSR, 0).is_ok(), "can't be switched off");
    let steal = &other::STEAL[0];
    let before = (steal.nanos(), steal.version());
    time::delay(50_000);
    check_eq!((steal.nanos(), steal.version()), before, "steal time that is switched off");
    check!(wrmsr(STEAL_MSR, steal.address() | 1).is_ok(), "can't be switched on again");
    time::delay(50_000);
    let more = steal.nanos() - before.0;
    check!(more > 0 && more < 1_000_000_000, "steal of {more} ns since");
    Ok(())
}

/// The other CPU reads through a translation that changes while it does not run.
fn flush_waits() -> Outcome {
    need_other!(feature::PV_TLB_FLUSH);
    let entry = paging::entry(other::WINDOW, 0);
    let flags = paging::bits::PRESENT | paging::bits::WRITE;
    let its = &other::STEAL[1];
    for round in 0..20u64 {
        let (from, to) = (round % 2, (round + 1) % 2);
        paging::map(other::WINDOW, other::page(from), flags);
        other::begin(Job::Count)?;
        other::begin(Job::Read)?;
        other::advance()?;
        paging::write_entry(entry, other::page(to) | flags);
        paging::invlpg(other::WINDOW);
        if !its.ask_for_flush() {
            // The second CPU runs: another round.
            continue;
        }
        other::advance()?;
        check_eq!(its.preempted() & kvm::steal::VCPU_FLUSH_TLB, 0, "a flush that was not taken");
        check_eq!(other::value(), other::mark(to), "round {round}: what it reads");
    }
    Ok(())
}

fn kick() -> Outcome {
    need_other!(feature::PV_UNHALT);
    for round in 0..5 {
        other::begin(Job::Halt)?;
        time::delay(20_000);
        check_eq!(other::phase(), Phase::Begun, "round {round}: HLT ended by itself");
        check_eq!(kick_cpu(1), 0, "kick");
        other::reached(Phase::Woken)?;
    }
    Ok(())
}

fn kick_before_hlt() -> Outcome {
    need_other!(feature::PV_UNHALT);
    other::begin(Job::HaltWhenTold)?;
    check_eq!(kick_cpu(1), 0, "kick");
    other::advance()?;
    other::tell();
    other::reached(Phase::Woken)?;
    // A kick counts once.
    other::begin(Job::Halt)?;
    time::delay(20_000);
    check_eq!(other::phase(), Phase::Begun, "a kick ended two HLTs");
    check_eq!(kick_cpu(1), 0, "kick");
    other::reached(Phase::Woken)
}

fn sched_yield() -> Outcome {
    need_other!(feature::PV_SCHED_YIELD);
    if !other::one_cpu() {
        skip!("the vCPUs have a CPU each");
    }
    other::begin(Job::Count)?;
    let mut ran = 0;
    let start = rdtsc();
    for _ in 0..50 {
        let before = other::count();
        let to = Registers { rax: call::SCHED_YIELD, rbx: 1, ..Registers::default() };
        check_eq!(call(to), 0, "yield");
        ran += u32::from(other::count() != before);
    }
    check!(ran >= 40, "the other CPU ran after {ran} of 50 yields");
    // To oneself it is nothing.
    let to = Registers { rax: call::SCHED_YIELD, rbx: 0, ..Registers::default() };
    check_eq!(call(to), 0, "yield to oneself");
    check!(rdtsc() - start < time::micros(2_000_000), "50 yields took {}", rdtsc() - start);
    Ok(())
}

fn send_ipi() -> Outcome {
    need_other!(feature::PV_SEND_IPI);
    cpu::sti();
    other::begin(Job::Count)?;
    other::take_interrupts();
    Lapic::X1.enable();
    for (set, first, wanted) in
        [(0b11, 0, [1, 1]), (0b10, 0, [0, 1]), (0b1, 1, [0, 1]), (1, 0, [1, 0])]
    {
        let before = other::interrupts();
        let sent = ipis(set, 0, first, u64::from(other::VECTOR));
        check_eq!(sent, wanted[0] + wanted[1], "how many were reached");
        let came = || {
            let now = other::interrupts();
            [now[0] - before[0], now[1] - before[1]]
        };
        time::wait_for(1000, || came() == wanted);
        check_eq!(came(), wanted, "interrupts of the set {set:#b} from {first}");
    }
    // Bits from 64 on stand in the second set: here that is nobody.
    check_eq!(ipis(0, 0b11, 0, u64::from(other::VECTOR)), 0, "ids 64 and 65");
    Ok(())
}

fn send_nmi() -> Outcome {
    need_other!(feature::PV_SEND_IPI);
    other::begin(Job::Count)?;
    let before = trap::count(vector::NMI);
    trap::on(vector::NMI, Some(|_| ()));
    check_eq!(ipis(0b10, 0, 0, 0x400), 1, "how many were reached");
    let came = time::wait_for(1000, || trap::count(vector::NMI) > before);
    check!(came, "no NMI came");
    // An NMI also ends HLT.
    other::begin(Job::Halt)?;
    time::delay(10_000);
    check_eq!(ipis(0b10, 0, 0, 0x400), 1, "how many were reached");
    other::reached(Phase::Woken)
}
