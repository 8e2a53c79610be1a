//! Copies of everybody's text off this host, by the real `restic`: taken, checked, tried out, and brought back.
//!
//! `users/<id>/phext-data --(consistent, only what changed)--> backup/stage --(restic)--> repository`. The stage holds nothing but whole
//! versions, so restic may take its time over it; and it looks like what a plain `restic restore` gives, for people who have restic and the
//! password and nothing of ours. [`book`] decides when something is due and remembers how it went, without I/O; [`run`] does it, on a
//! thread of its own, one at a time. Only restic runs at the lowest priority: what holds a tenant's lane must not wait behind others.
#![forbid(unsafe_code)]

pub mod aside;
pub mod book;
mod compare;
mod env_file;
mod fault;
pub mod restic;
pub mod restore_all;
mod run;
mod snapshots;
mod stage;

pub use book::{Book, Job, Report};
pub use fault::ResticError;
pub use run::start;

use std::path::{Path, PathBuf};

/// Everything of this room on a host: the stage, restic's cache, test restores.
fn place(state_dir: &Path) -> PathBuf {
    state_dir.join("backup")
}

/// Marks our snapshots in a repository that others may use too.
const TAG: &str = "sq-agent";
/// The tenants.toml in force, in the stage.
const TENANTS: &str = "tenants.toml";
/// The secret that the agent made for tokens; without it every token that was handed out would die with the host.
const TOKEN_SECRET: &str = "jwt.key";

/// `1 tenant`, `2 tenants`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
