//! The way from the options to a stick that may be pulled, on Linux.
//!
//! Answers of the computer and of the person before it come through [`Around`], so that tests
//! can answer, too.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::FlashOptions;
use super::disks::Computer;
use super::judge::{Allowed, Target, judge};
use super::medium::{self, Node};
use super::write::{self, Medium};
use crate::image::{self, Content, Sparse};
use crate::test::FAILED;
use crate::ui::{self, Out};
use crate::{paths, run};

/// The computer, and the person before it.
trait Around {
    /// A disk that was opened.
    type Disk: Medium;

    /// Asks the computer for its disks.
    fn computer(&mut self) -> Result<Computer>;
    /// Whether this user may write a disk.
    fn may_write(&mut self, target: &Target) -> bool;
    /// Opens a disk for this program alone.
    fn open(&mut self, target: &Target) -> io::Result<Self::Disk>;
    /// Makes sure that what was opened is what was judged.
    fn check(&mut self, disk: &mut Self::Disk, target: &Target) -> Result<()>;
    /// Gives the disk back. `false`: the kernel still has its old partitions.
    fn close(&mut self, disk: Self::Disk) -> bool;
    /// Whether somebody can be asked.
    fn answers(&self) -> bool;
    /// Asks the person.
    fn ask(&mut self, question: &str) -> Result<String>;
    /// Tells the person.
    fn tell(&mut self, line: &str) -> Result<()>;
    /// The error for who may not write this disk.
    fn forbidden(&mut self, content: &Content, target: &Target) -> Result<anyhow::Error>;
}

/// This computer, and whoever is at the terminal.
struct Here<'a>(&'a FlashOptions);

impl Around for Here<'_> {
    type Disk = Node;

    fn computer(&mut self) -> Result<Computer> {
        Computer::ask()
    }

    fn may_write(&mut self, target: &Target) -> bool {
        medium::may_write(&target.path)
    }

    fn open(&mut self, target: &Target) -> io::Result<Node> {
        Node::open(target)
    }

    fn check(&mut self, disk: &mut Node, target: &Target) -> Result<()> {
        disk.check(target)
    }

    fn close(&mut self, disk: Node) -> bool {
        disk.finish()
    }

    fn answers(&self) -> bool {
        io::stdin().is_terminal()
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        write!(Out, "{question}")?;
        Out.flush()?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(Out, "{line}")?)
    }

    fn forbidden(&mut self, content: &Content, target: &Target) -> Result<anyhow::Error> {
        if medium::is_root() {
            return Ok(anyhow::anyhow!(
                "the system does not let root open {} for writing: a container or a security module forbids it",
                target.path
            ));
        }
        // The image is in a file then, so that nothing is built with the rights of root.
        let file = match &self.0.image {
            Some(file) => std::path::absolute(file)?,
            None => {
                let file = paths::target().join("steward/flash.img");
                fs::create_dir_all(file.parent().unwrap_or(&file))?;
                image::write(content, &file)?;
                file
            }
        };
        let command = for_root(&std::env::current_exe()?, self.0, &file, &target.path);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let has_sudo = std::env::split_paths(&path).any(|folder| folder.join("sudo").exists());
        let how = if has_sudo { "run:\n    sudo" } else { "run as root:\n   " };
        Ok(anyhow::anyhow!(
            "writing {} takes the rights of root. Please {how} {command}",
            target.path
        ))
    }
}

