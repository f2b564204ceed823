//! How the table looks: a model drawn into a frame of any size.

use control::report::units::{bytes, count, duration};
use control::status::GuestState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar::NINE_LEVELS;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Row, Table, TableState};

use super::model::{Message, Model};
use super::picture::{Kind, Row as Guest};

const KEYS: &str = "q quit  ↑↓ select  s sort  p pause  r resume  space freeze";
/// The lines of the pane below the table at the least, with its title and heading.
const LEAST_PANE: u16 = 3;
/// The lines that it gets where there are more guests than can be shown.
const PANE: u16 = 5;
/// Parts of the last minute that are shown at the most.
const PARTS: u16 = 30;
const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);
const BAR: Style = Style::new().add_modifier(Modifier::REVERSED);
const BAD: Style = Style::new().fg(Color::Red);

/// Draws it all.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let [head, body, status, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let lines = u16::try_from(model.rows().len()).unwrap_or(u16::MAX).saturating_add(1);
    let pane = match body.height.checked_sub(lines) {
        Some(left) if left >= LEAST_PANE => left,
        _ if body.height >= 3 * PANE => PANE,
        // The guests go first.
        _ => 0,
    };
    let [table, pane] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(pane)]).areas(body);
    frame.render_widget(heading(model, head.width), head);
    guests(frame, model, table);
    if let Some(row) = model.selected_row().filter(|_| pane.height > 0) {
        exits(frame, row, pane);
    }
    frame.render_widget(status_line(model), status);
    frame.render_widget(Line::styled(KEYS, BAR), keys);
}

/// The machine, and at the right how the picture came about where there is room.
fn heading(model: &Model, width: u16) -> Line<'static> {
    let Some(head) = model.head() else { return Line::from("no picture yet") };
    let left = format!(
        "up {}; {} CPU(s), {} % busy; {} of {} free",
        duration(head.up_ns),
        head.online,
        percent(head.busy),
        bytes(head.free),
        bytes(head.total),
    );
    let right = if model.frozen() {
        "frozen".to_owned()
    } else if head.since_start {
        "since the start".to_owned()
    } else {
        format!("by {}", model.sort())
    };
    let gap = usize::from(width).checked_sub(left.chars().count() + right.chars().count());
    let Some(gap @ 2..) = gap else { return Line::styled(left, HEADING) };
    let right = Span::styled(right, if model.frozen() { BAR } else { Style::new() });
    Line::from(vec![Span::styled(left, HEADING), Span::raw(" ".repeat(gap)), right])
}

fn status_line(model: &Model) -> Line<'_> {
    match (model.message(), model.late()) {
        (Some(Message::Trouble(text) | Message::Failure(text)), _) => {
            Line::styled(text.as_str(), BAD)
        }
        (_, Some(seconds)) => {
            Line::styled(format!("nothing has come for {seconds} s; waiting"), BAD)
        }
        (Some(Message::Note(text)), None) => Line::from(text.as_str()),
        (None, None) => Line::default(),
    }
}

/// A column of the guests' table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Number,
    Name,
    State,
    Cpu,
    Minute,
    Run,
    Ready,
    Wait,
    Exits,
    Touched,
    Memory,
}

impl Column {
    /// All, as they stand, with the least width of each.
    const ALL: [(Self, u16); 11] = [
        (Self::Number, 2),
        (Self::Name, 6),
        (Self::State, 8),
        (Self::Cpu, 6),
        (Self::Minute, 6),
        (Self::Run, 5),
        (Self::Ready, 6),
        (Self::Wait, 5),
        (Self::Exits, 7),
        (Self::Touched, 8),
        (Self::Memory, 8),
    ];
    /// Columns that a narrow terminal goes without, in this order.
    const DROPPED: [Self; 8] = [
        Self::Minute,
        Self::Memory,
        Self::Wait,
        Self::Run,
        Self::Ready,
        Self::Touched,
        Self::State,
        Self::Exits,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Number => "#",
            Self::Name => "NAME",
            Self::State => "STATE",
            Self::Cpu => "CPU%",
            Self::Minute => "1 MIN",
            Self::Run => "RUN%",
            Self::Ready => "READY%",
            Self::Wait => "WAIT%",
            Self::Exits => "EXITS/S",
            Self::Touched => "TOUCHED",
            Self::Memory => "MEMORY",
        }
    }

    fn cell(self, model: &Model, row: &Guest, width: u16) -> Cell<'static> {
        match self {
            Self::Number => right(row.number.to_string()),
            Self::Name => Cell::from(cut(&row.name, width)),
            Self::State => Cell::from(row.state.as_str()).style(colour(row.state)),
            Self::Cpu => right(percent(row.cpu)),
            Self::Minute => Cell::from(bars(&model.minute(row, width), row.vcpus)),
            Self::Run => right(percent(row.run)),
            Self::Ready => right(percent(row.ready)),
            Self::Wait => right(percent(row.wait)),
            Self::Exits => right(rate(row.exits)),
            Self::Touched => right(bytes(row.touched)),
            Self::Memory => right(bytes(row.memory)),
        }
    }

    fn heading(self) -> Cell<'static> {
        match self {
            Self::Name | Self::State | Self::Minute => Cell::from(self.title()),
            _ => right(self.title().to_owned()),
        }
    }
}

