use crate::offset::GOOD_US;
use crate::{Adjustments, Offset, SecondEdge, Standing};
use proptest::prelude::*;

/// A tick is a nanosecond.
const KHZ: u64 = 1_000_000;

/// `rounds` exchanges with a CPU whose TSC shows `offset` more; each message takes from 40
/// ticks to what is said.
fn exchanges(offset: i64, rounds: &[(u64, u64)]) -> Offset {
    let mut found = Offset::UNKNOWN;
    let mut now = 1 << 40;
    for (there, back) in rounds {
        let sent = now;
        now += 40 + there;
        let theirs = now.wrapping_add_signed(offset);
        now += 40 + back;
        found.exchange(sent, theirs, now);
    }
    found
}

#[test]
fn two_that_agree() {
    let found = exchanges(0, &[(500, 20), (3, 900), (10, 10)]);
    assert_eq!(found.standing(KHZ), Standing::Together);
    assert!(found.width() <= 100, "{found:?}");
}

#[test]
fn one_that_is_ahead_or_behind_is_found_from_both_sides() {
    for offset in [-5_000_000, -200, 200, 5_000_000, i64::MIN / 2, i64::MAX / 2] {
        let found = exchanges(offset, &[(500, 20), (3, 900), (10, 10)]);
        let Standing::Apart(by) = found.standing(KHZ) else { panic!("{offset}: {found:?}") };
        assert!(by.abs_diff(offset) <= 60, "{offset}: {by}");
    }
}

#[test]
fn less_than_a_message_takes_can_not_be_told() {
    assert_eq!(exchanges(30, &[(10, 10)]).standing(KHZ), Standing::Together);
    assert_eq!(Offset::UNKNOWN.standing(KHZ), Standing::Unseen(u64::MAX));
    assert_eq!(Offset::UNKNOWN.width(), u64::MAX);
}

#[test]
fn what_is_not_seen_is_not_together() {
    // Each message takes milliseconds, and whatever is less than that hides behind it.
    for offset in [0, 1_000_000, -2_400_000] {
        let found = exchanges(offset, &[(2_500_000, 2_500_000); 6]);
        assert_eq!(found.standing(KHZ), Standing::Unseen(found.width()), "{offset}");
        assert!(found.width().abs_diff(5_000_000) < 200, "{found:?}");
    }
    // The limit, and the same exchanges where a tick takes longer.
    let limit = GOOD_US * 1_000;
    let wide = |width| {
        let mut found = Offset::UNKNOWN;
        found.exchange(1_000, 1_001, 1_000 + width);
        found
    };
    assert_eq!(wide(limit).standing(KHZ), Standing::Together);
    assert_eq!(wide(limit + 1).standing(KHZ), Standing::Unseen(limit + 1));
    assert_eq!(wide(limit).standing(KHZ / 2), Standing::Unseen(limit));
    assert_eq!(wide(limit).standing(u64::MAX), Standing::Together);
    assert_eq!(wide(0).standing(0), Standing::Apart(1));
    // However wide, if it excludes 0 the two are apart.
    let found = exchanges(9_000_000, &[(2_500_000, 2_500_000); 6]);
    assert!(matches!(found.standing(KHZ), Standing::Apart(_)));
}

#[test]
fn what_is_promised() {
    use Adjustments::{Alike, Different, Guessed};
    let unseen = Standing::Unseen(5_000_000);
    for adjustments in [Alike, Different, Guessed] {
        assert!(Standing::Together.is_promised(adjustments));
        assert!(!Standing::Apart(1).is_promised(adjustments));
        assert!(!Standing::Uneven.is_promised(adjustments));
        assert_eq!(unseen.is_promised(adjustments), adjustments == Alike);
    }
}

#[test]
fn a_tsc_that_runs_away_is_uneven() {
    let mut found = Offset::UNKNOWN;
    found.exchange(1_000, 1_050, 1_100);
    found.exchange(2_000, 3_050, 2_100);
    assert_eq!(found.standing(KHZ), Standing::Uneven);
    assert_eq!(found.width(), 0);
}

