//! Statistics in Prometheus' text format.
//!
//! Names that begin with `libvirt_` are those of libvirt-exporter, with its
//! meanings, so that its dashboards work; `steward_` is what it has no name for.
//! `libvirt_domain_vcpu_delay_seconds_total` is time without a CPU though there was
//! something to do. A guest that waits for an interrupt waits for no I/O, so that
//! is `steward_domain_vcpu_idle_seconds_total`.

use std::fmt::Write;

use control::status::{GuestState, GuestStats, Statistics, VcpuStats};

/// A sample: its labels, and its value in text.
type Sample = (String, String);

/// One metric after the other.
struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: Vec<Sample>) {
        if samples.is_empty() {
            return;
        }
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            // Writing to a string does not fail.
            let _ = if labels.is_empty() {
                writeln!(self.0, "{name} {value}")
            } else {
                writeln!(self.0, "{name}{{{labels}}} {value}")
            };
        }
    }
}

/// The statistics in Prometheus' text format.
pub fn text(statistics: &Statistics) -> String {
    let mut text = Text(String::new());
    text.metric("libvirt_up", "gauge", "Whether the hypervisor answered.", vec![one("", 1)]);
    guests(statistics, &mut text);
    vcpus(statistics, &mut text);
    exits(statistics, &mut text);
    machine(statistics, &mut text);
    text.0
}

fn guests(statistics: &Statistics, text: &mut Text) {
    let each = |value: &dyn Fn(&GuestStats) -> String| -> Vec<Sample> {
        statistics.guests.iter().map(|guest| (domain(guest), value(guest))).collect()
    };
    let meta = |guest: &GuestStats| {
        let uuid = escape(guest.uuid.as_deref().unwrap_or_default());
        let name = escape(&guest.name);
        let labels = format!("domain=\"{name}\",instance_name=\"{name}\",uuid=\"{uuid}\"");
        (labels, "1".to_owned())
    };
    text.metric(
        "libvirt_domain_info_meta",
        "gauge",
        "What the domain is called.",
        statistics.guests.iter().map(meta).collect(),
    );
    text.metric(
        "libvirt_domain_info_vstate",
        "gauge",
        "State of the domain: 0 none, 1 running, 3 paused, 4 shutting down, 5 off, 6 crashed.",
        each(&|guest| vstate(guest.state).to_string()),
    );
    text.metric(
        "libvirt_domain_info_virtual_cpus",
        "gauge",
        "Number of virtual CPUs.",
        each(&|guest| guest.vcpus.len().to_string()),
    );
    text.metric(
        "libvirt_domain_info_maximum_memory_bytes",
        "gauge",
        "Memory that the domain may have.",
        each(&|guest| guest.memory.ram.to_string()),
    );
    text.metric(
        "libvirt_domain_info_memory_usage_bytes",
        "gauge",
        "Memory that the domain has touched.",
        each(&|guest| guest.memory.populated.to_string()),
    );
    text.metric(
        "libvirt_domain_memory_stats_rss_bytes",
        "gauge",
        "Memory of the machine that the domain takes, with what it costs beside its own.",
        each(&|guest| {
            let memory = &guest.memory;
            memory
                .populated
                .saturating_add(memory.tables)
                .saturating_add(memory.overhead)
                .to_string()
        }),
    );
    text.metric(
        "libvirt_domain_info_cpu_time_seconds_total",
        "counter",
        "CPU time of the domain, with what was done for it.",
        each(&|guest| seconds(guest.times().run_ns.saturating_add(guest.service_ns))),
    );
    text.metric(
        "steward_domain_service_seconds_total",
        "counter",
        "CPU time of services that was charged to the domain, and of zeroing memory ahead.",
        each(&|guest| seconds(guest.service_ns)),
    );
    text.metric(
        "steward_domain_zeroing_seconds_total",
        "counter",
        "Of that: zeroing memory ahead since the domain's first instruction.",
        each(&|guest| seconds(guest.zeroing_ns)),
    );
    text.metric(
        "steward_domain_throttled_seconds_total",
        "counter",
        "Time that the domain's cap kept it from running.",
        each(&|guest| seconds(guest.throttled_ns)),
    );
}

