//! The whole system: the real program, real sq, real sockets, real signals. One binary, so that tests that wait run beside each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)] // the lints only know #[test] functions

#[path = "../support/mod.rs"]
mod support;

mod acme;
mod agent;
mod apart;
mod api;
mod backup;
mod broken_writes;
mod chaos;
mod commands;
mod crash_points;
mod edits;
mod front;
mod guard;
mod isolation;
mod kills;
mod limits;
mod liveness;
mod memory;
mod rollout;
mod snapshots;
mod upgrade;
mod uploads;
