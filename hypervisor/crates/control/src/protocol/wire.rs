//! Requests and answers as lines of JSON.
//!
//! A request is a flat object. It is read twice: first for its version, id and operation, so that
//! whatever is wrong with the rest can be answered to the right request; then for its arguments,
//! into one structure with all that there are, so that nothing is built but what is known.
//! [`OPERATIONS`] has the arguments of each operation.

use crate::answer::Answer;
use crate::guests::{GuestRef, Quoted};
use crate::operation::{MAX_STOP_SECONDS, Operation, STOP_SECONDS};
use crate::protocol::uploads::is_file_name;
use crate::protocol::{
    MAX_CHUNK, MAX_CMDLINE, MAX_EVENTS, MAX_FILE_NAME, MAX_ID, MAX_MODULES, VERSION,
};
use crate::refusal::{ErrorCode, Refusal};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use config::limits::MAX_VCPUS;
use config::{GuestSettings, LogLevel};
use serde::{Deserialize, Serialize};

/// The operations and the arguments that each takes; those with a question mark
/// may be left out.
pub const OPERATIONS: [(&str, &[&str]); 27] = [
    ("hello", &[]),
    ("list", &[]),
    ("attach", &["guest"]),
    ("pause", &["guest"]),
    ("resume", &["guest"]),
    ("stop", &["guest", "seconds?"]),
    ("kill", &["guest"]),
    ("start", &["guest"]),
    ("restart", &["guest", "seconds?"]),
    ("stats", &["guest?"]),
    ("dump", &["guest", "vcpu?"]),
    ("trace", &["guest", "vcpu?"]),
    ("why", &["guest"]),
    ("mem", &[]),
    ("cpus", &[]),
    ("log", &["level"]),
    ("reboot", &[]),
    ("poweroff", &[]),
    ("events", &["since", "max?"]),
    ("upload.begin", &["name", "size", "crc32"]),
    ("upload.chunk", &["name", "offset", "data", "crc32"]),
    ("upload.end", &["name"]),
    ("upload.delete", &["name"]),
    ("define", &["settings"]),
    ("delete", &["guest"]),
    ("dry_run", &["settings"]),
    ("top", &[]),
];

/// The part that is read of any request.
#[derive(Deserialize)]
pub(super) struct Header {
    v: Option<u64>,
    id: Option<String>,
    op: Option<String>,
}

/// A whole request.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    v: u32,
    id: String,
    op: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<GuestRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<LogLevel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<Box<GuestSettings>>,
}

/// A request that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it: 1 to [`MAX_ID`] bytes.
    pub id: String,
    /// The operation that it asks for.
    pub operation: Operation,
    /// Tells this request from another one with the same id.
    pub(super) digest: u64,
}

impl Request {
    /// A request, for a client.
    pub fn new(id: impl Into<String>, operation: Operation) -> Self {
        Self { id: id.into(), operation, digest: 0 }
    }

    /// Its line, with the line feed.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let wire = Wire::from_operation(self.id.clone(), &self.operation);
        // A structure of texts and numbers can be written.
        let mut line = serde_json::to_vec(&wire).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads a line, without its line feed.
    ///
    /// # Errors
    /// The refusal to send, and the request's id if that much could be read.
    pub(super) fn from_line(line: &[u8]) -> Result<Self, (Option<String>, Refusal)> {
        let bad = |error: serde_json::Error| {
            Refusal::new(ErrorCode::BadRequest, format!("no such request: {error}"))
        };
        let header: Header = serde_json::from_slice(line).map_err(|error| (None, bad(error)))?;
        let id = header.id.clone().filter(|id| (1..=MAX_ID).contains(&id.len()));
        let operation = Self::read(line, header, bad).map_err(|refusal| (id.clone(), refusal))?;
        let crc = u64::from(crc32fast::hash(line));
        let digest = crc << 32 | line.len() as u64;
        Ok(Self { id: id.unwrap_or_default(), operation, digest })
    }

