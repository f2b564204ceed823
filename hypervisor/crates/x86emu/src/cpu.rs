//! [`Cpu`]: what the emulator needs of a vCPU, and what it answers.

use crate::MAX_INSTRUCTION;
use crate::decode::Decoded;
use crate::instruction::{Instruction, ScanOp};
use core::fmt;
use x86defs::control::CpuMode;
use x86defs::{
    Cr0, Cr4, DescriptorTable, Event, Exception, Gpr, Rflags, Segment, SegmentRegister,
    VectorRegister, Width, Xcr0,
};

/// A register that tells where a table of descriptors is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DescriptorRegister {
    /// GDTR.
    Gdtr,
    /// IDTR.
    Idtr,
}

/// Why data is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// A plain read.
    Read,
    /// The read of a read-modify-write: the guest must be allowed to write there
    /// too, and a fault it gets is that of a write.
    ReadForWrite,
}

/// An exception that the guest must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestException {
    /// The exception.
    pub exception: Exception,
    /// The error code, if the exception has one (never in real mode).
    pub error_code: Option<u32>,
    /// CR2, for page faults.
    pub address: Option<u64>,
}

impl GuestException {
    /// #UD.
    pub const UD: Self = Self::plain(Exception::UD);

    /// An exception without an error code.
    #[must_use]
    pub const fn plain(exception: Exception) -> Self {
        Self { exception, error_code: None, address: None }
    }

    /// An exception whose error code is zero; in real mode there is none.
    #[must_use]
    pub fn with_zero(exception: Exception, mode: CpuMode) -> Self {
        let error_code = (mode != CpuMode::Real).then_some(0);
        Self { exception, error_code, address: None }
    }

    /// #PF at `address`.
    #[must_use]
    pub const fn page_fault(address: u64, code: u32) -> Self {
        Self { exception: Exception::PF, error_code: Some(code), address: Some(address) }
    }

    /// The event to inject; CR2 is the caller's to set.
    #[must_use]
    pub const fn event(self) -> Event {
        match self.error_code {
            Some(code) => Event::exception_with_code(self.exception, code),
            None => Event::exception(self.exception),
        }
    }
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault<E> {
    /// The guest made a mistake: it gets this exception.
    Exception(GuestException),
    /// The host could not serve the access.
    Host(E),
}

impl<E> From<GuestException> for Fault<E> {
    fn from(exception: GuestException) -> Self {
        Self::Exception(exception)
    }
}

/// A vCPU. Addresses are linear: segments have been dealt with. The
/// implementor walks the guest's page tables, with its privilege level, and
/// tells RAM from devices.
pub trait Cpu {
    /// Why the host could not serve an access.
    type Error;

