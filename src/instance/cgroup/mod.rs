//! One cgroup (version 2) a tenant: its limits, what it really uses, and a way to find and to end all of its processes.
//!
//! Below the agent's own cgroup, which has to be delegated to it, lie the leaves `agent` and `proxy`, since a cgroup that
//! hands controllers down may hold no process itself, and `tenants-<name>/tenant-<id>`. The name keeps two agents in one
//! cgroup (two shells, say) from touching each other's instances; the prefix is there since an id like `cgroup.procs` is a
//! valid one. (Documentation: the kernel's admin-guide/cgroup-v2; systemd's CGROUP_DELEGATION.)

mod figures;
mod limits;
mod place;
mod tenant;
mod tree;

use std::{io, path::PathBuf};

pub use figures::{CpuFigures, MemoryEvents, MemoryFigures, PidFigures};
pub use limits::{Applied, CgroupLimits};
pub use tree::{Cgroups, Controllers, Unavailable};

use crate::desired::TenantId;

/// What went wrong with one tenant's cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file operation failed.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Killed processes are still there: they are stuck in the kernel, and a second writer must not be started.
    #[error("processes of {id} do not die; look at {} (a disk that does not answer, say)", path.display())]
    StillAlive {
        /// Whose.
        id: TenantId,
        /// Their cgroup.
        path: PathBuf,
    },
}

/// Attaches what was tried, and on what.
fn file_error(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.into();
    move |error| CgroupError::File { what, path, error }
}
