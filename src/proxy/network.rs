//! The network in which the instances are. A new proxy is handed it as namespaces and joins it before anything else, so that its connections
//! to 127.0.0.1 go there; what it listens on was bound by the agent, in the host's network, and stays there.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Namespaces that a proxy joins.
#[derive(Debug)]
pub struct JoinNetwork {
    /// The user namespace that owns `net`, where the agent has no right of its own to enter that; joined first.
    pub user: Option<OwnedFd>,
    /// The network namespace (`/proc/<pid>/ns/net`, opened).
    pub net: OwnedFd,
}

impl JoinNetwork {
    /// In the order in which they are joined.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.user.iter().chain([&self.net]).map(AsFd::as_fd).collect()
    }

    /// What tells this network from every other one of the host: the namespace's inode.
    pub(super) fn inode(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.net)?.st_ino)
    }
}

/// The inode of this process's network namespace; `None` where there is no /proc.
pub(super) fn own_inode() -> Option<u64> {
    fs::metadata("/proc/self/ns/net").ok().map(|about| about.ino())
}

/// Joins the namespaces. The process must not have a second thread yet. In a user namespace it has every capability, until the sandbox takes
/// them away.
pub(super) fn join(user: Option<&OwnedFd>, net: &OwnedFd) -> io::Result<()> {
    if let Some(user) = user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    Ok(move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?)
}
