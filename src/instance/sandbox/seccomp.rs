//! What an instance may ask of the kernel: what real sq 0.6.0 was seen to call under load over its whole API, and what glibc
//! and Rust's standard library need beside it for threads, memory, a panic.
//!
//! There is no `connect`, and none through the flags of `sendto`; no process but threads; no signal to others; nothing that
//! reaches into another process.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter};

use crate::seccomp::{AllowList, Filter, SeccompError, bits, equals, zero};

/// Calls that are harmless whatever their arguments, beside those that every filter allows: Landlock and the file's own
/// permissions say which files they reach.
const ALWAYS: &[c_long] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_copy_file_range,
    // Its listener.
    libc::SYS_bind,
    libc::SYS_listen,
    // Waiting.
    libc::SYS_clock_getres,
    // Memory; the loader maps libraries as executable.
    libc::SYS_mmap,
    libc::SYS_mprotect,
    // Threads.
    libc::SYS_set_tid_address,
    libc::SYS_membarrier,
    libc::SYS_tgkill,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // The filter is in force before the exec that starts sq; Landlock says what can be executed, no_new_privs that nothing is
    // gained by it.
    libc::SYS_execve,
];

/// Older forms that only some processors have, and what sets up a thread's registers there.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_open, libc::SYS_stat, libc::SYS_access, libc::SYS_readlink, libc::SYS_mkdir, libc::SYS_arch_prctl];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// The filter but for what depends on the process, compiled once: a start only puts it in force.
pub(crate) struct Filters(Filter);

impl Filters {
    /// Compiles it.
    pub(crate) fn compile() -> Result<Self, SeccompError> {
        Ok(Self(allow_list()?.compile()?))
    }

    /// Puts it in force for this thread and all that it starts, across an exec; sets no_new_privs. `pid` is this process's.
    pub(crate) fn apply(&self, pid: u32) -> Result<(), SeccompError> {
        apply_filter(&only_itself(pid)?)?;
        self.0.apply()
    }
}

/// abort() raises its signal by tgkill: allowed within the process, whose number is known only to the process itself.
fn only_itself(pid: u32) -> Result<BpfProgram, SeccompError> {
    let another = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::from(pid))?;
    let rules = BTreeMap::from([(libc::SYS_tgkill, vec![SeccompRule::new(vec![another])?])]);
    let eperm = SeccompAction::Errno(libc::EPERM as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, eperm, std::env::consts::ARCH.try_into()?)?.try_into()?)
}

fn allow_list() -> Result<AllowList, SeccompError> {
    AllowList::common()?
        .always(ALWAYS)
        .always(OLDER)
        .tcp()?
        // To whom it is connected, and to nobody by address: with MSG_FASTOPEN that would be a connect.
        .only_if(libc::SYS_sendto, vec![bits(3, libc::MSG_FASTOPEN, 0)?, zero(4)?])?
        // Names, of a thread and of a memory area.
        .only_if(libc::SYS_prctl, vec![equals(0, libc::PR_SET_NAME as u32)?])?
        .only_if(libc::SYS_prctl, vec![equals(0, libc::PR_SET_VMA as u32)?])?
        // Its own limits, to read.
        .only_if(libc::SYS_prlimit64, vec![equals(0, 0)?, zero(2)?])
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read, Write},
        net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
        os::unix::net::UnixStream,
        process::Command,
        thread,
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    fn denied<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    }

    /// A filter holds for one thread, so a thread of its own can try it.
    #[test]
    fn a_filtered_thread_serves_and_writes_files_but_connects_nowhere_and_starts_and_signals_nobody() {
        let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (port, dir) = (outside.local_addr().unwrap().port(), tempfile::tempdir().unwrap());
        let file = dir.path().join("a");
        thread::spawn(move || {
            Filters::compile().unwrap().apply(std::process::id()).unwrap();
            assert!(denied(TcpStream::connect((Ipv4Addr::LOCALHOST, port))), "connect");
            assert!(denied(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))), "UDP");
            assert!(denied(UnixStream::connect("/run/nothing")), "a Unix socket");
            assert!(Command::new("/bin/true").spawn().is_err(), "a process");
            assert_eq!(kill(Pid::this(), None::<Signal>), Err(nix::Error::EPERM), "kill");
            assert_eq!(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER), Err(nix::Error::EPERM), "namespaces");
            assert!(denied(std::os::unix::fs::symlink("/etc", dir.path().join("b"))), "a link");
            std::fs::write(&file, "text").unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
            thread::spawn(|| ()).join().unwrap();
            drop(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
            let (mut answer, _) = outside.accept().unwrap();
            answer.write_all(b"x").unwrap();
        });
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
}
