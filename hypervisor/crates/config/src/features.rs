//! Features of a CPU that a setting can hide or ask for, by the names that Linux prints in
//! `/proc/cpuinfo`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A name, and the features that the feature builds upon.
type Line = (&'static str, &'static [&'static str]);

/// All of them. Others are always there, or follow from how a guest is made: without them no
/// 64-bit kernel starts, or Steward could not keep the promise (a local APIC, machine checks,
/// memory types).
static FEATURES: &[Line] = &[
    ("pni", &[]),
    ("pclmulqdq", &[]),
    ("ssse3", &["pni"]),
    ("fma", &["avx"]),
    ("cx16", &[]),
    ("pcid", &[]),
    ("sse4_1", &["ssse3"]),
    ("sse4_2", &["sse4_1"]),
    ("x2apic", &[]),
    ("movbe", &[]),
    ("popcnt", &[]),
    ("tsc_deadline_timer", &[]),
    ("aes", &[]),
    ("xsave", &[]),
    ("avx", &["xsave", "sse4_2"]),
    ("f16c", &["avx"]),
    ("rdrand", &[]),
    ("vme", &[]),
    ("de", &[]),
    ("sep", &[]),
    ("pge", &[]),
    ("fsgsbase", &[]),
    ("tsc_adjust", &[]),
    ("bmi1", &[]),
    ("avx2", &["avx"]),
    ("smep", &[]),
    ("bmi2", &[]),
    ("erms", &[]),
    ("invpcid", &["pcid"]),
    ("avx512f", &["avx2"]),
    ("avx512dq", &["avx512f"]),
    ("rdseed", &[]),
    ("adx", &[]),
    ("smap", &[]),
    ("avx512ifma", &["avx512f"]),
    ("clflushopt", &[]),
    ("clwb", &[]),
    ("avx512pf", &["avx512f"]),
    ("avx512er", &["avx512f"]),
    ("avx512cd", &["avx512f"]),
    ("sha_ni", &[]),
    ("avx512bw", &["avx512f"]),
    ("avx512vl", &["avx512f"]),
    ("prefetchwt1", &[]),
    ("avx512vbmi", &["avx512bw"]),
    ("umip", &[]),
    ("pku", &["xsave"]),
    ("avx512_vbmi2", &["avx512bw"]),
    ("gfni", &[]),
    ("vaes", &["avx", "aes"]),
    ("vpclmulqdq", &["avx", "pclmulqdq"]),
    ("avx512_vnni", &["avx512f"]),
    ("avx512_bitalg", &["avx512bw"]),
    ("avx512_vpopcntdq", &["avx512f"]),
    ("rdpid", &[]),
    ("cldemote", &[]),
    ("movdiri", &[]),
    ("movdir64b", &[]),
    ("avx512_4vnniw", &["avx512f"]),
    ("avx512_4fmaps", &["avx512f"]),
    ("fsrm", &[]),
    ("avx512_vp2intersect", &["avx512f"]),
    ("md_clear", &[]),
    ("serialize", &[]),
    ("avx512_fp16", &["avx512bw", "avx512vl"]),
    ("avx_vnni", &["avx2"]),
    ("avx512_bf16", &["avx512bw"]),
    ("fzrm", &[]),
    ("fsrs", &[]),
    ("fsrc", &[]),
    ("avx_ifma", &["avx2"]),
    ("xsaveopt", &["xsave"]),
    ("xsavec", &["xsave"]),
    ("xgetbv1", &["xsave"]),
    ("lahf_lm", &[]),
    ("cr8_legacy", &[]),
    ("abm", &[]),
    ("sse4a", &["pni"]),
    ("misalignsse", &[]),
    ("3dnowprefetch", &[]),
    ("xop", &["avx"]),
    ("fma4", &["avx"]),
    ("tbm", &[]),
    ("topoext", &[]),
    ("mmxext", &[]),
    ("pdpe1gb", &[]),
    ("rdtscp", &[]),
    ("3dnowext", &["3dnow"]),
    ("3dnow", &[]),
    ("invariant_tsc", &[]),
    ("clzero", &[]),
    ("xsaveerptr", &["xsave"]),
    ("wbnoinvd", &[]),
    ("amd_ssb_no", &[]),
    ("btc_no", &[]),
];

const _: () = assert!(FEATURES.len() <= u128::BITS as usize);

/// The names of all features that can be hidden.
pub fn names() -> impl Iterator<Item = &'static str> {
    FEATURES.iter().map(|(name, _)| *name)
}

fn find(name: &str) -> Option<u128> {
    let place = FEATURES.iter().position(|(own, _)| *own == name)?;
    Some(1 << place)
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet(u128);

impl FeatureSet {
    /// Whether it has the feature called `name`.
    #[must_use]
    pub fn contains(self, name: &str) -> bool {
        find(name).is_some_and(|bit| self.0 & bit != 0)
    }

    /// The names, in the order of the table.
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        names().zip(0u32..).filter(move |(_, place)| self.0 >> place & 1 != 0).map(|(name, _)| name)
    }

    /// These and all that build upon one of them.
    #[must_use]
    pub fn with_dependents(self) -> Self {
        let mut all = self;
        loop {
            let lost = |(_, needs): &Line| needs.iter().any(|need| all.contains(need));
            let more = FEATURES.iter().filter(|line| lost(line)).filter_map(|(name, _)| find(name));
            let next = Self(more.fold(all.0, |set, bit| set | bit));
            if next == all {
                return all;
            }
            all = next;
        }
    }

    /// The features that both sets have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0 == 0
    }
}

