//! The cases.

use anyhow::{Context, Result, bail, ensure};
use config::ApicAssist;
use regex_lite::Regex;
use xtask::bench::baseline;
use xtask::bench::figures::{self, Figures};
use xtask::emulator::Clock;
use xtask::machine::{Firmware, Machine};

use crate::case::{Build, Case, Exec, Kernel, Script, Tier};
use crate::drive::Drive;
use crate::steal::check_steal;

/// The prompt of the default guest's shell.
pub(crate) const PROMPT: &str = "root@steward:";
/// Status that a debug exit with the value 0, a tiny guest's "all passed", comes out as.
const TINY_PASSED: u8 = 1;
/// The hypervisor refused.
const REFUSED: u8 = 2;
/// The guest crashed.
const CRASHED: u8 = 3;

/// All cases; `tiny` names the tiny guests that there are.
pub fn all(tiny: &[String]) -> Vec<Case> {
    let mut cases: Vec<Case> = tiny.iter().flat_map(|name| tiny_cases(name)).collect();
    cases.extend(debian());
    cases.extend(crate::refusals::all());
    cases.extend(crate::scenes::all());
    cases.extend(crate::iso::all());
    cases.extend(crate::stick::all());
    cases.push(Case {
        kernel: Kernel::Memtest,
        memory: 128,
        tier: Tier::Full,
        seconds: 1500,
        ..Case::debian("memtest", Firmware::Bios, memtest)
    });
    cases
}