fn vcpus(statistics: &Statistics, text: &mut Text) {
    let each = |value: &dyn Fn(&GuestStats, &VcpuStats) -> Option<String>| -> Vec<Sample> {
        let all = statistics.guests.iter();
        all.flat_map(|guest| {
            guest.vcpus.iter().filter_map(move |vcpu| {
                let labels = format!("{},vcpu=\"{}\"", domain(guest), vcpu.index);
                value(guest, vcpu).map(|value| (labels, value))
            })
        })
        .collect()
    };
    text.metric(
        "libvirt_domain_vcpu_state",
        "gauge",
        "State of the virtual CPU: 0 offline, 1 running, 2 blocked.",
        each(&|guest, vcpu| {
            let live = matches!(guest.state, GuestState::Running | GuestState::Stopping);
            Some(
                if !live {
                    "0"
                } else if vcpu.cpu.is_some() {
                    "1"
                } else {
                    "2"
                }
                .to_owned(),
            )
        }),
    );
    text.metric(
        "libvirt_domain_vcpu_cpu",
        "gauge",
        "CPU that runs the virtual CPU.",
        each(&|_, vcpu| vcpu.cpu.map(|cpu| cpu.to_string())),
    );
    text.metric(
        "libvirt_domain_vcpu_time_seconds_total",
        "counter",
        "Time that the virtual CPU ran.",
        each(&|_, vcpu| Some(seconds(vcpu.times.run_ns))),
    );
    text.metric(
        "libvirt_domain_vcpu_delay_seconds_total",
        "counter",
        "Time that the virtual CPU was ready, but had no CPU.",
        each(&|_, vcpu| Some(seconds(vcpu.times.ready_ns))),
    );
    text.metric(
        "steward_domain_vcpu_idle_seconds_total",
        "counter",
        "Time that the virtual CPU waited for an interrupt.",
        each(&|_, vcpu| Some(seconds(vcpu.times.wait_ns))),
    );
    text.metric(
        "steward_domain_vcpu_migrations_total",
        "counter",
        "How often the virtual CPU changed its CPU.",
        each(&|_, vcpu| Some(vcpu.migrations.to_string())),
    );
    text.metric(
        "steward_domain_vcpu_guest_seconds_total",
        "counter",
        "Time in the guest, as of when the virtual CPU last left a CPU.",
        each(&|_, vcpu| Some(seconds(vcpu.spent.guest_ns))),
    );
    text.metric(
        "steward_domain_vcpu_hot_exits_seconds_total",
        "counter",
        "Time in exits that are counted, not timed: an estimate by the benchmark's figures.",
        each(&|_, vcpu| Some(seconds(vcpu.spent.hot_ns))),
    );
    text.metric(
        "steward_domain_vcpu_exits_seconds_total",
        "counter",
        "Time in the other exits.",
        each(&|_, vcpu| Some(seconds(vcpu.spent.exits_ns))),
    );
    text.metric(
        "steward_domain_vcpu_switches_seconds_total",
        "counter",
        "Time to give the virtual CPU a CPU and to take it away.",
        each(&|_, vcpu| Some(seconds(vcpu.spent.switches_ns))),
    );
}

fn exits(statistics: &Statistics, text: &mut Text) {
    let mut counts = Vec::new();
    let mut times = Vec::new();
    let mut counters = Vec::new();
    for guest in &statistics.guests {
        for vcpu in &guest.vcpus {
            for exit in &vcpu.exits {
                let reason = escape(&exit.reason);
                let labels =
                    format!("{},vcpu=\"{}\",reason=\"{reason}\"", domain(guest), vcpu.index);
                if let Some(time) = exit.time_ns {
                    times.push((labels.clone(), seconds(time)));
                }
                counts.push((labels, exit.count.to_string()));
            }
        }
        for counter in &guest.counters {
            let labels = format!("{},name=\"{}\"", domain(guest), escape(&counter.name));
            counters.push((labels, counter.count.to_string()));
        }
    }
    text.metric("steward_domain_exits_total", "counter", "VM exits.", counts);
    let help = "Time spent in VM exits; an estimate where the reason begins with hot_.";
    text.metric("steward_domain_exit_seconds_total", "counter", help, times);
    text.metric("steward_domain_counter_total", "counter", "What else was counted.", counters);
}

