//! The life of a guest, from its definition to its deletion: one state machine
//! that commands of the operator, events of the guest and the clock drive.
//!
//! Pure: what is to be done comes out as [`Action`]s, whose results come back as [`Event`]s.
//! Whatever a start took is given back by one [`Action::Reclaim`], on every way out; nothing is
//! started before that is done. [`State`] is the stage of a guest's life:
//!
//! ```text
//! Defined ─┬─> Starting ──> Running <──> Paused
//!  Ended ──┤      │            │  ╲        │
//! Waiting ─┘      │            │   ╲──> Stopping
//!    ^            ╰────────────┴──────────┤  (the guest ends, is killed, fails)
//!    │                                    v
//!    ╰── Ended, Waiting, Starting, Deleted <── Clearing
//! ```
//!
//! Times are ticks of the host's TSC. [`Lifecycle::deadline`] says when
//! [`Lifecycle::timer`] is next due; calling it early does nothing.

#[cfg(test)]
mod tests;

pub use config::RestartPolicy;

use crate::end::EndReason;
use arrayvec::ArrayVec;
use config::{OnReset, Rules};
use core::fmt;
use hvabi::ShutDownKind;

/// Stage of a guest's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Known, never started.
    Defined,
    /// It takes memory, is loaded, gets its vCPUs.
    Starting {
        /// The step that comes instead, if the operator has cancelled the start.
        cancel: Option<After>,
    },
    /// It runs.
    Running,
    /// Its vCPUs and its time stand still.
    Paused,
    /// Its power button was pressed.
    Stopping {
        /// When it ends by force.
        deadline: u64,
        /// The step after that.
        then: After,
    },
    /// It has ended; all that it had is being given back.
    Clearing {
        /// The step after that.
        then: After,
    },
    /// It has ended, and holds nothing. [`Lifecycle::last`] says why.
    Ended,
    /// It has ended, holds nothing, and starts again.
    Waiting {
        /// The tick of its start.
        until: u64,
    },
    /// It is no longer known.
    Deleted,
}

/// The step after a guest has been cleared away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    End,
    /// A start.
    Start,
    /// A start, but not at once.
    BackOff,
    /// Its definition goes too.
    Delete,
}

/// Why a guest ended last.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// By itself, or by what it did.
    #[error("{}", Words(.0))]
    Guest(EndReason),
    /// It did not end in time after its power button had been pressed.
    #[error("stopped by force: it did not power off in time")]
    Forced,
    /// The operator ended it.
    #[error("killed")]
    Killed,
    /// The operator cancelled the start while it was under way.
    #[error("its start was cancelled")]
    Cancelled,
    /// It could not be started.
    #[error("its start failed at step \"{0}\"")]
    Start(&'static str),
}

struct Words<'a>(&'a EndReason);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            EndReason::PowerOff => f.write_str("powered off"),
            EndReason::Reset => f.write_str("reset its machine"),
            EndReason::Halted => f.write_str("halted for good"),
            EndReason::DebugExit(value) => write!(f, "wrote {value:#x} to the debug-exit port"),
            EndReason::ShutDown { kind, status } => {
                let what = match kind {
                    ShutDownKind::PowerOff => "shut down",
                    ShutDownKind::Reset => "asked for a reset",
                    ShutDownKind::Crash => "reported a crash",
                };
                write!(f, "{what}, status {status}")
            }
            EndReason::Panicked => f.write_str("its kernel panicked"),
            EndReason::TripleFault => f.write_str("triple fault"),
            EndReason::Failed(error) => write!(f, "could not go on: {error}"),
        }
    }
}

/// Meaning of a guest's end for its restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Success,
    Reset,
    Failure,
}

fn kind(reason: &EndReason) -> Kind {
    match reason {
        EndReason::PowerOff | EndReason::Halted | EndReason::DebugExit(0) => Kind::Success,
        EndReason::ShutDown { kind: ShutDownKind::PowerOff, status: 0 } => Kind::Success,
        EndReason::Reset | EndReason::ShutDown { kind: ShutDownKind::Reset, .. } => Kind::Reset,
        EndReason::DebugExit(_)
        | EndReason::ShutDown { .. }
        | EndReason::Panicked
        | EndReason::TripleFault
        | EndReason::Failed(_) => Kind::Failure,
    }
}

