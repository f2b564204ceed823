//! How runs end, and what is said of it.

use anyhow::{Result, ensure};
use xtask::machine::Machine;

use crate::case::{Case, Scene, Script, Tier};
use crate::cases::PROMPT;
use crate::drive::Drive;

/// The guest crashed.
const CRASHED: u8 = 3;
/// Text that only a crash leaves on the log, in the report of a vCPU.
const REPORT: &str = "Rax 0x";

/// Two guests that answer what is typed.
const TWO: &str = "\
[host]
cpus = 1
[[guest]]
name = \"one\"
kernel = \"test:hello\"
memory = \"32M\"
[[guest]]
name = \"two\"
kernel = \"test:hello\"
memory = \"32M\"
";

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let ends: [(&str, &str, Script); 8] = [
        ("halt", "cmdline = \"halt\"\non_halt = \"end\"", halts),
        ("halt-2", "cmdline = \"halt\"\non_halt = \"end\"\nvcpus = 2", halts),
        ("halt-pit", "cmdline = \"halt-pit\"\non_halt = \"end\"", halts),
        ("halt-apic", "cmdline = \"halt-apic\"\non_halt = \"end\"", halts),
        ("halt-stays", "cmdline = \"halt\"", halt_stays),
        (
            "triple-reset",
            "cmdline = \"triple-fault\"\non_triple_fault = \"reset\"\non_reset = \"end\"",
            triple_fault_resets,
        ),
        ("exit-plain", "cmdline = \"exit=5\"\ndebug_status = \"plain\"", exits_with::<5>),
        // (1 << 1) | 1 is a crash's status, and no crash.
        ("exit-1", "cmdline = \"exit=1\"", exits_with::<3>),
    ];
    for (name, rest, script) in ends {
        let one = Case { seconds: 240, ..tiny(name, rest, script) };
        // The vendor has a part in who is halted, and in what shuts a CPU down.
        if ["halt", "halt-apic", "triple-reset"].contains(&name) {
            let name = format!("{}-vmx", one.name);
            cases.push(Case { name, machine: Machine::BochsVmx, ..one.clone() });
        }
        cases.push(one);
    }
    cases.push(Case::scene("iso-typed", Scene::Text(TWO.to_owned()), typed));
    cases.push(tiny("forged", "cmdline = \"forge\"", forged));
    cases.push(debian("panic", "", panic));
    cases.push(debian("halt-linux", "on_halt = \"end\"\nvcpus = 2", halt_linux));
    cases.push(Case { tier: Tier::Full, ..debian("panic-small", "memory = \"80M\"", small) });
    cases.push(Case {
        tier: Tier::Full,
        seconds: 1500,
        ..debian("reboots", "on_triple_fault = \"reset\"", reboots)
    });
    cases.push(Case { tier: Tier::Full, ..debian("reboot-triple", "", reboot_by_triple_fault) });
    cases
}

/// One guest of the kernel `crash`, whose settings `rest` completes.
fn tiny(name: &str, rest: &str, script: Script) -> Case {
    let text =
        format!("[[guest]]\nname = \"tiny\"\nkernel = \"test:crash\"\nmemory = \"32M\"\n{rest}\n");
    Case::scene(&format!("iso-{name}"), Scene::Text(text), script)
}

/// One Debian guest, whose settings `rest` completes.
fn debian(name: &str, rest: &str, script: Script) -> Case {
    let text = format!("[[guest]]\nname = \"debian\"\nkernel = \"debian\"\n{rest}\n");
    Case::scene(&format!("iso-{name}"), Scene::Text(text), script)
}

/// The end says each of `words`, and nothing was dumped.
fn without_report(drive: &Drive, reason: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(reason.contains(word), "no {word:?} in the reason {reason:?}");
    }
    ensure!(!drive.text().contains(REPORT), "an end that is no crash leaves a crash's report");
    Ok(())
}

/// All vCPUs are halted with interrupts off: that is an end, and a good one.
fn halts(drive: &mut Drive) -> Result<()> {
    drive.expect("ending: halt", 120)?;
    let reason = drive.ends(0)?;
    without_report(drive, &reason, &["halted for good"])
}

/// Text reaches the guest that it was typed for, even if another one is shown right
/// behind it.
fn typed(drive: &mut Drive) -> Result<()> {
    drive.expect("guest> ", 120)?;
    for (other, own) in [("\x1d2", "\x1d1"), ("\x1dm", "\x1d1"), ("\x1d2", "\x1d1")] {
        drive.send(&format!("help\r{other}"));
        std::thread::sleep(std::time::Duration::from_millis(500));
        drive.send(own);
        drive.expect("help, cpuid, mem, time", 30)?;
    }
    drive.send("poweroff\r\x1d2poweroff\r");
    drive.ends(0).map(|_| ())
}

