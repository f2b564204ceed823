//! `flash`: the image on a stick, or another disk, and the proof that it is there.

mod disks;
mod medium;
mod write;

use std::fs;
use std::io::{BufRead, IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::image::{self, Content, Sparse};
use crate::ui::{self, Out};
use crate::{paths, run};
use disks::{Allowed, Computer, Target};
use medium::Node;

/// Options of `flash`.
#[derive(Debug, Clone, Args)]
pub struct FlashOptions {
    /// The disk, for example /dev/sdb [default: asks which of the removable ones]
    #[arg(value_name = "DEVICE")]
    disk: Option<String>,
    /// The same, for scripts
    #[arg(long, value_name = "DEVICE", conflicts_with = "disk")]
    device: Option<String>,
    /// Do not ask: DEVICE is right, and what is on it may be lost
    #[arg(long)]
    yes: bool,
    /// Allow disks that are not removable, and those of more than 512 GiB; asks a second time
    #[arg(long)]
    any_disk: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// With the guests that this file describes (docs/config.md) [default: Debian]
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    config: Option<PathBuf>,
    /// Write this image, of `cargo xtask image`, instead of building one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

impl FlashOptions {
    /// The options of a script that has an image's file and knows its disk.
    pub fn script(device: &str, image: &Path) -> Self {
        Self {
            disk: None,
            device: Some(device.to_owned()),
            yes: true,
            any_disk: true,
            dry_run: false,
            config: None,
            image: Some(image.to_path_buf()),
        }
    }
}

/// Flashes, and returns the status to exit with.
pub fn flash(options: &FlashOptions) -> Result<u8> {
    if !cfg!(target_os = "linux") {
        bail!(
            "`flash` knows the disks of Linux only. Make the file with `cargo xtask image --release`, and write it \
             to the stick as it is: on Windows with Rufus (in its DD mode) or balenaEtcher, on macOS with \
             balenaEtcher, or `diskutil unmountDisk diskN` and `sudo dd if=FILE of=/dev/rdiskN bs=1m`"
        );
    }
    let named = options.device.as_ref().or(options.disk.as_ref());
    let allowed = Allowed { any_disk: options.any_disk };
    ensure!(
        named.is_some() || !options.yes,
        "--yes needs --device: nobody is there to be asked which disk"
    );
    // A refusal that is certain comes before anything slow begins.
    if let Some(name) = named
        && !is_file(name)
    {
        look(name, 0, allowed)?;
    }
    let content = content(options)?;
    let name = match named {
        Some(name) => name.clone(),
        None => match ask_which(&content)? {
            Some(name) => name,
            None => return Ok(0),
        },
    };
    if is_file(&name) {
        return flash_file(&content, Path::new(&name), options.dry_run);
    }
    let target = look(&name, content.least(), allowed)?;
    let disk = content.disk(target.size, &seed(&target))?;
    tell(&target, &disk)?;
    if options.dry_run {
        writeln!(Out, "nothing was written: --dry-run")?;
        return Ok(0);
    }
    if !options.yes {
        confirm(&target)?;
    }
    // Somebody may have changed sticks meanwhile.
    let now = look(&name, content.least(), allowed)?;
    ensure!(
        target == now,
        "{} is another disk than a moment ago ({}, serial number {}): nothing was written",
        target.path,
        now.title,
        now.serial.as_deref().unwrap_or("none")
    );
    let mut node = match Node::open(&target) {
        Ok(node) => node,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(needs_root(&content, &target, options)?);
        }
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => bail!(
            "{} is in use: the kernel does not give it to us alone. Close what uses it, and try again",
            target.path
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", target.path)),
    };
    node.check(&target)?;
    put(&disk, &mut node)?;
    node.finish();
    writeln!(
        Out,
        "done: {} boots Steward from BIOS and from UEFI. The stick may be pulled now",
        target.path
    )?;
    Ok(0)
}

/// The content for the disk: of the image's file, or built.
fn content(options: &FlashOptions) -> Result<Content> {
    match &options.image {
        Some(path) => {
            let mut file =
                fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            Content::read(&mut file).with_context(|| {
                format!("{} is no image that `cargo xtask image` made", path.display())
            })
        }
        None => {
            let (content, memory) = run::stick(options.config.clone())?;
            ui::say(format!("the machine will need {} of memory", ui::size(memory)));
            Ok(content)
        }
    }
}

fn is_file(name: &str) -> bool {
    fs::metadata(name).is_ok_and(|data| data.is_file())
}

/// Asks the computer about one disk, and judges.
fn look(name: &str, needs: u64, allowed: Allowed) -> Result<Target> {
    let computer = Computer::ask()?;
    disks::judge(&computer, name, needs, allowed)
        .map_err(|refusal| anyhow::anyhow!("{name} is not written: {refusal}"))
}

/// The seed that tells this disk's partitions from those of others: the same stick keeps its own.
fn seed(target: &Target) -> String {
    format!("{} {}", target.serial.as_deref().unwrap_or_default(), target.size)
}

/// Shows the removable disks and asks for one's name. `None`: there is none to choose.
fn ask_which(content: &Content) -> Result<Option<String>> {
    let computer = Computer::ask()?;
    let needs = content.least();
    let mut good = Vec::new();
    for disk in computer.candidates() {
        let verdict = disks::judge(&computer, &disk.path, needs, Allowed::default());
        writeln!(
            Out,
            "{:<12} {:>10}  {}  serial {}  ({})",
            disk.path,
            ui::size(disk.size),
            disk.title(),
            disk.serial().unwrap_or("none"),
            disk.content()
        )?;
        match verdict {
            Ok(_) => good.push(disk.path.clone()),
            Err(refusal) => writeln!(Out, "             not this one: {refusal}")?,
        }
    }
    if good.is_empty() {
        writeln!(
            Out,
            "no removable disk can be written; plug a stick in, or name a disk (`--help`)"
        )?;
        return Ok(None);
    }
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to be asked: scripts say --yes --device {}", good.join(" or "));
    }
    let name = ask("which one? Its name, or nothing to stop: ")?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// Says what will happen to which disk.
fn tell(target: &Target, disk: &Sparse) -> Result<()> {
    let serial = target.serial.as_deref().unwrap_or("none");
    writeln!(
        Out,
        "{}: {}, {}, serial number {serial}",
        target.path,
        target.title,
        ui::size(target.size)
    )?;
    let computer = Computer::ask()?;
    let content = computer.disks.iter().find(|disk| disk.path == target.path);
    if let Some(content) = content {
        writeln!(Out, "everything on it will be lost: {}", content.content())?;
    }
    writeln!(Out, "{} will be written", ui::size(disk.written()))?;
    Ok(())
}

/// Has the person type the disk's name; for an unusual disk, its serial number besides.
fn confirm(target: &Target) -> Result<()> {
    ensure!(
        std::io::stdin().is_terminal(),
        "nobody is there to be asked: scripts say --yes --device {}",
        target.path
    );
    let name = target.path.rsplit('/').next().unwrap_or(&target.path);
    let typed = ask(&format!("type {name} to write over it: "))?;
    ensure!(typed == name || typed == target.path, "that was not {name}: nothing was written");
    if let Some(why) = &target.unusual {
        let proof = target.serial.as_deref().unwrap_or("erase");
        let typed = ask(&format!("{why}. Type {proof} if it is really the one: "))?;
        ensure!(typed == proof, "that was not {proof}: nothing was written");
    }
    Ok(())
}

fn ask(question: &str) -> Result<String> {
    write!(Out, "{question}")?;
    Out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// The error that says exactly what to type. The image is in a file then, so that nothing is
/// built with the rights of root.
fn needs_root(content: &Content, target: &Target, options: &FlashOptions) -> Result<anyhow::Error> {
    let file = match &options.image {
        Some(file) => std::path::absolute(file)?,
        None => {
            let file = paths::target().join("steward/flash.img");
            fs::create_dir_all(file.parent().unwrap_or(&file))?;
            image::write(content, &file)?;
            file
        }
    };
    let any = if options.any_disk { " --any-disk" } else { "" };
    let xtask = std::env::current_exe()?;
    Ok(anyhow::anyhow!(
        "writing {} takes the rights of root. Please run:\n    sudo {} flash{any} --image {} {}",
        target.path,
        quoted(&xtask),
        quoted(&file),
        target.path
    ))
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Writes and reads back, with a bar for each.
fn put<M: write::Medium>(disk: &Sparse, medium: &mut M) -> Result<()> {
    let bar = ui::Bytes::new("writing", disk.written());
    write::write(disk, medium, |bytes| bar.add(bytes))?;
    bar.done();
    let bar = ui::Bytes::new("reading back", disk.written());
    write::verify(disk, medium, |bytes| bar.add(bytes))?;
    bar.done();
    Ok(())
}

/// The same with a file that stands for a disk: all of it is laid out.
fn flash_file(content: &Content, path: &Path, dry_run: bool) -> Result<u8> {
    let len = fs::metadata(path)?.len();
    let disk = content.disk(len, &path.display().to_string())?;
    writeln!(Out, "{}: a file of {}", path.display(), ui::size(len))?;
    writeln!(Out, "{} will be written", ui::size(disk.written()))?;
    if dry_run {
        writeln!(Out, "nothing was written: --dry-run")?;
        return Ok(0);
    }
    let file = fs::OpenOptions::new().read(true).write(true).open(path);
    let mut node = Node::of(file.with_context(|| format!("cannot open {}", path.display()))?);
    put(&disk, &mut node)?;
    writeln!(Out, "done: {}", path.display())?;
    Ok(0)
}
