//! Counts of a vCPU beside those of exits by kind: uses of KVM's interface, and whatever else is
//! worth a number. A line here is enough to show in a guest's statistics, in the metrics and in the
//! report of its end.

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of a vCPU that are no exits by kind.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Names and counts, in the order of the fields.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counts! {
    /// Steal time was added to.
    steal_updates,
    /// The vCPU was shown as one without a CPU.
    preempted,
    /// Translations were flushed because another vCPU had asked for it meanwhile.
    tlb_flushes,
    /// An entry on which the interrupt in service could end without an exit.
    eoi_offers,
    /// Interrupts that ended without an exit.
    eois,
    /// Kicks sent to other vCPUs.
    kicks,
    /// HLTs that a kick ended.
    unhalts,
    /// Calls that sent interrupts.
    ipi_calls,
    /// Interrupts that these calls sent.
    ipis,
    /// Turns given up by hypercall, for a certain vCPU or for any.
    yields,
    /// Pauses of the guest that the vCPU was told of.
    pauses_told,
    /// Instructions on device memory that programs were refused with #UD.
    refused_instructions,
    /// Decodings by the general decoder: zero for a guest that does to devices what Linux does.
    general_decodes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_has_its_name() {
        let counts = Counters { kicks: 1, pauses_told: 2, ..Counters::default() };
        let all: alloc::vec::Vec<_> = counts.iter().filter(|(_, count)| *count != 0).collect();
        assert_eq!(all, [("kicks", 1), ("pauses_told", 2)]);
        assert_eq!(counts.iter().count() * 8, size_of::<Counters>());
    }
}
