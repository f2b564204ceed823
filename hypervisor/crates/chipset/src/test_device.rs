//! A PCI device for tests: doorbells by port and by memory, MSI-X, MSI and INTA#, and a say in what
//! lies over a part of the guest's RAM. With it, tiny guests and tests of this computer try what the
//! board offers to all devices.

use crate::doorbell::Doorbell;
use crate::fabric::Fabric;
use crate::pci::{BoardDevice, Interrupts, PciInterface, PortBells};
use crate::saved::{Quiet, refused};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use devices::RestoreError;
use devices::pci::{
    BAR_COUNT, Bar, BarRange, ConfigEffect, ConfigSpace, DevFn, Identity, LayoutError,
};
use locks::{Mutex, Rank};
use serde::{Deserialize, Serialize};
use service::{Wake, Waker};
use state::{ReadPrevious, Saved, Sections, StateError, Writer};
use x86defs::Width;
use x86defs::bits::Low;
use x86defs::time::Nanos;

/// Identity of the device, which belongs to nobody.
const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x5354,
    class: 0xff_00_00,
    revision: 1,
    subsystem_vendor: 0,
    subsystem: 0,
};
/// How many doorbells there are. Vector n of MSI-X belongs to doorbell n.
const BELLS: u8 = 64;
/// The BAR of the doorbells among ports.
const PORTS: u8 = 0;
/// The BAR of the registers.
const REGISTERS: u8 = 1;
/// The BAR of the MSI-X table.
const TABLE: u8 = 2;
/// The BAR of memory whose accesses are counted.
const COUNTED: u8 = 3;
/// Bytes that can be laid over RAM.
pub const LAID_BYTES: u64 = 0x1_0000;

/// Registers, of 32 bits. Those from 0 on are the doorbells by memory: written, register n rings
/// doorbell n; read, it tells in how many turns the device saw that rung.
mod register {
    /// Written with 1 or 0: the level of INTA#.
    pub(super) const INTX: u64 = 0x100;
    /// Written with a vector: an interrupt by that.
    pub(super) const NOTIFY: u64 = 0x104;
    /// 1: each doorbell that is seen notifies by its vector.
    pub(super) const ECHO: u64 = 0x108;
    /// Turns of the device; read only.
    pub(super) const TURNS: u64 = 0x10c;
    /// Written with a number of [`Laid`](super::Laid): that lies over the guest's RAM from now on.
    /// Read: 0 as long as some CPU may still use what was there before; 1 then; 2 if it was
    /// refused.
    pub(super) const LAID: u64 = 0x110;
    /// Number of the first page that it lies over.
    pub(super) const OVER: u64 = 0x114;
    /// Accesses to the counted memory.
    pub(super) const ACCESSES: u64 = 0x118;
}

/// Things that may lie over a part of the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Laid {
    /// Nothing.
    Nothing,
    /// Memory beside the RAM, as ROM.
    Rom,
    /// Devices.
    Devices,
    /// The same memory, as RAM.
    RomAsRam,
}

impl Laid {
    const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Nothing),
            1 => Some(Self::Rom),
            2 => Some(Self::Devices),
            3 => Some(Self::RomAsRam),
            _ => None,
        }
    }
}

/// The guest's memory, as the device changes it.
pub trait Overlay: core::fmt::Debug + Send + Sync {
    /// Lays `what` over the [`LAID_BYTES`] at `start`, instead of what lay there. `false`: it is
    /// refused, and nothing has changed.
    fn lay(&self, start: u64, what: Laid) -> bool;

    /// Whether no CPU uses any more what was there before.
    fn is_settled(&self) -> bool;
}

/// See the [module](self).
#[derive(Debug)]
pub struct TestDevice {
    pci: PciInterface,
    doorbell: Arc<Doorbell>,
    waker: Waker,
    seen: [AtomicU32; BELLS as usize],
    /// Held while doorbells are taken and counted.
    alone: Mutex<()>,
    turns: AtomicU32,
    echo: AtomicBool,
    overlay: Option<Arc<dyn Overlay>>,
    /// The first page that something may lie over.
    over: AtomicU32,
    /// The number of what lies there.
    laid: AtomicU32,
    /// That was refused.
    refused: AtomicBool,
    /// Accesses to the counted memory.
    accesses: AtomicU32,
}

/// The saved state of a [`TestDevice`], but for its interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TestDeviceState {
    /// Doorbells that are rung and not seen.
    marks: u64,
    seen: Vec<u32>,
    turns: u32,
    echo: bool,
    over: u32,
    laid: u32,
    refused: bool,
    accesses: u32,
}

/// The state of version 1: nothing can lie over the guest's RAM.
#[derive(Deserialize)]
struct FirstState {
    marks: u64,
    seen: Vec<u32>,
    turns: u32,
    echo: bool,
}

impl Saved for TestDeviceState {
    const NAME: &'static str = "test-device";
    const VERSION: u16 = 2;
    const PREVIOUS: Option<ReadPrevious<Self>> = Some(|payload| {
        let FirstState { marks, seen, turns, echo } = state::decode(payload)?;
        Some(Self { marks, seen, turns, echo, over: 0, laid: 0, refused: false, accesses: 0 })
    });
}

