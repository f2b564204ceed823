//! [`Vectors`]: which service each interrupt of the machine wakes.

use crate::Waker;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use locks::{Rank, RwLock};

/// The machine's interrupt vectors and whom they wake, in one table for all CPUs.
#[derive(Debug)]
pub struct Vectors {
    /// Vectors that may be given out.
    free: Range<u8>,
    /// Vectors that wake somebody, a bit each: what most looks need.
    routed: [AtomicU64; 4],
    routes: RwLock<Vec<(u8, Waker)>>,
}

impl Vectors {
    /// Nobody is woken yet. Those of `free` may be [given out](Self::give_out).
    #[must_use]
    pub const fn new(free: Range<u8>) -> Self {
        Self {
            free,
            routed: [const { AtomicU64::new(0) }; 4],
            routes: RwLock::new(Rank::Vectors, Vec::new()),
        }
    }

    /// `vector`, which the machine fixes, wakes `waker` from now on, and nobody else.
    pub fn route(&self, vector: u8, waker: Waker) {
        let mut routes = self.routes.write();
        routes.retain(|(known, _)| *known != vector);
        routes.push((vector, waker));
        self.bit(vector, true);
    }

    /// A vector that wakes `waker` from now on; `None` if all are given out.
    pub fn give_out(&self, waker: Waker) -> Option<u8> {
        let mut routes = self.routes.write();
        let vector =
            self.free.clone().find(|vector| routes.iter().all(|(known, _)| known != vector))?;
        routes.push((vector, waker));
        self.bit(vector, true);
        Some(vector)
    }

    /// `vector` wakes nobody any more: its device sends nothing.
    pub fn take_back(&self, vector: u8) {
        let mut routes = self.routes.write();
        routes.retain(|(known, _)| *known != vector);
        self.bit(vector, false);
    }

    /// Wakes whom the vectors `seen`, a bit each, are for. Whether there is anybody.
    #[inline]
    pub fn wake(&self, seen: &[u64; 4]) -> bool {
        let is_routed = |(seen, routed): (&u64, &AtomicU64)| {
            *seen != 0 && seen & routed.load(Ordering::Acquire) != 0
        };
        let any = seen.iter().zip(&self.routed).any(is_routed);
        if any {
            self.wake_each(seen);
        }
        any
    }

    #[inline(never)]
    fn wake_each(&self, seen: &[u64; 4]) {
        for (vector, waker) in &*self.routes.read() {
            let word = seen.get(usize::from(vector / 64));
            if word.is_some_and(|word| word >> (vector % 64) & 1 != 0) {
                waker.wake();
            }
        }
    }

    /// The lock of the routes is held to write.
    fn bit(&self, vector: u8, is_routed: bool) {
        let Some(word) = self.routed.get(usize::from(vector / 64)) else { return };
        let bit = 1 << (vector % 64);
        if is_routed {
            word.fetch_or(bit, Ordering::Release);
        } else {
            word.fetch_and(!bit, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Wake;
    use alloc::sync::Arc;
    use core::sync::atomic::AtomicU32;

    #[derive(Debug, Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn seen(vectors: &[u8]) -> [u64; 4] {
        let mut seen = [0; 4];
        for vector in vectors {
            seen[usize::from(vector / 64)] |= 1 << (vector % 64);
        }
        seen
    }

    #[test]
    fn each_vector_wakes_its_own() {
        let counts: [Arc<Count>; 3] = core::array::from_fn(|_| Arc::default());
        let [fixed, first, second] = counts.clone().map(|count| -> Waker { count });
        let came = || counts.each_ref().map(|count| count.0.load(Ordering::SeqCst));
        let vectors = Vectors::new(0x7f..0x81);
        vectors.route(0x24, fixed);
        assert_eq!(vectors.give_out(Arc::clone(&first)), Some(0x7f));
        assert_eq!(vectors.give_out(Arc::clone(&second)), Some(0x80));
        assert_eq!(vectors.give_out(Arc::clone(&first)), None, "all are given out");
        assert!(!vectors.wake(&seen(&[0x25, 0xf0, 0])));
        assert_eq!(came(), [0; 3]);
        assert!(vectors.wake(&seen(&[0x24, 0x80, 0xf0])));
        assert_eq!(came(), [1, 0, 1]);
        vectors.take_back(0x7f);
        assert!(!vectors.wake(&seen(&[0x7f])));
        assert_eq!(came(), [1, 0, 1]);
        assert_eq!(vectors.give_out(Arc::clone(&second)), Some(0x7f));
        vectors.route(0x24, first);
        assert!(vectors.wake(&seen(&[0x24, 0x7f])));
        assert_eq!(came(), [1, 1, 2], "the new one alone");
    }
}
