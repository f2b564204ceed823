//! Debian packages: fetched by `apt-get download`, which needs no root, and
//! unpacked here. A package is an `ar` archive with a compressed tar inside
//! (`deb(5)`).

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, paths, setup};

/// Source of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This computer's own package lists.
    Native,
    /// Packages of another architecture, by lists of their own: how the
    /// computer is set up stays as it is.
    Foreign(&'static str),
}

impl Source {
    fn packages(self) -> PathBuf {
        paths::cache().join(match self {
            Source::Native => "packages".to_owned(),
            Source::Foreign(architecture) => format!("packages-{architecture}"),
        })
    }

    /// A program of apt's with the options that select the lists.
    fn command(self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        if let Source::Foreign(architecture) = self {
            let dir = self.packages().join("apt");
            for inner in ["state/lists/partial", "cache/archives/partial"] {
                fs::create_dir_all(dir.join(inner))
                    .with_context(|| format!("cannot make {}", dir.display()))?;
            }
            let status = dir.join("state/status");
            if !status.is_file() {
                File::create(&status)?;
            }
            for option in [
                format!("APT::Architecture={architecture}"),
                format!("APT::Architectures={architecture}"),
                format!("Dir::State={}", dir.join("state").display()),
                format!("Dir::State::status={}", status.display()),
                format!("Dir::Cache={}", dir.join("cache").display()),
            ] {
                command.args(["-o", &option]);
            }
        }
        // The sandbox's own user may not write into our folders.
        command.args(["-o", "APT::Sandbox::User=root"]);
        Ok(command)
    }

    fn update(self, again: bool) -> Result<()> {
        match self {
            Source::Native => setup::apt_update(again),
            Source::Foreign(_) if again => {
                // One list of several may fail: what is needed decides.
                let _ = cmd::output(self.command("apt-get")?.args(["update", "-q"]));
                Ok(())
            }
            Source::Foreign(_) => Ok(()),
        }
    }
}

/// A fetched package: its files by path, without the leading `./`.
pub(crate) struct Package {
    files: Vec<(String, Vec<u8>)>,
}

impl Package {
    /// Fetches the package called `name`, or takes it from the cache.
    pub(crate) fn fetch(source: Source, name: &str) -> Result<Package> {
        let dir = source.packages().join(name);
        let file = match cached(&dir) {
            Some(file) => file,
            None => download(source, name, &dir)?,
        };
        let files = unpack(File::open(&file)?).with_context(|| {
            format!("{} is damaged; delete it to fetch it again", file.display())
        })?;
        Ok(Package { files })
    }

    /// The contents of the first file whose path passes.
    pub(crate) fn find(&self, passes: impl Fn(&str) -> bool) -> Result<Vec<u8>> {
        self.entry(passes)
            .map(|(_, bytes)| bytes.to_vec())
            .context("a file is missing in a Debian package")
    }

    /// The first file whose path passes, with its path.
    pub(crate) fn entry(&self, passes: impl Fn(&str) -> bool) -> Option<(&str, &[u8])> {
        self.files
            .iter()
            .find(|(name, _)| passes(name))
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }
}

/// One file of one package, in the cache: `package_file("memtest86+", "boot/memtest86+x64.bin")`.
pub fn package_file(package: &str, path: &str) -> Result<PathBuf> {
    let out = paths::cache().join("guests").join(path.replace('/', "-"));
    if !out.is_file() {
        let _lock = crate::lock::Lock::take("guests")?;
        let bytes = Package::fetch(Source::Native, package)?.find(|name| name == path)?;
        fs::create_dir_all(out.parent().unwrap_or(&out))?;
        super::write_whole(&out, &bytes)?;
    }
    Ok(out)
}

/// The package with this prefix on which the package `name` depends: Debian's
/// kernel comes through a package that only names the current one.
pub(crate) fn concrete(source: Source, name: &str, prefix: &str) -> Result<String> {
    let depends = |()| {
        let args = ["depends", "--important", name];
        let out = cmd::output(source.command("apt-cache")?.args(args))?;
        Ok::<_, anyhow::Error>(depends_on(&String::from_utf8_lossy(&out), prefix))
    };
    // Somebody may have fetched it before the lists were gone.
    if let Some(known) = known_concrete(source, prefix) {
        return Ok(known);
    }
    if let Ok(Some(found)) = depends(()) {
        return Ok(found);
    }
    source.update(true)?;
    depends(())?.with_context(|| format!("the package {name} depends on no {prefix}*"))
}

fn known_concrete(source: Source, prefix: &str) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(source.packages())
        .ok()?
        .flatten()
        .filter(|entry| cached(&entry.path()).is_some())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names.pop()
}

fn depends_on(text: &str, prefix: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends:"))
        .map(str::trim)
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

fn cached(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
}

fn download(source: Source, name: &str, dir: &Path) -> Result<PathBuf> {
    if cmd::find("apt-get").is_none() {
        bail!("there is no apt-get to fetch the Debian package {name}");
    }
    // Fetched beside and moved: a package in the cache is whole.
    let partial = dir.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let fetch =
        || cmd::output(source.command("apt-get")?.args(["download", name]).current_dir(&partial));
    source.update(false)?;
    if fetch().is_err() {
        source.update(true)?;
        fetch()?;
    }
    let _ = fs::remove_dir_all(dir);
    fs::rename(&partial, dir)?;
    cached(dir).with_context(|| format!("apt-get fetched no file for {name}"))
}

fn unpack(reader: impl Read) -> Result<Vec<(String, Vec<u8>)>> {
    let mut outer = ar::Archive::new(reader);
    while let Some(member) = outer.next_entry() {
        let member = member.context("bad ar archive")?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        match name.as_str() {
            "data.tar" => return read_tar(member),
            "data.tar.xz" => return read_tar(lzma_rust2::XzReader::new(member, true)),
            "data.tar.gz" => return read_tar(flate2::read::GzDecoder::new(member)),
            "data.tar.zst" => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(member)
                    .map_err(|error| anyhow::anyhow!("bad zstd data: {error}"))?;
                return read_tar(decoder);
            }
            _ => {}
        }
    }
    bail!("no data member in a form that is known (tar, plain or with xz, gzip or zstd)")
}

fn read_tar(reader: impl Read) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(reader).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.push((name, bytes));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_concrete_kernel_is_found() {
        let text =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n  Depends: foo\n";
        assert_eq!(
            depends_on(text, "linux-image-"),
            Some("linux-image-6.1.0-1-cloud-amd64".to_owned())
        );
        assert_eq!(depends_on("x\n", "linux-image-"), None);
    }

    #[test]
    fn a_package_unpacks() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        tar.append_data(&mut header, "./boot/vmlinuz-1", &b"hello"[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        let mut ar = ar::Builder::new(Vec::new());
        ar.append(&ar::Header::new(b"debian-binary".to_vec(), 4), &b"2.0\n"[..]).unwrap();
        ar.append(&ar::Header::new(b"data.tar".to_vec(), tar.len() as u64), &tar[..]).unwrap();
        let bytes = ar.into_inner().unwrap();
        assert_eq!(unpack(&bytes[..]).unwrap(), [("boot/vmlinuz-1".to_owned(), b"hello".to_vec())]);
        assert!(unpack(&b"!<arch>\n"[..]).is_err());
    }
}
