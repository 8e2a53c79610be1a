//! What can go wrong below sq: no room, a file system that refuses or fails, no descriptors, names that no file can have. Never a 200 for
//! what is not on the disk, never a wiped text, and the tenant works again when it is over.
//!
//! The disks are mounted by the tests, which takes root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)] // the lints only know #[test] functions

#[path = "../support/mod.rs"]
mod support;

mod coarse;
mod descriptors;
mod disk;
mod full;
mod low;
mod markers;
mod names;
mod refused;
mod texts;
mod unwritable;
