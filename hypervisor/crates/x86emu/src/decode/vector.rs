//! From an instruction of MMX, SSE or AVX to a move, where it is one.

use super::operands::memory_or_string;
use crate::instruction::{Op, Operand, VectorMove, VectorOp, VectorSize};
use iced_x86::{EncodingKind, Mnemonic, OpKind, Register};
use x86defs::control::CpuMode;
use x86defs::{Low, Width};

/// The move, its destination and its source; `None` for everything else.
pub(super) fn decode(
    found: &iced_x86::Instruction,
    mode: CpuMode,
) -> Option<(Op, Operand, Operand)> {
    let count = found.op_count();
    let place = (0..count).find(|index| {
        matches!(
            found.op_kind(*index),
            OpKind::Memory | OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI
        )
    })?;
    let memory = || memory_or_string(found, mode).map(Operand::Memory);
    let vex = found.encoding() == EncodingKind::VEX;
    if matches!(
        found.mnemonic(),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr | Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr
    ) {
        let moved = VectorMove { op: VectorOp::Mxcsr, size: VectorSize::Xmm, vex };
        let loads = matches!(found.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr);
        let control = Operand::Vector(0);
        let (to, from) = if loads { (control, memory()?) } else { (memory()?, control) };
        return Some((Op::Vector(moved), to, from));
    }
    let loads = place != 0;
    let register = match found.mnemonic() {
        Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq
            if !loads =>
        {
            found.op_register(2)
        }
        _ if loads => found.op_register(0),
        _ => found.op_register(1),
    };
    let size = size_of(register)?;
    let op = operation(found, place, size)?;
    let number = Operand::Vector(register.number().low8());
    let (to, from) = if loads { (number, memory()?) } else { (memory()?, number) };
    Some((Op::Vector(VectorMove { op, size, vex }), to, from))
}

fn size_of(register: Register) -> Option<VectorSize> {
    if register.is_mm() {
        Some(VectorSize::Mmx)
    } else if register.is_xmm() {
        Some(VectorSize::Xmm)
    } else if register.is_ymm() {
        Some(VectorSize::Ymm)
    } else {
        None
    }
}

fn operation(found: &iced_x86::Instruction, place: u32, size: VectorSize) -> Option<VectorOp> {
    use Mnemonic as M;
    let loads = place != 0;
    let register = |index: u32| found.op_register(index).number().low8();
    // The part that is not loaded is that of the register before the memory.
    let kept = place.checked_sub(1).map(register);
    let constant = found.try_immediate(found.op_count().checked_sub(1)?).map_or(0, Low::low8);
    let element = |bytes: u8, index: u8, keep: Option<u8>| {
        if loads {
            VectorOp::Insert { bytes, index, keep, clear: 0 }
        } else {
            VectorOp::Extract { bytes, index }
        }
    };
    // A register's elements of this size are as many as the constant can choose from.
    let places = |bytes: u8| {
        let all: u8 = if size == VectorSize::Mmx { 7 } else { 15 };
        constant & all >> bytes.trailing_zeros()
    };
    Some(match found.mnemonic() {
        M::Movd | M::Vmovd | M::Movss | M::Vmovss | M::Movntss => element(4, 0, None),
        M::Movq | M::Vmovq | M::Movsd | M::Vmovsd | M::Movntsd => element(8, 0, None),
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => element(8, 0, kept),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => element(8, 1, kept),
        M::Pinsrb | M::Vpinsrb | M::Pextrb | M::Vpextrb => element(1, places(1), kept),
        M::Pinsrw | M::Vpinsrw | M::Pextrw | M::Vpextrw => element(2, places(2), kept),
        M::Pinsrd | M::Vpinsrd | M::Pextrd | M::Vpextrd | M::Extractps | M::Vextractps => {
            element(4, places(4), kept)
        }
        M::Pinsrq | M::Vpinsrq | M::Pextrq | M::Vpextrq => element(8, places(8), kept),
        M::Insertps | M::Vinsertps => VectorOp::Insert {
            bytes: 4,
            index: constant >> 4 & 3,
            keep: kept,
            clear: constant & 15,
        },
        M::Vinsertf128 | M::Vinserti128 | M::Vextractf128 | M::Vextracti128 => {
            element(16, constant & 1, kept)
        }
        M::Vpbroadcastb => VectorOp::Broadcast(1),
        M::Vpbroadcastw => VectorOp::Broadcast(2),
        M::Vbroadcastss | M::Vpbroadcastd => VectorOp::Broadcast(4),
        M::Vbroadcastsd | M::Vpbroadcastq => VectorOp::Broadcast(8),
        M::Vbroadcastf128 | M::Vbroadcasti128 => VectorOp::Broadcast(16),
        M::Movddup | M::Vmovddup => VectorOp::Duplicate { bytes: 8, high: false },
        M::Movsldup | M::Vmovsldup => VectorOp::Duplicate { bytes: 4, high: false },
        M::Movshdup | M::Vmovshdup => VectorOp::Duplicate { bytes: 4, high: true },
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => {
            VectorOp::Masked { bytes: 1, mask: register(2) }
        }
        M::Vmaskmovps | M::Vpmaskmovd => VectorOp::Masked { bytes: 4, mask: register(1) },
        M::Vmaskmovpd | M::Vpmaskmovq => VectorOp::Masked { bytes: 8, mask: register(1) },
        _ => return whole(found.mnemonic()).or_else(|| widen(found.mnemonic())),
    })
}

/// Moves of a whole register.
fn whole(mnemonic: Mnemonic) -> Option<VectorOp> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movaps
        | M::Movapd
        | M::Movdqa
        | M::Movntdq
        | M::Movntps
        | M::Movntpd
        | M::Movntdqa
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqa
        | M::Vmovntdq
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdqa => VectorOp::Whole { aligned: true },
        M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Movntq
        | M::Vmovups
        | M::Vmovupd
        | M::Vmovdqu
        | M::Vlddqu => VectorOp::Whole { aligned: false },
        _ => return None,
    })
}

/// PMOVZX and PMOVSX.
fn widen(mnemonic: Mnemonic) -> Option<VectorOp> {
    use Mnemonic as M;
    use Width::{B1, B2, B4, B8};
    let (from, to, signed) = match mnemonic {
        M::Pmovzxbw | M::Vpmovzxbw => (B1, B2, false),
        M::Pmovzxbd | M::Vpmovzxbd => (B1, B4, false),
        M::Pmovzxbq | M::Vpmovzxbq => (B1, B8, false),
        M::Pmovzxwd | M::Vpmovzxwd => (B2, B4, false),
        M::Pmovzxwq | M::Vpmovzxwq => (B2, B8, false),
        M::Pmovzxdq | M::Vpmovzxdq => (B4, B8, false),
        M::Pmovsxbw | M::Vpmovsxbw => (B1, B2, true),
        M::Pmovsxbd | M::Vpmovsxbd => (B1, B4, true),
        M::Pmovsxbq | M::Vpmovsxbq => (B1, B8, true),
        M::Pmovsxwd | M::Vpmovsxwd => (B2, B4, true),
        M::Pmovsxwq | M::Vpmovsxwq => (B2, B8, true),
        M::Pmovsxdq | M::Vpmovsxdq => (B4, B8, true),
        _ => return None,
    };
    Some(VectorOp::Widen { from, to, signed })
}
