//! A virtio device on the PCI bus: the part that all kinds have in common.
//!
//! The registers are the vCPUs', behind a lock of their own; the queues are the service's, which has
//! a [turn](VirtioDevice::turn) when the device was rung. A reset waits for the service to finish
//! its turn: until then the status reads as it was.

use crate::feature;
use crate::registers::{COMMON_SIZE, NO_VECTOR, Registers, RegistersState, Written};
use crate::request::Request;
use crate::ring::Ring;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use chipset::Quiet;
use chipset::doorbell::Doorbell;
use chipset::fabric::Fabric;
use chipset::pci::{BoardDevice, Interrupts, PciInterface, PortBells};
use core::fmt::Debug;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use devices::RestoreError;
use devices::pci::{
    BAR_COUNT, Bar, BarRange, ConfigEffect, ConfigSpace, DevFn, Identity, LayoutError,
};
use locks::{Mutex, Rank};
use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use service::Waker;
use state::{Saved, Sections, StateError, Writer};
use virtqueue::{Chain, DeviceQueue, DeviceState, QueueError};
use x86defs::Width;
use x86defs::bits::Low;
use x86defs::time::Nanos;

/// PCI vendor of all virtio devices.
const VENDOR: u16 = 0x1af4;
/// PCI device of the virtio device number 0.
const FIRST_DEVICE: u16 = 0x1040;
/// Identity of vendor-specific capabilities.
const VENDOR_CAPABILITY: u8 = 0x09;

/// The BAR of the doorbells among I/O ports.
const PORTS: u8 = 0;
/// The BAR of the registers.
const REGISTERS: u8 = 1;
/// The BAR of the MSI-X table.
const TABLE: u8 = 2;
/// Bytes of the registers' BAR.
const REGISTER_BYTES: u32 = 0x1000;

/// Places in the registers' BAR. The common configuration stands first.
mod place {
    /// The interrupt status.
    pub(super) const ISR: u64 = 0x100;
    /// The configuration of the device's own kind.
    pub(super) const DEVICE: u64 = 0x200;
    pub(super) const DEVICE_END: u64 = 0x400;
    /// The doorbells, of four bytes each.
    pub(super) const NOTIFY: u64 = 0x400;
    pub(super) const NOTIFY_END: u64 = 0x500;
}

/// Numbers of the structures (virtio 1.2, "Virtio Structure PCI Capabilities").
mod structure {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI_ACCESS: u8 = 5;
}

/// Bits of the interrupt status.
mod cause {
    pub(super) const QUEUE: u8 = 1;
    pub(super) const CONFIG: u8 = 2;
}

/// The outcome of serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is done, and so many bytes were written, from the first one on.
    Done(u32),
    /// It can't be served now: it stays in the ring, until the device is [rung](VirtioDevice::ring).
    Later,
}

/// A kind of device.
pub trait Kind<M>: Debug + Send + Sync {
    /// Number of the kind (virtio 1.2, "Device Types").
    fn number(&self) -> u16;

    /// PCI class code, as in 0xbbsspp.
    fn class(&self) -> u32;

    /// Features of its own that it offers.
    fn features(&self) -> u64;

    /// Sizes of its queues: powers of two, [`MAX_QUEUE_SIZE`](crate::registers::MAX_QUEUE_SIZE) at
    /// the most; 1 to 64 of them.
    fn queues(&self) -> &[u16];

    /// Byte `offset` of its configuration, 0 beyond it. `features` are those that were negotiated.
    fn config(&self, offset: u64, features: u64) -> u8;

    /// Writes its configuration. What can't be written is lost.
    fn write_config(&self, offset: u64, width: Width, value: u64, features: u64);

