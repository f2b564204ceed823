//! The APIC's registers in a page that the CPU works on by itself while the
//! guest runs (SDM: "APIC Virtualization and Virtual Interrupts").
//!
//! The [`Lapic`] owns all of its state while its vCPU stands still. Before an
//! entry [`Lapic::hand_over`] moves what the CPU will own (requests, interrupts
//! in service, task priority) into the page and shows the other registers
//! there for the guest to read; after the exit [`Lapic::take_back`] moves it
//! back. An interrupt that arrives in between (of a timer that a hot exit armed too
//! late) waits in the [`Lapic`] and joins the rest when it is taken back.

use super::bitmap::VectorSet;
use super::message::ApicMode;
use super::reg::{IcrLow, LvtEntry, Reg, VERSION};
use super::ticks::Ticks;
use super::{Effect, Lapic};
use bitfield_struct::bitfield;
use core::sync::atomic::{AtomicU32, Ordering};
use x86defs::{Low, Vector, Width};

/// The page: each register's 32 bits stand 16 bytes apart, as in xAPIC mode.
///
/// The CPU reads and writes it while its vCPU runs the guest, its owner only
/// while it does not, so that no order between accesses has to be kept.
#[repr(C, align(4096))]
pub struct VirtualApicPage {
    words: [AtomicU32; 1024],
}

const _: () = assert!(size_of::<VirtualApicPage>() == 4096);

impl core::fmt::Debug for VirtualApicPage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VirtualApicPage").finish_non_exhaustive()
    }
}

impl Default for VirtualApicPage {
    fn default() -> Self {
        Self { words: [const { AtomicU32::new(0) }; 1024] }
    }
}

