//! Plain settings of a guest: those whose type says by itself what is allowed, and which a
//! configuration and the manifest write alike. A line here is all that such a setting needs: it
//! is a field of [`GuestSettings`](crate::GuestSettings), a key of `[[guest]]`, and a row of the
//! table in `docs/config.md`.

/// Calls the macro `$use` with all plain settings: documentation, name, type, and in Markdown what
/// is allowed, the default and the meaning. The type has a `Default`, which is the setting's.
macro_rules! plain_settings {
    ($use:ident) => {
        $use! {
            /// Whether it is started again when it has ended.
            restart: RestartPolicy = [
                "`\"never\"`, `\"on-failure\"`, `\"always\"`",
                "`\"never\"`",
                "whether it starts again when it has ended: never; after a crash or a failure; whatever the end, unless the operator ended it"
            ];
            /// Consequence of a reset of its machine.
            on_reset: OnReset = [
                "`\"restart\"`, `\"end\"`",
                "`\"restart\"`",
                "what a reset of its machine does"
            ];
            /// Consequence of a shutdown of its CPU (a triple fault).
            on_triple_fault: OnTripleFault = [
                "`\"crash\"`, `\"reset\"`",
                "`\"crash\"`",
                "what a triple fault is: a crash, with a dump and status 3, or a reset of its machine, as a PC's chipset has it (Linux resets so with `reboot=t`)"
            ];
            /// Consequence of a halt of all its vCPUs, when nothing can wake them.
            on_halt: OnHalt = [
                "`\"stay\"`, `\"end\"`",
                "`\"stay\"`; `\"end\"` under `run --headless`",
                "what happens when all its vCPUs have been halted with interrupts disabled for a second, so that nothing will wake them: it stays, which the log says, or it has ended, well"
            ];
            /// How far the CPU may run its local APICs.
            apic: ApicAssist = [
                "`\"full\"`, `\"priority\"`, `\"none\"`",
                "`\"full\"`",
                "how far the CPU may run its local APICs, where it can: registers, delivery and end of interrupts; the task priority only; not at all"
            ];
            /// CPU features that it does not have, or must have.
            cpu: CpuSettings = [
                "a table of `hide` and `show`, lists of names (below)",
                "nothing hidden",
                "CPU features that CPUID hides from it, with all that build upon them, and features without which it is not started"
            ];
            /// The hypercalls that it may make.
            hypercalls: Hypercalls = [
                "a list of `\"console-write\"`, `\"yield\"`, `\"time\"`, `\"shut-down\"`, `\"kvm-poll-irq\"`, `\"kvm-kick-cpu\"`, `\"kvm-clock-pairing\"`, `\"kvm-send-ipi\"`, `\"kvm-sched-yield\"`",
                "all",
                "the hypercalls (`docs/hypercalls.md`) that it may make; any guest may ask for the version"
            ];
            /// The signature that CPUID shows first.
            signature: Signature = [
                "`\"steward\"`, `\"kvm\"`",
                "`\"steward\"`",
                "whose CPUID signature stands at leaf 0x40000000, for programs that look for KVM's nowhere else; the other's is at 0x40000100"
            ];
            /// Rule that makes the run's status of a value written to that port.
            debug_status: DebugStatus = [
                "`\"shifted\"`, `\"plain\"`",
                "`\"shifted\"`",
                "the run's status where it wrote V to that port: (V << 1) \\| 1, or V (255 for a larger one)"
            ];
        }
    };
}
pub(crate) use plain_settings;
