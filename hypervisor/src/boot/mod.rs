//! The boot, stage by stage: each is a function whose result the next one
//! needs, so that no other order compiles. Each says one line.

mod acpi;
mod smp;

use crate::cpu::tables::TrapStacks;
use crate::cpu::{self, apic, percpu, power, tables, tsc};
use crate::drivers::{clocks, framebuffer, rtc, serial};
use crate::error::HostError;
use crate::hw::{self, Extension, VendorCpu, svm, vmx};
use crate::mm::{self, Handover, Unsealed, layout};
use crate::{journal, machine, operator};
use acpi::Firmware;
use bootloader_api::BootInfo;
use bootloader_api::config::{BootloaderConfig, Mapping};
use config::bundle::Bundle;
use timebase::Look;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86defs::cpuid::Guards;

/// Requests to the bootloader: the addresses to put things at.
pub static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 128 << 10;
    config.mappings.kernel_base = Mapping::FixedAddress(layout::IMAGE);
    config.mappings.kernel_stack = Mapping::FixedAddress(layout::BOOT_STACK);
    config.mappings.boot_info = Mapping::FixedAddress(layout::BOOT_INFO);
    config.mappings.framebuffer = Mapping::FixedAddress(layout::FRAMEBUFFER);
    config.mappings.ramdisk_memory = Mapping::FixedAddress(layout::RAMDISK);
    config.mappings.physical_memory = Some(Mapping::FixedAddress(layout::BOOT_WINDOW));
    config
};

/// Boots the machine and runs its guests. Never returns.
pub fn start(info: &'static mut BootInfo) -> ! {
    clocks::begin();
    rtc::look();
    journal::init();
    let serial = serial::CONSOLE.init();
    if let Some(screen) = info.framebuffer.take() {
        framebuffer::init(screen);
    }
    stage(
        "Steward",
        format_args!(
            "version {}, {}",
            env!("CARGO_PKG_VERSION"),
            if serial { "console on COM1" } else { "no serial port found" }
        ),
    );
    let error = match bring_up(info) {
        Ok((ready, Extension::Svm)) => guests::<svm::Cpu>(ready),
        Ok((ready, Extension::Vmx)) => guests::<vmx::Cpu>(ready),
        Err(error) => Err(error),
    };
    let Err(error) = error;
    journal::refuse(&error)
}

/// Says that a stage is done. Between stages the real-time clock is looked at: the more often,
/// the better is it known when a second begins.
fn stage(name: &str, words: core::fmt::Arguments<'_>) {
    journal::stage(name, words);
    rtc::look();
}

/// Results of the boot before virtualization is switched on.
struct Ready {
    handover: Handover,
    firmware: Firmware,
    bundle: Bundle<'static>,
}

fn bring_up(info: &'static mut BootInfo) -> Result<(Ready, Extension), HostError> {
    let handover = memory(info)?;
    let firmware = acpi::read(handover.rsdp);
    clocks::found(firmware.pm_timer, firmware.hpet)?;
    rtc::look();
    let bundle = bundle(&handover)?;
    let extension = processor()?;
    clocks::rough()?;
    rtc::look();
    apic::init(mm::map_device)?;
    serial_lines();
    Ok((Ready { handover, firmware, bundle }, extension))
}

/// Switches virtualization on, starts the other CPUs and runs the guests.
fn guests<C: VendorCpu>(ready: Ready) -> Result<core::convert::Infallible, HostError> {
    let Ready { handover, firmware, bundle } = ready;
    let cpu: C = virtualization()?;
    match firmware.soft_off {
        Some(how) => power::set_soft_off(how),
        None => log::info!("firmware does not say how to switch the machine off"),
    }
    let count = smp::start(&handover, &firmware.cpus, machine::join::<C>)?;
    stage("processors", format_args!("{count} running"));
    clocks()?;
    machine::run(cpu, count, |machine| operator::begin(machine, &bundle))
}

fn memory(info: &'static mut BootInfo) -> Result<Handover, HostError> {
    let handover = mm::init(info)?;
    let mm::FrameCounts { free, total, .. } = mm::frame_counts();
    stage("memory", format_args!("{} MiB, {} MiB free for guests", total / 256, free / 256));
    Ok(handover)
}

