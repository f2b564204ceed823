//! The emulator's fuzz target on random cases.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "modules that are a library's elsewhere; tests of 64-bit hosts"
)]

#[path = "../../../../tests/fuzz/src/emulator.rs"]
mod emulator;
#[path = "../../../../tests/fuzz/src/input.rs"]
mod input;
#[path = "../../../../tests/fuzz/src/machine.rs"]
mod machine;

use proptest::prelude::*;
use x86defs::control::CpuMode;

/// First bytes that reach the emulator's own code more often than chance would.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefixes = prop::collection::vec(
        prop::sample::select(vec![
            0x66u8, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x2e, 0x26, 0x48, 0x44, 0x41,
        ]),
        0..4,
    );
    let opcode = prop_oneof![
        any::<u8>().prop_map(|b| vec![b]),
        any::<u8>().prop_map(|b| vec![0x0f, b]),
        (0x88u8..0x8c).prop_map(|b| vec![b]),
        (0xa4u8..0xb0).prop_map(|b| vec![b]),
        (0x80u8..0x88).prop_map(|b| vec![b]),
        prop::sample::select(vec![
            0xb0u8, 0xb1, 0xc0, 0xc1, 0xc7, 0xb6, 0xb7, 0xbe, 0xbf, 0xa3, 0xab, 0xba
        ])
        .prop_map(|b| vec![0x0f, b]),
        any::<[u8; 2]>().prop_map(|[a, b]| vec![0x0f, a & 1, b]),
        any::<[u8; 2]>().prop_map(|[a, b]| vec![0x0f, if a & 1 == 0 { 0x38 } else { 0x3a }, b]),
        // VEX, of the maps and prefixes that there are.
        any::<[u8; 2]>().prop_map(|[a, b]| vec![0xc5, a, b]),
        any::<[u8; 3]>().prop_map(|[a, b, c]| vec![0xc4, a & 0xe0 | (1 + a % 3), b, c]),
    ];
    let rest = prop::collection::vec(any::<u8>(), 15);
    (prefixes, opcode, rest).prop_map(|(prefixes, opcode, rest)| {
        let mut code = [prefixes, opcode, rest].concat();
        code.truncate(15);
        code
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn emulator(mode in any::<u8>(), code in code(), rest in prop::collection::vec(any::<u8>(), 0..170)) {
        emulator::run(&[vec![mode], code, rest].concat());
    }
}

/// Each opcode of one byte behind each two prefixes, with operands that many forms take.
#[test]
fn decoders_agree_on_short_instructions() {
    const PREFIXES: [u8; 15] =
        [0x90, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x40, 0x48, 0x4d];
    let behind = [
        [0x03, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
        [0x05, 0x01, 0x02, 0x03, 0xf4, 0x05, 0x06, 0x07, 0x08, 0x09],
        [0x84, 0x25, 0x01, 0x02, 0x03, 0xf4, 0x05, 0x06, 0x07, 0x08],
        [0xc8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for (first, second) in PREFIXES.iter().flat_map(|a| PREFIXES.iter().map(move |b| (*a, *b))) {
        for (opcode, behind) in (0..=u8::MAX).flat_map(|op| behind.iter().map(move |b| (op, b))) {
            // The first of the list stands for none.
            let prefixes = [first, second].into_iter().filter(|prefix| *prefix != 0x90);
            let mut code: Vec<u8> = prefixes.chain([opcode]).chain(*behind).collect();
            code.resize(15, 0);
            for mode in [CpuMode::Protected32, CpuMode::Compat32, CpuMode::Long64] {
                emulator::decoders_agree(&code, mode);
            }
        }
    }
}