impl<'a> FromIterator<&'a str> for FeatureSet {
    /// Names that are none are left out.
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        Self(names.into_iter().filter_map(find).fold(0, |set, bit| set | bit))
    }
}

impl Serialize for FeatureSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for FeatureSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<Name>::deserialize(deserializer)?;
        Ok(Self(names.into_iter().fold(0, |set, Name(bit)| set | bit)))
    }
}

/// One name: a type of its own, so that errors know its place in the list.
struct Name(u128);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        find(&name).map(Self).ok_or_else(|| {
            D::Error::custom(format!(
                "no feature \"{name}\" can be hidden or asked for; docs/config.md has the names"
            ))
        })
    }
}

/// CPU features of a guest that differ from what the machine and Steward have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Lists")]
pub struct CpuSettings {
    /// Features that CPUID does not show, with all that build upon them.
    #[serde(skip_serializing_if = "FeatureSet::is_empty")]
    pub hide: FeatureSet,
    /// Features that it has to show: a guest that can't have them is not started.
    #[serde(skip_serializing_if = "FeatureSet::is_empty")]
    pub show: FeatureSet,
}

/// [`CpuSettings`] as they are written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Lists {
    hide: FeatureSet,
    show: FeatureSet,
}

impl TryFrom<Lists> for CpuSettings {
    type Error = String;

    fn try_from(Lists { hide, show }: Lists) -> Result<Self, String> {
        let settings = Self { hide, show };
        match settings.contradiction() {
            Some(name) if hide.contains(name) => {
                Err(format!("\"{name}\" is to be hidden and shown: leave one out"))
            }
            Some(name) => Err(format!(
                "\"{name}\" is to be shown, but builds upon a feature that is hidden: hide less, \
                 or do not ask for it"
            )),
            None => Ok(settings),
        }
    }
}

impl CpuSettings {
    /// The features that the guest does not have, whatever the machine has.
    #[must_use]
    pub fn hidden(&self) -> FeatureSet {
        self.hide.with_dependents()
    }

    /// A feature that is asked for, though it is hidden or builds upon one that is.
    fn contradiction(&self) -> Option<&'static str> {
        self.show.and(self.hidden()).iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn every_need_is_a_feature_of_the_table() {
        for (name, needs) in FEATURES {
            assert!(FEATURES.iter().filter(|(other, _)| other == name).count() == 1, "{name}");
            assert!(needs.iter().all(|need| find(need).is_some()), "{name}");
        }
    }

    #[test]
    fn what_builds_upon_a_hidden_feature_is_hidden_too() {
        let set = |names: &[&'static str]| names.iter().copied().collect::<FeatureSet>();
        let hidden = set(&["avx2"]).with_dependents();
        assert!(hidden.contains("avx512vbmi") && hidden.contains("avx_vnni"));
        assert!(!hidden.contains("avx") && !hidden.contains("fma"));
        assert!(set(&["ssse3"]).with_dependents().contains("avx512_fp16"));
        assert_eq!(set(&["x2apic"]).with_dependents(), set(&["x2apic"]));
        let cpu = CpuSettings { hide: set(&["xsave"]), show: set(&["aes", "vaes"]) };
        assert_eq!(cpu.contradiction(), Some("vaes"));
        assert_eq!(CpuSettings { show: set(&["aes"]), ..cpu }.contradiction(), None);
    }

    #[test]
    fn the_document_has_the_names() {
        let document = include_str!("../../../../docs/config.md");
        let (_, list) = document.split_once("The names: ").unwrap();
        let list = list.split_once(".\n").unwrap().0;
        let listed = list.split(',').map(|name| name.trim().trim_matches('`'));
        assert!(listed.eq(names()), "{list}");
    }

    #[test]
    fn a_list_of_names() {
        let text = r#"{"hide":["x2apic","avx2"]}"#;
        let cpu: CpuSettings = serde_json::from_str(text).unwrap();
        assert!(cpu.hide.contains("avx2") && !cpu.hide.contains("avx") && cpu.show.is_empty());
        assert_eq!(serde_json::to_string(&cpu).unwrap(), text);
        let error = serde_json::from_str::<CpuSettings>(r#"{"hide":["avx3"]}"#).unwrap_err();
        assert!(error.to_string().starts_with("no feature \"avx3\" can be hidden"), "{error}");
        assert!(serde_json::from_str::<CpuSettings>(r#"{"hides":[]}"#).is_err());
        for (text, wanted) in [
            (r#"{"hide":["avx"],"show":["avx"]}"#, "\"avx\" is to be hidden and shown"),
            (r#"{"hide":["avx"],"show":["fma"]}"#, "\"fma\" is to be shown, but builds upon"),
        ] {
            let error = serde_json::from_str::<CpuSettings>(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
