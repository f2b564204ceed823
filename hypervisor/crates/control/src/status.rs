//! The image's report of itself when it is asked: plain data, filled in one go, shown by
//! [`report`](crate::report) or sent as JSON.
//!
//! Times are nanoseconds, memory is bytes; both only grow where they are called
//! totals. A total counts from the machine's start, for a guest from its own
//! last start. In JSON, fields that are `None` are left out, and a reader has to
//! bear fields that it does not know.

use crate::account::Account;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Stage of a guest's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Known, never started.
    Defined,
    /// It takes memory, is loaded, gets its vCPUs.
    Starting,
    /// It runs.
    Running,
    /// Its vCPUs and its time stand still.
    Paused,
    /// Its power button was pressed.
    Stopping,
    /// It has ended; all that it had is being given back.
    Clearing,
    /// It has ended, and holds nothing.
    Ended,
    /// It has ended by a failure, and holds nothing.
    Crashed,
    /// It has ended, holds nothing, and will be started again.
    Waiting,
}

impl GuestState {
    /// The state in one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Defined => "defined",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Clearing => "clearing",
            Self::Ended => "ended",
            Self::Crashed => "crashed",
            Self::Waiting => "waiting",
        }
    }
}

/// A guest in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// Its number, from 1; it keeps it until it is deleted.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its UUID, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Stage of its life.
    pub state: GuestState,
    /// Whether the terminal shows its console.
    pub attached: bool,
    /// Its RAM.
    pub memory: u64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its weight in the scheduler.
    pub weight: u32,
    /// Percent of one CPU that it gets at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u32>,
    /// How long it has been running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_ns: Option<u64>,
    /// How often it was started.
    pub starts: u64,
    /// Why it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<String>,
    /// Bytes of its console that wait to be looked at.
    pub console_kept: u64,
    /// Bytes of its console that were dropped since somebody looked.
    pub console_dropped: u64,
}

/// How a vCPU, or all of a guest, spent its time, as totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// On a CPU.
    pub run_ns: u64,
    /// Ready, but without a CPU: its steal time.
    pub ready_ns: u64,
    /// Waiting for an interrupt.
    pub wait_ns: u64,
    /// Ready, in a paused guest.
    #[serde(default)]
    pub paused_ns: u64,
}

impl Times {
    /// The sum of the two times.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_add(other.run_ns),
            ready_ns: self.ready_ns.saturating_add(other.ready_ns),
            wait_ns: self.wait_ns.saturating_add(other.wait_ns),
            paused_ns: self.paused_ns.saturating_add(other.paused_ns),
        }
    }

    /// Growth since `earlier`: zero for a time that is shorter now, as the guest was started anew.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            ready_ns: self.ready_ns.saturating_sub(earlier.ready_ns),
            wait_ns: self.wait_ns.saturating_sub(earlier.wait_ns),
            paused_ns: self.paused_ns.saturating_sub(earlier.paused_ns),
        }
    }
}

/// Exits of one kind, as totals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStats {
    /// The kind: a name of `ExitCounts`.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// How long they took; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ns: Option<u64>,
    /// The time was not measured: it is the count times the benchmark's figure, a tick for
    /// each instruction (`HotCosts`).
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub estimated: bool,
}

/// Statistics of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Its place among the guest's vCPUs.
    pub index: u32,
    /// How it spent its time.
    pub times: Times,
    /// The longest that it was ready before it got a CPU.
    pub longest_ready_ns: u64,
    /// How often it changed its CPU.
    pub migrations: u64,
    /// The CPU that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Its exits by kind; kinds without one may be left out.
    pub exits: Vec<ExitStats>,
    /// Time on CPUs by what it was spent on, up to when the vCPU last left one.
    #[serde(default)]
    pub spent: SpentTimes,
}

/// Time on CPUs by what it was spent on, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentTimes {
    /// In the guest.
    pub guest_ns: u64,
    /// In exits that the hot handler served: an estimate, see [`ExitStats::estimated`].
    pub hot_ns: u64,
    /// In other exits.
    pub exits_ns: u64,
    /// To get a CPU and to give it up.
    pub switches_ns: u64,
}

impl VcpuStats {
    /// All its exits.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits.iter().fold(0, |sum, exit| sum.saturating_add(exit.count))
    }
}

