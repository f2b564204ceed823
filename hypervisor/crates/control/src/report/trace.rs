//! Reports of the past: the last exits, and events.

use crate::protocol::event::{Event, EventKind, Events};
use crate::report::table::cut;
use crate::report::units::duration;
use crate::status::ExitTrace;
use alloc::format;
use alloc::string::String;
use core::fmt::Write;

/// The last exits of each vCPU, the oldest first.
#[must_use]
pub fn trace(snapshot: &ExitTrace) -> String {
    let mut text = String::new();
    for vcpu in &snapshot.vcpus {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{} vCPU {}: the last {} of {} exits",
            snapshot.name,
            vcpu.index,
            vcpu.exits.len(),
            vcpu.total
        );
        for exit in &vcpu.exits {
            let mut line = String::new();
            if let Some(time) = exit.time_ns {
                // Writing to a string does not fail.
                let _ = write!(line, "{:>14} ", seconds(time));
            }
            // Writing to a string does not fail.
            let _ = write!(line, "{:#018x} {:<13} ", exit.rip, exit.reason);
            if let Some(took) = exit.took_ns {
                // Writing to a string does not fail.
                let _ = write!(line, "{:>8} ", duration(took));
            }
            line.push_str(&exit.detail);
            text.push_str(cut(&line, 160).trim_end());
            text.push('\n');
        }
    }
    text
}

/// The events, the oldest first.
#[must_use]
pub fn events(events: &Events) -> String {
    let mut text = String::new();
    if events.lost != 0 {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} events were forgotten", events.lost);
    }
    for event in &events.events {
        text.push_str(&line(event));
    }
    text
}

fn line(event: &Event) -> String {
    let who = event
        .guest
        .as_ref()
        .map_or_else(String::new, |guest| format!("guest {} {} ", guest.number, guest.name));
    let what = match &event.what {
        EventKind::Defined => "is defined".into(),
        EventKind::Starting => "starts".into(),
        EventKind::Started => "runs".into(),
        EventKind::StartFailed { reason } => format!("could not start: {reason}"),
        EventKind::Paused => "is paused".into(),
        EventKind::Resumed => "goes on".into(),
        EventKind::Stopping { seconds } => format!("is stopping, by force in {seconds} s"),
        EventKind::Ended { reason, crashed: false } => format!("has ended: {reason}"),
        EventKind::Ended { reason, crashed: true } => format!("has crashed: {reason}"),
        EventKind::Cleared => "holds nothing any more".into(),
        EventKind::Waiting { delay_ns } => format!("starts again in {}", duration(*delay_ns)),
        EventKind::Deleted => "is deleted".into(),
        EventKind::Uploaded { name } => format!("file {name} is whole"),
        EventKind::UploadDeleted { name } => format!("file {name} is deleted"),
        EventKind::Other => "something that this program does not know".into(),
    };
    format!("{} {:>14} {who}{what}\n", event.seq, seconds(event.time_ns))
}

fn seconds(ns: u64) -> String {
    format!("{}.{:06}", ns / 1_000_000_000, ns / 1_000 % 1_000_000)
}
