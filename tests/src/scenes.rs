//! Cases with several guests, under the operator's hand: the monitor on the
//! machine's serial port, and the control line.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use regex_lite::Regex;
use vmm::bundle::HostExit;
use vmm::operator::snapshot::{GuestState, GuestStats, MemorySnapshot, StatsSnapshot};
use vmm::operator::{Answer, ErrorCode, GuestRef, Operation};
use xtask::ctl::client::Client;
use xtask::machine::{Firmware, Machine};

use crate::case::{Build, Case, Scene, Tier};
use crate::cases::{PROMPT, check_dmesg};
use crate::drive::Drive;

/// To the monitor.
const MONITOR: &str = "\x1dm";

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    let text = |name: &str, text: String, script| Case::scene(name, Scene::Text(text), script);
    let file = |name: &str, path, script| Case::scene(name, Scene::File(path), script);
    let mut cases = vec![
        // Two Debian guests that boot at once are what QEMU's AMD-V suffers from most.
        Case {
            tier: Tier::Full,
            ..file("three-guests", "examples/three-guests.toml", three_guests)
        },
        text("control", control_scene(), control),
        Case {
            tier: Tier::Full,
            seconds: 900,
            ..text("control-debian", control_scene(), create_debian)
        },
        text("starts-and-stops", control_scene(), starts_and_stops::<100>),
        Case {
            tier: Tier::Full,
            seconds: 1200,
            ..text("starts-and-stops-1000", control_scene(), starts_and_stops::<1000>)
        },
        Case { tier: Tier::Full, seconds: 1200, ..text("many-guests", many(), many_guests) },
        text("promises", promises_scene(), promises),
        text("restart-policy", restart_scene(), restart_policy),
        text("watchdog", watchdog_scene(), watchdog),
    ];
    let measured = |what: &str, name: &str, machine, scene, script| Case {
        machine,
        tier: Tier::Full,
        // What is released is measured.
        build: Build::Release,
        seconds: 900,
        ..text(&format!("{what}-{name}"), scene, script)
    };
    for (name, machine, firmware) in [
        ("bios", Machine::QemuSvm, Firmware::Bios),
        ("uefi", Machine::QemuSvm, Firmware::Uefi),
        ("vmx", Machine::BochsVmx, Firmware::Bios),
    ] {
        cases.push(Case {
            machine,
            firmware,
            host_exit: Some(HostExit::Halt),
            ..text(&format!("machine-off-{name}"), control_scene(), machine_off)
        });
    }
    for (name, machine) in [("vmx", Machine::BochsVmx), ("bochs-svm", Machine::BochsSvm)] {
        cases.push(measured("shares", name, machine, shares_scene(), shares));
        cases.push(measured("caps", name, machine, caps_scene(), caps));
    }
    // Bochs ends itself where an AMD CPU would leave a guest that shuts its CPU down.
    for (name, machine) in [("vmx", Machine::BochsVmx), ("svm", Machine::QemuSvm)] {
        cases.push(measured("neighbours", name, machine, neighbours_scene(), neighbours));
    }
    cases
}

/// A guest of our tests.
fn tiny(name: &str, kernel: &str, rest: &str) -> String {
    format!("[[guest]]\nname = \"{name}\"\nkernel = \"test:{kernel}\"\nmemory = \"32M\"\n{rest}\n")
}

fn shell(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)
}

fn to_monitor(drive: &mut Drive) -> Result<()> {
    drive.send(MONITOR);
    drive.expect("steward> ", 30)
}

fn contains(text: &str, wanted: &str) -> Result<()> {
    ensure!(text.contains(wanted), "no {wanted:?} in {text:?}");
    Ok(())
}

/// Enters a command until its answer passes.
fn until(
    drive: &mut Drive,
    command: &str,
    seconds: u64,
    passes: impl Fn(&str) -> bool,
) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let answer = drive.monitor(command)?;
        if passes(&answer) {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "{command:?} still says {answer:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The line of a guest in `list`.
fn line<'a>(list: &'a str, guest: &str) -> &'a str {
    list.lines().find(|line| line.contains(guest)).unwrap_or_default()
}

