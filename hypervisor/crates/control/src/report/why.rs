//! Why a guest does nothing: what each vCPU waits for, and what stands in the
//! way of the interrupt that would wake it.
//!
//! [`vcpu`] and [`lines`] draw the conclusions, [`why`] writes them down
//! (SDM: "Interrupt, Task, and Processor Priority", "Interrupt Acceptance for
//! Fixed Interrupts").

use crate::report::table::cut;
use crate::report::units::duration;
use crate::status::{
    CodeState, GuestState, PicState, PinState, VcpuActivity, VcpuWait, WaitStatus,
};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// Characters of a guest's name in a heading.
const NAME: usize = 20;

/// Something that keeps a requested vector from its vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// RFLAGS.IF is clear.
    InterruptFlag,
    /// The instruction behind STI or MOV SS is still to come.
    Shadow,
    /// This task priority.
    TaskPriority(u8),
    /// This vector is in service.
    InService(u8),
}

/// Something that was found out about a vCPU, or about the interrupt lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The guest is in this state, and its vCPUs don't run for that.
    Guest(GuestState),
    /// It is on a CPU.
    Running,
    /// It would run if it got a CPU.
    Ready,
    /// It waits for a start-up IPI.
    WaitForStartup,
    /// Halted, and nothing but an NMI, INIT or a reset can wake it.
    Deaf,
    /// Halted, with NMIs blocked too: only INIT or a reset can wake it.
    StoneDeaf,
    /// Its local APIC is off.
    ApicOff,
    /// This vector was requested and is held back.
    Held(u8, Obstacle),
    /// This vector was requested and is about to be delivered.
    Due(u8),
    /// An NMI is pending; held back while one is handled.
    Nmi {
        /// One is being handled.
        held: bool,
    },
    /// The 8259s ask for an interrupt; `None`: it is about to be delivered.
    Pic(Option<Obstacle>),
    /// The timer is due.
    Timer {
        /// Its vector.
        vector: u8,
        /// Nanoseconds until then.
        in_ns: u64,
        /// Its interrupt is masked.
        masked: bool,
    },
    /// The timer does not run.
    NoTimer,
    /// These entries of the local vector table are masked.
    Masked(Vec<String>),
    /// The I/O APIC's pin is asserted, but masked.
    PinMasked(PinState),
    /// The I/O APIC's pin is asserted, but its last interrupt has not ended.
    PinUnended(PinState),
    /// Nothing is asserted; interrupts can come from these pins.
    Pins(Vec<PinState>),
    /// A line of the 8259s is requested, but masked.
    PicMasked(u8),
    /// A line of the 8259s is requested, but an interrupt in service is before it.
    PicInService {
        /// The line.
        line: u8,
        /// The line in service.
        service: u8,
    },
}

/// The obstacle in the way of this vector.
fn obstacle(vcpu: &VcpuWait, vector: u8) -> Option<Obstacle> {
    let class = vector >> 4;
    let service = vcpu.isr.iter().copied().max();
    if class <= vcpu.ppr >> 4 {
        // The processor priority is the higher one of the task priority and the vector in service.
        return Some(match service {
            Some(service) if service >> 4 >= vcpu.tpr >> 4 => Obstacle::InService(service),
            _ => Obstacle::TaskPriority(vcpu.tpr),
        });
    }
    gate(vcpu)
}

/// The obstacle in the way of all interrupts.
const fn gate(vcpu: &VcpuWait) -> Option<Obstacle> {
    match (vcpu.interrupts_enabled, vcpu.shadow) {
        (false, _) => Some(Obstacle::InterruptFlag),
        (true, true) => Some(Obstacle::Shadow),
        (true, false) => None,
    }
}

