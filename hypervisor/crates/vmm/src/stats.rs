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
        let kinds = [
            ("hot_cpuid", self.cpuid),
            ("hot_read_msr", self.read_msr),
            ("hot_write_msr", self.write_msr),
            ("hot_hypercall", self.hypercall),
            ("hot_port_io", self.port_io),
            ("hot_touch", self.touch),
        ];
        let sum = kinds.iter().map(|(_, count)| count).sum();
        core::iter::once(("hot", sum)).chain(kinds)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $pattern:pat => ();)*) => {
        /// Exits by kind.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ExitCounts {
            /// Served by the hot handler.
            pub hot: HotCounts,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl ExitCounts {
            /// Counts one exit.
            #[inline]
            pub fn count(&mut self, exit: &VmExit) {
                match exit {
                    $($pattern => self.$name += 1,)*
                }
            }

            /// Exits that show that the guest does something: not those that the
            /// machine makes, nor waiting in a loop.
            #[must_use]
            pub fn signs_of_life(&self) -> u64 {
                let idle = ["hot", "host", "window", "slice", "pause", "exception", "other"];
                let live = self.iter().filter(|(name, _)| !idle.contains(name));
                live.fold(0, |sum, (_, count)| sum.wrapping_add(count))
            }

            /// The name of an exit's kind.
            #[must_use]
            pub const fn name(exit: &VmExit) -> &'static str {
                match exit {
                    $($pattern => stringify!($name),)*
                }
            }

            /// Names and counts, in the order of the fields.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let cold = [$((stringify!($name), self.$name),)*];
                self.hot.iter().chain(cold)
            }
        }
    };
}

kinds! {
    /// IN and OUT.
    port_io: VmExit::PortIo(_) => ();
    /// Accesses to device memory, and first touches of RAM.
    nested_fault: VmExit::NestedFault(_) => ();
    /// CPUID.
    cpuid: VmExit::Cpuid => ();
    /// RDMSR.
    read_msr: VmExit::ReadMsr => ();
    /// WRMSR.
    write_msr: VmExit::WriteMsr => ();
    /// VMCALL and VMMCALL.
    hypercall: VmExit::Hypercall => ();
    /// Control and debug registers.
    registers: VmExit::CrAccess(_) | VmExit::DrAccess(_) | VmExit::Xsetbv => ();
    /// HLT.
    halt: VmExit::Halt => ();
    /// PAUSE.
    pause: VmExit::Pause => ();
    /// Exceptions.
    exception: VmExit::Exception(_) => ();
    /// Interrupts and NMIs of the machine.
    host: VmExit::HostInterrupt | VmExit::Nmi | VmExit::MachineCheck => ();
    /// Windows for interrupts and NMIs.
    window: VmExit::InterruptWindow | VmExit::NmiWindow => ();
    /// The end of a slice.
    slice: VmExit::TimesliceExpired => ();
    /// The task priority fell.
    task_priority: VmExit::TaskPriorityLowered => ();
    /// The local APIC, where the CPU virtualizes a part of it.
    apic: VmExit::ApicAccess(_) | VmExit::ApicWrite(_) | VmExit::VirtualEoi(_) => ();
    /// Whatever else.
    other: VmExit::Monitor(_)
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
        | VmExit::Unhandled(_) => ();
}
