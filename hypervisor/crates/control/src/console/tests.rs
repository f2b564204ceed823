//! Tests of rings and keys.

extern crate std;
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

fn all(ring: &mut Ring) -> Vec<u8> {
    let mut out = Vec::new();
    while !ring.is_empty() {
        let piece = ring.front().to_vec();
        ring.consume(piece.len());
        out.extend(piece);
    }
    out
}

#[test]
fn a_ring_keeps_the_newest_and_counts_the_rest() {
    let mut ring = Ring::new(4).unwrap();
    assert_eq!(ring.begin(), 0);
    ring.push(b"abc");
    assert_eq!((ring.len(), ring.dropped()), (3, 0));
    ring.push(b"def");
    assert_eq!((ring.dropped(), ring.begin(), ring.begin()), (2, 2, 0));
    assert_eq!(all(&mut ring), b"cdef");
    ring.push(b"0123456789");
    assert_eq!(ring.begin(), 6);
    assert_eq!(all(&mut ring), b"6789");
    assert_eq!(ring.written(), 16);
}

#[test]
fn a_ring_of_nothing_keeps_nothing() {
    let mut ring = Ring::new(0).unwrap();
    ring.push(b"abc");
    assert_eq!((ring.len(), ring.begin()), (0, 3));
}

#[test]
fn a_line_that_was_cut_is_not_shown() {
    let mut ring = Ring::new(8).unwrap();
    ring.push(b"\x1b[31mred\nnew\n");
    // The colour went by itself, "red\n" goes with it.
    assert_eq!(ring.begin(), 5 + 4);
    assert_eq!(all(&mut ring), b"new\n");
    // Nothing was cut: nothing goes.
    ring.push(b"a\nb\n");
    assert_eq!(ring.begin(), 0);
    assert_eq!(all(&mut ring), b"a\nb\n");
}

proptest! {
    #[test]
    fn a_ring_is_the_end_of_what_was_written(
        size in 0_usize..50,
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10),
    ) {
        let mut ring = Ring::new(size).unwrap();
        for piece in &pieces {
            ring.push(piece);
        }
        let whole = pieces.concat();
        let kept = whole.len().min(size);
        prop_assert_eq!(ring.dropped(), (whole.len() - kept) as u64);
        prop_assert_eq!(ring.written(), whole.len() as u64);
        prop_assert!(ring.memory() >= size);
        prop_assert_eq!(all(&mut ring), &whole[whole.len() - kept..]);
    }
}

fn typed(keys: &mut Keys, text: &[u8]) -> (Vec<u8>, Vec<Typed>) {
    let mut input = Vec::new();
    let mut others = Vec::new();
    for byte in text {
        match keys.feed(*byte) {
            Typed::Input(bytes) => input.extend(bytes),
            other => others.push(other),
        }
    }
    (input, others)
}

fn usual(text: &[u8]) -> (Vec<u8>, Vec<Typed>) {
    typed(&mut Keys::default(), text)
}

#[test]
fn keys() {
    assert_eq!(usual(b"ab\x03"), (b"ab\x03".to_vec(), Vec::new()));
    assert_eq!(usual(b"a\x1dpb"), (b"ab".to_vec(), [Typed::PowerButton].to_vec()));
    assert_eq!(usual(b"\x1d\x1dp"), (b"\x1dp".to_vec(), Vec::new()));
    assert_eq!(usual(b"\x1dx"), (b"\x1dx".to_vec(), Vec::new()));
    let (input, others) = usual(b"\x1d1a\x1d9b\x1dmc\x1dqd\x1d0");
    assert_eq!(input, b"abcd\x1d0");
    assert_eq!(others, [Typed::Attach(1), Typed::Attach(9), Typed::Monitor, Typed::Quit]);
}

#[test]
fn the_key_can_be_another() {
    let mut keys = Keys::new(0x01);
    let (input, others) = typed(&mut keys, b"\x1dm\x01m\x01\x01");
    assert_eq!((&input[..], &others[..]), (&b"\x1dm\x01"[..], &[Typed::Monitor][..]));
    // The operator's key may even be a letter, which can still be typed then.
    let mut keys = Keys::new(b'm');
    let (input, others) = typed(&mut keys, b"ammm1");
    assert_eq!((&input[..], &others[..]), (&b"am"[..], &[Typed::Attach(1)][..]));
}
