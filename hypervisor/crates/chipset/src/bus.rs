//! The bus of devices whose places the guest chooses: which device answers at a port or an address
//! of memory now, and where its doorbells are.
//!
//! The table of places is searched under its lock. A vCPU's hot handler waits for no lock: it has
//! a copy of what it has to know ([`HotPorts`]), which it uses only while the bus has not changed
//! since; otherwise the general code serves the access, and the copy is renewed before the next
//! entry. So no doorbell rings at a place that it has left, and no vCPU need be told that one
//! moved.

use crate::pci::{BoardDevice, Placed, PortBells};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use config::layout::PCI_SLOTS;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::pci::{BarRange, DevFn};
use locks::{Rank, RwLock};
use x86defs::time::Nanos;
use x86defs::{GuestPhysAddr, Low, Width};

/// A device of the bus.
#[derive(Debug)]
struct Member {
    place: DevFn,
    device: Arc<dyn BoardDevice>,
    bells: Option<PortBells>,
}

/// A BAR at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    /// The device, by its number among the members.
    member: usize,
    bar: u8,
}

/// Places of all BARs. Where two overlap, the first one answers.
#[derive(Debug, Default)]
struct Table {
    ports: Vec<Range>,
    memory: Vec<Range>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Bus {
    members: Box<[Member]>,
    table: RwLock<Table>,
    /// Counts changes of the table.
    generation: AtomicU64,
}

/// An access that a device answers.
struct Found<'a> {
    member: &'a Member,
    bar: u8,
    offset: u64,
}

impl Bus {
    /// A bus of these devices, none of which answers anywhere yet; one for each slot at the most.
    pub(crate) fn new(devices: &[Placed]) -> Self {
        let member = |(place, device): &Placed| Member {
            place: *place,
            device: Arc::clone(device),
            bells: device.port_bells(),
        };
        Self {
            members: devices.iter().map(member).collect(),
            table: RwLock::new(Rank::Bus, Table::default()),
            generation: AtomicU64::new(0),
        }
    }

