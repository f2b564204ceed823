//! A vCPU as the operator may see it: what it waits for, its last exits.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use chipset::fabric::{Lines, Pin};
use control::status::{
    CodeState, ExitStats, LvtState, PicState, PinState, TimerState, TracedExit, VcpuActivity,
    VcpuTrace, VcpuWait,
};
use core::fmt::Write;
use devices::lapic::{Lvt, LvtEntry, VectorSet};
use memory::walk::{Access, GuestPageTables, walk};
use memory::{GuestRam, MemoryError};
use vmm::backend::Backend;
use vmm::run::pic_asks;
use vmm::stats::{ExitCounts, Kind};
use vmm::vcpu::{Activity, Vcpu};
use vmm::vm::Vm;
use x86defs::addr::PAGE_SIZE;
use x86defs::control::CpuMode;
use x86defs::time::Scale;
use x86defs::{Cr0, GuestPhysAddr, GuestVirtAddr, Rflags, SegmentRegister, Width};

/// How long one exit's details may be, in characters.
const DETAIL: usize = 120;

/// Causes that keep `vcpu` from going on, when the host's TSC is `tsc`. It has not run for
/// `for_ns` nanoseconds. [`VcpuActivity::Ready`]: it has something to do, but no CPU.
pub(super) fn wait<M: GuestRam>(
    vcpu: &Vcpu<dyn Backend>,
    vm: &Vm<M>,
    tsc: u64,
    scale: Scale,
    for_ns: u64,
) -> VcpuWait {
    let lapic = &vcpu.core.lapic;
    let (irr, isr, _) = lapic.vectors();
    let timer = lapic.lvt(Lvt::Timer);
    let due = lapic.deadline().map(|ticks| vm.host_tsc_of(ticks, tsc).saturating_sub(tsc));
    let lvt = [
        ("lint0", Lvt::Lint0),
        ("lint1", Lvt::Lint1),
        ("thermal", Lvt::Thermal),
        ("performance", Lvt::Performance),
        ("error", Lvt::Error),
    ];
    VcpuWait {
        index: u32::try_from(vcpu.index).unwrap_or(u32::MAX),
        activity: match vcpu.activity {
            Activity::Running => VcpuActivity::Ready,
            Activity::Halted => VcpuActivity::Halted,
            Activity::WaitForStartup => VcpuActivity::WaitForStartup,
        },
        for_ns,
        rip: vcpu.rip(),
        code: code_at(vcpu, &vm.memory),
        exits: exits(&vcpu.core.counts),
        interrupts_enabled: vcpu.rflags().contains(Rflags::IF),
        shadow: vcpu.interrupt_shadow(),
        nmi_blocked: vcpu.nmi_blocked(),
        nmi_pending: vcpu.nmi_waits(),
        pic_pending: pic_asks(vcpu, vm),
        apic_enabled: lapic.apic_base() & APIC_ENABLED != 0 && lapic.svr().enabled(),
        tpr: lapic.tpr(),
        ppr: lapic.ppr(),
        irr: vectors(&irr),
        isr: vectors(&isr),
        timer: TimerState {
            vector: timer.vector(),
            masked: timer.masked(),
            due_in_ns: due.map(|ticks| scale.nanos(ticks)),
        },
        lvt: lvt.map(|(name, entry)| lvt_state(name, lapic.lvt(entry))).into(),
    }
}

/// IA32_APIC_BASE: global enable.
const APIC_ENABLED: u64 = 1 << 11;

fn vectors(set: &VectorSet) -> Vec<u8> {
    (0..=u8::MAX).filter(|vector| set.contains(*vector)).collect()
}

fn lvt_state(name: &str, entry: LvtEntry) -> LvtState {
    LvtState { name: name.to_string(), vector: entry.vector(), masked: entry.masked() }
}

/// The last exits of `vcpu`. The machine started at the tick `boot`.
pub(super) fn trace(vcpu: &Vcpu<dyn Backend>, boot: u64, scale: Scale) -> VcpuTrace {
    let exits = vcpu.core.recent.iter().map(|entry| {
        let mut detail = format!("{:x?}", entry.exit);
        if let Some((end, _)) = detail.char_indices().nth(DETAIL) {
            detail.truncate(end);
        }
        TracedExit {
            time_ns: entry.time.map(|time| scale.nanos(time.at.saturating_sub(boot))),
            took_ns: entry.time.map(|time| scale.nanos(time.took)),
            rip: entry.rip,
            reason: Kind::of(&entry.exit).name().to_string(),
            detail,
        }
    });
    VcpuTrace {
        index: u32::try_from(vcpu.index).unwrap_or(u32::MAX),
        total: vcpu.core.recent.total() as u64,
        exits: exits.collect(),
    }
}

/// Bytes of code that are shown from RIP on.
const CODE_BYTES: usize = 48;

/// The guest's page tables, looked at and left as they are.
struct Looking<'a, M> {
    memory: &'a M,
    /// The entries of the last walk, from the root on.
    entries: Vec<(GuestPhysAddr, u64)>,
}

impl<M: GuestRam> GuestPageTables for Looking<'_, M> {
    type Error = MemoryError;

    fn read_entry(&mut self, gpa: GuestPhysAddr, width: Width) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        if let Some(part) = bytes.get_mut(..width.bytes()) {
            self.memory.read(gpa, part)?;
        }
        let entry = u64::from_le_bytes(bytes);
        self.entries.push((gpa, entry));
        Ok(entry)
    }

    fn compare_exchange(
        &mut self,
        _: GuestPhysAddr,
        _: Width,
        current: u64,
        _: u64,
    ) -> Result<u64, MemoryError> {
        Ok(current)
    }
}

