//! The loop: a pure plan from desired and observed, and the shell that carries it out.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod guard;
pub mod plan;
pub mod queue;
pub mod rows;
