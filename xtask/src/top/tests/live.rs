//! The control line's thread and the table against a server in this process that
//! speaks by the image's own types.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use control::protocol::{Input, Session};
use control::status::{GuestInfo, GuestState};
use control::{Answer, ErrorCode, GuestRef, Operation, Refusal};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::model::{Asked, Model, Sort};
use super::super::{Line, News, Table, TopOptions, once, serve};
use super::{S, guest, statistics};

const PERIOD: Duration = Duration::from_millis(20);

/// Answers one client after the other, until it is dropped.
struct Server {
    socket: PathBuf,
    ended: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

static COUNT: AtomicUsize = AtomicUsize::new(0);

fn scratch() -> PathBuf {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("steward-top-{}-{count}", std::process::id()))
}

impl Server {
    fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let ended = std::sync::Arc::new(AtomicBool::new(false));
        let stop = std::sync::Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut session = Session::new();
            let mut seconds = 0;
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                answer(client.unwrap(), &mut session, &mut seconds);
            }
        });
        Self { socket: socket.to_path_buf(), ended, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(&self.socket));
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.socket).unwrap();
    }
}

/// Serves a client until it goes. Each picture is a second later than the last
/// one; guest 2 is busy all the time, and won't be paused.
fn answer(mut client: UnixStream, session: &mut Session, seconds: &mut u64) {
    let mut buffer = [0; 1000];
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        let mut bytes = &buffer[..count];
        while !bytes.is_empty() {
            let (used, input) = session.feed(bytes);
            bytes = &bytes[used..];
            let line = match input {
                None => continue,
                Some(Input::Answer(line)) => line,
                Some(Input::Request(request)) => {
                    let outcome = outcome(&request.operation, seconds);
                    session.finish(&request, outcome)
                }
            };
            if client.write_all(&line).is_err() {
                return;
            }
        }
    }
}

fn outcome(operation: &Operation, seconds: &mut u64) -> Result<Answer, Refusal> {
    match operation {
        Operation::Stats(None) => {
            *seconds += 1;
            let busy = guest(2, "busy", *seconds * S, *seconds * 1000);
            let guests = vec![guest(1, "idle", 0, 0), busy];
            Ok(Answer::Stats(Box::new(statistics(*seconds * S, guests))))
        }
        Operation::Pause(GuestRef::Number(1)) => Ok(Answer::Guest(Box::new(GuestInfo {
            number: 1,
            name: "idle".into(),
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
        }))),
        _ => Err(Refusal::new(ErrorCode::WrongState, "it won't")),
    }
}

/// [`serve`] in a thread of its own.
fn line(socket: &Path) -> (Sender<Asked>, Receiver<News>) {
    let (asking, requests) = mpsc::channel();
    let (telling, news) = mpsc::channel();
    let line = Line::new(socket.to_path_buf());
    std::thread::spawn(move || serve(line, PERIOD, &requests, &telling));
    (asking, news)
}

/// The first news that `wanted` makes something of.
fn wait<T>(news: &Receiver<News>, wanted: impl Fn(News) -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if let Some(found) = wanted(news.recv_timeout(left).unwrap()) {
            return found;
        }
    }
}

fn picture(news: News) -> Option<u64> {
    match news {
        News::Picture(stats) => Some(stats.time_ns),
        _ => None,
    }
}

#[test]
fn the_line_is_lost_and_comes_back() {
    let socket = scratch();
    let server = Server::start(&socket);
    let (_asking, news) = line(&socket);
    assert_eq!(wait(&news, picture), S);
    assert_eq!(wait(&news, picture), 2 * S);
    drop(server);
    let trouble = wait(&news, |news| match news {
        News::Trouble(text) => Some(text),
        _ => None,
    });
    assert!(trouble.contains("trying again: No such file"), "{trouble}");
    let _server = Server::start(&socket);
    // The new machine is young.
    assert!(wait(&news, picture) <= 2 * S);
}

