//! [`Instruction`]: what both decoders make and the executor runs.

use x86defs::{Gpr, Rflags, SegmentRegister, Width};

/// The longest instruction, in bytes.
pub const MAX_INSTRUCTION: usize = 15;

/// A general register as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Register {
    /// The general register.
    pub gpr: Gpr,
    /// The operand is bits 15:8 of the register: AH, CH, DH or BH.
    pub high: bool,
}

/// An operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryOperand {
    /// The segment, overrides applied.
    pub segment: SegmentRegister,
    /// The base register.
    pub base: Option<Gpr>,
    /// The index register.
    pub index: Option<Gpr>,
    /// log2 of the index's factor.
    pub scale: u8,
    /// The displacement, sign-extended; with RIP-relative addressing the whole address.
    pub displacement: u64,
    /// The address size: two, four or eight bytes.
    pub address_width: Width,
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// No operand.
    None,
    /// A general register.
    Register(Register),
    /// Memory.
    Memory(MemoryOperand),
    /// A constant, cut to the operand's width. Of a branch: where it goes.
    Immediate(u64),
    /// The selector of a segment register.
    Segment(SegmentRegister),
    /// A vector register of the size that [`VectorMove::size`] tells.
    Vector(u8),
}

/// Arithmetic with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AluOp {
    /// ADD.
    Add,
    /// OR.
    Or,
    /// ADC.
    Adc,
    /// SBB.
    Sbb,
    /// AND.
    And,
    /// SUB.
    Sub,
    /// XOR.
    Xor,
    /// CMP: writes flags only.
    Cmp,
    /// TEST: writes flags only.
    Test,
}

/// Shifts and rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShiftOp {
    /// ROL.
    Rol,
    /// ROR.
    Ror,
    /// RCL.
    Rcl,
    /// RCR.
    Rcr,
    /// SHL and SAL.
    Shl,
    /// SHR.
    Shr,
    /// SAR.
    Sar,
}

/// Bit tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BitOp {
    /// BT.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

/// String instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StringOp {
    /// MOVS.
    Movs,
    /// STOS.
    Stos,
    /// LODS.
    Lods,
    /// SCAS.
    Scas,
    /// CMPS.
    Cmps,
    /// INS.
    Ins,
    /// OUTS.
    Outs,
}

/// Counts of bits and searches for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScanOp {
    /// BSF: the lowest bit that is set.
    Forward,
    /// BSR: the highest bit that is set.
    Reverse,
    /// TZCNT; BSF on a CPU that does not have it.
    TrailingZeros,
    /// LZCNT; BSR on a CPU that does not have it.
    LeadingZeros,
    /// POPCNT.
    Ones,
}

/// Operations of BMI1 and BMI2, most of which take a second register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldOp {
    /// ANDN: the source and the complement of the register.
    AndNot,
    /// BEXTR: the register tells which bits.
    Extract,
    /// BZHI: the register tells from which bit on.
    ZeroHigh,
    /// BLSI.
    LowestIsolated,
    /// BLSMSK.
    LowestMask,
    /// BLSR.
    LowestReset,
    /// PDEP: the source is the mask.
    Deposit,
    /// PEXT: the source is the mask.
    Gather,
    /// SHLX.
    Shl,
    /// SHRX.
    Shr,
    /// SARX.
    Sar,
}

/// Operations that go on elsewhere or use the stack in their own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ControlOp {
    /// CALL, near.
    Call,
    /// JMP, near.
    Jump,
    /// RET, near, which drops this many bytes more.
    Return(u16),
    /// ENTER of a frame of these bytes, with this many pointers to outer frames.
    Enter(u16, u8),
    /// LEAVE.
    Leave,
    /// PUSHA.
    PushAll,
    /// POPA.
    PopAll,
    /// PUSHF.
    PushFlags,
    /// POPF.
    PopFlags,
}

/// Operations on selectors, descriptors and the registers that hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DescriptorOp {
    /// MOV to a segment register: the destination.
    Load(SegmentRegister),
    /// POP of a segment register.
    Pop(SegmentRegister),
    /// LDS and its kin: an offset into the destination, behind it a selector.
    LoadFar(SegmentRegister),
    /// SLDT.
    StoreLdt,
    /// LLDT.
    LoadLdt,
    /// STR.
    StoreTask,
    /// LTR.
    LoadTask,
    /// SGDT.
    StoreGdt,
    /// LGDT.
    LoadGdt,
    /// SIDT.
    StoreIdt,
    /// LIDT.
    LoadIdt,
    /// VERR.
    VerifyRead,
    /// VERW.
    VerifyWrite,
    /// LAR.
    AccessRights,
    /// LSL.
    Limit,
    /// ARPL.
    AdjustLevel,
    /// SMSW.
    StoreMachineStatus,
    /// LMSW.
    LoadMachineStatus,
}

/// The size of a vector register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorSize {
    /// MMX: eight bytes.
    Mmx,
    /// XMM: 16 bytes.
    Xmm,
    /// YMM: 32 bytes.
    Ymm,
}

