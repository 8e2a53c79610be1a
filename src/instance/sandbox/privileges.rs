//! Privileges: whose an instance is, and that it can never get more.

use nix::{
    sys::prctl,
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

/// Becomes `user` (as uid and gid), leaving every group. Only root can.
pub(crate) fn become_user(user: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// Drops every capability from the bounding set, so that no program started from here on can bring one back. To be called
/// while still root: for a process without CAP_SETPCAP nothing can be dropped, and [`give_up`] then stands alone.
pub(crate) fn close_bounding_set() {
    for capability in caps::all() {
        // One that the kernel does not know cannot be dropped and need not be.
        let _ = caps::drop(None, caps::CapSet::Bounding, capability);
    }
}

/// Clears every capability and forbids to gain one by an exec.
pub(crate) fn give_up() -> std::io::Result<()> {
    // Ambient first: the others imply it.
    for set in [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set).map_err(std::io::Error::other)?;
    }
    Ok(prctl::set_no_new_privs()?)
}
