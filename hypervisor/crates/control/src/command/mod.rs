//! The monitor's commands: what a line means, what help says, what Tab offers.

#[cfg(test)]
mod tests;

use crate::guests::{GuestRef, Known, Quoted};
use crate::line::{Complete, Completion};
use crate::operation::{MAX_STOP_SECONDS, Operation, STOP_SECONDS};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use config::LogLevel;
use config::limits::MAX_VCPUS;
use core::fmt::Write;

/// A line that the operator entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Do this once and show the answer.
    Do(Operation),
    /// Show [`Operation::Stats`] of all again and again, until a key is pressed.
    Top,
    /// Show this text.
    Help(String),
}

/// The arguments that a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Guest,
    GuestAndSeconds,
    GuestAndVcpu,
    Level,
    Command,
}

impl Takes {
    const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Guest => " GUEST",
            Self::GuestAndSeconds => " GUEST [SECONDS]",
            Self::GuestAndVcpu => " GUEST [VCPU]",
            Self::Level => " LEVEL",
            Self::Command => " [COMMAND]",
        }
    }

    /// How many arguments the command may have.
    const fn most(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Guest | Self::Level | Self::Command => 1,
            Self::GuestAndSeconds | Self::GuestAndVcpu => 2,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: &'static str,
    takes: Takes,
    /// The help for the command in one line.
    summary: &'static str,
    /// The rest of the help.
    more: &'static str,
    make: fn(&Arguments<'_>) -> Result<Command, CommandError>,
}

/// The words behind a command.
struct Arguments<'a> {
    entry: &'static Entry,
    words: Vec<&'a str>,
}

impl Arguments<'_> {
    fn guest(&self) -> Result<GuestRef, CommandError> {
        self.words
            .first()
            .map(|word| GuestRef::typed(word))
            .ok_or_else(|| self.missing("a guest's name or number"))
    }

    fn missing(&self, what: &'static str) -> CommandError {
        CommandError::Missing { what, usage: self.entry.usage() }
    }

    fn number(&self, what: &'static str, most: u32) -> Result<Option<u32>, CommandError> {
        let Some(word) = self.words.get(1) else { return Ok(None) };
        match word.parse() {
            Ok(number) if number <= most => Ok(Some(number)),
            _ => Err(CommandError::Number { what, found: Quoted(word).to_string(), most }),
        }
    }

    fn seconds(&self) -> Result<u32, CommandError> {
        Ok(self.number("seconds", MAX_STOP_SECONDS)?.unwrap_or(STOP_SECONDS))
    }

    fn vcpu(&self) -> Result<Option<u32>, CommandError> {
        self.number("the vCPU", MAX_VCPUS - 1)
    }

    fn level(&self) -> Result<LogLevel, CommandError> {
        let word = self.words.first().ok_or_else(|| self.missing(LEVELS_ALLOWED))?;
        LEVELS
            .into_iter()
            .find(|level| level.as_str() == *word)
            .ok_or_else(|| CommandError::Level(Quoted(word).to_string()))
    }

    fn help(&self) -> Result<Command, CommandError> {
        let Some(word) = self.words.first() else { return Ok(Command::Help(overview())) };
        let entry = find(word)?;
        let mut text = format!("{}\n  {}\n", entry.usage(), entry.summary);
        for line in entry.more.lines() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {line}");
        }
        Ok(Command::Help(text))
    }
}

impl Entry {
    fn usage(&self) -> String {
        format!("{}{}", self.name, self.takes.words())
    }
}

const LEVELS: [LogLevel; 6] = [
    LogLevel::Off,
    LogLevel::Error,
    LogLevel::Warn,
    LogLevel::Info,
    LogLevel::Debug,
    LogLevel::Trace,
];
const LEVELS_ALLOWED: &str = "a level: off, error, warn, info, debug or trace";

