//! The local APIC, in xAPIC and x2APIC mode (SDM: "Advanced Programmable
//! Interrupt Controller (APIC)").
//!
//! [`Lapic`] is plain data that belongs to the CPU that runs its vCPU. Other
//! CPUs never touch it: they post vectors elsewhere, and the owner brings them
//! in with [`Lapic::merge`]. Work that it leaves to its owner it returns as an
//! [`Effect`]: an inter-processor interrupt to route, an EOI to broadcast, a
//! deadline to arm. After every call the owner may find a vector in
//! [`Lapic::deliverable`].
//!
//! Every register can be read and written: [`Lapic::mmio_read`] and
//! [`Lapic::mmio_write`], [`Lapic::msr_read`] and [`Lapic::msr_write`]. The hot
//! handler has calls of its own: [`Lapic::end_edge`], [`Lapic::sent_to_self`] with
//! [`Lapic::note_command`], and [`Lapic::tsc_deadline_ahead`] with
//! [`Lapic::move_tsc_deadline`].
//!
//! Choices that the manual leaves: the ID register is read-only; illegal vectors are
//! reported when they are sent or received, not when they are written to an LVT entry.

mod base;
mod bitmap;
mod lint;
mod message;
mod page;
mod reg;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod ticks;
mod timer;

pub use base::APIC_BASE_ADDRESS;
pub use bitmap::{FIRST_LEGAL_VECTOR, VectorSet};
pub use lint::{Lint, LintEvent};
pub use message::{
    ApicIdentity, ApicMode, DeliveryMode, Destination, DestinationMode, InterruptMessage,
    IpiCommand, Shorthand, Trigger, arbitrate,
};
pub use page::{InterruptStatus, VirtualApicPage};
pub use reg::{Lvt, LvtEntry, Reg, Svr, TimerMode, VERSION};
pub use state::LapicState;
pub use ticks::{TickRatio, Ticks};

use reg::{Esr, IcrLow};
use x86defs::bits::high32;
use x86defs::{Gp, Low, Msr, Vector};

/// Work of the owner after a register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// There is nothing to do.
    None,
    /// An interrupt ended: others may be deliverable now.
    Eoi {
        /// The vector.
        vector: Vector,
        /// The interrupt was level-triggered: tell the I/O APICs.
        broadcast: bool,
    },
    /// Send this interrupt.
    Ipi(IpiCommand),
    /// The APIC sent itself an interrupt, or what was masked by priority may
    /// be deliverable now, or waits again.
    Pending,
    /// [`Lapic::deadline`] may have changed.
    TimerChanged,
    /// [`Lapic::identity`] or [`Lapic::window`] changed: publish it. Timer and
    /// pending interrupts may have changed too.
    IdentityChanged,
}

/// Role of the processor that has the APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The bootstrap processor.
    Bootstrap,
    /// An application processor.
    Application,
}

/// A local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    s: LapicState,
    ratio: TickRatio,
    /// Bits of the timer's entry that can be set.
    timer_writable: u32,
    has_x2apic: bool,
    /// The CPU's page shows the registers as they are (module [`page`]).
    shown: bool,
}

/// The mode of TSC deadlines in the timer's entry.
const TSC_DEADLINE_MODE: u32 = 1 << 18;

impl Lapic {
    /// An APIC as it is after power-up, in xAPIC mode. `id` is its identity;
    /// in xAPIC mode only bits 7:0 show. `ratio` gives the length of a tick.
    #[must_use]
    pub const fn new(id: u32, ratio: TickRatio, role: Role) -> Self {
        let s = LapicState::power_up(id, matches!(role, Role::Bootstrap));
        Self { s, ratio, timer_writable: Lvt::Timer.writable(), has_x2apic: true, shown: false }
    }

    /// The same without x2APIC mode or without TSC deadlines, where CPUID does not offer them. The
    /// MSR that goes with the latter is the caller's to refuse.
    #[must_use]
    pub const fn with_features(self, x2apic: bool, tsc_deadline: bool) -> Self {
        let missing = if tsc_deadline { 0 } else { TSC_DEADLINE_MODE };
        Self { timer_writable: self.timer_writable & !missing, has_x2apic: x2apic, ..self }
    }

