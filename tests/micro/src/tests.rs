use crate::{Mode, Program, Vendor};
use std::vec::Vec;

#[test]
fn a_seed_says_everything() {
    for seed in 0..500 {
        let a = Program::generate(seed, Vendor::Intel);
        let b = Program::generate(seed, Vendor::Intel);
        assert_eq!(a.code(), b.code());
        assert_eq!(a.gprs, b.gprs);
        assert_eq!((a.rflags, a.dr7, a.cr4), (b.rflags, b.dr7, b.cr4));
    }
}

#[test]
fn vendors_differ_in_hypercalls_only() {
    let mut differ = 0;
    for seed in 0..500 {
        let a = Program::generate(seed, Vendor::Intel);
        let b = Program::generate(seed, Vendor::Amd);
        assert_eq!(a.code().len(), b.code().len());
        for (at, (x, y)) in a.code().iter().zip(b.code()).enumerate() {
            if x != y {
                differ += 1;
                assert_eq!((*x, *y), (0xc1, 0xd9));
                assert!(at >= 2 && a.code()[at - 2..at] == [0x0f, 0x01]);
            }
        }
    }
    assert!(differ > 50);
}

#[test]
fn instructions_fit_and_all_modes_come() {
    let mut seen = [0; Mode::ALL.len()];
    for seed in 0..2000 {
        let program = Program::generate(seed, Vendor::Amd);
        let starts: Vec<usize> = program.starts().collect();
        assert!(starts.is_sorted_by(|a, b| a < b), "seed {seed}");
        assert!(starts.len() > 5, "seed {seed}");
        let end = program.end();
        assert_eq!(program.code()[end..], [0xcd, 0x81, 0xcd, 0x81, 0xcd, 0x81], "seed {seed}");
        assert_eq!(program.next_start(end), end);
        assert_eq!(program.next_start(0), starts[1]);
        // The two pages of code hold it.
        assert!(program.code_at + program.code().len() as u64 <= 0x4000_3000, "seed {seed}");
        let mode = Mode::ALL.iter().position(|mode| *mode == program.mode).unwrap();
        seen[mode] += 1;
    }
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}
