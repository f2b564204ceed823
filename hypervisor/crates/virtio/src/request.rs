//! A driver's request: bytes that a device reads from one chain of buffers and writes into it.

use memory::{GuestMemory, MemoryError};
use virtqueue::{Chain, Segment};
use x86defs::GuestPhysAddr;

/// A chain of buffers in the driver's memory.
#[derive(Debug)]
pub struct Request<'a, M> {
    memory: &'a M,
    chain: &'a Chain,
}

/// An access to a request beyond its end, or to no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The driver's buffers are shorter.
    #[error("a request that is too short")]
    Short,
    /// A buffer is not in the guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl<'a, M: GuestMemory> Request<'a, M> {
    /// The request in `chain`, whose buffers lie in `memory`.
    pub const fn new(memory: &'a M, chain: &'a Chain) -> Self {
        Self { memory, chain }
    }

    /// Bytes that the device may read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        bytes(self.chain.readable())
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable(&self) -> u64 {
        bytes(self.chain.writable())
    }

    /// Copies the bytes from `from` on of what the device may read into `buffer`, wherever buffers
    /// begin and end.
    ///
    /// # Errors
    /// [`RequestError`]: of how much was copied nothing is promised.
    pub fn read(&self, from: u64, buffer: &mut [u8]) -> Result<(), RequestError> {
        let mut rest = buffer;
        for (at, len) in pieces(self.chain.readable(), from, rest.len()) {
            let (piece, tail) =
                core::mem::take(&mut rest).split_at_mut_checked(len).ok_or(RequestError::Short)?;
            self.memory.read(at, piece)?;
            rest = tail;
        }
        if rest.is_empty() { Ok(()) } else { Err(RequestError::Short) }
    }

    /// Copies `data` to the bytes from `from` on of what the device may write.
    ///
    /// # Errors
    /// [`RequestError`]: of how much was copied nothing is promised.
    pub fn write(&self, from: u64, data: &[u8]) -> Result<(), RequestError> {
        let mut rest = data;
        for (at, len) in pieces(self.chain.writable(), from, rest.len()) {
            let (piece, tail) = rest.split_at_checked(len).ok_or(RequestError::Short)?;
            self.memory.write(at, piece)?;
            rest = tail;
        }
        if rest.is_empty() { Ok(()) } else { Err(RequestError::Short) }
    }
}

