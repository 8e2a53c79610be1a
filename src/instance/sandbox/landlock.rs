//! What of the file system and the network an instance can reach, and whom it can signal.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, make_bitflags,
};

use super::interpreter;
use crate::instance::isolation::Part;

/// The rights that are taken away; the library leaves out what the kernel does not know.
const KNOWN: ABI = ABI::V6;

/// Where libraries lie. To map one as executable is to read it; to execute it is more, and not given.
const LIBRARIES: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/ld.so.preload"];

/// What else sq, its allocator or the standard library read.
const READABLE: &[&str] = &["/dev/urandom", "/proc/sys/vm/overcommit_memory"];

/// What sq does with its data: it reads, writes, cuts and makes files and directories. It makes no links and no sockets there,
/// and removes nothing.
const DATA: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir});

/// What is the same for every instance, with the files open.
pub(crate) struct Rules {
    readable: Vec<PathFd>,
    executable: Vec<PathFd>,
    null: Option<PathFd>,
}

impl Rules {
    /// For `program`. What does not exist on this host needs no rule.
    pub(crate) fn for_program(program: &Path) -> Self {
        let interpreter = interpreter::of(program).ok().flatten();
        let open = |path: &Path| PathFd::new(path).ok();
        Self {
            readable: LIBRARIES.iter().chain(READABLE).filter_map(|path| open(Path::new(path))).collect(),
            executable: [Some(program), interpreter.as_deref()].into_iter().flatten().filter_map(open).collect(),
            null: open(Path::new("/dev/null")),
        }
    }

    /// Restricts this process for good: beside the program and its libraries it reaches what lies below `data`, binds `port`,
    /// connects nowhere, and signals nobody. As much of it as the kernel can.
    pub(crate) fn apply(&self, data: &[BorrowedFd<'_>], port: u16) -> Result<Part, RulesetError> {
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()?;
        for file in &self.readable {
            rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile | AccessFs::ReadDir))?;
        }
        for file in &self.executable {
            rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile | AccessFs::Execute))?;
        }
        if let Some(null) = &self.null {
            rules = rules.add_rule(PathBeneath::new(null, AccessFs::ReadFile | AccessFs::WriteFile))?;
        }
        // The standard library asks where the first thread's stack lies. Opened here, it is this process's own.
        if let Ok(maps) = PathFd::new("/proc/self/maps") {
            rules = rules.add_rule(PathBeneath::new(maps, AccessFs::ReadFile))?;
        }
        for directory in data {
            rules = rules.add_rule(PathBeneath::new(directory.as_fd(), DATA))?;
        }
        let status = rules.add_rule(NetPort::new(port, AccessNet::BindTcp))?.restrict_self()?;
        Ok(part(status.ruleset, status.landlock))
    }
}

/// What is in force, in words.
fn part(enforced: RulesetStatus, status: LandlockStatus) -> Part {
    match status {
        LandlockStatus::Available { effective_abi, .. } if enforced != RulesetStatus::NotEnforced => {
            Part::On { detail: covers(effective_abi) }
        }
        LandlockStatus::NotEnabled => Part::off(
            "Landlock is built into this kernel and not switched on",
            "add landlock to the lsm= list on the kernel's command line",
        ),
        _ => Part::off("this kernel has no Landlock, or a container forbids it", "use Linux 5.13 or later, with CONFIG_SECURITY_LANDLOCK"),
    }
}

/// What each version brought (kernel documentation, userspace-api/landlock).
fn covers(abi: ABI) -> String {
    let steps = [
        (ABI::V1, "files"),
        (ABI::V3, "truncation"),
        (ABI::V4, "TCP ports"),
        (ABI::V5, "device control"),
        (ABI::V6, "signals and abstract sockets"),
    ];
    let (here, missing): (Vec<_>, Vec<_>) = steps.into_iter().partition(|(since, _)| abi >= *since);
    let names = |steps: Vec<(ABI, &str)>| steps.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", ");
    match missing.is_empty() {
        true => format!("ABI {abi}: {}", names(here)),
        false => format!("ABI {abi}: {}; not yet in this kernel: {}", names(here), names(missing)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io, thread};

    use super::*;

    #[test]
    fn what_a_kernel_covers_and_lacks_is_said() {
        assert_eq!(
            covers(ABI::V2),
            "ABI 2: files; not yet in this kernel: truncation, TCP ports, device control, signals and abstract sockets"
        );
        assert!(!covers(ABI::V7).contains("not yet"));
        assert!(!part(RulesetStatus::NotEnforced, LandlockStatus::NotImplemented).is_on());
    }

    /// The rules hold for one thread, so a thread of its own can try them.
    #[test]
    fn a_restricted_thread_reaches_its_own_data_and_its_libraries_alone() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("a"), "secret").unwrap();
        thread::spawn(move || {
            let directory = fs::File::open(own.path()).unwrap();
            let part = Rules::for_program(Path::new("/bin/true")).apply(&[directory.as_fd()], 10_001).unwrap();
            if !part.is_on() {
                return;
            }
            let denied = |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            denied(fs::read(other.path().join("a")).map(drop));
            denied(fs::write(other.path().join("b"), ""));
            denied(fs::File::open("/etc/passwd").map(drop));
            denied(std::os::unix::fs::symlink("/etc", own.path().join("link")));
            fs::write(own.path().join("a"), "text").unwrap();
            assert_eq!(fs::read_to_string(own.path().join("a")).unwrap(), "text");
        })
        .join()
        .unwrap();
    }
}
