//! The client against a server in this process that speaks by the image's own types.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};

use super::*;
use clap::Parser;
use control::answer::Verdict;
use control::protocol::event::EventGuest;
use control::protocol::{EventKind, EventLog, Input, Session, Storage, Uploads, hello};
use control::status::{
    ExitTrace, GuestInfo, GuestState, GuestStats, HostMemory, Statistics, TracedExit, VcpuStats,
    VcpuTrace,
};
use control::{ErrorCode, Known, Refusal};

/// Keeps files in vectors.
struct Vectors;

impl Storage for Vectors {
    type File = Vec<u8>;

    fn allocate(&mut self, _: u64) -> Result<Vec<u8>, Refusal> {
        Ok(Vec::new())
    }

    fn write(&mut self, file: &mut Vec<u8>, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        assert_eq!(file.len() as u64, offset);
        file.extend_from_slice(bytes);
        Ok(())
    }

    fn release(&mut self, _: Vec<u8>) {}
}

/// Fault of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It does the first request and hangs up before it answers.
    HangsUp,
    /// It says things that nobody asked for.
    Babbles,
    /// It says nothing.
    Mute,
}

/// A machine with guests that do nothing.
struct Server {
    session: Session,
    uploads: Uploads<Vectors>,
    guests: Vec<GuestInfo>,
    events: EventLog,
    /// How many requests were carried out.
    done: usize,
}

fn info(number: u32, name: &str) -> GuestInfo {
    GuestInfo {
        number,
        name: name.to_owned(),
        uuid: None,
        state: GuestState::Defined,
        attached: false,
        memory: 64 << 20,
        vcpus: 1,
        weight: 100,
        cap: None,
        up_ns: None,
        starts: 0,
        last_end: None,
        console_kept: 0,
        console_dropped: 0,
    }
}

impl Server {
    fn new() -> Self {
        let mut events = EventLog::new();
        for _ in 0..70 {
            let guest = EventGuest { number: 1, name: "tiny".to_owned() };
            events.push(1_000, Some(guest), EventKind::Started);
        }
        Self {
            session: Session::new(),
            uploads: Uploads::new(Vectors, 1 << 20),
            guests: vec![info(1, "tiny")],
            events,
            done: 0,
        }
    }

    fn guest(&mut self, guest: &GuestRef) -> Result<&mut GuestInfo, Refusal> {
        let known: Vec<Known<'_>> = self
            .guests
            .iter()
            .map(|guest| Known { number: guest.number, name: &guest.name })
            .collect();
        let number = guest.resolve(&known)?;
        self.guests
            .iter_mut()
            .find(|guest| guest.number == number)
            .ok_or_else(|| Refusal::new(ErrorCode::Internal, "lost"))
    }

    fn perform(&mut self, operation: Operation) -> Result<Answer, Refusal> {
        self.done += 1;
        Ok(match operation {
            Operation::Hello => Answer::Hello(hello("1", "b", 16, 1 << 20)),
            Operation::List => Answer::Guests(self.guests.clone()),
            Operation::Start(guest) => {
                let guest = self.guest(&guest)?;
                guest.starts += 1;
                guest.state = GuestState::Running;
                Answer::Guest(Box::new(guest.clone()))
            }
            Operation::Kill(guest) => {
                let guest = self.guest(&guest)?;
                if guest.state != GuestState::Running {
                    return Err(Refusal::new(ErrorCode::WrongState, "it does not run"));
                }
                guest.state = GuestState::Ended;
                Answer::Guest(Box::new(guest.clone()))
            }
            Operation::Stats(guest) => {
                let number = guest.map(|guest| self.guest(&guest).map(|guest| guest.number));
                let number = number.transpose()?;
                let wanted =
                    |guest: &&GuestInfo| number.is_none_or(|number| number == guest.number);
                let one = |guest: &GuestInfo| GuestStats {
                    number: guest.number,
                    name: guest.name.clone(),
                    uuid: None,
                    state: guest.state,
                    memory: Default::default(),
                    zeroing_ns: 0,
                    service_ns: 0,
                    throttled_ns: 0,
                    vcpus: vec![VcpuStats::default()],
                    counters: Vec::new(),
                };
                Answer::Stats(Box::new(Statistics {
                    time_ns: 1,
                    cpus: Vec::new(),
                    memory: HostMemory::default(),
                    guests: self.guests.iter().filter(wanted).map(one).collect(),
                }))
            }
            Operation::Trace { guest, .. } => {
                let name = self.guest(&guest)?.name.clone();
                let exit = TracedExit {
                    time_ns: Some(5),
                    took_ns: None,
                    rip: 0xffff_ffff_8100_0000,
                    reason: "halt".to_owned(),
                    detail: String::new(),
                };
                let vcpus = vec![VcpuTrace { index: 0, total: 1, exits: vec![exit] }];
                Answer::Trace(ExitTrace { name, vcpus })
            }
            Operation::Events { since, max } => Answer::Events(self.events.since(since, max)?),
            Operation::UploadBegin { name, size, crc32 } => {
                Answer::Upload(self.uploads.begin(&name, size, crc32)?)
            }
            Operation::UploadChunk { name, offset, data, crc32 } => {
                Answer::Upload(self.uploads.chunk(&name, offset, &data, crc32)?)
            }
            Operation::UploadEnd { name } => Answer::Upload(self.uploads.end(&name)?),
            Operation::DryRun(settings) => {
                let possible = settings.memory <= 1 << 30;
                let reason = if possible { "it fits" } else { "1 GiB are free" }.to_owned();
                Answer::Verdict(Verdict { possible, reason })
            }
            Operation::Define(settings) => {
                if self.guests.iter().any(|guest| guest.name == settings.name) {
                    return Err(Refusal::new(ErrorCode::Exists, "there is one"));
                }
                let files = [settings.kernel.as_str()].into_iter();
                self.uploads.hold(files.chain(settings.initrd.as_deref()))?;
                let number = u32::try_from(self.guests.len()).unwrap() + 1;
                let mut new = info(number, &settings.name);
                new.memory = settings.memory;
                self.guests.push(new.clone());
                Answer::Guest(Box::new(new))
            }
            _ => Answer::Done,
        })
    }

