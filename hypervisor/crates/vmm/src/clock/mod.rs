//! A guest's time. Its one source is the host's TSC:
//!
//! ```text
//! guest ticks   = host TSC + the VM's offset        (0 when the guest starts)
//! a vCPU's TSC  = guest ticks + its TSC_ADJUST      (SDM: "Time-Stamp Counter Adjustment")
//! Nanos         = guest ticks scaled
//! wall clock    = Nanos + the wall clock at 0
//! ```
//!
//! Devices count in [`Nanos`], kvmclock ([`pvclock`]) uses the same scale from
//! the same origin, so that all clocks of a guest agree to the nanosecond.
//! While a guest is paused its ticks stand still, and with them everything
//! else but the wall clock.
//!
//! [`VmClock`] is shared by a guest's vCPUs, [`VcpuClock`] belongs to one.
//! [`VmClock::resume`] and [`VmClock::resume_later`] are the only ways in which
//! time is put (back) in motion.

mod host;
mod line;
pub mod pvclock;
#[cfg(test)]
mod tests;

use devices::RestoreError;
pub use host::HostClock;
use hvabi::kvm::ClockPairing;
use line::Motion;
pub use line::Timeline;
use memory::{GuestMemory, MemoryError};
use pvclock::{PvClockFlags, PvClockInfo, WallClock};
use serde::{Deserialize, Serialize};
use x86defs::time::{NANOS_PER_SECOND, Nanos, Scale, TscFrequency};
use x86defs::{Gp, GuestPhysAddr, Low};

/// The host's clocks, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTime {
    /// The host's TSC.
    pub tsc: u64,
    /// Nanoseconds since 1970-01-01 UTC.
    pub wall: u64,
}

/// The time of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmClock {
    frequency: TscFrequency,
    line: Timeline,
    /// The wall clock when ticks were 0, in nanoseconds since 1970; later by
    /// all pauses.
    wall_origin: u64,
    /// How often the guest went on after a pause.
    pauses: u64,
    /// Whether the TSCs of the host's CPUs agree, and count evenly.
    host: TscAgreement,
}

/// A saved [`VmClock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClockState {
    /// The TSC's frequency.
    pub frequency: TscFrequency,
    /// Guest ticks when it was saved.
    pub ticks: u64,
}

/// State of time that one vCPU has beside its guest's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuClock {
    /// IA32_TSC_ADJUST.
    tsc_adjust: u64,
    /// MSR KVM_SYSTEM_TIME as written: address of the structure, bit 0 says
    /// that it is in use.
    system_time: u64,
    /// MSR KVM_WALL_CLOCK as written.
    wall_clock: u64,
    /// The version that the structure had last, always even.
    version: u32,
    /// Which of its guest's pauses the vCPU knows of.
    #[serde(skip)]
    pauses: u64,
}

/// Duties after a write that changed a vCPU's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct TscChanged {
    /// The vCPU's new offset from the host's TSC, for VMCB or VMCS. Pending
    /// TSC deadlines have to be converted anew with
    /// [`VmClock::deadline`]; and [`VmClock::publish`] is due on every vCPU of
    /// the guest, for their TSCs may no longer agree.
    pub offset: u64,
}

/// Whether all vCPUs of a guest have the same TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscAgreement {
    /// All alike.
    Matched,
    /// They differ: kvmclock must not promise that reading it on different
    /// vCPUs is monotonic.
    Apart,
}

impl TscAgreement {
    /// The agreement of a guest's vCPUs, by their TSC_ADJUSTs.
    pub fn of(adjusts: impl IntoIterator<Item = u64>) -> Self {
        let mut adjusts = adjusts.into_iter();
        let first = adjusts.next();
        if adjusts.all(|adjust| Some(adjust) == first) { Self::Matched } else { Self::Apart }
    }
}

/// Whether a guest is told that it stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// Its time ran on.
    None,
    /// It was paused: its watchdogs should not count the moment.
    Paused,
}

impl VmClock {
    /// The clock of a guest that has not started: paused at 0.
    #[must_use]
    pub fn new(frequency: TscFrequency) -> Self {
        Self {
            frequency,
            line: Timeline { scale: Scale::new(frequency), motion: Motion::Paused { ticks: 0 } },
            wall_origin: 0,
            pauses: 0,
            host: TscAgreement::Matched,
        }
    }

    /// The clock on a host whose CPUs' TSCs are known to agree, or not to: where they do not,
    /// no kvmclock is called stable, whatever the guest's own registers are.
    #[must_use]
    pub const fn on_host(self, host: TscAgreement) -> Self {
        Self { host, ..self }
    }

