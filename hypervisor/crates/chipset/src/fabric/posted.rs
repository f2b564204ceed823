//! [`Posted`]: a vCPU's mailbox for vectors and requests.

use bitflags::bitflags;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use devices::lapic::{DeliveryMode, InterruptMessage, Trigger};
use x86defs::{Low, Vector};

bitflags! {
    /// Requests to a vCPU, to be served before it next enters its guest.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Requests: u32 {
        /// Vectors were posted: [`Posted::take`] them.
        const INTERRUPT = 1 << 0;
        /// Deliver an NMI.
        const NMI = 1 << 1;
        /// INIT; comes before a start-up that is requested with it.
        const INIT = 1 << 2;
        /// Start up, at the page that [`Taken::start_up`] names.
        const START_UP = 1 << 3;
        /// Leave the guest and look around: the scheduler's bit.
        const KICK = 1 << 4;
        /// Translations are stale: compare the VM's generation.
        const FLUSH = 1 << 5;
        /// The CPU's timer ran out: advance the local APIC.
        const DEADLINE = 1 << 6;
        /// The output of the 8259 pair changed.
        const PIC = 1 << 7;
        /// Stop running and say so: pause, snapshot, end of the VM.
        const STOP = 1 << 8;
        /// End HLT, or the next one: another vCPU's
        /// kick (`KICK_CPU` of `hvabi`).
        const UNHALT = 1 << 9;
        /// Some vCPU's TSC was changed: whether all agree is told by kvmclock.
        const CLOCK = 1 << 10;
    }
}

/// Position of the page of a start-up request in the request word.
const START_UP_PAGE_SHIFT: u32 = 24;
/// The page of a start-up request.
const START_UP_PAGE: u32 = 0xff << START_UP_PAGE_SHIFT;

/// Requests that [`Posted::take_requests`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The requests.
    pub requests: Requests,
    /// With [`Requests::START_UP`]: the page (4 KiB) to start at.
    pub start_up: Option<u8>,
}

/// A vCPU's mailbox. Any CPU may post; only the CPU that runs the vCPU takes.
///
/// The bits of `pending` come first and have the layout of a posted-interrupt
/// descriptor.
///
/// Nothing is lost, because a poster writes the vector before the request word
/// and the vCPU clears the request word before it takes vectors. A vCPU that
/// wants to halt first says so where a kick can see it, then asks
/// [`is_quiet`](Self::is_quiet), and halts only if that holds; a poster writes
/// the request word first and then looks whether the vCPU halts. Both use
/// sequentially consistent accesses, so at least one sees the other.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Posted {
    pending: [AtomicU64; 4],
    /// Vectors that were last posted as level-triggered.
    level: [AtomicU64; 4],
    requests: AtomicU32,
    /// The vCPU has a CPU.
    on_cpu: AtomicBool,
    /// TSC_ADJUST of the vCPU, in ticks.
    tsc_adjust: AtomicU64,
}

