//! `top`: the guests of a running Steward in a live table.
//!
//! [`picture`] computes what happened between two looks, [`model`] knows what
//! of it is shown, [`view`] how it looks. A thread of its own speaks on the control
//! line, so that keys work while no answer comes. It has the line for one request
//! at a time: `ctl` gets its turn in between.

mod history;
pub mod model;
pub mod picture;
#[cfg(test)]
mod tests;
pub mod view;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use control::status::{GuestInfo, Statistics};
use control::{Answer, Operation, report};
use crossterm::cursor::Show;
use crossterm::event::{self, Event};
use ratatui::Terminal;
use ratatui::backend::Backend;
use signal_hook::consts::{SIGHUP, SIGTERM};

use crate::ctl::client::Client;
use crate::ctl::default_socket;
use crate::ui::Out;
use model::{Asked, Effect, Model, Sort};

/// How long a request waits for its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the table waits for a key before it looks for news.
const GLANCE: Duration = Duration::from_millis(50);
/// How much later than it is due a picture may come before that is told.
const LATE: Duration = Duration::from_secs(2);
/// The shortest and the longest period in seconds.
const PERIODS: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// Options of `top`.
#[derive(Debug, Args)]
pub struct TopOptions {
    /// The control line's socket, as `run --control` made it [default: target/steward/control.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Seconds from one picture to the next, from 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_period)]
    pub period: Duration,
    /// The order of the guests
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Print what one period brought as text, and end
    #[arg(long)]
    pub once: bool,
}

/// A period in seconds.
fn parse_period(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "that is no number of seconds".to_owned())?;
    if !PERIODS.contains(&seconds) {
        return Err(format!("it is from {} to {} seconds", PERIODS.start(), PERIODS.end()));
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Shows the table until a key ends it; returns the status to exit with.
pub fn top(options: &TopOptions) -> Result<u8> {
    let mut line = Line::new(options.socket.clone().unwrap_or_else(default_socket));
    let out = std::io::stdout();
    if options.once || !out.is_terminal() {
        return once(&mut line, options, Out);
    }
    // A wrong path is told now; what goes wrong later is told in the table.
    line.connect()?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let (asking, requests) = mpsc::channel();
    let (telling, news) = mpsc::channel();
    let period = options.period;
    std::thread::spawn(move || serve(line, period, &requests, &telling));
    // Ratatui's own hook leaves the cursor hidden.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let _ = crossterm::execute!(std::io::stdout(), Show);
        hook(info);
    }));
    let result = ratatui::try_init().context("cannot use the terminal").and_then(|mut terminal| {
        let mut table = Table { model: Model::new(options.sort), period, asking, news };
        table.show(&mut terminal, &ended, next_event)
    });
    ratatui::restore();
    result.map(|()| 0)
}

/// The next event on the terminal, if one comes soon.
fn next_event() -> Result<Option<Event>> {
    Ok(if event::poll(GLANCE)? { Some(event::read()?) } else { None })
}

/// Prints what one period brought.
fn once(line: &mut Line, options: &TopOptions, mut out: impl Write) -> Result<u8> {
    let mut model = Model::new(options.sort);
    let before = line.stats()?;
    model.take(before.clone());
    std::thread::sleep(options.period);
    let mut now = line.stats()?;
    model.take(now.clone());
    let place = |number| model.rows().iter().position(|row| row.number == number);
    now.guests.sort_by_key(|guest| place(guest.number));
    out.write_all(report::top(&now, Some(&before)).as_bytes())?;
    Ok(0)
}

/// The control line, connected for one request at a time.
#[derive(Debug)]
struct Line {
    socket: PathBuf,
    /// A connection that was not used yet.
    open: Option<Client>,
}

impl Line {
    const fn new(socket: PathBuf) -> Self {
        Self { socket, open: None }
    }

    fn connect(&mut self) -> Result<()> {
        let client = Client::connect(&self.socket, PATIENCE).with_context(|| {
            format!(
                "cannot connect to {}: was `cargo xtask run` started with `--control`?",
                self.socket.display()
            )
        })?;
        self.open = Some(client);
        Ok(())
    }

