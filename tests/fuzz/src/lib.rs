//! Bodies of the fuzz targets: one function of bytes for each.
#![forbid(unsafe_code)]

pub mod accesses;
pub mod acpi;
pub mod board;
pub mod bundle;
pub mod control;
pub mod emulator;
pub mod exits_svm;
pub mod exits_vmx;
pub mod hypercalls;
pub mod input;
pub mod loaders;
pub mod machine;
pub mod monitor;
pub mod page_walk;
pub mod prepared;
pub mod pv_msrs;
pub mod restore;
pub mod session;
pub mod state;
pub mod turn;
