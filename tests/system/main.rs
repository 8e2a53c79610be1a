//! The whole system: the real program, real sq, real sockets, real signals. One binary, so that tests that wait run beside each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)] // the lints only know #[test] functions

#[path = "../support/mod.rs"]
mod support;

mod acme;
mod admin;
mod admin_changes;
mod agent;
mod alerts;
mod apart;
mod api;
mod backup;
mod broken_writes;
mod chaos;
mod commands;
mod crash_points;
mod edits;
mod front;
mod gitops;
mod gitops_ways;
mod guard;
mod history;
mod isolation;
mod keys;
mod kills;
mod limits;
mod liveness;
mod memory;
mod metrics;
mod page;
mod rollout;
mod secrets;
mod snapshots;
mod squatter;
mod storage;
mod upgrade;
mod uploads;
mod webhook;
