//! The loop: a pure plan from desired and observed, and the shell that carries it out.
//!
//! Pure: [`plan`], [`guard`], [`backoff`], [`queue`], [`rows`], [`diff`], `health`, `port_book`, `recover`.
//! Shell: [`agent`] owns the state; `news` takes in what happened, `converge` carries out, `lifecycle` holds the tasks.
#![forbid(unsafe_code)]

pub mod agent;
pub mod backoff;
pub mod converge;
pub mod diff;
pub mod event;
pub mod guard;
pub mod health;
pub mod intake;
pub mod lifecycle;
pub mod news;
pub mod plan;
pub mod port_book;
pub mod program;
pub mod queue;
pub mod recover;
pub mod report;
pub mod rollout;
pub mod route_book;
pub mod rows;
pub mod setup;
