//! [`Routes`]: the targets of messages.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use devices::lapic::{
    ApicIdentity, DeliveryMode, Destination, DestinationMode, InterruptMessage, IpiCommand,
    Shorthand, arbitrate,
};

/// The most vCPUs that a VM can have.
pub(crate) const MAX_VCPUS: usize = 64;

/// A set of vCPUs of one VM, by their index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct VcpuSet(pub u64);

impl VcpuSet {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// The vCPU `index` alone; nobody if that is 64 or more.
    #[inline]
    #[must_use]
    pub const fn one(index: usize) -> Self {
        Self(if index < MAX_VCPUS { 1 << index } else { 0 })
    }
}

impl IntoIterator for VcpuSet {
    type Item = usize;
    type IntoIter = VcpuSetIter;

    fn into_iter(self) -> VcpuSetIter {
        VcpuSetIter(self.0)
    }
}

/// The indices in a [`VcpuSet`], from the lowest.
#[derive(Clone, Debug)]
pub struct VcpuSetIter(u64);

impl Iterator for VcpuSetIter {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let index = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(index as usize)
    }
}

/// Identities of a VM's local APICs. Each vCPU publishes its own
/// ([`devices::lapic::Effect::IdentityChanged`]); everybody reads.
#[derive(Debug)]
pub struct Routes {
    /// [`ApicIdentity`]; 0, a disabled APIC, where there is no vCPU.
    identities: [AtomicU64; MAX_VCPUS],
    /// Index at which the next lowest-priority arbitration begins.
    turn: AtomicU32,
}

impl Default for Routes {
    fn default() -> Self {
        Self::new()
    }
}

impl Routes {
    /// A VM without vCPUs.
    #[must_use]
    pub const fn new() -> Self {
        Self { identities: [const { AtomicU64::new(0) }; MAX_VCPUS], turn: AtomicU32::new(0) }
    }

    /// vCPU `index` answers to `identity` from now on. An index of 64 or
    /// more does not exist.
    pub fn publish(&self, index: usize, identity: ApicIdentity) {
        if let Some(cell) = self.identities.get(index) {
            cell.store(identity.into_bits(), Ordering::Release);
        }
    }

    /// The identity that vCPU `index` last published.
    #[inline]
    #[must_use]
    pub fn identity(&self, index: usize) -> ApicIdentity {
        let bits = self.identities.get(index).map_or(0, |cell| cell.load(Ordering::Acquire));
        ApicIdentity::from_bits(bits)
    }

    /// How often lowest priority has been arbitrated.
    pub(super) fn turns(&self) -> u32 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Lowest priority has been arbitrated so often before.
    pub(super) fn set_turns(&self, turns: u32) {
        self.turn.store(turns, Ordering::Relaxed);
    }

    /// The vCPUs whose APIC matches `destination`.
    #[must_use]
    pub fn matching(&self, destination: Destination) -> VcpuSet {
        // Identities are usually indices, and then one look is enough.
        if destination.mode == DestinationMode::Physical
            && let Ok(index) = usize::try_from(destination.id)
            && index < MAX_VCPUS
            && self.identity(index).matches(destination)
        {
            return VcpuSet::one(index);
        }
        self.select(|identity| identity.matches(destination))
    }

    /// The vCPUs that have an APIC which is switched on.
    fn present(&self) -> VcpuSet {
        let everybody = Destination { id: Destination::BROADCAST, mode: DestinationMode::Physical };
        self.select(|identity| identity.matches(everybody))
    }

    fn select(&self, matches: impl Fn(ApicIdentity) -> bool) -> VcpuSet {
        let mut set = 0;
        for index in 0..MAX_VCPUS {
            if matches(self.identity(index)) {
                set |= 1 << index;
            }
        }
        VcpuSet(set)
    }

    /// The vCPUs that get `message`: all that match, or for lowest priority at
    /// most one of them.
    #[must_use]
    pub fn route(&self, message: &InterruptMessage) -> VcpuSet {
        self.narrow(message, self.matching(message.destination))
    }

    /// The vCPUs that get the IPI which vCPU `sender` commanded.
    #[must_use]
    pub fn route_ipi(&self, sender: usize, command: &IpiCommand) -> VcpuSet {
        let own = VcpuSet::one(sender);
        let targets = match command.shorthand {
            Shorthand::None => self.matching(command.message.destination),
            Shorthand::ToSelf => own,
            Shorthand::AllIncludingSelf => self.present(),
            Shorthand::AllExcludingSelf => VcpuSet(self.present().0 & !own.0),
        };
        self.narrow(&command.message, targets)
    }

    fn narrow(&self, message: &InterruptMessage, targets: VcpuSet) -> VcpuSet {
        if message.mode != DeliveryMode::LowestPriority || targets.0.count_ones() < 2 {
            return targets;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % MAX_VCPUS;
        let candidates = targets.into_iter().map(|index| (index, self.identity(index)));
        arbitrate(candidates, turn).map_or(VcpuSet::EMPTY, VcpuSet::one)
    }
}