/// Moves between memory and a vector register. Elements are numbered from the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorOp {
    /// All of the register; where `aligned`, from or to a multiple of its size only.
    Whole {
        /// #GP at any other address.
        aligned: bool,
    },
    /// An element in memory goes into the register; the other elements are those of register
    /// `keep`, or zero.
    Insert {
        /// Bytes of an element.
        bytes: u8,
        /// Number of the element.
        index: u8,
        /// The register that has the others.
        keep: Option<u8>,
        /// Elements of four bytes that are cleared thereafter, a bit for each (INSERTPS).
        clear: u8,
    },
    /// An element of the register goes into memory.
    Extract {
        /// Bytes of an element.
        bytes: u8,
        /// Number of the element.
        index: u8,
    },
    /// All elements of the register become the one in memory, of this many bytes.
    Broadcast(u8),
    /// In each pair of elements of so many bytes both become the higher or the lower one.
    Duplicate {
        /// Bytes of an element.
        bytes: u8,
        /// The higher one.
        high: bool,
    },
    /// Elements of the register, from narrower ones in memory.
    Widen {
        /// Width in memory.
        from: Width,
        /// Width in the register.
        to: Width,
        /// With their signs.
        signed: bool,
    },
    /// Elements of this many bytes whose highest bit is set in register `mask`; when loaded, the
    /// others become zero.
    Masked {
        /// Bytes of an element.
        bytes: u8,
        /// The register with the bits.
        mask: u8,
    },
    /// MXCSR.
    Mxcsr,
}

/// How a vector is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorMove {
    /// The elements.
    pub op: VectorOp,
    /// The size of the registers.
    pub size: VectorSize,
    /// The encoding is VEX: AVX must be enabled, and what is above a register is cleared.
    pub vex: bool,
}

/// A repeat prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repeat {
    /// No repeat prefix.
    Once,
    /// F3: REP, REPE.
    WhileEqual,
    /// F2: REPNE; as good as REP where nothing is compared.
    WhileNotEqual,
}

/// A condition of CMOVcc and SETcc, by its number in encodings (0 is O, 15 is G).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Condition(pub u8);

impl Condition {
    /// Whether the condition holds (SDM: "EFLAGS Condition Codes").
    pub(crate) fn holds(self, flags: Rflags) -> bool {
        let less = flags.contains(Rflags::SF) != flags.contains(Rflags::OF);
        let positive = match self.0 >> 1 & 7 {
            0 => flags.contains(Rflags::OF),
            1 => flags.contains(Rflags::CF),
            2 => flags.contains(Rflags::ZF),
            3 => flags.intersects(Rflags::CF | Rflags::ZF),
            4 => flags.contains(Rflags::SF),
            5 => flags.contains(Rflags::PF),
            6 => less,
            _ => less || flags.contains(Rflags::ZF),
        };
        positive != (self.0 & 1 != 0)
    }
}

/// Operation of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// MOV, MOVNTI.
    Mov,
    /// MOVZX from a source of this width.
    MoveZeroExtend(Width),
    /// MOVSX and MOVSXD from a source of this width.
    MoveSignExtend(Width),
    /// MOVBE.
    MoveBigEndian,
    /// CMOVcc.
    MoveIf(Condition),
    /// SETcc.
    SetIf(Condition),
    /// Arithmetic with two operands.
    Alu(AluOp),
    /// NOT.
    Not,
    /// NEG.
    Neg,
    /// INC.
    Inc,
    /// DEC.
    Dec,
    /// Shifts and rotations.
    Shift(ShiftOp),
    /// XCHG.
    Exchange,
    /// CMPXCHG.
    CompareExchange,
    /// CMPXCHG8B (width B4) and CMPXCHG16B (width B8): a pair of operands of the width.
    CompareExchangePair,
    /// XADD.
    ExchangeAdd,
    /// Bit tests.
    Bit(BitOp),
    /// SHLD (to the left) and SHRD by a constant or, with none, by CL.
    DoubleShift {
        /// The bits move towards the highest.
        left: bool,
        /// The constant.
        count: Option<u8>,
    },
    /// MUL and IMUL of one operand, with the accumulator.
    Multiply {
        /// IMUL.
        signed: bool,
    },
    /// IMUL of two operands, or of three, the last of which is this.
    MultiplyLow(Option<i32>),
    /// MULX: the lower half of the product goes into this register.
    MultiplyWide(Gpr),
    /// DIV and IDIV.
    Divide {
        /// IDIV.
        signed: bool,
    },
    /// BSF and its kin.
    Scan(ScanOp),
    /// BMI1 and BMI2, with the register that is a third operand.
    Field(FieldOp, Gpr),
    /// RORX by a constant.
    RotateCopy(u8),
    /// ADCX, and with `overflow` ADOX, whose carry is OF.
    AddCarry {
        /// ADOX.
        overflow: bool,
    },
    /// CRC32 of a source of this width.
    Crc32(Width),
    /// XLAT: AL counts from the source.
    Translate,
    /// BOUND.
    Bounds,
    /// MOVDIR64B.
    Move64,
    /// Branches and frames.
    Control(ControlOp),
    /// Selectors and descriptors.
    Descriptor(DescriptorOp),
    /// Vectors.
    Vector(VectorMove),
    /// PUSH.
    Push,
    /// POP.
    Pop,
    /// String instructions. The operand [`Instruction::source`] is the memory at
    /// rSI, [`Instruction::destination`] that at rDI, where there are such.
    String(StringOp),
    /// Cache hints (CLFLUSH and the like, PREFETCH): nothing to do.
    Hint,
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Length in bytes, 1 to 15.
    pub length: u8,
    /// The operation.
    pub op: Op,
    /// The width of its operands (of the destination, where they differ).
    pub width: Width,
    /// The operand that is written; for comparisons the first one.
    pub destination: Operand,
    /// The other operand.
    pub source: Operand,
    /// A LOCK prefix, where it is allowed.
    pub lock: bool,
    /// A repeat prefix of a string instruction.
    pub repeat: Repeat,
}

impl Instruction {
    /// Whether it accesses memory at one place only.
    #[must_use]
    pub const fn has_one_place(&self) -> bool {
        !matches!(
            self.op,
            Op::String(_) | Op::Push | Op::Pop | Op::Move64 | Op::Control(_) | Op::Descriptor(_)
        )
    }
}
