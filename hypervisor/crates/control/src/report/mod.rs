//! Status and answers as text for a terminal of 80 columns.
//!
//! Everything here makes whole lines that end in a line feed. Nothing computes
//! with floating point: the image has none.

mod guests;
mod machine;
mod table;
#[cfg(test)]
mod tests;
mod trace;
pub mod units;
pub mod why;

pub use guests::{list, stats, top};
pub use machine::{cpus, memory};
pub use trace::{events, trace};

use crate::answer::Answer;
use alloc::format;
use alloc::string::String;
use core::fmt::Write;

/// An answer as text.
#[must_use]
pub fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Done => "done\n".into(),
        Answer::Hello(hello) => {
            format!("{} {}, boot {}\n", hello.program, hello.version, hello.boot)
        }
        Answer::Guests(guests) => list(guests),
        Answer::Guest(guest) => list(core::slice::from_ref(guest)),
        Answer::Stats(status) => {
            let mut text = String::new();
            for guest in &status.guests {
                text.push_str(&stats(guest));
            }
            text
        }
        Answer::Dump(dump) => {
            let mut text = String::new();
            for vcpu in &dump.vcpus {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{} vCPU {}:", dump.name, vcpu.index);
                text.push_str(vcpu.text.trim_end());
                text.push('\n');
            }
            text
        }
        Answer::Trace(status) => trace(status),
        Answer::Why(status) => why::why(status),
        Answer::Memory(status) => memory(status),
        Answer::Cpus(status) => cpus(status),
        Answer::Events(found) => events(found),
        Answer::Upload(upload) => {
            let whole = if upload.complete { "whole" } else { "not whole" };
            format!("{}: {} of {} bytes, {whole}\n", upload.name, upload.received, upload.size)
        }
        Answer::Verdict(verdict) => {
            format!("{}: {}\n", if verdict.possible { "yes" } else { "no" }, verdict.reason)
        }
    }
}