impl TestDevice {
    /// A device at `place`. `waker` has [`turn`](Self::turn) called soon, and things are laid over
    /// the guest's RAM by `overlay`.
    ///
    /// # Errors
    /// Never: the layout fits.
    pub fn new(
        place: DevFn,
        fabric: Arc<Fabric>,
        waker: Waker,
        overlay: Arc<dyn Overlay>,
    ) -> Result<Arc<Self>, LayoutError> {
        Self::woken_by(place, fabric, |_| waker, Some(overlay))
    }

    /// A device at `place` that has its [`turn`](Self::turn) as soon as it is rung, and refuses to
    /// lay anything over RAM: for tests without a scheduler.
    ///
    /// # Errors
    /// Never: the layout fits.
    pub fn inline(place: DevFn, fabric: Arc<Fabric>) -> Result<Arc<Self>, LayoutError> {
        Self::woken_by(place, fabric, |device| Arc::new(Inline(Weak::clone(device))), None)
    }

    fn woken_by(
        place: DevFn,
        fabric: Arc<Fabric>,
        waker: impl FnOnce(&Weak<Self>) -> Waker,
        overlay: Option<Arc<dyn Overlay>>,
    ) -> Result<Arc<Self>, LayoutError> {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_bar(PORTS, Bar::Io { size: 4 * u32::from(BELLS) })?;
        space.add_bar(REGISTERS, Bar::Memory32 { size: 0x1000, prefetchable: false })?;
        let size = LAID_BYTES.low32();
        space.add_bar(COUNTED, Bar::Memory32 { size, prefetchable: false })?;
        let interrupts = Interrupts { msix: Some((TABLE, BELLS)), msi: Some(2), intx: true };
        let pci = PciInterface::new(place, space, interrupts, fabric)?;
        Ok(Arc::new_cyclic(|this| Self {
            pci,
            doorbell: Arc::new(Doorbell::default()),
            waker: waker(this),
            seen: [const { AtomicU32::new(0) }; BELLS as usize],
            alone: Mutex::new(Rank::Queue, ()),
            turns: AtomicU32::new(0),
            echo: AtomicBool::new(false),
            overlay,
            over: AtomicU32::new(0),
            laid: AtomicU32::new(0),
            refused: AtomicBool::new(false),
            accesses: AtomicU32::new(0),
        }))
    }

    /// The part that all PCI devices have.
    #[must_use]
    pub const fn pci(&self) -> &PciInterface {
        &self.pci
    }

    /// Looks after the doorbells that were rung: those of before have been counted when it is
    /// over, whoever took them.
    pub fn turn(&self) {
        let rung = {
            let _alone = self.alone.lock();
            self.turns.fetch_add(1, Ordering::SeqCst);
            let rung = self.doorbell.take();
            for (_, seen) in (0u8..).zip(&self.seen).filter(|(n, _)| rung >> *n & 1 != 0) {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            rung
        };
        if self.echo.load(Ordering::SeqCst) {
            for n in (0..BELLS).filter(|n| rung >> *n & 1 != 0) {
                self.pci.notify(n.into());
            }
        }
    }

    fn ring(&self, bits: u64) {
        if self.doorbell.mark(bits) {
            self.doorbell.pay();
            self.waker.wake();
        }
    }

    /// Lays what this number stands for over the guest's RAM.
    fn lay(&self, number: u64) {
        let start = u64::from(self.over.load(Ordering::SeqCst)) << 12;
        let laid = Laid::from_number(number).is_some_and(|what| {
            self.overlay.as_ref().is_some_and(|overlay| overlay.lay(start, what))
        });
        self.refused.store(!laid, Ordering::SeqCst);
        if laid {
            self.laid.store(number.low32(), Ordering::SeqCst);
        }
    }

    /// How far the last thing that was laid has come.
    fn laid(&self) -> u64 {
        let settled = self.overlay.as_ref().is_none_or(|overlay| overlay.is_settled());
        match (self.refused.load(Ordering::SeqCst), settled) {
            (true, _) => 2,
            (false, settled) => settled.into(),
        }
    }

    /// An access to the counted memory: all but the lowest bits of what is read there are of the
    /// device's own.
    fn count(&self) -> u64 {
        let before = self.accesses.fetch_add(1, Ordering::SeqCst);
        0xdede_0000 | u64::from(before & 0xffff)
    }

    fn state(&self) -> TestDeviceState {
        let _alone = self.alone.lock();
        TestDeviceState {
            marks: self.doorbell.marks(),
            seen: self.seen().collect(),
            turns: self.turns.load(Ordering::SeqCst),
            echo: self.echo.load(Ordering::SeqCst),
            over: self.over.load(Ordering::SeqCst),
            laid: self.laid.load(Ordering::SeqCst),
            refused: self.refused.load(Ordering::SeqCst),
            accesses: self.accesses.load(Ordering::SeqCst),
        }
    }

    fn put_back(&self, state: &TestDeviceState) -> Result<(), RestoreError> {
        if state.seen.len() != self.seen.len() {
            return Err(RestoreError("test device: another number of doorbells"));
        }
        for (to, from) in self.seen.iter().zip(&state.seen) {
            to.store(*from, Ordering::SeqCst);
        }
        self.turns.store(state.turns, Ordering::SeqCst);
        self.echo.store(state.echo, Ordering::SeqCst);
        self.over.store(state.over, Ordering::SeqCst);
        self.accesses.store(state.accesses, Ordering::SeqCst);
        if state.laid != self.laid.load(Ordering::SeqCst) {
            self.lay(state.laid.into());
            if self.refused.load(Ordering::SeqCst) {
                return Err(RestoreError("test device: what lay over RAM can't lie there"));
            }
        }
        self.refused.store(state.refused, Ordering::SeqCst);
        // The one that is to see them is woken when the device goes on.
        self.doorbell.restore(state.marks);
        Ok(())
    }

    /// In how many turns each doorbell was seen to be rung.
    pub fn seen(&self) -> impl Iterator<Item = u32> {
        self.seen.iter().map(|seen| seen.load(Ordering::SeqCst))
    }
}

/// Gives a device its turn at once.
#[derive(Debug)]
struct Inline(Weak<TestDevice>);

impl Wake for Inline {
    fn wake(&self) {
        if let Some(device) = self.0.upgrade() {
            device.turn();
        }
    }
}

impl BoardDevice for TestDevice {
    fn config_read(&self, offset: u8, width: Width) -> u32 {
        self.pci.config_read(offset, width)
    }