/// A halt for good ends nothing unless somebody asked for that; the log tells.
fn halt_stays(drive: &mut Drive) -> Result<()> {
    drive.expect("ending: halt", 120)?;
    drive.expect("\"tiny\" is halted for good", 60)?;
    drive.send("\x1dm");
    drive.expect("steward> ", 30)?;
    drive.send("kill tiny\r");
    let reason = drive.ends(0)?;
    without_report(drive, &reason, &["killed"])
}

fn triple_fault_resets(drive: &mut Drive) -> Result<()> {
    drive.expect("ending: triple-fault", 120)?;
    let reason = drive.ends(0)?;
    without_report(drive, &reason, &["reset"])
}

fn exits_with<const STATUS: u8>(drive: &mut Drive) -> Result<()> {
    drive.expect("ending: exit", 120)?;
    let reason = drive.ends(STATUS)?;
    without_report(drive, &reason, &["debug-exit port"])
}

/// A guest says how the run ends, asks the operator's terminal, and leaves it so that nothing
/// is seen on it: none of that works. (An end that nobody contradicts for ten seconds is
/// believed.)
fn forged(drive: &mut Drive) -> Result<()> {
    // Whoever reads the log is told about the line that this machine has for programs.
    drive.expect("control line on COM2, without authentication", 60)?;
    drive.expect("status=0 reason=guest forged powered off", 120)?;
    drive.expect("asks: <>\r\n", 30)?;
    drive.expect("shows: <\x1b[1;32mgreen\x1b[0m\x1b[K>\r\n", 30)?;
    drive.expect("leaves: <\x1b[8m\x1b[?25l\x1b[?1h>\r\n", 30)?;
    drive.expect("halted for good", 60)?;
    let waited = drive.expect("no such text", 12).err().map(|error| error.to_string());
    let waited = waited.unwrap_or_default();
    ensure!(waited.starts_with("waited 12 s"), "the forged end was believed: {waited}");
    drive.send("\x1dm");
    // The monitor is to be seen, whatever the guest left.
    drive.expect("\x1b[0m\x1b[?25h\x1b[?1l\r\n", 30)?;
    drive.expect("steward> ", 30)?;
    drive.send("kill tiny\r");
    let reason = drive.ends(0)?;
    without_report(drive, &reason, &["guest tiny killed"])
}

/// Linux's own panic reaches the run's status.
fn panic(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    drive.send("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger\n");
    drive.expect("Kernel panic - not syncing", 60)?;
    let reason = drive.ends(CRASHED)?;
    ensure!(reason.contains("reported a panic"), "the reason is {reason:?}");
    Ok(())
}

/// `halt -f` of Linux, with all its CPUs.
fn halt_linux(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    drive.send("halt -f\n");
    let reason = drive.ends(0)?;
    without_report(drive, &reason, &["halted for good"])
}

/// With little memory Linux ends in a panic, and says so, or it comes up.
fn small(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    drive.send("poweroff\n");
    let reason = drive.ends(0)?;
    without_report(drive, &reason, &["powered off"])
}

/// Every way that Linux has to reset a machine starts it again, at once: by the firmware's
/// entries, too, which are a reset and nothing else here.
fn reboots(drive: &mut Drive) -> Result<()> {
    for how in ["kbd", "acpi", "pci", "triple", "bios", "efi"] {
        drive.expect(PROMPT, 400)?;
        // A reset in the first five seconds is one too many, and waits.
        let set = drive.shell(
            &format!("sleep 6; echo 1 > /sys/kernel/reboot/force; echo {how} > /sys/kernel/reboot/type; cat /sys/kernel/reboot/type"),
            60,
        )?;
        ensure!(set.trim() == how, "Linux does not know the way {how:?}: {set:?}");
        drive.send("reboot\n");
        drive.expect("guest \"debian\" starts again\r\n", 120)?;
        drive.expect("Linux version", 120)?;
    }
    drive.expect(PROMPT, 400)?;
    drive.send("poweroff\n");
    let reason = drive.ends(0)?;
    without_report(drive, &reason, &["powered off"])
}

/// By default a triple fault is a crash, whatever the guest meant by it.
fn reboot_by_triple_fault(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    drive.send("echo triple > /sys/kernel/reboot/type; reboot\n");
    let reason = drive.ends(CRASHED)?;
    ensure!(reason.contains("triple fault"), "the reason is {reason:?}");
    ensure!(drive.text().contains(REPORT), "a crash without a report");
    Ok(())
}