/// Something that was counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its name: small letters, digits and underscores.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// Statistics of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its UUID, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Stage of its life.
    pub state: GuestState,
    /// Its share of the machine's memory.
    pub memory: GuestMemory,
    /// Time of the hypervisor's services that was charged to it, and of zeroing memory ahead for
    /// it.
    pub service_ns: u64,
    /// Of that: zeroing ahead since its first instruction.
    #[serde(default)]
    pub zeroing_ns: u64,
    /// How long its cap kept it from running.
    pub throttled_ns: u64,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuStats>,
    /// Other counts, such as the paravirtual interfaces' uses.
    #[serde(default)]
    pub counters: Vec<Counter>,
}

impl GuestStats {
    /// How all its vCPUs spent their time.
    #[must_use]
    pub fn times(&self) -> Times {
        self.vcpus.iter().fold(Times::default(), |sum, vcpu| sum.plus(vcpu.times))
    }

    /// Account of its time since its first instruction, in nanoseconds.
    #[must_use]
    pub fn account(&self) -> Account {
        let ahead = Account { services: self.zeroing_ns, ..Account::default() };
        self.vcpus.iter().fold(ahead, |sum, VcpuStats { spent, .. }| {
            sum.plus(Account {
                guest: spent.guest_ns,
                hot: spent.hot_ns,
                exits: spent.exits_ns,
                switches: spent.switches_ns,
                services: 0,
            })
        })
    }

    /// All exits of its vCPUs.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.vcpus.iter().fold(0, |sum, vcpu| sum.saturating_add(vcpu.exits()))
    }
}

/// Statistics of the machine and of guests: of one that was asked for, or of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// When, since the machine's start.
    pub time_ns: u64,
    /// The machine's CPUs.
    pub cpus: Vec<CpuInfo>,
    /// The machine's memory.
    pub memory: HostMemory,
    /// The guests.
    pub guests: Vec<GuestStats>,
}

/// A CPU of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuInfo {
    /// Its number here.
    pub index: u32,
    /// Its local APIC's ID.
    pub apic_id: u32,
    /// Whether it takes part.
    pub online: bool,
    /// Time that it ran something, as a total.
    pub busy_ns: u64,
    /// Time that it was idle, as a total.
    pub idle_ns: u64,
    /// How many vCPUs and services sleep on it until a moment, but for the one that answers.
    #[serde(default)]
    pub timers: u32,
    /// The vCPU that it runs, as `GUEST/VCPU`, or the name of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
}

/// The machine's CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusStatus {
    /// Their model, as CPUID names it.
    pub model: String,
    /// The technology that virtualizes them, with the parts of it that are used.
    pub virtualization: String,
    /// Ticks of the TSC in a second.
    pub tsc_hz: u64,
    /// The longest step of the operator since this was last asked for, in nanoseconds: so long it
    /// kept the first CPU from everybody else.
    pub longest_step_ns: u64,
    /// The CPUs.
    pub cpus: Vec<CpuInfo>,
}

/// The machine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// All that the frame table knows.
    pub total: u64,
    /// Free, promised or not.
    pub free: u64,
    /// Of the free: promised to guests that have not touched it yet.
    pub reserved: u64,
    /// Of the free: zeroed already.
    pub zeroed: u64,
    /// In guests' stocks: zeroed ahead, not yet theirs.
    pub stock: u64,
    /// The hypervisor's own tables, stacks and code.
    pub hypervisor: u64,
    /// Used of the heap.
    pub heap_used: u64,
    /// The heap's size.
    pub heap_size: u64,
}

/// A guest's share of the machine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// RAM that it was promised.
    pub ram: u64,
    /// Of that: RAM that it has touched.
    pub populated: u64,
    /// Its nested page tables, and the host's tables of its window.
    pub tables: u64,
    /// Its other costs: vCPUs, device models, rings.
    pub overhead: u64,
}

/// A guest that has memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryOwner {
    /// The guest's number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its share of the memory.
    pub memory: GuestMemory,
}

/// The machine's memory and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// The machine's memory.
    pub host: HostMemory,
    /// The guests' shares.
    pub guests: Vec<MemoryOwner>,
}

/// The state of vCPUs in text, as crash reports show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// The guest's name.
    pub name: String,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuDump>,
}

/// The state of a vCPU in text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuDump {
    /// Its place among the guest's vCPUs.
    pub index: u32,
    /// Lines.
    pub text: String,
}

/// The last exits of vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitTrace {
    /// The guest's name.
    pub name: String,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuTrace>,
}

