//! What the process that faces the network gives up, once and for good, before it has a second thread.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

use super::seccomp;
use crate::seccomp::SeccompError;

/// A step that failed. The process then does not serve: better down than open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("cannot {what}: {why}")]
    Step { what: &'static str, why: String },
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

fn step<T, E: ToString>(what: &'static str, result: Result<T, E>) -> Result<T, SandboxError> {
    result.map_err(|error| SandboxError::Step { what, why: error.to_string() })
}

/// Descriptors for 20,000 connections, each with one to sq beside it, and then some.
const DESCRIPTORS: u64 = 50_000;

/// Raises the limit of descriptors, as far as the host permits. Returns what it is then.
pub(crate) fn raise_descriptor_limit() -> Result<u64, SandboxError> {
    let (_, most) = step("read RLIMIT_NOFILE", getrlimit(Resource::RLIMIT_NOFILE))?;
    if most < DESCRIPTORS && setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_ok() {
        return Ok(DESCRIPTORS);
    }
    step("raise RLIMIT_NOFILE", setrlimit(Resource::RLIMIT_NOFILE, most, most))?;
    Ok(most)
}

/// Gives everything up. `run_as` is whose the process becomes where it is root's. In a user namespace that it joined it has every capability,
/// whoever it is, and nobody to become but where that namespace knows them. Returns what Landlock does here, for the log.
pub(crate) fn enter(run_as: Option<(u32, u32)>, in_user_namespace: bool) -> Result<&'static str, SandboxError> {
    // Keys lie in this memory: no core dump, no debugger of the same user.
    step("forbid core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    step("become undumpable", prctl::set_dumpable(false))?;
    if Uid::effective().is_root() || in_user_namespace {
        drop_bounding_set();
    }
    if Uid::effective().is_root() && !in_user_namespace {
        step("leave its groups", setgroups(&[]))?;
    }
    if let Some((uid, gid)) = run_as.filter(|_| Uid::effective().is_root()) {
        become_user(Uid::from_raw(uid), Gid::from_raw(gid))?;
    }
    clear_capabilities()?;
    step("set no_new_privs", prctl::set_no_new_privs())?;
    // Changing the user made it dumpable by the kernel's rules again.
    step("become undumpable", prctl::set_dumpable(false))?;
    let landlock = step("restrict itself by Landlock", landlock())?;
    seccomp::lock_down(std::process::id())?;
    Ok(landlock)
}

/// No program that this process could ever start gets a capability back.
fn drop_bounding_set() {
    for capability in caps::all() {
        // One that the kernel does not know cannot be dropped and need not be.
        let _ = caps::drop(None, caps::CapSet::Bounding, capability);
    }
}

fn become_user(uid: Uid, gid: Gid) -> Result<(), SandboxError> {
    step("change its group", setresgid(gid, gid, gid))?;
    step("change its user", setresuid(uid, uid, uid))
}

fn clear_capabilities() -> Result<(), SandboxError> {
    // Ambient first: it may not exist (before Linux 4.3), and the others imply it.
    let _ = caps::clear(None, caps::CapSet::Ambient);
    for set in [caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
        step("drop its capabilities", caps::clear(None, set))?;
    }
    Ok(())
}

/// No file, no new listener, no signal and no abstract socket beyond the process itself; as much of it as the kernel can (best effort is
/// the library's default). The system call filter stands behind it.
fn landlock() -> Result<&'static str, landlock::RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "in force",
        RulesetStatus::PartiallyEnforced => "in force in part",
        RulesetStatus::NotEnforced => "not in this kernel",
    })
}
