//! Waking services.

use alloc::sync::Arc;
use core::fmt::Debug;

/// Somebody who waits for work.
pub trait Wake: Debug + Send + Sync {
    /// There is something to do. Anybody may say so, from any CPU, as often as they like; it never
    /// waits.
    fn wake(&self);
}

/// A handle that wakes somebody, and tells its holder nothing else of them.
pub type Waker = Arc<dyn Wake>;