proptest! {
    #[test]
    fn the_true_offset_is_within_the_bounds(
        offset in -1_i64 << 40..1 << 40,
        rounds in prop::collection::vec((0_u64..100_000, 0_u64..100_000), 1..30),
    ) {
        let found = exchanges(offset, &rounds);
        match found.standing(KHZ) {
            Standing::Together => {
                prop_assert!(found.width() <= GOOD_US * 1_000);
                prop_assert!(offset.unsigned_abs() <= found.width());
            }
            Standing::Unseen(width) => {
                prop_assert!(width > GOOD_US * 1_000 && width == found.width());
                prop_assert!(offset.unsigned_abs() <= width);
            }
            Standing::Apart(by) => prop_assert!(by.abs_diff(offset) <= found.width() / 2 + 1),
            Standing::Uneven => prop_assert!(false, "{:?}", found),
        }
    }

    #[test]
    fn any_exchanges(all in prop::collection::vec(any::<[u64; 3]>(), 0..9)) {
        let mut found = Offset::UNKNOWN;
        for [sent, theirs, heard] in all {
            found.exchange(sent, theirs, heard);
            let _ = (found.width(), found.standing(KHZ), found.standing(sent));
        }
    }
}

const NANOS: u64 = 1_000_000_000;

#[test]
fn a_second_that_begins_between_two_looks() {
    // 1 GHz: a tick is a nanosecond.
    let mut edge = SecondEdge::NEW;
    assert_eq!(edge.wall(1_000_000), None);
    edge.look(0, 100, 10);
    // The second may have just begun or be about to end.
    let wall = edge.wall(1_000_000).unwrap();
    assert_eq!((wall.nanos, wall.unsure), (100 * NANOS + NANOS / 2, NANOS / 2));
    // It was shown for 0.6 s: the 0.4 s that it can be too early or late have halves.
    edge.look(600_000_000, 100, 600_000_010);
    let wall = edge.wall(1_000_000).unwrap();
    assert!(wall.nanos.abs_diff(100 * NANOS + 800_000_000) < 20, "{wall:?}");
    assert!(wall.unsure.abs_diff(200_000_000) < 20, "{wall:?}");
    // The second changes.
    edge.look(700_000_000, 101, 700_000_010);
    let wall = edge.wall(1_000_000).unwrap();
    assert_eq!(wall.nanos, 101 * NANOS);
    assert!(wall.tsc.abs_diff(650_000_000) < 20 && wall.unsure.abs_diff(50_000_000) < 20);
    // A change that is seen better counts from then on, one that is seen worse does not.
    edge.look(1_649_000_000, 101, 1_649_000_010);
    edge.look(1_651_000_000, 102, 1_651_000_010);
    let wall = edge.wall(1_000_000).unwrap();
    assert_eq!(wall.nanos, 102 * NANOS);
    assert!(wall.unsure <= 1_000_010, "{wall:?}");
    edge.look(2_800_000_000, 103, 2_800_000_010);
    assert_eq!(edge.wall(1_000_000), Some(wall));
    // Somebody sets the clock: what was known is void.
    edge.look(2_900_000_000, 5_000, 2_900_000_010);
    assert_eq!(edge.wall(1_000_000).unwrap().unsure, NANOS / 2);
}

proptest! {
    /// The wall clock is never further off than it says.
    #[test]
    fn the_wall_clock_is_as_exact_as_it_says(
        begins in 0_u64..NANOS,
        pauses in prop::collection::vec(1_u64..400_000_000, 1..20),
    ) {
        let mut edge = SecondEdge::NEW;
        let mut now = 0;
        for pause in pauses {
            let second = 77 + (now + 50 + begins) / NANOS;
            edge.look(now, second, now + 100);
            now += 100 + pause;
        }
        let wall = edge.wall(1_000_000).unwrap();
        let truth = 77 * NANOS + begins + wall.tsc;
        prop_assert!(wall.nanos.abs_diff(truth) <= wall.unsure + 200, "{:?} {}", wall, truth);
    }
}