    /// An answer; a refusal is an error.
    fn ask(&mut self, operation: Operation) -> Result<Answer> {
        if self.open.is_none() {
            self.connect()?;
        }
        let mut client = self.open.take().context("there is no connection")?;
        match client.request(operation)?.outcome {
            Ok(answer) => Ok(answer),
            Err(refusal) => bail!("refused: {refusal}"),
        }
    }

    fn stats(&mut self) -> Result<Statistics> {
        match self.ask(Operation::Stats(None))? {
            Answer::Stats(stats) => Ok(*stats),
            _ => bail!("Steward answered something else than statistics"),
        }
    }

    fn guest(&mut self, operation: Operation) -> Result<GuestInfo> {
        match self.ask(operation)? {
            Answer::Guest(guest) => Ok(*guest),
            _ => bail!("Steward answered something else than a guest"),
        }
    }
}

/// News from the control line.
#[derive(Debug)]
enum News {
    /// A picture.
    Picture(Box<Statistics>),
    /// Why there is none.
    Trouble(String),
    /// The answer to a request about a guest.
    Answer(Box<GuestInfo>),
    /// Why a request about a guest was not done.
    Failure(String),
}

/// Asks for a picture in each period and for what `requests` says, until nobody
/// listens any more.
fn serve(mut line: Line, period: Duration, requests: &Receiver<Asked>, telling: &Sender<News>) {
    let mut due = Instant::now();
    loop {
        let news = match requests.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Asked { what, operation }) => match line.guest(operation) {
                Ok(guest) => News::Answer(Box::new(guest)),
                Err(error) => News::Failure(format!("{what}: {error:#}")),
            },
            Err(RecvTimeoutError::Timeout) => {
                let stats = line.stats();
                // A picture that took long does not make the next ones come in a burst.
                due = (due + period).max(Instant::now());
                match stats {
                    Ok(stats) => News::Picture(Box::new(stats)),
                    Err(error) => {
                        due = Instant::now() + period.max(Duration::from_secs(1));
                        // The status line is short: the cause alone, without the path.
                        let cause = error.root_cause();
                        News::Trouble(format!("no picture, trying again: {cause}"))
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if telling.send(news).is_err() {
            return;
        }
    }
}

/// The table with its ends of the channels to [`serve`].
struct Table {
    model: Model,
    period: Duration,
    asking: Sender<Asked>,
    news: Receiver<News>,
}

impl Table {
    /// Shows it until a key or `ended` ends it. `next` waits a moment for an event.
    fn show<B>(
        &mut self,
        terminal: &mut Terminal<B>,
        ended: &AtomicBool,
        mut next: impl FnMut() -> Result<Option<Event>>,
    ) -> Result<()>
    where
        B: Backend<Error: Send + Sync + 'static>,
    {
        let mut heard = Instant::now();
        let mut changed = true;
        while !ended.load(Ordering::Relaxed) {
            loop {
                match self.news.try_recv() {
                    Ok(news) => self.hear(news),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => bail!("the control line's thread is gone"),
                }
                heard = Instant::now();
                changed = true;
            }
            let silent = heard.elapsed();
            if silent > self.period + LATE && self.model.late() != Some(silent.as_secs()) {
                self.model.wait(silent.as_secs());
                changed = true;
            }
            if std::mem::take(&mut changed) {
                terminal.draw(|frame| view::draw(frame, &self.model))?;
            }
            let Some(event) = next()? else { continue };
            changed = true;
            let Event::Key(key) = event else { continue };
            match model::key(key).and_then(|action| self.model.act(action)) {
                None => {}
                Some(Effect::Quit) => return Ok(()),
                Some(Effect::Ask(asked)) => {
                    self.asking.send(asked).context("the control line's thread is gone")?;
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Picture(stats) => self.model.take(*stats),
            News::Trouble(text) => self.model.trouble(text),
            News::Answer(guest) => self.model.answered(&guest),
            News::Failure(text) => self.model.failed(text),
        }
    }
}
