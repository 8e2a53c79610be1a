//! What the guard gives up: everything but the tenants' files.

use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope, make_bitflags};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};
use rustix::fd::{AsFd, OwnedFd};

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {why}")]
pub struct SandboxError {
    what: &'static str,
    why: String,
}

fn step<T, E: ToString>(what: &'static str, result: Result<T, E>) -> Result<T, SandboxError> {
    result.map_err(|error| SandboxError { what, why: error.to_string() })
}

/// What it does below `users/`: it reads, writes, makes, renames and removes files, and makes the guard's directories.
const FILES: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | Refer});

/// Of root's capabilities, those by which it gets at files that belong to the instances' users, and gives them back.
const KEPT: [caps::Capability; 3] = [caps::Capability::CAP_DAC_OVERRIDE, caps::Capability::CAP_CHOWN, caps::Capability::CAP_FOWNER];

/// Gives up everything else, once and for good, before there is a second thread.
pub(super) fn enter(users: &OwnedFd) -> Result<(), SandboxError> {
    // Users' texts pass through this memory.
    step("forbid core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    step("become undumpable", prctl::set_dumpable(false))?;
    drop_capabilities()?;
    step("set no_new_privs", prctl::set_no_new_privs())?;
    step("restrict itself by Landlock", landlock(users))
}

fn drop_capabilities() -> Result<(), SandboxError> {
    let kept: caps::CapsHashSet = KEPT.into_iter().collect();
    // It may not exist (before Linux 4.3), and the others imply it.
    let _ = caps::clear(None, caps::CapSet::Ambient);
    let has = step("read its capabilities", caps::read(None, caps::CapSet::Permitted))?;
    let left: caps::CapsHashSet = has.intersection(&kept).copied().collect();
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        step("drop its capabilities", caps::set(None, set, &left))?;
    }
    step("drop its capabilities", caps::clear(None, caps::CapSet::Inheritable))
}

/// As much of it as the kernel can (best effort is the library's default).
fn landlock(users: &OwnedFd) -> Result<(), landlock::RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rule(PathBeneath::new(users.as_fd(), FILES))?
        .restrict_self()
        .map(drop)
}
