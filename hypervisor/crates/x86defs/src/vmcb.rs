//! VMCB (placeholder)