    fn read(
        line: &[u8],
        header: Header,
        bad: impl Fn(serde_json::Error) -> Refusal,
    ) -> Result<Operation, Refusal> {
        match header.v {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                let message = format!("\"v\" is {version}; this machine speaks {VERSION}");
                return Err(Refusal::new(ErrorCode::Version, message));
            }
            None => return Err(missing("v")),
        }
        match header.id.as_ref().map(String::len) {
            Some(1..=MAX_ID) => {}
            Some(length) => {
                let message = format!("\"id\" has {length} bytes: 1 to {MAX_ID} are allowed");
                return Err(Refusal::new(ErrorCode::BadArgument, message));
            }
            None => return Err(missing("id")),
        }
        let op = header.op.ok_or_else(|| missing("op"))?;
        let Some((_, takes)) = OPERATIONS.iter().find(|(name, _)| *name == op) else {
            let names: Vec<&str> = OPERATIONS.iter().map(|(name, _)| *name).collect();
            let message = format!("\"op\" is {}; there are {}", Quoted(&op), names.join(", "));
            return Err(Refusal::new(ErrorCode::UnknownOperation, message));
        };
        let mut wire: Wire = serde_json::from_slice(line).map_err(bad)?;
        let operation = wire.operation()?;
        match wire.left() {
            None => Ok(operation),
            Some(surplus) => {
                let takes = if takes.is_empty() { "nothing".into() } else { takes.join(", ") };
                let message = format!("\"{surplus}\" is not for \"{op}\", which takes {takes}");
                Err(Refusal::new(ErrorCode::BadArgument, message))
            }
        }
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::new(ErrorCode::MissingArgument, format!("\"{name}\" is missing"))
}

