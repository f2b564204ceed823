//! Traces for the timeline viewer Perfetto, in the JSON format that Chrome's
//! tracing introduced ("Trace Event Format"): a slice for each exit, a row for
//! each vCPU. Times there are microseconds.
//!
//! Exits that the hypervisor serves without leaving its entry code have no time: that
//! would cost as much as they do. They stand, as instants, where the exit before them
//! ended; or, at the begin, where the first begins that has a time.

use anyhow::{Result, bail};
use control::status::ExitTrace;
use serde_json::{Value, json};

/// The trace in that format.
pub fn trace(exits: &ExitTrace) -> Result<Value> {
    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": 1, "args": { "name": exits.name },
    })];
    for vcpu in &exits.vcpus {
        events.push(json!({
            "name": "thread_name", "ph": "M", "pid": 1, "tid": vcpu.index,
            "args": { "name": format!("vCPU {}", vcpu.index) },
        }));
        let Some(mut last) = vcpu.exits.iter().find_map(|exit| exit.time_ns) else {
            bail!("none of the last exits has a time: there is no timeline to draw")
        };
        for exit in &vcpu.exits {
            let time = exit.time_ns.unwrap_or(last);
            last = time.saturating_add(exit.took_ns.unwrap_or(0));
            let mut event = json!({
                "name": exit.reason, "cat": "exit", "pid": 1, "tid": vcpu.index,
                "ts": micros(time),
                "args": {
                    "rip": format!("{:#x}", exit.rip),
                    "detail": exit.detail,
                    "time": if exit.time_ns.is_some() { "recorded" } else { "not recorded" },
                },
            });
            // Without a length it is an instant, on its thread's row.
            let more = match exit.time_ns.and(exit.took_ns) {
                Some(took) => [("ph", json!("X")), ("dur", micros(took))],
                None => [("ph", json!("i")), ("s", json!("t"))],
            };
            if let Value::Object(event) = &mut event {
                event.extend(more.map(|(key, value)| (key.to_owned(), value)));
            }
            events.push(event);
        }
    }
    Ok(json!({ "displayTimeUnit": "ns", "traceEvents": events }))
}

/// Beyond the 53 bits of a JSON number only the nanoseconds suffer, after 104 days.
fn micros(ns: u64) -> Value {
    let whole = u32::try_from(ns / 1_000_000_000).unwrap_or(u32::MAX);
    let rest = u32::try_from(ns % 1_000_000_000).unwrap_or(0);
    json!(f64::from(whole) * 1e6 + f64::from(rest) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::status::{TracedExit, VcpuTrace};

    fn traced(time_ns: Option<u64>, took_ns: Option<u64>) -> ExitTrace {
        several(&[(time_ns, took_ns)])
    }

    fn several(times: &[(Option<u64>, Option<u64>)]) -> ExitTrace {
        let exit = |(time_ns, took_ns): &(Option<u64>, Option<u64>)| TracedExit {
            time_ns: *time_ns,
            took_ns: *took_ns,
            rip: 0x1000,
            reason: "cpuid".to_owned(),
            detail: "leaf 1".to_owned(),
        };
        let exits = times.iter().map(exit).collect();
        let vcpus = vec![VcpuTrace { index: 1, total: 9, exits }];
        ExitTrace { name: "tiny".to_owned(), vcpus }
    }

    #[test]
    fn exits_without_a_time_stand_behind_the_one_before() {
        let times = [
            (None, None),
            (Some(5_000), Some(2_000)),
            (None, None),
            (None, None),
            (Some(9_000), Some(500)),
        ];
        let trace = trace(&several(&times)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let told = |event: &Value| {
            let ph = event["ph"].as_str().unwrap().to_owned();
            (ph, event["ts"].as_f64().unwrap(), event["args"]["time"].as_str().unwrap().to_owned())
        };
        let told: Vec<_> = events[2..].iter().map(told).collect();
        let of = |ph: &str, ts, time: &str| (ph.to_owned(), ts, time.to_owned());
        assert_eq!(
            told,
            [
                of("i", 5.0, "not recorded"),
                of("X", 5.0, "recorded"),
                of("i", 7.0, "not recorded"),
                of("i", 7.0, "not recorded"),
                of("X", 9.0, "recorded"),
            ]
        );
    }

    #[test]
    fn an_exit_is_a_slice_on_its_vcpus_row() {
        let trace = trace(&traced(Some(2_000_001_500), Some(250))).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events[0]["args"]["name"], "tiny");
        assert_eq!(events[1]["args"]["name"], "vCPU 1");
        let exit = &events[2];
        assert_eq!(
            (&exit["ph"], &exit["tid"], &exit["name"]),
            (&json!("X"), &json!(1), &json!("cpuid"))
        );
        assert_eq!((exit["ts"].as_f64(), exit["dur"].as_f64()), (Some(2_000_001.5), Some(0.25)));
        assert_eq!(exit["args"]["rip"], "0x1000");
    }

    #[test]
    fn without_lengths_instants_and_without_times_nothing() {
        let instants = trace(&traced(Some(1), None)).unwrap();
        assert_eq!(instants["traceEvents"][2]["ph"], "i");
        assert!(trace(&traced(None, None)).is_err());
    }
}