fn machine(statistics: &Statistics, text: &mut Text) {
    let cpus = |value: &dyn Fn(u64, u64) -> u64| -> Vec<Sample> {
        let all = statistics.cpus.iter();
        all.map(|cpu| (format!("cpu=\"{}\"", cpu.index), seconds(value(cpu.busy_ns, cpu.idle_ns))))
            .collect()
    };
    text.metric(
        "steward_cpu_busy_seconds_total",
        "counter",
        "Time that the CPU ran something.",
        cpus(&|busy, _| busy),
    );
    text.metric(
        "steward_cpu_idle_seconds_total",
        "counter",
        "Time that the CPU was idle.",
        cpus(&|_, idle| idle),
    );
    let memory = &statistics.memory;
    for (name, help, value) in [
        ("total", "Memory of the machine.", memory.total),
        ("free", "Memory that is free, promised or not.", memory.free),
        ("reserved", "Free memory that is promised to domains.", memory.reserved),
        ("zeroed", "Free memory that is zeroed already.", memory.zeroed),
        ("stock", "Memory zeroed ahead for domains.", memory.stock),
        ("hypervisor", "Memory of the hypervisor's own.", memory.hypervisor),
        ("heap_used", "Used memory of the hypervisor's heap.", memory.heap_used),
    ] {
        let name = format!("steward_memory_{name}_bytes");
        text.metric(&name, "gauge", help, vec![one("", value)]);
    }
    let up = vec![(String::new(), seconds(statistics.time_ns))];
    text.metric("steward_uptime_seconds", "counter", "Time since the machine's start.", up);
}

fn one(labels: &str, value: u64) -> Sample {
    (labels.to_owned(), value.to_string())
}

fn domain(guest: &GuestStats) -> String {
    format!("domain=\"{}\"", escape(&guest.name))
}