fn bundle(handover: &Handover) -> Result<Bundle<'static>, HostError> {
    let bundle = Bundle::open_piecewise(handover.ramdisk, || {
        rtc::look();
    })?;
    let manifest = bundle.manifest();
    journal::set_exit(manifest.host.exit);
    if let Some(key) = manifest.host.end_key {
        journal::set_key(key);
    }
    if let Ok(level) = manifest.host.log.as_str().parse() {
        journal::set_level(level);
    }
    stage(
        "bundle",
        format_args!(
            "{} guest(s), {} file(s), {} KiB",
            manifest.guests.len(),
            manifest.files.len(),
            handover.ramdisk.len() / 1024
        ),
    );
    Ok(bundle)
}

fn processor() -> Result<Extension, HostError> {
    let stacks = TrapStacks {
        double_fault: mm::map_stack(4)?,
        nmi: mm::map_stack(4)?,
        machine_check: mm::map_stack(4)?,
    };
    processor_tables(0, stacks, table_memory()?);
    let extension = hw::detect()?;
    stage("processor", format_args!("{}", cpu::brand()));
    if let Some(missing) = Guards::of(&cpu::cpuid_checked).warning() {
        stage("processor", format_args!("{missing}"));
    }
    Ok(extension)
}

/// Memory for a CPU's descriptor tables.
fn table_memory() -> Result<Unsealed, HostError> {
    Unsealed::new(tables::BYTES, "a CPU's descriptor tables")
}

/// Gives the calling CPU, number `index`, its descriptor tables, in `memory`, and the
/// control bits that the hypervisor runs with.
fn processor_tables(index: usize, stacks: TrapStacks, memory: Unsealed) {
    let (memory, seal) = memory.split();
    tables::install(stacks, memory);
    seal.seal();
    percpu::claim(index);
    mm::protect();
    // Guests' vector registers are saved, and read and written where an instruction is emulated.
    let always = Cr4Flags::MACHINE_CHECK_EXCEPTION | Cr4Flags::OSFXSR;
    // SAFETY: every 64-bit CPU has machine checks, which have a handler now, and SSE.
    unsafe { Cr4::write(Cr4::read() | always) };
    // Guests' extended state passes through the CPU: XSETBV must work here.
    if cpu::cpuid(1, 0).ecx & 1 << 26 != 0 {
        // SAFETY: CPUID offers XSAVE; nothing here uses the state it manages.
        unsafe { Cr4::write(Cr4::read() | Cr4Flags::OSXSAVE) };
    }
    let cr0 = (Cr0::read() | Cr0Flags::WRITE_PROTECT | Cr0Flags::NUMERIC_ERROR)
        - Cr0Flags::CACHE_DISABLE
        - Cr0Flags::NOT_WRITE_THROUGH
        // Guests' vector registers are read and written by the CPU's instructions.
        - Cr0Flags::EMULATE_COPROCESSOR
        - Cr0Flags::TASK_SWITCHED;
    // SAFETY: protection and paging stay as they are; write protection is on
    // as it was in the bootloader.
    unsafe { Cr0::write(cr0) };
}

fn serial_lines() {
    serial::CONSOLE.enable_interrupts();
    if serial::CONTROL.init() {
        serial::CONTROL.enable_interrupts();
        stage(
            "control",
            format_args!("control line on COM2, without authentication: who reaches it commands"),
        );
    }
}

/// The last thing before the guests: the longer the clocks were watched, the better.
fn clocks() -> Result<(), HostError> {
    apic::calibrate()?;
    let (khz, how) = clocks::settle()?;
    // The real-time clock can't be read while it changes, for two milliseconds.
    for _ in 0..3 {
        if rtc::look() != Look::NoDate {
            break;
        }
        tsc::wait_us(1000);
    }
    stage("clocks", format_args!("TSC at {}.{:03} MHz {how}", khz / 1000, khz % 1000));
    if !tsc::is_invariant() {
        log::warn!(
            "this CPU's time-stamp counter may change its rate (CPUID 8000_0007): guests are not \
             told that their clock is stable"
        );
    }
    Ok(())
}

fn virtualization<C: VendorCpu>() -> Result<C, HostError> {
    if !x86emu::warm_up() {
        log::warn!("the instruction decoder failed its own check");
    }
    rtc::look();
    let cpu = C::enable()?;
    stage("virtualization", format_args!("{}", cpu.describe()));
    Ok(cpu)
}
