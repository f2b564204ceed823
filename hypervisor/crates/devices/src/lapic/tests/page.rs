//! The page that the CPU works on, and a CPU made of the manual's words.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

/// The work of a CPU on the page while the guest runs
/// (SDM: "Virtualizing APIC Accesses", "Evaluation and Delivery of Virtual Interrupts").
struct Cpu {
    page: VirtualApicPage,
    status: InterruptStatus,
    eoi_exits: VectorSet,
}

impl Cpu {
    fn new() -> Self {
        Self {
            page: VirtualApicPage::default(),
            status: InterruptStatus::new(),
            eoi_exits: VectorSet::EMPTY,
        }
    }

    fn enter(&mut self, apic: &mut Lapic) {
        if apic.level_triggered() != self.eoi_exits {
            self.eoi_exits = apic.level_triggered();
            apic.show_level_triggered(&self.page);
        }
        self.status = apic.hand_over(&self.page, self.status);
    }

    fn exit(&mut self, apic: &mut Lapic) {
        apic.take_back(&self.page, self.status);
    }

    fn highest(&self, first: Reg) -> u8 {
        let set = (0..8_u8).rev().find_map(|n| {
            let word = self.page.read(Reg(first.0 + n));
            (word != 0).then(|| n * 32 + word.ilog2().low8())
        });
        set.unwrap_or(0)
    }

    fn change(&self, first: Reg, vector: u8, set: bool) {
        let reg = Reg(first.0 + (vector >> 5));
        let bit = 1 << (vector & 31);
        let old = self.page.read(reg);
        self.page.write(reg, if set { old | bit } else { old & !bit });
    }

    fn ppr(&self) -> u8 {
        let (tpr, service) = (self.page.task_priority(), self.status.servicing() & 0xf0);
        if tpr & 0xf0 >= service { tpr } else { service }
    }

    fn deliver(&mut self) -> Option<u8> {
        let vector = self.status.requesting();
        if vector >> 4 <= self.ppr() >> 4 {
            return None;
        }
        self.change(Reg::ISR, vector, true);
        self.change(Reg::IRR, vector, false);
        self.status =
            InterruptStatus::new().with_servicing(vector).with_requesting(self.highest(Reg::IRR));
        Some(vector)
    }

    /// The vector that exits, if one does.
    fn eoi(&mut self) -> Option<u8> {
        let vector = self.status.servicing();
        self.change(Reg::ISR, vector, false);
        self.status.set_servicing(self.highest(Reg::ISR));
        self.eoi_exits.contains(vector).then_some(vector)
    }