/// The last exits of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuTrace {
    /// Its place among the guest's vCPUs.
    pub index: u32,
    /// How many there were, ever.
    pub total: u64,
    /// The last of them, the oldest first.
    pub exits: Vec<TracedExit>,
}

/// An exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedExit {
    /// When, since the machine's start; `None` where that is not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ns: Option<u64>,
    /// How long it took; `None` where that is not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ns: Option<u64>,
    /// The guest's RIP.
    #[serde(with = "hex")]
    pub rip: u64,
    /// Its kind: a name of `ExitCounts`.
    pub reason: String,
    /// Its details.
    pub detail: String,
}

/// Reasons why a guest's vCPUs wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitStatus {
    /// The guest's name.
    pub name: String,
    /// Stage of its life.
    pub state: GuestState,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuWait>,
    /// Pins of its I/O APIC that are asserted, or for which an interrupt could come.
    pub pins: Vec<PinState>,
    /// Its 8259s, the first and the second.
    pub pics: Vec<PicState>,
}

/// Activity of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VcpuActivity {
    /// It is on a CPU.
    Running,
    /// It would run if it got a CPU.
    Ready,
    /// HLT.
    Halted,
    /// INIT: it waits for a start-up IPI.
    WaitForStartup,
}

/// Reasons that keep a vCPU from going on, as its registers have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuWait {
    /// Its place among the guest's vCPUs.
    pub index: u32,
    /// Whether it runs, is ready, or waits.
    pub activity: VcpuActivity,
    /// How long it has been so.
    pub for_ns: u64,
    /// Its RIP.
    #[serde(with = "hex")]
    pub rip: u64,
    /// Code at RIP.
    #[serde(default)]
    pub code: CodeState,
    /// Exits of the vCPU since its guest's start, by kind, those that happened.
    #[serde(default)]
    pub exits: Vec<ExitStats>,
    /// RFLAGS.IF: it takes interrupts.
    pub interrupts_enabled: bool,
    /// The instruction after STI or MOV SS is still to come.
    pub shadow: bool,
    /// It handles an NMI.
    pub nmi_blocked: bool,
    /// An NMI is pending.
    pub nmi_pending: bool,
    /// The 8259s ask for an interrupt, and this vCPU would take it.
    pub pic_pending: bool,
    /// Its local APIC is enabled, in IA32_APIC_BASE and the spurious-vector register.
    pub apic_enabled: bool,
    /// The task priority.
    pub tpr: u8,
    /// The processor priority.
    pub ppr: u8,
    /// Vectors that were requested.
    pub irr: Vec<u8>,
    /// Vectors that are in service.
    pub isr: Vec<u8>,
    /// The timer of its local APIC.
    pub timer: TimerState,
    /// The other entries of its local vector table.
    pub lvt: Vec<LvtState>,
}

/// Code that a vCPU executes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeState {
    /// The CPU's mode, in words.
    pub mode: String,
    /// The bytes at RIP, in hexadecimal; empty where none can be read.
    pub bytes: String,
    /// The first instruction there, or why there is none.
    pub instruction: String,
}

/// A local APIC's timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerState {
    /// Its vector.
    pub vector: u8,
    /// Its interrupt is masked.
    pub masked: bool,
    /// When it is due; `None` if it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_in_ns: Option<u64>,
}

/// An entry of the local vector table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LvtState {
    /// Its name: `lint0`, `lint1`, `thermal`, `performance`, `error`.
    pub name: String,
    /// Its vector.
    pub vector: u8,
    /// It is masked.
    pub masked: bool,
}

/// A pin of the I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinState {
    /// Its number.
    pub pin: u8,
    /// Its vector.
    pub vector: u8,
    /// Its interrupt is masked.
    pub masked: bool,
    /// Level-triggered.
    pub level: bool,
    /// The device asks for an interrupt.
    pub asserted: bool,
    /// An interrupt was accepted and has not ended (level-triggered pins).
    pub remote_irr: bool,
    /// The APIC ID, or the set, that it is sent to.
    pub destination: u32,
}

/// An 8259.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Requested, a bit for each line.
    pub irr: u8,
    /// In service.
    pub isr: u8,
    /// Masked.
    pub imr: u8,
}

/// Addresses in JSON: a text such as `"0xffffffff81000000"`, since many readers
/// of JSON lose bits of a large number.
mod hex {
    use alloc::format;
    use alloc::string::String;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:#x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&text), &"0x and digits"))
    }
}
