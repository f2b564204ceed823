//! Tests of the control line.

extern crate std;
use super::*;
use crate::protocol::event::{EventGuest, KEPT};
use crate::protocol::uploads::MAX_UPLOADS;
use crate::{Answer, ErrorCode, GuestRef, Operation, Refusal};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use config::{GuestSettings, LogLevel, ModuleSettings, OnReset};
use proptest::prelude::*;

#[path = "../../../../../tests/fuzz/src/control.rs"]
#[expect(unreachable_pub, reason = "public where the fuzz targets call it")]
mod fuzz;
#[path = "../../../../../tests/fuzz/src/session.rs"]
#[expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "public where the fuzz targets call it; tests of 64-bit hosts"
)]
mod fuzz_session;

fn settings() -> Box<GuestSettings> {
    Box::new(GuestSettings {
        vcpus: 2,
        initrd: Some("initrd".into()),
        modules: vec![ModuleSettings { file: "m".into(), cmdline: "a\"b\n".into() }],
        cmdline: "console=ttyS0".into(),
        on_reset: OnReset::End,
        ..GuestSettings::new("debian", 512 << 20, "kernel")
    })
}

/// The one input that `line` comes to.
fn feed(session: &mut Session, line: &str) -> Input {
    let line = format!("{line}\n");
    let (used, input) = session.feed(line.as_bytes());
    assert_eq!(used, line.len());
    input.unwrap()
}

fn operation(line: &str) -> Operation {
    match feed(&mut Session::new(), line) {
        Input::Request(request) => request.operation,
        Input::Answer(line) => panic!("{}", String::from_utf8_lossy(&line)),
    }
}

fn refusal(session: &mut Session, line: &str) -> (Option<String>, Refusal) {
    let Input::Answer(line) = feed(session, line) else { panic!("{line} is good") };
    let reply = Reply::from_line(&line).unwrap();
    (reply.id, reply.outcome.unwrap_err())
}

fn refused(line: &str) -> (ErrorCode, String) {
    let (_, refusal) = refusal(&mut Session::new(), line);
    (refusal.code, refusal.message)
}

