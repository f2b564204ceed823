//! Tests of the reports.

extern crate std;
use super::*;
use crate::protocol::event::{Event, EventGuest, EventKind, Events};
use crate::report::why::{Finding, Obstacle, lines, vcpu};
use crate::status::*;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn info(number: u32, name: &str, state: GuestState) -> GuestInfo {
    GuestInfo {
        number,
        name: name.into(),
        uuid: None,
        state,
        attached: number == 1,
        memory: 512 << 20,
        vcpus: 2,
        weight: 100,
        cap: Some(50),
        up_ns: (state == GuestState::Running).then_some(61 * S),
        starts: 3,
        last_end: Some("powered off".into()),
        console_kept: 1024,
        console_dropped: 1024,
    }
}

fn exit(reason: &str, count: u64, time_ns: Option<u64>) -> ExitStats {
    ExitStats { reason: reason.into(), count, time_ns, estimated: reason.starts_with("hot") }
}

fn guest(number: u32, run: u64, exits: u64) -> GuestStats {
    let vcpu = |index| VcpuStats {
        index,
        times: Times { run_ns: run, ready_ns: run / 2, wait_ns: run / 2, paused_ns: 0 },
        longest_ready_ns: 4_000_000,
        migrations: 7,
        cpu: Some(1),
        exits: vec![exit("port_io", exits, Some(run / 4)), exit("halt", 1, None)],
        spent: SpentTimes::default(),
    };
    GuestStats {
        number,
        name: "debian".into(),
        uuid: None,
        state: GuestState::Running,
        memory: GuestMemory { ram: 512 << 20, populated: 96 << 20, tables: 1 << 20, overhead: 9 },
        service_ns: run / 10,
        zeroing_ns: 0,
        throttled_ns: 0,
        vcpus: vec![vcpu(0), vcpu(1)],
        counters: vec![Counter { name: "pv_eoi".into(), count: 12 }],
    }
}

fn snapshot(time_ns: u64, busy_ns: u64, guests: Vec<GuestStats>) -> Statistics {
    let cpu = |index| CpuInfo {
        index,
        apic_id: index,
        timers: 0,
        online: index < 2,
        busy_ns,
        idle_ns: time_ns - busy_ns,
        running: Some("debian/0".into()),
    };
    Statistics {
        time_ns,
        cpus: vec![cpu(0), cpu(1)],
        memory: HostMemory { total: 4 << 30, free: 3 << 30, ..HostMemory::default() },
        guests,
    }
}

#[test]
fn the_list() {
    let guests = [info(1, "debian", GuestState::Running), info(12, "tiny", GuestState::Crashed)];
    assert_eq!(
        list(&guests),
        " #  NAME    STATE          UP   MEMORY  VCPUS  WEIGHT   CAP  STARTS  UNREAD
*1  debian  running  1:01 min  512 MiB      2     100  50 %       3   2 KiB
12  tiny    crashed         -  512 MiB      2     100  50 %       3   2 KiB
12 tiny: powered off
"
    );
    assert_eq!(list(&[]), "there are no guests\n");
}

#[test]
fn top_shows_what_happened_in_between() {
    let before = snapshot(10 * S, 5 * S, vec![guest(1, 4 * S, 1000)]);
    let now = snapshot(12 * S, 6 * S, vec![guest(1, 5 * S, 3000), guest(2, S, 10)]);
    assert_eq!(
        top(&now, Some(&before)),
        "\
up 12.0 s; 2 CPU(s), 50.0 % busy; 3 GiB of 4 GiB free
#  NAME    STATE     CPU%  RUN%  READY%  WAIT%  EXITS/S  TOUCHED   MEMORY
1  debian  running  105.0  50.0    25.0   25.0     2000   96 MiB  512 MiB
2  debian  running  105.0  50.0    25.0   25.0       11   96 MiB  512 MiB
"
    );
    // A guest that was started anew has not run backwards; nor has the clock.
    let restarted = snapshot(11 * S, 6 * S, vec![guest(1, S, 10)]);
    assert!(top(&restarted, Some(&before)).contains("running   0.0     -       -      -        0"));
    assert!(top(&before, Some(&now)).contains(" - "));
    assert!(top(&before, None).contains("up 10.0 s"));
}

