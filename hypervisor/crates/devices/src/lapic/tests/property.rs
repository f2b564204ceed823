//! Random accesses never panic, a saved and restored APIC behaves the same,
//! and a naive model agrees on priorities.

use super::*;
use crate::Device;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Load(u64, usize),
    Store(u64, u32),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Merge([u64; 4], [u64; 4]),
    Take,
    Eoi,
    Tpr(u8),
    Advance(u64),
    TscOffset(u64),
    Lint(bool, bool),
    Init,
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), 0_u32..0x200, (0_u32..32).prop_map(|bit| 1 << bit), Just(0x200ec)]
}

fn words() -> impl Strategy<Value = [u64; 4]> {
    prop::collection::vec(any::<u8>(), 0..3).prop_map(|vectors| {
        let mut set = VectorSet::EMPTY;
        vectors.into_iter().for_each(|vector| set.insert(vector));
        set.0
    })
}

fn step() -> impl Strategy<Value = Step> {
    let msr = prop_oneof![0x800_u32..0x840, Just(0x1b), Just(0x6e0)];
    let wide = prop_oneof![
        value().prop_map(u64::from),
        any::<u64>(),
        Just(0xfee0_0800),
        Just(0xfee0_0c00),
        Just(0xfee0_0000)
    ];
    prop_oneof![
        2 => (0_u64..0x1010, 0_usize..4).prop_map(|(offset, width)| Step::Load(offset, 1 << width)),
        6 => (0_u64..0x40, value()).prop_map(|(reg, value)| Step::Store(reg * 16, value)),
        2 => msr.clone().prop_map(Step::Rdmsr),
        6 => (msr, wide).prop_map(|(msr, value)| Step::Wrmsr(msr, value)),
        4 => (words(), words()).prop_map(|(pending, level)| Step::Merge(pending, level)),
        4 => Just(Step::Take),
        4 => Just(Step::Eoi),
        1 => any::<u8>().prop_map(Step::Tpr),
        4 => prop_oneof![0_u64..100_000, any::<u64>()].prop_map(Step::Advance),
        1 => any::<u64>().prop_map(Step::TscOffset),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(pin, level)| Step::Lint(pin, level)),
        1 => Just(Step::Init),
    ]
}

/// Does one step and says all that could be seen of it.
fn apply(apic: &mut Lapic, now: &mut Ticks, step: &Step) -> alloc::string::String {
    use alloc::format;
    let outcome = match *step {
        Step::Load(offset, width) => {
            format!("{:?}", apic.mmio_read(offset, Width::from_bytes(width).unwrap(), *now))
        }
        Step::Store(offset, value) => {
            format!("{:?}", apic.mmio_write(offset, Width::B4, value, *now))
        }
        Step::Rdmsr(msr) => format!("{:?}", apic.msr_read(Msr(msr), *now)),
        Step::Wrmsr(msr, value) => format!("{:?}", apic.msr_write(Msr(msr), value, *now)),
        Step::Merge(ref pending, ref level) => {
            apic.merge(pending, level);
            "".into()
        }
        Step::Take => {
            let vector = apic.deliverable();
            if let Some(vector) = vector {
                apic.acknowledge(vector);
            }
            format!("{vector:?}")
        }
        Step::Eoi => format!("{:?}", apic.eoi()),
        Step::Tpr(value) => {
            apic.set_tpr(value);
            "".into()
        }
        Step::Advance(by) => {
            now.0 = now.0.saturating_add(by);
            format!("{}", apic.advance(*now))
        }
        Step::TscOffset(offset) => {
            apic.set_tsc_offset(offset, *now);
            "".into()
        }
        Step::Lint(pin, level) => {
            format!("{:?}", apic.set_lint(if pin { Lint::Lint1 } else { Lint::Lint0 }, level))
        }
        Step::Init => {
            apic.init();
            "".into()
        }
    };
    format!("{outcome} {:?} {:?} {:?}", apic.deliverable(), apic.deadline(), apic.identity())
}