impl VirtualApicPage {
    /// Register `reg`.
    #[inline(always)]
    #[must_use]
    pub fn read(&self, reg: Reg) -> u32 {
        self.words.get(usize::from(reg.0) * 4).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Sets register `reg`.
    #[inline(always)]
    pub(super) fn write(&self, reg: Reg, value: u32) {
        if let Some(word) = self.words.get(usize::from(reg.0) * 4) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// The task priority.
    #[inline(always)]
    #[must_use]
    pub fn task_priority(&self) -> u8 {
        self.read(Reg::TPR).low8()
    }

    /// Sets the task priority.
    #[inline(always)]
    pub fn set_task_priority(&self, value: u8) {
        self.write(Reg::TPR, value.into());
    }

    /// The eight registers from `first` on.
    fn vectors(&self, first: Reg) -> VectorSet {
        let word = |n| u64::from(self.read(Reg(first.0.saturating_add(n))));
        let pair = |n: u8| word(2 * n) | word(2 * n + 1) << 32;
        VectorSet([pair(0), pair(1), pair(2), pair(3)])
    }

    /// Sets the eight registers from `first` on.
    fn set_vectors(&self, first: Reg, vectors: &VectorSet) {
        for n in 0..8 {
            self.write(Reg(first.0.saturating_add(n)), vectors.window(n));
        }
    }
}

/// State that the CPU keeps beside the page (SDM: "Guest Interrupt Status").
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct InterruptStatus {
    /// The highest vector requested; 0 for none.
    pub requesting: u8,
    /// The highest vector in service; 0 for none.
    pub servicing: u8,
}

impl Lapic {
    /// Moves requests, interrupts in service and the task priority into `page`,
    /// and shows the other registers there. `left` is the status at the last
    /// exit, and tells what the page still holds. Returns the status to enter with.
    ///
    /// Until they are taken back, the state here counts as having nothing in
    /// service, so that whatever is requested meanwhile looks deliverable.
    pub fn hand_over(&mut self, page: &VirtualApicPage, left: InterruptStatus) -> InterruptStatus {
        let irr = core::mem::take(&mut self.s.irr);
        let isr = core::mem::take(&mut self.s.isr);
        let status = InterruptStatus::new()
            .with_requesting(irr.highest_or_zero())
            .with_servicing(core::mem::take(&mut self.s.isr_top));
        if left.requesting() | status.requesting() != 0 {
            page.set_vectors(Reg::IRR, &irr);
        }
        if left.servicing() | status.servicing() != 0 {
            page.set_vectors(Reg::ISR, &isr);
        }
        page.set_task_priority(core::mem::take(&mut self.s.tpr));
        if !self.shown {
            self.shown = true;
            self.show_registers(page);
        }
        debug_assert!(self.is_shown(page), "a register has changed unseen");
        status
    }

    /// Takes back what [`hand_over`](Self::hand_over) moved, as the guest left
    /// it; `status` is the CPU's at the exit.
    ///
    /// A vector that the guest sent to itself without an exit keeps the trigger
    /// mode it had here: at worst one EOI too many goes to the I/O APICs.
    pub fn take_back(&mut self, page: &VirtualApicPage, status: InterruptStatus) {
        if status.requesting() != 0 {
            let VectorSet([a, b, c, d]) = page.vectors(Reg::IRR);
            let VectorSet([e, f, g, h]) = self.s.irr;
            self.s.irr = VectorSet([a | e, b | f, c | g, d | h]);
        }
        if status.servicing() != 0 {
            self.s.isr = page.vectors(Reg::ISR);
            self.s.isr_top = status.servicing();
        }
        self.s.tpr = page.task_priority();
        if self.s.mode == ApicMode::XApic {
            // The one register that the guest writes without an exit, and the
            // one that may have been a self-IPI.
            let (low, high) = (page.read(Reg::ICR), page.read(Reg::ICR_HIGH));
            self.s.icr_low = low & IcrLow::WRITABLE;
            self.s.icr_high = high & 0xff00_0000;
            // Bits that do not exist are not shown again.
            self.shown &= (self.s.icr_low, self.s.icr_high) == (low, high);
        }
    }

    /// Level-triggered vectors: their EOI must exit.
    #[inline]
    #[must_use]
    pub const fn level_triggered(&self) -> VectorSet {
        self.s.tmr
    }

    /// Shows which vectors are level-triggered.
    pub fn show_level_triggered(&self, page: &VirtualApicPage) {
        page.set_vectors(Reg::TMR, &self.s.tmr);
    }

    /// Registers that only the guest's accesses change.
    fn registers(&self) -> impl Iterator<Item = (Reg, u32)> {
        let table = (Reg::LVT_FIRST.0..).map(Reg).zip(self.s.lvt.map(LvtEntry::into_bits));
        [
            (Reg::ID, self.id_register()),
            (Reg::VERSION, VERSION),
            (Reg::LDR, self.ldr()),
            (Reg::DFR, self.s.dfr),
            (Reg::SVR, self.s.svr.into_bits()),
            (Reg::ESR, self.s.esr.bits()),
            (Reg::ICR, self.s.icr_low),
            (Reg::ICR_HIGH, self.s.icr_high),
            (Reg::INITIAL_COUNT, self.s.initial_count),
            (Reg::DIVIDE, self.s.divide.into()),
        ]
        .into_iter()
        .chain(table)
    }

    #[inline(never)]
    fn show_registers(&self, page: &VirtualApicPage) {
        for (register, value) in self.registers() {
            page.write(register, value);
        }
    }

    fn is_shown(&self, page: &VirtualApicPage) -> bool {
        self.registers().all(|(register, value)| page.read(register) == value)
    }

    /// Does the part of a write that the CPU leaves to software: the guest wrote `value`
    /// to the register at `offset` of the page (0 to 0xfff).
    pub fn written(&mut self, offset: u16, value: u32, now: Ticks) -> Effect {
        const SELF_IPI: u16 = 0x3f0;
        self.shown = false;
        match self.s.mode {
            ApicMode::X2Apic if offset == SELF_IPI => self.send_self(value.low8()),
            ApicMode::XApic => {
                // A register that is not there: the write is lost.
                let effect = self.mmio_write(offset.into(), Width::B4, value, now);
                effect.unwrap_or(Effect::None)
            }
            ApicMode::X2Apic | ApicMode::Disabled => Effect::None,
        }
    }

    /// Notes that the CPU ended `vector` by itself. Returns the vector if it was
    /// level-triggered and the I/O APICs must be told.
    pub fn ended(&mut self, vector: Vector) -> Option<Vector> {
        if cfg!(planted = "eoi-lost") {
            return None;
        }
        if self.s.tmr.contains(vector) { self.eoi_level(vector) } else { None }
    }

    /// The x2APIC registers that a CPU may serve from the page. Of the others
    /// some are computed (the timer's count), some have 64 bits that the page
    /// does not (the command), and the rest faults.
    pub fn readable_in_page() -> impl Iterator<Item = Reg> {
        let first = [Reg::ID, Reg::VERSION, Reg::TPR, Reg::PPR, Reg::LDR, Reg::SVR];
        let last = [Reg::ESR, Reg::INITIAL_COUNT, Reg::DIVIDE];
        let vectors = (Reg::ISR.0..Reg::ESR.0).map(Reg);
        let table = (Reg::LVT_FIRST.0..=Reg::LVT_LAST.0).map(Reg);
        first.into_iter().chain(vectors).chain(table).chain(last)
    }
}