fn tiny_cases(guest: &str) -> Vec<Case> {
    let case = Case::tiny(guest);
    let named = |name: &str| Case { name: name.to_owned(), tells_host: false, ..case.clone() };
    match guest {
        // The built-in guest ends like a machine that is switched off.
        "hello" => vec![
            Case { cmdline: Some("once"), script: hello_once, ..named("tiny-hello") },
            Case { cmdline: Some("reboot"), script: hello_reboot, ..named("tiny-hello-reboot") },
            Case { script: hello_console, ..named("tiny-hello-console") },
            Case {
                cmdline: Some("once"),
                script: hello_once,
                machine: Machine::BochsSvm,
                ..named("tiny-hello-bochs")
            },
            Case {
                cmdline: Some("once"),
                script: hello_once,
                machine: Machine::BochsVmx,
                ..named("tiny-hello-vmx")
            },
        ],
        "crash" => {
            let ends: [(&str, &'static str, Script); 8] = [
                ("triple-fault", "triple-fault", ends_with::<CRASHED>),
                ("pvpanic", "pvpanic", ends_with::<CRASHED>),
                ("jump", "jump", ends_with::<CRASHED>),
                ("reset", "reset", ends_with::<0>),
                ("keyboard-reset", "keyboard-reset", ends_with::<0>),
                ("poweroff", "poweroff", ends_with::<0>),
                // (5 << 1) | 1.
                ("debug-exit", "exit=5", ends_with::<11>),
                // (0x80 << 1) | 1, cut to eight bits.
                ("debug-exit-cut", "exit=128", ends_with::<1>),
            ];
            ends.into_iter()
                .flat_map(|(name, word, script)| {
                    let case = Case {
                        cmdline: Some(word),
                        script,
                        ..named(&format!("tiny-crash-{name}"))
                    };
                    // Ends that depend on the CPUs' vendor are tested each time.
                    let usual = matches!(name, "triple-fault" | "reset");
                    everywhere(&case, if usual { Tier::Usual } else { Tier::Full })
                })
                // Bochs ends itself where an AMD CPU would leave a guest that shuts
                // its CPU down.
                .filter(|case| {
                    case.machine != Machine::BochsSvm
                        || !["triple-fault", "jump"].iter().any(|end| case.name.contains(end))
                })
                .collect()
        }
        "multiboot" => {
            let case = Case {
                cmdline: Some("first second"),
                modules: vec![("one", "alpha"), ("two", "beta gamma")],
                ..named("tiny-multiboot")
            };
            everywhere(&case, Tier::Usual)
        }
        // The many with the image as it is used, which is quicker; the few with every
        // entry checked.
        "lockstep" => {
            [("", 250, Tier::Usual, Build::Debug), ("-10000", 10_000, Tier::Full, Build::Release)]
                .map(|(name, count, tier, build)| Case {
                    tier,
                    build,
                    // RAM that no program has touched is wanted.
                    memory: 256,
                    seconds: 300 + count,
                    script: lockstep_ends,
                    // VT-x's machine delivers a virtual interrupt with interrupts
                    // off where one of its own arrives meanwhile.
                    apic: ApicAssist::Priority,
                    lockstep: Some(count),
                    tells_host: true,
                    ..named(&format!("lockstep{name}"))
                })
                .into()
        }
        // In scenes of several guests; in cases about the clock and the loaders.
        "attack" | "bios" | "fresh" | "rate" | "steady" => Vec::new(),
        // On a machine whose tick is one instruction, the costs of exits are exact, and tested.
        "bench" => [
            ("bench-vmx", Machine::BochsVmx, bench_targets_vmx as Script),
            ("bench-svm", Machine::BochsSvm, bench_targets_svm),
        ]
        .map(|(name, machine, script)| Case {
            tier: Tier::Full,
            machine,
            build: Build::Release,
            memory: xtask::bench::GUEST_MEMORY,
            // As the benchmark itself: on a slower clock, the hypervisor's own timers ring so often
            // (in instructions) that their phase decides about medians.
            clock: Clock::Instructions,
            seconds: 900,
            script,
            ..named(name)
        })
        .to_vec(),
        "exits" | "state" | "clock" => {
            let mut cases = everywhere(&case, Tier::Usual);
            cases.extend(apic_cases(&case));
            cases
        }
        // Two vCPUs share a CPU: one of them always waits.
        "pv" => {
            let case = Case { cpus: (1, 2), ..case };
            let mut cases = everywhere(&case, Tier::Usual);
            // A CPU that ends interrupts by itself leaves nothing to be spared.
            cases.push(Case {
                tier: Tier::Full,
                name: format!("{}-vmx-injected", case.name),
                machine: Machine::BochsVmx,
                apic: ApicAssist::Priority,
                seconds: 600,
                ..case
            });
            cases
        }
        // The usual models have no protection keys; Bochs' CPUs ask them in ring 3 only.
        "keys" => [
            ("house-keys", Machine::QemuSvm, "EPYC-Milan", None),
            (
                "house-keys-vmx",
                Machine::BochsVmx,
                "corei7_icelake_u",
                Some("keys-for-programs-only"),
            ),
        ]
        .map(|(name, machine, cpu, cmdline)| Case {
            name: name.to_owned(),
            machine,
            cpu: Some(cpu),
            cmdline,
            seconds: 600,
            ..case.clone()
        })
        .into(),
        "emulate" => {
            let families = Case {
                name: "house-emulated".to_owned(),
                cmdline: Some("families"),
                ..case.clone()
            };
            let mut cases = everywhere(&case, Tier::Usual);
            cases.extend(everywhere(&families, Tier::Usual));
            // AMD-V is QEMU's here.
            for case in cases.iter_mut().filter(|case| case.machine == Machine::BochsSvm) {
                case.tier = Tier::Full;
            }
            cases
        }
        "memory" | "hypercalls" => everywhere(&case, Tier::Usual),
        // One vCPU rings a device while the other moves it; on one CPU they take turns.
        "bells" => {
            let on = |name: &str, machine, cpus| Case {
                name: name.to_owned(),
                machine,
                cpus,
                seconds: 600,
                ..case.clone()
            };
            vec![
                on("house-bells", Machine::QemuSvm, (2, 2)),
                // A CPU is idle: it works at once.
                Case {
                    cmdline: Some("rounds=40"),
                    ..on("house-bells-vmx", Machine::BochsVmx, (3, 2))
                },
                Case { tier: Tier::Full, ..on("house-bells-bochs-svm", Machine::BochsSvm, (1, 2)) },
                on("house-bells-idle-cpu", Machine::QemuSvm, (3, 2)),
                Case { tier: Tier::Full, ..on("house-bells-one-cpu", Machine::QemuSvm, (1, 2)) },
            ]
        }
        // One vCPU changes what lies over RAM that the other uses.
        "layers" => {
            let on = |name: &str, machine, cpus| Case {
                name: name.to_owned(),
                machine,
                cpus,
                seconds: 900,
                ..case.clone()
            };
            let few = |case: Case, rounds| Case { cmdline: Some(rounds), ..case };
            let all = |case: Case| Case { tier: Tier::Full, ..case };
            vec![
                few(on("house-layers", Machine::QemuSvm, (2, 2)), "rounds=500"),
                few(on("house-layers-vmx", Machine::BochsVmx, (2, 2)), "rounds=500"),
                few(on("house-layers-bochs-svm", Machine::BochsSvm, (1, 2)), "rounds=100"),
                all(on("house-layers-10000", Machine::QemuSvm, (2, 2))),
                all(on("house-layers-10000-vmx", Machine::BochsVmx, (2, 2))),
            ]
        }
        // AMD-V's CPU switches tasks by itself, and is what VT-x's guests are compared with.
        "tasks" => [("house-tasks", Machine::QemuSvm), ("house-tasks-vmx", Machine::BochsVmx)]
            .map(|(name, machine)| Case {
                name: name.to_owned(),
                machine,
                seconds: 600,
                ..case.clone()
            })
            .into(),
        // Among the cases on isolation.
        "opcodes" => Vec::new(),
        // They wait a lot, and five times as long (in instructions) on VT-x's
        // machine, whose clock is faster.
        "devices" | "irq" => {
            let mut cases = everywhere(&case, Tier::Full);
            for case in cases.iter_mut().filter(|case| case.machine == Machine::BochsVmx) {
                case.seconds = 1200;
            }
            cases.extend(apic_cases(&case));
            cases
        }
        _ => vec![case],
    }
}

/// A case on QEMU's AMD-V, and on VT-x and AMD-V of Bochs in tier `bochs`.
pub(crate) fn everywhere(case: &Case, bochs: Tier) -> Vec<Case> {
    let on = |suffix: &str, machine| Case {
        name: format!("{}-{suffix}", case.name),
        machine,
        tier: bochs,
        seconds: 600,
        ..case.clone()
    };
    vec![case.clone(), on("vmx", Machine::BochsVmx), on("bochs-svm", Machine::BochsSvm)]
}

/// A case on VT-x with less help from the CPU for the local APIC than the usual
/// model gives, and on other models.
fn apic_cases(case: &Case) -> Vec<Case> {
    let on = |suffix: &str, apic, tier| Case {
        name: format!("{}-vmx-{suffix}", case.name),
        machine: Machine::BochsVmx,
        apic,
        tier,
        seconds: 1200,
        ..case.clone()
    };
    let usual = if case.name == "tiny-exits" { Tier::Usual } else { Tier::Full };
    vec![
        on("injected", ApicAssist::Priority, usual),
        on("emulated", ApicAssist::None, Tier::Full),
        Case { cpu: Some("corei7_skylake_x"), ..on("skylake", ApicAssist::Full, Tier::Full) },
        // Sandy Bridge does not deliver interrupts, and has no INVPCID.
        Case {
            cpu: Some("corei7_sandy_bridge_2600k"),
            ..on("sandy-bridge", ApicAssist::Full, Tier::Full)
        },
    ]
}

fn debian() -> Vec<Case> {
    vec![
        Case::debian("debian-uefi", Firmware::Uefi, debian_shell),
        Case::debian("debian-bios", Firmware::Bios, debian_shell),
        Case::debian("debian-reboot", Firmware::Bios, debian_reboot),
        Case::debian("debian-power-button", Firmware::Bios, debian_power_button),
        // More vCPUs than CPUs: the scheduler moves them about.
        Case { cpus: (2, 4), ..Case::debian("debian-smp", Firmware::Bios, debian_smp::<4>) },
        Case {
            machine: Machine::BochsVmx,
            cpus: (2, 4),
            memory: 1024,
            tier: Tier::Full,
            seconds: 2400,
            ..Case::debian("debian-smp-vmx", Firmware::Bios, debian_smp_small)
        },
        Case {
            memory: 128,
            tier: Tier::Full,
            ..Case::debian("debian-128M", Firmware::Bios, debian_memory::<128>)
        },
        // A shell, as a command of `run --exec`.
        Case {
            machine: Machine::BochsVmx,
            memory: 128,
            seconds: 1200,
            exec: Some(Exec {
                command: "stty -F /dev/console sane; setsid cttyhack sh -l </dev/console; \
                          stty -F /dev/console raw -echo; echo the shell is left; exit 7",
                ends_with: "the shell is left",
                status: 7,
            }),
            ..Case::debian("debian-vmx", Firmware::Bios, debian_small::<128>)
        },
        // Interrupts injected, and another CPU.
        Case {
            machine: Machine::BochsVmx,
            apic: ApicAssist::Priority,
            memory: 128,
            tier: Tier::Full,
            seconds: 1200,
            ..Case::debian("debian-vmx-injected", Firmware::Bios, debian_small::<128>)
        },
        Case {
            machine: Machine::BochsVmx,
            cpu: Some("corei7_skylake_x"),
            memory: 128,
            tier: Tier::Full,
            seconds: 1200,
            ..Case::debian("debian-vmx-skylake", Firmware::Bios, debian_small::<128>)
        },
        Case {
            machine: Machine::BochsVmx,
            memory: 1024,
            tier: Tier::Full,
            seconds: 1800,
            ..Case::debian("debian-vmx-1G", Firmware::Bios, debian_small::<1024>)
        },
        Case {
            kernel: Kernel::Debian32,
            tier: Tier::Full,
            ..Case::debian("debian-32-bit", Firmware::Bios, debian_32_bit)
        },
        Case {
            kernel: Kernel::Debian32,
            machine: Machine::BochsVmx,
            tier: Tier::Full,
            seconds: 1800,
            ..Case::debian("debian-32-bit-vmx", Firmware::Bios, debian_32_bit)
        },
        Case {
            memory: 6144,
            tier: Tier::Full,
            ..Case::debian("debian-6G", Firmware::Uefi, debian_memory::<6144>)
        },
    ]
}

/// A tiny guest reports that all its cases passed.
pub(crate) fn tiny_passes(drive: &mut Drive) -> Result<()> {
    let ended = drive.ends(TINY_PASSED);
    let failures: Vec<&str> =
        drive.text().lines().filter(|line| line.contains("FAILED ")).take(5).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    ended?;
    ensure!(drive.text().contains(" passed, 0 failed"), "the guest printed no summary");
    Ok(())
}

fn bench_targets_vmx(drive: &mut Drive) -> Result<()> {
    bench_targets(drive, Machine::BochsVmx)
}

fn bench_targets_svm(drive: &mut Drive) -> Result<()> {
    bench_targets(drive, Machine::BochsSvm)
}

/// Exits cost what the document says.
fn bench_targets(drive: &mut Drive, machine: Machine) -> Result<()> {
    drive.ends(TINY_PASSED)?;
    let figures = Figures::parse(drive.text())?;
    ensure!(figures.complete(), "the guest did not come to its end");
    // RDTSC causes no exit: if it is not exactly one tick each time, nothing is exact.
    let control = figures.get("rdtsc").context("RDTSC was not measured")?;
    ensure!(
        (control.min, control.p99) == (1, 1),
        "RDTSC took {} to {} ticks instead of one",
        control.min,
        control.p99
    );
    let missed: Vec<String> = baseline::targets(machine, ApicAssist::Full)?
        .iter()
        .filter_map(|target| {
            let Some(figure) = figures.get(&target.name) else {
                return Some(format!("{}: not measured", target.name));
            };
            let why = figures::misses(figure, target.limit)?;
            Some(format!("{}: {} instead of {} ({why})", target.name, figure.median, target.limit))
        })
        .collect();
    ensure!(missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

/// All programs ran; whether they did the same is for the comparison.
fn lockstep_ends(drive: &mut Drive) -> Result<()> {
    let ended = drive.ends(TINY_PASSED);
    let failures = drive.text().lines().find(|line| line.contains("FAILED "));
    match failures {
        Some(line) => bail!("{line}"),
        // Then a program saw something else with the hot handler: it is told.
        None if drive.text().contains(" passed, ") => Ok(()),
        None => ended.map(|_| ()),
    }
}

fn hello_once(drive: &mut Drive) -> Result<()> {
    drive.expect("Hello from a guest.", 120)?;
    drive.expect("Good-bye.", 30)?;
    drive.ends(0).map(|_| ())
}

fn hello_reboot(drive: &mut Drive) -> Result<()> {
    drive.expect("Resetting.", 120)?;
    let reason = drive.ends(0)?;
    ensure!(reason.contains("reset"), "a reset ends the run as: {reason}");
    Ok(())
}

fn hello_console(drive: &mut Drive) -> Result<()> {
    drive.expect("guest> ", 120)?;
    // More than the UART's buffer holds, in one go.
    drive.send("abcdefghijklmnopqrstuvwxyz0123456789\r");
    drive.expect("abcdefghijklmnopqrstuvwxyz0123456789: no such command", 30)?;
    drive.expect("guest> ", 30)?;
    drive.send("poweroff\r");
    drive.expect("Good-bye.", 30)?;
    drive.ends(0).map(|_| ())
}

/// A guest that breaks itself is reported, and the hypervisor lives on to say so.
/// The run ends with this status.
fn ends_with<const STATUS: u8>(drive: &mut Drive) -> Result<()> {
    drive.ends(STATUS).map(|_| ())
}

/// The operator presses the power button, and the guest shuts itself down.
fn debian_power_button(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    drive.send("\x1dp");
    drive.expect("Power down", 120)?;
    drive.ends(0).map(|_| ())
}

fn debian_shell(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    let answer = drive.shell("echo $((6*7))", 60)?;
    ensure!(answer.trim() == "42", "the shell answered {answer:?}");
    let uname = drive.shell("uname -a", 60)?;
    ensure!(uname.contains("Debian"), "uname says {uname:?}");
    let cpuinfo = drive.shell("grep -c ^processor /proc/cpuinfo", 60)?;
    ensure!(cpuinfo.trim() == "1", "/proc/cpuinfo lists {cpuinfo:?} CPUs");
    check_memory(drive, 512)?;
    check_dmesg(drive)?;
    // Ctrl-C reaches the guest and ends what runs in the foreground.
    drive.send("sleep 1000\n");
    drive.expect("sleep 1000", 30)?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    drive.send("\x03");
    drive.expect(PROMPT, 30)?;
    drive.send("poweroff\n");
    drive.ends(0)?;
    check_counts(drive, &[])
}

/// The guest has started all its CPUs, and they work together.
fn debian_smp<const VCPUS: usize>(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 500)?;
    let count = drive.shell("nproc", 60)?;
    ensure!(count.trim() == VCPUS.to_string(), "nproc says {count:?}");
    // A pipe's two ends and a load on each CPU make them call each other.
    let work = "sh -c 'for i in 1 2 3 4; do seq 20000 | tail -n1 & done; wait'";
    let answer = drive.shell(work, 240)?;
    ensure!(answer.matches("20000").count() == VCPUS, "the four pipes answered {answer:?}");
    let ipis = drive.shell("grep RES: /proc/interrupts", 60)?;
    ensure!(!ipis.trim().is_empty(), "no count of calls between CPUs");
    // Linux says so of a vCPU that had to wait in its timer's interrupt.
    check_dmesg_but(drive, &["hrtimer: interrupt took"])?;
    check_steal(drive, VCPUS)?;
    let log = drive.shell("dmesg | grep -i kvm", 60)?;
    for wanted in PARAVIRTUAL {
        ensure!(log.contains(wanted), "dmesg lacks {wanted:?}: {log}");
    }
    drive.send("poweroff\n");
    drive.ends(0)?;
    check_counts(drive, &["steal_updates", "preempted", "tlb_flushes", "eois", "hypercall"])
}

/// The report of the guest's end counts uses of KVM's interface, `used`, and no instruction that
/// the general decoder was asked for: what Linux does to devices must not need it.
fn check_counts(drive: &Drive, used: &[&str]) -> Result<()> {
    let line = drive.text().lines().rfind(|line| line.contains("of RAM touched, exits:"));
    let line = line.context("no counts at the guest's end")?;
    for used in used {
        ensure!(line.contains(&format!(" {used}=")), "{used} of KVM's interface never: {line}");
    }
    ensure!(!line.contains(" general_decodes="), "the general decoder was asked: {line}");
    Ok(())
}

/// As `debian_smp`, on a slow emulator.
fn debian_smp_small(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 2000)?;
    let count = drive.shell("nproc", 400)?;
    ensure!(count.trim() == "4", "nproc says {count:?}");
    let answer =
        drive.shell("sh -c 'for i in 1 2 3 4; do seq 500 | tail -n1 & done; wait'", 600)?;
    ensure!(answer.matches("500").count() == 4, "the four pipes answered {answer:?}");
    check_dmesg_but(drive, &["hrtimer: interrupt took"])?;
    let log = drive.shell("dmesg | grep -i kvm", 400)?;
    for wanted in PARAVIRTUAL {
        ensure!(log.contains(wanted), "dmesg lacks {wanted:?}: {log}");
    }
    drive.send("poweroff\n");
    drive.ends(0)?;
    check_counts(drive, &[])
}

/// Linux' messages about the paravirtual interface with several CPUs.
const PARAVIRTUAL: [&str; 4] =
    ["PV spinlocks enabled", "setup PV IPIs", "setup pv remote TLB flush", "setup PV sched yield"];

fn debian_reboot(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 400)?;
    drive.send("reboot\n");
    drive.expect("Linux version", 120)?;
    drive.expect(PROMPT, 400)?;
    drive.send("poweroff\n");
    drive.ends(0).map(|_| ())
}