fn three_guests(drive: &mut Drive) -> Result<()> {
    shell(drive)?;
    let answer = drive.shell("echo $((6*7))", 60)?;
    ensure!(answer.trim() == "42", "the shell answered {answer:?}");
    to_monitor(drive)?;
    let list = until(drive, "list", 120, |list| list.matches("running").count() == 3)?;
    for guest in ["1  alpha", "2  beta", "3  hello"] {
        contains(&list, guest)?;
    }
    contains(&drive.monitor("cpus")?, "AMD-V")?;
    let memory = drive.monitor("mem")?;
    for word in ["frames:", "alpha", "OVERHEAD"] {
        contains(&memory, word)?;
    }
    let stats = drive.monitor("stats alpha")?;
    for word in ["port_io", "hot exits about", "~: not timed, but counted"] {
        contains(&stats, word)?;
    }
    contains(&drive.monitor("dump hello")?, "guest-physical")?;
    contains(&drive.monitor("trace hello")?, "port_io")?;
    contains(&drive.monitor("why alpha")?, "RIP")?;
    contains(&drive.monitor("stop nobody")?, "there is no guest \"nobody\"; there are 1 alpha")?;
    contains(&drive.monitor("frobnicate")?, "there is no command")?;
    contains(&drive.monitor("help stop")?, "power button")?;

    // All three wait for input.
    drive.send("top\r");
    drive.expect("CPU%", 30)?;
    drive.expect("CPU%", 30)?;
    drive.expect("3  hello  running", 30)?;
    let from = drive.text().len();
    drive.expect("CPU%", 30)?;
    drive.send("x");
    drive.expect("steward> ", 30)?;
    let picture = drive.text().get(from..).unwrap_or_default().to_owned();
    let share = Regex::new(r"hello +running +([0-9.]+)")?;
    let share = share.captures(&picture).context("top does not show hello")?;
    let share: f64 = share.get(1).map_or("", |found| found.as_str()).parse()?;
    ensure!((0.0..=5.0).contains(&share), "top says that hello uses {share} %");

    // A paused guest stands still, and sees no gap in its time.
    contains(&drive.monitor("pause beta")?, "paused")?;
    contains(&drive.monitor("stop hello 0")?, "hello")?;
    until(drive, "list", 30, |list| line(list, "hello").contains("ended"))?;
    contains(&drive.monitor("start hello")?, "starting")?;
    until(drive, "list", 30, |list| line(list, "hello").contains("running"))?;
    contains(&drive.monitor("resume beta")?, "running")?;
    drive.send("\x1d2");
    drive.expect("console of \"beta\"", 30)?;
    drive.send("\n");
    shell(drive)?;
    check_dmesg(drive)?;

    // A restart and a stop end Debian through its power button.
    to_monitor(drive)?;
    contains(&drive.monitor("restart beta 60")?, "stopping")?;
    until(drive, "list", 90, |list| {
        line(list, "beta").contains("running") && line(list, "beta").contains(" 2 ")
    })?;
    contains(&drive.monitor("stop alpha 60")?, "stopping")?;
    let list = until(drive, "list", 90, |list| line(list, "alpha").contains("ended"))?;
    contains(&list, "1 alpha: powered off")?;
    contains(&drive.monitor("kill beta")?, "beta")?;
    drive.send("kill hello\r");
    drive.ends(0).map(|_| ())
}

/// The machine waits for a program.
fn control_scene() -> String {
    format!(
        "[host]\ncpus = 1\nmemory = \"1G\"\nwhen_empty = \"stay\"\n{}",
        // It runs for seconds: long enough to be seen running.
        tiny("first", "steady", "cmdline = \"windows=500 sleep=20000000\"")
    )
}

fn reference(name: &str) -> GuestRef {
    GuestRef::typed(name)
}

fn stats(drive: &Drive, client: &mut Client) -> Result<StatsSnapshot> {
    match drive.ask(client, Operation::Stats(None))? {
        Answer::Stats(stats) => Ok(*stats),
        other => bail!("stats are answered with {other:?}"),
    }
}

fn memory(drive: &Drive, client: &mut Client) -> Result<MemorySnapshot> {
    match drive.ask(client, Operation::Memory)? {
        Answer::Memory(memory) => Ok(memory),
        other => bail!("mem is answered with {other:?}"),
    }
}

/// The operator switches the machine off, as one that is no emulator: by ACPI.
fn machine_off(drive: &mut Drive) -> Result<()> {
    drive.expect("window 0 ", 120)?;
    to_monitor(drive)?;
    drive.send("poweroff\r");
    drive.leaves(0)?;
    for bad in ["does not switch itself off", "internal error"] {
        ensure!(!drive.text().contains(bad), "{bad}");
    }
    Ok(())
}