#[test]
fn requests() {
    assert_eq!(operation(r#"{"v":1,"id":"a","op":"list"}"#), Operation::List);
    assert_eq!(operation(r#" {"op":"mem", "id":"a" ,"v":1}  "#), Operation::Memory);
    assert_eq!(operation("{\"op\":\"mem\",\"id\":\"a\",\"v\":1}\r"), Operation::Memory);
    assert_eq!(
        operation(r#"{"v":1,"id":"a","op":"pause","guest":2}"#),
        Operation::Pause(GuestRef::Number(2))
    );
    assert_eq!(
        operation(r#"{"v":1,"id":"a","op":"stop","guest":"x"}"#),
        Operation::Stop { guest: GuestRef::typed("x"), seconds: 30 }
    );
    assert_eq!(operation(r#"{"v":1,"id":"a","op":"top"}"#), Operation::Stats(None));
    assert_eq!(
        operation(r#"{"v":1,"id":"a","op":"events","since":7}"#),
        Operation::Events { since: 7, max: MAX_EVENTS }
    );
    assert_eq!(
        operation(
            r#"{"v":1,"id":"a","op":"upload.chunk","name":"k","offset":3,"data":"AQID","crc32":9}"#
        ),
        Operation::UploadChunk { name: "k".into(), offset: 3, data: vec![1, 2, 3], crc32: 9 }
    );
    assert_eq!(
        operation(
            r#"{"v":1,"id":"a","op":"define","settings":{"name":"debian","memory":536870912,
            "vcpus":2,"kernel":"kernel","initrd":"initrd","cmdline":"console=ttyS0",
            "modules":[{"file":"m","cmdline":"a\"b\n"}],"debug_exit":false,"on_reset":"end"}}"#
                .replace('\n', "")
                .as_str()
        ),
        Operation::Define(settings())
    );
}

#[test]
fn each_bad_request_is_told_what_was_found_and_what_is_allowed() {
    let table = [
        ("x", ErrorCode::BadRequest, "column 1"),
        ("[]", ErrorCode::BadRequest, ""),
        ("{\"v\":1", ErrorCode::BadRequest, "EOF"),
        (r#"{"v":1,"id":7,"op":"list"}"#, ErrorCode::BadRequest, "integer `7`"),
        (r#"{"v":1,"v":1,"id":"a","op":"list"}"#, ErrorCode::BadRequest, "duplicate field `v`"),
        (r#"{"id":"a","op":"list"}"#, ErrorCode::MissingArgument, "\"v\""),
        (r#"{"v":2,"id":"a","op":"list"}"#, ErrorCode::Version, "speaks 1"),
        (r#"{"v":1,"op":"list"}"#, ErrorCode::MissingArgument, "\"id\""),
        (r#"{"v":1,"id":"","op":"list"}"#, ErrorCode::BadArgument, "1 to 64"),
        (r#"{"v":1,"id":"a"}"#, ErrorCode::MissingArgument, "\"op\""),
        (r#"{"v":1,"id":"a","op":"lsit"}"#, ErrorCode::UnknownOperation, "hello, list, attach"),
        (r#"{"v":1,"id":"a","op":"list","gest":1}"#, ErrorCode::BadRequest, "unknown field `gest`"),
        (r#"{"v":1,"id":"a","op":"list","guest":1}"#, ErrorCode::BadArgument, "takes nothing"),
        (r#"{"v":1,"id":"a","op":"why","guest":1,"max":1}"#, ErrorCode::BadArgument, "takes guest"),
        (r#"{"v":1,"id":"a","op":"why"}"#, ErrorCode::MissingArgument, "\"guest\""),
        (r#"{"v":1,"id":"a","op":"why","guest":-1}"#, ErrorCode::BadRequest, "name or number"),
        (
            r#"{"v":1,"id":"a","op":"stop","guest":1,"seconds":3601}"#,
            ErrorCode::BadArgument,
            "0 to 3600",
        ),
        (r#"{"v":1,"id":"a","op":"dump","guest":1,"vcpu":64}"#, ErrorCode::BadArgument, "0 to 63"),
        (r#"{"v":1,"id":"a","op":"log","level":"loud"}"#, ErrorCode::BadRequest, "`off`, `error`"),
        (r#"{"v":1,"id":"a","op":"events"}"#, ErrorCode::MissingArgument, "\"since\""),
        (r#"{"v":1,"id":"a","op":"events","since":0,"max":0}"#, ErrorCode::BadArgument, "1 to 64"),
        (r#"{"v":1,"id":"a","op":"upload.end","name":"a b"}"#, ErrorCode::BadArgument, "visible"),
        (
            r#"{"v":1,"id":"a","op":"upload.chunk","name":"k","offset":0,"data":"A","crc32":0}"#,
            ErrorCode::BadArgument,
            "base64",
        ),
        (
            r#"{"v":1,"id":"a","op":"upload.chunk","name":"k","offset":0,"data":"","crc32":0}"#,
            ErrorCode::BadArgument,
            "1 to 8192",
        ),
        (r#"{"v":1,"id":"a","op":"define"}"#, ErrorCode::MissingArgument, "\"settings\""),
        (
            r#"{"v":1,"id":"a","op":"define","settings":{"nam":""}}"#,
            ErrorCode::BadRequest,
            "unknown field `nam`",
        ),
    ];
    for (line, code, words) in table {
        let got = refused(line);
        assert_eq!(got.0, code, "{line}: {}", got.1);
        assert!(got.1.contains(words), "{line}: {}", got.1);
    }
    let long_id = format!(r#"{{"v":1,"id":"{}","op":"list"}}"#, "x".repeat(65));
    assert_eq!(refused(&long_id).0, ErrorCode::BadArgument);
    let mut long = settings();
    long.cmdline = "x".repeat(MAX_CMDLINE + 1);
    let line = Request::new("a", Operation::Define(long)).to_line();
    let text = String::from_utf8(line).unwrap();
    assert!(refused(text.trim_end()).1.contains("cmdline's length"));
    // Depth is no matter of stack.
    let deep = format!(r#"{{"v":1,"id":"a","x":{}}}"#, "[".repeat(8000));
    assert_eq!(refused(&deep).0, ErrorCode::BadRequest);
}

/// The lines of a table of the documentation that begin with these words in
/// backquotes, and their second column.
fn documented(name: &str) -> Option<&'static str> {
    let text = include_str!("../../../../../docs/control.md");
    let row = format!("| `{name}` |");
    text.lines().find_map(|line| line.strip_prefix(row.as_str())?.split('|').next())
}

#[test]
fn the_documentation_knows_each_operation_and_its_arguments() {
    for (name, takes) in OPERATIONS {
        let column = documented(name).unwrap_or_else(|| panic!("{name} is not documented"));
        let takes: Vec<String> = takes.iter().map(|name| format!("`{name}`")).collect();
        assert_eq!(column.trim(), takes.join(", "), "{name}");
    }
    let text = include_str!("../../../../../docs/control.md");
    for bound in ["at most 16,384 bytes", "1 to 8192 bytes", "1 to 64 bytes", "last 256 events"] {
        assert!(text.contains(bound), "{bound}");
    }
    assert_eq!((MAX_LINE, MAX_CHUNK, MAX_ID, KEPT, MAX_UPLOADS), (16_384, 8192, 64, 256, 16));
}

#[test]
fn each_operation_of_the_table_is_another_one() {
    let arguments = [
        ("guest", "1"),
        ("level", "\"info\""),
        ("since", "0"),
        ("name", "\"k\""),
        ("size", "1"),
        ("offset", "0"),
        ("crc32", "0"),
        ("data", "\"AA==\""),
        ("settings", &serde_json::to_string(&settings()).unwrap()),
    ];
    for (name, takes) in OPERATIONS {
        let mut line = format!(r#"{{"v":1,"id":"a","op":"{name}""#);
        for argument in takes.iter().filter(|argument| !argument.ends_with('?')) {
            let (_, value) = arguments.iter().find(|(name, _)| name == argument).unwrap();
            line.push_str(&format!(r#","{argument}":{value}"#));
        }
        line.push('}');
        let again = Request::new("a", operation(&line)).to_line();
        let wanted = if name == "top" { "stats" } else { name };
        let part = format!(r#""op":"{wanted}""#);
        assert!(String::from_utf8(again).unwrap().contains(&part), "{line}");
    }
}

#[test]
fn a_refusal_carries_the_requests_id() {
    let id = |line: &str| refusal(&mut Session::new(), line).0;
    assert_eq!(id(r#"{"v":1,"id":"a7","op":"why"}"#).as_deref(), Some("a7"));
    assert_eq!(id(r#"{"v":9,"id":"a7"}"#).as_deref(), Some("a7"));
    assert_eq!(id(r#"{"v":1,"id":"a7","op":"list","x":{"y":[1]}}"#).as_deref(), Some("a7"));
    assert_eq!(id(r#"{"v":1,"op":"why"}"#), None);
    assert_eq!(id("nonsense"), None);
}

#[test]
fn a_line_that_is_too_long_is_refused_and_the_next_is_read() {
    let mut session = Session::new();
    let good = r#"{"v":1,"id":"a","op":"list"}"#;
    for size in [MAX_LINE + 1, 3 * MAX_LINE] {
        let line = vec![b'x'; size];
        for piece in line.chunks(1000) {
            assert_eq!(session.feed(piece), (piece.len(), None));
            assert!(session.pending() <= MAX_LINE);
        }
        let (used, input) = session.feed(b"\nrest");
        assert_eq!(used, 1);
        let Some(Input::Answer(line)) = input else { panic!() };
        let reply = Reply::from_line(&line).unwrap();
        assert_eq!((reply.id, reply.outcome.unwrap_err().code), (None, ErrorCode::TooLong));
        assert!(matches!(feed(&mut session, good), Input::Request(_)));
    }
    // The longest line is not too long.
    let longest = format!("{good}{}", " ".repeat(MAX_LINE - good.len()));
    assert!(matches!(feed(&mut session, &longest), Input::Request(_)));
    let (_, refusal) = refusal(&mut session, &format!("{longest} "));
    assert_eq!(refusal.code, ErrorCode::TooLong);
    // Empty lines are nothing.
    assert_eq!(session.feed(b"\r\n"), (2, None));
}

#[test]
fn the_largest_piece_of_a_file_fits_a_line() {
    let request = Request::new(
        "x".repeat(MAX_ID),
        Operation::UploadChunk {
            name: "\\".repeat(MAX_FILE_NAME),
            offset: u64::MAX,
            data: vec![0xff; MAX_CHUNK],
            crc32: u32::MAX,
        },
    );
    assert!(request.to_line().len() <= MAX_LINE);
}

#[test]
fn the_same_request_is_done_once() {
    let mut session = Session::new();
    let start = r#"{"v":1,"id":"a","op":"start","guest":"x"}"#;
    let Input::Request(request) = feed(&mut session, start) else { panic!() };
    let answer = session.finish(&request, Ok(Answer::Done));
    assert_eq!(answer, b"{\"v\":1,\"id\":\"a\",\"ok\":\"done\"}\n");
    assert_eq!(feed(&mut session, start), Input::Answer(answer));
    // A refusal is an answer too.
    let kill = r#"{"v":1,"id":"b","op":"kill","guest":"x"}"#;
    let Input::Request(request) = feed(&mut session, kill) else { panic!() };
    let answer = session.finish(&request, Err(Refusal::new(ErrorCode::WrongState, "no")));
    assert_eq!(feed(&mut session, kill), Input::Answer(answer));
    // Another request with the same id is not done.
    let (id, other) = refusal(&mut session, r#"{"v":1,"id":"a","op":"kill","guest":"x"}"#);
    assert_eq!((id.as_deref(), other.code), (Some("a"), ErrorCode::IdReused));
    // A request that changes nothing is done anew, and may take any id.
    for _ in 0..2 {
        let Input::Request(request) = feed(&mut session, r#"{"v":1,"id":"c","op":"list"}"#) else {
            panic!()
        };
        let _ = session.finish(&request, Ok(Answer::Guests(Vec::new())));
    }
}

#[test]
fn memory_of_answers_is_bounded() {
    let mut session = Session::new();
    let mut ask = |id: usize| {
        feed(&mut session, &format!(r#"{{"v":1,"id":"{id}","op":"start","guest":1}}"#));
        let request = Request::new(id.to_string(), Operation::Start(GuestRef::Number(1)));
        session.finish(&request, Err(Refusal::new(ErrorCode::Internal, "x".repeat(3000))))
    };
    for id in 0..100 {
        let _ = ask(id);
    }
    let again = |session: &mut Session, id: usize| {
        matches!(
            feed(session, &format!(r#"{{"v":1,"id":"{id}","op":"start","guest":1}}"#)),
            Input::Answer(_)
        )
    };
    assert!(again(&mut session, 99) && again(&mut session, 85));
    assert!(!again(&mut session, 75) && !again(&mut session, 0));
}

#[test]
fn an_answer_that_is_too_large_is_refused() {
    let mut session = Session::new();
    let request = Request::new("a", Operation::List);
    let text = "x".repeat(MAX_ANSWER);
    let line = session.finish(&request, Err(Refusal::new(ErrorCode::Internal, text)));
    let reply = Reply::from_line(&line).unwrap();
    assert_eq!(reply.outcome.unwrap_err().code, ErrorCode::TooLarge);
}

#[test]
fn a_reply_is_one_thing() {
    for bad in [
        r#"{"v":1,"id":"a"}"#,
        r#"{"v":1,"id":"a","ok":"done","error":{"code":"internal","message":""}}"#,
        r#"{"v":2,"id":"a","ok":"done"}"#,
        "",
    ] {
        assert!(Reply::from_line(bad.as_bytes()).is_err(), "{bad}");
    }
}

fn guest() -> impl Strategy<Value = GuestRef> {
    prop_oneof![any::<u32>().prop_map(GuestRef::Number), any::<String>().prop_map(GuestRef::Text)]
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let name = || "[!-~]{1,100}";
    let vcpu = || proptest::option::of(0_u32..64);
    prop_oneof![
        Just(Operation::Hello),
        Just(Operation::List),
        guest().prop_map(Operation::Attach),
        guest().prop_map(Operation::Pause),
        guest().prop_map(Operation::Resume),
        guest().prop_map(Operation::Kill),
        guest().prop_map(Operation::Start),
        guest().prop_map(Operation::Why),
        guest().prop_map(Operation::Delete),
        (guest(), 0_u32..=3600).prop_map(|(guest, seconds)| Operation::Stop { guest, seconds }),
        (guest(), 0_u32..=3600).prop_map(|(guest, seconds)| Operation::Restart { guest, seconds }),
        proptest::option::of(guest()).prop_map(Operation::Stats),
        (guest(), vcpu()).prop_map(|(guest, vcpu)| Operation::Dump { guest, vcpu }),
        (guest(), vcpu()).prop_map(|(guest, vcpu)| Operation::Trace { guest, vcpu }),
        Just(Operation::Memory),
        Just(Operation::Cpus),
        Just(Operation::Log(LogLevel::Warn)),
        Just(Operation::Reboot),
        Just(Operation::PowerOff),
        (any::<u64>(), 1..=MAX_EVENTS).prop_map(|(since, max)| Operation::Events { since, max }),
        (name(), any::<u64>(), any::<u32>())
            .prop_map(|(name, size, crc32)| Operation::UploadBegin { name, size, crc32 }),
        (name(), any::<u64>(), proptest::collection::vec(any::<u8>(), 1..300), any::<u32>())
            .prop_map(|(name, offset, data, crc32)| Operation::UploadChunk {
                name,
                offset,
                data,
                crc32
            }),
        name().prop_map(|name| Operation::UploadEnd { name }),
        name().prop_map(|name| Operation::UploadDelete { name }),
        Just(Operation::Define(settings())),
        Just(Operation::DryRun(settings())),
    ]
}

proptest! {
    #[test]
    fn what_is_said_is_understood(
        operations in proptest::collection::vec(any_operation(), 1..10),
        piece in 1_usize..50,
        garbage in "[ -~]{0,40}",
    ) {
        let mut bytes = Vec::new();
        for (id, operation) in operations.iter().enumerate() {
            bytes.extend_from_slice(garbage.as_bytes());
            bytes.push(b'\n');
            bytes.extend(Request::new(id.to_string(), operation.clone()).to_line());
        }
        let mut session = Session::new();
        let mut seen = Vec::new();
        for mut piece in bytes.chunks(piece) {
            while !piece.is_empty() {
                let (used, input) = session.feed(piece);
                piece = &piece[used..];
                if let Some(Input::Request(request)) = input {
                    let _ = session.finish(&request, Ok(Answer::Done));
                    seen.push(request.operation);
                }
            }
        }
        prop_assert_eq!(seen, operations);
    }

    #[test]
    fn the_fuzz_target_holds(data in proptest::collection::vec(
        prop_oneof![any::<u8>(), proptest::sample::select(&b"{}[]\":,\n\\0"[..])], 0..400,
    )) {
        fuzz::run(&data);
    }

    #[test]
    fn the_session_fuzz_target_holds(
        operations in proptest::collection::vec(any_operation(), 1..8),
        twice in any::<u8>(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut said = Vec::new();
        for (n, operation) in operations.into_iter().enumerate() {
            let mut line = Request::new(format!("{n}"), operation).to_line();
            if twice >> n & 1 != 0 {
                line.insert(line.len() - 1, b'\t');
            }
            said.extend(line);
        }
        fuzz_session::run(&said);
        let at = at.index(said.len());
        said[at] = byte;
        fuzz_session::run(&said);
    }

    #[test]
    fn the_fuzz_target_holds_near_good_requests(
        operation in any_operation(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut line = Request::new("a", operation).to_line();
        let at = at.index(line.len());
        line[at] = byte;
        line.insert(0, 0xff);
        fuzz::run(&line);
    }
}

fn noted(count: u64) -> EventLog {
    let mut log = EventLog::new();
    for number in 1..=count {
        let guest = EventGuest { number: 1, name: "a".into() };
        assert_eq!(log.push(number * 10, Some(guest), EventKind::Started), number);
    }
    log
}

#[test]
fn a_reader_of_events_goes_on_where_it_stopped() {
    let mut log = noted(0);
    assert_eq!(log.since(0, 64).unwrap(), Events { events: vec![], next: 0, lost: 0 });
    log = noted(150);
    let (mut cursor, mut seen) = (0, Vec::new());
    loop {
        let found = log.since(cursor, 1000).unwrap();
        assert!(found.events.len() <= 64 && found.lost == 0);
        if found.events.is_empty() {
            assert_eq!(found.next, cursor);
            break;
        }
        seen.extend(found.events.iter().map(|event| event.seq));
        cursor = found.next;
    }
    assert_eq!(seen, (1..=150).collect::<Vec<u64>>());
    assert_eq!(log.since(151, 1).unwrap_err().code, ErrorCode::BadCursor);
}

#[test]
fn a_reader_that_comes_late_learns_what_it_lost() {
    let log = noted(KEPT as u64 + 44);
    let found = log.since(4, 2).unwrap();
    assert_eq!((found.lost, found.events[0].seq, found.next), (40, 45, 46));
    let nothing = log.since(0, 0).unwrap();
    assert_eq!((nothing.lost, nothing.next), (44, 44));
}

#[test]
fn events_are_bounded_and_readable_by_older_programs() {
    let mut log = EventLog::new();
    let reason = "ä".repeat(1000);
    log.push(5, None, EventKind::Ended { reason, crashed: true });
    let event = log.since(0, 1).unwrap().events.remove(0);
    let json = serde_json::to_string(&event).unwrap();
    assert!(json.starts_with(r#"{"seq":1,"time_ns":5,"what":{"kind":"ended","reason":"ää"#));
    assert!(json.len() < 300);
    assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    let newer = r#"{"seq":1,"time_ns":5,"new":1,"what":{"kind":"sang","song":"x"}}"#;
    assert_eq!(serde_json::from_str::<Event>(newer).unwrap().what, EventKind::Other);
}

/// Keeps files in vectors, and counts what it gave.
#[derive(Default)]
struct Vectors {
    given: u64,
    room: u64,
}

impl Storage for Vectors {
    type File = Vec<u8>;

    fn allocate(&mut self, size: u64) -> Result<Vec<u8>, Refusal> {
        if self.given + size > self.room {
            return Err(Refusal::new(ErrorCode::NoMemory, "full"));
        }
        self.given += size;
        Ok(vec![0; usize::try_from(size).unwrap()])
    }

    fn write(&mut self, file: &mut Vec<u8>, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let offset = usize::try_from(offset).unwrap();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn release(&mut self, file: Vec<u8>) {
        self.given -= file.len() as u64;
    }
}

fn uploads() -> Uploads<Vectors> {
    Uploads::new(Vectors { given: 0, room: 1000 }, 2000)
}

fn code<T: core::fmt::Debug>(result: Result<T, Refusal>) -> ErrorCode {
    result.unwrap_err().code
}

fn chunk(uploads: &mut Uploads<Vectors>, offset: u64, data: &[u8]) -> Result<u64, Refusal> {
    uploads.chunk("k", offset, data, crc32fast::hash(data)).map(|state| state.received)
}

#[test]
fn a_file_in_pieces() {
    let mut uploads = uploads();
    let whole = b"a kernel";
    let crc = crc32fast::hash(whole);
    uploads.begin("k", 8, crc).unwrap();
    assert_eq!(chunk(&mut uploads, 0, b"a k"), Ok(3));
    // The answer was lost: the same piece comes again. Then come pieces that do not fit, as
    // something was lost on the way.
    assert_eq!(chunk(&mut uploads, 0, b"a k"), Ok(3));
    assert_eq!(code(chunk(&mut uploads, 4, b"rnel")), ErrorCode::UploadOffset);
    assert_eq!(code(chunk(&mut uploads, 2, b"ker")), ErrorCode::UploadOffset);
    assert_eq!(code(chunk(&mut uploads, 3, b"ernel!")), ErrorCode::UploadSize);
    assert_eq!(code(chunk(&mut uploads, u64::MAX, b"x")), ErrorCode::UploadSize);
    assert_eq!(code(chunk(&mut uploads, 3, b"")), ErrorCode::UploadSize);
    assert_eq!(code(uploads.chunk("k", 3, b"ernel", 1)), ErrorCode::UploadChecksum);
    assert_eq!(code(uploads.end("k")), ErrorCode::UploadSize);
    assert_eq!(code(uploads.complete("k")), ErrorCode::NoUpload);
    // The client asks how far it came.
    assert_eq!(uploads.begin("k", 8, crc).unwrap().received, 3);
    assert_eq!(chunk(&mut uploads, 3, b"ernel"), Ok(8));
    assert!(uploads.end("k").unwrap().complete && uploads.end("k").unwrap().complete);
    assert_eq!(uploads.complete("k").unwrap(), whole);
    assert_eq!(uploads.names().collect::<Vec<_>>(), ["k"]);
}

#[test]
fn files_are_refused_where_they_can_not_be() {
    let mut uploads = uploads();
    uploads.begin("k", 600, 7).unwrap();
    assert_eq!(code(uploads.begin("k", 600, 8)), ErrorCode::Exists);
    assert_eq!(code(uploads.begin("l", 0, 8)), ErrorCode::UploadSize);
    assert_eq!(code(uploads.begin("l", 1401, 8)), ErrorCode::UploadSize);
    assert_eq!(code(uploads.begin("l", 401, 8)), ErrorCode::NoMemory);
    assert_eq!(code(uploads.end("x")), ErrorCode::NoUpload);
    assert_eq!(code(uploads.delete("x")), ErrorCode::NoUpload);
    for number in 1..MAX_UPLOADS {
        uploads.begin(&format!("{number}"), 1, 0).unwrap();
    }
    assert_eq!(code(uploads.begin("more", 1, 0)), ErrorCode::TooMany);
    // The wrong file: the pieces are good, the whole is not.
    chunk(&mut uploads, 0, &[1; 600]).unwrap();
    assert_eq!(code(uploads.end("k")), ErrorCode::UploadChecksum);
    for name in ["k".to_string()].into_iter().chain((1..MAX_UPLOADS).map(|n| n.to_string())) {
        uploads.delete(&name).unwrap();
    }
    assert!(uploads.begin("all", 1000, 0).is_ok(), "all room came back");
}

#[test]
fn a_file_stays_while_a_guest_is_made_of_it() {
    let mut uploads = uploads();
    uploads.begin("k", 1, crc32fast::hash(b"x")).unwrap();
    assert_eq!(code(uploads.hold(["k"].into_iter())), ErrorCode::NoUpload);
    chunk(&mut uploads, 0, b"x").unwrap();
    uploads.end("k").unwrap();
    assert_eq!(code(uploads.hold(["k", "l"].into_iter())), ErrorCode::NoUpload);
    uploads.hold(["k"].into_iter()).unwrap();
    assert_eq!(code(uploads.delete("k")), ErrorCode::WrongState);
    uploads.let_go(["k"].into_iter());
    uploads.delete("k").unwrap();
}
