//! The loop: a pure plan from desired and observed, the logic around it, and the shell that does the work.
//!
//! Pure functions: [`plan`], [`guard`], [`backoff`], [`queue`], [`rows`], [`diff`], `health`, `port_book`, `recover`, `review`, `rollout`.
//! Logic without I/O: [`core`] owns the state; `news` takes in what happened, `converge` carries out, `keeping` has snapshots taken and put back, `backups` has copies made off the host, `gitops` follows the repository, `certificates` watches their end, `room` watches the disk, `alerts` tells people, `history` keeps what is used and says what is to come, `shown` is what the page sees, `metrics` says how all stands, `rebuild` has lost records back, all by the one trait [`world`].
//! Shell: [`agent`] drives it by the clock, `host` is the real world, `lifecycle` holds the tasks.
#![forbid(unsafe_code)]

pub mod agent;
mod alerts;
mod asked;
mod awaited;
pub mod backoff;
mod backups;
mod certificates;
pub mod converge;
pub mod core;
pub mod diff;
pub mod event;
mod gitops;
pub mod guard;
pub mod health;
mod history;
pub mod host;
pub mod intake;
mod keeping;
mod lifecycle;
mod metrics;
pub mod news;
pub mod plan;
pub mod port_book;
pub mod programs;
pub mod queue;
mod rebuild;
mod records;
pub mod recover;
pub mod report;
pub mod review;
mod rolling;
pub mod rollout;
mod room;
pub mod route_book;
pub mod rows;
pub mod setup;
mod shown;
mod tasks;
pub mod world;