impl Posted {
    /// An empty mailbox.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pending: [const { AtomicU64::new(0) }; 4],
            level: [const { AtomicU64::new(0) }; 4],
            requests: AtomicU32::new(0),
            on_cpu: AtomicBool::new(false),
            tsc_adjust: AtomicU64::new(0),
        }
    }

    /// Whether the vCPU has a CPU. May be outdated at once.
    #[must_use]
    pub fn is_on_cpu(&self) -> bool {
        self.on_cpu.load(Ordering::Relaxed)
    }

    /// Notes that the vCPU gets or loses its CPU.
    pub fn set_on_cpu(&self, on_cpu: bool) {
        self.on_cpu.store(on_cpu, Ordering::Relaxed);
    }

    /// By how many ticks the vCPU's TSC is ahead of its guest's time, as other vCPUs may
    /// know it.
    #[must_use]
    pub fn tsc_adjust(&self) -> u64 {
        self.tsc_adjust.load(Ordering::Relaxed)
    }

    /// Notes that the vCPU's TSC was changed.
    pub fn set_tsc_adjust(&self, ticks: u64) {
        self.tsc_adjust.store(ticks, Ordering::Relaxed);
    }

    /// Posts `vector`. Returns whether the vCPU must be kicked or woken: the
    /// request word was empty, so that nobody else did or is about to.
    #[inline]
    pub fn post(&self, vector: Vector, trigger: Trigger) -> bool {
        let word = usize::from(vector >> 6);
        let bit = 1_u64 << (vector & 63);
        if let (Some(pending), Some(level)) = (self.pending.get(word), self.level.get(word)) {
            match trigger {
                Trigger::Level => {
                    level.fetch_or(bit, Ordering::Relaxed);
                }
                // A vector seldom changes its kind: spare the locked access.
                Trigger::Edge if level.load(Ordering::Relaxed) & bit != 0 => {
                    level.fetch_and(!bit, Ordering::Relaxed);
                }
                Trigger::Edge => {}
            }
            // Publishes the trigger mode with the vector.
            pending.fetch_or(bit, Ordering::Release);
        }
        self.request(Requests::INTERRUPT)
    }

    /// Makes `requests`. Returns whether the vCPU must be kicked or woken.
    #[inline]
    pub fn request(&self, requests: Requests) -> bool {
        self.requests.fetch_or(requests.bits(), Ordering::SeqCst) == 0
    }

    /// Requests an INIT. A start-up that was requested before it is void.
    /// Returns whether the vCPU must be kicked or woken.
    pub fn request_init(&self) -> bool {
        self.update(|word| {
            word & !(Requests::START_UP.bits() | START_UP_PAGE) | Requests::INIT.bits()
        })
    }

    /// Requests a start-up at `page`. If one is requested already, this one is
    /// void (SDM: "MP Initialization Protocol": a CPU that was started ignores
    /// further start-ups). Returns whether the vCPU must be kicked or woken.
    pub fn request_start_up(&self, page: u8) -> bool {
        self.update(|word| {
            if word & Requests::START_UP.bits() != 0 {
                word
            } else {
                word | Requests::START_UP.bits() | u32::from(page) << START_UP_PAGE_SHIFT
            }
        })
    }

    fn update(&self, change: impl Fn(u32) -> u32) -> bool {
        let mut word = self.requests.load(Ordering::Relaxed);
        // Each failure means that another CPU's request went in.
        loop {
            match self.requests.compare_exchange_weak(
                word,
                change(word),
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(old) => return old == 0,
                Err(now) => word = now,
            }
        }
    }

    /// Puts `message`, which is for this vCPU, into the box. Returns whether
    /// the vCPU must be kicked or woken. Guests have no system-management mode:
    /// an SMI is dropped, and so is what the manual reserves.
    pub(crate) fn deliver(&self, message: &InterruptMessage) -> bool {
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.post(message.vector, message.trigger)
            }
            DeliveryMode::Nmi => self.request(Requests::NMI),
            DeliveryMode::Init => self.request_init(),
            DeliveryMode::StartUp => self.request_start_up(message.vector),
            DeliveryMode::ExtInt => self.request(Requests::PIC),
            DeliveryMode::Smi | DeliveryMode::Reserved => false,
        }
    }

    /// Whether nothing was requested. One load: the test before each entry.
    #[inline(always)]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.requests.load(Ordering::SeqCst) == 0
    }

    /// Takes all requests, for the vCPU. With [`Requests::INTERRUPT`] it must
    /// [`take`](Self::take) vectors next.
    #[inline]
    pub fn take_requests(&self) -> Taken {
        let word = self.requests.swap(0, Ordering::SeqCst);
        let requests = Requests::from_bits_truncate(word);
        let page = (word >> START_UP_PAGE_SHIFT).low8();
        Taken { requests, start_up: requests.contains(Requests::START_UP).then_some(page) }
    }

    /// Takes the posted vectors, and which of them are level-triggered,
    /// for [`devices::lapic::Lapic::merge`].
    #[inline]
    #[must_use]
    pub fn take(&self) -> ([u64; 4], [u64; 4]) {
        let [p0, p1, p2, p3] = &self.pending;
        let [l0, l1, l2, l3] = &self.level;
        let word = |pending: &AtomicU64, level: &AtomicU64| {
            if pending.load(Ordering::Relaxed) == 0 {
                return (0, 0);
            }
            let taken = pending.swap(0, Ordering::Acquire);
            (taken, taken & level.load(Ordering::Relaxed))
        };
        let ((a, w), (b, x), (c, y), (d, z)) =
            (word(p0, l0), word(p1, l1), word(p2, l2), word(p3, l3));
        ([a, b, c, d], [w, x, y, z])
    }

    /// Contents of the box, which stay: vectors with those of them that are level-triggered, requests, and
    /// the page of a start-up.
    pub(super) fn peek(&self) -> ([[u64; 4]; 2], Requests, Option<u8>) {
        let word = self.requests.load(Ordering::SeqCst);
        let load = |words: &[AtomicU64; 4]| words.each_ref().map(|w| w.load(Ordering::Relaxed));
        let pending = load(&self.pending);
        let mut level = load(&self.level);
        level.iter_mut().zip(pending).for_each(|(level, pending)| *level &= pending);
        let requests = Requests::from_bits_truncate(word);
        let page = (word >> START_UP_PAGE_SHIFT).low8();
        ([pending, level], requests, requests.contains(Requests::START_UP).then_some(page))
    }

    /// Has those wait that [`peek`](Self::peek) has seen. Nobody else uses the mailbox.
    pub(super) fn put_back(
        &self,
        [pending, level]: [[u64; 4]; 2],
        requests: Requests,
        start_up: Option<u8>,
    ) {
        let store = |words: &[AtomicU64; 4], values: [u64; 4]| {
            words.iter().zip(values).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        };
        store(&self.pending, pending);
        store(&self.level, level);
        let start_up = start_up
            .map_or(0, |page| Requests::START_UP.bits() | u32::from(page) << START_UP_PAGE_SHIFT);
        self.requests.store(requests.bits() | start_up, Ordering::SeqCst);
    }
}
