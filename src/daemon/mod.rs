//! The agent as a process: from its start, or from what another agent handed over, to its end.
//!
//! A **term** (`Term`) is everything that an agent which holds the state directory keeps open: instances.db, the shared pages,
//! the loop, the proxy's supervisor, the agent's socket. A process holds one term after another only where an upgrade came to nothing.
#![forbid(unsafe_code)]

mod check;
mod run;
mod signals;
mod systemd;
mod term;

pub use run::{Loaded, Options, Serving, Start, run};
