//! Table of all settings: the one that `docs/config.md` shows, with the limits that hold.

use crate::MAX_CPUS;
use crate::limits::{
    DEFAULT_CONSOLE_RING, DEFAULT_MEMORY, DEFAULT_WEIGHT, HASTY_RESET_MS, MAX_BACK_OFF_MS, MAX_CAP,
    MAX_CONSOLE_RING, MAX_CPU, MAX_MACHINE_MEMORY, MAX_MEMORY, MAX_MODULES, MAX_NAME, MAX_VCPUS,
    MAX_WATCHDOG_MS, MAX_WEIGHT, MIN_BACK_OFF_MS, MIN_CONSOLE_RING, MIN_MACHINE_MEMORY, MIN_MEMORY,
    MIN_WATCHDOG_MS, MIN_WEIGHT,
};
use crate::plain::plain_settings;
use crate::size::short_size;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt::Write;

/// A setting.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its key in a configuration, with the table that it belongs to.
    pub key: &'static str,
    /// Its key in the bundle's manifest and in what the control line defines; empty where there is
    /// none.
    pub manifest: &'static str,
    /// Values that are allowed, in Markdown, as the rest is.
    pub allowed: String,
    /// The value of a configuration that leaves it out.
    pub default: String,
    /// Words that say what it decides.
    pub meaning: String,
}

fn setting(
    key: &'static str,
    manifest: &'static str,
    allowed: String,
    default: String,
    meaning: String,
) -> Setting {
    Setting { key, manifest, allowed, default, meaning }
}

/// A range of sizes.
fn sizes(least: u64, most: u64) -> String {
    format!("{} to {}", short_size(least), short_size(most))
}

/// A range of times.
fn times(least_ms: u32, most_ms: u32) -> String {
    format!("{least_ms} ms to {} hours", most_ms / 3_600_000)
}

/// Settings of the hypervisor and the machine.
#[must_use]
pub fn host() -> Vec<Setting> {
    let machine = sizes(MIN_MACHINE_MEMORY, MAX_MACHINE_MEMORY);
    vec![
        setting(
            "host.log",
            "log",
            "`\"off\"`, `\"error\"`, `\"warn\"`, `\"info\"`, `\"debug\"`, `\"trace\"`".into(),
            "`\"info\"`".into(),
            "how much the hypervisor logs; `--verbosity` goes first".into(),
        ),
        setting(
            "host.when_empty",
            "when_empty",
            "`\"exit\"`, `\"stay\"`".into(),
            "`\"exit\"`".into(),
            "what happens when no guest runs and none waits for a restart: the machine is left, or the hypervisor stays for the operator".into(),
        ),
        setting(
            "host.escape",
            "escape",
            "`\"Ctrl-A\"` to `\"Ctrl-Z\"` but for H, I, J and M; `\"Ctrl-\\\\\"`, `\"Ctrl-]\"`, `\"Ctrl-^\"`, `\"Ctrl-_\"`".into(),
            "`\"Ctrl-]\"`".into(),
            "the escape key of the console".into(),
        ),
        setting(
            "host.cpus",
            "",
            format!("1 to {MAX_CPUS}"),
            "1".into(),
            "CPUs of the machine that `run` starts; `--cpus` goes first".into(),
        ),
        setting(
            "host.memory",
            "",
            machine,
            "what the guests need".into(),
            "memory of the machine that `run` starts; `--machine-memory` goes first".into(),
        ),
    ]
}

