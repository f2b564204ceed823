//! Events, kept for a while and numbered, so that a reader can go on where it stopped.

use crate::protocol::{MAX_EVENTS, shortened};
use crate::refusal::{ErrorCode, Refusal};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Events that are kept.
pub const KEPT: usize = 256;
/// Bytes of an event's words.
const MAX_WORDS: usize = 200;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: 1 for the first of this start of the machine, then one by one.
    pub seq: u64,
    /// When, in nanoseconds since the machine's start.
    pub time_ns: u64,
    /// The guest that it happened to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<EventGuest>,
    /// Kind of the event, with its details.
    pub what: EventKind,
}

/// The guest that something happened to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventGuest {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
}

/// Kind of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The guest is known.
    Defined,
    /// It takes memory and is loaded.
    Starting,
    /// It runs.
    Started,
    /// Its start failed.
    StartFailed {
        /// Why.
        reason: String,
    },
    /// It was paused.
    Paused,
    /// It goes on.
    Resumed,
    /// Its power button was pressed.
    Stopping {
        /// Seconds until it ends by force.
        seconds: u32,
    },
    /// It has ended, and still holds its memory.
    Ended {
        /// Why.
        reason: String,
        /// Whether by a failure.
        crashed: bool,
    },
    /// All that it held was given back.
    Cleared,
    /// It will be started again.
    Waiting {
        /// In how many nanoseconds.
        delay_ns: u64,
    },
    /// It is no longer known.
    Deleted,
    /// A file is whole.
    Uploaded {
        /// Its name.
        name: String,
    },
    /// A file was deleted.
    UploadDeleted {
        /// Its name.
        name: String,
    },
    /// A kind that this reader does not know; never written.
    #[serde(other)]
    Other,
}

/// Events behind a cursor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// The oldest first.
    pub events: Vec<Event>,
    /// The cursor for the next question: the number of the last event here.
    pub next: u64,
    /// Events behind the cursor that are no longer kept.
    pub lost: u64,
}

/// The last events.
#[derive(Debug, Default)]
pub struct EventLog {
    ring: VecDeque<Event>,
    last: u64,
}

impl EventLog {
    /// A log without events.
    #[must_use]
    pub const fn new() -> Self {
        Self { ring: VecDeque::new(), last: 0 }
    }

    /// Notes what happened; returns its number.
    pub fn push(&mut self, time_ns: u64, guest: Option<EventGuest>, mut what: EventKind) -> u64 {
        match &mut what {
            EventKind::StartFailed { reason: words }
            | EventKind::Ended { reason: words, .. }
            | EventKind::Uploaded { name: words }
            | EventKind::UploadDeleted { name: words } => *words = shortened(words, MAX_WORDS),
            _ => {}
        }
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.last += 1;
        self.ring.push_back(Event { seq: self.last, time_ns, guest, what });
        self.last
    }

    /// The number of the newest event; 0 if there is none.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// At most `max` of the events behind number `since`, and no more than
    /// [`MAX_EVENTS`].
    ///
    /// # Errors
    /// There is no event of that number yet: [`ErrorCode::BadCursor`].
    pub fn since(&self, since: u64, max: u32) -> Result<Events, Refusal> {
        let last = self.last;
        if since > last {
            let message = format!(
                "\"since\" is {since}, and the newest event is {last}: was the machine started \
                 again? Begin with 0"
            );
            return Err(Refusal::new(ErrorCode::BadCursor, message));
        }
        let oldest = last - self.ring.len() as u64;
        let max = usize::try_from(max.min(MAX_EVENTS)).unwrap_or(0);
        let behind = self.ring.iter().filter(|event| event.seq > since);
        let events: Vec<Event> = behind.take(max).cloned().collect();
        let lost = oldest.saturating_sub(since);
        let next = events.last().map_or(since.max(oldest), |event| event.seq);
        Ok(Events { events, next, lost })
    }
}
