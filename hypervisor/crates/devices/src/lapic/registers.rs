//! The register file: xAPIC's memory window and x2APIC's MSRs
//! (SDM: "Local APIC Register Address Map", "x2APIC Register Address Space").

use super::message::{ApicMode, Destination, DestinationMode};
use super::reg::{Esr, IcrLow, Lvt, LvtEntry, Reg, Svr, VERSION};
use super::ticks::Ticks;
use super::{Effect, Gp, Lapic};
use crate::AccessError;
use x86defs::bits::join;
use x86defs::{Low, Msr, Width};

/// The bits of the divide configuration that software may set.
pub(super) const DIVIDE_WRITABLE: u8 = 0b1011;
/// The bits of the logical destination register that software may set.
const LDR_WRITABLE: u32 = 0xff00_0000;
/// The bits of the destination format register that always read one.
const DFR_ONES: u32 = 0x0fff_ffff;
/// Registers stand this many bytes apart in xAPIC mode.
const STRIDE: u64 = 16;
/// The size of the register window in xAPIC mode, in bytes.
const WINDOW: u64 = 0x1000;

impl Lapic {
    /// A read at `offset` (0 to 0xfff) in xAPIC mode. Parts of a register can
    /// be read; no read may leave it.
    ///
    /// # Errors
    /// [`AccessError::NoRegister`] outside xAPIC mode, where the window does
    /// not exist, and in the gaps between registers; [`AccessError::Width`]
    /// for an access that leaves its register.
    pub fn mmio_read(&mut self, offset: u64, width: Width, now: Ticks) -> Result<u32, AccessError> {
        let reg = self.window_reg(offset)?;
        let byte = offset % STRIDE;
        let end = byte.saturating_add(width.bytes() as u64);
        if end > 4 {
            return Err(AccessError::Width);
        }
        let value = match reg {
            Reg::EOI => 0,
            _ => match self.read(reg, now) {
                Some(value) => value,
                None => {
                    self.log_error(Esr::ILLEGAL_REGISTER);
                    0
                }
            },
        };
        Ok((u64::from(value) >> (byte * 8) & width.mask()).low32())
    }

    /// A write at `offset` (0 to 0xfff) in xAPIC mode.
    ///
    /// # Errors
    /// [`AccessError::NoRegister`] as in [`mmio_read`](Self::mmio_read);
    /// [`AccessError::Width`] for anything but four aligned bytes.
    pub fn mmio_write(
        &mut self,
        offset: u64,
        width: Width,
        value: u32,
        now: Ticks,
    ) -> Result<Effect, AccessError> {
        let reg = self.window_reg(offset)?;
        self.shown = false;
        if width != Width::B4 || !offset.is_multiple_of(STRIDE) {
            return Err(AccessError::Width);
        }
        Ok(match reg {
            Reg::ICR => {
                let low = IcrLow::from_bits(value & IcrLow::WRITABLE);
                self.s.icr_low = low.into_bits();
                let mode = DestinationMode::from_logical_bit(low.logical());
                let id = (self.s.icr_high >> 24).low8();
                self.send(low, Destination::from_xapic(id, mode))
            }
            Reg::ICR_HIGH => {
                self.s.icr_high = value & 0xff00_0000;
                Effect::None
            }
            Reg::LDR => {
                self.s.ldr = value & LDR_WRITABLE;
                Effect::IdentityChanged
            }
            Reg::DFR => {
                self.s.dfr = value | DFR_ONES;
                Effect::IdentityChanged
            }
            // Read-only, and not reserved: a write has no effect.
            Reg::ID | Reg::VERSION | Reg::APR | Reg::PPR | Reg::RRD | Reg::CURRENT_COUNT => {
                Effect::None
            }
            Reg(0x10..=0x27) => Effect::None,
            Reg::TPR => self.write(reg, value & 0xff, now),
            Reg::SVR => self.write(reg, value & Svr::WRITABLE, now),
            Reg::DIVIDE => self.write(reg, value & u32::from(DIVIDE_WRITABLE), now),
            Reg::EOI | Reg::ESR | Reg::INITIAL_COUNT => self.write(reg, value, now),
            _ => match Lvt::from_reg(reg) {
                Some(lvt) => self.write(reg, value & self.lvt_writable(lvt), now),
                None => {
                    self.log_error(Esr::ILLEGAL_REGISTER);
                    Effect::Pending
                }
            },
        })
    }