    /// A general register, all 64 bits.
    fn gpr(&self, gpr: Gpr) -> u64;
    /// Sets a general register, all 64 bits.
    fn set_gpr(&mut self, gpr: Gpr, value: u64);
    /// RIP.
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> Rflags;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: Rflags);
    /// A segment register with its hidden part.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Instructions that this vCPU had decoded before, if it keeps any.
    fn decoded(&mut self) -> Option<&mut Decoded> {
        None
    }
    /// The hand-made decoder does not know the instruction at RIP, or not from the bytes so far: the
    /// general one is asked. What Linux does to devices never gets here, which tests count.
    fn decodes_generally(&mut self) {}
    /// Sets a segment register with its hidden part, which was checked. The privilege level goes
    /// with SS.
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment);
    /// GDTR or IDTR.
    fn descriptor_table(&self, register: DescriptorRegister) -> DescriptorTable;
    /// Sets GDTR or IDTR.
    fn set_descriptor_table(&mut self, register: DescriptorRegister, table: DescriptorTable);
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// CR0, as the guest sees it.
    fn cr0(&self) -> Cr0;
    /// CR4, as the guest sees it.
    fn cr4(&self) -> Cr4;
    /// XCR0.
    fn xcr0(&self) -> Xcr0;
    /// A vector register; bytes that it does not have are zero. `None`: an exception of the x87
    /// waits, which an access to an MMX register would raise. The access does what that of any MMX
    /// instruction does to the x87.
    fn vector(&mut self, register: VectorRegister) -> Option<[u8; 32]>;
    /// Sets a vector register; `None` as with [`Cpu::vector`]: then it stays.
    #[must_use]
    fn set_vector(&mut self, register: VectorRegister, value: [u8; 32]) -> Option<()>;
    /// LMSW: bits 3:0 of CR0, of which PE can't be cleared.
    fn load_machine_status(&mut self, status: u16);
    /// Whether the CPU knows LZCNT or TZCNT, as `op` says.
    fn counts_zeros(&self, op: ScanOp) -> bool;
    /// The instruction that is executed next, before anything of it is.
    fn begin(&mut self, _instruction: &Instruction) {}
    /// The mode of operation.
    fn mode(&self) -> CpuMode;
    /// Whether misaligned accesses fault: CR0.AM and RFLAGS.AC set, privilege level 3.
    fn alignment_check(&self) -> bool;

    /// Reads `buffer.len()` bytes (1 to 32) of data. May cross pages.
    ///
    /// # Errors
    /// [`Fault`].
    fn read(
        &mut self,
        linear: u64,
        buffer: &mut [u8],
        kind: AccessKind,
    ) -> Result<(), Fault<Self::Error>>;

    /// Writes `data` (1 to 32 bytes), all of it or nothing: where it crosses
    /// pages, both must be translated before the first byte is written.
    ///
    /// # Errors
    /// [`Fault`]; then nothing was written.
    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Fault<Self::Error>>;

    /// Reads `buffer.len()` bytes (1 to 16) of a descriptor table, as the CPU itself does: with
    /// the rights of a supervisor.
    ///
    /// # Errors
    /// [`Fault`].
    fn read_system(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), Fault<Self::Error>>;

    /// As [`Cpu::write`], to a descriptor table.
    ///
    /// # Errors
    /// [`Fault`]; then nothing was written.
    fn write_system(&mut self, linear: u64, data: &[u8]) -> Result<(), Fault<Self::Error>>;

    /// Fails where [`Cpu::write`] of `len` bytes would, and writes nothing. Asked
    /// before a read that has side effects.
    ///
    /// # Errors
    /// [`Fault`].
    fn probe_write(&mut self, linear: u64, len: usize) -> Result<(), Fault<Self::Error>>;

    /// Compares `width` bytes with `current` and, where equal, replaces them by
    /// `new`, in one atomic step as other vCPUs see it; returns what was there.
    /// For a device, a plain write with `current` as the answer will do. An
    /// operand that crosses pages needs only be atomic as far as the host can.
    ///
    /// # Errors
    /// [`Fault`].
    fn compare_exchange(
        &mut self,
        linear: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Fault<Self::Error>>;

    /// As [`Cpu::compare_exchange`], of 16 bytes, which are aligned.
    ///
    /// # Errors
    /// [`Fault`].
    fn compare_exchange16(
        &mut self,
        linear: u64,
        current: u128,
        new: u128,
    ) -> Result<u128, Fault<Self::Error>>;

    /// Fetches code: fills `buffer` from its start as far as the first page
    /// that can't be fetched, and returns how many bytes that were, at least one.
    ///
    /// # Errors
    /// [`Fault`] where not even the first byte can be fetched.
    fn fetch(&mut self, linear: u64, buffer: &mut [u8]) -> Result<usize, Fault<Self::Error>>;
}

/// Needs of a task switch beyond [`Cpu`].
pub trait TaskCpu: Cpu {
    /// Fails where [`Cpu::write_system`] of `len` bytes (1 to 32) would, and writes nothing.
    ///
    /// # Errors
    /// [`Fault`].
    fn probe_system(&mut self, linear: u64, len: usize) -> Result<(), Fault<Self::Error>>;

    /// Sets CR3, with all that its load implies: cached translations are forgotten, and PAE paging's
    /// page-directory pointers are loaded. `false` where one of these is malformed: then CR3 stays.
    ///
    /// # Errors
    /// [`Fault`].
    fn load_cr3(&mut self, cr3: u64) -> Result<bool, Fault<Self::Error>>;

    /// CS and RFLAGS are the new task's: what was derived from the old ones, as the mode, is not
    /// true any more.
    fn changed_mode(&mut self);
}

/// Result of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Step {
    /// The instruction is complete and RIP behind it.
    Done,
    /// The same, and no interrupt or trap comes before the next instruction is complete too: SS
    /// was loaded.
    Shadow,
    /// A part of a repeated string instruction, or a contended LOCK: RIP stays,
    /// registers tell how far it came. Look for interrupts, then run the guest
    /// or call again.
    Again,
}

/// The name of an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mnemonic(pub(crate) iced_x86::Mnemonic);

impl fmt::Debug for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An instruction that the emulator does not execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Bytes of the instruction; those beyond `length` are zero.
    pub bytes: [u8; MAX_INSTRUCTION],
    /// Length of the instruction in bytes.
    pub length: u8,
    /// Name of the instruction; `INVALID` if only the encoding space is known (VEX, EVEX, XOP).
    pub mnemonic: Mnemonic,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.mnemonic)?;
        for (i, byte) in self.bytes.iter().take(usize::from(self.length)).enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { " " })?;
        }
        write!(f, ")")
    }
}

/// Why an instruction was not executed. RIP still points to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop<E> {
    /// The guest gets this exception.
    Exception(GuestException),
    /// The emulator does not know the instruction.
    Unsupported(Unsupported),
    /// The host could not serve an access.
    Host(E),
}

impl<E> From<Fault<E>> for Stop<E> {
    fn from(fault: Fault<E>) -> Self {
        match fault {
            Fault::Exception(exception) => Self::Exception(exception),
            Fault::Host(error) => Self::Host(error),
        }
    }
}

impl<E> From<GuestException> for Stop<E> {
    fn from(exception: GuestException) -> Self {
        Self::Exception(exception)
    }
}
