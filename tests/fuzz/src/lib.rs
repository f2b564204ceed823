//! What the fuzz targets run: one function of bytes for each.

pub mod bundle;
pub mod emulator;
pub mod input;
pub mod loaders;
pub mod machine;
pub mod page_walk;
