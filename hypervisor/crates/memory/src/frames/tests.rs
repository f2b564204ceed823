//! Tests of the frame table.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

#[test]
fn joins_what_it_split() {
    let mut table = std::vec![Frame::ABSENT; 2048];
    let mut frames = FrameAllocator::new(&mut table);
    frames.add(Hfn::new(1), 2000);
    assert_eq!(frames.free_frames(), 2000);
    let big = frames.allocate(ORDER_2M, Owner::HYPERVISOR, Source::Spare).unwrap();
    assert_eq!(big.number() % 512, 0);
    assert_eq!(frames.owner(big), Owner::HYPERVISOR);
    assert_eq!(frames.free(big, ORDER_2M, Owner::HYPERVISOR), Ok(()));
    let again = frames.free(big, ORDER_2M, Owner::HYPERVISOR);
    assert_eq!(again, Err(NotYours { frame: big, owner: Owner::FREE }), "a second time");
    let mut all = Vec::new();
    while let Some(frame) = frames.allocate(0, Owner::GUESTS, Source::Spare) {
        all.push(frame);
    }
    assert_eq!(all.len(), 2000);
    assert_eq!(frames.free_frames(), 0);
    for frame in all {
        assert_eq!(frames.free(frame, 0, Owner::GUESTS), Ok(()));
    }
    assert!(
        frames.allocate(10, Owner::GUESTS, Source::Any).is_none(),
        "neither 0.. nor 1024.. is whole"
    );
    assert_eq!(frames.allocate(9, Owner::GUESTS, Source::Spare).unwrap().number() % 512, 0);
}

#[test]
fn nobody_gives_back_what_is_not_his() {
    let mut table = std::vec![Frame::ABSENT; 64];
    let mut frames = FrameAllocator::new(&mut table);
    frames.add(Hfn::new(0), 64);
    let (one, other) = (Owner(Owner::GUESTS.0), Owner(Owner::GUESTS.0 + 1));
    let mine = frames.allocate(2, one, Source::Spare).unwrap();
    let yours = frames.allocate(2, other, Source::Spare).unwrap();
    let free = frames.free_frames();
    let refused = frames.free(yours, 2, one);
    assert_eq!(refused, Err(NotYours { frame: yours, owner: other }));
    // A block of both: the first frame that is another one's is named.
    assert_eq!(mine.number() ^ yours.number(), 4, "they are buddies");
    let both = Hfn::new(mine.number().min(yours.number()));
    let refused = frames.free(both, 3, one).unwrap_err();
    assert_eq!((refused.frame, refused.owner), (yours, other));
    for nobody in [Owner::FREE, Owner::NOBODY] {
        let last = Hfn::new(63);
        assert!(frames.free(last, 0, nobody).is_err(), "free frames are nobody's to give");
        assert!(frames.free(Hfn::new(64), 0, nobody).is_err(), "nor are absent ones");
    }
    assert!(frames.free(Hfn::new(mine.number() + 1), 1, one).is_err(), "no block is there");
    assert_eq!((frames.free_frames(), frames.owner(yours)), (free, other));
    assert_eq!(frames.free(mine, 2, one), Ok(()));
    assert_eq!(frames.free(yours, 2, other), Ok(()));
    assert_eq!(frames.free_frames(), 64);
}

#[test]
fn what_is_promised_is_there() {
    let mut table = std::vec![Frame::ABSENT; 1024];
    let mut frames = FrameAllocator::new(&mut table);
    frames.add(Hfn::new(0), 1024);
    assert_eq!(frames.promise(1025), Err(1024));
    let mut promise = frames.promise(600).unwrap();
    assert_eq!(frames.promise(425), Err(424));
    // A whole block is free, but not to spare.
    assert_eq!(frames.allocate(ORDER_2M, Owner::HYPERVISOR, Source::Spare), None);
    assert!(frames.allocate(8, Owner::HYPERVISOR, Source::Spare).is_some());
    assert_eq!((frames.spare_frames(), frames.promised_frames()), (168, 600));
    assert!(frames.allocate(ORDER_2M, Owner::GUESTS, Source::Promised(&mut promise)).is_some());
    assert_eq!((frames.spare_frames(), frames.promised_frames()), (168, 88));
    let more = frames.allocate(7, Owner::GUESTS, Source::Promised(&mut promise));
    assert_eq!((more, promise.frames()), (None, 88), "more than was promised");
    frames.withdraw(promise);
    assert_eq!((frames.spare_frames(), frames.promised_frames()), (256, 0));
    assert_eq!(frames.allocate(63, Owner::GUESTS, Source::Any), None);
}

