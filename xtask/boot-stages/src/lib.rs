//! Nothing: what counts is the build script of `bootloader`, which builds the boot stages.
