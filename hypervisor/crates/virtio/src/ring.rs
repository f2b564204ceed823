//! A guest's memory as a queue's half accesses it.

use core::sync::atomic::{Ordering, fence};
use memory::{GuestMemory, MemoryError};
use virtqueue::RingMemory;
use x86defs::bits::Low;
use x86defs::{GuestPhysAddr, Width};

/// Memory of a guest in which rings lie. Each access is checked anew: what lies there may change.
///
/// x86 loads in order, and stores in order; only a load may come before a store that stands before
/// it, which the fence prevents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring<'a, M>(pub &'a M);

impl<M: GuestMemory> RingMemory for Ring<'_, M> {
    type Error = MemoryError;

    fn load(&self, at: u64) -> Result<u16, MemoryError> {
        let [value] = self.0.load([GuestPhysAddr::new(at)], Width::B2)?;
        fence(Ordering::Acquire);
        Ok(value.low16())
    }

    fn store(&self, at: u64, value: u16) -> Result<(), MemoryError> {
        fence(Ordering::Release);
        self.0.write(GuestPhysAddr::new(at), &value.to_le_bytes())
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], MemoryError> {
        let mut bytes = [0; N];
        self.0.read(GuestPhysAddr::new(at), &mut bytes).map(|()| bytes)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.0.write(GuestPhysAddr::new(at), bytes)
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}
