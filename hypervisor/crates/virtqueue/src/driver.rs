//! The driver's half of a queue. Descriptors are written for the device and kept here, too: nothing
//! that the device may have changed is read back, but the used ring, each entry of which is checked.

use crate::chain::Segment;
use crate::layout::Layout;
use crate::memory::RingMemory;
use crate::suppress::{NO_INTERRUPT, NO_NOTIFY, passed};
use alloc::vec::Vec;
use core::fmt::Debug;
use thiserror::Error;

/// The chain goes on with the next descriptor.
const NEXT: u16 = 1;
/// The device writes the buffer.
const WRITE: u16 = 2;

/// Why a chain was not made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Full<E: Debug> {
    /// Too few descriptors are free, or the chain has none.
    #[error("no room for a chain of {0} buffers")]
    Room(usize),
    /// There is no memory where the rings should be.
    #[error("a ring lies where there is no memory: {0:?}")]
    Memory(E),
}

/// A fault of the device's, after which it must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UsedError<E: Debug> {
    /// There is no memory where the rings should be.
    #[error("a ring lies where there is no memory: {0:?}")]
    Memory(E),
    /// The device gave back more chains than it has.
    #[error("the used index is {to}, after {from}: more than was in flight")]
    Jumped {
        /// The index up to which the driver has taken chains back.
        from: u16,
        /// The index in memory.
        to: u16,
    },
    /// The device gave back a chain that it does not have.
    #[error("no chain {0} is in flight")]
    Unknown(u32),
    /// The device says that it has written more than there is room for.
    #[error("{written} bytes written to a chain {head} with room for {room}")]
    TooMuch {
        /// The chain.
        head: u16,
        /// Bytes, as the device says.
        written: u32,
        /// Bytes that it may write.
        room: u64,
    },
}

/// A chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The number that [`DriverQueue::add`] has returned.
    pub head: u16,
    /// Bytes that the device says to have written, from the first one on.
    pub written: u32,
}

/// A descriptor's place in the driver's own books.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The one behind it in its chain, or in the list of free ones.
    next: u16,
    /// For the first one of a chain in flight: how many there are, and the bytes that the device may
    /// write.
    chain: Option<(u16, u64)>,
}

/// The driver's half of a queue.
#[derive(Debug)]
pub struct DriverQueue {
    layout: Layout,
    event_index: bool,
    slots: Vec<Slot>,
    first_free: u16,
    free: u16,
    in_flight: u16,
    next_available: u16,
    /// Index up to which the device sees chains.
    published: u16,
    next_used: u16,
}

impl DriverQueue {
    /// A queue that has not been used. Its rings' memory is zero.
    #[must_use]
    pub fn new(layout: Layout, event_index: bool) -> Self {
        let slot = |n: u16| Slot { next: n.wrapping_add(1), chain: None };
        Self {
            layout,
            event_index,
            slots: (0..layout.size()).map(slot).collect(),
            first_free: 0,
            free: layout.size(),
            in_flight: 0,
            next_available: 0,
            published: 0,
            next_used: 0,
        }
    }

    /// Chains that the device has.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Descriptors that are free.
    #[must_use]
    pub const fn free(&self) -> u16 {
        self.free
    }