    /// Serves a client until it goes.
    fn serve(&mut self, mut client: UnixStream, fault: Fault) {
        let mut buffer = [0; 1000];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            let mut bytes = &buffer[..count];
            while !bytes.is_empty() {
                let (used, input) = self.session.feed(bytes);
                bytes = &bytes[used..];
                let line = match input {
                    None => continue,
                    Some(Input::Answer(line)) => line,
                    Some(Input::Request(request)) => {
                        let outcome = self.perform(request.operation.clone());
                        let line = self.session.finish(&request, outcome);
                        if fault == Fault::HangsUp && self.done == 1 {
                            return;
                        }
                        line
                    }
                };
                if fault == Fault::Babbles {
                    let other = "noise\n\n{\"v\":1,\"id\":\"other\",\"ok\":\"done\"}\n{\"v\":1,\"id\":null,\"error\":{\"code\":\"bad-request\",\"message\":\"x\"}}\n";
                    client.write_all(other.as_bytes()).unwrap();
                }
                // In two pieces, as serial ports do it.
                let (head, tail) = line.split_at(line.len() / 2);
                if fault != Fault::Mute
                    && client.write_all(head).and_then(|()| client.write_all(tail)).is_err()
                {
                    return;
                }
            }
        }
    }
}

/// A server's socket; the server itself comes out when the last client has gone.
struct Running {
    socket: PathBuf,
    server: Receiver<Server>,
}

static COUNT: AtomicUsize = AtomicUsize::new(0);

fn scratch(what: &str) -> PathBuf {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("steward-ctl-{}-{count}-{what}", std::process::id()))
}

impl Running {
    /// Serves `clients` connections.
    fn start(fault: Fault, clients: usize) -> Self {
        let socket = scratch("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (tx, server) = mpsc::channel();
        std::thread::spawn(move || {
            let mut server = Server::new();
            for client in listener.incoming().take(clients) {
                server.serve(client.unwrap(), fault);
            }
            tx.send(server).unwrap();
        });
        Self { socket, server }
    }

    /// Runs `ctl` with these words: its status and what it prints.
    fn ctl(&self, words: &[&str]) -> Result<(u8, String)> {
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            options: CtlOptions,
        }
        let words = ["ctl"].iter().chain(words);
        let options = Cli::try_parse_from(words)?.options;
        let client = Client::connect(&self.socket, Duration::from_millis(1500))?;
        let mut ctl = Ctl { client, json: options.json, out: Vec::new() };
        let status = ctl.perform(&options.task)?;
        Ok((status, String::from_utf8(ctl.out)?))
    }

    fn server(self) -> Server {
        let server = self.server.recv_timeout(Duration::from_secs(20)).unwrap();
        std::fs::remove_file(self.socket).unwrap();
        server
    }
}

