extern crate std;

use super::*;
use crate::end::VmError;
use config::BackOff;
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;

const RULES: Rules = Rules {
    restart: RestartPolicy::OnFailure,
    on_reset: OnReset::Restart,
    back_off: BackOff { first: 100, most: 1000, healthy: 5000, hasty: 50 },
};

/// The world that a guest lives in, with a clock: it obeys actions, and complains about those that
/// make no sense.
struct World {
    life: Lifecycle,
    now: u64,
    /// A start is under way.
    starting: bool,
    /// The start was told to go no further.
    cancelled: bool,
    /// vCPUs are there.
    alive: bool,
    paused: bool,
    /// Something is held.
    held: bool,
    reclaiming: bool,
    forgotten: bool,
    starts: u32,
    reclaims: u32,
}

impl World {
    fn new(rules: Rules) -> Self {
        Self {
            life: Lifecycle::new(rules),
            now: 1,
            starting: false,
            cancelled: false,
            alive: false,
            paused: false,
            held: false,
            reclaiming: false,
            forgotten: false,
            starts: 0,
            reclaims: 0,
        }
    }

    fn act(&mut self, actions: Actions) {
        for action in actions {
            assert!(!self.forgotten, "{action:?} of a guest that is not known");
            match action {
                Action::Start => {
                    assert!(!self.held && !self.reclaiming && !self.starting);
                    (self.starting, self.held, self.cancelled) = (true, true, false);
                    self.starts += 1;
                }
                Action::CancelStart => {
                    assert!(self.starting && !self.cancelled);
                    self.cancelled = true;
                }
                Action::Pause => {
                    assert!(self.alive && !self.paused && !self.reclaiming);
                    self.paused = true;
                }
                Action::Resume => {
                    assert!(self.alive && self.paused && !self.reclaiming);
                    self.paused = false;
                }
                Action::PressPowerButton => {
                    assert!(self.alive && !self.paused && !self.reclaiming);
                }
                Action::Reclaim => {
                    assert!(self.held && !self.reclaiming, "reclaimed twice");
                    self.reclaiming = true;
                    self.reclaims += 1;
                }
                Action::Forget => {
                    assert!(!self.held && !self.reclaiming && !self.starting);
                    self.forgotten = true;
                }
            }
        }
    }

    fn event(&mut self, event: Event) {
        let actions = self.life.event(event, self.now);
        self.act(actions);
    }

    fn command(&mut self, command: Command) -> Result<usize, Refused> {
        let before = self.life.state();
        let result = self.life.command(command);
        if result.is_err() {
            assert_eq!(self.life.state(), before);
        }
        let actions = result?;
        let count = actions.len();
        self.act(actions);
        Ok(count)
    }

    /// The start ends, one way or the other.
    fn finish_start(&mut self, well: bool) {
        if self.starting {
            self.starting = false;
            self.alive = well;
            self.event(if well { Event::Started } else { Event::StartFailed("memory") });
        }
    }

    fn finish_reclaim(&mut self) {
        if self.reclaiming {
            // A start that was under way has ended before.
            self.finish_start(false);
            (self.reclaiming, self.held) = (false, false);
            (self.alive, self.paused) = (false, false);
            self.event(Event::Reclaimed);
        }
    }

    fn end(&mut self, reason: EndReason) {
        if self.alive || self.starting {
            self.event(Event::Ended(reason));
        }
    }

    fn pass(&mut self, ticks: u64) {
        self.now += ticks;
        let actions = self.life.timer(self.now);
        self.act(actions);
    }

    /// The state agrees with the world.
    fn check(&self) {
        let state = self.life.state();
        match state {
            State::Defined | State::Ended | State::Waiting { .. } | State::Deleted => {
                assert!(!self.held && !self.reclaiming && !self.starting, "{state:?}");
                assert_eq!(self.starts, self.reclaims);
            }
            State::Starting { .. } => assert!(self.starting && !self.reclaiming),
            State::Running => assert!(self.alive && !self.paused && !self.reclaiming),
            State::Paused => assert!(self.alive && self.paused && !self.reclaiming),
            State::Stopping { .. } => assert!(self.alive && !self.reclaiming),
            State::Clearing { .. } => assert!(self.reclaiming),
        }
        assert_eq!(state == State::Deleted, self.forgotten);
        assert!(self.starts - self.reclaims <= 1);
    }

    fn run(&mut self) {
        self.command(Command::Start).unwrap();
        self.finish_start(true);
        assert_eq!(self.life.state(), State::Running);
    }

