//! Tasks of the developer's machine for Steward: to set it up, build, run and test it.
//!
//! A library besides the program, so that the package `tests` starts machines in
//! the same way: [`run::write_image`], [`emulator::Launch`], [`session::Session`].
#![forbid(unsafe_code)]

mod advice;
pub mod bench;
pub mod bundle;
pub mod cmd;
pub mod console;
pub mod control;
pub mod ctl;
pub mod emulator;
pub mod exec;
pub mod flash;
pub mod fuzz;
pub mod guest;
pub mod image;
pub mod kernel;
pub mod lint;
pub mod lock;
pub mod machine;
pub mod paths;
pub mod plan;
pub mod run;
pub mod scan;
pub mod session;
pub mod setup;
pub mod stages;
pub mod test;
pub mod top;
pub mod ui;
pub mod words;
