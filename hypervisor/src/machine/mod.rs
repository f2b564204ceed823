//! The machine at work: its guests, the scheduler that shares the CPUs between
//! them, and the loop of each CPU.
//!
//! Key types: [`World`], which all CPUs share; [`Machine`], what the scheduler's names stand
//! for; `ThisCpu`, a CPU's loop; [`Guest`](guest::Guest), a guest while it exists. Whoever need
//! not know the vendor of the CPUs takes [`AnyMachine`] and [`AnyGuest`](guest::AnyGuest).

pub(crate) mod console;
mod cpu;
pub(crate) mod guest;
mod runners;
mod sleepers;
pub(crate) mod time;
mod world;

pub(crate) use runners::AnyMachine;
pub(crate) use world::{Vendor, World, send};

use crate::cpu::{asm, percpu};
use crate::error::HostError;
use crate::hw::VendorCpu;
use crate::journal;
use alloc::boxed::Box;
use core::any::Any;
use cpu::ThisCpu;
use runners::Machine;
use spin::Once;

/// The one [`Machine`], for the CPUs that come later.
static MACHINE: Once<&'static (dyn Any + Send + Sync)> = Once::new();

/// Runs what the scheduler has for this CPU, for good. There are `cpus` CPUs; this one's
/// extension is `vendor`. `begin` gives the machine its first service.
pub(crate) fn run<C: VendorCpu>(
    vendor: C,
    cpus: usize,
    begin: impl FnOnce(&'static dyn AnyMachine) -> Result<(), HostError>,
) -> ! {
    let machine = World::new(cpus, &vendor).and_then(|world| {
        let machine: &'static Machine<C> = Box::leak(Box::new(Machine::new(world)));
        begin(machine)?;
        Ok(machine)
    });
    match machine {
        Ok(machine) => {
            MACHINE.call_once(|| machine);
            ThisCpu::new(machine, vendor).run()
        }
        Err(error) => journal::refuse(&error),
    }
}

/// Runs what the scheduler has for a CPU that was started later: switches its extension on, and
/// joins the others.
pub(crate) fn join<C: VendorCpu>() -> ! {
    let vendor = match C::enable() {
        Ok(vendor) => vendor,
        Err(error) => {
            log::error!("CPU {} stays idle: {error}", percpu::this().index());
            loop {
                percpu::stop_if_asked(percpu::this().take_requests());
                percpu::wait(true);
            }
        }
    };
    let machine = loop {
        match MACHINE.get() {
            Some(machine) => break *machine,
            None => {
                percpu::stop_if_asked(percpu::this().take_requests());
                core::hint::spin_loop();
            }
        }
    };
    match machine.downcast_ref::<Machine<C>>() {
        Some(machine) => ThisCpu::new(machine, vendor).run(),
        None => asm::stop(),
    }
}
