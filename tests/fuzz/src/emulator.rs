//! The emulator must not panic, hang, or change what it should not, whatever a
//! guest has it run; its decoders must agree.

use crate::input::Input;
use crate::machine::{CODE, Machine, READ_ONLY};
use x86defs::control::CpuMode;
use x86defs::{
    Cr0, Cr4, DescriptorTable, Gpr, Rflags, Segment, SegmentAttributes, SegmentRegister, Width,
    Xcr0,
};
use x86emu::{
    Cpu, DecodeError, Decoder, Op, Ports, Step, Stop, SystemOp, decode, decode_system,
    instruction_length, read_operand, step, string_io,
};

/// Place of the descriptor table.
const GDT: u64 = 0x2000;

/// Ports that answer with what they were last given.
struct Latch(u32);

impl Ports for Latch {
    type Error = ();

    fn port_in(&mut self, port: u16, _: Width) -> Result<u32, ()> {
        if port == 0 { Err(()) } else { Ok(self.0) }
    }

    fn port_out(&mut self, _: u16, _: Width, value: u32) -> Result<(), ()> {
        self.0 = value;
        Ok(())
    }
}

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mode = match input.byte() % 7 {
        0 => CpuMode::Real,
        1 => CpuMode::Virtual8086,
        2 => CpuMode::Protected16,
        3 => CpuMode::Protected32,
        4 => CpuMode::Compat16,
        5 => CpuMode::Compat32,
        _ => CpuMode::Long64,
    };
    let code: [u8; 15] = input.take();
    decoders_agree(&code, mode);

    let mut machine = Machine::new(mode, &code);
    let choices = input.byte();
    machine.alignment_check = choices & 1 != 0;
    if choices & 2 != 0 {
        machine.rip = READ_ONLY + 0xff8;
        let at = machine.rip as usize;
        machine.memory[at..at + 8].copy_from_slice(&code[..8]);
    }
    machine.contention = usize::from(choices >> 2 & 31);
    for gpr in Gpr::ALL {
        let value = input.u64();
        // Most of them should point to memory.
        machine.set_gpr(gpr, if value & 3 == 0 { value } else { value & 0xffff });
    }
    machine.rflags = Rflags::from_bits_truncate(input.u64()) | Rflags::RESERVED1;
    if choices & 0x80 != 0 {
        let which = usize::from(input.byte() % 8);
        machine.segments[which] = Segment {
            selector: 0x18,
            attributes: SegmentAttributes::from_bits(u16::from_le_bytes(input.take())),
            limit: u32::from_le_bytes(input.take()),
            base: input.u64() & 0xffff_ffff,
        };
    }
    system_state(&mut machine, &mut input);
    one_step(machine.clone());
    system(machine.clone(), &code);
    let _ = string_io(&mut machine, &mut Latch(0x1234_5678));
}

/// Privilege, what is enabled, and a few descriptors.
fn system_state(machine: &mut Machine, input: &mut Input<'_>) {
    let [choices, limit] = input.take();
    machine.cpl = choices & 3;
    machine.cr0.set(Cr0::TS, choices & 4 != 0);
    machine.cr0.set(Cr0::EM, choices & 8 != 0);
    machine.cr4.set(Cr4::OSFXSR, choices & 0x10 == 0);
    machine.cr4.set(Cr4::VME | Cr4::UMIP, choices & 0x20 != 0);
    machine.xcr0.set(Xcr0::AVX, choices & 0x40 == 0);
    machine.x87_waits = choices & 0x80 != 0;
    machine.tables[0] = DescriptorTable { base: GDT, limit: limit.into() };
    for place in (8..32).step_by(8) {
        let at = GDT as usize + place;
        machine.memory[at..at + 8].copy_from_slice(&input.u64().to_le_bytes());
    }
}

/// Whatever the hand-made decoders know, they see as iced does.
pub fn decoders_agree(code: &[u8], mode: CpuMode) {
    if let Ok(ours) = decode(code, mode, CODE, Decoder::HandMade) {
        assert_eq!(Ok(ours), decode(code, mode, CODE, Decoder::General), "{code:02x?} {mode:?}");
    }
    if let (Ok(system), Some(length)) =
        (decode_system(code, mode, CODE), instruction_length(code, mode))
    {
        assert_eq!(system.length, length, "{code:02x?} {mode:?} {:?}", system.op);
    }
    for n in 0..code.len() {
        // A part of an instruction never is another one.
        if let Ok(whole) = decode(&code[..n], mode, CODE, Decoder::Both) {
            assert!(usize::from(whole.length) <= n);
        }
    }
}

fn one_step(machine: Machine) {
    let before = machine;
    let mut machine = before.clone();
    let result = step(&mut machine);
    assert!(machine.accesses <= 3 * 256, "not bounded");
    let base = if before.mode == CpuMode::Long64 {
        0
    } else {
        before.segments[SegmentRegister::Cs as usize].base
    };
    let at = (base.wrapping_add(before.rip) & 0xffff_ffff) as usize;
    let rest = before.memory.get(at..).unwrap_or_default();
    let code: Vec<u8> = rest.iter().copied().take(15).collect();
    let op = decode(&code, before.mode, before.rip, Decoder::Both).map(|i| i.op);
    let string = matches!(op, Ok(Op::String(_)));
    match result {
        Ok(Step::Done) if matches!(op, Ok(Op::Control(_))) => {}
        Ok(Step::Done | Step::Shadow) => {
            let length = machine.rip.wrapping_sub(before.rip);
            assert!((1..=15).contains(&length), "{length}");
        }
        Ok(Step::Again) => assert_eq!(machine.rip, before.rip),
        Err(stop) => {
            assert_eq!(machine.rip, before.rip);
            if let Stop::Unsupported(unsupported) = stop {
                let _ = unsupported.to_string();
            }
            if !string {
                machine.accesses = before.accesses;
                if machine.contention == before.contention {
                    assert!(machine == before, "a fault changed something: {code:02x?}");
                }
            }
        }
    }
    assert!(machine.memory[READ_ONLY as usize..] == before.memory[READ_ONLY as usize..]);
}

fn system(mut machine: Machine, code: &[u8]) {
    let found = match decode_system(code, machine.mode, CODE) {
        Ok(found) => found,
        Err(DecodeError::Unsupported { .. }) => panic!("it knows no such answer"),
        Err(_) => return,
    };
    assert!((1..=15).contains(&found.length));
    if let SystemOp::Lmsw(operand) = found.op {
        let _ = read_operand(&mut machine, &operand, Width::B2);
    }
}