    /// Serves a request of queue `queue`.
    ///
    /// # Errors
    /// The request is not one that a driver makes, or its buffers are in no memory: the device needs
    /// a reset.
    fn serve(&self, queue: u16, request: &Request<'_, M>, features: u64) -> Result<Served, Broken>;

    /// The driver has reset the device.
    fn reset(&self);
}

/// Why a device can't go on without a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The queue's rings, or a chain in them.
    #[error("{0}")]
    Queue(#[from] QueueError<MemoryError>),
    /// A request.
    #[error("{0}")]
    Request(&'static str),
}

/// The part behind the service's lock.
#[derive(Debug)]
struct Queues {
    queues: Vec<Option<DeviceQueue>>,
    chain: Chain,
    /// Features that were negotiated.
    features: u64,
    /// The driver is set up, and nothing is broken.
    live: bool,
}

/// The outcome of a turn of the service.
#[derive(Debug, Default)]
struct Turn {
    /// A bit for each queue of which the driver wants to hear.
    interrupts: u64,
    more: bool,
    broken: bool,
    resets: bool,
}

/// Counts for the operator.
#[derive(Debug, Default)]
pub struct Counts {
    /// Times that the device was rung.
    pub kicks: AtomicU64,
    /// Interrupts that it sent.
    pub interrupts: AtomicU64,
    /// Requests that it served.
    pub requests: AtomicU64,
    /// Times that it needed a reset.
    pub broken: AtomicU64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct VirtioDevice<K, M> {
    pci: PciInterface,
    kind: K,
    memory: M,
    doorbell: Arc<Doorbell>,
    waker: Waker,
    has_ports: bool,
    registers: Mutex<Registers>,
    queues: Mutex<Queues>,
    /// A reset waits for the service.
    resets: AtomicBool,
    isr: AtomicU8,
    quiet: AtomicBool,
    counts: Counts,
    /// Offset of the capability by which registers are reached through configuration space.
    access: u8,
}

/// The place of a device on the bus, and its surroundings.
#[derive(Debug)]
pub struct Place {
    /// Slot and function.
    pub at: DevFn,
    /// The guest's fabric.
    pub fabric: Arc<Fabric>,
    /// Has the device's service run.
    pub waker: Waker,
    /// Whether there are doorbells among I/O ports, besides those in memory.
    pub ports: bool,
}

impl<K: Kind<M>, M: GuestMemory + Debug + Send + Sync> VirtioDevice<K, M> {
    /// A device of this kind, which works on `memory`.
    ///
    /// # Errors
    /// Never, for a kind that has as many queues as it may.
    pub fn new(kind: K, memory: M, place: Place) -> Result<Self, LayoutError> {
        let sizes = kind.queues();
        let count = u8::try_from(sizes.len()).ok().filter(|count| (1..=64).contains(count));
        let count = count.ok_or(LayoutError::Room)?;
        let vectors = count.saturating_add(1);
        let mut space = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE.saturating_add(kind.number()),
            class: kind.class(),
            revision: 1,
            subsystem_vendor: VENDOR,
            subsystem: 0x40_u16.saturating_add(kind.number()),
        });
        let port_bytes = (4 * u32::from(count)).next_power_of_two();
        if place.ports {
            space.add_bar(PORTS, Bar::Io { size: port_bytes })?;
        }
        let memory_bar = Bar::Memory32 { size: REGISTER_BYTES, prefetchable: false };
        space.add_bar(REGISTERS, memory_bar)?;
        let bells = 4 * u32::from(count);
        let structures = [
            (structure::COMMON, REGISTERS, 0, COMMON_SIZE.low32()),
            (structure::ISR, REGISTERS, place::ISR.low32(), 4),
        ];
        for (number, bar, offset, length) in structures {
            add_structure(&mut space, number, bar, (offset, length), &[])?;
        }
        // The first one is the one that Linux takes: ports cost less.
        let multiplier = 4u32.to_le_bytes();
        if place.ports {
            add_structure(&mut space, structure::NOTIFY, PORTS, (0, bells), &multiplier)?;
        }
        let notify = (place::NOTIFY.low32(), bells);
        add_structure(&mut space, structure::NOTIFY, REGISTERS, notify, &multiplier)?;
        let device = (place::DEVICE.low32(), (place::DEVICE_END - place::DEVICE).low32());
        add_structure(&mut space, structure::DEVICE, REGISTERS, device, &[])?;
        let access = add_access(&mut space)?;
        let interrupts = Interrupts { msix: Some((TABLE, vectors)), msi: None, intx: true };
        let pci = PciInterface::new(place.at, space, interrupts, place.fabric)?;
        let offered = kind.features() | feature::TRANSPORT;
        let registers = Registers::new(offered, vectors.into(), sizes);
        let largest = sizes.iter().copied().max().unwrap_or(1);
        let queues = Queues {
            queues: vec![None; sizes.len()],
            chain: Chain::new(largest),
            features: 0,
            live: false,
        };
        Ok(Self {
            pci,
            kind,
            memory,
            doorbell: Arc::new(Doorbell::default()),
            waker: place.waker,
            has_ports: place.ports,
            registers: Mutex::new(Rank::Device, registers),
            queues: Mutex::new(Rank::Queue, queues),
            resets: AtomicBool::new(false),
            isr: AtomicU8::new(0),
            quiet: AtomicBool::new(false),
            counts: Counts::default(),
            access,
        })
    }
}

/// Adds the capability that tells where a structure is.
fn add_structure(
    space: &mut ConfigSpace,
    number: u8,
    bar: u8,
    (offset, length): (u32, u32),
    more: &[u8],
) -> Result<u8, LayoutError> {
    let bytes = 16u8.saturating_add(u8::try_from(more.len()).map_err(|_| LayoutError::Room)?);
    let mut body = vec![bytes, number, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    let fixed = vec![0; body.len()];
    space.add_capability(VENDOR_CAPABILITY, &body, &fixed)
}

/// Offsets in the capability by which registers are reached through configuration space.
mod access {
    pub(super) const BAR: u8 = 4;
    pub(super) const OFFSET: u8 = 8;
    pub(super) const LENGTH: u8 = 12;
    pub(super) const DATA: u8 = 16;
}

/// Adds that capability: the guest writes BAR, offset and length, and accesses the data.
fn add_access(space: &mut ConfigSpace) -> Result<u8, LayoutError> {
    let mut body = vec![20, structure::PCI_ACCESS];
    body.resize(18, 0);
    let mut writable = vec![0, 0, 0xff, 0, 0, 0];
    writable.resize(18, 0xff);
    space.add_capability(VENDOR_CAPABILITY, &body, &writable)
}

impl<K: Kind<M>, M: GuestMemory + Debug + Send + Sync> VirtioDevice<K, M> {
    /// The kind of device.
    pub const fn kind(&self) -> &K {
        &self.kind
    }

    /// Counts for the operator.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Has queue `queue` looked at soon.
    pub fn ring(&self, queue: u16) {
        self.mark(1u64.checked_shl(queue.into()).unwrap_or(0));
    }

    fn mark(&self, bits: u64) {
        if self.doorbell.mark(bits) {
            self.doorbell.pay();
            self.waker.wake();
        }
    }

    /// Looks after the queues that were rung, until `is_over` says that it is enough. `true`: there
    /// is more to do.
    pub fn turn(&self, mut is_over: impl FnMut() -> bool) -> bool {
        let mut turn = Turn::default();
        {
            let queues = &mut *self.queues.lock();
            if self.resets.load(Ordering::Acquire) {
                self.forget(queues);
                turn.resets = true;
            } else if !self.quiet.load(Ordering::Acquire) && queues.live {
                self.serve_all(queues, &mut is_over, &mut turn);
            }
            // Else marks stay: they are looked at when the device goes on, or the driver is set up.
        }
        if turn.resets {
            self.finish_reset();
        }
        for number in (0..64u16).filter(|n| turn.interrupts >> *n & 1 != 0) {
            let vector = self.registers.lock().vector(number);
            self.interrupt(vector, cause::QUEUE);
        }
        if turn.broken {
            self.break_down();
        }
        turn.more
    }

    /// Serves the queues that were rung.
    fn serve_all(&self, queues: &mut Queues, is_over: &mut impl FnMut() -> bool, turn: &mut Turn) {
        let rung = self.doorbell.take();
        for number in (0..64u16).filter(|n| rung >> *n & 1 != 0) {
            self.counts.kicks.fetch_add(1, Ordering::Relaxed);
            match self.serve(queues, number, is_over) {
                Ok((wanted, rest)) => {
                    turn.interrupts |= u64::from(wanted) << number;
                    if rest {
                        turn.more = true;
                        // Nobody is woken for it: the caller knows.
                        let _ = self.doorbell.mark(1 << number);
                        self.doorbell.pay();
                    }
                }
                Err(_) => {
                    queues.live = false;
                    turn.broken = true;
                    return;
                }
            }
        }
    }

    /// Serves one queue. Whether the driver wants to hear of it, and whether there is more.
    fn serve(
        &self,
        queues: &mut Queues,
        number: u16,
        is_over: &mut impl FnMut() -> bool,
    ) -> Result<(bool, bool), Broken> {
        let Queues { queues, chain, features, .. } = queues;
        let Some(queue) = queues.get_mut(usize::from(number)).and_then(Option::as_mut) else {
            return Ok((false, false));
        };
        let ring = Ring(&self.memory);
        queue.stop_notifications(&ring)?;
        let rest = loop {
            if is_over() {
                break true;
            }
            if !queue.take(&ring, chain)? {
                if queue.want_notifications(&ring)? {
                    queue.stop_notifications(&ring)?;
                    continue;
                }
                break false;
            }
            match self.kind.serve(number, &Request::new(&self.memory, chain), *features)? {
                Served::Done(written) => {
                    queue.give_back(&ring, chain.head(), written)?;
                    self.counts.requests.fetch_add(1, Ordering::Relaxed);
                }
                Served::Later => {
                    queue.put_back();
                    break false;
                }
            }
        };
        Ok((queue.publish(&ring)?, rest))
    }

    /// Sends an interrupt by MSI-X, or else by INTA#.
    fn interrupt(&self, vector: u16, cause: u8) {
        self.counts.interrupts.fetch_add(1, Ordering::Relaxed);
        self.isr.fetch_or(cause, Ordering::SeqCst);
        if self.pci.msix().is_some_and(chipset::pci::Msix::is_enabled) {
            if vector != NO_VECTOR {
                self.pci.notify(vector);
            }
        } else {
            self.pci.set_intx(true);
        }
    }

    /// The one place from which the device says that it needs a reset.
    fn break_down(&self) {
        self.counts.broken.fetch_add(1, Ordering::Relaxed);
        let (told, vector) = {
            let registers = &mut *self.registers.lock();
            (registers.needs_reset(), registers.config_vector())
        };
        if told {
            self.interrupt(vector, cause::CONFIG);
        }
    }

    /// The configuration of the device's kind has changed.
    pub fn config_changed(&self) {
        let (live, vector) = {
            let registers = &mut *self.registers.lock();
            registers.config_changed();
            (registers.is_live(), registers.config_vector())
        };
        if live {
            self.interrupt(vector, cause::CONFIG);
        }
    }

    /// Forgets the queues. Nothing is in flight, as nobody else has the lock.
    fn forget(&self, queues: &mut Queues) {
        queues.queues.fill(None);
        queues.live = false;
        queues.features = 0;
        let _ = self.doorbell.take();
    }

    /// Everything else is as after power-up, when the queues are forgotten.
    fn finish_reset(&self) {
        self.kind.reset();
        self.isr.store(0, Ordering::SeqCst);
        self.registers.lock().reset();
        self.pci.set_intx(false);
        self.resets.store(false, Ordering::Release);
    }

    /// The driver wants the device reset.
    fn begin_reset(&self) {
        self.resets.store(true, Ordering::Release);
        let forgotten = self.queues.try_lock().map(|mut queues| self.forget(&mut queues));
        match forgotten {
            Some(()) => self.finish_reset(),
            // The service is in the middle of its turn, and looks afterwards.
            None => self.waker.wake(),
        }
    }

    /// Reads the registers' BAR.
    fn read_registers(&self, offset: u64, width: Width) -> u64 {
        match offset {
            0..COMMON_SIZE => self.registers.lock().read(offset, width),
            place::ISR => {
                let isr = self.isr.swap(0, Ordering::SeqCst);
                self.pci.set_intx(false);
                isr.into()
            }
            place::DEVICE..place::DEVICE_END => {
                let features = self.registers.lock().features();
                let byte = |n: u64| self.kind.config(offset - place::DEVICE + n, features);
                (0..width.bytes() as u64).rev().fold(0, |value, n| value << 8 | u64::from(byte(n)))
            }
            _ => 0,
        }
    }

    /// Writes it.
    fn write_registers(&self, offset: u64, width: Width, value: u64) {
        match offset {
            0..COMMON_SIZE => {
                let (written, features) = {
                    let registers = &mut *self.registers.lock();
                    (registers.write(offset, width, value), registers.features())
                };
                match written {
                    Written::Nothing => {}
                    Written::Reset => self.begin_reset(),
                    Written::Enabled(number, layout) => {
                        let [events, tables] = [feature::EVENT_IDX, feature::INDIRECT_DESC]
                            .map(|bit| features & bit != 0);
                        let queue = DeviceQueue::new(layout, events, tables);
                        let queues = &mut self.queues.lock().queues;
                        if let Some(slot) = queues.get_mut(usize::from(number)) {
                            *slot = Some(queue);
                        }
                    }
                    Written::Broken => self.break_down(),
                    Written::Ready => {
                        {
                            let queues = &mut *self.queues.lock();
                            queues.features = features;
                            queues.live = true;
                        }
                        // A kick from before counts, and one that was never made.
                        let count = self.kind.queues().len();
                        let all = (0..count).fold(0, |bits, n| bits | 1u64 << (n & 63));
                        self.mark(all);
                    }
                }
            }
            place::DEVICE..place::DEVICE_END => {
                let features = self.registers.lock().features();
                self.kind.write_config(offset - place::DEVICE, width, value, features);
            }
            place::NOTIFY..place::NOTIFY_END => {
                let number = (offset - place::NOTIFY) / 4;
                if number < self.kind.queues().len() as u64 {
                    self.mark(1 << number);
                }
            }
            _ => {}
        }
    }

    /// The access that the guest has described in configuration space.
    fn described(&self) -> Option<(u8, u64, Width)> {
        let at = |offset| self.access.saturating_add(offset);
        let bar = self.pci.config_read(at(access::BAR), Width::B1).low8();
        let offset = u64::from(self.pci.config_read(at(access::OFFSET), Width::B4));
        let length = self.pci.config_read(at(access::LENGTH), Width::B4);
        let width = Width::from_bytes(usize::try_from(length).ok()?)?;
        let fits = offset.is_multiple_of(width.bytes() as u64) && width != Width::B8;
        let inside = offset < u64::from(REGISTER_BYTES);
        (fits && inside && (bar == REGISTERS || bar == PORTS && self.has_ports))
            .then_some((bar, offset, width))
    }

    fn is_access(&self, offset: u8) -> bool {
        offset.wrapping_sub(self.access.saturating_add(access::DATA)) < 4
    }
}

/// The saved state of a device, but for its interface and its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VirtioState {
    registers: RegistersState,
    /// For each queue that is enabled: next available, next used, told.
    queues: Vec<Option<[u16; 3]>>,
    isr: u8,
    /// Queues that were rung and not looked at.
    marks: u64,
}

impl Saved for VirtioState {
    const NAME: &'static str = "virtio";
    const VERSION: u16 = 1;
}

impl<K: Kind<M>, M: GuestMemory + Debug + Send + Sync> VirtioDevice<K, M> {
    fn state(&self) -> VirtioState {
        let registers = self.registers.lock().save();
        let of = |queue: &DeviceQueue| {
            let DeviceState { next_available, next_used, told } = queue.state();
            [next_available, next_used, told]
        };
        let queues = self.queues.lock();
        VirtioState {
            registers,
            queues: queues.queues.iter().map(|queue| queue.as_ref().map(of)).collect(),
            isr: self.isr.load(Ordering::SeqCst),
            marks: self.doorbell.marks(),
        }
    }