/// A line that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such command.
    #[error("there is no command {found}; there are {}", names())]
    Unknown {
        /// The word that was entered.
        found: String,
    },
    /// An argument is missing.
    #[error("{what} is missing: {usage}")]
    Missing {
        /// The argument that is missing.
        what: &'static str,
        /// How the command is used.
        usage: String,
    },
    /// There is more than the command takes.
    #[error("{found} is too much: {usage}")]
    Surplus {
        /// The first word that is too much.
        found: String,
        /// How the command is used.
        usage: String,
    },
    /// Not a number in its range.
    #[error("{what} can't be {found}: a number from 0 to {most} is allowed")]
    Number {
        /// The argument that the number stands for.
        what: &'static str,
        /// The word that was entered.
        found: String,
        /// The largest that is allowed.
        most: u32,
    },
    /// Not a level.
    #[error("{0} is not {LEVELS_ALLOWED}")]
    Level(String),
}

/// The commands, in the order in which help lists them.
static COMMANDS: [Entry; 19] = [
    Entry {
        name: "list",
        takes: Takes::Nothing,
        summary: "the guests, their state and size",
        more: "",
        make: |_| Ok(Command::Do(Operation::List)),
    },
    Entry {
        name: "top",
        takes: Takes::Nothing,
        summary: "what the guests use, live; any key ends it",
        more: "CPU: percent of one CPU. RUN, READY, WAIT: how the vCPUs spent the time;\n\
               READY is time without a CPU though there was something to do.",
        make: |_| Ok(Command::Top),
    },
    Entry {
        name: "attach",
        takes: Takes::Guest,
        summary: "show this guest's console",
        more: "Ctrl-] then m comes back to the monitor, Ctrl-] then a digit attaches\n\
               to the guest of that number.",
        make: |arguments| Ok(Command::Do(Operation::Attach(arguments.guest()?))),
    },
    Entry {
        name: "pause",
        takes: Takes::Guest,
        summary: "halt its vCPUs and its time",
        more: "",
        make: |arguments| Ok(Command::Do(Operation::Pause(arguments.guest()?))),
    },
    Entry {
        name: "resume",
        takes: Takes::Guest,
        summary: "let a paused guest go on",
        more: "",
        make: |arguments| Ok(Command::Do(Operation::Resume(arguments.guest()?))),
    },
    Entry {
        name: "stop",
        takes: Takes::GuestAndSeconds,
        summary: "press its power button, then end it by force",
        more: "By force after so many seconds: 0 to 3600, 30 if nothing is said.",
        make: |arguments| {
            let (guest, seconds) = (arguments.guest()?, arguments.seconds()?);
            Ok(Command::Do(Operation::Stop { guest, seconds }))
        },
    },
    Entry {
        name: "kill",
        takes: Takes::Guest,
        summary: "end it now",
        more: "",
        make: |arguments| Ok(Command::Do(Operation::Kill(arguments.guest()?))),
    },
    Entry {
        name: "start",
        takes: Takes::Guest,
        summary: "start a guest that is defined or has ended",
        more: "",
        make: |arguments| Ok(Command::Do(Operation::Start(arguments.guest()?))),
    },
    Entry {
        name: "restart",
        takes: Takes::GuestAndSeconds,
        summary: "stop it, then start it again",
        more: "The seconds are those of stop.",
        make: |arguments| {
            let (guest, seconds) = (arguments.guest()?, arguments.seconds()?);
            Ok(Command::Do(Operation::Restart { guest, seconds }))
        },
    },
    Entry {
        name: "stats",
        takes: Takes::Guest,
        summary: "its exits by reason, its time by vCPU",
        more: "",
        make: |arguments| Ok(Command::Do(Operation::Stats(Some(arguments.guest()?)))),
    },
    Entry {
        name: "dump",
        takes: Takes::GuestAndVcpu,
        summary: "registers, page walk and code around RIP",
        more: "Of all vCPUs, if none is named.",
        make: |arguments| {
            let (guest, vcpu) = (arguments.guest()?, arguments.vcpu()?);
            Ok(Command::Do(Operation::Dump { guest, vcpu }))
        },
    },
    Entry {
        name: "trace",
        takes: Takes::GuestAndVcpu,
        summary: "the last exits",
        more: "Of all vCPUs, if none is named.",
        make: |arguments| {
            let (guest, vcpu) = (arguments.guest()?, arguments.vcpu()?);
            Ok(Command::Do(Operation::Trace { guest, vcpu }))
        },
    },
    Entry {
        name: "why",
        takes: Takes::Guest,
        summary: "what its vCPUs wait for, and what is in the way",
        more: "",
        make: |arguments| Ok(Command::Do(Operation::Why(arguments.guest()?))),
    },
    Entry {
        name: "mem",
        takes: Takes::Nothing,
        summary: "the machine's memory, and what each guest costs",
        more: "",
        make: |_| Ok(Command::Do(Operation::Memory)),
    },
    Entry {
        name: "cpus",
        takes: Takes::Nothing,
        summary: "the machine's CPUs and what they run",
        more: "",
        make: |_| Ok(Command::Do(Operation::Cpus)),
    },
    Entry {
        name: "log",
        takes: Takes::Level,
        summary: "log this level and what is graver",
        more: "Levels: off, error, warn, info, debug, trace.",
        make: |arguments| Ok(Command::Do(Operation::Log(arguments.level()?))),
    },
    Entry {
        name: "reboot",
        takes: Takes::Nothing,
        summary: "start the machine again, with all guests",
        more: "Guests are not asked: stop those first that should be.",
        make: |_| Ok(Command::Do(Operation::Reboot)),
    },
    Entry {
        name: "poweroff",
        takes: Takes::Nothing,
        summary: "switch the machine off, with all guests",
        more: "Guests are not asked: stop those first that should be.",
        make: |_| Ok(Command::Do(Operation::PowerOff)),
    },
    Entry {
        name: "help",
        takes: Takes::Command,
        summary: "this list, or more about one command",
        more: "",
        make: |arguments| arguments.help(),
    },
];

