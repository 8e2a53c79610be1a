//! The desired state from a git repository: a merge is a deployment, a revert is a rollback.
//!
//! `book` (pure) says when the repository is to be looked at and keeps what came of it; `sync` is one look, on a thread of its own: fetch,
//! fast-forward only, signature, all checks of tenants.toml, and only then the file is put in place, from where the loop takes it in like any other
//! edit. `publish` is the other way: a change committed and pushed. `git` runs the real program, one command after the other, in a
//! repository of the agent's own.
#![forbid(unsafe_code)]

pub mod book;
mod git;
pub(crate) mod publish;
mod sync;

use std::path::{Path, PathBuf};

pub use book::{Book, Job, Outcome, Report, Trouble};
pub use sync::{first, start};

/// `<state_dir>/gitops`.
fn place(state_dir: &Path) -> PathBuf {
    state_dir.join("gitops")
}