/// Waits until a guest is in this state.
fn wait_for(
    drive: &Drive,
    client: &mut Client,
    name: &str,
    state: GuestState,
    seconds: u64,
) -> Result<()> {
    wait_for_any(drive, client, name, &[state], seconds)
}

/// Waits until a guest has ended, well or not.
pub(crate) fn wait_until_over(
    drive: &Drive,
    client: &mut Client,
    name: &str,
    seconds: u64,
) -> Result<()> {
    wait_for_any(drive, client, name, &[GuestState::Ended, GuestState::Crashed], seconds)
}

fn wait_for_any(
    drive: &Drive,
    client: &mut Client,
    name: &str,
    states: &[GuestState],
    seconds: u64,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let Answer::Guests(guests) = drive.ask(client, Operation::List)? else {
            bail!("list is answered with something else")
        };
        let now = guests.iter().find(|guest| guest.name == name).map(|guest| guest.state);
        if now.is_some_and(|now| states.contains(&now)) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "guest {name} is {now:?}, not {states:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The operation is refused, for this reason.
fn refuses(client: &mut Client, operation: Operation, code: ErrorCode) -> Result<()> {
    let asked = format!("{operation:?}");
    match client.request(operation)?.outcome {
        Err(refusal) if refusal.code == code => Ok(()),
        other => bail!("{asked:.100} is answered with {other:?}, not {code:?}"),
    }
}

fn control(drive: &mut Drive) -> Result<()> {
    drive.expect("steady: done", 120)?;
    let mut client = drive.client()?;
    let c = &mut client;
    drive.ask(c, Operation::Hello)?;
    wait_for(drive, c, "first", GuestState::Ended, 30)?;
    // What is wrong is told, and harms nothing.
    refuses(c, Operation::Pause(reference("first")), ErrorCode::WrongState)?;
    refuses(c, Operation::Start(reference("nobody")), ErrorCode::NoGuest)?;
    refuses(c, Operation::Events { since: 1 << 40, max: 1 }, ErrorCode::BadCursor)?;
    let begin = |crc32| Operation::UploadBegin { name: "k".into(), size: 4, crc32 };
    drive.ask(c, begin(1))?;
    refuses(c, Operation::UploadEnd { name: "k".into() }, ErrorCode::UploadSize)?;
    let piece = |crc32| Operation::UploadChunk {
        name: "k".into(),
        offset: 0,
        data: b"abcd".to_vec(),
        crc32,
    };
    refuses(c, piece(7), ErrorCode::UploadChecksum)?;
    drive.ask(c, piece(0xed82_cd11))?;
    refuses(c, Operation::UploadEnd { name: "k".into() }, ErrorCode::UploadChecksum)?;
    drive.ask(c, Operation::UploadDelete { name: "k".into() })?;
    refuses(c, Operation::UploadDelete { name: "k".into() }, ErrorCode::NoUpload)?;

    // The one that is there runs again; its events can be read from where one was.
    drive.ask(c, Operation::Start(reference("first")))?;
    wait_for(drive, c, "first", GuestState::Ended, 60)?;
    let Answer::Events(events) = drive.ask(c, Operation::Events { since: 0, max: 64 })? else {
        bail!("events are answered with something else")
    };
    let started = events.events.iter().filter(|e| format!("{:?}", e.what) == "Started").count();
    ensure!(started == 2, "{started} starts among {events:?}");
    drive.ask(c, Operation::PowerOff)?;
    drive.ends(0).map(|_| ())
}

/// A program makes a Debian guest of files from here, watches it and deletes it.
fn create_debian(drive: &mut Drive) -> Result<()> {
    drive.expect("steady: done", 120)?;
    let mut client = drive.client()?;
    let c = &mut client;
    let debian = xtask::guest::Debian::ensure()?;
    for (name, file) in [("kernel", &debian.kernel), ("initrd", &debian.initrd)] {
        xtask::ctl::create::upload(c, file, name)?.outcome.map_err(|e| anyhow::anyhow!("{e}"))?;
    }
    let mut settings = vmm::bundle::GuestSettings::new("new", 256 << 20, "kernel");
    settings.initrd = Some("initrd".into());
    settings.cmdline = xtask::guest::CMDLINE.into();
    let Answer::Verdict(verdict) = drive.ask(c, Operation::DryRun(settings.clone().into()))? else {
        bail!("the dry run is answered with something else")
    };
    ensure!(verdict.possible, "the dry run says {verdict:?}");
    let mut huge = settings.clone();
    huge.memory = 64 << 30;
    let Answer::Verdict(verdict) = drive.ask(c, Operation::DryRun(huge.into()))? else {
        bail!("the dry run is answered with something else")
    };
    ensure!(!verdict.possible && verdict.reason.contains("MiB"), "the dry run says {verdict:?}");
    drive.ask(c, Operation::Define(settings.into()))?;
    drive.ask(c, Operation::Start(reference("new")))?;
    drive.ask(c, Operation::Attach(reference("new")))?;
    shell(drive)?;
    let uname = drive.shell("uname -a", 60)?;
    contains(&uname, "Debian")?;
    let c = &mut client;
    let all = stats(drive, c)?;
    let new = all.guests.iter().find(|guest| guest.name == "new").context("no statistics")?;
    ensure!(new.times().run_ns > 0 && new.exits() > 1000, "statistics: {new:?}");
    times_add_up(new)?;
    contains(&xtask::ctl::prometheus::text(&all), "libvirt_domain_info_vstate{domain=\"new\"} 1")?;
    let timeline = timeline(drive, c, "new")?;
    let exits = timeline.matches("\"cat\":\"exit\"").count();
    ensure!(exits == 128, "the timeline has {exits} exits: {timeline:.200}");
    refuses(c, Operation::Delete(reference("new")), ErrorCode::WrongState)?;
    refuses(c, Operation::UploadDelete { name: "kernel".into() }, ErrorCode::WrongState)?;
    drive.ask(c, Operation::Stop { guest: reference("new"), seconds: 60 })?;
    wait_for(drive, c, "new", GuestState::Ended, 90)?;
    drive.ask(c, Operation::Delete(reference("new")))?;
    refuses(c, Operation::Start(reference("new")), ErrorCode::NoGuest)?;
    drive.ask(c, Operation::UploadDelete { name: "kernel".into() })?;
    drive.ask(c, Operation::PowerOff)?;
    drive.ends(0).map(|_| ())
}

fn promises_scene() -> String {
    let full = tiny("full", "steady", "cmdline = \"windows=100000\"").replace("32M", "256M");
    let late = tiny("late", "steady", "")
        .replace("\"32M\"", "{ size = \"128M\", populate = \"up-front\" }");
    format!("[host]\ncpus = 1\nmemory = \"512M\"\n{full}{late}")
}

/// Memory that a guest was promised is not given to what others ask for; a start that the
/// operator cancels is no failure of the run.
fn promises(drive: &mut Drive) -> Result<()> {
    drive.expect("window 0 ", 120)?;
    let mut client = drive.client()?;
    let c = &mut client;
    let late = || reference("late");
    wait_until_over(drive, c, "late", 60)?;
    drive.ask(c, Operation::Start(late()))?;
    drive.ask(c, Operation::Kill(late()))?;
    wait_until_over(drive, c, "late", 60)?;
    let Answer::Events(events) = drive.ask(c, Operation::Events { since: 0, max: 64 })? else {
        bail!("events are answered with something else")
    };
    let cancelled = format!("{events:?}").contains("its start was cancelled");
    ensure!(cancelled, "it had started by the time that it was killed: {events:?}");

    let begin = Operation::UploadBegin { name: "k".into(), size: 4, crc32: 0xed82_cd11 };
    drive.ask(c, begin)?;
    let data = b"abcd".to_vec();
    let crc32 = 0xed82_cd11;
    drive.ask(c, Operation::UploadChunk { name: "k".into(), offset: 0, data, crc32 })?;
    drive.ask(c, Operation::UploadEnd { name: "k".into() })?;
    let mut known = 0;
    loop {
        let mut settings = vmm::bundle::GuestSettings::new(format!("g{known}"), 32 << 20, "k");
        settings.console_ring = 16 << 20;
        let outcome = c.request(Operation::Define(settings.into()))?.outcome;
        let host = memory(drive, c)?.host;
        ensure!(host.free >= host.reserved, "promises are broken: {host:?}");
        match outcome {
            Ok(_) => known += 1,
            Err(refusal) if refusal.code == ErrorCode::NoMemory => break,
            Err(refusal) => bail!("{refusal:?}"),
        }
    }
    ensure!((1..20).contains(&known), "{known} consoles of 16 MiB");
    drive.ask(c, Operation::Kill(reference("full")))?;
    drive.ends(0).map(|_| ())
}

/// All exits have a time, and the parts of the time on CPUs come to what the scheduler counts: it
/// leaves its own out, and counts the turn that has not ended.
fn times_add_up(guest: &GuestStats) -> Result<()> {
    for exit in guest.vcpus.iter().flat_map(|vcpu| &vcpu.exits) {
        let hot = exit.reason.starts_with("hot_");
        ensure!(exit.time_ns.is_some_and(|time| time > 0), "no time: {exit:?}");
        ensure!(exit.estimated == hot, "timed or not: {exit:?}");
    }
    let account = guest.account();
    ensure!(account.guest > 0 && account.exits > 0 && account.switches > 0, "{account:?}");
    let busy = account.total() - account.services;
    let run = guest.times().run_ns;
    ensure!(busy.abs_diff(run) <= run / 4, "{busy} ns of {run} ns are accounted for: {account:?}");
    Ok(())
}

/// Sleepers, on all CPUs.
fn timers(drive: &Drive, client: &mut Client) -> Result<u64> {
    Ok(stats(drive, client)?.cpus.iter().map(|cpu| u64::from(cpu.timers)).sum())
}

/// The last exits of a guest, for a timeline viewer.
fn timeline(drive: &Drive, client: &mut Client, guest: &str) -> Result<String> {
    let mut tries = 20;
    loop {
        let trace = Operation::Trace { guest: reference(guest), vcpu: None };
        let Answer::Trace(trace) = drive.ask(client, trace)? else {
            bail!("a trace is answered with something else")
        };
        match xtask::ctl::perfetto::trace(&trace) {
            Ok(timeline) => return Ok(timeline.to_string()),
            // It was busy with its serial port: those exits have no time.
            Err(_) if tries > 0 => tries -= 1,
            Err(error) => return Err(error),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What starts and stops must leave as it was: frames that are free and that are promised,
/// timers that are armed; and, as far as records of the past allow, bytes of the heap.
fn books(drive: &Drive, client: &mut Client) -> Result<([u64; 3], u64)> {
    // A vCPU that is gone is remembered among the sleepers for a second.
    std::thread::sleep(Duration::from_secs(2));
    let host = memory(drive, client)?.host;
    let timers = timers(drive, client)?;
    Ok(([host.free, host.reserved, timers], host.heap_used))
}

/// Starts and ends a guest many times, every tenth time in the middle of its start.
fn starts_and_stops<const TIMES: u32>(drive: &mut Drive) -> Result<()> {
    drive.expect("steady: done", 120)?;
    let mut client = drive.client()?;
    let c = &mut client;
    wait_for(drive, c, "first", GuestState::Ended, 30)?;
    let guest = || reference("first");
    let mut first = None;
    for turn in 0..TIMES {
        drive.ask(c, Operation::Start(guest()))?;
        if turn % 10 != 9 {
            wait_for(drive, c, "first", GuestState::Running, 30)?;
        }
        // Once it has come so far, it sleeps most of the time, and that is seen.
        let end = Instant::now() + Duration::from_secs(60);
        while turn == 0 && timers(drive, c)? == 0 {
            ensure!(Instant::now() < end, "no timer is seen of a guest that sleeps");
            std::thread::sleep(Duration::from_millis(20));
        }
        drive.ask(c, Operation::Kill(guest()))?;
        wait_for(drive, c, "first", GuestState::Ended, 30)?;
        // The first turns fill what is kept of the past: events, answers.
        if turn == TIMES * 6 / 10 - 1 {
            first = Some(books(drive, c)?);
        }
    }
    let (before, after) = (first.context("no turns")?, books(drive, c)?);
    ensure!(
        before.0 == after.0,
        "frames that are free and promised, and timers: {before:?}, later {after:?}"
    );
    let grown = after.1.saturating_sub(before.1);
    println!("       left as before: {:?}; heap: {} bytes, {grown} more", after.0, after.1);
    ensure!(grown < 4096, "the heap grew by {grown} bytes");
    drive.ask(c, Operation::PowerOff)?;
    drive.ends(0).map(|_| ())
}

/// More guests than there are ASIDs, then some Debian ones.
fn many() -> String {
    let mut text = String::from("[host]\ncpus = 2\nmemory = \"4G\"\nwhen_empty = \"stay\"\n");
    for number in 1..=32 {
        text.push_str(&tiny(&format!("t{number}"), "hello", ""));
    }
    for number in 1..=4 {
        text.push_str(&format!(
            "[[guest]]\nname = \"d{number}\"\nkernel = \"debian\"\nmemory = \"256M\"\n"
        ));
    }
    text
}

fn many_guests(drive: &mut Drive) -> Result<()> {
    drive.expect("guest> ", 300)?;
    let mut client = drive.client()?;
    let c = &mut client;
    // Nobody starts any more: no line of the log stands in what guests say.
    for name in (1..=32).map(|n| format!("t{n}")).chain((1..=4).map(|n| format!("d{n}"))) {
        wait_for(drive, c, &name, GuestState::Running, 300)?;
    }
    for number in 1..=32 {
        let name = format!("t{number}");
        drive.ask(c, Operation::Attach(reference(&name)))?;
        drive.send("\rfrobnicate\r");
        drive.expect("frobnicate: no such command", 120)?;
    }
    let owners = memory(drive, c)?.guests;
    let most = owners.iter().map(|owner| owner.memory.overhead).max().unwrap_or(0);
    println!("       overhead of a guest: at most {} KiB beside its page tables", most / 1024);
    ensure!(most <= 256 << 10, "a guest costs {most} bytes beside its page tables");
    for number in 1..=32 {
        drive.ask(c, Operation::Kill(reference(&format!("t{number}"))))?;
    }
    for number in 1..=4 {
        drive.ask(c, Operation::Attach(reference(&format!("d{number}"))))?;
        drive.send("\n");
        shell(drive)?;
        let answer = drive.shell("echo $((6*7))", 120)?;
        ensure!(answer.trim() == "42", "the shell of d{number} answered {answer:?}");
    }
    drive.ask(c, Operation::PowerOff)?;
    drive.ends(0).map(|_| ())
}

fn restart_scene() -> String {
    let crash = tiny(
        "crash",
        "crash",
        "cmdline = \"pvpanic\"\nrestart = \"on-failure\"\n\
         back_off = { first = \"50ms\", most = \"100ms\" }",
    );
    let fine = tiny("fine", "steady", "restart = \"on-failure\"");
    format!("[host]\ncpus = 1\nwhen_empty = \"stay\"\n{crash}{fine}")
}

/// A guest that fails starts again, with a back-off; one that ends well does not.
fn restart_policy(drive: &mut Drive) -> Result<()> {
    drive.expect("starts again in 50 ms", 120)?;
    // What it makes the log say is limited.
    drive.expect("messages were left out", 60)?;
    drive.expect("starts again in 100 ms", 60)?;
    let mut client = drive.client()?;
    let c = &mut client;
    let Answer::Guests(guests) = drive.ask(c, Operation::List)? else {
        bail!("list is answered with something else")
    };
    for guest in &guests {
        let again = guest.starts > 2;
        ensure!(again == (guest.name == "crash"), "{guest:?}");
    }
    drive.ask(c, Operation::Kill(reference("crash")))?;
    wait_until_over(drive, c, "crash", 30)?;
    drive.ask(c, Operation::PowerOff)?;
    drive.ends(0).map(|_| ())
}

fn watchdog_scene() -> String {
    let spins = tiny("spins", "crash", "cmdline = \"loop\"\nwatchdog = 2");
    let fine = tiny("fine", "hello", "watchdog = 2");
    format!("[host]\ncpus = 1\n{spins}{fine}")
}

/// A guest that loops with interrupts off ends; one that waits for input lives on.
fn watchdog(drive: &mut Drive) -> Result<()> {
    // A guest that takes no input does not take the operator's either.
    drive.expect("ending: loop", 120)?;
    drive.send(&"x".repeat(100));
    to_monitor(drive)?;
    drive.expect("no sign of life for 2000 ms", 120)?;
    drive.send("\x1d2");
    drive.expect("guest> ", 30)?;
    std::thread::sleep(Duration::from_secs(5));
    drive.send("poweroff\r");
    drive.expect("Good-bye.", 30)?;
    drive.ends(CRASHED).map(|_| ())
}

/// A guest crashed.
const CRASHED: u8 = 3;

/// What `steady` printed of its windows: share, worst lateness and hash of each.
type Windows = Vec<(u64, u64, String)>;

/// Attaches to guest `number`; where its output begins.
fn to_console(drive: &mut Drive, number: usize) -> Result<usize> {
    drive.send(&format!("\x1d{number}"));
    // Another's output may come before it.
    drive.expect("console of", 300)?;
    Ok(drive.text().rfind("console of").unwrap_or_default())
}

fn parse_windows(text: &str) -> Windows {
    numbered(text).into_iter().map(|(_, window)| window).collect()
}

/// The same with their numbers.
fn numbered(text: &str) -> Vec<(usize, (u64, u64, String))> {
    let line = Regex::new(r"window (\d+) share=(\d+) late=(\d+) hash=([0-9a-f]+)\r")
        .expect("the expression is constant");
    let windows = line.captures_iter(text).filter_map(|found| {
        let word = |index| found.get(index).map_or("", |word| word.as_str());
        let number = |index| word(index).parse().ok();
        let index = word(1).parse().ok()?;
        Some((index, (number(2)?, number(3)?, word(4).to_owned())))
    });
    windows.collect()
}

fn mean(windows: &[(u64, u64, String)]) -> f64 {
    let sum: u64 = windows.iter().map(|(share, ..)| share).sum();
    sum as f64 / windows.len().max(1) as f64
}

/// `count` windows of guest `number`: what its console kept, and what comes then.
fn last_windows(drive: &mut Drive, number: usize, count: usize) -> Result<Windows> {
    let from = to_console(drive, number)?;
    loop {
        drive.expect("window", 600)?;
        // The last one may still be on its way.
        let all = parse_windows(drive.text().get(from..).unwrap_or_default());
        if let Some(last) = all.len().checked_sub(count) {
            return Ok(all.get(last..).unwrap_or_default().to_vec());
        }
    }
}

/// Waits until the last of the guests has gone through so many windows.
fn settle(drive: &mut Drive, guests: usize, windows: usize) -> Result<()> {
    // Before that nobody listens.
    drive.expect("window 0 ", 300)?;
    for number in (1..=guests).rev() {
        to_console(drive, number)?;
        drive.expect(&format!("window {windows} "), 900)?;
    }
    Ok(())
}

fn power_off(drive: &mut Drive) -> Result<()> {
    to_monitor(drive)?;
    drive.send("poweroff\r");
    drive.ends(0).map(|_| ())
}

/// Windows that are looked at.
const LOOKED_AT: usize = 8;

fn shares_scene() -> String {
    let mut text = String::from("[host]\ncpus = 1\nwhen_empty = \"stay\"\n");
    for (name, weight) in [("one", 100), ("two", 200), ("four", 400)] {
        let rest = format!("weight = {weight}\ncmdline = \"windows=100000 ticks=200000000\"");
        text.push_str(&tiny(name, "steady", &rest));
    }
    text
}

/// Three guests that compute get the CPU as 1 : 2 : 4, within 3 %.
fn shares(drive: &mut Drive) -> Result<()> {
    settle(drive, 3, LOOKED_AT + 2)?;
    let all: Vec<Windows> =
        (1..=3).map(|number| last_windows(drive, number, LOOKED_AT)).collect::<Result<_>>()?;
    let means: Vec<f64> = all.iter().map(|windows| mean(windows)).collect();
    let sum: f64 = means.iter().sum();
    println!("       shares in per mille of the CPU: {means:.1?}");
    for (share, weight) in means.iter().zip([1.0, 2.0, 4.0]) {
        let wanted = sum * weight / 7.0;
        ensure!((share - wanted).abs() <= wanted * 0.03, "shares {means:?} for 1 : 2 : 4");
    }
    ensure!(sum > 900.0, "together they got {sum} per mille of the CPU");
    power_off(drive)
}

fn caps_scene() -> String {
    let mut text = String::from("[host]\ncpus = 1\nwhen_empty = \"stay\"\n");
    for (name, cap) in [("ten", 10), ("fifty", 50)] {
        let rest = format!("cap = {cap}\ncmdline = \"windows=100000 ticks=200000000\"");
        text.push_str(&tiny(name, "steady", &rest));
    }
    text
}

/// Caps hold within a point.
fn caps(drive: &mut Drive) -> Result<()> {
    settle(drive, 2, LOOKED_AT + 2)?;
    for (number, cap) in [(1, 10.0), (2, 50.0)] {
        let share = mean(&last_windows(drive, number, LOOKED_AT)?) / 10.0;
        println!("       with a cap of {cap} %: {share:.2} %");
        ensure!((share - cap).abs() <= 1.0, "a cap of {cap} % gave {share} %");
    }
    power_off(drive)
}

/// What the guests beside the neighbours do.
const CRASHES: [&str; 7] =
    ["triple-fault", "pvpanic", "jump", "exit=3", "shutdown-call", "loop", "flood"];
/// Those of them that do not end by themselves.
const LIVES_ON: [&str; 2] = ["loop", "flood"];

fn crash_name(word: &str) -> String {
    format!("c-{}", word.replace('=', "-"))
}

fn neighbours_scene() -> String {
    let mut text = String::from("[host]\ncpus = 1\nwhen_empty = \"stay\"\n");
    let steady = |name: &str, more: &str| {
        // The sleeper's windows are shown at the end, all of them.
        let rest = format!(
            "weight = 10000\nconsole.ring = \"256K\"\ncmdline = \"windows=100000 ticks=40000000{more}\""
        );
        tiny(name, "steady", &rest)
    };
    text.push_str(&steady("steady", ""));
    text.push_str(&steady("sleeper", " sleep=400000"));
    for word in CRASHES {
        // Little enough that its own share is none that anybody misses.
        let rest = format!("weight = 100\ncmdline = \"{word}\"");
        text.push_str(&tiny(&crash_name(word), "crash", &rest));
    }
    text
}

/// Windows that are looked at before and after a crash.
const QUIET: usize = 8;
/// The latest that a guest within its share wakes for its timer: after the least of what
/// runs, behind one that was woken before it, and one that runs ahead of its turn
/// (`docs/scheduler.md`), in ticks of 1 ns.
const WAKES_WITHIN: u64 = 100_000 + 2 * 200_000 + 5 * 50_000 + 50_000;

/// The number of the last window that is shown.
fn last_window(drive: &Drive) -> usize {
    numbered(drive.text()).last().map_or(0, |(number, _)| *number)
}

/// Neighbours keep their memory and their share, and wake in time, whatever
/// crashes beside them.
fn neighbours(drive: &mut Drive) -> Result<()> {
    drive.expect("window 2 ", 300)?;
    let mut client = drive.client()?;
    let c = &mut client;
    for word in CRASHES {
        let name = crash_name(word);
        drive.ask(c, Operation::Kill(reference(&name)))?;
        wait_until_over(drive, c, &name, 60)?;
    }
    let wait = |drive: &mut Drive, windows: usize| -> Result<usize> {
        let until = last_window(drive) + windows;
        drive.expect(&format!("window {until} "), 300)?;
        Ok(until)
    };
    // While it is measured nobody asks: answers take time, too. And what was said of
    // those guests is on the screen by then: until it is, the operator draws.
    let first = wait(drive, 6 * QUIET)?;
    let mut phases = vec![("before", first, wait(drive, QUIET)?)];
    for word in CRASHES {
        let name = crash_name(word);
        let begin = last_window(drive) + 1;
        drive.ask(c, Operation::Start(reference(&name)))?;
        if LIVES_ON.contains(&word) {
            drive.expect(&format!("guest: \"{name}\" starts"), 300)?;
            wait(drive, 2 * QUIET)?;
            drive.ask(c, Operation::Kill(reference(&name)))?;
        }
        // What is said of its end.
        drive.expect(&format!("guest \"{name}\""), 300)?;
        phases.push((word, begin, wait(drive, QUIET)?));
    }
    let last = wait(drive, QUIET)?;
    let from = to_console(drive, 2)?;
    drive.expect(&format!("window {last} "), 300)?;
    let all = numbered(drive.text().get(..from).unwrap_or_default());
    let sleeper = numbered(drive.text().get(from..).unwrap_or_default());
    let within = |all: &[(usize, (u64, u64, String))], first: usize, last: usize| -> Windows {
        let chosen = all.iter().filter(|(number, _)| (first..last).contains(number));
        chosen.map(|(_, window)| window.clone()).collect()
    };
    let alone = mean(&within(&all, first, first + QUIET));
    let mut late = 0;
    for (what, first, last) in phases {
        let (mine, its) = (within(&all, first, last), within(&sleeper, first, last));
        // The operator's lines may stand in the middle of one.
        ensure!(mine.len() * 2 > QUIET && its.len() * 2 > QUIET, "{what}: hardly a window");
        let hashes: std::collections::BTreeSet<_> =
            mine.iter().chain(&its).map(|(.., hash)| hash).collect();
        ensure!(hashes.len() == 1, "{what}: memory has changed: {hashes:?}");
        let share = mean(&mine);
        let worst = its.iter().map(|(_, late, _)| *late).max().unwrap_or(u64::MAX);
        println!("       {what}: share {share:.0} per mille, worst wake-up {worst} ns");
        ensure!((share - alone).abs() <= 20.0, "{what}: a share of {share:.0}, alone {alone:.0}");
        late = late.max(worst);
    }
    ensure!(late <= WAKES_WITHIN, "a wake-up came {late} ns late");
    power_off(drive)
}
