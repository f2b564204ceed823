//! Waking services.

use alloc::sync::Arc;
use core::fmt::Debug;

/// Somebody who waits for work.
pub trait Wake: Debug + Send + Sync {
    /// There is something to do. Anybody may say so, from any CPU, as often as they like; it never
    /// waits.
    fn wake(&self);
}

/// What its holder may know of the one that it wakes.
pub type Waker = Arc<dyn Wake>;
