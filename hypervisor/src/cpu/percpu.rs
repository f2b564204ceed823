//! Data that each CPU of the machine has of its own, reached through GS, and how
//! CPUs call each other: one word of requests and a kick.

use super::{apic, asm, msr};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use spin::Once;
use x86defs::Msr;
use x86defs::mwait::MwaitHints;

/// The most CPUs of the machine that are used.
pub const MAX_CPUS: usize = 64;

/// Ask the CPU to look at the scheduler again.
pub const RESCHEDULE: u32 = 1 << 0;
/// Ask the CPU to stop for good: the machine's run ends.
pub const STOP: u32 = 1 << 1;
/// Ask the CPU to leave its guest and look at the vCPU's mailbox.
pub const LOOK: u32 = 1 << 2;

/// A CPU of the machine.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct PerCpu {
    /// Its place in [`cpu`]'s table.
    index: AtomicU32,
    /// Its local APIC.
    apic_id: AtomicU32,
    /// It runs our code.
    online: AtomicBool,
    /// There are interrupts in `seen`.
    pub(super) has_seen: AtomicBool,
    /// Interrupts seen, by vector.
    pub(super) seen: [AtomicU64; 4],
    /// Value in TSC_AUX; the hypervisor itself does not use the register.
    pub tsc_aux: AtomicU64,
    /// Requests of other CPUs. While there are some, an interrupt is on its way.
    requests: AtomicU32,
    /// Requests to itself: nobody interrupts it for these.
    own: AtomicU32,
    /// How many sleep on it until a moment.
    timers: AtomicU32,
    /// Ranks of the locks that it holds, where that is checked.
    held: AtomicU32,
}

impl PerCpu {
    const fn new() -> Self {
        Self {
            index: AtomicU32::new(0),
            apic_id: AtomicU32::new(0),
            online: AtomicBool::new(false),
            has_seen: AtomicBool::new(false),
            seen: [const { AtomicU64::new(0) }; 4],
            tsc_aux: AtomicU64::new(u64::MAX),
            requests: AtomicU32::new(0),
            own: AtomicU32::new(0),
            timers: AtomicU32::new(0),
            held: AtomicU32::new(0),
        }
    }

    /// Its number, 0 for the one that booted.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed) as usize
    }

    /// The identifier of its local APIC.
    #[must_use]
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Whether it runs our code.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }

    /// How many sleep on it until a moment, when it last chose what to run.
    #[must_use]
    pub fn timers(&self) -> u32 {
        self.timers.load(Ordering::Relaxed)
    }

    /// Tells how many sleep on it.
    pub fn set_timers(&self, count: usize) {
        self.timers.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Makes `requests` of this CPU, and interrupts it unless somebody has done
    /// so already. One that asks itself looks before it halts
    /// ([`asks_itself`](Self::asks_itself)).
    pub fn request(&self, requests: u32) {
        if core::ptr::eq(self, this()) {
            self.own.fetch_or(requests, Ordering::Relaxed);
        } else if self.requests.fetch_or(requests, Ordering::SeqCst) == 0 {
            apic::kick(self.apic_id());
        }
    }

    /// Whether the CPU, which must be the calling one, asked something of itself
    /// that it has not taken yet.
    pub fn asks_itself(&self) -> bool {
        self.own.load(Ordering::Relaxed) != 0
    }

    /// Forgets what the CPU, which must be the calling one, asked of itself: it does so
    /// next.
    pub fn forget_own_requests(&self) {
        self.own.store(0, Ordering::Relaxed);
    }

    /// Takes what was asked of this CPU, which must be the calling one.
    pub fn take_requests(&self) -> u32 {
        let own = match self.own.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.own.swap(0, Ordering::Relaxed),
        };
        if self.requests.load(Ordering::Relaxed) == 0 {
            own
        } else {
            own | self.requests.swap(0, Ordering::SeqCst)
        }
    }
}

/// How this machine's CPUs wait; all are of one kind.
static MWAIT: Once<Option<MwaitHints>> = Once::new();

/// Halts the calling CPU until an interrupt, which is taken before this returns,
/// or another CPU's request. `long` if it is not expected soon.
pub fn wait(long: bool) {
    match MWAIT.call_once(|| MwaitHints::of(&super::cpuid)) {
        Some(hints) => {
            let hint = if long { hints.long } else { hints.short };
            asm::mwait_until_interrupt(&this().requests, hint);
        }
        None => asm::halt_until_interrupt(),
    }
}

static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

/// CPU `index` of the machine, whether it runs or not.
#[must_use]
pub fn cpu(index: usize) -> Option<&'static PerCpu> {
    CPUS.get(index)
}

/// The CPUs that run our code, by index.
pub fn online() -> impl Iterator<Item = &'static PerCpu> {
    CPUS.iter().filter(|cpu| cpu.is_online())
}

/// Makes the calling CPU number `index` (below [`MAX_CPUS`]). Its descriptor
/// tables must be loaded already: that clears GS.
pub fn claim(index: usize) {
    let cpu = &CPUS[index];
    cpu.index.store(u32::try_from(index).unwrap_or(0), Ordering::Relaxed);
    let address = core::ptr::from_ref(cpu) as u64;
    // SAFETY: every 64-bit CPU has the register, and nothing else uses GS.
    unsafe { msr::write(Msr::GS_BASE, address) };
    // Each CPU makes its number before it takes its first lock.
    locks::check_by(|| Some(&this().held));
}

/// The calling CPU's local APIC works, and others may call it.
pub fn set_online(apic_id: u32) {
    let cpu = this();
    cpu.apic_id.store(apic_id, Ordering::Relaxed);
    cpu.online.store(true, Ordering::Release);
}

/// The CPU that this runs on.
#[must_use]
pub fn this() -> &'static PerCpu {
    let index: u32;
    // SAFETY: `claim` has made this CPU's entry of the table, whose first field
    // is the index, the base of GS; both backends restore it at an exit.
    unsafe {
        asm!("mov {0:e}, gs:[0]", out(reg) index, options(nostack, readonly, preserves_flags));
    }
    &CPUS[index as usize & (MAX_CPUS - 1)]
}

/// Stops every other CPU for good. It may be called in a panic, where GS is
/// not to be counted on.
pub fn stop_others() {
    for cpu in online() {
        if cpu.apic_id() != apic::id() {
            cpu.requests.fetch_or(STOP, Ordering::SeqCst);
            apic::kick(cpu.apic_id());
        }
    }
}

/// Ends this CPU's part if it was asked to stop.
pub fn stop_if_asked(requests: u32) {
    if requests & STOP != 0 {
        asm::stop();
    }
}

const _: () = assert!(core::mem::offset_of!(PerCpu, index) == 0);
