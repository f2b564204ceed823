//! Differences that have a reason, which is not ours. `docs/lockstep.md` tells
//! each under the same name.

use micro::Program;
use xtask::machine::Machine;

use super::listing;
use super::text::{Outline, Step};

/// Whether the guest saw something else, or it exited otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An exception or interrupt.
    Record,
    /// An exit.
    Exit,
}

/// The first difference between the reference (`a`) and another machine (`b`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Of what.
    pub kind: Kind,
    /// Which one.
    pub index: usize,
    /// On the reference.
    pub a: Option<Step>,
    /// On the other machine.
    pub b: Option<Step>,
}

/// All that an explanation may look at.
struct Context<'a> {
    program: &'a Program,
    reference: &'a Outline,
    difference: &'a Difference,
}

impl Context<'_> {
    /// The reference got this exception where the other machine's next record
    /// is another one.
    fn reference_only(&self, vector: u32) -> bool {
        let d = self.difference;
        d.kind == Kind::Record
            && d.a.as_ref().is_some_and(|a| a.what == vector)
            && d.b.as_ref().map(|b| (b.offset, b.what)) != d.a.as_ref().map(|a| (a.offset, a.what))
    }

    /// Both had the same at the same place, and only registers or flags differ.
    fn same_event(&self) -> bool {
        let (Some(a), Some(b)) = (&self.difference.a, &self.difference.b) else { return false };
        (a.offset, a.what, a.detail) == (b.offset, b.what, b.detail)
    }

    /// The vectors of records at the same place.
    fn vectors(&self) -> Option<(u32, u32)> {
        let (Some(a), Some(b)) = (&self.difference.a, &self.difference.b) else { return None };
        let same = self.difference.kind == Kind::Record && a.offset == b.offset;
        same.then_some((a.what, b.what))
    }

    /// The instruction at which the reference's step was.
    fn instruction(&self) -> String {
        let offset = self.difference.a.as_ref().and_then(|a| a.offset);
        offset.map(|offset| listing::instruction(self.program, offset)).unwrap_or_default()
    }

    /// The instruction before it.
    fn instruction_before(&self) -> String {
        let Some(offset) = self.difference.a.as_ref().and_then(|a| a.offset) else {
            return String::new();
        };
        let before = self.program.starts().take_while(|start| *start < offset).last();
        before.map(|offset| listing::instruction(self.program, offset)).unwrap_or_default()
    }
}