    /// Bits of an entry of the local vector table that can be set.
    const fn lvt_writable(&self, lvt: Lvt) -> u32 {
        match lvt {
            Lvt::Timer => self.timer_writable,
            other => other.writable(),
        }
    }

    // ---- Priorities and delivery (SDM: "Interrupt Acceptance for Fixed Interrupts") ----

    /// The task priority, as the register holds it.
    #[inline(always)]
    #[must_use]
    pub const fn tpr(&self) -> u8 {
        self.s.tpr
    }

    /// Sets the task priority.
    #[inline(always)]
    pub const fn set_tpr(&mut self, value: u8) {
        self.s.tpr = value;
    }

    /// CR8: the class of the task priority (SDM: "Task Priority in IA-32e Mode").
    #[inline(always)]
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.s.tpr >> 4
    }

    /// MOV to CR8 of `class`, 0 to 15; the caller has refused other values.
    #[inline(always)]
    pub const fn set_cr8(&mut self, class: u8) {
        self.s.tpr = class << 4;
    }

    /// Threshold for a CPU that tracks CR8 by itself: it must exit when CR8 falls below
    /// this, because an interrupt waits for that. 0 if none does.
    #[inline]
    #[must_use]
    pub fn cr8_threshold(&self) -> u8 {
        let waiting = self.s.irr.highest_or_zero() >> 4;
        if waiting > self.cr8() || waiting <= self.s.isr_top >> 4 { 0 } else { waiting }
    }

    /// The processor priority (SDM: "Processor Priority Register").
    #[inline(always)]
    #[must_use]
    pub const fn ppr(&self) -> u8 {
        let in_service = self.s.isr_top & 0xf0;
        if self.s.tpr & 0xf0 >= in_service { self.s.tpr } else { in_service }
    }

    /// The highest requested vector, whatever the priority.
    #[inline]
    #[must_use]
    pub fn highest_pending(&self) -> Option<Vector> {
        match self.s.irr.highest_or_zero() {
            0 => None,
            vector => Some(vector),
        }
    }

    /// The vector that the CPU is to take next, if the processor priority lets
    /// one through. Give it to [`acknowledge`](Self::acknowledge) when it is injected.
    #[inline(always)]
    #[must_use]
    pub fn deliverable(&self) -> Option<Vector> {
        if self.s.irr.is_empty() {
            return None;
        }
        let vector = self.s.irr.highest_or_zero();
        if vector & 0xf0 > self.ppr() & 0xf0 { Some(vector) } else { None }
    }

    /// The CPU takes `vector`, which [`deliverable`](Self::deliverable) named:
    /// it moves from request to service.
    #[inline]
    pub fn acknowledge(&mut self, vector: Vector) {
        self.s.irr.remove(vector);
        self.s.isr.insert(vector);
        if vector > self.s.isr_top {
            self.s.isr_top = vector;
        }
    }

    /// End of interrupt. Returns the vector if it was level-triggered and the
    /// I/O APICs must be told.
    #[inline(always)]
    pub fn eoi(&mut self) -> Option<Vector> {
        if cfg!(planted = "eoi-lost") {
            return None;
        }
        let vector = self.s.isr_top;
        self.s.isr.remove(vector);
        self.s.isr_top = self.s.isr.highest_or_zero();
        // Vector 0 is never in the TMR: nothing was in service.
        if self.s.tmr.contains(vector) { self.eoi_level(vector) } else { None }
    }

    /// Whether the interrupt that the next end of interrupt ends is
    /// level-triggered.
    #[inline(always)]
    #[must_use]
    pub fn in_service_is_level(&self) -> bool {
        self.s.tmr.contains(self.s.isr_top)
    }

    /// End of an interrupt that is not [level-triggered](Self::in_service_is_level).
    #[inline(always)]
    pub fn end_edge(&mut self) {
        if cfg!(planted = "eoi-lost") {
            return;
        }
        self.s.isr.remove(self.s.isr_top);
        self.s.isr_top = self.s.isr.highest_or_zero();
    }

    /// Whether the interrupt in service can end without anybody else having to do
    /// something: it is edge-triggered, it interrupted no other, and nothing is
    /// requested that its end would let through.
    #[must_use]
    pub fn ends_unseen(&self) -> bool {
        let mut others = self.s.isr;
        others.remove(self.s.isr_top);
        self.s.isr_top != 0
            && self.s.irr.is_empty()
            && others.is_empty()
            && !self.in_service_is_level()
    }

    #[cold]
    fn eoi_level(&mut self, vector: Vector) -> Option<Vector> {
        self.end_local_level(vector);
        if self.s.svr.suppress_eoi_broadcast() { None } else { Some(vector) }
    }

    /// Takes in vectors that others posted. `level` says which of them are
    /// level-triggered; its other bits are ignored.
    #[inline(always)]
    pub fn merge(&mut self, pending: &[u64; 4], level: &[u64; 4]) {
        let posted = VectorSet(*pending);
        if posted.has_illegal() || !self.s.svr.enabled() {
            self.merge_checked(posted, level);
        } else {
            self.merge_legal(posted, level);
        }
    }

    #[inline(always)]
    fn merge_legal(&mut self, VectorSet([p0, p1, p2, p3]): VectorSet, level: &[u64; 4]) {
        let [l0, l1, l2, l3] = *level;
        let VectorSet([i0, i1, i2, i3]) = self.s.irr;
        let VectorSet([t0, t1, t2, t3]) = self.s.tmr;
        self.s.irr = VectorSet([i0 | p0, i1 | p1, i2 | p2, i3 | p3]);
        self.s.tmr = VectorSet([
            t0 & !p0 | l0 & p0,
            t1 & !p1 | l1 & p1,
            t2 & !p2 | l2 & p2,
            t3 & !p3 | l3 & p3,
        ]);
    }

    /// Vectors to a disabled APIC are lost, illegal ones become errors
    /// (SDM: "Local APIC State After It Has Been Software Disabled").
    #[cold]
    fn merge_checked(&mut self, posted: VectorSet, level: &[u64; 4]) {
        if !self.s.svr.enabled() {
            return;
        }
        let VectorSet([first, rest @ ..]) = posted;
        let [b, c, d] = rest;
        let legal = first & !((1 << FIRST_LEGAL_VECTOR) - 1);
        self.merge_legal(VectorSet([legal, b, c, d]), level);
        self.log_error(Esr::RECEIVE_ILLEGAL_VECTOR);
    }

    /// Requests `vector` here and now, as [`merge`](Self::merge) does for one.
    /// Returns whether it was accepted.
    #[inline]
    pub fn accept(&mut self, vector: Vector, trigger: Trigger) -> bool {
        if !self.s.svr.enabled() {
            return false;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.log_error(Esr::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.s.irr.insert(vector);
        match trigger {
            Trigger::Edge => self.s.tmr.remove(vector),
            Trigger::Level => self.s.tmr.insert(vector),
        }
        true
    }

    /// Interrupt request, in-service and trigger-mode registers, for display.
    #[must_use]
    pub const fn vectors(&self) -> (VectorSet, VectorSet, VectorSet) {
        (self.s.irr, self.s.isr, self.s.tmr)
    }

    /// The spurious-interrupt vector register, for display.
    #[must_use]
    pub const fn svr(&self) -> Svr {
        self.s.svr
    }

    /// An entry of the local vector table, for display.
    #[must_use]
    pub fn lvt(&self, entry: Lvt) -> LvtEntry {
        self.s.lvt.get(entry as usize).copied().unwrap_or(LvtEntry::RESET)
    }

    // ---- Sending (SDM: "Issuing Interprocessor Interrupts") ----

    /// WRMSR to the interrupt command register in x2APIC mode; the caller
    /// knows that this is the mode.
    ///
    /// # Errors
    /// [`Gp`] if a reserved bit is set; nothing is sent.
    #[inline]
    fn write_icr(&mut self, value: u64) -> Result<Effect, Gp> {
        // Delivery status does not exist in this mode; CPUs of Intel ignore it.
        if value.low32() & !(IcrLow::WRITABLE | IcrLow::STATUS) != 0 {
            return Err(Gp);
        }
        let low = IcrLow::from_bits(value.low32() & IcrLow::WRITABLE);
        self.s.icr_low = low.into_bits();
        self.s.icr_high = high32(value);
        self.shown = false;
        let mode = DestinationMode::from_logical_bit(low.logical());
        Ok(self.send(low, Destination::from_x2apic(high32(value), mode)))
    }

    /// The vector that a write of `value` to `msr`, in x2APIC mode, requests of
    /// this APIC and no other, if it does that and no more.
    #[inline]
    #[must_use]
    pub fn sent_to_self(&self, msr: Msr, value: u64) -> Option<Vector> {
        let legal = value.low8() >= FIRST_LEGAL_VECTOR;
        let to_self = match msr {
            Msr::X2APIC_SELF_IPI => value <= 0xff,
            Msr::X2APIC_ICR => {
                let icr = IcrLow::from_bits(value.low32());
                value.low32() & !IcrLow::WRITABLE == 0
                    && icr.mode() == DeliveryMode::Fixed
                    && Shorthand::from_bits(icr.shorthand()) == Shorthand::ToSelf
            }
            _ => false,
        };
        (self.s.mode == ApicMode::X2Apic && self.s.svr.enabled() && legal && to_self)
            .then_some(value.low8())
    }

    /// Shows a command to oneself in the interrupt command register in x2APIC mode.
    /// [`sent_to_self`](Self::sent_to_self) has checked it, and the caller carries it out.
    #[inline]
    pub fn note_command(&mut self, value: u64) {
        self.s.icr_low = value.low32();
        self.s.icr_high = high32(value);
        self.shown = false;
    }

    /// Write to the self-IPI register.
    #[inline]
    fn send_self(&mut self, vector: Vector) -> Effect {
        if vector < FIRST_LEGAL_VECTOR {
            self.log_error(Esr::SEND_ILLEGAL_VECTOR | Esr::RECEIVE_ILLEGAL_VECTOR);
            return Effect::Pending;
        }
        if self.accept(vector, Trigger::Edge) { Effect::Pending } else { Effect::None }
    }

    #[inline]
    fn send(&mut self, icr: IcrLow, destination: Destination) -> Effect {
        let shorthand = Shorthand::from_bits(icr.shorthand());
        let mode = icr.mode();
        if mode.uses_vector() && icr.vector() < FIRST_LEGAL_VECTOR {
            self.log_error(Esr::SEND_ILLEGAL_VECTOR);
            return Effect::Pending;
        }
        match (mode, shorthand) {
            (DeliveryMode::Fixed, Shorthand::ToSelf) => return self.send_self(icr.vector()),
            // INIT de-assert: no CPU since the Pentium acts on it.
            (DeliveryMode::Init, _) if icr.level() && !icr.assert() => return Effect::None,
            // Neither mode can be sent by an IPI.
            (DeliveryMode::Reserved | DeliveryMode::ExtInt, _) => return Effect::None,
            // To oneself only fixed ones go; the rest is invalid.
            (_, Shorthand::ToSelf) => return Effect::None,
            _ => {}
        }
        Effect::Ipi(IpiCommand {
            message: InterruptMessage {
                destination,
                mode,
                vector: icr.vector(),
                trigger: Trigger::Edge,
            },
            shorthand,
        })
    }

    // ---- Identity (SDM: "Determining IPI Destination") ----

    /// The identity, all 32 bits.
    #[inline]
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.s.id
    }

    /// The identity by which other CPUs address this APIC.
    #[must_use]
    pub fn identity(&self) -> ApicIdentity {
        let shown_id = match self.mode() {
            ApicMode::X2Apic => self.s.id,
            ApicMode::XApic | ApicMode::Disabled => self.s.id & 0xff,
        };
        ApicIdentity::new()
            .with_id(shown_id)
            .with_xapic_ldr((self.s.ldr >> 24).low8())
            .with_flat(self.s.dfr >> 28 == 0xf)
            .with_mode(self.mode())
            .with_software_enabled(self.s.svr.enabled())
            .with_priority(self.s.tpr)
    }

    // ---- Errors (SDM: "Error Handling") ----

    /// Logs an error. The first since the last write to the error status
    /// register also raises the error interrupt.
    #[cold]
    fn log_error(&mut self, error: Esr) {
        let armed = self.s.esr_logged.is_empty();
        self.s.esr_logged |= error;
        let entry = self.lvt(Lvt::Error);
        if armed && !entry.masked() && self.s.svr.enabled() {
            if entry.vector() < FIRST_LEGAL_VECTOR {
                self.s.esr_logged |= Esr::RECEIVE_ILLEGAL_VECTOR;
            } else {
                self.s.irr.insert(entry.vector());
                self.s.tmr.remove(entry.vector());
            }
        }
    }
}
