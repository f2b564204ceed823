//! Where things are: the checkout, the build output, the caches.

use std::path::{Path, PathBuf};

/// The checkout's top folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = here.canonicalize().unwrap_or_else(|_| here.to_path_buf());
    here.parent().map_or_else(|| here.clone(), Path::to_path_buf)
}

/// Where cargo builds and where runs leave their files: `CARGO_TARGET_DIR`, or
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

/// What is slow to make and depends on nothing of ours: boot stages, packages.
/// Always in the checkout's own `target`, whatever `CARGO_TARGET_DIR` says.
pub fn cache() -> PathBuf {
    root().join("target").join("cache")
}

/// Files of one run, apart from those of a run going on at the same time.
pub fn run_dir() -> PathBuf {
    target().join("steward").join(format!("run-{}", std::process::id()))
}
