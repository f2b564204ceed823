//! The second CPU, which does jobs, and what both CPUs share.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use guests::apic::{Lapic, reg};
use guests::cpu::{self, cpuid};
use guests::harness::Outcome;
use guests::pc::{pic, pit};
use guests::{check, check_eq, smp, time, trap};
use hvabi::kvm::steal;

/// KVM's MSR of steal time.
pub(crate) const STEAL_MSR: u32 = 0x4b56_4d03;
/// The vector that both CPUs count.
pub(crate) const VECTOR: u8 = 0xe1;

/// The structure of a CPU's steal time.
#[repr(C, align(64))]
pub(crate) struct Steal {
    nanos: AtomicU64,
    version: AtomicU32,
    flags: AtomicU32,
    preempted: AtomicU8,
    rest: [u8; 47],
}

impl Steal {
    const fn new() -> Self {
        Self {
            nanos: AtomicU64::new(0),
            version: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            preempted: AtomicU8::new(0),
            rest: [0; 47],
        }
    }

    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        ptr::from_ref(self).expose_provenance() as u64
    }

    /// Writes the values that the hypervisor then goes on from.
    pub(crate) fn put(&self, nanos: u64, version: u32) {
        self.nanos.store(nanos, SeqCst);
        self.version.store(version, SeqCst);
        self.preempted.store(0xff, SeqCst);
    }

    /// The version.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(SeqCst)
    }

    /// The steal time, by KVM's protocol.
    pub(crate) fn nanos(&self) -> u64 {
        loop {
            let version = self.version();
            let nanos = self.nanos.load(SeqCst);
            if version & 1 == 0 && self.version() == version {
                return nanos;
            }
        }
    }

    /// Whether its CPU has none.
    pub(crate) fn preempted(&self) -> u8 {
        self.preempted.load(SeqCst)
    }

    /// Asks for a flush instead of interrupting; `false` if its CPU runs.
    pub(crate) fn ask_for_flush(&self) -> bool {
        let seen = self.preempted();
        let asked = seen | steal::VCPU_FLUSH_TLB;
        seen & steal::VCPU_PREEMPTED != 0
            && self.preempted.compare_exchange(seen, asked, SeqCst, SeqCst).is_ok()
    }
}

/// Steal time of the two CPUs.
pub(crate) static STEAL: [Steal; 2] = [const { Steal::new() }; 2];

/// Job of the second CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Job {
    /// Count.
    Count = 1,
    /// HLT with interrupts off.
    Halt = 2,
    /// Count until it is told, then the same.
    HaltWhenTold = 3,
    /// Read through the window, and count.
    Read = 4,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It does its job.
    Begun,
    /// Its HLT has ended.
    Woken,
}

/// The job, and its number in the high half.
static JOB: AtomicU64 = AtomicU64::new(0);
/// The number of the job that it has begun, and of the one whose HLT has ended.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static WOKEN: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicU32 = AtomicU32::new(0);
static INTERRUPTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// A linear address that only the second CPU reads.
pub(crate) const WINDOW: u64 = 0x180_0000;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);
// SAFETY: written once, before the second CPU reads it.
unsafe impl Sync for Page {}
static PAGES: [Page; 2] = [const { Page(UnsafeCell::new([0; 512])) }; 2];

/// Physical address of page 0 or 1.
pub(crate) fn page(number: u64) -> u64 {
    PAGES[usize::from(number != 0)].0.get().expose_provenance() as u64
}

/// Mark that stands in page `number`.
pub(crate) fn mark(number: u64) -> u64 {
    0x1111_0000 + number
}