/// A known difference.
struct Known {
    name: &'static str,
    machine: Machine,
    explains: fn(&Context<'_>) -> bool,
}

const DB: u32 = 1;
const UD: u32 = 6;
const SS: u32 = 12;
const GP: u32 = 13;
const PF: u32 = 14;
const AC: u32 = 17;
/// A device access, among the kinds of exits.
const DEVICE: u32 = 2;

const KNOWN: [Known; 13] = [
    Known {
        name: "reserved bits of CR8",
        machine: Machine::QemuSvm,
        explains: |c| c.reference_only(GP) && c.instruction().starts_with("mov cr8"),
    },
    Known {
        name: "canonical MSR values",
        machine: Machine::QemuSvm,
        explains: |c| c.reference_only(GP) && c.instruction() == "wrmsr",
    },
    Known {
        name: "single step over PAUSE and STI",
        machine: Machine::QemuSvm,
        explains: |c| {
            c.reference_only(DB) && ["pause", "sti"].contains(&c.instruction_before().as_str())
        },
    },
    Known {
        name: "alignment checks",
        machine: Machine::QemuSvm,
        explains: |c| {
            if c.difference.kind == Kind::Record {
                return c.reference_only(AC);
            }
            let Some(b) = &c.difference.b else { return false };
            let checked = |r: &Step| r.what == AC && r.offset == b.offset;
            b.what == DEVICE && c.reference.records.iter().any(checked)
        },
    },
    Known {
        name: "general detect",
        machine: Machine::QemuSvm,
        explains: |c| c.reference_only(DB) && moves_special(&c.instruction(), " dr", ",dr"),
    },
    Known {
        name: "data breakpoints",
        machine: Machine::QemuSvm,
        explains: |c| {
            let d = c.difference;
            let more = d.b.as_ref().is_some_and(|b| b.what == DB);
            let enabled = c.program.dr7 & 0xff != 0;
            d.kind == Kind::Record && more && enabled && c.vectors().is_none_or(|(a, _)| a != DB)
        },
    },
    Known {
        name: "registers that are not there",
        machine: Machine::QemuSvm,
        explains: |c| {
            c.vectors() == Some((UD, GP))
                && (moves_special(&c.instruction(), " cr", ",cr")
                    || moves_special(&c.instruction(), " dr", ",dr"))
        },
    },
    Known {
        name: "flags at a refused RETF",
        machine: Machine::QemuSvm,
        explains: |c| c.vectors() == Some((GP, GP)) && c.instruction().starts_with("ret"),
    },
    Known { name: "bits of DR6 that stay", machine: Machine::BochsSvm, explains: writes_dr6 },
    Known { name: "bits of DR6 that stay", machine: Machine::QemuSvm, explains: writes_dr6 },
    Known {
        name: "flags at an RCL or RCR that faults",
        machine: Machine::QemuSvm,
        explains: |c| c.same_event() && c.instruction().starts_with("rc"),
    },
    Known {
        name: "order of CMPS' accesses",
        machine: Machine::QemuSvm,
        explains: |c| {
            let fault = |vector| [SS, GP, PF, AC].contains(&vector);
            let faults = c.vectors().is_some_and(|(a, b)| fault(a) && fault(b));
            (c.difference.kind == Kind::Exit || faults) && c.instruction().contains("cmps")
        },
    },
    Known {
        name: "stack addresses that are not canonical",
        machine: Machine::QemuSvm,
        explains: |c| c.vectors() == Some((SS, GP)),
    },
];

/// A #DB of both in a program that writes to DR6 before.
fn writes_dr6(c: &Context<'_>) -> bool {
    let here = c.difference.a.as_ref().and_then(|a| a.offset);
    let mut before = c.program.starts().take_while(|start| here.is_some_and(|here| *start < here));
    c.vectors() == Some((DB, DB))
        && before.any(|at| listing::instruction(c.program, at).starts_with("mov dr6"))
}

/// Whether it is a MOV to (`first`) or from (`second`) a control or debug register.
fn moves_special(instruction: &str, first: &str, second: &str) -> bool {
    instruction.starts_with("mov") && (instruction.contains(first) || instruction.contains(second))
}

/// The name of what was different once.
pub const NOT_AGAIN: &str = "not seen again";

/// The name of what explains a difference.
pub fn explain(
    machine: Machine,
    program: &Program,
    reference: &Outline,
    difference: &Difference,
) -> Option<&'static str> {
    let context = Context { program, reference, difference };
    let mut known = KNOWN.iter().filter(|known| known.machine == machine);
    known.find(|known| (known.explains)(&context)).map(|known| known.name)
}

/// Whether it is known of `machine` that two runs of `program` differ from the
/// exception at `offset` on.
pub fn differs_by_itself(machine: Machine, program: &Program, offset: usize) -> bool {
    // At the instruction, or single-stepped behind it.
    let before = program.starts().take_while(|start| *start < offset).last();
    let mut either = [Some(offset), before].into_iter().flatten();
    machine == Machine::QemuSvm
        && either.any(|at| listing::instruction(program, at).starts_with("rc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What explains that an instruction raises one exception or another.
    fn told(seed: u64, offset: usize, vectors: [u32; 2]) -> Option<&'static str> {
        let step = |what| Step { offset: Some(offset), what, detail: 0, digest: "AAA".to_owned() };
        let [a, b] = vectors.map(|vector| Some(step(vector)));
        let difference = Difference { kind: Kind::Record, index: 0, a, b };
        let program = Program::generate(seed, micro::Vendor::Intel);
        explain(Machine::QemuSvm, &program, &Outline::default(), &difference)
    }

    #[test]
    fn either_operand_of_cmps_may_fault_first() {
        assert_eq!(told(1089, 0x16, [GP, PF]), Some("order of CMPS' accesses"));
        assert_eq!(told(1091, 0x4a, [PF, PF]), Some("order of CMPS' accesses"));
        assert_eq!(told(1089, 0x16, [GP, UD]), None);
        assert_eq!(told(1089, 0x1e, [GP, PF]), None);
    }

    #[test]
    fn the_guide_tells_each() {
        let path = xtask::paths::root().join("docs/lockstep.md");
        let text = std::fs::read_to_string(path).unwrap();
        for name in KNOWN.iter().map(|known| known.name).chain([NOT_AGAIN]) {
            assert!(text.contains(&format!("**{name}**")), "{name}");
        }
    }
}
