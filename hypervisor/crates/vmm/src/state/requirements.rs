//! [`Requirements`]: what a machine must offer to a guest that has seen another one.

use crate::cpuid::features::FEATURE_WORDS;
use crate::cpuid::{CpuidTable, Register};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use state::{Saved, StateError};
use x86defs::cpuid::CpuidResult;
use x86defs::time::TscFrequency;

/// Properties of its machine that a guest has seen, and goes on to rely upon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Requirements {
    frequency: TscFrequency,
    physical_address_bits: u8,
    vcpus: u32,
    cpuid: Vec<Answer>,
}

/// An answer of CPUID, but for what registers of the vCPU add to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    leaf: u32,
    subleaf: u32,
    /// EAX, EBX, ECX and EDX.
    registers: [u32; 4],
}

impl Saved for Requirements {
    const NAME: &'static str = "requirements";
    const VERSION: u16 = 1;
}

impl Requirements {
    /// Properties of a machine.
    pub(super) fn of(cpuid: &CpuidTable, frequency: TscFrequency, vcpus: usize) -> Self {
        let answer = |(leaf, subleaf, CpuidResult { eax, ebx, ecx, edx })| Answer {
            leaf,
            subleaf,
            registers: [eax, ebx, ecx, edx],
        };
        Self {
            frequency,
            physical_address_bits: cpuid.physical_address_bits(),
            vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
            cpuid: cpuid.entries().map(answer).collect(),
        }
    }

    /// Whether a machine that offers `offered` will do.
    ///
    /// # Errors
    /// Says what differs, and what to do about it.
    pub(super) fn met_by(&self, offered: &Self) -> Result<(), StateError> {
        let lacks = |what: String| Err(StateError::Lacks(what));
        if self.frequency != offered.frequency {
            return lacks(format!(
                "its TSC counts {} kHz, and this machine's {} kHz; restore it on one with the same",
                self.frequency.khz(),
                offered.frequency.khz()
            ));
        }
        if self.physical_address_bits != offered.physical_address_bits {
            return lacks(format!(
                "its addresses have {} bits, and here they have {}; restore it on a machine and \
                 with a Steward that have the same",
                self.physical_address_bits, offered.physical_address_bits
            ));
        }
        if self.vcpus != offered.vcpus {
            return lacks(format!(
                "it has {} vCPUs, and this guest {}; give this one as many",
                self.vcpus, offered.vcpus
            ));
        }
        let mut pairs = self.cpuid.iter().zip(&offered.cpuid);
        match pairs.find(|(wanted, found)| wanted != found) {
            Some((wanted, found)) => lacks(differ(wanted, found)),
            None if self.cpuid.len() != offered.cpuid.len() => lacks(String::from(
                "its CPUID has another number of leaves; restore it on a machine with the same \
                     CPU, by the Steward that saved it",
            )),
            None => Ok(()),
        }
    }
}

/// How two answers differ.
fn differ(wanted: &Answer, found: &Answer) -> String {
    const CURE: &str = "restore it on a machine with the same CPU, with the same settings, by the \
                        Steward that saved it";
    if (wanted.leaf, wanted.subleaf) != (found.leaf, found.subleaf) {
        return format!("its CPUID has leaf {:#x}, and this one has not; {CURE}", wanted.leaf);
    }
    let pairs = wanted.registers.iter().zip(&found.registers);
    let names = [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx];
    let first = pairs.zip(names).find(|((wanted, found), _)| wanted != found);
    let Some(((a, b), register)) = first else { return String::from(CURE) };
    let (leaf, subleaf) = (wanted.leaf, wanted.subleaf);
    let words = FEATURE_WORDS
        .iter()
        .filter(|word| (word.leaf, word.subleaf, word.register) == (leaf, subleaf, register));
    let mut features = words.flat_map(|word| word.features);
    match features.find(|feature| (a ^ b) >> feature.bit & 1 != 0) {
        Some(feature) if a >> feature.bit & 1 != 0 => {
            format!("its CPU has the feature \"{}\", and this one has not; {CURE}", feature.name)
        }
        Some(feature) => {
            format!("its CPU lacks the feature \"{}\", and this one has it; {CURE}", feature.name)
        }
        None => format!(
            "CPUID leaf {leaf:#x}, subleaf {subleaf}, {register:?} was {a:#x}, and here it is \
             {b:#x}; {CURE}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn some() -> Requirements {
        Requirements {
            frequency: TscFrequency::from_khz(2_000_000).unwrap(),
            physical_address_bits: 39,
            vcpus: 2,
            cpuid: vec![
                Answer { leaf: 0, subleaf: 0, registers: [0xd, 1, 2, 3] },
                Answer { leaf: 1, subleaf: 0, registers: [5, 0, 1 << 9, u32::MAX] },
            ],
        }
    }

    #[test]
    fn the_state_is_laid_out_as_it_was() {
        state::golden::check(env!("CARGO_MANIFEST_DIR"), some);
    }

    #[test]
    fn what_differs_is_named() {
        let told = |change: fn(&mut Requirements)| {
            let mut other = some();
            change(&mut other);
            some().met_by(&other).unwrap_err().to_string()
        };
        assert_eq!(some().met_by(&some()), Ok(()));
        assert_eq!(
            told(|other| other.cpuid[1].registers[2] = 0),
            "this machine can't take the guest: its CPU has the feature \"ssse3\", and this one has \
             not; restore it on a machine with the same CPU, with the same settings, by the Steward \
             that saved it"
        );
        assert!(told(|other| other.cpuid[0].registers[1] = 7).contains("leaf 0x0, subleaf 0, Ebx"));
        assert!(told(|other| other.cpuid[0].leaf = 9).contains("has leaf 0x0"));
        assert!(told(|other| _ = other.cpuid.pop()).contains("number of leaves"));
        assert!(told(|other| other.vcpus = 1).contains("2 vCPUs, and this guest 1"));
        assert!(told(|other| other.physical_address_bits = 40).contains("39 bits"));
        let other = TscFrequency::from_khz(3_000_000).unwrap();
        let slower = some().met_by(&Requirements { frequency: other, ..some() });
        assert!(
            slower.unwrap_err().to_string().contains("2000000 kHz, and this machine's 3000000")
        );
    }
}
