//! Decodes and executes one instruction over a small trait, [`Cpu`].
//!
//! It serves accesses to device memory ([`step`]), string I/O ([`string_io`]),
//! and CPUs that do not tell how long an intercepted instruction was or what
//! its operands were ([`skip`]), or that leave task switches to others ([`task_switch`]).
//!
//! A hand-made decoder serves what Linux does to devices; iced-x86 the rest, and
//! tells the vCPU when it has to ([`Cpu::decodes_generally`]). Both make the same
//! [`Instruction`], so that there is one executor. iced allocates at its first
//! decode: call [`warm_up`] once at boot.
//!
//! After a completed instruction the caller owes the guest the single-step trap
//! (RFLAGS.TF before it) and the end of an interrupt shadow, or its begin ([`Step::Shadow`]).
//!
//! SDM: "Instruction Set Reference"; APM: "General-Purpose Instruction Reference".
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

extern crate alloc;

mod address;
pub mod alu;
mod cpu;
mod decode;
mod execute;
mod instruction;
mod listing;
mod system;

pub use cpu::{
    AccessKind, Cpu, DescriptorRegister, Fault, GuestException, Mnemonic, Step, Stop, TaskCpu,
    Unsupported,
};
pub use decode::{DecodeError, Decoded, Decoder, decode, instruction_length, warm_up};
pub use execute::{Ports, Switched, TaskEntry, TaskRequest, step, string_io, task_switch};
pub use instruction::{
    AluOp, BitOp, Condition, ControlOp, DescriptorOp, FieldOp, Instruction, MAX_INSTRUCTION,
    MemoryOperand, Op, Operand, Register, Repeat, ScanOp, ShiftOp, StringOp, VectorMove, VectorOp,
    VectorSize,
};
pub use listing::disassemble;
pub use system::{SkipError, SystemInstruction, SystemOp, decode_system, read_operand, skip};