fn debian_memory<const MIB: u64>(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 500)?;
    check_memory(drive, MIB)?;
    check_dmesg(drive)?;
    drive.send("poweroff\n");
    drive.ends(0).map(|_| ())
}

/// On a slow emulator: the shell answers, memory and log are as they should be.
fn debian_small<const MIB: u64>(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 1000)?;
    let answer = drive.shell("echo $((6*7))", 120)?;
    ensure!(answer.trim() == "42", "the shell answered {answer:?}");
    check_memory(drive, MIB)?;
    check_dmesg(drive)?;
    // The script that started the shell may switch the guest off, with a status.
    drive.send("[ -f /steward/command ] && exit || poweroff\n");
    drive.ends(0)?;
    check_counts(drive, &[])
}

/// A 32-bit kernel, entered by the 32-bit boot protocol.
fn debian_32_bit(drive: &mut Drive) -> Result<()> {
    drive.expect(PROMPT, 1500)?;
    let uname = drive.shell("uname -m", 120)?;
    ensure!(uname.trim() == "i686", "uname says {uname:?}");
    check_memory(drive, 512)?;
    check_dmesg(drive)?;
    drive.send("poweroff\n");
    drive.ends(0)?;
    check_counts(drive, &[])
}

/// System RAM in /proc/iomem is the guest's size less the legacy holes.
fn check_memory(drive: &mut Drive, mib: u64) -> Result<()> {
    let iomem = drive.shell("grep 'System RAM' /proc/iomem", 60)?;
    let ram = system_ram(&iomem)?;
    let size = mib << 20;
    // The hole from 640 KiB to 1 MiB with what stands at its edges, and the first page.
    let holes = size.saturating_sub(ram);
    ensure!(
        ram <= size && holes <= 0x8_0000,
        "System RAM is {ram:#x} of {size:#x} bytes:\n{iomem}"
    );
    Ok(())
}

