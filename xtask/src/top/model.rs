//! Content of the table, but for how it looks: statistics, an order and a selection
//! come to ordered rows, keys to actions. Nothing here reads or writes.

use std::cmp::Reverse;
use std::fmt;

use clap::ValueEnum;
use control::status::{GuestInfo, Statistics};
use control::{GuestRef, Operation};
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::history::History;
use super::picture::{Head, Row, picture};

/// Order of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// The guest that uses the most CPU time stands first.
    #[default]
    Cpu,
    /// The guest that has touched the most memory stands first.
    Memory,
    /// The guest that exits the most often stands first.
    Exits,
    /// By name.
    Name,
}

impl Sort {
    /// The order that comes after this one.
    const fn next(self) -> Self {
        match self {
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Exits,
            Self::Exits => Self::Name,
            Self::Name => Self::Cpu,
        }
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Exits => "exits",
            Self::Name => "name",
        })
    }
}

/// Text of the status line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A request was sent or done.
    Note(String),
    /// A request was refused, or got no answer.
    Failure(String),
    /// No picture comes; the next one that does ends it.
    Trouble(String),
}

/// Action that a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// To end.
    Quit,
    /// The guest above.
    Up,
    /// The guest below.
    Down,
    /// The first guest.
    First,
    /// The last guest.
    Last,
    /// Another order.
    Sort,
    /// To pause the selected guest.
    Pause,
    /// To resume the selected guest.
    Resume,
    /// To keep this picture, or to go on.
    Freeze,
}

/// Effect of an action on the world outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The end.
    Quit,
    /// A request about a guest.
    Ask(Asked),
}

/// A request about a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The request in words.
    pub what: String,
    /// The request.
    pub operation: Operation,
}

/// The key's action.
#[must_use]
pub fn key(event: KeyEvent) -> Option<Action> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    if event.modifiers.contains(KeyModifiers::CONTROL) {
        return (event.code == KeyCode::Char('c')).then_some(Action::Quit);
    }
    Some(match event.code {
        KeyCode::Char('q') | KeyCode::Esc => Action::Quit,
        KeyCode::Up | KeyCode::Char('k') => Action::Up,
        KeyCode::Down | KeyCode::Char('j') => Action::Down,
        KeyCode::Home | KeyCode::Char('g') => Action::First,
        KeyCode::End | KeyCode::Char('G') => Action::Last,
        KeyCode::Char('s') => Action::Sort,
        KeyCode::Char('p') => Action::Pause,
        KeyCode::Char('r') => Action::Resume,
        KeyCode::Char(' ') => Action::Freeze,
        _ => return None,
    })
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub struct Model {
    statistics: Option<Statistics>,
    head: Option<Head>,
    rows: Vec<Row>,
    history: History,
    /// The number of the guest that is selected.
    selected: Option<u32>,
    sort: Sort,
    frozen: bool,
    message: Option<Message>,
    late: Option<u64>,
}

impl Model {
    /// Without a picture yet.
    #[must_use]
    pub fn new(sort: Sort) -> Self {
        Self { sort, ..Self::default() }
    }

    /// The machine, once there were statistics.
    #[must_use]
    pub const fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// The guests in their order.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The place of the selected guest among the rows.
    #[must_use]
    pub fn selected(&self) -> Option<usize> {
        self.rows.iter().position(|row| Some(row.number) == self.selected)
    }

    /// The selected guest.
    #[must_use]
    pub fn selected_row(&self) -> Option<&Row> {
        self.rows.get(self.selected()?)
    }

    /// Order of the rows.
    #[must_use]
    pub const fn sort(&self) -> Sort {
        self.sort
    }

    /// Whether the picture is kept.
    #[must_use]
    pub const fn frozen(&self) -> bool {
        self.frozen
    }

    /// Text of the status line.
    #[must_use]
    pub const fn message(&self) -> Option<&Message> {
        self.message.as_ref()
    }

    /// For how many seconds nothing has come, where that is too long.
    #[must_use]
    pub const fn late(&self) -> Option<u64> {
        self.late
    }