    fn self_ipi(&mut self, vector: u8) {
        self.change(Reg::IRR, vector, true);
        self.status.set_requesting(self.status.requesting().max(vector));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Post(u8, Trigger),
    PostBetween(u8),
    Deliver,
    Eoi,
    SelfIpi(u8),
    Tpr(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let vector = || 16..=255_u8;
    prop_oneof![
        3 => (vector(), any::<bool>()).prop_map(|(v, level)| Step::Post(v, Trigger::from_level_bit(level))),
        1 => vector().prop_map(Step::PostBetween),
        4 => Just(Step::Deliver),
        3 => Just(Step::Eoi),
        1 => vector().prop_map(Step::SelfIpi),
        1 => any::<u8>().prop_map(Step::Tpr),
    ]
}

/// The CPU writes down what the guest has written to the command register; what does not exist is
/// gone when it is read.
#[test]
fn bits_of_the_command_that_do_not_exist_are_not_shown() {
    let (mut apic, mut cpu) = (xapic(0), Cpu::new());
    cpu.enter(&mut apic);
    for (register, value, shown) in
        [(Reg::ICR, 0xfff3_2000, 0), (Reg::ICR_HIGH, 0xff12_3456, 0xff00_0000)]
    {
        cpu.page.write(register, value);
        cpu.exit(&mut apic);
        cpu.enter(&mut apic);
        assert_eq!(cpu.page.read(register), shown, "{register:?}");
    }
}

proptest! {
    /// A guest can't tell whether interrupts are injected or delivered by the CPU.
    #[test]
    fn delivery_is_the_same(steps in prop::collection::vec(step(), 1..80)) {
        let (mut plain, mut given, mut cpu) = (xapic(0), xapic(0), Cpu::new());
        for step in steps {
            if let Step::Post(vector, trigger) = step {
                plain.accept(vector, trigger);
                given.accept(vector, trigger);
            }
            cpu.enter(&mut given);
            match step {
                Step::Post(..) => {}
                Step::PostBetween(vector) => {
                    plain.accept(vector, Trigger::Edge);
                    given.accept(vector, Trigger::Edge);
                    // A hot exit must see that something waits.
                    prop_assert!(given.deliverable().is_some());
                }
                Step::Deliver => {
                    let vector = plain.deliverable();
                    if let Some(vector) = vector {
                        plain.acknowledge(vector);
                    }
                    prop_assert_eq!(cpu.deliver(), vector);
                }
                Step::Eoi => {
                    let broadcast = plain.eoi();
                    let exited = cpu.eoi();
                    cpu.exit(&mut given);
                    prop_assert_eq!(exited.and_then(|vector| given.ended(vector)), broadcast);
                    cpu.enter(&mut given);
                }
                Step::SelfIpi(vector) if plain.level_triggered().contains(vector) => {}
                Step::SelfIpi(vector) => {
                    plain.accept(vector, Trigger::Edge);
                    cpu.self_ipi(vector);
                }
                Step::Tpr(value) => {
                    plain.set_tpr(value);
                    cpu.page.set_task_priority(value);
                }
            }
            cpu.exit(&mut given);
            prop_assert_eq!(&plain.s, &given.s);
        }
    }
}

#[test]
fn the_page_shows_what_the_registers_read() {
    for mut apic in [xapic(3), x2apic(3)] {
        apic.accept(0x41, Trigger::Level);
        apic.accept(0x92, Trigger::Edge);
        apic.acknowledge(0x92);
        apic.set_tpr(0x35);
        let wanted: Vec<_> = Lapic::readable_in_page()
            .filter(|reg| *reg != Reg::PPR)
            .map(|reg| {
                let value = match apic.mode() {
                    ApicMode::XApic => load(&mut apic, u64::from(reg.0) * 16).into(),
                    _ => apic.msr_read(Msr(0x800 + u32::from(reg.0)), NOW).unwrap(),
                };
                (reg, value)
            })
            .collect();
        let mut cpu = Cpu::new();
        cpu.enter(&mut apic);
        for (reg, value) in wanted {
            assert_eq!(u64::from(cpu.page.read(reg)), value, "{reg:x?}");
        }
    }
}

#[test]
fn registers_outside_the_page_are_not_listed() {
    let mut apic = x2apic(0);
    for reg in (0..=0x3f).map(Reg) {
        let listed = Lapic::readable_in_page().any(|r| r == reg);
        let readable = apic.msr_read(Msr(0x800 + u32::from(reg.0)), NOW).is_ok();
        // The command has 64 bits, the count changes by itself.
        let computed = matches!(reg, Reg::ICR | Reg::CURRENT_COUNT);
        assert_eq!(listed, readable && !computed, "{reg:x?}");
    }
}

#[test]
fn writes_that_the_cpu_completed() {
    let (mut apic, mut cpu) = (xapic(0), Cpu::new());
    cpu.enter(&mut apic);
    // The high half of the command changes without an exit.
    cpu.page.write(Reg::ICR_HIGH, 0x0500_0000);
    cpu.page.write(Reg::ICR, 0x4041);
    cpu.exit(&mut apic);
    let Effect::Ipi(command) = apic.written(0x300, 0x4041, NOW) else { panic!("no command") };
    assert_eq!((command.message.vector, command.message.destination.id), (0x41, 5));
    assert_eq!(load(&mut apic, 0x310), 0x0500_0000);
    // A read-only register is shown as it was.
    cpu.page.write(Reg::ID, 0x7700_0000);
    assert_eq!(apic.written(0x20, 0x7700_0000, NOW), Effect::None);
    cpu.enter(&mut apic);
    assert_eq!(cpu.page.read(Reg::ID), 0);
    cpu.exit(&mut apic);
    // Reserved bits do not stay.
    assert_eq!(apic.written(0x320, u32::MAX, NOW), Effect::TimerChanged);
    cpu.enter(&mut apic);
    assert_eq!(cpu.page.read(Reg::LVT_FIRST), 0x0007_00ff);
    cpu.exit(&mut apic);
    // x2APIC's self-IPI exits for an illegal vector only.
    let mut apic = x2apic(0);
    assert_eq!(apic.written(0x3f0, 0xf, NOW), Effect::Pending);
    let _ = wrmsr(&mut apic, 0x828, 0);
    assert_eq!(apic.msr_read(Msr(0x828), NOW), Ok(0x60));
}