/// The command that does with the rights of root what was asked for without them.
fn for_root(xtask: &Path, options: &FlashOptions, image: &Path, disk: &str) -> String {
    let mut words = vec![quoted(xtask), "flash".to_owned()];
    words.extend(options.any_disk.then(|| "--any-disk".to_owned()));
    words.extend(options.yes.then(|| "--yes".to_owned()));
    words.extend(["--image".to_owned(), quoted(image), "--device".to_owned(), disk.to_owned()]);
    words.join(" ")
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Flashes, and returns the status to exit with.
pub fn flash(options: &FlashOptions) -> Result<u8> {
    let around = &mut Here(options);
    ensure!(
        options.name().is_some() || !options.yes,
        "--yes needs a DEVICE: nobody is there to be asked which disk"
    );
    // A refusal that is certain comes before anything slow begins.
    let name = match options.name() {
        Some(name) if is_file(name) => {
            let place = Path::new(name);
            check_file(around, options, place)?;
            return onto_file(around, options, &content(options)?, place).map(|()| 0);
        }
        Some(name) => {
            look(around, name, 0, allowed(options))?;
            name.to_owned()
        }
        None => match ask_which(around, options)? {
            Some(name) => name,
            None => return Ok(0),
        },
    };
    onto_disk(around, options, &content(options)?, &name).map(|()| 0)
}

fn allowed(options: &FlashOptions) -> Allowed {
    Allowed { any_disk: options.any_disk }
}

/// The content for the disk: of the image's file, or built.
fn content(options: &FlashOptions) -> Result<Content> {
    let Some(path) = &options.image else {
        let (content, memory) = run::stick(options.config.clone())?;
        ui::say(format!("the machine will need {} of memory", ui::size(memory)));
        return Ok(content);
    };
    let mut file =
        fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let data = file.metadata()?;
    ensure!(!data.is_dir(), "{} is a folder, and no image", path.display());
    let content = Content::read(&mut file)
        .with_context(|| format!("{} is no image that `cargo xtask image` made", path.display()))?;
    ensure!(
        !data.is_file() || data.len() >= content.least(),
        "{} is cut off: it has {} bytes of {}",
        path.display(),
        data.len(),
        content.least()
    );
    if !image::check_sum(path)? {
        ui::say(format!("no SHA-256 lies beside {}: it is taken as it is", path.display()));
    }
    Ok(content)
}

/// Whether a name is a file's. A name without a folder is a disk's, if there is one.
fn is_file(name: &str) -> bool {
    let is_disk = !name.contains('/') && Path::new("/sys/class/block").join(name).exists();
    !is_disk && fs::metadata(name).is_ok_and(|data| data.is_file())
}

/// Asks the computer about one disk, and judges.
fn look(around: &mut impl Around, name: &str, needs: u64, allowed: Allowed) -> Result<Target> {
    let computer = around.computer()?;
    judge(&computer, &medium::node(name), needs, allowed)
        .map_err(|refusal| anyhow::anyhow!("{name} is not written: {refusal}"))
}

/// Shows the disks of which one may be meant, and asks which. `None`: none of them.
fn ask_which(around: &mut impl Around, options: &FlashOptions) -> Result<Option<String>> {
    let computer = around.computer()?;
    let mut good = Vec::new();
    for disk in computer.candidates(options.any_disk) {
        around.tell(&format!(
            "{:<12} {:>10}  {}  serial {}  ({})",
            disk.path,
            ui::size(disk.size()),
            disk.title(),
            disk.serial().as_deref().unwrap_or("none"),
            disk.content()
        ))?;
        match judge(&computer, &disk.path, 0, allowed(options)) {
            Ok(_) => good.push(disk.path.clone()),
            Err(refusal) => around.tell(&format!("             not this one: {refusal}"))?,
        }
    }
    if good.is_empty() {
        bail!("no removable disk can be written: plug a stick in, or name a disk (`--help`)");
    }
    if !around.answers() {
        bail!("nobody is there to be asked: scripts say --yes --device {}", good.join(" or "));
    }
    let name = around.ask("which one? Its name, or nothing to stop: ")?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// Judges, tells, asks, looks again and writes.
fn onto_disk<A: Around>(
    around: &mut A,
    options: &FlashOptions,
    content: &Content,
    name: &str,
) -> Result<()> {
    let target = look(around, name, content.least(), allowed(options))?;
    let disk = content.disk(target.size, &seed(&target)?)?;
    around.tell(&format!(
        "{}: {}, {}, serial number {}",
        target.path,
        target.title,
        ui::size(target.size),
        target.serial.as_deref().unwrap_or("none"),
    ))?;
    around.tell(&format!("everything on it will be lost: {}", target.content))?;
    around.tell(&format!("{} will be written", ui::size(disk.written())))?;
    if options.dry_run {
        return around.tell("nothing was written: --dry-run");
    }
    if !around.may_write(&target) {
        return Err(around.forbidden(content, &target)?);
    }
    if !options.yes {
        confirm(around, &target)?;
    }
    let mut node = match around.open(&target) {
        Ok(node) => node,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(around.forbidden(content, &target)?);
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => bail!(
            "{} is in use: the kernel does not give it to us alone. Close what uses it, and try again",
            target.path
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", target.path)),
    };
    // Somebody may have changed sticks meanwhile. From now on the name is this one's: it is open.
    let now = look(around, &target.path, content.least(), allowed(options))?;
    ensure!(
        target == now,
        "{} is another disk than a moment ago ({}, serial number {}, with {}): nothing was written",
        target.path,
        now.title,
        now.serial.as_deref().unwrap_or("none"),
        now.content
    );
    around.check(&mut node, &target)?;
    put(&disk, &mut node)?;
    let is_known = around.close(node);
    around.tell(&format!(
        "done: {} boots Steward from BIOS and from UEFI. The stick may be pulled now",
        target.path
    ))?;
    if !is_known && target.has_partitions {
        around.tell(
            "the system still sees its old partitions: pull it before anything else is done with it",
        )?;
    }
    Ok(())
}

/// The seed that tells this disk's identity from those of others: the same stick keeps its own,
/// if it has a serial number.
fn seed(target: &Target) -> Result<String> {
    Ok(match &target.serial {
        Some(serial) => format!("{serial} {} {}", target.title, target.size),
        None => medium::random().context("cannot read random numbers")?.to_string(),
    })
}

/// Has the person type the disk's name; for an unusual disk, its serial number besides.
fn confirm(around: &mut impl Around, target: &Target) -> Result<()> {
    ensure!(
        around.answers(),
        "nobody is there to be asked: scripts say --yes --device {}",
        target.path
    );
    let name = target.path.rsplit('/').next().unwrap_or(&target.path);
    let typed = around.ask(&format!("type {name} to write over it: "))?;
    ensure!(typed == name || typed == target.path, "that was not {name}: nothing was written");
    if let Some(why) = &target.unusual {
        let proof = target.serial.as_deref().unwrap_or("erase");
        let typed = around.ask(&format!("{why}. Type {proof} if it is really the one: "))?;
        ensure!(typed.eq_ignore_ascii_case(proof), "that was not {proof}: nothing was written");
    }
    Ok(())
}

/// Writes and reads back, with a bar. The first interruption leaves a disk without tables; the
/// second one ends the program.
fn put<M: Medium>(disk: &Sparse, medium: &mut M) -> Result<()> {
    let stopped = Arc::new(AtomicBool::new(false));
    let mut hooks = Vec::new();
    for signal in [SIGINT, SIGTERM] {
        let again = Arc::clone(&stopped);
        hooks.push(flag::register_conditional_shutdown(signal, FAILED.into(), again)?);
        hooks.push(flag::register(signal, Arc::clone(&stopped))?);
    }
    let bar = ui::Bytes::new("writing and reading back", 2 * disk.written());
    let done = write::put(disk, medium, &mut |bytes| {
        bar.add(bytes);
        ensure!(
            !stopped.load(Ordering::Relaxed),
            "stopped: there is no partition table on it now, and nothing boots from it. Flash it again"
        );
        Ok(())
    });
    for hook in hooks {
        signal_hook::low_level::unregister(hook);
    }
    done?;
    bar.done();
    Ok(())
}

/// Refuses a file that a person hardly means as a disk.
fn check_file(around: &mut impl Around, options: &FlashOptions, path: &Path) -> Result<()> {
    let path_text = path.display();
    ensure!(
        !fs::canonicalize(path)?.starts_with("/dev"),
        "{path_text} is a file where disks have their names: a copy to a disk that was not there makes such. \
         Delete it, and plug the stick in again"
    );
    let computer = around.computer()?;
    let is_shown = |file: &str| medium::is_same_file(path, Path::new(file));
    if let Some((device, _)) = computer.backing.iter().find(|(_, file)| is_shown(file)) {
        bail!("{path_text} is the content of /dev/{device}: name that, or detach it first");
    }
    ensure!(
        options.yes || options.dry_run || !has_content(path)? || around.answers(),
        "{path_text} has content, and nobody is there to be asked whether it may be lost: scripts say --yes"
    );
    Ok(())
}

/// Whether there is something in the file that could be missed.
fn has_content(path: &Path) -> Result<bool> {
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(medium::has_content(&file))
}

/// Flashes a file that stands for a disk.
fn onto_file(
    around: &mut impl Around,
    options: &FlashOptions,
    content: &Content,
    path: &Path,
) -> Result<()> {
    let len = fs::metadata(path)?.len();
    // The same content makes the same file, whatever it is called.
    let disk = content.disk(len, image::IMAGE)?;
    around.tell(&format!("{}: a file of {}", path.display(), ui::size(len)))?;
    let has_content = has_content(path)?;
    if has_content {
        around.tell("everything in it will be lost")?;
    }
    around.tell(&format!("{} will be written", ui::size(disk.written())))?;
    if options.dry_run {
        return around.tell("nothing was written: --dry-run");
    }
    if !options.yes && has_content {
        let name = path.file_name().unwrap_or_default().display().to_string();
        let typed = around.ask(&format!("type {name} to write over it: "))?;
        ensure!(typed == name, "that was not {name}: nothing was written");
    }
    let file = fs::OpenOptions::new().read(true).write(true).open(path);
    let mut node = Node::of(file.with_context(|| format!("cannot open {}", path.display()))?);
    put(&disk, &mut node)?;
    around.tell(&format!("done: {}", path.display()))
}

#[cfg(test)]
mod tests;
