//! Instances: the sq binary, spawn, adopt, stop, health, ports, logs, memory, disk.
//!
//! Primitives only: each does one thing to one process. *When* to do it (start order, back-off, drain before a stop) is
//! decided in [`crate::reconcile`].
#![forbid(unsafe_code)]

pub mod binary;
pub mod cgroup;
#[cfg(test)]
mod fake;
pub mod holder;
mod install;
pub mod isolation;
pub mod launcher;
pub mod limits;
pub mod log;
pub mod network;
pub mod owner;
pub mod ports;
pub mod probe;
pub mod process;
mod procfs;
pub mod pulse;
mod sandbox;
pub mod scan;
pub mod spawn;
pub mod stop;
pub mod storage;
pub mod usage;

pub use process::{Exit, Process, boot_id};