fn names() -> String {
    let mut text = String::new();
    for (index, entry) in COMMANDS.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { ", " });
        text.push_str(entry.name);
    }
    text
}

fn find(name: &str) -> Result<&'static Entry, CommandError> {
    COMMANDS
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| CommandError::Unknown { found: Quoted(name).to_string() })
}

fn overview() -> String {
    let mut text = String::new();
    for entry in &COMMANDS {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:<24}{}", entry.usage(), entry.summary);
    }
    text.push_str(
        "GUEST is a name or a number. Ctrl-] then a digit attaches, then m comes here,\n\
         then p presses the power button of the guest that was attached last.\n",
    );
    text
}

/// The command that `line` means; `None` if there is nothing in it.
///
/// # Errors
/// [`CommandError`] says what was found and what is allowed. Whether there is
/// such a guest shows when the operation is done ([`GuestRef::resolve`]).
pub fn parse(line: &str) -> Result<Option<Command>, CommandError> {
    let mut words = line.split_ascii_whitespace();
    let Some(name) = words.next() else { return Ok(None) };
    let entry = find(name)?;
    let words: Vec<&str> = words.collect();
    if let Some(surplus) = words.get(entry.takes.most()) {
        let found = Quoted(surplus).to_string();
        return Err(CommandError::Surplus { found, usage: entry.usage() });
    }
    (entry.make)(&Arguments { entry, words }).map(Some)
}

/// The words that Tab offers: commands, and the names of these guests.
#[derive(Clone, Copy, Debug)]
pub struct Completer<'a> {
    /// The guests that there are.
    pub guests: &'a [Known<'a>],
}

impl Complete for Completer<'_> {
    fn complete(&self, before: &str) -> Completion {
        let start = before.rfind(' ').map_or(0, |space| space + 1);
        let (earlier, begun) = before.split_at_checked(start).unwrap_or(("", before));
        let mut earlier = earlier.split_ascii_whitespace();
        let commands = || COMMANDS.iter().map(|entry| entry.name.to_string()).collect();
        let all: Vec<String> = match (earlier.next(), earlier.count()) {
            (None, _) => commands(),
            (Some(command), 0) => match find(command).map(|entry| entry.takes) {
                Ok(Takes::Guest | Takes::GuestAndSeconds | Takes::GuestAndVcpu) => {
                    self.guests.iter().map(|guest| guest.name.to_string()).collect()
                }
                Ok(Takes::Level) => LEVELS.iter().map(|level| level.as_str().to_string()).collect(),
                Ok(Takes::Command) => commands(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let candidates = all.into_iter().filter(|word| word.starts_with(begun)).collect();
        Completion { start, candidates }
    }
}