    /// The host has learned better what time it is.
    pub fn correct_wall(&mut self, host: HostTime) {
        self.wall_origin = host.wall.saturating_sub(self.now(host.tsc).0);
    }

    /// The TSC's frequency.
    #[must_use]
    pub const fn frequency(&self) -> TscFrequency {
        self.frequency
    }

    /// The guest's time without its wall clock. It holds for as long as a vCPU has a CPU: the
    /// guest is paused and goes on only when none has.
    #[inline]
    #[must_use]
    pub const fn line(&self) -> Timeline {
        self.line
    }

    /// [`Timeline::ticks`].
    #[inline]
    #[must_use]
    pub fn ticks(&self, host_tsc: u64) -> u64 {
        self.line.ticks(host_tsc)
    }

    /// [`Timeline::offset`].
    #[inline]
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        self.line.offset()
    }

    /// [`Timeline::now`].
    #[inline]
    #[must_use]
    pub fn now(&self, host_tsc: u64) -> Nanos {
        self.line.now(host_tsc)
    }

    /// [`Timeline::host_tsc_at`].
    #[inline]
    #[must_use]
    pub fn host_tsc_at(&self, at: Nanos) -> Option<u64> {
        self.line.host_tsc_at(at)
    }

    /// The wall clock in nanoseconds since 1970-01-01 UTC, as the guest
    /// reckons it.
    #[must_use]
    pub fn wall(&self, host_tsc: u64) -> u64 {
        self.wall_origin.saturating_add(self.now(host_tsc).0)
    }

    /// A vCPU's offset from the host's TSC, for VMCB or VMCS.
    #[must_use]
    pub const fn tsc_offset(&self, vcpu: &VcpuClock) -> u64 {
        match self.line.motion {
            Motion::Running { offset } => offset.wrapping_add(vcpu.tsc_adjust),
            // Not to be run: it would see time move.
            Motion::Paused { ticks } => ticks.wrapping_add(vcpu.tsc_adjust),
        }
    }

    /// RDMSR of a vCPU's TSC.
    #[inline]
    #[must_use]
    pub fn tsc(&self, vcpu: &VcpuClock, host_tsc: u64) -> u64 {
        self.ticks(host_tsc).wrapping_add(vcpu.tsc_adjust)
    }

    /// WRMSR of a vCPU's TSC: TSC_ADJUST takes the difference.
    pub fn write_tsc(&self, vcpu: &mut VcpuClock, host_tsc: u64, value: u64) -> TscChanged {
        self.write_tsc_adjust(vcpu, value.wrapping_sub(self.ticks(host_tsc)))
    }

    /// WRMSR of a vCPU's TSC_ADJUST: its TSC moves by the difference.
    pub const fn write_tsc_adjust(&self, vcpu: &mut VcpuClock, value: u64) -> TscChanged {
        vcpu.tsc_adjust = value;
        TscChanged { offset: self.tsc_offset(vcpu) }
    }

    /// When a vCPU's TSC reaches `deadline`; at once if it has already.
    #[must_use]
    pub fn deadline(&self, vcpu: &VcpuClock, host_tsc: u64, deadline: u64) -> Nanos {
        let ticks = self.ticks(host_tsc);
        let left = deadline.saturating_sub(ticks.wrapping_add(vcpu.tsc_adjust));
        if left == 0 {
            return Nanos(self.line.scale.nanos(ticks));
        }
        // Ticks come in groups that share a nanosecond (or the other way
        // round): the first nanosecond that begins at the deadline or later.
        let at = ticks.saturating_add(left);
        let nanos = self.line.scale.nanos(at);
        Nanos(if self.line.scale.ticks(nanos) < at { nanos.saturating_add(1) } else { nanos })
    }

    /// Stops the guest's time. Stopping twice is the same as once.
    pub fn pause(&mut self, host_tsc: u64) {
        self.line.motion = Motion::Paused { ticks: self.ticks(host_tsc) };
    }

    /// Lets a paused guest's time run on from where it stood: the guest's
    /// ticks first, then the wall clock, then each vCPU's kvmclock, from which
    /// the guest learns of the pause if `interruption` says so. Afterwards the
    /// caller puts each vCPU's [`VmClock::tsc_offset`] in place and arms its
    /// deadlines anew, before it runs.
    ///
    /// # Errors
    /// The first vCPU, by its place in `vcpus`, whose kvmclock is no longer in
    /// writable RAM; the guest's time runs all the same, and the other vCPUs
    /// are served.
    pub fn resume(
        &mut self,
        host: HostTime,
        vcpus: &mut [&mut VcpuClock],
        memory: &impl GuestMemory,
        interruption: Interruption,
    ) -> Result<(), (usize, MemoryError)> {
        let ticks = self.ticks(host.tsc);
        self.line.motion = Motion::Running { offset: ticks.wrapping_sub(host.tsc) };
        self.wall_origin = host.wall.saturating_sub(self.line.scale.nanos(ticks));
        self.publish_all(vcpus, memory, interruption)
    }

    /// Lets a paused guest's time run on from where it stood, and leaves it to
    /// each vCPU to [catch up](VmClock::catch_up) before it runs.
    pub fn resume_later(&mut self, host: HostTime) {
        if let Motion::Paused { ticks } = self.line.motion {
            self.line.motion = Motion::Running { offset: ticks.wrapping_sub(host.tsc) };
            self.wall_origin = host.wall.saturating_sub(self.line.scale.nanos(ticks));
            self.pauses = self.pauses.wrapping_add(1);
        }
    }

    /// Brings a vCPU's time up to date before it runs again: if its guest was paused since it last
    /// ran, its kvmclock says so from now on, and its new offset from the host's TSC is returned,
    /// for VMCB or VMCS.
    pub fn catch_up(
        &self,
        vcpu: &mut VcpuClock,
        memory: &impl GuestMemory,
        agreement: TscAgreement,
    ) -> Option<u64> {
        if vcpu.pauses == self.pauses {
            return None;
        }
        vcpu.pauses = self.pauses;
        // The page was writable when it was registered; if the guest has put something else there
        // since, it loses its clock and nothing else.
        let _ = self.publish(vcpu, memory, agreement, Interruption::Paused);
        Some(self.tsc_offset(vcpu))
    }

    /// A number of ticks in nanoseconds, rounded down.
    #[must_use]
    pub fn nanos(&self, ticks: u64) -> u64 {
        self.line.scale.nanos(ticks)
    }

    /// Writes the kvmclock of each of a guest's vCPUs (see
    /// [`VmClock::publish`]).
    ///
    /// # Errors
    /// As [`VmClock::resume`].
    pub fn publish_all(
        &self,
        vcpus: &mut [&mut VcpuClock],
        memory: &impl GuestMemory,
        interruption: Interruption,
    ) -> Result<(), (usize, MemoryError)> {
        let agreement = TscAgreement::of(vcpus.iter().map(|vcpu| vcpu.tsc_adjust));
        let mut result = Ok(());
        for (number, vcpu) in vcpus.iter_mut().enumerate() {
            if let Err(error) = self.publish(vcpu, memory, agreement, interruption) {
                result = result.and(Err((number, error)));
            }
        }
        result
    }

    /// Writes a vCPU's kvmclock, if it has registered one.
    ///
    /// # Errors
    /// [`MemoryError`] where the structure is not in writable RAM.
    pub fn publish(
        &self,
        vcpu: &mut VcpuClock,
        memory: &impl GuestMemory,
        agreement: TscAgreement,
        interruption: Interruption,
    ) -> Result<(), MemoryError> {
        let Some(address) = pvclock::system_time_address(vcpu.system_time) else { return Ok(()) };
        let mut flags = PvClockInfo::read_flags(memory, address)? & PvClockFlags::GUEST_STOPPED;
        if agreement == TscAgreement::Matched && self.host == TscAgreement::Matched {
            flags |= PvClockFlags::TSC_STABLE;
        }
        if interruption == Interruption::Paused {
            flags |= PvClockFlags::GUEST_STOPPED;
        }
        vcpu.version = vcpu.version.wrapping_add(2);
        PvClockInfo {
            version: vcpu.version,
            tsc_timestamp: vcpu.tsc_adjust,
            system_time: 0,
            scale: self.line.scale,
            flags,
        }
        .write(memory, address)
    }

    /// WRMSR of KVM_SYSTEM_TIME (either number): registers a vCPU's kvmclock
    /// and writes it, or ends the registration where bit 0 is clear.
    ///
    /// # Errors
    /// [`Gp`] where the address is not a multiple of 4, or not in writable RAM.
    pub fn write_system_time(
        &self,
        vcpu: &mut VcpuClock,
        value: u64,
        memory: &impl GuestMemory,
        agreement: TscAgreement,
    ) -> Result<(), Gp> {
        if value & 2 != 0 {
            return Err(Gp);
        }
        let before = core::mem::replace(&mut vcpu.system_time, value);
        self.publish(vcpu, memory, agreement, Interruption::None).map_err(|_| {
            vcpu.system_time = before;
            Gp
        })
    }

    /// WRMSR of KVM_WALL_CLOCK (either number): writes the wall clock of the moment when the
    /// guest's time was 0 to the address. Address 0 writes nothing.
    ///
    /// # Errors
    /// [`Gp`] where the address is not a multiple of 4, or not in writable RAM.
    pub fn write_wall_clock(
        &self,
        vcpu: &mut VcpuClock,
        value: u64,
        memory: &impl GuestMemory,
        host: HostTime,
    ) -> Result<(), Gp> {
        if value & 3 != 0 {
            return Err(Gp);
        }
        if value != 0 {
            let origin = host.wall.saturating_sub(self.now(host.tsc).0);
            let clock = WallClock {
                seconds: (origin / NANOS_PER_SECOND).low32(),
                nanoseconds: (origin % NANOS_PER_SECOND).low32(),
            };
            clock.write(memory, GuestPhysAddr::new(value)).map_err(|_| Gp)?;
        }
        vcpu.wall_clock = value;
        Ok(())
    }

    /// The wall clock together with a vCPU's TSC, for KVM's call
    /// CLOCK_PAIRING.
    #[must_use]
    pub fn clock_pairing(&self, vcpu: &VcpuClock, host: HostTime) -> ClockPairing {
        ClockPairing {
            seconds: host.wall / NANOS_PER_SECOND,
            nanoseconds: host.wall % NANOS_PER_SECOND,
            tsc: self.tsc(vcpu, host.tsc),
        }
    }

    /// The state at this moment.
    #[must_use]
    pub fn save(&self, host_tsc: u64) -> VmClockState {
        VmClockState { frequency: self.frequency, ticks: self.ticks(host_tsc) }
    }

    /// A clock that stands where `state` was saved, to be
    /// [resumed](VmClock::resume) on a host whose TSC counts as `frequency`
    /// says.
    ///
    /// # Errors
    /// The guest's TSC can't be made to count at another speed.
    pub fn restored(state: VmClockState, frequency: TscFrequency) -> Result<Self, RestoreError> {
        if state.frequency != frequency {
            return Err(RestoreError("the host's TSC has another frequency"));
        }
        if state.ticks.cast_signed() < 0 {
            return Err(RestoreError("the guest's time is beyond all reason"));
        }
        let mut clock = Self::new(frequency);
        clock.line.motion = Motion::Paused { ticks: state.ticks };
        Ok(clock)
    }

    /// Puts the clock, which has not been used yet, where `state` was saved. What is known of the
    /// host stays.
    ///
    /// # Errors
    /// As [`restored`](Self::restored).
    pub fn restore(&mut self, state: VmClockState) -> Result<(), RestoreError> {
        let host = self.host;
        *self = Self { host, ..Self::restored(state, self.frequency)? };
        Ok(())
    }
}