    fn put_back(&self, state: VirtioState) -> Result<(), RestoreError> {
        let VirtioState { registers, queues: saved, isr, marks } = state;
        let (layouts, features, live) = {
            let own = &mut *self.registers.lock();
            own.restore(registers)?;
            let layouts: Vec<_> = (0..).take(saved.len()).map(|n| own.layout(n)).collect();
            (layouts, own.features(), own.is_live())
        };
        let queues = &mut *self.queues.lock();
        if queues.queues.len() != saved.len() {
            return Err(RestoreError("virtio: another number of queues"));
        }
        let [events, tables] =
            [feature::EVENT_IDX, feature::INDIRECT_DESC].map(|bit| features & bit != 0);
        for ((slot, layout), saved) in queues.queues.iter_mut().zip(layouts).zip(saved) {
            *slot = match (layout, saved) {
                (Some(layout), Some([next_available, next_used, told])) => {
                    let state = DeviceState { next_available, next_used, told };
                    if next_available != next_used {
                        return Err(RestoreError("virtio: a request is in flight"));
                    }
                    Some(DeviceQueue::restored(layout, events, tables, state))
                }
                (None, None) => None,
                _ => return Err(RestoreError("virtio: a queue is not what its registers say")),
            };
        }
        queues.features = features;
        queues.live = live;
        self.isr.store(isr, Ordering::SeqCst);
        // Each queue is looked at once: what was made available meanwhile is not lost.
        let all = (0..queues.queues.len()).fold(0, |bits, n| bits | 1u64 << (n & 63));
        self.doorbell.restore(if live { all } else { marks });
        Ok(())
    }
}

impl<K: Kind<M>, M: GuestMemory + Debug + Send + Sync> BoardDevice for VirtioDevice<K, M> {
    fn config_read(&self, offset: u8, width: Width) -> u32 {
        if self.is_access(offset)
            && let Some((bar, at, described)) = self.described()
        {
            return self.read(bar, at, described, Nanos(0)).low32();
        }
        self.pci.config_read(offset, width)
    }