    /// A guest's CPU share in the last minute, in `parts` equal parts, the oldest
    /// first; `None` where nothing is known.
    #[must_use]
    pub fn minute(&self, row: &Row, parts: u16) -> Vec<Option<u64>> {
        let now = self.statistics.as_ref().map_or(0, |statistics| statistics.time_ns);
        self.history.minute(row.number, &row.name, now, parts)
    }

    /// Takes new statistics in, unless the picture is kept.
    pub fn take(&mut self, now: Statistics) {
        self.late = None;
        if matches!(self.message, Some(Message::Trouble(_))) {
            self.message = None;
        }
        if self.frozen {
            return;
        }
        let place = self.selected();
        // A clock that went back is that of a machine that was started again.
        let before = self.statistics.take().filter(|before| before.time_ns <= now.time_ns);
        let (head, rows) = picture(&now, before.as_ref());
        match &before {
            None => self.history.clear(),
            Some(before) => self.history.push(before.time_ns, now.time_ns, &rows),
        }
        self.head = Some(head);
        self.rows = rows;
        self.statistics = Some(now);
        self.order();
        if self.selected().is_none() {
            self.select(place.unwrap_or(0));
        }
    }

    /// A guest's answer to a request.
    pub fn answered(&mut self, guest: &GuestInfo) {
        self.late = None;
        if let Some(row) = self.rows.iter_mut().find(|row| row.number == guest.number) {
            row.state = guest.state;
        }
        let text = format!("{} {}: {}", guest.number, guest.name, guest.state.as_str());
        self.message = Some(Message::Note(text));
    }

    /// A request that did not work.
    pub fn failed(&mut self, text: String) {
        self.late = None;
        self.message = Some(Message::Failure(text));
    }

    /// Why no picture comes.
    pub fn trouble(&mut self, text: String) {
        self.late = None;
        self.message = Some(Message::Trouble(text));
    }

    /// Nothing has come for so many seconds.
    pub const fn wait(&mut self, seconds: u64) {
        self.late = Some(seconds);
    }

    /// Does what a key asks for.
    pub fn act(&mut self, action: Action) -> Option<Effect> {
        let place = self.selected().unwrap_or(0);
        if !matches!(self.message, Some(Message::Trouble(_))) {
            self.message = None;
        }
        match action {
            Action::Quit => return Some(Effect::Quit),
            Action::Up => self.select(place.saturating_sub(1)),
            Action::Down => self.select(place.saturating_add(1)),
            Action::First => self.select(0),
            Action::Last => self.select(usize::MAX),
            Action::Sort => {
                self.sort = self.sort.next();
                self.order();
            }
            Action::Pause => return self.ask("pause", Operation::Pause),
            Action::Resume => return self.ask("resume", Operation::Resume),
            Action::Freeze => self.frozen = !self.frozen,
        }
        None
    }

    fn ask(&mut self, verb: &str, operation: fn(GuestRef) -> Operation) -> Option<Effect> {
        let row = self.selected_row()?;
        let what = format!("{verb} {} {}", row.number, row.name);
        let operation = operation(GuestRef::Number(row.number));
        self.message = Some(Message::Note(format!("{what}: asked")));
        Some(Effect::Ask(Asked { what, operation }))
    }

    /// Selects the row at `place`, or the last one.
    fn select(&mut self, place: usize) {
        let row = self.rows.get(place).or(self.rows.last());
        self.selected = row.map(|row| row.number);
    }

    fn order(&mut self) {
        // Rows that are equal in the order stand by their numbers.
        self.rows.sort_by_key(|row| row.number);
        match self.sort {
            Sort::Cpu => self.rows.sort_by_key(|row| Reverse(row.cpu)),
            Sort::Memory => self.rows.sort_by_key(|row| Reverse(row.touched)),
            Sort::Exits => self.rows.sort_by_key(|row| Reverse(row.exits)),
            Sort::Name => self.rows.sort_by(|a, b| a.name.cmp(&b.name)),
        }
    }
}