#[test]
fn a_pinned_frame_stays_until_the_last_pin() {
    let mut table = std::vec![Frame::ABSENT; 1024];
    let mut frames = FrameAllocator::new(&mut table);
    frames.add(Hfn::new(0), 1024);
    let (one, other) = (Owner(Owner::GUESTS.0), Owner(Owner::GUESTS.0 + 1));
    let block = frames.allocate(ORDER_2M, one, Source::Spare).unwrap();
    let pinned = Hfn::new(block.number() + 7);
    assert_eq!(frames.pin(pinned, other), Err(NotYours { frame: pinned, owner: one }));
    assert_eq!(frames.unpin(pinned), Err(NotPinned(pinned)));
    for _ in 0..2 {
        assert_eq!(frames.pin(pinned, one), Ok(()));
    }
    assert_eq!(frames.unpin(pinned), Ok(()));
    assert_eq!(frames.free(block, ORDER_2M, one), Ok(()));
    assert_eq!(frames.free_frames(), 1023);
    assert!(frames.free(pinned, 0, one).is_err() && frames.pin(pinned, one).is_err());
    assert!(frames.allocate(10, other, Source::Any).is_none());
    assert_eq!(frames.unpin(pinned), Ok(()));
    assert_eq!(frames.unpin(pinned), Err(NotPinned(pinned)));
    assert!(frames.allocate(10, other, Source::Any).is_some(), "all of it is one block again");
    let free = Hfn::new(1024);
    assert!(frames.pin(free, one).is_err() && frames.unpin(free).is_err());
}

proptest! {
    /// Whatever others take of the frames to spare, and in whichever pieces memory comes back:
    /// a taker that was promised frames gets them, one by one at least.
    #[test]
    fn promises_are_kept(
        steps in prop::collection::vec((0u8..10, 0u8..4, any::<prop::sample::Index>()), 1..200)
    ) {
        let mut table = std::vec![Frame::ABSENT; 1024];
        let mut frames = FrameAllocator::new(&mut table);
        frames.add(Hfn::new(5), 1000);
        let mut promised = Promise::NONE;
        let mut live: Vec<(Hfn, u8)> = Vec::new();
        for (order, what, which) in steps {
            let count = 1u64 << order;
            match what {
                0 => promised.join(frames.promise(count).unwrap_or_default()),
                1 if promised.frames() >= count => {
                    let source = Source::Promised(&mut promised);
                    let got = frames.allocate(order, Owner::GUESTS, source);
                    prop_assert!(got.is_some() || order > 0, "a promise is broken");
                    live.extend(got.map(|first| (first, order)));
                }
                2 => {
                    let got = frames.allocate(order, Owner::GUESTS, Source::Spare);
                    live.extend(got.map(|first| (first, order)));
                }
                3 if !live.is_empty() => {
                    let (first, order) = live.swap_remove(which.index(live.len()));
                    prop_assert_eq!(frames.free(first, order, Owner::GUESTS), Ok(()));
                }
                _ => {}
            }
            prop_assert_eq!(frames.promised_frames(), promised.frames());
            prop_assert!(frames.free_frames() >= promised.frames());
        }
        while promised.frames() != 0 {
            let source = Source::Promised(&mut promised);
            prop_assert!(frames.allocate(0, Owner::GUESTS, source).is_some());
        }
    }

    #[test]
    fn blocks_never_overlap(
        steps in prop::collection::vec((0u8..8, any::<bool>(), any::<prop::sample::Index>()), 1..200)
    ) {
        let mut table = std::vec![Frame::ABSENT; 1024];
        let mut frames = FrameAllocator::new(&mut table);
        frames.add(Hfn::new(3), 900);
        let mut live: BTreeMap<u64, u8> = BTreeMap::new();
        for (order, take, which) in steps {
            if take || live.is_empty() {
                if let Some(first) = frames.allocate(order, Owner::GUESTS, Source::Spare) {
                    let n = first.number();
                    prop_assert_eq!(n % (1 << order), 0);
                    prop_assert!(n >= 3 && n + (1 << order) <= 903);
                    for (other, other_order) in &live {
                        prop_assert!(n + (1 << order) <= *other || other + (1 << *other_order) <= n);
                    }
                    live.insert(n, order);
                }
            } else {
                let key = *which.get(&live.keys().copied().collect::<Vec<_>>());
                let order = live.remove(&key).unwrap();
                prop_assert_eq!(frames.free(Hfn::new(key), order, Owner::GUESTS), Ok(()));
            }
            let used: u64 = live.values().map(|o| 1u64 << o).sum();
            prop_assert_eq!(frames.free_frames(), 900 - used);
        }
    }
}
