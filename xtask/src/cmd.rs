//! Running other programs.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::ui::Step;

/// Path of `program`, found through `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// The cargo that runs us, else the one in `PATH`.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Variables that cargo set for *us* are not meant for the cargo that we start.
    for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
        command.env_remove(name);
    }
    command
}

/// Runs `command` and returns its standard output; a failure carries the end of
/// its standard error.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = format!("{command:?}");
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !out.status.success() {
        bail!(
            "{name} failed ({}):\n{}",
            out.status,
            tail(&String::from_utf8_lossy(&out.stderr), 20)
        );
    }
    Ok(out.stdout)
}

/// Like [`output`], showing in `step` the line that the program last wrote to its
/// standard error.
pub fn output_with_progress(command: &mut Command, step: &Step) -> Result<Vec<u8>> {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stdout) = stdout {
            // A broken pipe ends the output; the exit status tells the rest.
            let _ = stdout.read_to_end(&mut bytes);
        }
        bytes
    });
    let mut errors = String::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            step.detail(&text);
            errors.push_str(&text);
            line.clear();
        }
    }
    let status = child.wait()?;
    let stdout = reader.join().unwrap_or_default();
    if !status.success() {
        bail!("{name} failed ({status}):\n{}", tail(&errors, 40));
    }
    Ok(stdout)
}

/// The last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let start = all.len().saturating_sub(lines);
    all.get(start..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
        assert_eq!(tail("", 5), "");
    }

    #[test]
    fn a_failing_program_is_an_error_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo oops >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("oops"), "{error}");
    }
}
