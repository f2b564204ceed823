extern crate std;

mod terminal;

use super::*;
use proptest::prelude::*;
use std::string::String;
use std::vec;
use std::vec::Vec;

fn filtered(bytes: &[u8]) -> Vec<u8> {
    Screen::new().filter(bytes)
}

fn shown(text: &str) -> String {
    String::from_utf8(filtered(text.as_bytes())).unwrap()
}

#[test]
fn what_only_shows_passes_unchanged() {
    for text in [
        "plain text, 100 %\r\n\ttab \x08\x08 bell \x07",
        // Prompts, `ls --color`, `less`, `vi`, `top`.
        "\x1b[1;32mroot@steward\x1b[0m:\x1b[01;34m~\x1b[00m# ",
        "\x1b[38;2;255;100;0;48;2;12;34;56mcolour\x1b[38:5:208m\x1b[m",
        "\x1b[?1049h\x1b[22;1H\x1b[?25l\x1b[K\x1b[2J\x1b[H\x1b[?12l\x1b[?25h\x1b[?12;25h\x1b[?1049l",
        "\x1b[4h\x1b[4l\x1b[1;24r\x1b[3L\x1b[2M\x1b[4P\x1b[5@\x1b[6X\x1b[2S\x1b[T\x1b[9b\x1b[999b",
        "\x1b7\x1b8\x1b[s\x1b[u\x1bM\x1bD\x1bE\x1b=\x1b>\x1bc\x1b[!p\x1b[3 q",
        "\x1b(0lqqk\x1b(B\x1b)0\x0e\x0f\x1b#8",
        "\x1b[?1h\x1b=\x1b[?2004h\x1b[?7l\x1b[?5h\x1b[?J\x1b[0K",
        // Characters of two, three and four bytes, some of whose bytes are C1 codes elsewhere.
        "é “quoted” ═══ ─│┌ Û 💡 \u{a0}\u{ff}",
    ] {
        assert_eq!(shown(text), text);
    }
    // Latin 1.
    assert_eq!(filtered(b"caf\xe9 \xa3"), b"caf\xe9 \xa3");
}

#[test]
fn what_makes_a_terminal_answer_or_reprograms_it_does_not_pass() {
    for text in [
        // Enquiry; stop and go.
        "\x05",
        "\x11\x13",
        // Attributes, status, position, parameters, modes, window and title, checksum, version.
        "\x1b[c",
        "\x1b[0c",
        "\x1b[>c",
        "\x1b[=c",
        "\x1bZ",
        "\x1b[5n",
        "\x1b[6n",
        "\x1b[?6n",
        "\x1b[x",
        "\x1b[4$p",
        "\x1b[?25$p",
        "\x1b[21t",
        "\x1b[14;2t",
        "\x1b[1;1;1;1;1;1*y",
        "\x1b[>q",
        "\x1b[?u",
        "\x1b[?1;1;0S",
        "\x1b[?4m",
        "\x1b[1$w",
        // Strings: settings, capabilities, title, colours, clipboard, key definitions.
        "\x1bP$qm\x1b\\",
        "\x1bP+q544e\x1b\\",
        "\x1bP1;1|17/6c73\x1b\\",
        "\x1b]0;rm -rf /\x07",
        "\x1b]4;1;?\x1b\\",
        "\x1b]52;c;?\x07",
        "\x1b_Gi=1\x1b\\",
        "\x1b^x\x1b\\\x1bXx\x1b\\",
        // The same in eight bits, and as UTF-8.
        "\u{9b}\u{9d}\u{90}\u{85}",
        // Keys, encodings, controls of eight bits, VT52, mouse, printer, local echo, keyboard.
        "\x1b[>4;2m",
        "\x1b[>1u",
        "\x1b%@\x1b%G\x1b F\x1b G",
        "\x1b[?2l",
        "\x1b[?1000h\x1b[?1003h\x1b[?1006h\x1b[?1004h\x1b[?9h",
        "\x1b[?25;1000h",
        "\x1b[1;2;3;4;5T",
        "\x1b[5i\x1b[?5i",
        "\x1b[2h\x1b[12l\x1b[20h\x1b[4;12h",
        "\x1b[?h",
        // Nobody could put them back: tab stops, double size, origin.
        "\x1bH\x1b[g\x1b[3g",
        "\x1b#3\x1b#4\x1b#6",
        "\x1b[?6h\x1b[?6l",
        // No terminal has this.
        "\x1b[999999999b",
        // A flood.
        "\x1b[1000b\x1b[99999b\x1b[00999b\x1b[9;999b",
        "\x1b[1<m",
        "\x1b[1 2m",
        "\x1b[0!p",
        "\x1b\x7f\x1b[\x1b\x1b[",
    ] {
        assert_eq!(shown(text), "", "{text:?}");
    }
    // Codes of eight bits and over-long UTF-8: what followed them is text then.
    assert_eq!(filtered(b"\x9b6n\x9dx\x90y"), b"6nxy");
    assert_eq!(filtered(b"\xc0\x9b6n"), b"\xc06n");
    assert_eq!(filtered(b"\xe0\x82\x9b6n \xe2\x9b6n"), b"\xe06n \xe26n");
}

