use crate::backlog::{Backlog, SIZE};
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use proptest::prelude::*;

fn prepared() -> Backlog {
    let mut backlog = Backlog::new();
    backlog.push("before there is memory", 40);
    assert!(backlog.is_empty());
    backlog.prepare().unwrap();
    backlog
}

fn rest(backlog: &mut Backlog) -> String {
    core::iter::from_fn(|| backlog.pop()).collect()
}

#[test]
fn everything_that_fits_comes_out_in_order() {
    let mut backlog = prepared();
    assert!(backlog.is_empty());
    backlog.push("one\ntw", 40);
    backlog.push("o\nthrée", 40);
    assert!(!backlog.is_empty());
    assert!(!backlog.skip(40));
    assert_eq!(rest(&mut backlog), "one\ntwo\nthrée");
    assert!(backlog.is_empty());
    assert_eq!(backlog.pop(), None);
}

#[test]
fn lines_that_would_be_overwritten_are_left_out() {
    let mut backlog = prepared();
    (0..10).for_each(|line| backlog.push(&format!("line {line}\n"), 3));
    assert_eq!(backlog.pop(), Some('l'));
    assert!(backlog.skip(3));
    assert!(!backlog.skip(3), "it is said once");
    assert_eq!(rest(&mut backlog), "line 7\nline 8\nline 9\n");
}

/// Old lines go if there is no room: the operator needs the newest ones.
#[test]
fn a_full_backlog_loses_its_oldest_lines() {
    let mut backlog = prepared();
    let line = |number: usize| format!("{number:0>99}\n");
    (0..1000).for_each(|number| backlog.push(&line(number), 40));
    assert!(backlog.text.len() <= SIZE);
    assert!(backlog.skip(40));
    let kept = rest(&mut backlog);
    let wanted: String = (960..1000).map(line).collect();
    assert_eq!(kept, wanted);
}

#[test]
fn a_text_beyond_all_room_is_left_out_alone() {
    let mut backlog = prepared();
    backlog.push("before\n", 40);
    backlog.push(&"x".repeat(SIZE), 40);
    backlog.push("after\n", 40);
    assert_eq!(rest(&mut backlog), "before\nafter\n");
}

proptest! {
    /// Whatever is left out, what is drawn was said, in that order, up to the end.
    #[test]
    fn what_is_left_is_the_end(
        texts in proptest::collection::vec("[a-zé\n]{0,40}", 0..60),
        pops in proptest::collection::vec(0_usize..20, 60),
        rows in 1_usize..6,
    ) {
        let mut backlog = prepared();
        let said: String = texts.concat();
        let mut drawn: Vec<String> = vec![String::new()];
        for (text, pops) in texts.iter().zip(pops) {
            backlog.push(text, rows);
            if backlog.skip(rows) {
                drawn.push(String::new());
            }
            for character in (0..pops).map_while(|_| backlog.pop()) {
                drawn.last_mut().expect("there is one").push(character);
            }
        }
        if backlog.skip(rows) {
            drawn.push(String::new());
        }
        drawn.last_mut().expect("there is one").push_str(&rest(&mut backlog));
        // Each piece is in what was said, in order; the last is its end.
        let mut at = 0;
        for (index, piece) in drawn.iter().enumerate() {
            if index == drawn.len() - 1 {
                prop_assert!(said.get(at..).is_some_and(|rest| rest.ends_with(piece.as_str())));
                break;
            }
            let found = said.get(at..).and_then(|rest| rest.find(piece.as_str()));
            prop_assert!(found.is_some(), "{piece:?} in {:?}", said.get(at..));
            at += found.unwrap_or_default() + piece.len();
        }
        prop_assert!(backlog.is_empty());
    }
}
