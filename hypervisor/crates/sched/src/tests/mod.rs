//! The policy on simulated machines.

mod props;
mod sim;
mod storms;
mod units;