fn system_ram(iomem: &str) -> Result<u64> {
    let mut total = 0;
    for line in iomem.lines().filter(|line| line.contains("System RAM")) {
        let (range, _) = line.trim().split_once(' ').context("no range")?;
        let (from, to) = range.split_once('-').with_context(|| format!("no range in {line:?}"))?;
        let from = u64::from_str_radix(from, 16)?;
        total += (u64::from_str_radix(to, 16)? + 1).saturating_sub(from);
    }
    Ok(total)
}

/// The kernel's log has the good lines and none of the bad ones.
pub(crate) fn check_dmesg(drive: &mut Drive) -> Result<()> {
    check_dmesg_but(drive, &[])
}

/// As [`check_dmesg`], but lines with one of `allowed` are.
pub(crate) fn check_dmesg_but(drive: &mut Drive, allowed: &[&str]) -> Result<()> {
    let log = drive.shell("dmesg", 120)?;
    for wanted in ["kvm-clock: Using msrs", "ACPI: Interpreter enabled"] {
        ensure!(log.contains(wanted), "dmesg lacks {wanted:?}");
    }
    let path = xtask::paths::root().join("docs/dmesg-forbidden.txt");
    let list = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut bad = forbidden(&log, &list)?;
    bad.retain(|line| !allowed.iter().any(|word| line.contains(word)));
    ensure!(bad.is_empty(), "dmesg has forbidden lines:\n{}", bad.join("\n"));
    Ok(())
}

