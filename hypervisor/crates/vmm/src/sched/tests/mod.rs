//! The policy on simulated machines.

mod props;
mod sim;
mod units;