/// Findings about a vCPU of a guest in this state.
#[must_use]
pub fn vcpu(vcpu: &VcpuWait, state: GuestState) -> Vec<Finding> {
    let mut found = Vec::new();
    if !matches!(state, GuestState::Running | GuestState::Stopping) {
        found.push(Finding::Guest(state));
    }
    match vcpu.activity {
        VcpuActivity::Running => found.push(Finding::Running),
        VcpuActivity::Ready => found.push(Finding::Ready),
        VcpuActivity::WaitForStartup => {
            found.push(Finding::WaitForStartup);
            return found;
        }
        VcpuActivity::Halted if !vcpu.interrupts_enabled => {
            found.push(if vcpu.nmi_blocked { Finding::StoneDeaf } else { Finding::Deaf });
        }
        VcpuActivity::Halted => {}
    }
    if vcpu.nmi_pending {
        found.push(Finding::Nmi { held: vcpu.nmi_blocked });
    }
    if vcpu.pic_pending {
        found.push(Finding::Pic(gate(vcpu)));
    }
    if !vcpu.apic_enabled {
        found.push(Finding::ApicOff);
        return found;
    }
    let mut requested = vcpu.irr.clone();
    requested.sort_unstable();
    for vector in requested.into_iter().rev() {
        found.push(
            obstacle(vcpu, vector).map_or(Finding::Due(vector), |why| Finding::Held(vector, why)),
        );
    }
    let timer = &vcpu.timer;
    found.push(match timer.due_in_ns {
        Some(in_ns) => Finding::Timer { vector: timer.vector, in_ns, masked: timer.masked },
        None => Finding::NoTimer,
    });
    let masked: Vec<String> =
        vcpu.lvt.iter().filter(|entry| entry.masked).map(|entry| entry.name.clone()).collect();
    if !masked.is_empty() {
        found.push(Finding::Masked(masked));
    }
    found
}

/// Findings about the guest's interrupt lines.
#[must_use]
pub fn lines(pins: &[PinState], pics: &[PicState]) -> Vec<Finding> {
    let mut found = Vec::new();
    for pin in pins.iter().filter(|pin| pin.asserted) {
        if pin.masked {
            found.push(Finding::PinMasked(*pin));
        } else if pin.level && pin.remote_irr {
            found.push(Finding::PinUnended(*pin));
        }
    }
    let open: Vec<PinState> = pins.iter().filter(|pin| !pin.masked).copied().collect();
    if !open.is_empty() {
        found.push(Finding::Pins(open));
    }
    for (base, pic) in [0_u8, 8].into_iter().zip(pics) {
        let service = (0..8_u8).find(|line| pic.isr >> line & 1 != 0);
        for line in (0..8_u8).filter(|line| pic.irr >> line & 1 != 0) {
            if pic.imr >> line & 1 != 0 {
                found.push(Finding::PicMasked(base + line));
            } else if let Some(service) = service.filter(|service| *service <= line) {
                found.push(Finding::PicInService { line: base + line, service: base + service });
            }
        }
    }
    found
}

/// Why a guest does nothing, in words.
#[must_use]
pub fn why(snapshot: &WaitStatus) -> String {
    let mut text = String::new();
    let name = cut(&snapshot.name, NAME);
    for one in &snapshot.vcpus {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name} vCPU {}: {}", one.index, Headline(one));
        code(one, &mut text);
        for finding in vcpu(one, snapshot.state) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {finding}");
        }
    }
    let found = lines(&snapshot.pins, &snapshot.pics);
    if !found.is_empty() {
        text.push_str("interrupt lines:\n");
        for finding in found {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {finding}");
        }
    }
    text
}

/// Writes down what the vCPU executes, and its exits by kind, the most frequent first.
fn code(vcpu: &VcpuWait, text: &mut String) {
    let CodeState { mode, bytes, instruction } = &vcpu.code;
    if !mode.is_empty() {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "  {mode}: {bytes}{}{instruction}",
            if bytes.is_empty() { "" } else { "  " }
        );
    }
    if vcpu.exits.is_empty() {
        return;
    }
    let mut exits: Vec<_> = vcpu.exits.iter().collect();
    exits.sort_by_key(|exit| core::cmp::Reverse(exit.count));
    text.push_str("  exits:");
    for exit in exits.into_iter().take(EXITS) {
        // Writing to a string does not fail.
        let _ = write!(text, " {}={}", exit.reason, exit.count);
    }
    text.push('\n');
}