    /// Writes a chain of buffers; the device sees it after [`publish`](Self::publish). Returns its
    /// number, by which it comes back.
    ///
    /// # Errors
    /// [`Full`]; the queue is as it was.
    pub fn add<M: RingMemory>(
        &mut self,
        memory: &M,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<u16, Full<M::Error>> {
        let count = readable.len().saturating_add(writable.len());
        let no_room = Full::Room(count);
        let Ok(descriptors) = u16::try_from(count) else { return Err(no_room) };
        if descriptors == 0 || descriptors > self.free {
            return Err(no_room);
        }
        let head = self.first_free;
        let mut number = head;
        let parts = readable.iter().map(|s| (s, 0)).chain(writable.iter().map(|s| (s, WRITE)));
        for (left, (segment, write)) in (0..descriptors).rev().zip(parts) {
            let Some(slot) = self.slots.get(usize::from(number)) else {
                return Err(Full::Room(count));
            };
            let flags = if left == 0 { write } else { write | NEXT };
            let mut bytes = [0; 16];
            let fields = segment.at.to_le_bytes().into_iter().chain(segment.len.to_le_bytes());
            let fields = fields.chain(flags.to_le_bytes()).chain(slot.next.to_le_bytes());
            bytes.iter_mut().zip(fields).for_each(|(to, byte)| *to = byte);
            memory.write(self.layout.descriptor(number), &bytes).map_err(Full::Memory)?;
            number = slot.next;
        }
        let entry = self.layout.available_entry(self.next_available);
        memory.store(entry, head).map_err(Full::Memory)?;
        let room = writable.iter().map(|segment| u64::from(segment.len)).sum();
        if let Some(slot) = self.slots.get_mut(usize::from(head)) {
            slot.chain = Some((descriptors, room));
        }
        self.first_free = number;
        self.free = self.free.wrapping_sub(descriptors);
        self.in_flight = self.in_flight.wrapping_add(1);
        self.next_available = self.next_available.wrapping_add(1);
        Ok(head)
    }

    /// Shows the device the chains that were added. Whether it wants to be notified.
    ///
    /// # Errors
    /// There is no memory where the rings should be.
    pub fn publish<M: RingMemory>(&mut self, memory: &M) -> Result<bool, M::Error> {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return Ok(false);
        }
        memory.store(self.layout.available_index(), new)?;
        self.published = new;
        // As in the device's half.
        memory.fence();
        if self.event_index {
            return Ok(passed(memory.load(self.layout.available_event())?, old, new));
        }
        Ok(memory.load(self.layout.used_flags())? & NO_NOTIFY == 0)
    }

    fn used<M: RingMemory>(&self, memory: &M) -> Result<u16, UsedError<M::Error>> {
        let to = memory.load(self.layout.used_index()).map_err(UsedError::Memory)?;
        let from = self.next_used;
        let count = to.wrapping_sub(from);
        let published = self.published.wrapping_sub(from);
        if count > published { Err(UsedError::Jumped { from, to }) } else { Ok(count) }
    }

    /// Takes a chain back that the device is done with. Its descriptors are free again.
    ///
    /// # Errors
    /// The device's fault; the queue is of no use any more.
    pub fn take_back<M: RingMemory>(
        &mut self,
        memory: &M,
    ) -> Result<Option<Done>, UsedError<M::Error>> {
        if self.used(memory)? == 0 {
            return Ok(None);
        }
        let entry = self.layout.used_entry(self.next_used);
        let [a, b, c, d, written @ ..] = memory.read::<8>(entry).map_err(UsedError::Memory)?;
        let (id, written) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(written));
        let unknown = UsedError::Unknown(id);
        let Ok(head) = u16::try_from(id) else { return Err(unknown) };
        let slot = self.slots.get_mut(usize::from(head));
        let Some((count, room)) = slot.and_then(|slot| slot.chain.take()) else {
            return Err(unknown);
        };
        if u64::from(written) > room {
            return Err(UsedError::TooMuch { head, written, room });
        }
        let mut last = head;
        for _ in 1..count {
            last = self.slots.get(usize::from(last)).map_or(last, |slot| slot.next);
        }
        if let Some(slot) = self.slots.get_mut(usize::from(last)) {
            slot.next = self.first_free;
        }
        self.first_free = head;
        self.free = self.free.wrapping_add(count);
        self.in_flight = self.in_flight.wrapping_sub(1);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Done { head, written }))
    }

    /// The device need not interrupt: the driver is about to look. With event indices nothing has
    /// to be written.
    ///
    /// # Errors
    /// There is no memory where the rings should be.
    pub fn stop_interrupts<M: RingMemory>(&self, memory: &M) -> Result<(), M::Error> {
        if self.event_index {
            return Ok(());
        }
        memory.store(self.layout.available_flags(), NO_INTERRUPT)
    }

    /// The driver has found nothing: the device is to interrupt when it gives the next chain back.
    /// Whether it has given one back already.
    ///
    /// # Errors
    /// There is no memory where the rings should be, or the device's index is wrong.
    pub fn want_interrupts<M: RingMemory>(&self, memory: &M) -> Result<bool, UsedError<M::Error>> {
        let (at, value) = if self.event_index {
            (self.layout.used_event(), self.next_used)
        } else {
            (self.layout.available_flags(), 0)
        };
        memory.store(at, value).map_err(UsedError::Memory)?;
        memory.fence();
        Ok(self.used(memory)? != 0)
    }
}