/// The columns that fit, with their widths; the longest name has `name` characters.
fn columns(width: u16, name: u16) -> Vec<(Column, u16)> {
    let mut columns = Column::ALL.to_vec();
    let used = |columns: &[(Column, u16)]| columns.iter().map(|(_, width)| width + 1).sum::<u16>();
    for dropped in Column::DROPPED {
        if used(&columns) <= width.saturating_add(1) {
            break;
        }
        columns.retain(|(column, _)| *column != dropped);
    }
    let mut spare = width.saturating_add(1).saturating_sub(used(&columns));
    for (wide, most) in [(Column::Name, name), (Column::Minute, PARTS)] {
        let found = columns.iter_mut().find(|(column, _)| *column == wide);
        let Some((_, width)) = found else { continue };
        let more = most.saturating_sub(*width).min(spare);
        *width += more;
        spare -= more;
    }
    columns
}

fn guests(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let names = model.rows().iter().map(|row| row.name.chars().count()).max();
    let columns = columns(area.width, u16::try_from(names.unwrap_or(0)).unwrap_or(u16::MAX));
    let rows = model
        .rows()
        .iter()
        .map(|row| Row::new(columns.iter().map(|(column, width)| column.cell(model, row, *width))));
    let table = Table::new(rows, columns.iter().map(|(_, width)| Constraint::Length(*width)))
        .header(Row::new(columns.iter().map(|(column, _)| column.heading())).style(HEADING))
        .row_highlight_style(BAR);
    let mut state = TableState::new().with_selected(model.selected());
    frame.render_stateful_widget(table, area, &mut state);
}

/// The pane of the selected guest.
fn exits(frame: &mut Frame<'_>, row: &Guest, area: Rect) {
    let title = format!(
        " {}: {} vCPU(s), {} % in service, {} % throttled ",
        row.name,
        row.vcpus,
        percent(row.service),
        percent(row.throttled),
    );
    let mut columns = vec![("EXIT", 20), ("/S", 7), ("%", 5), ("EACH", 8), ("% OF RUN", 8)];
    while columns.iter().map(|(_, width)| width + 1).sum::<u16>() > area.width.saturating_add(1)
        && columns.len() > 2
    {
        columns.pop();
    }
    let cells = |kind: &Kind| {
        let each = kind.each_ns.map_or_else(|| "-".to_owned(), duration);
        let figures = [rate(kind.rate), percent(kind.share), each, percent(kind.of_run)];
        let name = Cell::from(cut(&kind.reason, 20));
        Row::new(std::iter::once(name).chain(figures.into_iter().map(right)).take(columns.len()))
    };
    let titles = columns.iter().enumerate().map(|(index, (title, _))| match index {
        0 => Cell::from(*title),
        _ => right((*title).to_owned()),
    });
    let table = Table::new(
        row.kinds.iter().map(cells),
        columns.iter().map(|(_, width)| Constraint::Length(*width)),
    )
    .header(Row::new(titles).style(HEADING))
    .block(Block::new().borders(Borders::TOP).title(title));
    frame.render_widget(table, area);
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

const fn colour(state: GuestState) -> Style {
    let style = Style::new();
    match state {
        GuestState::Running => style.fg(Color::Green),
        GuestState::Paused | GuestState::Waiting => style.fg(Color::Yellow),
        GuestState::Crashed => style.fg(Color::Red),
        _ => style,
    }
}

/// A bar for each part of a minute, as high as a block where all vCPUs were busy.
fn bars(parts: &[Option<u64>], vcpus: usize) -> String {
    let full = 1000 * u64::try_from(vcpus).unwrap_or(u64::MAX).clamp(1, 1 << 20);
    let bar = |part: &Option<u64>| match part.map(|part| part.min(full) * 7 / full) {
        None => NINE_LEVELS.empty,
        Some(0) => NINE_LEVELS.one_eighth,
        Some(1) => NINE_LEVELS.one_quarter,
        Some(2) => NINE_LEVELS.three_eighths,
        Some(3) => NINE_LEVELS.half,
        Some(4) => NINE_LEVELS.five_eighths,
        Some(5) => NINE_LEVELS.three_quarters,
        Some(6) => NINE_LEVELS.seven_eighths,
        Some(_) => NINE_LEVELS.full,
    };
    parts.iter().map(bar).collect()
}

/// Tenths of a percent.
fn percent(tenths: Option<u64>) -> String {
    tenths.map_or_else(|| "-".to_owned(), |tenths| format!("{}.{}", tenths / 10, tenths % 10))
}

/// Tenths of things in a second; what is rare with one digit behind the point.
fn rate(tenths: Option<u64>) -> String {
    match tenths {
        None => "-".to_owned(),
        Some(0) => "0".to_owned(),
        Some(few @ 1..100) => format!("{}.{}", few / 10, few % 10),
        Some(many) => count(many / 10),
    }
}

/// At most `width` characters of `text`; `~` stands for the rest.
fn cut(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['~']).collect()
}
