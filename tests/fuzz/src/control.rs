//! Whatever comes over the control line: each line has one answer, which the
//! other end can read, and the next good request is understood.

// The crate under test, which includes this file, has no prelude of `std`.
extern crate alloc;

use alloc::vec::Vec;
use control::protocol::{Input, MAX_LINE, Reply, Session};
use control::{Answer, Operation};

/// One case: what comes, in pieces as the first byte says.
pub fn run(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let mut session = Session::new();
    let mut answers = 0;
    for piece in data.chunks(usize::from(*first) + 1) {
        answers += feed(&mut session, piece).len();
        assert!(session.pending() <= MAX_LINE);
    }
    let lines = data.split(|byte| *byte == b'\n').rev().skip(1);
    let wants = |line: &&[u8]| line.len() > MAX_LINE || !line.trim_ascii().is_empty();
    let full = lines.filter(wants).count();
    assert_eq!(answers, full, "one line, one answer");

    // Back in step, whatever came before.
    feed(&mut session, b"\n");
    let good = feed(&mut session, b"{\"v\":1,\"id\":\"a fresh one\",\"op\":\"list\"}\n");
    assert_eq!(good.len(), 1);
    assert_eq!(good[0].id.as_deref(), Some("a fresh one"));
    assert_eq!(good[0].outcome, Ok(Answer::Done));
}

fn feed(session: &mut Session, mut bytes: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let (used, input) = session.feed(bytes);
        assert!(used > 0);
        bytes = &bytes[used..];
        let line = match input {
            None => continue,
            Some(Input::Answer(line)) => line,
            Some(Input::Request(request)) => {
                // A request that was understood can be said again.
                if !matches!(request.operation, Operation::UploadChunk { .. }) {
                    assert!(!request.to_line().is_empty());
                }
                session.finish(&request, Ok(Answer::Done))
            }
        };
        assert_eq!(line.last(), Some(&b'\n'));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        replies.push(Reply::from_line(&line).expect("the other end can read it"));
    }
    replies
}