#[test]
fn statistics_of_a_guest() {
    let mut one = guest(1, 4 * S, 300);
    one.vcpus[1].exits.push(exit("cpuid", 398, Some(S)));
    one.vcpus[0].exits.push(exit("hot_touch", 2, Some(S / 4)));
    one.vcpus[1].exits.push(exit("hot_touch", 2, Some(S / 4)));
    for vcpu in &mut one.vcpus {
        vcpu.spent =
            SpentTimes { guest_ns: 2 * S, hot_ns: S / 4, exits_ns: S + S / 2, switches_ns: S / 4 };
    }
    one.zeroing_ns = 2 * S;
    assert_eq!(
        stats(&one),
        "\
1 debian: running; run 8.0 s, service 400 ms, throttled 0
VCPU  CPU    RUN  READY   WAIT  PAUSED  LONGEST  MOVES  EXITS
   0    1  4.0 s  2.0 s  2.0 s       0   4.0 ms      7    303
   1    1  4.0 s  2.0 s  2.0 s       0   4.0 ms      7    701
guest 40.00 %, hot exits about 5.00 %, other exits 30.00 %, switches 5.00 %, services 20.00 %
EXIT       COUNT  % OF EXITS     TIME     EACH  % OF RUN
port_io      600        59.8    2.0 s   3.3 ms      25.0
cpuid        398        39.6    1.0 s   2.5 ms      12.5
hot_touch      4         0.4  ~500 ms  ~125 ms      ~6.3
halt           2         0.2        -        -         -
~: not timed, but counted: the benchmark's instructions for each, one a tick
pv_eoi                        12
"
    );
}

#[test]
fn memory_and_cpus() {
    let host = HostMemory {
        total: 4 << 30,
        free: 3 << 30,
        reserved: 1 << 30,
        zeroed: 64 << 20,
        stock: 2 << 20,
        hypervisor: 20 << 20,
        heap_used: 1 << 20,
        heap_size: 2 << 20,
    };
    let owner = MemoryOwner {
        number: 1,
        name: "debian".into(),
        memory: GuestMemory { ram: 512 << 20, populated: 100 << 20, tables: 4096, overhead: 200 },
    };
    assert_eq!(
        memory(&MemoryStatus { host, guests: vec![owner] }),
        "\
frames: 4 GiB in all, 1 GiB used, 3 GiB free
free:   1 GiB promised to guests, 64 MiB zeroed; in guests' stocks 2 MiB
own:    20 MiB, heap 1 MiB of 2 MiB
#  NAME        RAM  TOUCHED  TABLES  OVERHEAD
1  debian  512 MiB  100 MiB   4 KiB     200 B
"
    );
    let mut machine = CpusStatus {
        model: "AMD EPYC".into(),
        virtualization: "AMD-V".into(),
        tsc_hz: 2_400_050_000,
        longest_step_ns: 70_000,
        cpus: snapshot(10 * S, 5 * S, vec![]).cpus,
    };
    machine.cpus[1].running = None;
    assert_eq!(
        cpus(&machine),
        "\
AMD EPYC
AMD-V; TSC 2400.050 MHz; the operator's longest step since the last look: 70.0 us
CPU  APIC  STATE    BUSY   IDLE  BUSY%  RUNS
  0     0  online  5.0 s  5.0 s   50.0  debian/0
  1     1  online  5.0 s  5.0 s   50.0  -
"
    );
}

fn halted() -> VcpuWait {
    VcpuWait {
        index: 0,
        activity: VcpuActivity::Halted,
        for_ns: 3 * S,
        rip: 0xffff_ffff_8100_0000,
        code: CodeState {
            mode: "64-bit mode".into(),
            bytes: "f4 c3".into(),
            instruction: "hlt".into(),
        },
        exits: vec![exit("halt", 7, None), exit("port_io", 41_933, None)],
        interrupts_enabled: true,
        shadow: false,
        nmi_blocked: false,
        nmi_pending: false,
        pic_pending: false,
        apic_enabled: true,
        tpr: 0,
        ppr: 0,
        irr: vec![],
        isr: vec![],
        timer: TimerState { vector: 0xec, masked: false, due_in_ns: Some(4_000_000) },
        lvt: vec![],
    }
}

