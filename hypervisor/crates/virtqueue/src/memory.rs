//! Memory that a queue's halves share, as they access it.

use core::fmt::Debug;

/// The memory in which a ring lies. The other half changes it at any time.
pub trait RingMemory {
    /// The reason for which an access failed.
    type Error: Debug;

    /// The 16 bits at `at`, which is even: in one access. What is read afterwards is read after it
    /// (acquire).
    ///
    /// # Errors
    /// There is no memory.
    fn load(&self, at: u64) -> Result<u16, Self::Error>;

    /// Stores 16 bits at `at`, which is even: in one access. What was written before is there before
    /// it (release).
    ///
    /// # Errors
    /// There is no memory that may be written.
    fn store(&self, at: u64, value: u16) -> Result<(), Self::Error>;

    /// Copies the 8 or 16 bytes at `at` once.
    ///
    /// # Errors
    /// There is no memory.
    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], Self::Error>;

    /// Writes 8 or 16 bytes.
    ///
    /// # Errors
    /// There is no memory that may be written.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Stores of before are seen by the other half before anything that is loaded afterwards is read.
    fn fence(&self);
}
