//! The loop: a pure plan from desired and observed, and the shell that carries it out.
//!
//! Pure: [`plan`], [`guard`], [`backoff`], [`queue`], [`rows`], [`diff`], `health`, `port_book`, `recover`.
//! Shell: [`agent`] owns the state; `news` takes in what happened, `converge` carries out, `lifecycle` holds the tasks.
#![forbid(unsafe_code)]

pub mod agent;
pub mod backoff;
mod converge;
pub mod diff;
pub mod event;
pub mod guard;
mod health;
mod intake;
mod lifecycle;
mod news;
pub mod plan;
mod port_book;
pub mod queue;
mod recover;
mod report;
mod route_book;
pub mod rows;
mod setup;
