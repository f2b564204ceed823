//! The hot path: exits that are served with the guest's registers where the assembly left them,
//! and the state that is kept for it.

pub mod cpuid;
pub mod exit;
pub mod timer;