    fn config_write(&self, offset: u8, width: Width, value: u32) -> ConfigEffect {
        let effect = self.pci.config_write(offset, width, value);
        if self.is_access(offset)
            && let Some((bar, at, described)) = self.described()
        {
            self.write(bar, at, described, described.truncate(value.into()), Nanos(0));
        }
        effect
    }

    fn places(&self) -> [Option<BarRange>; BAR_COUNT as usize] {
        self.pci.places()
    }

    fn read(&self, bar: u8, offset: u64, width: Width, _now: Nanos) -> u64 {
        match (bar, self.pci.msix()) {
            (REGISTERS, _) => self.read_registers(offset, width),
            (TABLE, Some(msix)) => msix.read(offset, width),
            (PORTS, _) => 0,
            _ => u64::MAX,
        }
    }

    fn write(&self, bar: u8, offset: u64, width: Width, value: u64, _now: Nanos) {
        match (bar, self.pci.msix()) {
            (REGISTERS, _) => self.write_registers(offset, width, value),
            (TABLE, Some(msix)) => msix.write(offset, width, value),
            (PORTS, _) => self.write_registers(place::NOTIFY + offset, width, value),
            _ => {}
        }
    }

    fn quiesce(&self) -> Quiet {
        self.quiet.store(true, Ordering::Release);
        // A turn that has begun is over when it lets go of the queues.
        match self.queues.try_lock() {
            Some(_) => Quiet::Now,
            None => Quiet::NotYet,
        }
    }

    fn go_on(&self) {
        self.quiet.store(false, Ordering::Release);
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
        self.put_back(state)
            .map_err(|RestoreError(why)| StateError::refused(VirtioState::NAME, instance, why))
    }

    fn port_bells(&self) -> Option<PortBells> {
        self.has_ports.then(|| PortBells {
            bar: PORTS,
            first: 0,
            count: u8::try_from(self.kind.queues().len()).unwrap_or(64),
            doorbell: Arc::clone(&self.doorbell),
            waker: Arc::clone(&self.waker),
        })
    }
}