    fn config_write(&self, offset: u8, width: Width, value: u32) -> ConfigEffect {
        self.pci.config_write(offset, width, value)
    }

    fn places(&self) -> [Option<BarRange>; BAR_COUNT as usize] {
        self.pci.places()
    }

    fn read(&self, bar: u8, offset: u64, width: Width, _now: Nanos) -> u64 {
        match (bar, offset, self.pci.msix()) {
            (TABLE, _, Some(msix)) => msix.read(offset, width),
            (REGISTERS, register::ECHO, _) => self.echo.load(Ordering::SeqCst).into(),
            (REGISTERS, register::TURNS, _) => self.turns.load(Ordering::SeqCst).into(),
            (REGISTERS, register::LAID, _) => self.laid(),
            (REGISTERS, register::OVER, _) => self.over.load(Ordering::SeqCst).into(),
            (REGISTERS, register::ACCESSES, _) => self.accesses.load(Ordering::SeqCst).into(),
            (COUNTED, _, _) => self.count(),
            (REGISTERS, _, _) => {
                let place = usize::try_from(offset / 4).unwrap_or(usize::MAX);
                let seen = self.seen.get(place);
                seen.map_or(0, |seen| seen.load(Ordering::SeqCst).into())
            }
            _ => u64::MAX,
        }
    }

    fn write(&self, bar: u8, offset: u64, width: Width, value: u64, _now: Nanos) {
        match (bar, offset, self.pci.msix()) {
            (TABLE, _, Some(msix)) => msix.write(offset, width, value),
            (REGISTERS, register::INTX, _) => self.pci.set_intx(value != 0),
            (REGISTERS, register::NOTIFY, _) => self.pci.notify(value.low16()),
            (REGISTERS, register::ECHO, _) => self.echo.store(value != 0, Ordering::SeqCst),
            (REGISTERS, register::LAID, _) => self.lay(value),
            (REGISTERS, register::OVER, _) => self.over.store(value.low32(), Ordering::SeqCst),
            (COUNTED, _, _) => {
                self.count();
            }
            (REGISTERS, 0..register::INTX, _) => self.ring(1 << (offset / 4)),
            _ => {}
        }
    }

    fn quiesce(&self) -> Quiet {
        // It has no medium, and its doorbells keep.
        Quiet::Now
    }

    fn go_on(&self) {
        if self.doorbell.marks() != 0 {
            self.doorbell.pay();
            self.waker.wake();
        }
    }

    fn save(&self, writer: &mut Writer) {
        self.pci.save(writer);
        writer.put(self.pci.instance(), &self.state());
    }

    fn restore(&self, sections: &mut Sections<'_>) -> Result<(), StateError> {
        self.pci.restore(sections)?;
        let instance = self.pci.instance();
        let state = sections.take(instance)?;
        self.put_back(&state).map_err(refused::<TestDeviceState>(instance))
    }

    fn port_bells(&self) -> Option<PortBells> {
        Some(PortBells {
            bar: PORTS,
            first: 0,
            count: BELLS,
            doorbell: Arc::clone(&self.doorbell),
            waker: Arc::clone(&self.waker),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Kick;
    use alloc::boxed::Box;

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), || {
            let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
            let place = DevFn::new(3, 0).unwrap();
            let device = TestDevice::inline(place, fabric).unwrap();
            device.ring(1 << 2);
            let _ = device.doorbell.mark(1 << 63);
            device.state()
        });
    }
}
