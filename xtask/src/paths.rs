//! Paths: of the checkout, the build output, the caches.

use std::path::{Path, PathBuf};

/// The checkout's top folder: the one around the package that cargo runs, else the one
/// around the current folder, else where this program was built. A tree that was copied
/// with what was built in it works in its own place.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let starts = [package, std::env::current_dir().ok(), Some(built.to_path_buf())];
    let found = starts.iter().flatten().find_map(|start| checkout(start));
    found.unwrap_or_else(|| built.parent().unwrap_or(built).to_path_buf())
}

/// The checkout that `start` is in.
fn checkout(start: &Path) -> Option<PathBuf> {
    let start = start.canonicalize().ok()?;
    let is_top = |dir: &&Path| {
        ["xtask/Cargo.toml", "hypervisor/Cargo.toml"].iter().all(|file| dir.join(file).is_file())
    };
    start.ancestors().find(is_top).map(Path::to_path_buf)
}

/// Folder in which cargo builds and runs leave their files: `CARGO_TARGET_DIR`, or
/// `target` in the checkout.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => {
            let dir = PathBuf::from(dir);
            if dir.is_absolute() { dir } else { root().join(dir) }
        }
        _ => root().join("target"),
    }
}

/// Folder of things that are slow to make and depend on nothing of ours: boot stages, packages.
/// Always in the checkout's own `target`, whatever `CARGO_TARGET_DIR` says.
pub fn cache() -> PathBuf {
    root().join("target").join("cache")
}

/// Files of one run, apart from those of a run going on at the same time.
pub fn run_dir() -> PathBuf {
    target().join("steward").join(format!("run-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_checkout_is_found_from_inside_wherever_it_is() {
        let dir = std::env::temp_dir().join(format!("steward-paths-{}", std::process::id()));
        for package in ["xtask", "hypervisor"] {
            fs::create_dir_all(dir.join("copy").join(package)).unwrap();
            fs::write(dir.join("copy").join(package).join("Cargo.toml"), "").unwrap();
        }
        let copy = dir.join("copy").canonicalize().unwrap();
        assert_eq!(checkout(&dir.join("copy/xtask")), Some(copy.clone()));
        assert_eq!(checkout(&dir.join("copy")), Some(copy));
        assert_eq!(checkout(&dir), None);
        assert_eq!(checkout(&dir.join("nothing")), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