/// Kinds of exits that are shown: they fit the terminal's line.
const EXITS: usize = 5;

struct Headline<'a>(&'a VcpuWait);

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0.activity {
            VcpuActivity::Running => "runs",
            VcpuActivity::Ready => "ready",
            VcpuActivity::Halted => "halted",
            VcpuActivity::WaitForStartup => "not started",
        };
        let flag = u8::from(self.0.interrupts_enabled);
        write!(f, "{what} for {}, RIP {:#x},\n  ", duration(self.0.for_ns), self.0.rip)?;
        write!(f, "IF {flag}, TPR {:#04x}, PPR {:#04x}", self.0.tpr, self.0.ppr)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InterruptFlag => f.write_str("RFLAGS.IF is 0"),
            Self::Shadow => f.write_str("the interrupt shadow of STI or MOV SS"),
            Self::TaskPriority(tpr) => write!(f, "the task priority is {tpr:#04x}"),
            Self::InService(vector) => write!(f, "vector {vector:#04x} is in service"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(GuestState::Paused) => f.write_str("the guest is paused: resume it"),
            Self::Guest(state) => write!(f, "the guest is in state \"{}\"", state.as_str()),
            Self::Running => f.write_str("it is on a CPU"),
            Self::Ready => f.write_str("it waits for a CPU"),
            Self::WaitForStartup => f.write_str("it waits for a start-up IPI"),
            Self::Deaf => f.write_str("halted with IF 0: only an NMI, INIT or a reset wakes it"),
            Self::StoneDeaf => {
                f.write_str("halted with IF 0 in an NMI handler: only INIT or a reset wakes it")
            }
            Self::ApicOff => f.write_str("its local APIC is off"),
            Self::Held(vector, why) => write!(f, "vector {vector:#04x} is requested, but {why}"),
            Self::Due(vector) => write!(f, "vector {vector:#04x} is about to be delivered"),
            Self::Nmi { held: false } => f.write_str("an NMI is about to be delivered"),
            Self::Nmi { held: true } => f.write_str("an NMI is pending, but one is being handled"),
            Self::Pic(None) => f.write_str("the 8259s' interrupt is about to be delivered"),
            Self::Pic(Some(why)) => write!(f, "the 8259s ask for an interrupt, but {why}"),
            Self::Timer { vector, in_ns, masked: false } => {
                write!(f, "the timer, vector {vector:#04x}, is due in {}", duration(*in_ns))
            }
            Self::Timer { vector, in_ns, masked: true } => write!(
                f,
                "the timer, vector {vector:#04x}, is due in {}, but masked",
                duration(*in_ns)
            ),
            Self::NoTimer => f.write_str("no timer of its local APIC runs"),
            Self::Masked(names) => write!(f, "masked in its local APIC: {}", names.join(", ")),
            Self::PinMasked(pin) => write!(
                f,
                "I/O APIC pin {}, vector {:#04x}, is asserted, but masked",
                pin.pin, pin.vector
            ),
            Self::PinUnended(pin) => write!(
                f,
                "I/O APIC pin {} is asserted, but vector {:#04x} has not ended",
                pin.pin, pin.vector
            ),
            Self::Pins(pins) => {
                f.write_str("open in the I/O APIC:")?;
                for (index, pin) in pins.iter().enumerate() {
                    // Six in a row fit the terminal.
                    let before = if index != 0 && index % 6 == 0 { "\n    " } else { " " };
                    write!(f, "{before}{}->{:#04x}", pin.pin, pin.vector)?;
                }
                Ok(())
            }
            Self::PicMasked(line) => write!(f, "8259 line {line} is requested, but masked"),
            Self::PicInService { line, service } => {
                write!(f, "8259 line {line} is requested, but line {service} is in service")
            }
        }
    }
}
