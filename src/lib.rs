//! sq-agent: runs a host of `sq` processes from one desired-state file.
//!
//! ARCHITECTURE.md explains the house; each module below is one of its rooms.

pub mod acme;
pub mod admin;
pub mod alerts;
pub mod backup;
pub mod certificate;
pub(crate) mod child;
pub mod cli;
pub mod crash_point;
pub mod daemon;
pub mod desired;
pub(crate) mod digest;
pub mod doctor;
pub mod edit;
pub(crate) mod fetch;
pub mod file;
pub(crate) mod framed;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod gitops;
pub mod guard;
pub mod handover;
pub mod history;
pub mod import;
pub mod instance;
pub mod instance_key;
pub mod metrics;
pub mod observed;
pub mod proxy;
pub mod reconcile;
pub mod removed;
pub mod route;
pub(crate) mod seccomp;
pub mod secret;
pub mod snapshot;
pub mod store;
pub mod sys;
pub mod telemetry;