/// A command of the operator's for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start it. One that waits for its restart starts now.
    Start,
    /// Stop its vCPUs and its time.
    Pause,
    /// Let them go on.
    Resume,
    /// Press its power button; end it by force at this tick.
    Stop(u64),
    /// End it now.
    Kill,
    /// Stop it as [`Stop`](Self::Stop) does, and start it again.
    Restart(u64),
    /// Forget it. It must not run.
    Delete,
}

/// An event in the life of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The start succeeded: its vCPUs run.
    Started,
    /// The start failed at this step. The resources of the steps before are still held;
    /// [`Action::Reclaim`] follows.
    StartFailed(&'static str),
    /// The guest has ended, or can't go on. Only the first of several counts.
    Ended(EndReason),
    /// [`Action::Reclaim`] has been carried out. No more news of that start will come.
    Reclaimed,
}

/// An action that the state machine asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start it, step by step: [`Event::Started`] or [`Event::StartFailed`] follows.
    Start,
    /// Start no further: [`Event::Started`] or [`Event::StartFailed`] follows, whichever is true.
    CancelStart,
    /// Stop its vCPUs, then its clock.
    Pause,
    /// Its clock, then its vCPUs go on.
    Resume,
    /// Press its power button.
    PressPowerButton,
    /// Stop its vCPUs for good, wait for the CPUs that run them, give back all
    /// that it holds: [`Event::Reclaimed`] follows.
    Reclaim,
    /// Remove it from the list of guests.
    Forget,
}

/// The actions that are asked for, in this order.
pub type Actions = ArrayVec<Action, 2>;

fn one(action: Action) -> Actions {
    Actions::from_iter([action])
}

/// A command that does not fit the guest's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("can't {} a guest that {}{}", self.verb(), self.state_words(), self.cure())]
pub struct Refused {
    /// The command.
    pub command: Command,
    /// The state.
    pub state: State,
}

impl Refused {
    fn verb(&self) -> &'static str {
        match self.command {
            Command::Start => "start",
            Command::Pause => "pause",
            Command::Resume => "resume",
            Command::Stop(_) => "stop",
            Command::Kill => "kill",
            Command::Restart(_) => "restart",
            Command::Delete => "delete",
        }
    }

    fn state_words(&self) -> &'static str {
        match self.state {
            State::Defined => "was never started",
            State::Starting { cancel: None } => "is starting",
            State::Starting { cancel: Some(_) } => "is being cancelled",
            State::Running => "is running",
            State::Paused => "is paused",
            State::Stopping { .. } => "is stopping",
            State::Clearing { then: After::Delete } => "is being deleted",
            State::Clearing { .. } => "is being cleared away",
            State::Ended => "has ended",
            State::Waiting { .. } => "waits for its restart",
            State::Deleted => "was deleted",
        }
    }

    fn cure(&self) -> &'static str {
        match (self.command, self.state) {
            (Command::Start, State::Paused) => ": resume it",
            (Command::Start, State::Stopping { .. }) => ": restart it, or kill it first",
            (Command::Delete, State::Running | State::Paused | State::Starting { .. }) => {
                ": stop or kill it first"
            }
            (Command::Delete, State::Stopping { .. }) => ": wait until it has ended, or kill it",
            (Command::Pause | Command::Resume, State::Defined | State::Ended) => ": start it",
            _ => "",
        }
    }
}

/// Origin of a guest's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The operator, or the boot: a start that fails is an answer.
    Operator,
    /// The restart policy: a start that fails is tried again.
    Policy,
}

/// The life of one guest.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    rules: Rules,
    state: State,
    origin: Origin,
    /// When the guest began to run.
    started: Option<u64>,
    /// Restarts since it was last healthy.
    failures: u32,
    starts: u64,
    last: Option<Cause>,
}

impl Lifecycle {
    /// A guest that was just defined.
    #[must_use]
    pub const fn new(rules: Rules) -> Self {
        Self {
            rules,
            state: State::Defined,
            origin: Origin::Operator,
            started: None,
            failures: 0,
            starts: 0,
            last: None,
        }
    }