const TIMER: Finding = Finding::Timer { vector: 0xec, in_ns: 4_000_000, masked: false };

fn found(one: &VcpuWait) -> Vec<Finding> {
    vcpu(one, GuestState::Running)
}

#[test]
fn why_a_vcpu_waits() {
    assert_eq!(found(&halted()), [TIMER]);
    let paused = vcpu(&halted(), GuestState::Paused);
    assert_eq!(paused, [Finding::Guest(GuestState::Paused), TIMER]);

    let mut deaf = halted();
    deaf.interrupts_enabled = false;
    deaf.irr = vec![0x31];
    let held = Finding::Held(0x31, Obstacle::InterruptFlag);
    assert_eq!(found(&deaf), [Finding::Deaf, held.clone(), TIMER]);
    deaf.nmi_blocked = true;
    deaf.nmi_pending = true;
    deaf.pic_pending = true;
    let pic = Finding::Pic(Some(Obstacle::InterruptFlag));
    assert_eq!(found(&deaf), [Finding::StoneDeaf, Finding::Nmi { held: true }, pic, held, TIMER]);

    let mut off = halted();
    off.apic_enabled = false;
    off.pic_pending = true;
    assert_eq!(found(&off), [Finding::Pic(None), Finding::ApicOff]);

    let mut new = halted();
    new.activity = VcpuActivity::WaitForStartup;
    assert_eq!(found(&new), [Finding::WaitForStartup]);

    let mut masked = halted();
    masked.timer.masked = true;
    let entry = |name: &str, masked| LvtState { name: name.to_string(), vector: 0, masked };
    masked.lvt = vec![entry("lint0", true), entry("lint1", false), entry("error", true)];
    let timer = Finding::Timer { vector: 0xec, in_ns: 4_000_000, masked: true };
    let lvt = Finding::Masked(vec!["lint0".into(), "error".into()]);
    assert_eq!(found(&masked), [timer, lvt]);
    masked.timer.due_in_ns = None;
    assert_eq!(found(&masked)[0], Finding::NoTimer);
}

#[test]
fn priorities_hold_vectors_back() {
    let mut one = halted();
    one.activity = VcpuActivity::Running;
    (one.tpr, one.ppr, one.irr) = (0x40, 0x40, vec![0x31, 0x4f, 0x51]);
    assert_eq!(
        found(&one),
        [
            Finding::Running,
            Finding::Due(0x51),
            Finding::Held(0x4f, Obstacle::TaskPriority(0x40)),
            Finding::Held(0x31, Obstacle::TaskPriority(0x40)),
            TIMER,
        ]
    );
    (one.isr, one.ppr, one.activity) = (vec![0x35, 0x61], 0x60, VcpuActivity::Ready);
    let service = |vector| Finding::Held(vector, Obstacle::InService(0x61));
    assert_eq!(found(&one), [Finding::Ready, service(0x51), service(0x4f), service(0x31), TIMER]);
    // A vector in service below the task priority is not what holds others back.
    (one.isr, one.ppr, one.irr) = (vec![0x31], 0x40, vec![0x35]);
    assert_eq!(found(&one)[1], Finding::Held(0x35, Obstacle::TaskPriority(0x40)));
    (one.isr, one.tpr, one.ppr, one.shadow) = (vec![], 0, 0, true);
    assert_eq!(found(&one)[1], Finding::Held(0x35, Obstacle::Shadow));
}

