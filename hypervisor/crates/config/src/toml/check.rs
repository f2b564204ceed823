//! Checks what types can't say, and collects everything that is wrong.

use super::fault::Fault;
use super::schema::{self, Memory, Number, Time};
use super::{Host, Kernel, Plan, Surroundings};
use crate::limits::{
    DEFAULT_CONSOLE_RING, DEFAULT_MEMORY, DEFAULT_WEIGHT, MAX_BACK_OFF_MS, MAX_CAP,
    MAX_CONSOLE_RING, MAX_CPU, MAX_MACHINE_MEMORY, MAX_MEMORY, MAX_NAME, MAX_VCPUS,
    MAX_WATCHDOG_MS, MAX_WEIGHT, MIN_BACK_OFF_MS, MIN_CONSOLE_RING, MIN_MACHINE_MEMORY, MIN_MEMORY,
    MIN_WATCHDOG_MS, MIN_WEIGHT,
};
use crate::size::{parse_size, short_size};
use crate::{BackOffSettings, EscapeKey, GuestSettings, Populate, Uuid, is_guest_name};
use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::{Range, RangeInclusive};
use toml::Spanned;

/// Checks; all results are collected in `faults`.
pub(super) struct Checker<'a, S> {
    /// Place that the configuration comes from.
    pub(super) surroundings: &'a S,
    /// CPUs of the machine, if known.
    pub(super) cpus: Option<u32>,
    /// The faults that were found.
    pub(super) faults: Vec<Fault>,
}

