//! What the fuzz targets run: one function of bytes for each.

pub mod emulator;
pub mod input;
pub mod machine;
pub mod page_walk;
