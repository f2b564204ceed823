//! The screen, line by line.

use control::status::GuestState;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};

use super::super::model::{Action, Model, Sort};
use super::super::view::draw;
use super::{S, guest, statistics};

fn drawn(model: &Model, width: u16, height: u16) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    terminal.backend().clone()
}

fn screen(model: &Model, width: u16, height: u16) -> String {
    let backend = drawn(model, width, height);
    let buffer = backend.buffer();
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Three guests; the busiest one, which has two vCPUs, is selected.
fn model() -> Model {
    let mut model = Model::new(Sort::Cpu);
    for second in 0..=8 {
        let share = |percent| second * percent * S / 100;
        let mut beta = guest(2, "beta", share(90), second * 4000);
        beta.vcpus.push(Default::default());
        let mut gamma = guest(12, "gamma-with-a-long-name", 0, 0);
        gamma.state = GuestState::Paused;
        gamma.vcpus[0].times.paused_ns = second * S;
        // Less in each second.
        let alpha = guest(1, "alpha", second * (20 - second) * S / 20, second / 8);
        model.take(statistics(100 * S + second * S, vec![alpha, beta, gamma]));
    }
    model.act(Action::First);
    model
}

#[test]
fn a_common_terminal() {
    assert_eq!(
        screen(&model(), 80, 14),
        "\
up 1:48 min; 1 CPU(s), 50.0 % busy; 3 GiB of 4 GiB free                   by cpu
 # NAME      STATE      CPU% 1 MIN   RUN% READY% WAIT% EXITS/S  TOUCHED   MEMORY
 2 beta      running    94.5      ▄  57.1   28.6  14.3    4000   20 MiB  512 MiB
 1 alpha     running    26.3      ▇  57.1   28.6  14.3     1.0   10 MiB  512 MiB
12 gamma-wi~ paused      0.0      ▁     -      -     -       0  120 MiB  512 MiB
 beta: 2 vCPU(s), 4.5 % in service, 11.3 % throttled ───────────────────────────
EXIT                      /S     %     EACH % OF RUN
port_io                 3000  75.0  30.0 us     10.0
halt                    1000  25.0        -        -




q quit  ↑↓ select  s sort  p pause  r resume  space freeze
"
    );
}

#[test]
fn a_wide_terminal() {
    assert_eq!(
        screen(&model(), 120, 8),
        "\
up 1:48 min; 1 CPU(s), 50.0 % busy; 3 GiB of 4 GiB free                                                           by cpu
 # NAME                   STATE      CPU% 1 MIN                           RUN% READY% WAIT% EXITS/S  TOUCHED   MEMORY
 2 beta                   running    94.5                           ▄▄▄▄  57.1   28.6  14.3    4000   20 MiB  512 MiB
 1 alpha                  running    26.3                           ▇▆▅▃  57.1   28.6  14.3     1.0   10 MiB  512 MiB
12 gamma-with-a-long-name paused      0.0                           ▁▁▁▁     -      -     -       0  120 MiB  512 MiB


q quit  ↑↓ select  s sort  p pause  r resume  space freeze
"
    );
}

#[test]
fn a_narrow_terminal() {
    assert_eq!(
        screen(&model(), 40, 10),
        "\
up 1:48 min; 1 CPU(s), 50.0 % busy; 3 Gi
 # NAME          STATE      CPU% EXITS/S
 2 beta          running    94.5    4000
 1 alpha         running    26.3     1.0
12 gamma-with-a~ paused      0.0       0
 beta: 2 vCPU(s), 4.5 % in service, 11.3
EXIT                      /S     %
port_io                 3000  75.0

q quit  ↑↓ select  s sort  p pause  r re
"
    );
}

#[test]
fn colours() {
    let backend = drawn(&model(), 80, 14);
    let cell = |x, y| &backend.buffer()[(x, y)];
    // The selected guest, the paused one, the running one.
    assert!(cell(3, 2).modifier.contains(Modifier::REVERSED));
    assert!(!cell(3, 3).modifier.contains(Modifier::REVERSED));
    let states: Vec<Color> = (2..5).map(|y| cell(13, y).fg).collect();
    assert_eq!(states, [Color::Green, Color::Green, Color::Yellow]);
}

#[test]
fn before_the_first_picture() {
    let mut model = Model::new(Sort::Cpu);
    model.wait(7);
    let text = screen(&model, 60, 5);
    assert_eq!(
        text,
        "\
no picture yet
 # NAME   STATE      CPU%  RUN% READY% EXITS/S  TOUCHED

nothing has come for 7 s; waiting
q quit  ↑↓ select  s sort  p pause  r resume  space freeze
"
    );
}

#[test]
fn what_the_status_line_says() {
    let mut model = model();
    let status = |model: &Model| screen(model, 60, 8).lines().nth(6).unwrap().to_owned();
    assert_eq!(status(&model), "");
    model.act(Action::Pause);
    assert_eq!(status(&model), "pause 2 beta: asked");
    model.failed("pause 2 beta: refused".into());
    assert_eq!(status(&model), "pause 2 beta: refused");
    assert_eq!(drawn(&model, 60, 8).buffer()[(0, 6)].fg, Color::Red);
    model.act(Action::Freeze);
    assert!(screen(&model, 80, 8).lines().next().unwrap().ends_with("  frozen"));
}

#[test]
fn the_selected_guest_is_in_sight() {
    let mut model = Model::new(Sort::Name);
    let guests = (1..=50).map(|number| guest(number, &format!("guest{number:02}"), 0, 0));
    model.take(statistics(S, guests.collect()));
    assert!(!screen(&model, 60, 10).contains("guest50"));
    model.act(Action::Last);
    assert!(screen(&model, 60, 10).contains("guest50"));
    // With room for the table and the pane, the pane stays.
    assert!(screen(&model, 60, 20).contains("guest50: 1 vCPU(s)"));
}

#[test]
fn every_size_does() {
    let model = model();
    for (width, height) in
        (1..=130).map(|width| (width, 9)).chain((1..=40).map(|height| (80, height)))
    {
        let text = screen(&model, width, height);
        assert_eq!(text.lines().count(), usize::from(height));
    }
    for (width, height) in [(1, 1), (2, 2), (3, 3), (4, 1), (1, 30), (0, 0)] {
        drawn(&model, width, height);
    }
}
