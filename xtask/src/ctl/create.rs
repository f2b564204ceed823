//! Guests from files on this computer: uploads and definitions.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use config::GuestSettings;
use control::protocol::MAX_CHUNK;
use control::protocol::uploads::is_file_name;
use control::{Answer, ErrorCode, GuestRef, Operation};
use serde_json::{Map, Value, json};

use super::client::{Client, Exchange, Tried};
use crate::bundle::{parse_guest_memory, parse_vcpus};

/// A guest, as options or as a file of settings.
#[derive(Debug, Clone, Args)]
pub struct Description {
    /// Read the settings from this JSON file: an entry of `guests` in docs/bundle.md
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "memory", "vcpus", "kernel", "initrd", "modules", "cmdline", "debug_exit", "reset_ends"])]
    pub settings: Option<PathBuf>,
    /// The guest's name
    #[arg(long, required_unless_present = "settings")]
    pub name: Option<String>,
    /// Its memory
    #[arg(long, default_value = "512M", value_name = "SIZE", value_parser = parse_guest_memory)]
    pub memory: u64,
    /// Its virtual CPUs
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = parse_vcpus)]
    pub vcpus: u32,
    /// Its kernel: an upload; for `create` a file here
    #[arg(long, value_name = "FILE", required_unless_present = "settings")]
    pub kernel: Option<String>,
    /// Its initial ramdisk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// Module with its command line; may be repeated
    #[arg(long = "module", value_name = "FILE[=CMDLINE]")]
    pub modules: Vec<String>,
    /// The kernel's command line
    #[arg(long, default_value = "console=ttyS0", value_name = "TEXT")]
    pub cmdline: String,
    /// Give it port 0xf4, which ends it
    #[arg(long)]
    pub debug_exit: bool,
    /// End it when it resets its machine, instead of starting it again
    #[arg(long)]
    pub reset_ends: bool,
    /// Another setting, as JSON or plain text; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub others: Vec<String>,
}

/// Source of a description's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Uploaded already.
    Uploads,
    /// Here; they are uploaded under names that begin with the guest's.
    Here,
}

/// A file and what it is called once it is uploaded.
type Renamed = (PathBuf, String);

impl Description {
    /// The settings to send.
    pub fn settings(&self, source: Source) -> Result<GuestSettings> {
        self.resolve(source).map(|(settings, _)| settings)
    }

    /// The settings to send, and the files that they need from here.
    fn resolve(&self, source: Source) -> Result<(GuestSettings, Vec<Renamed>)> {
        let mut value = match &self.settings {
            Some(path) => {
                let text =
                    fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                serde_json::from_slice(&text).with_context(|| path.display().to_string())?
            }
            None => self.value()?,
        };
        for other in &self.others {
            let Some((key, text)) = other.split_once('=') else {
                bail!("`{other}` is no setting: write KEY=VALUE")
            };
            let plain = || Value::String(text.to_owned());
            value.insert(key.to_owned(), serde_json::from_str(text).unwrap_or_else(|_| plain()));
        }
        let mut settings: GuestSettings =
            serde_json::from_value(Value::Object(value)).context("the guest's settings")?;
        let mut files = Vec::new();
        if source == Source::Here {
            let name = settings.name.clone();
            let mut rename = |what: &str, file: &mut String| {
                let there = format!("{name}/{what}");
                files.push((PathBuf::from(std::mem::replace(file, there.clone())), there));
            };
            rename("kernel", &mut settings.kernel);
            if let Some(initrd) = &mut settings.initrd {
                rename("initrd", initrd);
            }
            for (index, module) in settings.modules.iter_mut().enumerate() {
                rename(&format!("module{index}"), &mut module.file);
            }
        }
        Ok((settings, files))
    }

    fn value(&self) -> Result<Map<String, Value>> {
        let modules: Vec<Value> = self
            .modules
            .iter()
            .map(|module| {
                let (file, cmdline) = module.split_once('=').unwrap_or((module, ""));
                json!({ "file": file, "cmdline": cmdline })
            })
            .collect();
        let value = json!({
            "name": self.name,
            "memory": self.memory,
            "vcpus": self.vcpus,
            "kernel": self.kernel,
            "initrd": self.initrd,
            "modules": modules,
            "cmdline": self.cmdline,
            "debug_exit": self.debug_exit,
            "on_reset": if self.reset_ends { "end" } else { "restart" },
        });
        match value {
            Value::Object(map) => Ok(map),
            other => bail!("{other} is no object"),
        }
    }
}

/// The name that `file` is to have on the machine.
pub fn upload_name(file: &Path, name: Option<&str>) -> Result<String> {
    let own = || file.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.map(str::to_owned).or_else(own).context("the file has no name: `--name`")?;
    if !is_file_name(&name) {
        bail!("`{name}` can't be a file's name there: 1 to 100 visible ASCII characters");
    }
    Ok(name)
}

/// Uploads `file` as `name`; goes on where an earlier attempt stopped. The answer
/// is the last one: good, or a refusal.
pub fn upload(client: &mut Client, file: &Path, name: &str) -> Tried {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let begin = Operation::UploadBegin {
        name: name.to_owned(),
        size: bytes.len() as u64,
        crc32: crc32fast::hash(&bytes),
    };
    let mut exchange = client.request(begin)?;
    loop {
        let Some(received) = received(&exchange)? else { return Ok(exchange) };
        let rest = usize::try_from(received).ok().and_then(|at| bytes.get(at..));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { break };
        let data = rest.get(..MAX_CHUNK).unwrap_or(rest).to_vec();
        let crc32 = crc32fast::hash(&data);
        let chunk = Operation::UploadChunk { name: name.to_owned(), offset: received, data, crc32 };
        let next = client.request(chunk)?;
        if self::received(&next)?.is_some_and(|now| now <= received) {
            bail!("the upload does not go on: {}", next.line);
        }
        exchange = next;
    }
    client.request(Operation::UploadEnd { name: name.to_owned() })
}

/// How much has come; `None` if the upload was refused.
fn received(exchange: &Exchange) -> Result<Option<u64>> {
    match &exchange.outcome {
        Ok(Answer::Upload(upload)) => Ok(Some(upload.received)),
        Ok(_) => bail!("that is no upload: {}", exchange.line),
        Err(_) => Ok(None),
    }
}

/// Uploads a guest's files, asks whether it is possible, defines and starts it.
/// The answer is the last one: the started guest, or whatever stood in the way.
pub fn create(client: &mut Client, description: &Description) -> Tried {
    let (settings, files) = description.resolve(Source::Here)?;
    let settings = Box::new(settings);
    for (file, name) in files {
        let uploaded = upload(client, &file, &name)?;
        if uploaded.outcome.is_err() {
            return Ok(uploaded);
        }
    }
    let verdict = client.request(Operation::DryRun(settings.clone()))?;
    match &verdict.outcome {
        Ok(Answer::Verdict(said)) if said.possible => {}
        // A machine that can't tell may still do it.
        Err(refusal) if refusal.code == ErrorCode::NotSupported => {}
        _ => return Ok(verdict),
    }
    let guest = GuestRef::typed(&settings.name);
    let defined = client.request(Operation::Define(settings))?;
    if defined.outcome.is_err() {
        return Ok(defined);
    }
    client.request(Operation::Start(guest))
}