#[test]
fn others_get_the_line_in_between() {
    let socket = scratch();
    let _server = Server::start(&socket);
    let (_asking, news) = line(&socket);
    wait(&news, picture);
    let mut other = Line::new(socket.clone());
    other.stats().unwrap();
    let before = wait(&news, picture);
    other.stats().unwrap();
    assert!(wait(&news, |news| picture(news).filter(|now| *now > before)) > before);
}

/// Types these keys, one whenever the screen shows the text before it.
fn typed(socket: &Path, mut keys: Vec<(&str, KeyCode)>) -> Vec<String> {
    let (asking, news) = line(socket);
    let mut table = Table { model: Model::new(Sort::Name), period: PERIOD, asking, news };
    let mut terminal = Terminal::new(TestBackend::new(80, 12)).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    let mut screens = Vec::new();
    keys.reverse();
    // Nothing but a key ends the table, so the screen is looked at from its own backend.
    let ended = AtomicBool::new(false);
    while let Some((text, code)) = keys.pop() {
        loop {
            let mut turns = 0;
            let shown = table.show(&mut terminal, &ended, || {
                turns += 1;
                std::thread::sleep(Duration::from_millis(2));
                ended.store(turns == 5, Ordering::Relaxed);
                Ok(None)
            });
            shown.unwrap();
            ended.store(false, Ordering::Relaxed);
            let screen = terminal.backend().to_string();
            if screen.contains(text) {
                screens.push(screen);
                break;
            }
            assert!(Instant::now() < until, "no {text} in\n{screen}");
        }
        let mut event = Some(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
        let quits = code == KeyCode::Char('q');
        table
            .show(&mut terminal, &ended, || {
                let event = event.take();
                assert!(!quits || event.is_some(), "it goes on after q");
                ended.store(!quits, Ordering::Relaxed);
                Ok(event)
            })
            .unwrap();
        ended.store(false, Ordering::Relaxed);
    }
    screens
}

#[test]
fn keys_reach_the_guests() {
    let socket = scratch();
    let _server = Server::start(&socket);
    let screens = typed(
        &socket,
        vec![
            ("by name", KeyCode::Down),
            ("idle: 1 vCPU(s)", KeyCode::Char('p')),
            ("1 idle: paused", KeyCode::Up),
            ("busy: 1 vCPU(s)", KeyCode::Char('p')),
            ("pause 2 busy: refused: ", KeyCode::Char('q')),
        ],
    );
    assert!(screens[4].contains("it won't"), "{}", screens[4]);
}

#[test]
fn once_prints_what_a_period_brought() {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: TopOptions,
    }
    let socket = scratch();
    let _server = Server::start(&socket);
    let options =
        |words: &[&str]| Cli::try_parse_from(["top"].iter().chain(words)).map(|cli| cli.options);
    let mut out = Vec::new();
    let words = ["--once", "--period", "0.1", "--sort", "cpu"];
    let status = once(&mut Line::new(socket), &options(&words).unwrap(), &mut out).unwrap();
    assert_eq!(status, 0);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "\
up 2.0 s; 1 CPU(s), 50.0 % busy; 3 GiB of 4 GiB free
#  NAME  STATE     CPU%  RUN%  READY%  WAIT%  EXITS/S  TOUCHED   MEMORY
2  busy  running  105.0  57.1    28.6   14.3     1000   20 MiB  512 MiB
1  idle  running    0.0     -       -      -        0   10 MiB  512 MiB
"
    );
    assert_eq!(options(&[]).unwrap().period, Duration::from_secs(1));
    for wrong in ["0", "0.01", "-1", "3601", "NaN", "inf", "soon"] {
        assert!(options(&["--period", wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn without_a_socket_the_cure_is_named() {
    let error = Line::new(scratch()).connect().unwrap_err().to_string();
    assert!(error.contains("--control"), "{error}");
}