#[test]
fn answers_in_words_and_as_json() {
    let running = Running::start(Fault::None, 6);
    let (status, text) = running.ctl(&["list"]).unwrap();
    assert_eq!(status, 0);
    assert!(text.contains("tiny  defined"), "{text}");
    let (status, text) = running.ctl(&["--json", "start", "tiny"]).unwrap();
    assert_eq!(status, 0);
    assert!(
        text.contains(r#""ok":{"guest":{"number":1,"name":"tiny","state":"running""#),
        "{text}"
    );
    // Refusals have a status of their own, and JSON too.
    assert_eq!(running.ctl(&["kill", "tiny"]).unwrap().0, 0);
    assert_eq!(running.ctl(&["kill", "1"]).unwrap(), (REFUSED, String::new()));
    let (status, text) = running.ctl(&["kill", "debain", "--json"]).unwrap();
    assert_eq!(status, REFUSED);
    assert!(text.contains(r#""code":"no-guest""#) && text.contains("there are 1 tiny"), "{text}");
    let (_, text) = running.ctl(&["hello"]).unwrap();
    assert_eq!(text, "steward 1, boot b\n");
    drop(running.server());
}

#[test]
fn other_programs_formats() {
    let running = Running::start(Fault::None, 4);
    let (_, text) = running.ctl(&["stats", "--prometheus"]).unwrap();
    assert!(text.contains("libvirt_domain_info_vstate{domain=\"tiny\"} 5"), "{text}");
    assert_eq!(running.ctl(&["stats", "nobody", "--prometheus"]).unwrap().0, REFUSED);
    let (_, text) = running.ctl(&["trace", "tiny", "--perfetto"]).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(trace["traceEvents"][2]["args"]["rip"], "0xffffffff81000000");
    let (_, text) = running.ctl(&["top", "--count", "1"]).unwrap();
    assert!(text.contains("EXITS/S"), "{text}");
    drop(running.server());
}

#[test]
fn all_events_come_in_order() {
    let running = Running::start(Fault::None, 2);
    let (_, text) = running.ctl(&["events", "--json"]).unwrap();
    let numbers: Vec<u64> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(numbers, (1..=70).collect::<Vec<u64>>());
    assert_eq!(running.ctl(&["events", "--since", "71"]).unwrap().0, REFUSED);
    drop(running.server());
}

#[test]
fn a_guest_is_created_from_files_here() {
    let kernel = scratch("kernel");
    let initrd = scratch("initrd");
    let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    std::fs::write(&kernel, &bytes).unwrap();
    std::fs::write(&initrd, b"small").unwrap();
    let running = Running::start(Fault::None, 4);
    let (from, with) = (kernel.to_str().unwrap(), initrd.to_str().unwrap());
    let words = ["create", "--name", "new", "--memory", "64M", "--kernel", from, "--initrd", with];
    let (status, text) = running.ctl(&words).unwrap();
    assert_eq!(status, 0);
    assert!(text.contains("new   running"), "{text}");
    // Once more: the files are there, the guest is too.
    let (status, text) = running.ctl(&[&words[..], &["--json"]].concat()).unwrap();
    assert_eq!(status, REFUSED);
    assert!(text.contains("\"exists\""), "{text}");
    // Too large, by a setting that goes before the option.
    let mut large = words.to_vec();
    (large[2], large[4]) = ("large", "64M");
    large.extend(["--set", "memory=2147483648"]);
    let (status, text) = running.ctl(&large).unwrap();
    assert_eq!((status, text.as_str()), (NOT_POSSIBLE, "no: 1 GiB are free\n"));
    let dry = ["dry-run", "--name", "x", "--kernel", "new/kernel", "--memory", "1G"];
    assert_eq!(running.ctl(&dry).unwrap(), (0, "yes: it fits\n".to_owned()));
    let server = running.server();
    assert_eq!(server.uploads.complete("new/kernel").unwrap(), &bytes);
    assert_eq!(server.uploads.complete("new/initrd").unwrap(), b"small");
    assert_eq!(server.guests.len(), 2);
    std::fs::remove_file(kernel).unwrap();
    std::fs::remove_file(initrd).unwrap();
}

#[test]
fn bad_settings_are_told_here() {
    let running = Running::start(Fault::None, 2);
    let words = ["define", "--name", "x", "--kernel", "k", "--set", "wait=1"];
    let error = format!("{:#}", running.ctl(&words).unwrap_err());
    assert!(error.contains("unknown field `wait`"), "{error}");
    let error = running.ctl(&["define", "--name", "x", "--kernel", "k", "--set", "weight"]);
    assert!(error.unwrap_err().to_string().contains("KEY=VALUE"));
    assert_eq!(running.server().done, 0);
}

#[test]
fn a_request_whose_answer_was_lost_is_done_once() {
    let running = Running::start(Fault::HangsUp, 2);
    assert_eq!(running.ctl(&["start", "tiny"]).unwrap().0, 0);
    let server = running.server();
    assert_eq!((server.done, server.guests[0].starts), (1, 1));
}

#[test]
fn what_was_not_asked_for_is_not_heard() {
    let running = Running::start(Fault::Babbles, 1);
    assert!(running.ctl(&["list"]).unwrap().1.contains("tiny"));
    assert_eq!(running.server().done, 1);
}

#[test]
fn silence_is_an_error_in_the_end() {
    let running = Running::start(Fault::Mute, 3);
    let error = running.ctl(&["list"]).unwrap_err().to_string();
    assert!(error.contains("no answer"), "{error}");
    drop(running.server());
}

#[test]
fn without_a_socket_the_cure_is_named() {
    let options =
        CtlOptions { socket: Some(scratch("nothing")), json: false, timeout: 1, task: Task::List };
    let error = ctl(&options).unwrap_err().to_string();
    assert!(error.contains("--control"), "{error}");
}