/// Lines of `log` that an expression of `list` matches: one a line, `#` at a line's
/// beginning makes a comment.
fn forbidden<'a>(log: &'a str, list: &str) -> Result<Vec<&'a str>> {
    let expressions = list
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| Regex::new(line).with_context(|| format!("bad expression {line:?}")))
        .collect::<Result<Vec<Regex>>>()?;
    Ok(log.lines().filter(|line| expressions.iter().any(|one| one.is_match(line))).collect())
}

/// The hypervisor refuses, and says why with each of `words`.
pub(crate) fn refused(drive: &mut Drive, words: &[&str]) -> Result<()> {
    let reason = drive.ends(REFUSED)?;
    let line = drive.text().lines().find(|line| line.contains("steward: refused: "));
    let why = line.context("the refusal gives no reason")?;
    for word in words {
        ensure!(why.contains(word), "refused, but not for {word:?}: {why}");
        ensure!(reason.contains(word), "the end's line does not say {word:?}: {reason}");
    }
    Ok(())
}

/// memtest86+ draws its screen and its first pass advances without an error.
fn memtest(drive: &mut Drive) -> Result<()> {
    drive.expect("Memtest86+ v", 300)?;
    drive.expect("Status: Testing", 60)?;
    // A whole pass.
    drive.expect("Status: Pass", 1200)?;
    let counts = Regex::new(r"Errors: +([0-9]+)")?;
    for count in counts.captures_iter(drive.text()) {
        ensure!(
            count.get(1).is_some_and(|count| count.as_str() == "0"),
            "memtest86+ reports errors"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let tiny: Vec<String> =
            ["hello", "exits", "crash", "multiboot", "bench"].map(str::to_owned).to_vec();
        let mut names: Vec<String> = all(&tiny).into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn forbidden_lines_are_found() {
        let list = "# comment\nunchecked MSR access\nirq .*: nobody cared\n\nDisabling IRQ #\n";
        let log = "[0.1] fine # comment\n[0.2] unchecked MSR access error\n[0.3] irq 9: nobody cared (try)\n";
        assert_eq!(forbidden(log, list).unwrap(), log.lines().skip(1).collect::<Vec<_>>());
        assert!(forbidden("irq 9 is fine\n", list).unwrap().is_empty());
        assert!(forbidden("", "(").is_err());
    }

    #[test]
    fn the_list_of_forbidden_lines_can_be_read() {
        let path = xtask::paths::root().join("docs/dmesg-forbidden.txt");
        let list = std::fs::read_to_string(path).unwrap();
        let log = "[    1.0] unchecked MSR access error: RDMSR from 0x1\n[    1.1] ACPI: Interpreter enabled\n";
        assert_eq!(forbidden(log, &list).unwrap().len(), 1);
    }

    #[test]
    fn system_ram_is_added_up() {
        let text = "00001000-0009fbff : System RAM\n00100000-1fffffff : System RAM\n";
        assert_eq!(system_ram(text).unwrap(), 0x9ec00 + 0x1ff0_0000);
        assert!(system_ram("junk : System RAM\n").is_err());
    }
}
