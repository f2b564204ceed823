//! A saved machine must be refused or be whole, whatever its bytes are; and what was read can be
//! written again.

use serde::{Deserialize, Serialize};
use state::{Saved, Sections, Writer};

/// A state with one of each kind of field.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    small: u8,
    word: u64,
    flag: bool,
    text: String,
    list: Vec<(u16, Option<i32>)>,
}

impl Saved for Sample {
    const NAME: &'static str = "sample";
    const VERSION: u16 = 1;
}

/// One case: the first byte says whether the others are a saved machine, or a section's payload.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let whole;
    let bytes = if choice & 1 != 0 {
        whole = machine(*choice, rest);
        &whole
    } else {
        rest
    };
    let Ok(mut sections) = Sections::open(bytes) else { return };
    let Ok(sample) = sections.take::<Sample>(0) else { return };
    let finished = sections.finish();
    let mut writer = Writer::new();
    writer.put(0, &sample);
    let again = writer.finish().expect("what was read can be written");
    let mut sections = Sections::open(&again).expect("what was written can be read");
    assert_eq!(sections.take::<Sample>(0).as_ref(), Ok(&sample));
    assert_eq!(sections.finish(), Ok(()));
    assert!(finished.is_err() || again.len() <= bytes.len());
}

/// A machine with one section, whose checksum is right.
fn machine(choice: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"STEWARDM\x01\0".to_vec();
    let mut section = |name: &[u8], version: u8, payload: &[u8]| {
        let start = bytes.len();
        bytes.push(u8::try_from(name.len()).expect("a name is short"));
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&[0, 0, 0, 0, version, 0]);
        bytes.extend_from_slice(
            &(u32::try_from(payload.len()).expect("a case is small")).to_le_bytes(),
        );
        bytes.extend_from_slice(payload);
        let crc = crc32fast::hash(&bytes[start..]);
        bytes.extend_from_slice(&crc.to_le_bytes());
    };
    section(b"sample", choice >> 1, payload);
    section(b"end", 1, &[1, 0, 0, 0]);
    bytes
}