/// Settings of a guest.
#[must_use]
pub fn guest() -> Vec<Setting> {
    let memory = sizes(MIN_MEMORY, MAX_MEMORY);
    let ring = sizes(MIN_CONSOLE_RING.into(), MAX_CONSOLE_RING.into());
    let back_off = times(MIN_BACK_OFF_MS, MAX_BACK_OFF_MS);
    let watchdog = times(MIN_WATCHDOG_MS, MAX_WATCHDOG_MS);
    let default_memory = short_size(DEFAULT_MEMORY);
    let default_ring = short_size(DEFAULT_CONSOLE_RING.into());
    let hasty = HASTY_RESET_MS / 1000;
    let mut settings = vec![
        setting(
            "guest.name",
            "name",
            format!("1 to {MAX_NAME} of `A-Z a-z 0-9 . _ -`, unique"),
            "–".into(),
            "its name".into(),
        ),
        setting(
            "guest.kernel",
            "kernel",
            "a file, `\"debian\"`, `\"builtin\"`, `\"test:NAME\"`".into(),
            "–".into(),
            "its kernel: a Linux bzImage, or an ELF image for PVH or Multiboot; Debian's cloud kernel with our small user land; the built-in guest; a guest of our tests. A file with such a name is written `\"./debian\"`".into(),
        ),
        setting(
            "guest.initrd",
            "initrd",
            "a file".into(),
            "none; with `\"debian\"` our user land".into(),
            "its initial ramdisk".into(),
        ),
        setting(
            "guest.modules",
            "modules",
            "a list of tables".into(),
            "none".into(),
            format!("modules for a PVH or Multiboot kernel, at most {MAX_MODULES}"),
        ),
        setting(
            "guest.modules.file",
            "modules.file",
            "a file".into(),
            "–".into(),
            "a module's contents".into(),
        ),
        setting(
            "guest.modules.cmdline",
            "modules.cmdline",
            "text".into(),
            "empty".into(),
            "a module's command line".into(),
        ),
        setting(
            "guest.cmdline",
            "cmdline",
            "text".into(),
            "`\"console=ttyS0 panic=1\"` for `\"debian\"`, `\"console=ttyS0\"` for a file, else empty".into(),
            "the kernel's command line".into(),
        ),
        setting(
            "guest.uuid",
            "uuid",
            "32 hexadecimal digits in groups of 8-4-4-4-12, unique".into(),
            "made from the name, always the same".into(),
            "the UUID of its machine".into(),
        ),
        setting(
            "guest.memory",
            "memory",
            format!("{memory} in whole pages of 4K, or a table"),
            format!("`\"{default_memory}\"`"),
            "its memory; as a table:".into(),
        ),
        setting(
            "guest.memory.size",
            "",
            format!("{memory} in whole pages of 4K"),
            format!("`\"{default_memory}\"`"),
            "its memory".into(),
        ),
        setting(
            "guest.memory.populate",
            "populate",
            "`\"on-demand\"`, `\"up-front\"`".into(),
            "`\"on-demand\"`".into(),
            "when its memory, which is reserved at its start, gets its frames: each page at the first touch, or all before it starts".into(),
        ),
        setting(
            "guest.vcpus",
            "vcpus",
            format!("1 to {MAX_VCPUS}"),
            "1".into(),
            "its vCPUs".into(),
        ),
        setting(
            "guest.weight",
            "weight",
            format!("{MIN_WEIGHT} to {MAX_WEIGHT}"),
            format!("{DEFAULT_WEIGHT}"),
            "its share of the CPUs, in proportion to the other guests' weights".into(),
        ),
        setting(
            "guest.cap",
            "cap",
            format!("1 to {MAX_CAP}"),
            "none".into(),
            "the most that all its vCPUs get together, in percent of one CPU".into(),
        ),
        setting(
            "guest.affinity",
            "affinity",
            format!("a list of CPUs, 0 to {MAX_CPU}, each once; at least one that the machine has"),
            "all".into(),
            "the CPUs that its vCPUs may run on".into(),
        ),
        setting(
            "guest.back_off",
            "back_off",
            "a table".into(),
            "".into(),
            format!("how long a restart waits after a crash or a failure, and after a reset that comes within {hasty} s of the start; any other reset starts it again at once"),
        ),
        setting(
            "guest.back_off.first",
            "back_off.first_ms",
            back_off.clone(),
            "1".into(),
            "the first wait; each further one is twice as long".into(),
        ),
        setting(
            "guest.back_off.most",
            "back_off.most_ms",
            format!("{back_off}, at least the first"),
            "60".into(),
            "the longest wait".into(),
        ),
        setting(
            "guest.back_off.healthy",
            "back_off.healthy_ms",
            back_off.clone(),
            "60".into(),
            "a guest that ran so long is healthy: the next wait is the first again".into(),
        ),
        setting(
            "guest.watchdog",
            "watchdog_ms",
            watchdog,
            "none".into(),
            "a guest that shows no sign of life for so long has failed".into(),
        ),
        setting(
            "guest.console",
            "",
            "a table".into(),
            "".into(),
            "its console".into(),
        ),
        setting(
            "guest.console.ring",
            "console_ring",
            ring,
            format!("`\"{default_ring}\"`"),
            "how much of its console's output is kept while nobody looks".into(),
        ),
        setting(
            "guest.debug_exit",
            "debug_exit",
            "`true`, `false`".into(),
            "`true` for `\"builtin\"` and `\"test:NAME\"`, else `false`".into(),
            "whether it has the debug-exit port 0xf4, the trace port 0xf8, and the scratch memory and the PCI device (00:03.0) of the tests".into(),
        ),
    ];
    settings.extend(plain());
    settings
}

macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident: $type:ty = [$allowed:expr, $default:expr, $meaning:expr];)*) => {
        /// Plain settings.
        fn plain() -> Vec<Setting> {
            vec![$(setting(
                concat!("guest.", stringify!($name)),
                stringify!($name),
                $allowed.into(),
                $default.into(),
                $meaning.into(),
            ),)*]
        }
    };
}
plain_settings!(rows);

/// The table in Markdown.
#[must_use]
pub fn markdown(settings: &[Setting]) -> String {
    let mut text = String::from(
        "| key | in the manifest | allowed | default | meaning |\n|---|---|---|---|---|\n",
    );
    for Setting { key, manifest, allowed, default, meaning } in settings {
        let manifest = if manifest.is_empty() { "–".into() } else { format!("`{manifest}`") };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| `{key}` | {manifest} | {allowed} | {default} | {meaning} |");
    }
    text
}

/// The document `text` with its tables as they have to be: each stands between the lines
/// `<!-- settings: NAME -->` and `<!-- end -->`. `None` where a table is not there.
#[must_use]
pub fn renewed(text: &str) -> Option<String> {
    let mut text = String::from(text);
    for (name, settings) in [("host", host()), ("guest", guest())] {
        let begin = format!("<!-- settings: {name} -->\n");
        let (before, rest) = text.split_once(&begin)?;
        let (_, after) = rest.split_once("<!-- end -->")?;
        text = format!("{before}{begin}{}<!-- end -->{after}", markdown(&settings));
    }
    Some(text)
}
