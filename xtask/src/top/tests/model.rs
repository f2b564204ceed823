//! Rates, order, selection, keys.

use control::status::{GuestInfo, GuestState, Statistics};
use control::{GuestRef, Operation};
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::super::model::{Action, Asked, Effect, Message, Model, Sort, key};
use super::super::picture::Kind;
use super::{S, exit, guest, statistics};

fn taken(statistics: impl IntoIterator<Item = Statistics>) -> Model {
    let mut model = Model::new(Sort::Cpu);
    for statistics in statistics {
        model.take(statistics);
    }
    model
}

fn names(model: &Model) -> Vec<&str> {
    model.rows().iter().map(|row| row.name.as_str()).collect()
}

fn selected(model: &Model) -> &str {
    &model.selected_row().unwrap().name
}

#[test]
fn rates_are_of_the_time_between_two_looks() {
    let mut model = taken([statistics(10 * S, vec![guest(1, "a", 4 * S, 1000)])]);
    let head = model.head().unwrap();
    assert_eq!((head.up_ns, head.online, head.busy), (10 * S, 1, Some(500)));
    assert!(head.since_start);
    // (4 s + 0.2 s of service) of 10 s; 100 exits/s.
    assert_eq!((model.rows()[0].cpu, model.rows()[0].exits), (Some(420), Some(1000)));

    model.take(statistics(12 * S, vec![guest(1, "a", 5 * S, 1401)]));
    let head = model.head().unwrap();
    assert!(!head.since_start);
    assert_eq!((head.free, head.total, head.busy), (3 << 30, 4 << 30, Some(500)));
    let row = &model.rows()[0];
    assert_eq!((row.cpu, row.service, row.throttled), (Some(525), Some(25), Some(63)));
    // 1 : 1/2 : 1/4.
    assert_eq!((row.run, row.ready, row.wait), (Some(571), Some(286), Some(143)));
    assert_eq!((row.exits, row.touched, row.memory), (Some(2005), 10 << 20, 512 << 20));
    assert_eq!(
        row.kinds,
        [
            Kind {
                reason: "port_io".into(),
                rate: Some(1505),
                share: Some(751),
                each_ns: Some(S / 10 / 301),
                of_run: Some(100),
            },
            Kind {
                reason: "halt".into(),
                rate: Some(500),
                share: Some(249),
                each_ns: None,
                of_run: None,
            },
        ]
    );
}

#[test]
fn kinds_are_summed_over_vcpus_and_those_without_news_are_left_out() {
    let mut before = guest(1, "a", S, 8);
    before.vcpus.push(before.vcpus[0].clone());
    let mut now = before.clone();
    now.vcpus[0].exits[1].count += 5;
    now.vcpus[1].exits[1].count += 7;
    now.vcpus[1].exits.push(exit("cpuid", 30, None));
    let model = taken([statistics(10 * S, vec![before]), statistics(11 * S, vec![now])]);
    let kinds: Vec<(&str, Option<u64>)> =
        model.rows()[0].kinds.iter().map(|kind| (kind.reason.as_str(), kind.rate)).collect();
    assert_eq!(kinds, [("cpuid", Some(300)), ("port_io", Some(120))]);
    assert_eq!(model.rows()[0].vcpus, 2);
}

#[test]
fn without_time_there_are_no_rates() {
    let model = taken(vec![statistics(10 * S, vec![guest(1, "a", S, 8)]); 2]);
    let row = &model.rows()[0];
    assert_eq!((row.cpu, row.run, row.exits, model.head().unwrap().busy), (None, None, None, None));
    assert!(row.kinds.is_empty());
    let model = taken([statistics(0, vec![guest(1, "a", 0, 0)])]);
    assert_eq!(model.rows()[0].cpu, None);
}

#[test]
fn a_guest_that_was_started_anew_counts_from_there() {
    let before = statistics(10 * S, vec![guest(1, "a", 4 * S, 1000)]);
    let model = taken([before.clone(), statistics(12 * S, vec![guest(1, "a", S, 400)])]);
    let row = &model.rows()[0];
    assert_eq!((row.cpu, row.exits), (Some(525), Some(2000)));
    assert_eq!(row.kinds[0].rate, Some(1500));
    // A guest that has lived longer than the period was not started anew: its clock is a little
    // off.
    let model = taken([before, statistics(12 * S, vec![guest(1, "a", 4 * S - 4, 1000)])]);
    let row = &model.rows()[0];
    assert_eq!((row.cpu, row.exits), (Some(0), Some(0)));
}