fn bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// The places in memory of `len` bytes from `from` on, as far as there are so many, and their
/// lengths.
fn pieces(
    segments: &[Segment],
    from: u64,
    len: usize,
) -> impl Iterator<Item = (GuestPhysAddr, usize)> {
    let (mut skipped, mut left) = (from, len);
    segments.iter().filter_map(move |segment| {
        let all = u64::from(segment.len);
        let skip = skipped.min(all);
        skipped = skipped.saturating_sub(skip);
        let part = usize::try_from(all.saturating_sub(skip)).unwrap_or(usize::MAX).min(left);
        left = left.saturating_sub(part);
        (part != 0).then(|| (GuestPhysAddr::new(segment.at.wrapping_add(skip)), part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Ring;
    use crate::tests::Ram;
    use alloc::sync::Arc;
    use proptest::prelude::*;
    use std::sync::Mutex;
    use std::vec;
    use std::vec::Vec;
    use virtqueue::{DeviceQueue, DriverQueue, Layout};

    /// Runs `work` on a request with buffers of these lengths, one behind the other from 0x8000 on,
    /// each followed by a byte that is not its own.
    fn with(readable: &[u32], writable: &[u32], work: impl FnOnce(&Ram, &Request<'_, Ram>)) {
        let bytes = (0..0x2_0000u32).map(|n| n.to_le_bytes()[0]).collect();
        let ram = Ram(Arc::new(Mutex::new(bytes)));
        for byte in &mut ram.0.lock().unwrap()[..0x8000] {
            *byte = 0;
        }
        let mut at = 0x8000;
        let mut place = |lens: &[u32]| -> Vec<Segment> {
            let segment = |len: &u32| {
                let segment = Segment { at, len: *len };
                at += u64::from(*len) + 1;
                segment
            };
            lens.iter().map(segment).collect()
        };
        let (readable, writable) = (place(readable), place(writable));
        let layout = Layout::new(16, 0, 0x1000, 0x2000).unwrap();
        let mut driver = DriverQueue::new(layout, false);
        driver.add(&Ring(&ram), &readable, &writable).unwrap();
        driver.publish(&Ring(&ram)).unwrap();
        let mut chain = Chain::new(16);
        assert!(DeviceQueue::new(layout, false, false).take(&Ring(&ram), &mut chain).unwrap());
        work(&ram, &Request::new(&ram, &chain));
    }

    #[test]
    fn buffers_have_no_seams() {
        with(&[1, 3, 2], &[2, 2], |ram, request| {
            assert_eq!((request.readable(), request.writable()), (6, 4));
            let mut all = [0; 6];
            request.read(0, &mut all).unwrap();
            assert_eq!(all, [0x00, 0x02, 0x03, 0x04, 0x06, 0x07]);
            let mut some = [0; 3];
            request.read(3, &mut some).unwrap();
            assert_eq!(some, [0x04, 0x06, 0x07]);
            assert_eq!(request.read(4, &mut some), Err(RequestError::Short));
            assert_eq!(request.read(100, &mut some), Err(RequestError::Short));
            request.read(6, &mut []).unwrap();
            request.write(1, &[0xaa, 0xbb]).unwrap();
            let around = ram.0.lock().unwrap()[0x8009..0x800e].to_vec();
            assert_eq!(around, [0x09, 0xaa, 0x0b, 0xbb, 0x0d]);
            assert_eq!(request.write(3, &[1, 2]), Err(RequestError::Short));
        });
    }

    proptest! {
        #[test]
        fn any_buffers(
            readable in prop::collection::vec(1u32..20, 0..8),
            writable in prop::collection::vec(1u32..20, 1..8),
            from in 0u64..100,
            len in 0usize..100,
        ) {
            with(&readable, &writable, |ram, request| {
                let own = |lens: &[u32], start: usize| -> Vec<usize> {
                    let mut at = start;
                    let mut places = vec![];
                    for len in lens {
                        places.extend(at..at + *len as usize);
                        at += *len as usize + 1;
                    }
                    places
                };
                let start = 0x8000 + readable.iter().map(|len| *len as usize + 1).sum::<usize>();
                let (reads, writes) = (own(&readable, 0x8000), own(&writable, start));
                let part = |places: &[usize]| -> Option<Vec<usize>> {
                    let from = usize::try_from(from).unwrap();
                    if len == 0 {
                        return Some(vec![]);
                    }
                    places.get(from..from + len).map(<[usize]>::to_vec)
                };
                let mut buffer = vec![0; len];
                let read = request.read(from, &mut buffer);
                match part(&reads) {
                    Some(places) => {
                        let wanted: Vec<_> = places.iter().map(|at| ram.0.lock().unwrap()[*at]).collect();
                        assert_eq!((read, buffer), (Ok(()), wanted));
                    }
                    None => assert_eq!(read, Err(RequestError::Short)),
                }
                let before = ram.0.lock().unwrap().clone();
                let data: Vec<u8> = (0..len).map(|n| !before[n % 256 + 0x8000]).collect();
                let written = request.write(from, &data);
                let changed = |at: &usize| ram.0.lock().unwrap()[*at] != before[*at];
                match part(&writes) {
                    Some(places) => {
                        assert_eq!(written, Ok(()));
                        for (at, byte) in places.iter().zip(&data) {
                            assert_eq!(ram.0.lock().unwrap()[*at], *byte);
                        }
                        let others = (0..0x1_0000).filter(|at| !places.contains(at));
                        assert_eq!(others.filter(changed).count(), 0);
                    }
                    None => {
                        assert_eq!(written, Err(RequestError::Short));
                        let others = (0..0x1_0000).filter(|at| !writes.contains(at));
                        assert_eq!(others.filter(changed).count(), 0);
                    }
                }
            });
        }
    }
}