    /// The register at `offset`, if the window is open.
    fn window_reg(&self, offset: u64) -> Result<Reg, AccessError> {
        if self.s.mode != ApicMode::XApic || offset >= WINDOW || offset % STRIDE >= 4 {
            return Err(AccessError::NoRegister);
        }
        Ok(Reg((offset / STRIDE).low8()))
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// [`Gp`] for other MSRs, for registers that do not exist or cannot be
    /// read, and for all x2APIC registers outside x2APIC mode.
    pub fn msr_read(&mut self, msr: Msr, now: Ticks) -> Result<u64, Gp> {
        match msr {
            Msr::APIC_BASE => return Ok(self.apic_base()),
            Msr::TSC_DEADLINE => return Ok(self.tsc_deadline(now)),
            _ => {}
        }
        match self.msr_reg(msr)? {
            Reg::ICR => Ok(join(self.s.icr_high, self.s.icr_low)),
            Reg::ICR_HIGH | Reg::DFR | Reg::APR | Reg::RRD | Reg::EOI | Reg::SELF_IPI => Err(Gp),
            reg => self.read(reg, now).map(u64::from).ok_or(Gp),
        }
    }

    /// WRMSR to IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// [`Gp`] as in [`msr_read`](Self::msr_read), for read-only registers and
    /// for reserved bits; nothing has changed then.
    pub fn msr_write(&mut self, msr: Msr, value: u64, now: Ticks) -> Result<Effect, Gp> {
        match msr {
            Msr::APIC_BASE => return self.write_apic_base(value),
            Msr::TSC_DEADLINE => {
                self.write_tsc_deadline(value, now);
                return Ok(Effect::TimerChanged);
            }
            _ => {}
        }
        let reg = self.msr_reg(msr)?;
        if reg == Reg::ICR {
            return self.write_icr(value);
        }
        let value = u32::try_from(value).map_err(|_| Gp)?;
        let allowed = match reg {
            Reg::TPR | Reg::SELF_IPI => 0xff,
            Reg::EOI | Reg::ESR => 0,
            Reg::SVR => Svr::WRITABLE,
            Reg::INITIAL_COUNT => u32::MAX,
            Reg::DIVIDE => u32::from(DIVIDE_WRITABLE),
            _ => self.lvt_writable(Lvt::from_reg(reg).ok_or(Gp)?) | LvtEntry::READ_ONLY,
        };
        if value & !allowed != 0 {
            return Err(Gp);
        }
        if reg == Reg::SELF_IPI {
            return Ok(self.send_self(value.low8()));
        }
        Ok(self.write(reg, value, now))
    }

    /// The x2APIC register behind `msr`, if the mode is right.
    fn msr_reg(&self, msr: Msr) -> Result<Reg, Gp> {
        if self.s.mode != ApicMode::X2Apic || !(Msr::X2APIC_FIRST..=Msr::X2APIC_LAST).contains(&msr)
        {
            return Err(Gp);
        }
        Ok(Reg((msr.0 - Msr::X2APIC_FIRST.0).low8()))
    }

    /// Reads a register that both modes have, or that xAPIC mode alone has.
    fn read(&self, reg: Reg, now: Ticks) -> Option<u32> {
        Some(match reg {
            Reg::ID => self.id_register(),
            Reg::VERSION => VERSION,
            Reg::TPR => u32::from(self.s.tpr),
            Reg::APR => u32::from(self.apr()),
            Reg::PPR => u32::from(self.ppr()),
            Reg::RRD => 0,
            Reg::LDR => self.ldr(),
            Reg::DFR => self.s.dfr,
            Reg::SVR => self.s.svr.into_bits(),
            Reg(n @ 0x10..=0x17) => self.s.isr.window(n - Reg::ISR.0),
            Reg(n @ 0x18..=0x1f) => self.s.tmr.window(n - Reg::TMR.0),
            Reg(n @ 0x20..=0x27) => self.s.irr.window(n - Reg::IRR.0),
            Reg::ESR => self.s.esr.bits(),
            Reg::ICR => self.s.icr_low,
            Reg::ICR_HIGH => self.s.icr_high,
            Reg::INITIAL_COUNT => self.s.initial_count,
            Reg::CURRENT_COUNT => self.current_count(now),
            Reg::DIVIDE => u32::from(self.s.divide),
            _ => self.lvt(Lvt::from_reg(reg)?).into_bits(),
        })
    }

    /// Arbitration priority (SDM: "Arbitration Priority Register").
    fn apr(&self) -> u8 {
        let requested = self.s.irr.highest_or_zero() & 0xf0;
        let in_service = self.s.isr_top & 0xf0;
        let task = self.s.tpr & 0xf0;
        if task >= requested && task > in_service {
            self.s.tpr
        } else {
            task.max(in_service).max(requested)
        }
    }

    /// Writes a register that both modes have; reserved bits are gone already.
    fn write(&mut self, reg: Reg, value: u32, now: Ticks) -> Effect {
        self.shown = false;
        match reg {
            Reg::TPR => {
                self.set_tpr(value.low8());
                Effect::Pending
            }
            Reg::EOI => {
                let vector = self.s.isr_top;
                let broadcast = self.eoi().is_some();
                if vector == 0 { Effect::None } else { Effect::Eoi { vector, broadcast } }
            }
            Reg::SVR => {
                // An interrupt that was due before the write is not masked by it.
                self.advance(now);
                self.write_svr(Svr::from_bits(value))
            }
            Reg::ESR => {
                self.s.esr = self.s.esr_logged;
                self.s.esr_logged = Esr::empty();
                Effect::None
            }
            Reg::INITIAL_COUNT => {
                self.write_initial_count(value, now);
                Effect::TimerChanged
            }
            Reg::DIVIDE => {
                self.write_divide(value.low8(), now);
                Effect::TimerChanged
            }
            _ => match Lvt::from_reg(reg) {
                Some(lvt) => self.write_lvt(lvt, value, now),
                None => Effect::None,
            },
        }
    }

    fn write_lvt(&mut self, lvt: Lvt, value: u32, now: Ticks) -> Effect {
        let kept = self.lvt(lvt).into_bits() & LvtEntry::READ_ONLY;
        let mut entry = LvtEntry::from_bits(value & self.lvt_writable(lvt) | kept);
        if !self.s.svr.enabled() {
            entry.set_masked(true);
        }
        match lvt {
            Lvt::Timer => {
                self.write_timer_lvt(entry, now);
                return Effect::TimerChanged;
            }
            Lvt::Lint0 => {
                self.put_lvt(lvt, entry);
                self.lint0_written();
            }
            Lvt::Thermal | Lvt::Performance | Lvt::Lint1 | Lvt::Error => self.put_lvt(lvt, entry),
        }
        Effect::Pending
    }

    pub(super) fn put_lvt(&mut self, lvt: Lvt, entry: LvtEntry) {
        self.shown = false;
        if let Some(slot) = self.s.lvt.get_mut(lvt as usize) {
            *slot = entry;
        }
    }

    /// Switching off by software masks the whole vector table and keeps what
    /// is requested and in service
    /// (SDM: "Local APIC State After It Has Been Software Disabled").
    fn write_svr(&mut self, svr: Svr) -> Effect {
        let changed = svr.enabled() != self.s.svr.enabled();
        self.s.svr = svr;
        if !svr.enabled() {
            for entry in &mut self.s.lvt {
                entry.set_masked(true);
            }
        }
        if changed { Effect::IdentityChanged } else { Effect::None }
    }
}
