//! [`Ipis`]: what KVM's call [`SEND_IPI`](hvabi::kvm::call::SEND_IPI) asks for.

use crate::vm::Vm;
use chipset::fabric::VcpuSet;
use devices::lapic::{
    DeliveryMode, Destination, DestinationMode, FIRST_LEGAL_VECTOR, InterruptMessage, Trigger,
};
use hvabi::{Registers, Status};
use memory::GuestRam;
use x86defs::bits::Low;

/// An interrupt for a set of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipis {
    /// Bit n is the APIC id `first` + n.
    set: u128,
    first: u64,
    mode: DeliveryMode,
    vector: u8,
}

/// Bits of the command that may be set: vector, delivery mode, and two bits that mean nothing here
/// (level and trigger mode, as every IPI is an edge).
const COMMAND: u64 = 0xff | 7 << 8 | 1 << 14 | 1 << 15;

impl Ipis {
    /// Reads the call's registers: sets of 64 bits each if the caller is `wide`, else of 32.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for a logical destination or a shorthand, for a
    /// delivery mode but fixed, lowest priority and NMI, and for an illegal vector.
    pub fn new(arguments: Registers, wide: bool) -> Result<Self, Status> {
        let Registers { rax: _, rbx: low, rcx: high, rdx: first, rsi: command } = arguments;
        let mode = DeliveryMode::from_bits((command >> 8).low8());
        let vector = command.low8();
        let legal = match mode {
            // The set is the destination: there is nothing to arbitrate.
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => vector >= FIRST_LEGAL_VECTOR,
            DeliveryMode::Nmi => true,
            _ => false,
        };
        if !legal || command & !COMMAND != 0 {
            return Err(Status::InvalidArgument);
        }
        let cluster = if wide { u64::BITS } else { u32::BITS };
        let set = u128::from(low) | u128::from(high) << cluster;
        Ok(Self { set, first, mode, vector })
    }

    /// The APIC ids.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        let (mut left, first) = (self.set, self.first);
        core::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let bit = left.trailing_zeros();
            left &= left - 1;
            // A sum that is cut off reaches nobody: no vCPU has so high an id.
            Some(first.saturating_add(bit.into()))
        })
    }

    /// Sends the interrupts; returns how many reached a vCPU that takes them.
    pub fn send<M: GuestRam>(&self, vm: &Vm<M>) -> u64 {
        let accepts = |index: &usize| {
            self.mode == DeliveryMode::Nmi || vm.fabric.routes().identity(*index).software_enabled()
        };
        let targets = self
            .ids()
            .filter_map(|id| vm.fabric.vcpu_of(id))
            .filter(accepts)
            .fold(VcpuSet::EMPTY, |set, index| VcpuSet(set.0 | VcpuSet::one(index).0));
        let message = InterruptMessage {
            destination: Destination {
                id: Destination::BROADCAST,
                mode: DestinationMode::Physical,
            },
            mode: self.mode,
            vector: self.vector,
            trigger: Trigger::Edge,
        };
        vm.fabric.send(&message, targets);
        targets.0.count_ones().into()
    }
}