    /// The devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &dyn BoardDevice> {
        self.members.iter().map(|member| &*member.device)
    }

    /// The devices have been restored, and may answer elsewhere now.
    pub(crate) fn restored(&self) {
        for member in &self.members {
            if member.device.places().iter().any(Option::is_some) {
                self.moved(member.place);
            }
        }
    }

    /// How often the places have changed.
    #[inline(always)]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Nobody has answered anywhere so far: the table need not be searched.
    #[inline(always)]
    fn is_bare(&self) -> bool {
        self.generation() == 0
    }

    /// The places of the device at `place` have changed. One caller at a time.
    pub(crate) fn moved(&self, place: DevFn) {
        let Some(member) = self.members.iter().position(|member| member.place == place) else {
            return;
        };
        let places = self.members.get(member).map(|found| found.device.places());
        let mut table = self.table.write();
        let Table { ports, memory } = &mut *table;
        ports.retain(|range| range.member != member);
        memory.retain(|range| range.member != member);
        for (bar, place) in (0..).zip(places.into_iter().flatten()) {
            let (ranges, first, size) = match place {
                Some(BarRange::Io { base, size }) => (&mut *ports, u64::from(base), size.into()),
                Some(BarRange::Memory { base, size }) => (&mut *memory, base, size),
                None => continue,
            };
            ranges.push(Range { first, last: first.saturating_add(size - 1), member, bar });
        }
        // The first device answers, and of that the first BAR, whoever came last.
        ports.sort_by_key(|range| (range.member, range.bar));
        memory.sort_by_key(|range| (range.member, range.bar));
        // Whoever sees what the guest does next sees this too.
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn find(&self, ranges: &[Range], at: u64, width: Width) -> Option<Found<'_>> {
        let end = at.checked_add(width.bytes() as u64 - 1)?;
        let range = ranges.iter().find(|range| (range.first..=range.last).contains(&at))?;
        // An access must not reach over the BAR's end.
        (end <= range.last).then_some(())?;
        let member = self.members.get(range.member)?;
        Some(Found { member, bar: range.bar, offset: at - range.first })
    }

    fn port(&self, port: u16, width: Width) -> Option<Found<'_>> {
        if self.is_bare() {
            return None;
        }
        self.find(&self.table.read().ports, port.into(), width)
    }

    fn memory(&self, gpa: GuestPhysAddr, width: Width) -> Option<Found<'_>> {
        if self.is_bare() {
            return None;
        }
        self.find(&self.table.read().memory, gpa.as_u64(), width)
    }

    /// IN from `port`; `None` if nobody answers.
    pub(crate) fn port_read(&self, port: u16, width: Width, now: Nanos) -> Option<u32> {
        let found = self.port(port, width)?;
        let value = found.member.device.read(found.bar, found.offset, width, now);
        Some(width.truncate(value).low32())
    }

    /// OUT to `port`; `None` if nobody answers.
    pub(crate) fn port_write(&self, port: u16, width: Width, value: u32, now: Nanos) -> Option<()> {
        let Found { member, bar, offset } = self.port(port, width)?;
        if let Some(bells) = &member.bells
            && bells.bar == bar
            && let Some(bits) = bells.rung_at(offset)
        {
            if bells.doorbell.mark(bits) {
                bells.doorbell.pay();
                bells.waker.wake();
            }
            return Some(());
        }
        member.device.write(bar, offset, width, value.into(), now);
        Some(())
    }

    /// Reads memory at `gpa`; `None` if nobody answers.
    pub(crate) fn memory_read(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        now: impl FnOnce() -> Nanos,
    ) -> Option<u64> {
        let found = self.memory(gpa, width)?;
        let value = found.member.device.read(found.bar, found.offset, width, now());
        Some(width.truncate(value))
    }

    /// Writes memory at `gpa`; `None` if nobody answers.
    pub(crate) fn memory_write(
        &self,
        gpa: GuestPhysAddr,
        width: Width,
        value: u64,
        now: impl FnOnce() -> Nanos,
    ) -> Option<()> {
        let Found { member, bar, offset } = self.memory(gpa, width)?;
        member.device.write(bar, offset, width, value, now());
        Some(())
    }

    /// Renews `ports` if the places have changed since. `is_fixed` says whether a fixed device of the
    /// PC has a port.
    #[inline(always)]
    pub(crate) fn follow(&self, ports: &mut HotPorts, is_fixed: fn(u16) -> bool) {
        if ports.generation != self.generation() {
            self.renew(ports, is_fixed);
        }
    }

    #[inline(never)]
    fn renew(&self, hot: &mut HotPorts, is_fixed: fn(u16) -> bool) {
        let table = self.table.read();
        hot.generation = self.generation();
        hot.first = table.ports.iter().map(|range| range.first).min();
        hot.bells.clear();
        for range in &table.ports {
            let member = self.members.get(range.member);
            let Some(ports) = member.and_then(|member| member.bells.as_ref()) else { continue };
            let Some(first) = u16::try_from(range.first + u64::from(ports.first)).ok() else {
                continue;
            };
            let last = first.saturating_add(u16::from(ports.count.saturating_sub(1)) * 4);
            // BARs may overlap, or lie on a fixed device of the PC, which goes before: then the search
            // is left to the general code.
            let alone = |port: u16| {
                let port_of = |other: &&Range| (other.first..=other.last).contains(&port.into());
                !is_fixed(port) && table.ports.iter().find(port_of) == Some(range)
            };
            if ports.bar == range.bar
                && u64::from(last) <= range.last
                && (first..=last).all(alone)
                && let Ok(member) = u8::try_from(range.member)
            {
                // There are as many devices at the most as there is room for.
                let _ = hot.bells.try_push(HotBell { first, last, member });
            }
        }
    }

    /// Marks bit `bits` of the doorbell of device `member`. Whether the caller owes it the wake-up.
    #[inline]
    pub(crate) fn mark(&self, member: u8, bits: u64) -> bool {
        let bells = self.members.get(usize::from(member)).and_then(|found| found.bells.as_ref());
        bells.is_some_and(|bells| bells.doorbell.mark(bits))
    }

    /// Wakes the devices to which a wake-up is owed, a bit for each.
    pub(crate) fn pay(&self, owed: u64) {
        for (number, member) in self.members.iter().enumerate() {
            if owed >> number & 1 != 0
                && let Some(bells) = &member.bells
            {
                bells.doorbell.pay();
                bells.waker.wake();
            }
        }
    }
}

impl PortBells {
    /// The bit that a write at `offset` of the BAR rings, if there is a doorbell.
    fn rung_at(&self, offset: u64) -> Option<u64> {
        let from = offset.checked_sub(self.first.into())?;
        let number = from / 4;
        (from.is_multiple_of(4) && number < u64::from(self.count.min(64))).then(|| 1 << number)
    }
}

/// Doorbells of one device among the I/O ports: every fourth port is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HotBell {
    first: u16,
    last: u16,
    member: u8,
}

/// A vCPU's copy of the places of BARs among the I/O ports: what its hot handler has to know.
#[derive(Clone, Debug, Default)]
pub struct HotPorts {
    generation: u64,
    /// The lowest port of a BAR, if there is one.
    first: Option<u64>,
    bells: ArrayVec<HotBell, { PCI_SLOTS as usize }>,
}

impl HotPorts {
    /// The device whose doorbell is at `port`, by its number, and the bit that it rings; `None` if
    /// there is none, or `generation` is not that of the copy.
    #[inline]
    #[must_use]
    pub(crate) fn find(&self, port: u16, generation: u64) -> Option<(u8, u64)> {
        let bell = self.bells.iter().find(|bell| (bell.first..=bell.last).contains(&port))?;
        let from = port - bell.first;
        (from.is_multiple_of(4) && self.generation == generation)
            .then(|| (bell.member, 1 << (from / 4)))
    }

    /// Whether `port` lies below all BARs, and `generation` is that of the copy.
    #[inline]
    #[must_use]
    pub(crate) fn is_below(&self, port: u16, generation: u64) -> bool {
        self.generation == generation && self.first.is_none_or(|first| u64::from(port) < first)
    }
}