/// A label's value.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Nanoseconds as seconds, exactly.
fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// libvirt's number of a state.
const fn vstate(state: GuestState) -> u32 {
    match state {
        GuestState::Starting => 0,
        GuestState::Running => 1,
        GuestState::Paused => 3,
        GuestState::Stopping | GuestState::Clearing => 4,
        GuestState::Defined | GuestState::Ended | GuestState::Waiting => 5,
        GuestState::Crashed => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::status::{
        Counter, CpuInfo, ExitStats, GuestMemory, HostMemory, SpentTimes, Times, VcpuStats,
    };
    use std::collections::BTreeSet;

    fn statistics() -> Statistics {
        let vcpu = |index| VcpuStats {
            index,
            times: Times {
                run_ns: 1_500_000_000,
                ready_ns: 7,
                wait_ns: 2_000_000_000,
                paused_ns: 0,
            },
            cpu: (index == 0).then_some(1),
            exits: vec![ExitStats {
                reason: "halt".to_owned(),
                count: 3,
                time_ns: (index == 0).then_some(9),
                estimated: false,
            }],
            spent: SpentTimes {
                guest_ns: 1_400_000_000,
                hot_ns: 1,
                exits_ns: 99_999_997,
                switches_ns: 2,
            },
            ..VcpuStats::default()
        };
        Statistics {
            time_ns: 60_000_000_001,
            cpus: vec![CpuInfo {
                index: 0,
                apic_id: 0,
                timers: 0,
                online: true,
                busy_ns: 5,
                idle_ns: 6,
                running: None,
            }],
            memory: HostMemory { total: 1 << 30, ..HostMemory::default() },
            guests: vec![GuestStats {
                number: 1,
                name: "a \"b\\\n".to_owned(),
                uuid: None,
                state: GuestState::Running,
                memory: GuestMemory { ram: 100, populated: 60, tables: 3, overhead: 2 },
                service_ns: 500_000_000,
                zeroing_ns: 3,
                throttled_ns: 0,
                vcpus: vec![vcpu(0), vcpu(1)],
                counters: vec![Counter { name: "pv_eoi".to_owned(), count: 4 }],
            }],
        }
    }

    #[test]
    fn figures_and_names() {
        let text = text(&statistics());
        let name = r#"domain="a \"b\\\n""#;
        for line in [
            "libvirt_up 1".to_owned(),
            format!("libvirt_domain_info_vstate{{{name}}} 1"),
            format!("libvirt_domain_info_virtual_cpus{{{name}}} 2"),
            format!("libvirt_domain_info_maximum_memory_bytes{{{name}}} 100"),
            format!("libvirt_domain_info_memory_usage_bytes{{{name}}} 60"),
            format!("libvirt_domain_memory_stats_rss_bytes{{{name}}} 65"),
            format!("libvirt_domain_info_cpu_time_seconds_total{{{name}}} 3.500000000"),
            format!("libvirt_domain_vcpu_state{{{name},vcpu=\"0\"}} 1"),
            format!("libvirt_domain_vcpu_state{{{name},vcpu=\"1\"}} 2"),
            format!("libvirt_domain_vcpu_cpu{{{name},vcpu=\"0\"}} 1"),
            format!("libvirt_domain_vcpu_time_seconds_total{{{name},vcpu=\"1\"}} 1.500000000"),
            format!("libvirt_domain_vcpu_delay_seconds_total{{{name},vcpu=\"0\"}} 0.000000007"),
            format!("steward_domain_vcpu_idle_seconds_total{{{name},vcpu=\"0\"}} 2.000000000"),
            format!("steward_domain_exits_total{{{name},vcpu=\"1\",reason=\"halt\"}} 3"),
            format!(
                "steward_domain_exit_seconds_total{{{name},vcpu=\"0\",reason=\"halt\"}} 0.000000009"
            ),
            format!("steward_domain_counter_total{{{name},name=\"pv_eoi\"}} 4"),
            format!("steward_domain_zeroing_seconds_total{{{name}}} 0.000000003"),
            format!("steward_domain_vcpu_guest_seconds_total{{{name},vcpu=\"1\"}} 1.400000000"),
            format!("steward_domain_vcpu_hot_exits_seconds_total{{{name},vcpu=\"0\"}} 0.000000001"),
            format!("steward_domain_vcpu_exits_seconds_total{{{name},vcpu=\"0\"}} 0.099999997"),
            format!("steward_domain_vcpu_switches_seconds_total{{{name},vcpu=\"0\"}} 0.000000002"),
            "steward_cpu_idle_seconds_total{cpu=\"0\"} 0.000000006".to_owned(),
            "steward_memory_total_bytes 1073741824".to_owned(),
            "steward_uptime_seconds 60.000000001".to_owned(),
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("libvirt_domain_vcpu_cpu{domain=\"a \\\"b\\\\\\n\",vcpu=\"1\"}"));
    }

    #[test]
    fn the_format_is_kept() {
        let text = text(&statistics());
        assert!(text.ends_with('\n'));
        let mut seen = BTreeSet::new();
        let mut samples = BTreeSet::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                current = help.split(' ').next().unwrap().to_owned();
                assert!(seen.insert(current.clone()), "{current} twice");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, current);
                // A name that ends so is a counter's.
                assert!(!name.ends_with("_total") || kind == "counter", "{name}");
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(sample.split('{').next().unwrap(), current);
                assert!(value.parse::<f64>().unwrap() >= 0.0);
                assert!(samples.insert(sample.to_owned()), "{sample} twice");
            }
        }
        assert!(seen.len() > 20);
    }

    #[test]
    fn without_guests_there_still_is_a_machine() {
        let mut empty = statistics();
        empty.guests.clear();
        let text = text(&empty);
        assert!(text.contains("steward_memory_total_bytes") && !text.contains("libvirt_domain"));
    }
}
