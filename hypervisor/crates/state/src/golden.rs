//! States in files, which tests compare with what the code makes of them: a layout that changes
//! without a new version is noticed, and the version before stays readable.

extern crate std;

use crate::saved::{Saved, oldest, read};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use std::fs;
use std::path::Path;

/// Variable that has missing files written.
const WRITE: &str = "STEWARD_WRITE_GOLDEN";

/// Compares the files of `T` in the folder `tests/golden` of the crate at `manifest_dir` with what
/// the code makes of them. Each has the bytes of a payload and, as JSON, the state that they hold.
/// `sample` makes a state for a file that is missing.
///
/// # Panics
/// If they differ, or a file is missing.
pub fn check<T: Saved>(manifest_dir: &str, sample: impl FnOnce() -> T) {
    let folder = Path::new(manifest_dir).join("tests/golden");
    let name = |version| folder.join(std::format!("{}-{version}.txt", T::NAME));
    let newest = name(T::VERSION);
    if !newest.exists() && std::env::var_os(WRITE).is_some() {
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(&newest, text(&sample())).expect("the file can be written");
    }
    for version in oldest::<T>().max(1)..=T::VERSION {
        let file = name(version);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| {
            panic!("{}: {error}; {WRITE}=1 has it written, once for each version", file.display())
        });
        one::<T>(&text, version, &file);
    }
}

fn one<T: Saved>(text: &str, version: u16, file: &Path) {
    let file = file.display();
    let (hex, json) = text.split_once('\n').unwrap_or_else(|| panic!("{file}: one line"));
    let payload = bytes(hex);
    let state: T = read(version, &payload).unwrap_or_else(|| {
        panic!("{file}: version {version} is no longer read: a changed layout is a new version")
    });
    let wanted: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let found = serde_json::to_value(&state).expect("a state can be written down");
    assert_eq!(found, wanted, "{file}: the bytes mean something else than before");
    if version == T::VERSION {
        let again = postcard::to_extend(&state, Vec::new()).expect("a state can be written down");
        assert_eq!(again, payload, "{file}: a changed layout is a new version");
    }
}

fn text<T: Saved>(state: &T) -> String {
    let payload = postcard::to_extend(state, Vec::new()).expect("a state can be written down");
    let mut text = String::new();
    for byte in payload {
        write!(text, "{byte:02x}").expect("there is room");
    }
    let json = serde_json::to_string(state).expect("a state can be written down");
    text + "\n" + &json + "\n"
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| hex.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..hex.len()).step_by(2).map(|at| digits(at).expect("hexadecimal digits")).collect()
}
