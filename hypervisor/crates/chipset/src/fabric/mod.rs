//! Interrupts on their way to vCPUs: the part of a vCPU's interrupt state that other CPUs and
//! devices may touch, and the targets of messages.
//!
//! [`Posted`] is a vCPU's mailbox, [`Routes`] the directory of a VM's local
//! APICs. Both are atomics only. The vCPU itself, on the CPU that runs it,
//! takes its mail and gives vectors to its [`devices::lapic::Lapic`]
//! (SDM: "Posted-Interrupt Processing" has the same shape). [`Fabric`] has both, a kick for
//! whoever must look into its mailbox, and the 8259 pair and the I/O APIC: it stands below the
//! devices, whose lines end in it.

mod chips;
mod posted;
mod route;
mod state;

pub use chips::{Lines, Pin};
pub use posted::{Posted, Requests, Taken};
pub use route::{Routes, VcpuSet, VcpuSetIter};

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use chips::Chips;
use core::fmt;
use core::sync::atomic::AtomicBool;
use devices::lapic::{Destination, DestinationMode, InterruptMessage, IpiCommand};
use locks::{Mutex, Rank};

/// Makes a vCPU, by index, look at its mailbox: the vCPU is woken, or leaves the guest if it runs
/// on another CPU.
pub struct Kick(pub Box<dyn Fn(usize) + Send + Sync>);

impl fmt::Debug for Kick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kick")
    }
}

/// The interrupts of one guest on their way to its vCPUs: from the devices' lines through the
/// interrupt controllers, or as messages, into mailboxes.
#[derive(Debug)]
pub struct Fabric {
    mailboxes: Box<[Arc<Posted>]>,
    routes: Routes,
    kick: Kick,
    chips: Mutex<Chips>,
    /// Output of the 8259 pair, as the first vCPU sees it. It is written under the lock of `chips`.
    pic: AtomicBool,
}

impl Fabric {
    /// The fabric of a guest with `vcpus` vCPUs, none of which answers to a destination yet.
    #[must_use]
    pub fn new(vcpus: usize, kick: Kick) -> Self {
        Self {
            mailboxes: core::iter::repeat_with(Arc::default).take(vcpus).collect(),
            routes: Routes::new(),
            kick,
            chips: Mutex::new(Rank::Chips, Chips::new()),
            pic: AtomicBool::new(false),
        }
    }

    /// Mailboxes of all vCPUs, by index.
    #[must_use]
    pub fn mailboxes(&self) -> &[Arc<Posted>] {
        &self.mailboxes
    }

    /// The mailbox of vCPU `index`.
    #[must_use]
    pub fn mailbox(&self, index: usize) -> Option<&Arc<Posted>> {
        self.mailboxes.get(index)
    }

    /// Destinations that the vCPUs' local APICs answer to.
    #[must_use]
    pub const fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The vCPU whose local APIC has the identity `id`.
    #[must_use]
    pub fn vcpu_of(&self, id: u64) -> Option<usize> {
        let id = u32::try_from(id).ok().filter(|id| *id != Destination::BROADCAST)?;
        let destination = Destination { id, mode: DestinationMode::Physical };
        self.routes.matching(destination).into_iter().next()
    }

    /// Makes `requests` of vCPU `index`.
    pub fn request(&self, index: usize, requests: Requests) {
        if self.mailbox(index).is_some_and(|posted| posted.request(requests)) {
            (self.kick.0)(index);
        }
    }

    /// Sends an interrupt to the vCPUs that it is for.
    pub fn deliver(&self, message: &InterruptMessage) {
        self.send(message, self.routes.route(message));
    }

    /// Sends the IPI that vCPU `sender` commanded.
    pub fn deliver_ipi(&self, sender: usize, command: &IpiCommand) {
        self.send(&command.message, self.routes.route_ipi(sender, command));
    }

    /// Sends `message` to `targets`, whatever its destination.
    pub fn send(&self, message: &InterruptMessage, targets: VcpuSet) {
        for index in targets {
            if self.mailbox(index).is_some_and(|posted| posted.deliver(message)) {
                (self.kick.0)(index);
            }
        }
    }
}