#[test]
fn what_is_left_out_takes_nothing_else_with_it() {
    assert_eq!(shown("a\x1b[6nb\x1b]0;title\x07c\x1bP$qm\x1b\\d"), "abcd");
    // A string that nobody ends.
    assert_eq!(shown("\x1b]0;title\nnext line"), "\nnext line");
    assert_eq!(shown("\x1bPabc\x1b[1mbold"), "\x1b[1mbold");
    // Given up in the middle, and with control characters inside.
    assert_eq!(shown("\x1b[6\x18n\x1b[6\x1an"), "nn");
    assert_eq!(shown("\x1b[1\r\n;5H"), "\r\n\x1b[1;5H");
    assert_eq!(shown("\x1b[\x056n"), "");
    assert_eq!(shown("\x1b[6é n"), "é n");
    let long = std::format!("\x1b[{}mx", "1;".repeat(LONGEST));
    assert_eq!(shown(&long), "x");
}

/// A terminal, by other means than the filter: does it answer, change how it reads, or is
/// it left in the middle of something? It decodes UTF-8 first, and knows C1 codes.
fn misbehaves(bytes: &[u8]) -> Option<String> {
    let text: Vec<char> = String::from_utf8_lossy(bytes).chars().collect();
    let mut rest = &text[..];
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            '\x05' | '\x11'..='\x14' | '\u{80}'..='\u{9f}' => {
                return Some(first.escape_debug().collect());
            }
            '\x1b' => {}
            _ => continue,
        }
        // ESC, intermediates, and the last; or CSI, parameters, intermediates, and the last.
        let control = rest.first() == Some(&'[');
        let from = usize::from(control);
        let length = rest[from..].iter().take_while(|c| {
            let low = if control { ' '..='?' } else { ' '..='/' };
            low.contains(*c)
        });
        let end = from + length.count();
        let sequence: String = rest[..rest.len().min(end + 1)].iter().collect();
        let known = harmless(&sequence);
        if rest.len() <= end || !known {
            return Some(sequence);
        }
        rest = &rest[end + 1..];
    }
    None
}

/// The sequences that are harmless, as a list of their forms: `#` stands for any parameters.
fn harmless(sequence: &str) -> bool {
    let plain = ["7", "8", "D", "E", "M", "=", ">", "c", "[s", "[u", "[!p"];
    if plain.contains(&sequence) {
        return true;
    }
    let number = |text: &str| text.chars().all(|c| c.is_ascii_digit() || ";:".contains(c));
    let middle = |from: &str, to: &str| {
        sequence
            .strip_prefix(from)
            .and_then(|rest| rest.strip_suffix(to))
            .map(std::borrow::ToOwned::to_owned)
    };
    let sets = ["(", ")", "*", "+"].iter().any(|set| middle(set, "").is_some_and(|c| c.len() == 1));
    let size = middle("#", "").is_some_and(|c| c.len() == 1);
    let shape = middle("[", " q").is_some_and(|text| number(&text));
    let usual = "@ABCDEFGHIJKLMPSXZ`abdefmrT"
        .chars()
        .any(|last| middle("[", last.encode_utf8(&mut [0; 4])).is_some_and(|text| number(&text)));
    let erase = ["J", "K"].iter().any(|last| middle("[?", last).is_some_and(|text| number(&text)));
    let modes =
        |text: String, allowed: &[&str]| text.split(';').all(|mode| allowed.contains(&mode));
    let allowed = ["1", "5", "7", "12", "25", "47", "1047", "1048", "1049", "2004"];
    let private =
        ["h", "l"].iter().any(|last| middle("[?", last).is_some_and(|text| modes(text, &allowed)));
    let insert =
        ["h", "l"].iter().any(|last| middle("[", last).is_some_and(|text| modes(text, &["4"])));
    sets || size || shape || usual || erase || private || insert
}

/// Bytes in which sequences are frequent.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let sequence = "\\x1b\\[[?>=!]?[0-9;:]{0,6}[ $!*]?[@-~]".prop_map(String::into_bytes);
    let part = prop_oneof![
        4 => prop::sample::select(b"\x1b[]P?>;:0123456789cnhlmtqpxyZ\\ $!#%(\x05\x07\x18\n\x90\x9b\x9d\xc2\xe2\xe0".to_vec())
            .prop_map(|byte| vec![byte]),
        3 => sequence,
        1 => any::<u8>().prop_map(|byte| vec![byte]),
        1 => "[a-z é═“💡]{1,4}".prop_map(String::into_bytes),
    ];
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_terminal_answers(bytes in output()) {
        let out = filtered(&bytes);
        prop_assert_eq!(misbehaves(&out), None, "{:?}", out);
    }

    #[test]
    fn what_passed_passes_again(mut bytes in output()) {
        // Nothing is left incomplete.
        bytes.push(b'\n');
        let out = filtered(&bytes);
        prop_assert_eq!(filtered(&out), out);
    }

    #[test]
    fn pieces_come_out_as_the_whole(bytes in output(), cut in any::<prop::sample::Index>()) {
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        let mut screen = Screen::new();
        let mut out = screen.filter(first);
        // The plain part in one go, the rest byte by byte.
        let plain = screen.plain(second);
        out.extend_from_slice(&second[..plain]);
        out.extend(screen.filter(&second[plain..]));
        prop_assert_eq!(out, filtered(&bytes));
    }

    #[test]
    fn what_is_shown_in_one_piece_is_never_too_long(bytes in output()) {
        let mut screen = Screen::new();
        for byte in bytes {
            screen.feed(byte, &mut |part| assert!(part.len() <= LONGEST));
        }
    }
}

#[test]
fn the_model_of_a_terminal_sees_what_is_wrong() {
    for bad in
        ["\x1b[6n", "\x1b]0;x\x07", "\x1b[", "\u{9b}", "\x05", "\x1bZ", "\x1b[?1000h", "\x1b%@"]
    {
        assert!(misbehaves(bad.as_bytes()).is_some(), "{bad:?}");
    }
    assert_eq!(misbehaves("\x1b[1mé\x1b(B".as_bytes()), None);
}
