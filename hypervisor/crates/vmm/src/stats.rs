//! Counts of exits, for the operator.

use x86defs::VmExit;

/// Exits that the hot handler served, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotCounts {
    /// CPUID.
    pub cpuid: u64,
    /// RDMSR.
    pub read_msr: u64,
    /// WRMSR.
    pub write_msr: u64,
    /// VMCALL and VMMCALL.
    pub hypercall: u64,
    /// IN and OUT.
    pub port_io: u64,
    /// First touches of RAM.
    pub touch: u64,
}

impl HotCounts {
    /// Names and counts; the first is the sum of the others.
    fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let sum = self.kinds().map(|(_, count)| count).sum();
        core::iter::once(("hot", sum)).chain(self.kinds())
    }

    /// Names and counts.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("hot_cpuid", self.cpuid),
            ("hot_read_msr", self.read_msr),
            ("hot_write_msr", self.write_msr),
            ("hot_hypercall", self.hypercall),
            ("hot_port_io", self.port_io),
            ("hot_touch", self.touch),
        ]
        .into_iter()
    }
}

/// Exits by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Served by the hot handler.
    pub hot: HotCounts,
    cold: [u64; Kind::ALL.len()],
}

impl ExitCounts {
    /// Counts one exit.
    #[inline]
    pub fn count(&mut self, kind: Kind) {
        if let Some(count) = self.cold.get_mut(kind as usize) {
            *count += 1;
        }
    }

    /// How many of one kind the general code served.
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        self.cold.get(kind as usize).copied().unwrap_or(0)
    }

    /// Exits that show that the guest does something: not those that the
    /// machine makes, nor waiting in a loop.
    #[must_use]
    pub fn signs_of_life(&self) -> u64 {
        let idle = ["hot", "host", "window", "slice", "pause", "exception", "other"];
        let live = self.iter().filter(|(name, _)| !idle.contains(name));
        live.fold(0, |sum, (_, count)| sum.wrapping_add(count))
    }

    /// Names and counts, in the order of the fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let cold = Kind::ALL.iter().zip(self.cold).map(|(kind, count)| (kind.name(), count));
        self.hot.iter().chain(cold)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal: $pattern:pat,)*) => {
        /// Kinds of exits that the general code serves.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All kinds, in their order.
            pub const ALL: [Self; [$($name,)*].len()] = [$(Self::$kind,)*];

            /// The kind of an exit.
            #[inline]
            #[must_use]
            pub const fn of(exit: &VmExit) -> Self {
                match exit {
                    $($pattern => Self::$kind,)*
                }
            }

            /// The operator's name for it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// IN and OUT.
    PortIo "port_io": VmExit::PortIo(_),
    /// Accesses to device memory, and first touches of RAM.
    NestedFault "nested_fault": VmExit::NestedFault(_),
    /// CPUID.
    Cpuid "cpuid": VmExit::Cpuid,
    /// RDMSR.
    ReadMsr "read_msr": VmExit::ReadMsr,
    /// WRMSR.
    WriteMsr "write_msr": VmExit::WriteMsr,
    /// VMCALL and VMMCALL.
    Hypercall "hypercall": VmExit::Hypercall,
    /// Control and debug registers.
    Registers "registers": VmExit::CrAccess(_) | VmExit::DrAccess(_) | VmExit::Xsetbv,
    /// HLT.
    Halt "halt": VmExit::Halt,
    /// PAUSE.
    Pause "pause": VmExit::Pause,
    /// Exceptions.
    Exception "exception": VmExit::Exception(_),
    /// Interrupts and NMIs of the machine.
    Host "host": VmExit::HostInterrupt | VmExit::Nmi | VmExit::MachineCheck,
    /// Windows for interrupts and NMIs.
    Window "window": VmExit::InterruptWindow | VmExit::NmiWindow,
    /// The end of a slice.
    Slice "slice": VmExit::TimesliceExpired,
    /// The task priority fell.
    TaskPriority "task_priority": VmExit::TaskPriorityLowered,
    /// The local APIC, where the CPU virtualizes a part of it.
    Apic "apic": VmExit::ApicAccess(_) | VmExit::ApicWrite(_) | VmExit::VirtualEoi(_),
    /// Whatever else.
    Other "other": VmExit::Monitor(_)
        | VmExit::CacheControl(_)
        | VmExit::DescriptorTable(_)
        | VmExit::TaskSwitch(_)
        | VmExit::VirtualizationInstruction
        | VmExit::Unoffered
        | VmExit::Rdpmc
        | VmExit::Rdtsc
        | VmExit::DirtyLogFull
        | VmExit::Init
        | VmExit::StartupIpi(_)
        | VmExit::TripleFault
        | VmExit::InvalidState(_)
        | VmExit::BrokenRule(_)
        | VmExit::Unhandled(_),
}
