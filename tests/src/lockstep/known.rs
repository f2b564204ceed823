//! Differences that have a reason, which is not ours. `docs/lockstep.md` tells
//! each under the same name.

use micro::Program;
use xtask::machine::Machine;

use super::listing;
use super::text::{How, Outline, Split, Step};

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
    /// Kind of the steps that differ.
    pub kind: Kind,
    /// Index of the steps that differ.
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
    other: &'a Outline,
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

    /// The two machines had the same event at the same place, and only registers or flags
    /// differ.
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
        self.at(self.difference.a.as_ref())
    }

    /// The instruction at which a step was.
    fn at(&self, step: Option<&Step>) -> String {
        let offset = step.and_then(|step| step.offset);
        offset.map(|offset| listing::instruction(self.program, offset)).unwrap_or_default()
    }

    /// Offset in the program at which the difference begins.
    fn first_place(&self) -> Option<usize> {
        let Difference { a, b, .. } = self.difference;
        [a, b].into_iter().flatten().filter_map(|step| step.offset).min()
    }

    /// Whether the program has loaded ES by then.
    fn loads_es_before(&self) -> bool {
        self.has_before("mov es,")
    }

    /// Whether the program has written to DR6 by then.
    fn writes_dr6_before(&self) -> bool {
        self.has_before("mov dr6")
    }

    /// Whether an instruction that begins so stands before the difference.
    fn has_before(&self, instruction: &str) -> bool {
        let here = self.first_place();
        let mut before = self.program.starts().take_while(|at| Some(*at) < here);
        before.any(|at| listing::instruction(self.program, at).starts_with(instruction))
    }

    /// The two machines had a debug exception at the same place, and all that differs are
    /// these bits of DR6.
    fn only_in_dr6(&self, bits: u64, how: How) -> bool {
        let (Some(a), Some(b)) = (&self.difference.a, &self.difference.b) else { return false };
        self.vectors() == Some((DB, DB))
            && (a.detail ^ b.detail) & !bits == 0
            && !a.seen_but_dr6(how).is_empty()
            && a.seen_but_dr6(how) == b.seen_but_dr6(how)
    }

    /// The other machine's first exception that the reference did not get there.
    fn first_more(&self) -> Option<&Step> {
        let key = |step: &Step| (step.offset, step.what);
        let (a, b) = (&self.reference.records, &self.other.records);
        let at = (0..b.len()).find(|i| a.get(*i).map(key) != b.get(*i).map(key))?;
        b.get(at)
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
const NM: u32 = 7;
const SS: u32 = 12;
const GP: u32 = 13;
const PF: u32 = 14;
const AC: u32 = 17;
/// The record of a SYSCALL.
const SYSCALL: u32 = 0x82;
/// A device access, among the kinds of exits.
const DEVICE: u32 = 2;
/// DR6: the breakpoints, and the task switch (BT).
const DR6_BREAKPOINTS: u64 = 0xf;
const DR6_TASK_SWITCH: u64 = 1 << 15;

const KNOWN: [Known; 17] = [
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
        name: "flags after SYSCALL",
        machine: Machine::QemuSvm,
        explains: |c| {
            let d = c.difference;
            let stepped = c.same_event() && d.a.as_ref().is_some_and(|a| a.what == DB);
            let next = c.reference.records.get(d.index + 1);
            d.kind == Kind::Record && stepped && next.is_some_and(|next| next.what == SYSCALL)
        },
    },
    Known {
        name: "data breakpoints",
        machine: Machine::QemuSvm,
        explains: |c| {
            let d = c.difference;
            let hit = match d.kind {
                // Another bit in DR6, or one more.
                Kind::Record if c.vectors() == Some((DB, DB)) => {
                    c.only_in_dr6(DR6_BREAKPOINTS, How::Loose)
                }
                Kind::Record => d.b.as_ref().is_some_and(|b| b.what == DB),
                Kind::Exit => c
                    .first_more()
                    .is_some_and(|more| more.what == DB && more.offset <= c.first_place()),
            };
            hit && c.program.dr7 & 0xff != 0
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
    Known {
        name: "bits of DR6 that stay",
        machine: Machine::BochsSvm,
        explains: |c| c.only_in_dr6(DR6_TASK_SWITCH, How::Strict) && c.writes_dr6_before(),
    },
    Known {
        name: "bits of DR6 that stay",
        machine: Machine::QemuSvm,
        explains: |c| c.only_in_dr6(DR6_BREAKPOINTS, How::Loose) && c.writes_dr6_before(),
    },
    Known {
        name: "flags at an RCL or RCR that faults",
        machine: Machine::QemuSvm,
        explains: |c| {
            let here = c.same_event() || c.vectors().is_some_and(|(a, b)| a == b);
            here && rotates(&c.instruction())
        },
    },
    Known {
        name: "order of CMPS' accesses",
        machine: Machine::QemuSvm,
        explains: |c| {
            let fault = |vector| [SS, GP, PF, AC].contains(&vector);
            if c.difference.kind == Kind::Record {
                let both = c.vectors().is_some_and(|(a, b)| fault(a) && fault(b));
                return both && c.instruction().contains("cmps");
            }
            // The reference may have no exit there at all.
            let Some(b) = &c.difference.b else { return c.instruction().contains("cmps") };
            let faulted = |r: &Step| fault(r.what) && r.offset == b.offset;
            c.instruction().contains("cmps")
                || b.what == DEVICE
                    && c.at(Some(b)).contains("cmps")
                    && c.reference.records.iter().any(faulted)
        },
    },
    Known {
        name: "SSE instructions with CR0.TS set",
        machine: Machine::QemuSvm,
        explains: |c| c.vectors() == Some((UD, NM)) && c.instruction().starts_with("xorps"),
    },
    Known {
        name: "writes through a code segment",
        machine: Machine::QemuSvm,
        explains: |c| {
            let instruction = c.instruction();
            let mnemonic = instruction.split(' ').find(|word| !word.starts_with("rep"));
            let bare = mnemonic.map(|word| word.trim_end_matches(['b', 'w', 'd', 'q']));
            // In ring 3 the port may be the reason.
            let may = ["movs", "stos", "ins"].iter().take(if is_ring_0(c) { 3 } else { 2 });
            let writes = may.clone().any(|one| bare == Some(*one));
            c.reference_only(GP) && writes && c.loads_es_before()
        },
    },
    Known {
        name: "stack addresses that are not canonical",
        machine: Machine::QemuSvm,
        explains: |c| c.vectors() == Some((SS, GP)),
    },
    // The last: it could explain more than is meant.
    Known {
        name: BEHIND_ROTATION,
        machine: Machine::QemuSvm,
        explains: |c| {
            let here = c.first_place();
            let fault = |step: &Step| [SS, GP, PF, AC].contains(&step.what);
            let faults = c.reference.records.iter().filter(|step| fault(step));
            let devices = c.reference.exits.iter().filter(|exit| exit.what == DEVICE);
            let told = |at| faults.clone().chain(devices.clone()).any(|s| s.offset == Some(at));
            // A first touch is not told.
            let other = c.at(c.difference.b.as_ref());
            let refused = c.difference.b.as_ref().is_some_and(|b| b.what == GP)
                && ["ins", "outs", "in ", "out "].iter().any(|one| other.contains(one));
            c.program.starts().any(|at| {
                let instruction = listing::instruction(c.program, at);
                let before = here.is_none_or(|here| at < here);
                before
                    && rotates(&instruction)
                    && instruction.contains('[')
                    && (told(at) || refused)
            })
        },
    },
];

fn is_ring_0(c: &Context<'_>) -> bool {
    c.program.mode.is_supervisor()
}

/// Whether it is an RCL or RCR.
fn rotates(instruction: &str) -> bool {
    instruction.starts_with("rc")
}

/// Whether it is a MOV to (`first`) or from (`second`) a control or debug register.
fn moves_special(instruction: &str, first: &str, second: &str) -> bool {
    instruction.starts_with("mov") && (instruction.contains(first) || instruction.contains(second))
}

/// The name of what was different once.
pub const NOT_AGAIN: &str = "not seen again";
/// The name of what depends on flags that an RCL or RCR has lost.
const BEHIND_ROTATION: &str = "behind an RCL or RCR that faults";
/// Names of explanations that could explain more than is meant, and must be rare.
pub const SELDOM: [&str; 2] = [NOT_AGAIN, BEHIND_ROTATION];

/// The name of what explains a difference.
pub fn explain(
    machine: Machine,
    program: &Program,
    (reference, other): (&Outline, &Outline),
    difference: &Difference,
) -> Option<&'static str> {
    let context = Context { program, reference, other, difference };
    let mut known = KNOWN.iter().filter(|known| known.machine == machine);
    known.find(|known| (known.explains)(&context)).map(|known| known.name)
}

/// Bits of RFLAGS that are reserved, or not there: bits 3, 5, 15 and from 22 on.
const RESERVED_FLAGS: u64 = !0x3f_7fd7;

/// Whether it is known of `machine` that two runs of `program` differ from `split` on.
pub fn differs_by_itself(machine: Machine, program: &Program, split: Split) -> bool {
    let rotates = |at: usize| rotates(&listing::instruction(program, at));
    let by_itself = match split.place {
        // At the instruction, or single-stepped behind it.
        Some(offset) => {
            let before = program.starts().take_while(|start| *start < offset).last();
            [Some(offset), before].into_iter().flatten().any(rotates)
        }
        None => false,
    };
    // Those that an RCL or RCR has left stay until the flags are worked out anew.
    let stays = split.flags.is_some_and(|flags| flags != 0 && flags & !RESERVED_FLAGS == 0)
        && program.starts().any(rotates);
    machine == Machine::QemuSvm && (by_itself || stays)
}

#[cfg(test)]
mod tests {
    use super::*;
    use micro::Vendor;

    #[test]
    fn reserved_flags_stay_behind_a_rotation() {
        let program = Program::generate(9779, Vendor::Intel);
        let differs =
            |flags| differs_by_itself(Machine::QemuSvm, &program, Split { place: None, flags });
        assert!(differs(Some(0x20)));
        assert!(!differs(Some(0x21)) && !differs(Some(0)) && !differs(None));
        let split = Split { place: None, flags: Some(0x20) };
        assert!(!differs_by_itself(Machine::BochsSvm, &program, split));
    }

    /// The explanation why an instruction raises one exception or another.
    fn told(seed: u64, offset: usize, vectors: [u32; 2]) -> Option<&'static str> {
        let [a, b] = vectors.map(|vector| step(Some(offset), vector, 0));
        told_of(seed, Kind::Record, Some(a), Some(b), &[], &[])
    }

    fn step(offset: Option<usize>, what: u32, detail: u64) -> Step {
        Step { offset, what, detail, digest: "AAA".to_owned() }
    }

    /// The explanation of a first difference, with the records of the two machines.
    fn told_of(
        seed: u64,
        kind: Kind,
        a: Option<Step>,
        b: Option<Step>,
        reference: &[Step],
        other: &[Step],
    ) -> Option<&'static str> {
        let difference = Difference { kind, index: 0, a, b };
        told_on(Machine::QemuSvm, seed, &difference, [reference, other])
    }

    fn told_on(
        machine: Machine,
        seed: u64,
        difference: &Difference,
        records: [&[Step]; 2],
    ) -> Option<&'static str> {
        let [reference, other] =
            records.map(|records| Outline { records: records.to_vec(), ..Outline::default() });
        let program = Program::generate(seed, micro::Vendor::Intel);
        explain(machine, &program, (&reference, &other), difference)
    }

    /// The explanation why a debug exception has one DR6 or another; the rest of what is
    /// seen is the same, or is not.
    fn debugs(
        machine: Machine,
        (seed, offset): (u64, usize),
        dr6: [u64; 2],
        rest: [&str; 2],
    ) -> Option<&'static str> {
        let at = |dr6, rest| {
            Some(Step { digest: format!("{dr6:06x}{rest}"), ..step(Some(offset), DB, dr6) })
        };
        let (a, b) = (at(dr6[0], rest[0]), at(dr6[1], rest[1]));
        let difference = Difference { kind: Kind::Record, index: 0, a, b };
        told_on(machine, seed, &difference, [&[], &[]])
    }

    #[test]
    fn a_device_read_by_cmps_alone_needs_a_fault_of_the_other_operand() {
        let told = |at, records: &[Step]| {
            let a = step(Some(0x2a), 1, 0x0102_1234);
            let b = step(Some(at), DEVICE, 0xfed4_001b);
            told_of(8041, Kind::Exit, Some(a), Some(b), records, records)
        };
        let fault = step(Some(0xf), PF, 0);
        assert_eq!(told(0xf, std::slice::from_ref(&fault)), Some("order of CMPS' accesses"));
        assert_eq!(told(0xf, &[]), None);
        assert_eq!(told(0xd, &[fault]), None);
    }

    #[test]
    fn xorps_and_the_task_switched_flag() {
        assert_eq!(told(9727, 0x43, [UD, NM]), Some("SSE instructions with CR0.TS set"));
        assert_eq!(told(9727, 0x43, [NM, UD]), None);
        assert_eq!(told(9727, 0x40, [UD, NM]), None);
    }

    #[test]
    fn traps_behind_syscall() {
        let trap = step(None, DB, 0);
        let told = |next| {
            let records = [trap.clone(), step(None, next, 0)];
            told_of(5819, Kind::Record, Some(trap.clone()), Some(trap.clone()), &records, &records)
        };
        assert_eq!(told(SYSCALL), Some("flags after SYSCALL"));
        assert_eq!(told(0x81), None);
    }

    #[test]
    fn breakpoints_that_no_access_has_hit() {
        let told = |seed, dr6, rest| debugs(Machine::QemuSvm, seed, dr6, rest);
        let same = ["AAABBB"; 2];
        assert_eq!(told((2192, 0x33), [0x4000, 0x4001], same), Some("data breakpoints"));
        assert_eq!(told((2192, 0x33), [0x4000, 1], same), None, "no single step");
        assert_eq!(told((2192, 0x33), [0x4000, 0x4001], ["AAABBB", "AAABBC"]), None);
        // This program enables no data breakpoint.
        assert_eq!(told((9727, 0x43), [0x4000, 0x4001], same), None);
        let exit = step(Some(0x75), 1, 0x0104_0cf8);
        let told = |more: &[Step]| {
            told_of(3719, Kind::Exit, Some(exit.clone()), Some(exit.clone()), &[], more)
        };
        assert_eq!(told(&[step(Some(0x69), DB, 0)]), Some("data breakpoints"));
        assert_eq!(told(&[step(Some(0x76), DB, 0)]), None, "it came later");
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn bits_of_dr6_that_software_has_set() {
        let seed = (0..).find_map(|seed| {
            let program = Program::generate(seed, micro::Vendor::Intel);
            let mut starts = program.starts();
            starts.find(|at| listing::instruction(&program, *at).starts_with("mov dr6"))?;
            Some((seed, starts.next()?))
        });
        let seed = seed.unwrap();
        let told = |machine, dr6| debugs(machine, seed, dr6, ["AAABBB"; 2]);
        let stay = Some("bits of DR6 that stay");
        assert_eq!(told(Machine::BochsSvm, [0xc000, 0x4000]), stay);
        assert_eq!(told(Machine::BochsSvm, [0xc001, 0x4000]), None, "a breakpoint, too");
        let other = ["AAABBB", "AABBBB"];
        assert_eq!(debugs(Machine::BochsSvm, seed, [0xc000, 0x4000], other), None);
        let earlier = (seed.0, 0);
        assert_eq!(debugs(Machine::BochsSvm, earlier, [0xc000, 0x4000], ["AAABBB"; 2]), None);
        assert_eq!(told(Machine::QemuSvm, [0x4000, 0x4002]), stay);
        assert_eq!(told(Machine::QemuSvm, [0x4000, 0xc000]), None);
    }

    #[test]
    fn a_code_segment_is_not_writable() {
        assert_eq!(told(6858, 0xa2, [GP, PF]), Some("writes through a code segment"));
        let told = |at| {
            let a = step(Some(at), GP, 0);
            told_of(9620, Kind::Record, Some(a), Some(step(Some(0x99), 0x61, 0)), &[], &[])
        };
        assert_eq!(told(0x2c), Some("writes through a code segment"));
        assert_eq!(told(0x18), None, "the MOV itself");
    }

    #[test]
    fn rotations_that_fault() {
        let rotates = "flags at an RCL or RCR that faults";
        assert_eq!(told(7650, 0xf, [PF, PF]), Some(rotates));
        assert_eq!(told(7650, 0xf, [PF, GP]), None);
        let behind = "behind an RCL or RCR that faults";
        assert_eq!(told(9779, 0x39, [UD, GP]), Some(behind));
        assert_eq!(told(9779, 0x39, [UD, PF]), None);
        let told = |steps: &[Step]| {
            let (a, b) = (step(None, PF, 0x19), step(None, PF, 0x18));
            told_of(1919, Kind::Record, Some(a), Some(b), steps, steps)
        };
        assert_eq!(told(&[step(Some(0x43), PF, 0)]), Some(behind));
        assert_eq!(told(&[]), None);
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