    fn ended(&mut self, reason: EndReason) -> State {
        self.end(reason);
        self.finish_reclaim();
        self.life.state()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Command(Command),
    StartEnds(bool),
    Reclaimed,
    Ended(EndReason),
    Pass(u64),
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(Command::Start),
        Just(Command::Start),
        Just(Command::Pause),
        Just(Command::Resume),
        (0u64..9000).prop_map(Command::Stop),
        Just(Command::Kill),
        (0u64..9000).prop_map(Command::Restart),
        Just(Command::Delete),
    ]
}

fn reason() -> impl Strategy<Value = EndReason> {
    prop_oneof![
        Just(EndReason::PowerOff),
        Just(EndReason::Reset),
        Just(EndReason::Halted),
        Just(EndReason::TripleFault),
        Just(EndReason::Failed(VmError::Internal("test"))),
        any::<u8>()
            .prop_map(|status| { EndReason::ShutDown { kind: ShutDownKind::PowerOff, status } }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => command().prop_map(Step::Command),
        3 => any::<bool>().prop_map(Step::StartEnds),
        3 => Just(Step::Reclaimed),
        2 => reason().prop_map(Step::Ended),
        2 => (1u64..6000).prop_map(Step::Pass),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let restart = prop_oneof![
        Just(RestartPolicy::Never),
        Just(RestartPolicy::OnFailure),
        Just(RestartPolicy::Always)
    ];
    let on_reset = prop_oneof![Just(OnReset::Restart), Just(OnReset::End)];
    (restart, on_reset).prop_map(|(restart, on_reset)| Rules { restart, on_reset, ..RULES })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: orders make sense, everything taken
    /// is given back exactly once, commands are idempotent, and from wherever
    /// it is, a guest comes to rest and can be deleted.
    #[test]
    fn lives_make_sense(rules in rules(), steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new(rules);
        for step in steps {
            match step {
                Step::Command(command) => {
                    if world.command(command).is_ok() {
                        // The same command again changes nothing, but for a guest that is deleted,
                        // and for a restart, which is a deed and no state.
                        let repeatable = match command {
                            Command::Delete => world.life.state() != State::Deleted,
                            Command::Restart(_) | Command::Start => !matches!(
                                world.life.state(), State::Running
                            ),
                            _ => true,
                        };
                        let state = world.life.state();
                        if repeatable {
                            prop_assert_eq!(world.command(command), Ok(0));
                            prop_assert_eq!(world.life.state(), state);
                        }
                    }
                }
                Step::StartEnds(well) => world.finish_start(well && !world.cancelled),
                Step::Reclaimed => world.finish_reclaim(),
                Step::Ended(reason) => world.end(reason),
                Step::Pass(ticks) => world.pass(ticks),
            }
            world.check();
            // There is always something to wait for, or the guest is at rest.
            let moving = world.starting || world.reclaiming || world.life.deadline().is_some();
            let resting = matches!(
                world.life.state(),
                State::Defined | State::Running | State::Paused | State::Ended | State::Deleted
            );
            prop_assert_eq!(moving, !resting);
        }
        if world.life.state() != State::Deleted {
            world.command(Command::Kill).unwrap();
            world.finish_start(true);
            world.finish_reclaim();
            world.check();
            if world.life.state() != State::Deleted {
                prop_assert!(matches!(world.life.state(), State::Defined | State::Ended));
                world.command(Command::Delete).unwrap();
            }
        }
        world.check();
        prop_assert_eq!(world.starts, world.reclaims);
        prop_assert!(world.command(Command::Start).is_err());
    }
}

#[test]
fn restarts_back_off_and_recover() {
    let mut world = World::new(RULES);
    world.run();
    let mut waits = Vec::new();
    for _ in 0..6 {
        world.now += 10;
        let State::Waiting { until } = world.ended(EndReason::TripleFault) else { panic!() };
        waits.push(until - world.now);
        world.pass(until - world.now - 1);
        assert_eq!(world.life.state(), State::Waiting { until });
        world.pass(1);
        world.finish_start(true);
        assert_eq!(world.life.state(), State::Running);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    // After a healthy time the waits begin anew.
    world.now += 5000;
    let until = world.now + 100;
    assert_eq!(world.ended(EndReason::Panicked), State::Waiting { until });
    // The operator need not wait.
    world.command(Command::Start).unwrap();
    world.finish_start(true);
    let until = world.now + 100;
    assert_eq!(world.ended(EndReason::Panicked), State::Waiting { until });
    assert_eq!(world.life.starts(), 8);
}

#[test]
fn policies_tell_ends_apart() {
    use RestartPolicy::{Always, Never, OnFailure};
    let crash = EndReason::TripleFault;
    let failed = EndReason::ShutDown { kind: ShutDownKind::PowerOff, status: 3 };
    for (restart, reason, again) in [
        (Never, crash.clone(), false),
        (OnFailure, crash.clone(), true),
        (Always, crash, true),
        (OnFailure, EndReason::PowerOff, false),
        (OnFailure, failed, true),
        (OnFailure, EndReason::DebugExit(0), false),
        (OnFailure, EndReason::Halted, false),
        (Always, EndReason::Halted, true),
        (OnFailure, EndReason::DebugExit(1), true),
        (Always, EndReason::PowerOff, true),
        (Never, EndReason::Reset, true),
    ] {
        let mut world = World::new(Rules { restart, ..RULES });
        world.run();
        let state = world.ended(reason.clone());
        assert_eq!(matches!(state, State::Waiting { .. }), again, "{restart:?}, {reason:?}");
    }
    // A reset is answered at once, unless it comes too soon after the start.
    for (ran, at_once) in [(0, false), (49, false), (50, true), (5000, true)] {
        let mut world = World::new(RULES);
        world.run();
        world.now += ran;
        let state = world.ended(EndReason::Reset);
        assert_eq!(state == State::Starting { cancel: None }, at_once, "after {ran}: {state:?}");
    }
    let mut world = World::new(Rules { on_reset: OnReset::End, ..RULES });
    world.run();
    assert_eq!(world.ended(EndReason::Reset), State::Ended);
}

#[test]
fn a_start_that_fails_is_an_answer_to_the_operator() {
    let rules = Rules { restart: RestartPolicy::Always, ..RULES };
    let mut world = World::new(rules);
    world.command(Command::Start).unwrap();
    world.finish_start(false);
    world.finish_reclaim();
    assert_eq!(world.life.state(), State::Ended);
    let cause = world.life.last().unwrap().to_string();
    assert_eq!(cause, "its start failed at step \"memory\"");
    // A start that the policy began is tried again.
    world.run();
    world.ended(EndReason::TripleFault);
    world.pass(100);
    world.finish_start(false);
    world.finish_reclaim();
    assert_eq!(world.life.state(), State::Waiting { until: world.now + 200 });
}

#[test]
fn stopping_has_a_deadline() {
    let mut world = World::new(RULES);
    world.run();
    world.command(Command::Pause).unwrap();
    let actions = world.life.command(Command::Stop(50)).unwrap();
    assert_eq!(actions.as_slice(), [Action::Resume, Action::PressPowerButton]);
    world.act(actions);
    assert_eq!(world.life.deadline(), Some(50));
    // Patience can only get less.
    world.command(Command::Stop(90)).unwrap();
    assert_eq!(world.life.deadline(), Some(50));
    world.pass(48);
    assert!(matches!(world.life.state(), State::Stopping { .. }));
    world.pass(1);
    world.finish_reclaim();
    assert_eq!(world.life.state(), State::Ended);
    assert_eq!(world.life.last(), Some(&Cause::Forced));
    // An end in time is the guest's own end, which starts nothing again.
    world.run();
    world.command(Command::Stop(9000)).unwrap();
    assert_eq!(world.ended(EndReason::TripleFault), State::Ended);
    // A restart begins again at once, however the guest ended.
    world.run();
    world.command(Command::Restart(9000)).unwrap();
    assert_eq!(world.ended(EndReason::PowerOff), State::Starting { cancel: None });
    // A restart that is asked for during a stop has its own patience, if that is less.
    world.finish_start(true);
    world.command(Command::Stop(9000)).unwrap();
    world.command(Command::Restart(7000)).unwrap();
    assert_eq!(world.life.deadline(), Some(7000));
    world.command(Command::Restart(8000)).unwrap();
    assert_eq!(world.life.deadline(), Some(7000));
    assert_eq!(world.ended(EndReason::PowerOff), State::Starting { cancel: None });
}

#[test]
fn refusals_have_words() {
    let mut world = World::new(RULES);
    let words = |world: &mut World, command| world.command(command).unwrap_err().to_string();
    assert_eq!(
        words(&mut world, Command::Pause),
        "can't pause a guest that was never started: start it"
    );
    world.run();
    assert_eq!(
        words(&mut world, Command::Delete),
        "can't delete a guest that is running: stop or kill it first"
    );
    world.command(Command::Pause).unwrap();
    assert_eq!(words(&mut world, Command::Start), "can't start a guest that is paused: resume it");
    world.command(Command::Kill).unwrap();
    world.command(Command::Delete).unwrap();
    assert_eq!(words(&mut world, Command::Start), "can't start a guest that is being deleted");
    world.finish_reclaim();
    assert_eq!(words(&mut world, Command::Kill), "can't kill a guest that was deleted");
}
