//! Cases with several guests, under the operator's hand: the monitor on the
//! machine's serial port, and the control line.

mod idle;
mod measured;
mod saved;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use config::HostExit;
use control::status::{GuestState, GuestStats, MemoryStatus, Statistics};
use control::{Answer, ErrorCode, GuestRef, Operation};
use regex_lite::Regex;
use xtask::ctl::client::Client;
use xtask::machine::{Firmware, Machine};

use crate::case::{Build, Case, Scene, Tier};
use crate::cases::{PROMPT, check_dmesg};
use crate::drive::Drive;
use measured::{caps, caps_scene, neighbours, neighbours_scene, shares, shares_scene};

/// To the monitor.
const MONITOR: &str = "\x1dm";
/// A guest could not be started.
const REFUSED: u8 = 2;
/// A guest crashed.
const CRASHED: u8 = 3;

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
        text("house-hidden-features", hidden_scene(), hidden_features),
        Case {
            machine: Machine::BochsVmx,
            tier: Tier::Full,
            seconds: 1200,
            ..text("house-hidden-features-vmx", hidden_scene(), hidden_features)
        },
        text("watchdog", watchdog_scene(), watchdog),
        text("house-saved-debian", saved::saved_scene(), saved::saved),
    ];
    let measured = |what: &str, name: &str, machine, scene, script| Case {
        machine,
        tier: Tier::Full,
        // The released build is measured.
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
    cases.push(measured("house", "idle-256", Machine::QemuSvm, idle::idle_scene(), idle::idle));
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

/// CPU features that a guest does not see, though both emulators have them.
const HIDDEN: [&str; 6] = ["x2apic", "tsc_deadline_timer", "tsc_adjust", "sse4_2", "smep", "xsave"];

/// A guest without these, and one that wants what no emulated machine has.
fn hidden_scene() -> String {
    let hidden = HIDDEN.map(|name| format!("\"{name}\"")).join(", ");
    let wants = "cpu = { show = [\"avx512_fp16\"] }";
    format!(
        "[[guest]]\nname = \"plain\"\nkernel = \"debian\"\nmemory = \"128M\"\n\
         cpu = {{ hide = [{hidden}], show = [\"ssse3\"] }}\n\n{}",
        tiny("wants", "hello", wants)
    )
}

/// Linux finds none of them, nor what builds upon them, and runs well; the other guest is not
/// started, and the log says why.
fn hidden_features(drive: &mut Drive) -> Result<()> {
    drive.expect("it is to have the CPU feature \"avx512_fp16\"", 400)?;
    drive.expect(PROMPT, 1000)?;
    let flags = drive.shell("grep -m1 ^flags /proc/cpuinfo", 120)?;
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let seen: Vec<_> =
        HIDDEN.iter().chain(&["avx", "avx2", "pku"]).filter(|name| flags.contains(name)).collect();
    ensure!(seen.is_empty(), "{seen:?} are not hidden");
    for there in ["ssse3", "sse2", "apic", "hypervisor"] {
        ensure!(flags.contains(&there), "{there} is not among {flags:?}");
    }
    drive.send("poweroff\n");
    drive.ends(REFUSED).map(|_| ())
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

fn stats(drive: &Drive, client: &mut Client) -> Result<Statistics> {
    match drive.ask(client, Operation::Stats(None))? {
        Answer::Stats(stats) => Ok(*stats),
        other => bail!("stats are answered with {other:?}"),
    }
}

fn memory(drive: &Drive, client: &mut Client) -> Result<MemoryStatus> {
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
    // Wrong requests are refused, and harm nothing.
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
    let mut settings = config::GuestSettings::new("new", 256 << 20, "kernel");
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
        let mut settings = config::GuestSettings::new(format!("g{known}"), 32 << 20, "k");
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
            // The guest was busy with its serial port: those exits have no time.
            Err(_) if tries > 0 => tries -= 1,
            Err(error) => return Err(error),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Books that starts and stops must leave as they were: frames that are free and that are promised,
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
    // Messages that it causes on the log are limited.
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
    // (The line that tells of the second guest's start may stand in the middle of a line of the
    // first one's.)
    drive.expect("guest: \"fine\" starts", 120)?;
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