impl VcpuClock {
    /// IA32_TSC_ADJUST.
    #[must_use]
    pub const fn tsc_adjust(&self) -> u64 {
        self.tsc_adjust
    }

    /// MSR KVM_SYSTEM_TIME.
    #[must_use]
    pub const fn system_time(&self) -> u64 {
        self.system_time
    }

    /// MSR KVM_WALL_CLOCK.
    #[must_use]
    pub const fn wall_clock(&self) -> u64 {
        self.wall_clock
    }

    /// A saved clock, if it is one that a guest can have made.
    ///
    /// # Errors
    /// A register holds a value that it can't have.
    pub fn restored(self) -> Result<Self, RestoreError> {
        if self.system_time & 2 != 0 || self.wall_clock & 3 != 0 || self.version & 1 != 0 {
            return Err(RestoreError("kvmclock has a value that can't be"));
        }
        Ok(self)
    }

    /// INIT reached the CPU: its TSC goes on, kvmclock is not registered.
    pub fn init(&mut self) {
        *self = Self {
            tsc_adjust: self.tsc_adjust,
            version: self.version,
            pauses: self.pauses,
            ..Self::default()
        };
    }

    /// The CPU was reset: its TSC starts with its guest's again, and kvmclock is not registered.
    /// (INIT alone leaves TSC_ADJUST as it is.)
    pub fn reset(&mut self) {
        *self = Self { version: self.version, pauses: self.pauses, ..Self::default() };
    }
}
