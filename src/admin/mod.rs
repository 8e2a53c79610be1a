//! The agent's own door: HTTP on `<state_dir>/run/agent.sock`, for the commands of this program.
#![forbid(unsafe_code)]

pub mod client;
pub mod server;
pub mod status;

use std::path::{Path, PathBuf};

/// `<state_dir>/run/agent.sock`.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("agent.sock")
}
