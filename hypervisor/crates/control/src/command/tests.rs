//! Tests of the monitor's commands.

extern crate std;
use super::*;

fn operation(line: &str) -> Operation {
    match parse(line) {
        Ok(Some(Command::Do(operation))) => operation,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    parse(line).unwrap_err().to_string()
}

#[test]
fn each_command() {
    let guest = || GuestRef::typed("debian");
    let table = [
        ("list", Operation::List),
        ("attach debian", Operation::Attach(guest())),
        ("pause debian", Operation::Pause(guest())),
        ("resume debian", Operation::Resume(guest())),
        ("stop debian", Operation::Stop { guest: guest(), seconds: 30 }),
        ("stop debian 5", Operation::Stop { guest: guest(), seconds: 5 }),
        ("kill debian", Operation::Kill(guest())),
        ("start debian", Operation::Start(guest())),
        ("restart debian 0", Operation::Restart { guest: guest(), seconds: 0 }),
        ("stats debian", Operation::Stats(Some(guest()))),
        ("dump debian", Operation::Dump { guest: guest(), vcpu: None }),
        ("dump debian 63", Operation::Dump { guest: guest(), vcpu: Some(63) }),
        ("trace debian 1", Operation::Trace { guest: guest(), vcpu: Some(1) }),
        ("why debian", Operation::Why(guest())),
        ("mem", Operation::Memory),
        ("cpus", Operation::Cpus),
        ("log debug", Operation::Log(LogLevel::Debug)),
        ("reboot", Operation::Reboot),
        ("poweroff", Operation::PowerOff),
    ];
    for (line, wanted) in table {
        assert_eq!(operation(line), wanted);
        assert_eq!(operation(&format!("  {}  ", line.replace(' ', " \t "))), wanted);
    }
    assert_eq!(parse("top"), Ok(Some(Command::Top)));
    assert_eq!(parse(" \t"), Ok(None));
}

#[test]
fn an_error_says_what_was_found_and_what_is_allowed() {
    let unknown = refused("lsit");
    assert!(unknown.starts_with("there is no command \"lsit\"; there are list, top, attach"));
    assert!(unknown.ends_with(", help"));
    assert_eq!(refused("stop"), "a guest's name or number is missing: stop GUEST [SECONDS]");
    assert_eq!(refused("pause a b"), "\"b\" is too much: pause GUEST");
    assert_eq!(refused("list a"), "\"a\" is too much: list");
    for bad in ["3601", "-1", "x", "99999999999"] {
        assert_eq!(
            refused(&format!("stop a {bad}")),
            format!("seconds can't be \"{bad}\": a number from 0 to 3600 is allowed")
        );
    }
    assert_eq!(refused("dump a 64"), "the vCPU can't be \"64\": a number from 0 to 63 is allowed");
    assert_eq!(
        refused("log loud"),
        "\"loud\" is not a level: off, error, warn, info, debug or trace"
    );
    assert!(refused("log").starts_with("a level: off,"));
    assert!(refused("help lsit").starts_with("there is no command \"lsit\""));
}

#[test]
fn help_fits_the_terminal_and_knows_each_command() {
    let Ok(Some(Command::Help(all))) = parse("help") else { panic!() };
    for line in all.lines() {
        assert!(line.len() < 80, "{line}");
    }
    for entry in &COMMANDS {
        assert!(all.lines().any(|line| line.starts_with(entry.name)), "{}", entry.name);
        let Ok(Some(Command::Help(one))) = parse(&format!("help {}", entry.name)) else { panic!() };
        assert!(one.starts_with(entry.name) && one.contains(entry.summary));
        assert!(one.lines().all(|line| line.len() < 80), "{one}");
    }
}

#[test]
fn help_states_the_limits_that_hold() {
    let stop = find("stop").unwrap();
    assert!(stop.more.contains(&format!("0 to {MAX_STOP_SECONDS}, {STOP_SECONDS} if")));
}

#[test]
fn tab() {
    let guests = [Known { number: 1, name: "debian" }, Known { number: 2, name: "dos" }];
    let offers = |before: &str| {
        let completion = Completer { guests: &guests }.complete(before);
        (completion.start, completion.candidates.join(" "))
    };
    assert_eq!(offers("re"), (0, "resume restart reboot".into()));
    assert_eq!(offers("stop d"), (5, "debian dos".into()));
    assert_eq!(offers("stop de"), (5, "debian".into()));
    assert_eq!(offers("stop debian 1"), (12, String::new()));
    assert_eq!(offers("log "), (4, "off error warn info debug trace".into()));
    assert_eq!(offers("help t"), (5, "top trace".into()));
    assert_eq!(offers("list d"), (5, String::new()));
    assert_eq!(offers("nonsense d"), (9, String::new()));
    assert_eq!(offers("").1.split(' ').count(), COMMANDS.len());
}