fn in_range<T: PartialOrd + ToString>(
    name: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, Refusal> {
    if value >= least && value <= most {
        return Ok(value);
    }
    let (value, least, most) = (value.to_string(), least.to_string(), most.to_string());
    let message = format!("\"{name}\" is {value}: {least} to {most} are allowed");
    Err(Refusal::new(ErrorCode::BadArgument, message))
}

impl Wire {
    /// Takes the arguments that the operation has.
    fn operation(&mut self) -> Result<Operation, Refusal> {
        Ok(match self.op.as_str() {
            "list" => Operation::List,
            "attach" => Operation::Attach(self.guest()?),
            "pause" => Operation::Pause(self.guest()?),
            "resume" => Operation::Resume(self.guest()?),
            "stop" => Operation::Stop { guest: self.guest()?, seconds: self.seconds()? },
            "kill" => Operation::Kill(self.guest()?),
            "start" => Operation::Start(self.guest()?),
            "restart" => Operation::Restart { guest: self.guest()?, seconds: self.seconds()? },
            "stats" => Operation::Stats(self.guest.take()),
            "top" => Operation::Stats(None),
            "dump" => Operation::Dump { guest: self.guest()?, vcpu: self.vcpu()? },
            "trace" => Operation::Trace { guest: self.guest()?, vcpu: self.vcpu()? },
            "why" => Operation::Why(self.guest()?),
            "mem" => Operation::Memory,
            "cpus" => Operation::Cpus,
            "log" => Operation::Log(self.level.take().ok_or_else(|| missing("level"))?),
            "reboot" => Operation::Reboot,
            "poweroff" => Operation::PowerOff,
            "events" => Operation::Events {
                since: self.since.take().ok_or_else(|| missing("since"))?,
                max: in_range("max", self.max.take().unwrap_or(MAX_EVENTS), 1, MAX_EVENTS)?,
            },
            "upload.begin" => Operation::UploadBegin {
                name: self.name()?,
                size: self.size.take().ok_or_else(|| missing("size"))?,
                crc32: self.crc32()?,
            },
            "upload.chunk" => Operation::UploadChunk {
                name: self.name()?,
                offset: self.offset.take().ok_or_else(|| missing("offset"))?,
                data: self.data()?,
                crc32: self.crc32()?,
            },
            "upload.end" => Operation::UploadEnd { name: self.name()? },
            "upload.delete" => Operation::UploadDelete { name: self.name()? },
            "define" => Operation::Define(self.settings()?),
            "delete" => Operation::Delete(self.guest()?),
            "dry_run" => Operation::DryRun(self.settings()?),
            _ => Operation::Hello,
        })
    }

    fn guest(&mut self) -> Result<GuestRef, Refusal> {
        self.guest.take().ok_or_else(|| missing("guest"))
    }

    fn seconds(&mut self) -> Result<u32, Refusal> {
        in_range("seconds", self.seconds.take().unwrap_or(STOP_SECONDS), 0, MAX_STOP_SECONDS)
    }

    fn vcpu(&mut self) -> Result<Option<u32>, Refusal> {
        self.vcpu.take().map(|vcpu| in_range("vcpu", vcpu, 0, MAX_VCPUS - 1)).transpose()
    }

    fn crc32(&mut self) -> Result<u32, Refusal> {
        self.crc32.take().ok_or_else(|| missing("crc32"))
    }

    fn name(&mut self) -> Result<String, Refusal> {
        let name = self.name.take().ok_or_else(|| missing("name"))?;
        if is_file_name(&name) {
            return Ok(name);
        }
        let message = format!(
            "\"name\" is {}: 1 to {MAX_FILE_NAME} visible ASCII characters are allowed",
            Quoted(&name)
        );
        Err(Refusal::new(ErrorCode::BadArgument, message))
    }

    fn data(&mut self) -> Result<Vec<u8>, Refusal> {
        let text = self.data.take().ok_or_else(|| missing("data"))?;
        let bytes = BASE64.decode(text).map_err(|error| {
            Refusal::new(ErrorCode::BadArgument, format!("\"data\" is no base64: {error}"))
        })?;
        in_range("data's length", bytes.len(), 1, MAX_CHUNK).map(|_| bytes)
    }

    fn settings(&mut self) -> Result<Box<GuestSettings>, Refusal> {
        let settings = self.settings.take().ok_or_else(|| missing("settings"))?;
        let texts = [&settings.cmdline].into_iter();
        let texts = texts.chain(settings.modules.iter().map(|module| &module.cmdline));
        for text in texts {
            in_range("cmdline's length", text.len(), 0, MAX_CMDLINE)?;
        }
        in_range("modules' number", settings.modules.len(), 0, MAX_MODULES)?;
        Ok(settings)
    }

    /// An argument that nobody took.
    fn left(&self) -> Option<&'static str> {
        [
            ("guest", self.guest.is_some()),
            ("seconds", self.seconds.is_some()),
            ("vcpu", self.vcpu.is_some()),
            ("level", self.level.is_some()),
            ("since", self.since.is_some()),
            ("max", self.max.is_some()),
            ("name", self.name.is_some()),
            ("size", self.size.is_some()),
            ("offset", self.offset.is_some()),
            ("crc32", self.crc32.is_some()),
            ("data", self.data.is_some()),
            ("settings", self.settings.is_some()),
        ]
        .into_iter()
        .find_map(|(name, left)| left.then_some(name))
    }

    fn from_operation(id: String, operation: &Operation) -> Self {
        let mut wire = Self { v: VERSION, id, ..Self::default() };
        let op = match operation {
            Operation::Hello => "hello",
            Operation::List => "list",
            Operation::Attach(guest) => wire.with_guest("attach", guest),
            Operation::Pause(guest) => wire.with_guest("pause", guest),
            Operation::Resume(guest) => wire.with_guest("resume", guest),
            Operation::Stop { guest, seconds } => {
                wire.seconds = Some(*seconds);
                wire.with_guest("stop", guest)
            }
            Operation::Kill(guest) => wire.with_guest("kill", guest),
            Operation::Start(guest) => wire.with_guest("start", guest),
            Operation::Restart { guest, seconds } => {
                wire.seconds = Some(*seconds);
                wire.with_guest("restart", guest)
            }
            Operation::Stats(guest) => {
                wire.guest.clone_from(guest);
                "stats"
            }
            Operation::Dump { guest, vcpu } => {
                wire.vcpu = *vcpu;
                wire.with_guest("dump", guest)
            }
            Operation::Trace { guest, vcpu } => {
                wire.vcpu = *vcpu;
                wire.with_guest("trace", guest)
            }
            Operation::Why(guest) => wire.with_guest("why", guest),
            Operation::Memory => "mem",
            Operation::Cpus => "cpus",
            Operation::Log(level) => {
                wire.level = Some(*level);
                "log"
            }
            Operation::Reboot => "reboot",
            Operation::PowerOff => "poweroff",
            Operation::Events { since, max } => {
                (wire.since, wire.max) = (Some(*since), Some(*max));
                "events"
            }
            Operation::UploadBegin { name, size, crc32 } => {
                (wire.size, wire.crc32) = (Some(*size), Some(*crc32));
                wire.with_name("upload.begin", name)
            }
            Operation::UploadChunk { name, offset, data, crc32 } => {
                (wire.offset, wire.crc32) = (Some(*offset), Some(*crc32));
                wire.data = Some(BASE64.encode(data));
                wire.with_name("upload.chunk", name)
            }
            Operation::UploadEnd { name } => wire.with_name("upload.end", name),
            Operation::UploadDelete { name } => wire.with_name("upload.delete", name),
            Operation::Define(settings) => {
                wire.settings = Some(settings.clone());
                "define"
            }
            Operation::Delete(guest) => wire.with_guest("delete", guest),
            Operation::DryRun(settings) => {
                wire.settings = Some(settings.clone());
                "dry_run"
            }
        };
        wire.op = op.into();
        wire
    }

    fn with_guest(&mut self, op: &'static str, guest: &GuestRef) -> &'static str {
        self.guest = Some(guest.clone());
        op
    }

    fn with_name(&mut self, op: &'static str, name: &str) -> &'static str {
        self.name = Some(name.into());
        op
    }
}

/// An answer, as a client reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Id of the request; `None` if it could not be read.
    pub id: Option<String>,
    /// Result of the request.
    pub outcome: Result<Answer, Refusal>,
}

#[derive(Deserialize)]
struct ReplyWire {
    v: u32,
    id: Option<String>,
    ok: Option<Answer>,
    error: Option<Refusal>,
}

/// An answer, as it is written: nothing is copied for it.
#[derive(Serialize)]
struct ReplyRef<'a> {
    v: u32,
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<&'a Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Refusal>,
}

/// The line of an answer, with the line feed.
pub(super) fn reply(id: Option<&str>, outcome: Result<&Answer, &Refusal>) -> Vec<u8> {
    let wire = ReplyRef { v: VERSION, id, ok: outcome.ok(), error: outcome.err() };
    // Structures of texts and numbers can be written.
    let mut line = serde_json::to_vec(&wire).unwrap_or_default();
    line.push(b'\n');
    line
}

impl Reply {
    /// Reads a line.
    ///
    /// # Errors
    /// The line is no answer of this version; in words.
    pub fn from_line(line: &[u8]) -> Result<Self, String> {
        let wire: ReplyWire = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if wire.v != VERSION {
            return Err(format!("version {} of the protocol, not {VERSION}", wire.v));
        }
        let outcome = match (wire.ok, wire.error) {
            (Some(answer), None) => Ok(answer),
            (None, Some(refusal)) => Err(refusal),
            _ => return Err("neither \"ok\" nor \"error\", or both".into()),
        };
        Ok(Self { id: wire.id, outcome })
    }
}