#[test]
fn a_machine_that_was_started_anew_counts_from_there() {
    let mut model = taken([
        statistics(100 * S, vec![guest(1, "a", 50 * S, 1000)]),
        statistics(101 * S, vec![guest(1, "a", 51 * S, 1000)]),
    ]);
    let known = |model: &Model| model.minute(&model.rows()[0], 60).iter().flatten().count();
    assert_eq!(known(&model), 1);
    model.take(statistics(2 * S, vec![guest(1, "a", S, 10)]));
    assert!(model.head().unwrap().since_start);
    assert_eq!(model.rows()[0].cpu, Some(525));
    assert_eq!(known(&model), 0);
}

#[test]
fn orders() {
    let guests = |run: [u64; 3]| {
        vec![
            guest(1, "gamma", run[0], 30),
            guest(2, "alpha", run[1], 20),
            guest(3, "beta", run[2], 40),
        ]
    };
    let mut model = taken([statistics(10 * S, guests([S, S, S]))]);
    assert_eq!(names(&model), ["gamma", "alpha", "beta"], "the same share: by number");
    let mut now = statistics(11 * S, guests([S, 2 * S, S + S / 2]));
    now.guests[0].vcpus[0].exits[0].count += 100;
    model.take(now);
    assert_eq!(names(&model), ["alpha", "beta", "gamma"]);
    let mut orders = Vec::new();
    for _ in 0..4 {
        assert_eq!(model.act(Action::Sort), None);
        orders.push((model.sort(), names(&model).join(" ")));
    }
    let wanted = [
        (Sort::Memory, "beta alpha gamma"),
        (Sort::Exits, "gamma alpha beta"),
        (Sort::Name, "alpha beta gamma"),
        (Sort::Cpu, "alpha beta gamma"),
    ];
    assert_eq!(orders, wanted.map(|(sort, names)| (sort, names.to_owned())));
}

#[test]
fn the_selection_stays_with_its_guest() {
    let all = vec![guest(1, "a", 0, 0), guest(2, "b", 0, 0), guest(3, "c", 0, 0)];
    let mut model = taken([statistics(S, all.clone())]);
    assert_eq!(selected(&model), "a");
    model.act(Action::Up);
    assert_eq!(selected(&model), "a");
    model.act(Action::Down);
    assert_eq!(selected(&model), "b");
    // The selected guest moves up.
    let mut busy = all.clone();
    busy[1] = guest(2, "b", S, 0);
    model.take(statistics(2 * S, busy));
    assert_eq!((names(&model)[0], selected(&model)), ("b", "b"));
    model.act(Action::Last);
    assert_eq!(selected(&model), "c");
    model.act(Action::Down);
    assert_eq!(selected(&model), "c");
    // It vanishes: the one that now stands where it stood, or the last one.
    model.take(statistics(3 * S, all[..2].to_vec()));
    assert_eq!((model.rows().len(), selected(&model)), (2, "b"));
    model.take(statistics(4 * S, vec![]));
    assert_eq!((model.selected(), model.act(Action::Pause)), (None, None));
    model.take(statistics(5 * S, all));
    assert_eq!(selected(&model), "a");
    model.act(Action::First);
    assert_eq!(model.selected(), Some(0));
}

#[test]
fn pause_and_resume_are_asked_for() {
    let mut model = taken([statistics(S, vec![guest(7, "a", 0, 0)])]);
    let wanted =
        Asked { what: "pause 7 a".into(), operation: Operation::Pause(GuestRef::Number(7)) };
    assert_eq!(model.act(Action::Pause), Some(Effect::Ask(wanted)));
    let info = GuestInfo {
        number: 7,
        name: "a".into(),
        uuid: None,
        state: GuestState::Paused,
        attached: false,
        memory: 0,
        vcpus: 1,
        weight: 100,
        cap: None,
        up_ns: None,
        starts: 1,
        last_end: None,
        console_kept: 0,
        console_dropped: 0,
    };
    model.answered(&info);
    assert_eq!(model.rows()[0].state, GuestState::Paused);
    assert_eq!(model.message(), Some(&Message::Note("7 a: paused".into())));
    let Some(Effect::Ask(asked)) = model.act(Action::Resume) else { panic!("nothing is asked") };
    assert_eq!(asked.operation, Operation::Resume(GuestRef::Number(7)));
    // A refusal outlives the next picture, but not the next key.
    model.failed("refused".into());
    model.take(statistics(2 * S, vec![guest(7, "a", 0, 0)]));
    assert_eq!(model.message(), Some(&Message::Failure("refused".into())));
    model.act(Action::Sort);
    assert_eq!(model.message(), None);
}