#[test]
fn why_a_line_is_not_heard() {
    let pin = |pin, masked, asserted, remote_irr| PinState {
        pin,
        vector: 0x30 + pin,
        masked,
        level: true,
        asserted,
        remote_irr,
        destination: 0,
    };
    let pins = [pin(4, true, true, false), pin(9, false, true, true), pin(10, true, false, false)];
    let first = PicState { irr: 0b0001_1011, isr: 0b0000_0100, imr: 0b0001_0000 };
    let second = PicState { irr: 0b0001_0000, isr: 0, imr: 0b0001_0000 };
    assert_eq!(
        lines(&pins, &[first, second]),
        [
            Finding::PinMasked(pins[0]),
            Finding::PinUnended(pins[1]),
            Finding::Pins(vec![pins[1]]),
            Finding::PicInService { line: 3, service: 2 },
            Finding::PicMasked(4),
            Finding::PicMasked(12),
        ]
    );
    assert_eq!(lines(&[], &[]), []);
}

#[test]
fn why_in_words() {
    let mut one = halted();
    one.interrupts_enabled = false;
    one.irr = vec![0x31];
    let pins = (0..24).map(|pin| PinState {
        pin,
        vector: 0x30 + pin,
        masked: false,
        level: false,
        asserted: false,
        remote_irr: false,
        destination: 0,
    });
    let text = why::why(&WaitStatus {
        name: "x".repeat(64),
        state: GuestState::Running,
        vcpus: vec![one],
        pins: pins.collect(),
        pics: vec![],
    });
    for part in [
        "vCPU 0: halted for 3.0 s, RIP 0xffffffff81000000,\n  IF 0, TPR 0x00",
        "\n  64-bit mode: f4 c3  hlt\n  exits: port_io=41933 halt=7\n",
        "only an NMI, INIT or a reset wakes it\n",
        "  vector 0x31 is requested, but RFLAGS.IF is 0\n",
        "  the timer, vector 0xec, is due in 4.0 ms\n",
        " 23->0x47\n",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.lines().all(|line| line.len() < 80), "{text}");
}

#[test]
fn what_happened() {
    let guest = Some(EventGuest { number: 2, name: "tiny".into() });
    let what = EventKind::Ended { reason: "triple fault".into(), crashed: true };
    let event = Event { seq: 7, time_ns: 1_500_000_000, guest, what };
    assert_eq!(
        events(&Events { events: vec![event], next: 7, lost: 3 }),
        "3 events were forgotten\n7       1.500000 guest 2 tiny has crashed: triple fault\n"
    );
    let exit = TracedExit {
        time_ns: Some(2_000_001_000),
        took_ns: Some(900),
        rip: 0x1000,
        reason: "cpuid".into(),
        detail: "leaf 0x1".into(),
    };
    let vcpus = vec![VcpuTrace { index: 0, total: 40, exits: vec![exit] }];
    assert_eq!(
        trace(&ExitTrace { name: "tiny".into(), vcpus }),
        "tiny vCPU 0: the last 1 of 40 exits\n      \
         2.000001 0x0000000000001000 cpuid           900 ns leaf 0x1\n"
    );
}

proptest! {
    #[test]
    fn no_figure_breaks_the_terminal(
        name in "[a-z]{1,64}",
        figures in proptest::collection::vec(any::<u64>(), 12),
        number in any::<u32>(),
    ) {
        let mut info = info(number, &name, GuestState::Crashed);
        (info.memory, info.starts, info.console_kept) = (figures[0], figures[1], figures[2]);
        (info.vcpus, info.weight, info.up_ns) = (64, 10_000, Some(figures[3]));
        let mut one = guest(number, figures[4] / 4, figures[5] / 4);
        one.name = name;
        one.memory.populated = figures[6];
        let mut now = snapshot(figures[7].max(1), 0, vec![one.clone()]);
        now.cpus[0].busy_ns = figures[8];
        let mut before = now.clone();
        before.time_ns = figures[9];
        before.guests[0].vcpus[0].times.run_ns = figures[10];
        let owner = MemoryOwner { number, name: one.name.clone(), memory: one.memory };
        let host = now.memory;
        let texts = [
            list(&[info]),
            top(&now, Some(&before)),
            top(&now, None),
            stats(&one),
            memory(&MemoryStatus { host, guests: vec![owner] }),
        ];
        for line in texts.iter().flat_map(|text| text.lines()) {
            prop_assert!(line.chars().count() < 80, "{line}");
        }
    }
}