proptest! {
    #[test]
    fn any_steps(before in prop::collection::vec(step(), 0..60),
                 after in prop::collection::vec(step(), 0..30),
                 khz in 1_000_u64..5_000_000) {
        let ratio = TickRatio::from_khz(khz);
        let mut apic = Lapic::new(3, ratio, Role::Bootstrap);
        let mut now = Ticks(0);
        let _ = apic.mmio_write(0xf0, Width::B4, 0x1ff, now);
        for step in &before {
            apply(&mut apic, &mut now, step);
            // The claims of the caches hold, and time never runs backwards into a deadline.
            let (irr, isr, tmr) = apic.vectors();
            prop_assert!(!irr.has_illegal() && !isr.has_illegal() && !tmr.has_illegal());
            if matches!(step, Step::Advance(_)) {
                prop_assert!(apic.deadline().is_none_or(|deadline| deadline > now || now == Ticks::NEVER));
            }
        }
        let json = serde_json::to_string(&apic.save()).unwrap();
        let mut twin = Lapic::new(3, ratio, Role::Bootstrap);
        twin.restore(serde_json::from_str(&json).unwrap()).unwrap();
        prop_assert_eq!(&twin, &apic);
        let mut twin_now = now;
        for step in &after {
            prop_assert_eq!(
                apply(&mut apic, &mut now, step),
                apply(&mut twin, &mut twin_now, step)
            );
        }
        prop_assert_eq!(twin, apic);
    }

    #[test]
    fn priorities(steps in prop::collection::vec((0_u8..6, any::<u8>(), any::<bool>()), 0..120)) {
        let mut apic = xapic(0);
        let (mut irr, mut isr) = (BTreeSet::new(), BTreeSet::new());
        let (mut tmr, mut tpr) = (BTreeSet::new(), 0_u8);
        for (kind, value, level) in steps {
            match kind {
                0..=2 => {
                    apic.merge(&posted(value), &if level { posted(value) } else { [0; 4] });
                    if value >= 16 {
                        irr.insert(value);
                        if level { tmr.insert(value); } else { tmr.remove(&value); }
                    }
                }
                3 => {
                    let vector = apic.deliverable();
                    let class = (tpr >> 4).max(isr.last().map_or(0, |top| top >> 4));
                    let expected = irr.iter().rev().find(|&&v| v >> 4 > class).copied();
                    prop_assert_eq!(vector, expected);
                    if let Some(vector) = vector {
                        apic.acknowledge(vector);
                        irr.remove(&vector);
                        isr.insert(vector);
                    }
                }
                4 => {
                    let ended = isr.pop_last();
                    prop_assert_eq!(apic.eoi(), ended.filter(|vector| tmr.contains(vector)));
                }
                _ => {
                    tpr = value;
                    apic.set_tpr(value);
                }
            }
            let top = isr.last().map_or(0, |top| top & 0xf0);
            prop_assert_eq!(apic.ppr(), if tpr & 0xf0 >= top { tpr } else { top });
            let list = |set: VectorSet| (0..=255).filter(|&v| set.contains(v)).collect::<Vec<u8>>();
            let (real_irr, real_isr, _) = apic.vectors();
            prop_assert!(list(real_irr).into_iter().eq(irr.iter().copied()));
            prop_assert!(list(real_isr).into_iter().eq(isr.iter().copied()));
        }
    }
}

#[test]
fn the_state_is_laid_out_as_it_was() {
    ::state::golden::check(env!("CARGO_MANIFEST_DIR"), || {
        let mut apic = xapic(3);
        let _ = store(&mut apic, 0x320, 0x2_00ec);
        let _ = store(&mut apic, 0x3e0, 0xb);
        let _ = store(&mut apic, 0x380, 100_000);
        apic.merge(&[1 << 0x31, 1 << 1, 0, 0], &[0, 1 << 1, 0, 0]);
        if let Some(vector) = apic.deliverable() {
            apic.acknowledge(vector);
        }
        apic.save()
    });
}
