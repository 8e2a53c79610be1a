//! What the guard gives up: everything but the tenants' files. No network, no process, no file elsewhere.

use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope, make_bitflags};
use libc::c_long;
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};
use rustix::fd::{AsFd, OwnedFd};

use crate::seccomp::{AllowList, SeccompError, bits, equals, zero};

/// A step that failed. The process then does not work: better no writes than one that may do more than it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {why}")]
pub struct SandboxError {
    what: &'static str,
    why: String,
}

fn step<T, E: ToString>(what: &'static str, result: Result<T, E>) -> Result<T, SandboxError> {
    result.map_err(|error| SandboxError { what, why: error.to_string() })
}

/// What it calls beside that which every filter allows: Landlock says which files these reach.
const CALLS: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_utimensat,
    libc::SYS_fstatfs,
    libc::SYS_flock,
    libc::SYS_syncfs,
    // How a file is copied: the first two where the file systems allow it.
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
];

/// Its only ioctl: to share a file's blocks (FICLONE; linux/fs.h).
const FICLONE: u32 = 0x4004_9409;

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
    step("restrict itself by Landlock", landlock(users))?;
    step("filter its system calls", filter(std::process::id()))
}

fn filter(pid: u32) -> Result<(), SeccompError> {
    let not_executable = || bits(2, libc::PROT_EXEC, 0);
    AllowList::common()?
        .always(CALLS)
        .only_if(libc::SYS_ioctl, vec![equals(1, FICLONE)?])?
        .only_if(libc::SYS_mmap, vec![not_executable()?])?
        .only_if(libc::SYS_mprotect, vec![not_executable()?])?
        // To its proxy, and to nobody by address.
        .only_if(libc::SYS_sendto, vec![zero(4)?])?
        // abort() raises its signal in this way.
        .only_if(libc::SYS_tgkill, vec![equals(0, pid)?])?
        // The name of a thread.
        .only_if(libc::SYS_prctl, vec![equals(0, libc::PR_SET_NAME as u32)?])?
        .compile()?
        .apply()
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

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpStream, path::Path, process::Command, sync::Arc, thread};

    use super::{
        super::{
            directory::sync_all,
            group_sync::GroupSync,
            keeper::Keeper,
            wire::{Sent, ToGuard, ToProxy, Verdict, Write},
        },
        *,
    };
    use crate::guard::{Call, Durability};

    fn a_write_that_holds_and_one_that_fails(user_dir: &Path, users: OwnedFd, durability: Durability) {
        let keeper = Arc::new(Keeper::new(users, "boot".into(), GroupSync::new(sync_all)));
        let phext = user_dir.join("phext-data/x.phext");
        let answered = Sent::Answered { success: true, length: 0 };
        let write = |ticket, text: Option<&str>| {
            let id = crate::desired::TenantId::parse("a").unwrap();
            let (phext_name, request_id) = ("x.phext".to_owned(), "r".to_owned());
            let write = Write {
                id,
                phext: phext_name,
                call: Call::Update,
                epoch: 1,
                request_id,
                body: 4,
                memory_max: None,
                durability,
                may_grow: true,
            };
            let (begun, _) = keeper.answer(ToGuard::Begin { ticket, write });
            assert!(matches!(begun, ToProxy::Begun { .. }), "{begun:?}");
            text.into_iter().for_each(|text| fs::write(&phext, text).unwrap());
            let (ended, rest) = keeper.answer(ToGuard::End { ticket, sent: answered });
            rest.into_iter().for_each(|rest| rest());
            ended
        };
        let ended = write(1, Some("text"));
        assert!(matches!(ended, ToProxy::Verdict { verdict: Verdict::Kept, .. }), "{ended:?}");
        let ended = write(2, None);
        assert!(matches!(ended, ToProxy::Verdict { verdict: Verdict::PutBack { .. }, .. }), "{ended:?}");
        let (settled, _) = keeper.answer(ToGuard::Reloaded { ticket: 2, done: true });
        assert!(matches!(settled, ToProxy::Settled { undone: true, .. }), "{settled:?}");
        assert_eq!(fs::read_to_string(&phext).unwrap(), "text");
    }

    /// Landlock and the filter hold for one thread, so a thread of its own can try them.
    #[test]
    fn a_guard_reaches_the_tenants_files_and_nothing_else() {
        let (users, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(users.path().join("a/phext-data")).unwrap();
        fs::write(elsewhere.path().join("secret"), "x").unwrap();
        fs::write(users.path().join("a/sq.log"), "").unwrap();
        thread::spawn(move || {
            let directory: OwnedFd = fs::File::open(users.path()).unwrap().into();
            landlock(&directory).unwrap();
            filter(std::process::id()).unwrap();
            assert!(fs::read(elsewhere.path().join("secret")).is_err(), "another file");
            assert!(fs::read("/etc/passwd").is_err(), "the host's files");
            assert!(TcpStream::connect("127.0.0.1:1").is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)), "the network");
            assert!(Command::new("/bin/true").spawn().is_err(), "a process");
            assert!(std::os::unix::fs::symlink("/etc", users.path().join("a/link")).is_err(), "a link");
            for durability in [Durability::Process, Durability::Power] {
                a_write_that_holds_and_one_that_fails(&users.path().join("a"), directory.try_clone().unwrap(), durability);
            }
            thread::spawn(|| ()).join().unwrap();
        })
        .join()
        .unwrap();
    }
}