    /// The stage of the guest's life.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why the guest ended last.
    #[must_use]
    pub const fn last(&self) -> Option<&Cause> {
        self.last.as_ref()
    }

    /// How often the guest was started.
    #[must_use]
    pub const fn starts(&self) -> u64 {
        self.starts
    }

    /// Whether the operator has cancelled the start that is under way.
    #[must_use]
    pub const fn is_cancelled(&self) -> bool {
        matches!(self.state, State::Starting { cancel: Some(_) })
    }

    /// When [`timer`](Self::timer) is due.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Stopping { deadline, .. } => Some(deadline),
            State::Waiting { until } => Some(until),
            _ => None,
        }
    }

    /// Obeys the operator. No action is returned if the guest is so already, or on its way there.
    ///
    /// # Errors
    /// The command does not fit the state; nothing has changed.
    pub fn command(&mut self, command: Command) -> Result<Actions, Refused> {
        let refused = Refused { command, state: self.state };
        match command {
            Command::Start | Command::Restart(_) => self.start(command).ok_or(refused),
            Command::Pause => match self.state {
                State::Running => Ok(self.to(State::Paused, Action::Pause)),
                State::Paused => Ok(Actions::new()),
                _ => Err(refused),
            },
            Command::Resume => match self.state {
                State::Paused => Ok(self.to(State::Running, Action::Resume)),
                State::Running => Ok(Actions::new()),
                _ => Err(refused),
            },
            Command::Stop(_) | Command::Kill => self.stop(command).ok_or(refused),
            Command::Delete => match self.state {
                State::Defined | State::Ended | State::Waiting { .. } => {
                    Ok(self.to(State::Deleted, Action::Forget))
                }
                State::Clearing { .. } => Ok(self.then(After::Delete)),
                State::Starting { cancel: Some(_) } => Ok(self.cancel(After::Delete)),
                _ => Err(refused),
            },
        }
    }

    fn start(&mut self, command: Command) -> Option<Actions> {
        match (self.state, command) {
            (State::Defined | State::Ended | State::Waiting { .. }, _) => {
                self.failures = 0;
                Some(self.begin(Origin::Operator))
            }
            (State::Starting { cancel: None }, _) | (State::Running, Command::Start) => {
                Some(Actions::new())
            }
            (State::Starting { cancel: Some(After::Delete) }, _)
            | (State::Clearing { then: After::Delete } | State::Deleted, _) => None,
            (State::Starting { cancel: Some(_) }, _) => Some(self.cancel(After::Start)),
            (State::Clearing { .. }, _) => Some(self.then(After::Start)),
            (State::Running | State::Paused, Command::Restart(deadline)) => {
                Some(self.press(deadline, After::Start))
            }
            (State::Stopping { deadline, .. }, Command::Restart(sooner)) => {
                let deadline = deadline.min(sooner);
                self.state = State::Stopping { deadline, then: After::Start };
                Some(Actions::new())
            }
            _ => None,
        }
    }

    fn stop(&mut self, command: Command) -> Option<Actions> {
        match (self.state, command) {
            (State::Running | State::Paused, Command::Stop(deadline)) => {
                Some(self.press(deadline, After::End))
            }
            (State::Stopping { deadline, .. }, Command::Stop(sooner)) => {
                let deadline = deadline.min(sooner);
                self.state = State::Stopping { deadline, then: After::End };
                Some(Actions::new())
            }
            (State::Running | State::Paused | State::Stopping { .. }, _) => {
                self.last = Some(Cause::Killed);
                Some(self.clear(After::End))
            }
            (State::Starting { cancel: Some(After::Delete) }, _)
            | (State::Clearing { then: After::Delete }, _)
            | (State::Defined | State::Ended, _) => Some(Actions::new()),
            (State::Starting { .. }, _) => Some(self.cancel(After::End)),
            (State::Clearing { .. }, _) => Some(self.then(After::End)),
            (State::Waiting { .. }, _) => {
                self.state = State::Ended;
                Some(Actions::new())
            }
            (State::Deleted, _) => None,
        }
    }

    /// Takes note of what happened at the tick `now`.
    pub fn event(&mut self, event: Event, now: u64) -> Actions {
        match (event, self.state) {
            (Event::Started, State::Starting { cancel: None }) => {
                self.started = Some(now);
                self.state = State::Running;
                Actions::new()
            }
            (Event::Started, State::Starting { cancel: Some(then) }) => {
                self.last = Some(Cause::Cancelled);
                self.clear(then)
            }
            (Event::StartFailed(step), State::Starting { cancel }) => {
                let again =
                    self.origin == Origin::Policy && self.rules.restart != RestartPolicy::Never;
                let by_itself = if again { After::BackOff } else { After::End };
                self.last =
                    Some(if cancel.is_some() { Cause::Cancelled } else { Cause::Start(step) });
                self.clear(cancel.unwrap_or(by_itself))
            }
            (
                Event::Ended(reason),
                State::Starting { .. } | State::Running | State::Paused | State::Stopping { .. },
            ) => {
                let then = self.after(kind(&reason), now);
                let then = match self.state {
                    State::Starting { cancel } => cancel.unwrap_or(then),
                    State::Stopping { then, .. } => then,
                    _ => then,
                };
                self.last = Some(Cause::Guest(reason));
                self.clear(then)
            }
            (Event::Reclaimed, State::Clearing { then }) => match then {
                After::End => {
                    self.state = State::Ended;
                    Actions::new()
                }
                After::Start => self.begin(Origin::Policy),
                After::BackOff => {
                    let wait = self.rules.back_off.wait(self.failures);
                    self.failures = self.failures.saturating_add(1);
                    self.state = State::Waiting { until: now.saturating_add(wait) };
                    Actions::new()
                }
                After::Delete => self.to(State::Deleted, Action::Forget),
            },
            _ => Actions::new(),
        }
    }

    /// Does what is due at the tick `now`.
    pub fn timer(&mut self, now: u64) -> Actions {
        match self.state {
            State::Stopping { deadline, then } if now >= deadline => {
                self.last = Some(Cause::Forced);
                self.clear(then)
            }
            State::Waiting { until } if now >= until => self.begin(Origin::Policy),
            _ => Actions::new(),
        }
    }

    /// The step that the rules name after a guest's own end.
    fn after(&mut self, kind: Kind, now: u64) -> After {
        let ran = self.started.map_or(0, |started| now.saturating_sub(started));
        let healthy = self.started.is_some() && ran >= self.rules.back_off.healthy;
        if healthy {
            self.failures = 0;
        }
        let again = match self.rules.restart {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => kind == Kind::Failure,
            RestartPolicy::Always => true,
        };
        let hasty = ran < self.rules.back_off.hasty;
        match kind {
            Kind::Reset if self.rules.on_reset == OnReset::Restart && !hasty => After::Start,
            Kind::Reset if self.rules.on_reset == OnReset::Restart => After::BackOff,
            _ if again => After::BackOff,
            _ => After::End,
        }
    }

    fn to(&mut self, state: State, action: Action) -> Actions {
        self.state = state;
        one(action)
    }

    fn begin(&mut self, origin: Origin) -> Actions {
        self.origin = origin;
        self.started = None;
        self.starts = self.starts.saturating_add(1);
        self.to(State::Starting { cancel: None }, Action::Start)
    }

    fn press(&mut self, deadline: u64, then: After) -> Actions {
        let mut actions = Actions::new();
        if self.state == State::Paused {
            actions.push(Action::Resume);
        }
        actions.push(Action::PressPowerButton);
        self.state = State::Stopping { deadline, then };
        actions
    }

    fn clear(&mut self, then: After) -> Actions {
        self.to(State::Clearing { then }, Action::Reclaim)
    }

    fn cancel(&mut self, instead: After) -> Actions {
        let first = self.state == State::Starting { cancel: None };
        self.state = State::Starting { cancel: Some(instead) };
        if first { one(Action::CancelStart) } else { Actions::new() }
    }

    /// Changes what comes next.
    fn then(&mut self, after: After) -> Actions {
        if let State::Clearing { then } = &mut self.state {
            *then = after;
        }
        Actions::new()
    }
}