#[test]
fn trouble_ends_with_the_next_picture() {
    let mut model = taken([statistics(S, vec![])]);
    model.wait(4);
    assert_eq!(model.late(), Some(4));
    model.trouble("gone".into());
    assert_eq!(model.late(), None);
    model.act(Action::Sort);
    assert_eq!(model.message(), Some(&Message::Trouble("gone".into())));
    model.act(Action::Freeze);
    model.take(statistics(2 * S, vec![]));
    assert_eq!(model.message(), None);
}

#[test]
fn a_frozen_picture_stays() {
    let mut model = taken([statistics(S, vec![guest(1, "a", 0, 0)])]);
    model.act(Action::Freeze);
    assert!(model.frozen());
    model.take(statistics(2 * S, vec![guest(1, "a", S, 0)]));
    assert_eq!((model.head().unwrap().up_ns, model.rows()[0].cpu), (S, Some(0)));
    model.act(Action::Freeze);
    // Afterwards the shares are of all the time that was not shown.
    model.take(statistics(3 * S, vec![guest(1, "a", S, 0)]));
    assert_eq!((model.head().unwrap().up_ns, model.rows()[0].cpu), (3 * S, Some(525)));
}

#[test]
fn the_last_minute() {
    let mut model = taken([statistics(0, vec![guest(1, "a", 0, 0)])]);
    assert_eq!(model.minute(&model.rows()[0], 4), [None; 4]);
    let mut run = 0;
    for second in 1..=100 {
        // Busy from second 70 to 80.
        run += if (71..=80).contains(&second) { S } else { 0 };
        model.take(statistics(second * S, vec![guest(1, "a", run, 0)]));
    }
    let minute = |model: &Model, parts| model.minute(&model.rows()[0], parts);
    assert_eq!(minute(&model, 6), [0, 0, 0, 1050, 0, 0].map(Some));
    assert_eq!(minute(&model, 0), []);
    // A young machine's minute is empty at the left; one statistics may fill several parts.
    let young = taken([
        statistics(0, vec![guest(1, "a", 0, 0)]),
        statistics(20 * S, vec![guest(1, "a", 10 * S, 0)]),
    ]);
    assert_eq!(minute(&young, 6), [None, None, None, None, Some(525), Some(525)]);
    // Another guest of that number has a minute of its own.
    model.take(statistics(101 * S, vec![guest(1, "b", 0, 0)]));
    model.take(statistics(102 * S, vec![guest(1, "b", 0, 0)]));
    assert_eq!(minute(&model, 60).iter().flatten().count(), 2);
}

#[test]
fn keys() {
    let press = |code| key(KeyEvent::new(code, KeyModifiers::NONE));
    let table = [
        (KeyCode::Char('q'), Action::Quit),
        (KeyCode::Esc, Action::Quit),
        (KeyCode::Up, Action::Up),
        (KeyCode::Char('k'), Action::Up),
        (KeyCode::Down, Action::Down),
        (KeyCode::Char('j'), Action::Down),
        (KeyCode::Home, Action::First),
        (KeyCode::End, Action::Last),
        (KeyCode::Char('s'), Action::Sort),
        (KeyCode::Char('p'), Action::Pause),
        (KeyCode::Char('r'), Action::Resume),
        (KeyCode::Char(' '), Action::Freeze),
    ];
    for (code, action) in table {
        assert_eq!(press(code), Some(action), "{code}");
    }
    assert_eq!(press(KeyCode::Char('c')), None);
    assert_eq!(press(KeyCode::Enter), None);
    let control = |code| key(KeyEvent::new(code, KeyModifiers::CONTROL));
    assert_eq!(control(KeyCode::Char('c')), Some(Action::Quit));
    // Ctrl-P pauses nothing.
    assert_eq!(control(KeyCode::Char('p')), None);
    let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
    released.kind = KeyEventKind::Release;
    assert_eq!(key(released), None);
    assert_eq!(Model::new(Sort::Cpu).act(Action::Quit), Some(Effect::Quit));
}
