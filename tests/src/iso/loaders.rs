//! Kernels, what they find at the bottom of their memory, and what is refused.

use anyhow::{Result, ensure};
use config::OnReset;
use xtask::machine::Firmware;

use crate::case::{Case, Kernel, Tier};
use crate::cases::{PROMPT, everywhere, refused, tiny_passes};
use crate::drive::Drive;

/// The cases.
pub(crate) fn cases() -> Vec<Case> {
    let named = |name: &str, case: Case| Case { name: name.to_owned(), ..case };
    // The second CPU calls: it is in real mode when it starts.
    let bios = Case { cpus: (1, 2), tells_host: false, ..Case::tiny("bios") };
    let mut cases =
        everywhere(&Case { script: bios_calls, ..named("iso-bios", bios.clone()) }, Tier::Usual);
    for word in ["reset", "boot"] {
        let case = Case { cmdline: Some(word), script: bios_resets, ..bios.clone() };
        cases.extend(everywhere(&named(&format!("iso-bios-{word}"), case), Tier::Full));
    }
    cases.push(Case {
        words: "x".repeat(3000),
        tells_host: false,
        script: |drive| refused(drive, &["has 3000 bytes", "at most 2047"]),
        ..named("iso-long-command-line", Case::tiny("hello"))
    });
    cases.push(Case {
        memory: 64,
        ..Case::debian("iso-too-little-memory", Firmware::Bios, |drive| {
            refused(drive, &["too little memory", "give the guest at least"])
        })
    });
    cases.push(Case {
        memory: 80,
        tier: Tier::Full,
        ..Case::debian("iso-little-memory", Firmware::Bios, little_memory)
    });
    // The MP table says how many CPUs there are, and where interrupts come from. Debian's cloud
    // kernel is built without a reader for it, the 32-bit one has it.
    cases.push(Case {
        kernel: Kernel::Debian32,
        tier: Tier::Full,
        cpus: (1, 2),
        words: "acpi=off reboot=b".to_owned(),
        on_reset: OnReset::End,
        ..Case::debian("iso-acpi-off", Firmware::Bios, acpi_off)
    });
    cases.push(Case {
        kernel: Kernel::Debian32,
        cpus: (1, 2),
        words: "acpi=noirq".to_owned(),
        tier: Tier::Full,
        ..Case::debian("iso-acpi-noirq", Firmware::Bios, acpi_noirq)
    });
    for (name, cmdline, script) in [
        ("iso-xen", "console=com1 com1=115200", xen as fn(&mut Drive) -> Result<()>),
        ("iso-xen-no-real-mode", "console=com1 com1=115200 no-real-mode", xen_no_real_mode),
    ] {
        cases.push(Case {
            kernel: Kernel::Xen,
            cmdline: Some(cmdline),
            memory: 256,
            tier: Tier::Full,
            on_reset: OnReset::End,
            ..Case::debian(name, Firmware::Bios, script)
        });
    }
    cases
}

/// The ROM's answers, and that each call is told once.
fn bios_calls(drive: &mut Drive) -> Result<()> {
    tiny_passes(drive)?;
    for call in ["INT 0x15, AX 0xe820", "INT 0x12, AX 0xffff", "INT 0x06, AX 0x0000"] {
        let told = format!("guest \"guest\" calls a BIOS, which is not there: {call}");
        let times = drive.text().matches(&told).count();
        ensure!(times == 1, "{call} was told {times} times");
    }
    Ok(())
}

fn bios_resets(drive: &mut Drive) -> Result<()> {
    let reason = drive.ends(0)?;
    ensure!(reason.contains("reset"), "the run ended for another reason: {reason}");
    Ok(())
}

/// The two CPUs came up, and the serial port's interrupts come through the I/O APIC.
fn two_cpus_and_interrupts(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    let cpus = drive.shell("nproc", 60)?;
    ensure!(cpus.trim() == "2", "nproc says {cpus:?}");
    let lines = drive.shell("grep -E 'ttyS0|timer' /proc/interrupts", 60)?;
    let serial = lines.lines().find(|line| line.contains("ttyS0")).unwrap_or_default();
    ensure!(serial.contains("IO-APIC"), "the serial port's interrupts: {lines:?}");
    let counts = |text: &str| -> u64 {
        text.split_ascii_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum()
    };
    ensure!(counts(serial) > 4, "the serial port has no interrupts: {lines:?}");
    Ok(())
}

fn acpi_off(drive: &mut Drive) -> Result<()> {
    two_cpus_and_interrupts(drive)?;
    drive.send("reboot -f\n");
    bios_resets(drive)?;
    ensure!(
        drive.text().contains("guest \"guest\" jumps to the BIOS' reset vector"),
        "the jump to the BIOS was not told"
    );
    Ok(())
}

/// A guest with little memory that is not refused boots.
fn little_memory(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    drive.send("poweroff -f\n");
    drive.ends(0).map(|_| ())
}

fn acpi_noirq(drive: &mut Drive) -> Result<()> {
    two_cpus_and_interrupts(drive)?;
    drive.send("poweroff -f\n");
    drive.ends(0).map(|_| ())
}

/// Xen calls the BIOS from its start-up code, hears "not supported", and goes on until it finds no
/// kernel for its first domain; then it resets the machine.
fn xen(drive: &mut Drive) -> Result<()> {
    xen_no_real_mode(drive)?;
    ensure!(drive.text().contains("calls a BIOS, which is not there: INT 0x"), "no call was told");
    Ok(())
}

fn xen_no_real_mode(drive: &mut Drive) -> Result<()> {
    drive.expect("Xen version 4.17", 300)?;
    // The first word is dropped by Xen: it must be the file's name.
    drive.expect("Command line: console=com1 com1=115200", 60)?;
    bios_resets(drive)
}