/// Counts of exits by kind, those that happened; the hot handler's by their own kinds.
fn exits(counts: &ExitCounts) -> Vec<ExitStats> {
    let kinds = counts.iter().filter(|(name, count)| *count != 0 && *name != "hot");
    kinds
        .map(|(name, count)| ExitStats {
            reason: name.to_string(),
            count,
            time_ns: None,
            estimated: false,
        })
        .collect()
}

/// Bytes of code that are shown of a vCPU that is only asked what it waits for.
const FEW_BYTES: usize = 8;
/// The longest instruction.
const INSTRUCTION: usize = 15;

/// Code of `vcpu` at RIP.
fn code_at<M: GuestRam>(vcpu: &Vcpu<dyn Backend>, memory: &M) -> CodeState {
    let mode = match vcpu.mode() {
        CpuMode::Real => "real mode",
        CpuMode::Virtual8086 => "virtual-8086 mode",
        CpuMode::Protected16 => "16-bit protected mode",
        CpuMode::Protected32 => "32-bit protected mode",
        CpuMode::Compat16 => "16-bit compatibility mode",
        CpuMode::Compat32 => "32-bit compatibility mode",
        CpuMode::Long64 => "64-bit mode",
    };
    let mut state = CodeState { mode: mode.to_string(), ..CodeState::default() };
    let mut buffer = [0; INSTRUCTION];
    let (.., translated) = translate(vcpu, memory);
    let read = translated.and_then(|gpa| {
        let part = buffer.get_mut(..bytes_in_page(gpa).min(INSTRUCTION)).unwrap_or_default();
        memory.read(gpa, part).map_err(|error| error.to_string())?;
        Ok(part)
    });
    match read {
        Ok(bytes) => {
            let few: Vec<_> = bytes.iter().take(FEW_BYTES).map(|b| format!("{b:02x}")).collect();
            state.bytes = few.join(" ");
            let mut listing = String::new();
            // Writing to a string does not fail.
            let _ = x86emu::disassemble(bytes, vcpu.mode(), vcpu.rip(), &mut listing);
            let first = listing.lines().next().and_then(|line| line.trim().split_once("  "));
            state.instruction = first.map_or("no instruction", |(_, text)| text).to_string();
        }
        Err(error) => state.instruction = format!("no code there: {error}"),
    }
    state
}

/// Bytes from `gpa` to the end of its page.
fn bytes_in_page(gpa: GuestPhysAddr) -> usize {
    usize::try_from(PAGE_SIZE - (gpa.as_u64() & (PAGE_SIZE - 1))).unwrap_or(0)
}

/// The entries of a walk, and what it leads to.
type Walked = (Vec<(GuestPhysAddr, u64)>, Result<GuestPhysAddr, String>);

/// How RIP translates.
fn translate<M: GuestRam>(vcpu: &Vcpu<dyn Backend>, memory: &M) -> Walked {
    let linear = vcpu.linear(SegmentRegister::Cs, vcpu.rip());
    let mut looking = Looking { memory, entries: Vec::new() };
    let translated = if vcpu.cr0().contains(Cr0::PG) {
        let access = Access::Fetch;
        walk(&vcpu.walk_config(), &mut looking, GuestVirtAddr::new(linear), access)
            .map(|translation| translation.gpa)
            .map_err(|error| format!("{error:?}"))
    } else {
        Ok(GuestPhysAddr::new(linear & 0xffff_ffff))
    };
    (looking.entries, translated)
}

/// Writes down how RIP translates, entry by entry, and the code that is there.
///
/// # Errors
/// The errors of `out`.
pub(super) fn code<M: GuestRam>(
    vcpu: &Vcpu<dyn Backend>,
    memory: &M,
    out: &mut dyn Write,
) -> core::fmt::Result {
    let rip = vcpu.rip();
    let linear = vcpu.linear(SegmentRegister::Cs, rip);
    let (entries, translated) = translate(vcpu, memory);
    write!(out, "  RIP {linear:#x}")?;
    for (gpa, entry) in &entries {
        write!(out, " -> [{:#x}] {entry:#x}", gpa.as_u64())?;
    }
    let gpa = match translated {
        Ok(gpa) => gpa,
        Err(error) => return writeln!(out, ": {error}"),
    };
    writeln!(out, " -> guest-physical {:#x}", gpa.as_u64())?;
    let mut bytes = [0; CODE_BYTES];
    let part = bytes.get_mut(..bytes_in_page(gpa).min(CODE_BYTES)).unwrap_or_default();
    if let Err(error) = memory.read(gpa, part) {
        return writeln!(out, "  no code there: {error}");
    }
    x86emu::disassemble(part, vcpu.mode(), rip, out)
}

/// The interrupt controllers of a guest's board: pins that are asserted or open, and the 8259s.
pub(super) fn controllers(lines: &Lines) -> (Vec<PinState>, Vec<PicState>) {
    let pin = |pin: &Pin| PinState {
        pin: pin.number,
        vector: pin.vector,
        masked: pin.masked,
        level: pin.level,
        asserted: pin.asserted,
        remote_irr: pin.remote_irr,
        destination: pin.destination,
    };
    let pic = |[irr, isr, imr]: [u8; 3]| PicState { irr, isr, imr };
    (lines.pins.iter().map(pin).collect(), lines.pics.map(pic).into())
}