fn run() -> ! {
    Lapic::X1.write(reg::SVR, 0x1ff);
    let at = STEAL[1].address() | 1;
    let (low, high) = cpu::halves(at);
    // SAFETY: the first CPU has written the register without a fault.
    unsafe {
        core::arch::asm!("wrmsr", in("ecx") STEAL_MSR, in("eax") low, in("edx") high);
    }
    RUNS.store(1, SeqCst);
    cpu::sti();
    loop {
        let job = JOB.load(SeqCst);
        let (number, kind) = (job >> 32, job & 0xff);
        if BEGUN.swap(number, SeqCst) != number && kind == Job::Halt as u64 {
            halt(number);
        }
        if kind == Job::HaltWhenTold as u64 && TOLD.load(SeqCst) == number {
            TOLD.store(0, SeqCst);
            halt(number);
        }
        if kind == Job::Read as u64 {
            let window = ptr::with_exposed_provenance::<u64>(usize::try_from(WINDOW).unwrap_or(0));
            // SAFETY: the window is mapped while this is the job.
            VALUE.store(unsafe { window.read_volatile() }, SeqCst);
        }
        COUNT.fetch_add(1, SeqCst);
    }
}

fn halt(number: u64) {
    // SAFETY: it goes on when it is kicked.
    unsafe { core::arch::asm!("cli", "hlt", "sti", options(nomem, nostack)) };
    WOKEN.store(number, SeqCst);
}

/// Starts it. From then on interrupts are on.
pub(crate) fn start() -> Outcome {
    pit::stop();
    pic::init();
    Lapic::X1.enable();
    for number in 0..2 {
        let at =
            ptr::with_exposed_provenance_mut::<u64>(usize::try_from(page(number)).unwrap_or(0));
        // SAFETY: the page is this program's.
        unsafe { at.write_volatile(mark(number)) };
    }
    // The rest of the structure is nobody's but the hypervisor's.
    check_eq!(STEAL[1].rest, [0; 47], "padding");
    check_eq!(STEAL[1].flags.load(SeqCst), 0, "flags");
    if let Err(why) = smp::start(1, run) {
        check!(false, "{why}");
    }
    cpu::sti();
    let runs = time::wait_for(3000, runs);
    check!(runs || guests::info::flag("one-cpu"), "the second CPU does not start");
    Ok(())
}

/// Whether it runs.
pub(crate) fn runs() -> bool {
    RUNS.load(SeqCst) != 0
}

/// Whether both CPUs share one of the machine's: the usual case.
pub(crate) fn one_cpu() -> bool {
    !guests::info::flag("two-cpus")
}

/// Has it begin a job.
pub(crate) fn begin(job: Job) -> Outcome {
    let number = (JOB.load(SeqCst) >> 32) + 1;
    JOB.store(number << 32 | job as u64, SeqCst);
    let begun = time::wait_for(3000, || BEGUN.load(SeqCst) == number);
    check!(begun, "the second CPU does not begin job {}", job as u32);
    Ok(())
}

/// How far its job is.
pub(crate) fn phase() -> Phase {
    let number = JOB.load(SeqCst) >> 32;
    if WOKEN.load(SeqCst) == number { Phase::Woken } else { Phase::Begun }
}

/// Waits until it is so far.
pub(crate) fn reached(wanted: Phase) -> Outcome {
    time::wait_for(3000, || phase() == wanted);
    check_eq!(phase(), wanted, "what the second CPU does");
    Ok(())
}

/// Tells it to halt now.
pub(crate) fn tell() {
    TOLD.store(JOB.load(SeqCst) >> 32, SeqCst);
}

/// Ends its HLT.
pub(crate) fn wake() {
    let _ = crate::kick_cpu(1);
}

/// How far it has counted.
pub(crate) fn count() -> u64 {
    COUNT.load(SeqCst)
}

/// Value that it read last.
pub(crate) fn value() -> u64 {
    VALUE.load(SeqCst)
}

/// Waits until it has done its job twice.
pub(crate) fn advance() -> Outcome {
    let before = count();
    let came = time::wait_for(3000, || count() >= before + 2);
    check!(came, "the second CPU stands still");
    Ok(())
}

/// Counts interrupts of [`VECTOR`] on both CPUs.
pub(crate) fn take_interrupts() {
    trap::on(
        VECTOR,
        Some(|_| {
            let id = cpuid(1, 0).ebx >> 24;
            INTERRUPTS[usize::from(id != 0)].fetch_add(1, SeqCst);
            Lapic::X1.eoi();
        }),
    );
}

/// How many came to each CPU.
pub(crate) fn interrupts() -> [u64; 2] {
    [INTERRUPTS[0].load(SeqCst), INTERRUPTS[1].load(SeqCst)]
}