impl<S: Surroundings> Checker<'_, S> {
    /// Checks `[host]`.
    pub(super) fn host(&mut self, host: &schema::Host) -> Host {
        let escape = host.escape.as_ref().and_then(|text| {
            EscapeKey::parse(text.get_ref()).or_else(|| {
                let allowed = "Ctrl-A to Ctrl-Z but for H, I, J and M, or one of Ctrl-\\ Ctrl-] \
                               Ctrl-^ Ctrl-_";
                self.wrong(text.span(), quote(text), allowed);
                None
            })
        });
        let cpus = host.cpus.as_ref().map(|cpus| self.number(cpus, 1..=u32::from(MAX_CPU) + 1));
        Host {
            log: host.log,
            when_empty: host.when_empty,
            escape: escape.unwrap_or_default(),
            cpus,
            memory: host
                .memory
                .as_ref()
                .map(|size| self.size(size, MIN_MACHINE_MEMORY..=MAX_MACHINE_MEMORY)),
        }
    }

    /// Checks the guests.
    pub(super) fn guests(&mut self, guests: &[Spanned<schema::Guest>]) -> Vec<Plan> {
        let plans: Vec<Plan> = guests.iter().map(|guest| self.guest(guest.get_ref())).collect();
        let mut names = BTreeMap::new();
        let mut uuids = BTreeMap::new();
        for (guest, plan) in guests.iter().zip(&plans) {
            let (guest, settings) = (guest.get_ref(), &plan.settings);
            if names.insert(settings.name.clone(), ()).is_some() {
                let found = format!("{}, which another guest has", quote(&guest.name));
                self.wrong(guest.name.span(), found, "a name of its own for each guest");
            } else if let Some(other) = uuids.insert(settings.machine_uuid(), settings.name.clone())
            {
                let span = guest.uuid.as_ref().map_or(guest.name.span(), Spanned::span);
                let found = format!("the UUID {}, which \"{other}\" has", settings.machine_uuid());
                self.wrong(span, found, "a UUID of its own for each guest");
            }
        }
        plans
    }

    fn guest(&mut self, guest: &schema::Guest) -> Plan {
        if !is_guest_name(guest.name.get_ref()) {
            let allowed = format!("1 to {MAX_NAME} of A-Z a-z 0-9 . _ -");
            self.wrong(guest.name.span(), quote(&guest.name), allowed);
        }
        let kernel = self.kernel(&guest.kernel);
        let (memory, populate) = self.memory(guest.memory.as_ref());
        // The files get their names in the bundle when it is made.
        let mut settings = GuestSettings::new(guest.name.get_ref(), memory, "");
        guest.set_plain(&mut settings);
        settings.populate = populate;
        settings.uuid = guest.uuid.as_ref().and_then(|text| self.uuid(text));
        if let Some(vcpus) = &guest.vcpus {
            settings.vcpus = self.number(vcpus, 1..=MAX_VCPUS);
        }
        settings.weight = guest
            .weight
            .as_ref()
            .map_or(DEFAULT_WEIGHT, |weight| self.number(weight, MIN_WEIGHT..=MAX_WEIGHT));
        settings.cap = guest.cap.as_ref().map(|cap| self.number(cap, 1..=MAX_CAP));
        settings.affinity = guest.affinity.as_ref().map(|cpus| self.affinity(cpus));
        settings.back_off = self.back_off(&guest.back_off);
        settings.watchdog_ms =
            guest.watchdog.as_ref().map(|time| self.time(time, MIN_WATCHDOG_MS..=MAX_WATCHDOG_MS));
        settings.console_ring = guest.console.ring.as_ref().map_or(DEFAULT_CONSOLE_RING, |size| {
            let range = u64::from(MIN_CONSOLE_RING)..=u64::from(MAX_CONSOLE_RING);
            u32::try_from(self.size(size, range)).unwrap_or(MAX_CONSOLE_RING)
        });
        let cmdline = self.cmdline(guest.cmdline.as_ref());
        settings.cmdline = cmdline.unwrap_or_else(|| self.surroundings.cmdline(&kernel).to_owned());
        settings.debug_exit = guest.debug_exit.unwrap_or_else(|| kernel.has_debug_exit());
        let modules = guest
            .modules
            .iter()
            .map(|module| {
                let line = self.cmdline(module.cmdline.as_ref());
                (self.file(&module.file, "a file"), line.unwrap_or_default())
            })
            .collect();
        let initrd = guest.initrd.as_ref().map(|path| self.file(path, "a file"));
        Plan { settings, kernel, initrd, modules }
    }

    fn kernel(&mut self, text: &Spanned<String>) -> Kernel {
        const ALLOWED: &str = "a file, \"debian\", \"builtin\", or \"test:NAME\"";
        match text.get_ref().as_str() {
            "debian" => return Kernel::Debian,
            "builtin" => return Kernel::BuiltIn,
            _ => {}
        }
        let Some(name) = text.get_ref().strip_prefix("test:") else {
            return Kernel::File(self.file(text, ALLOWED));
        };
        let known = self.surroundings.test_guests();
        if !known.iter().any(|other| other == name) {
            let allowed = format!("test: and one of {}", known.join(", "));
            let fault = Fault::new(text.span(), quote(text), allowed);
            self.faults.push(fault.meaning(name, known.iter().map(String::as_str)));
        }
        Kernel::Test(name.to_owned())
    }

    /// The path of a file that is there.
    fn file(&mut self, text: &Spanned<String>, allowed: &str) -> String {
        if let Err(why) = self.surroundings.file(text.get_ref()) {
            let found = format!("{}: {why}", quote(text));
            let allowed = format!("{allowed}; a path is relative to the configuration's folder");
            let fault = Fault::new(text.span(), found, allowed);
            self.faults.push(fault.meaning(text.get_ref(), ["debian", "builtin"].into_iter()));
        }
        text.get_ref().clone()
    }

    fn cmdline(&mut self, text: Option<&Spanned<String>>) -> Option<String> {
        let text = text?;
        if text.get_ref().contains('\0') {
            self.wrong(text.span(), "a NUL character", "text without NUL characters");
        }
        Some(text.get_ref().clone())
    }

    fn memory(&mut self, memory: Option<&Spanned<Memory>>) -> (u64, Populate) {
        let Some(memory) = memory else { return (DEFAULT_MEMORY, Populate::default()) };
        let range = MIN_MEMORY..=MAX_MEMORY;
        let (size, populate) = match memory.get_ref() {
            Memory::Size(text) => (self.size_text(text, memory.span(), range), Populate::default()),
            Memory::Table(table) => {
                let size = table.size.as_ref().map(|size| self.size(size, range));
                (size.unwrap_or(DEFAULT_MEMORY), table.populate)
            }
        };
        if !size.is_multiple_of(4096) {
            let span = match memory.get_ref() {
                Memory::Table(schema::MemoryTable { size: Some(size), .. }) => size.span(),
                _ => memory.span(),
            };
            self.wrong(span, format!("{size} bytes"), "whole pages: a multiple of 4K");
        }
        (size, populate)
    }

    fn uuid(&mut self, text: &Spanned<String>) -> Option<Uuid> {
        let uuid = Uuid::parse(text.get_ref());
        if uuid.is_none() {
            let allowed = "32 hexadecimal digits as in \"01234567-89ab-cdef-0123-456789abcdef\"";
            self.wrong(text.span(), quote(text), allowed);
        }
        uuid
    }

    fn affinity(&mut self, cpus: &Spanned<Vec<Spanned<Number>>>) -> Vec<u8> {
        let mut list = Vec::new();
        for cpu in cpus.get_ref() {
            let number = self.number(cpu, 0..=u32::from(MAX_CPU));
            let number = u8::try_from(number).unwrap_or(MAX_CPU);
            if list.contains(&number) {
                self.wrong(cpu.span(), format!("CPU {number} twice"), "each CPU once");
            }
            list.push(number);
        }
        if list.is_empty() {
            self.wrong(cpus.span(), "no CPU", "at least one; left out: all");
        } else if let Some(count) = self.cpus
            && list.iter().all(|cpu| u32::from(*cpu) >= count)
        {
            let allowed =
                format!("at least one of the machine's CPUs, which are 0 to {}", count - 1);
            self.wrong(cpus.span(), format!("{list:?}"), allowed);
        }
        list
    }

    fn back_off(&mut self, times: &schema::BackOff) -> BackOffSettings {
        let mut settings = BackOffSettings::default();
        let range = MIN_BACK_OFF_MS..=MAX_BACK_OFF_MS;
        for (time, value) in [
            (&times.first, &mut settings.first_ms),
            (&times.most, &mut settings.most_ms),
            (&times.healthy, &mut settings.healthy_ms),
        ] {
            if let Some(time) = time {
                *value = self.time(time, range.clone());
            }
        }
        let BackOffSettings { first_ms, most_ms, .. } = settings;
        if most_ms < first_ms
            && let Some(span) = times.most.as_ref().or(times.first.as_ref()).map(Spanned::span)
        {
            let found = format!("a first wait of {first_ms} ms and a longest of {most_ms} ms");
            self.wrong(span, found, "a longest wait that is not shorter than the first");
        }
        settings
    }

    fn number(&mut self, number: &Spanned<Number>, range: RangeInclusive<u32>) -> u32 {
        let Number(value) = *number.get_ref();
        match u32::try_from(value) {
            Ok(value) if range.contains(&value) => value,
            _ => {
                let allowed = format!("{} to {}", range.start(), range.end());
                self.wrong(number.span(), value.to_string(), allowed);
                *range.start()
            }
        }
    }

    fn time(&mut self, time: &Spanned<Time>, range: RangeInclusive<u32>) -> u32 {
        let (found, value) = match time.get_ref() {
            Time::Seconds(seconds) => (seconds.to_string(), seconds.checked_mul(1000)),
            Time::Text(text) => (format!("\"{text}\""), milliseconds(text)),
        };
        match value.and_then(|value| u32::try_from(value).ok()) {
            Some(value) if range.contains(&value) => value,
            _ => {
                let allowed = format!(
                    "{} ms to {} hours, as a number of seconds or text such as \"500ms\", \
                     \"30s\", \"2m\" or \"1h\"",
                    range.start(),
                    range.end() / 3_600_000
                );
                self.wrong(time.span(), found, allowed);
                *range.start()
            }
        }
    }

    fn size(&mut self, text: &Spanned<String>, range: RangeInclusive<u64>) -> u64 {
        self.size_text(text.get_ref(), text.span(), range)
    }

    fn size_text(&mut self, text: &str, span: Range<usize>, range: RangeInclusive<u64>) -> u64 {
        match parse_size(text) {
            Ok(size) if range.contains(&size) => size,
            _ => {
                let allowed = format!(
                    "{} to {}, as text such as \"64K\", \"512M\" or \"6G\"",
                    short_size(*range.start()),
                    short_size(*range.end())
                );
                self.wrong(span, format!("\"{text}\""), allowed);
                *range.start()
            }
        }
    }

    fn wrong(&mut self, span: Range<usize>, found: impl Into<String>, allowed: impl Into<String>) {
        self.faults.push(Fault::new(span, found, allowed));
    }
}

fn quote(text: &Spanned<String>) -> String {
    format!("\"{}\"", text.get_ref().escape_debug())
}

/// Milliseconds of a time such as `500ms`, `30s`, `2m` or `1h`.
fn milliseconds(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.strip_prefix(digits)? {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    digits.trim_end().parse::<i64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(milliseconds("500ms"), Some(500));
        assert_eq!(milliseconds("30 s"), Some(30_000));
        assert_eq!(milliseconds("2m"), Some(120_000));
        assert_eq!(milliseconds("1h"), Some(3_600_000));
        for bad in ["", "5", "s", "5 x", "1.5s", "9999999999999999h"] {
            assert_eq!(milliseconds(bad), None, "{bad}");
        }
    }
}
