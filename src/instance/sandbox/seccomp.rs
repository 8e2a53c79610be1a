//! What an instance may ask of the kernel: what real sq 0.6.0 was seen to call under load over its whole API, and what glibc
//! and Rust's standard library need beside it for threads, memory, a panic.
//!
//! An allow-list, as in the proxy: what else a kernel offers grows with each release. What is not on it fails with EPERM
//! instead of killing sq, which could be writing. There is no `connect`, and none through the flags of `sendto`; no process
//! but threads; no signal to others; nothing that reaches into another process.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// A filter that could not be made or put in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// An architecture the library does not know.
    #[error("no system call filter for this processor: {0}")]
    Build(#[from] seccompiler::BackendError),
    /// A kernel without CONFIG_SECCOMP_FILTER, or a container that forbids it.
    #[error("the kernel refused the system call filter: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// Calls that are harmless whatever their arguments: Landlock and the file's own permissions say which files they reach.
const ALWAYS: &[c_long] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_copy_file_range,
    // Its listener and the connections it accepts.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Memory; the loader maps libraries as executable.
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    // Threads. clone3 stands here so that the other filter's ENOSYS is what it gets.
    libc::SYS_clone3,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_tgkill,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    // The filter is in force before the exec that starts sq; Landlock says what can be executed, no_new_privs that nothing is
    // gained by it.
    libc::SYS_execve,
];

/// Older forms that only some processors have, and what sets up a thread's registers there.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_poll,
    libc::SYS_arch_prctl,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// The compiled filters, made once: a start only puts them in force.
pub(crate) struct Filters([BpfProgram; 2]);

impl Filters {
    /// Compiles them.
    pub(crate) fn compile() -> Result<Self, SeccompError> {
        let arch: TargetArch = std::env::consts::ARCH.try_into()?;
        let eperm = SeccompAction::Errno(libc::EPERM as u32);
        let allowed = SeccompFilter::new(rules()?, eperm, SeccompAction::Allow, arch)?;
        // clone3's flags lie in memory where a filter cannot look. glibc falls back to clone, whose flags it can see, on ENOSYS alone.
        let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let enosys = SeccompFilter::new(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?;
        Ok(Self([enosys.try_into()?, allowed.try_into()?]))
    }

    /// Puts them in force for this thread and all that it starts, across an exec; sets no_new_privs. `pid` is this process's.
    pub(crate) fn apply(&self, pid: u32) -> Result<(), SeccompError> {
        apply_filter(&only_itself(pid)?)?;
        self.0.iter().try_for_each(|program| apply_filter(program)).map_err(SeccompError::from)
    }
}

/// abort() raises its signal by tgkill: allowed within the process, whose number is known only to the process itself.
fn only_itself(pid: u32) -> Result<BpfProgram, SeccompError> {
    let another = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::from(pid))?;
    let rules = BTreeMap::from([(libc::SYS_tgkill, vec![SeccompRule::new(vec![another])?])]);
    let eperm = SeccompAction::Errno(libc::EPERM as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, eperm, std::env::consts::ARCH.try_into()?)?.try_into()?)
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALWAYS.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let bits = |argument, mask: u32, value: u32| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(u64::from(mask)), u64::from(value))
    };
    let equals = |argument, value: u32| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value));
    let zero = |argument| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0);
    let one = |conditions| Ok::<_, SeccompError>(vec![SeccompRule::new(conditions)?]);
    // Threads, not processes.
    let thread = libc::CLONE_THREAD as u32;
    rules.insert(libc::SYS_clone, one(vec![bits(0, thread, thread)?])?);
    // TCP over IPv4 alone.
    rules.insert(libc::SYS_socket, one(vec![equals(0, libc::AF_INET as u32)?, bits(1, 0xf, libc::SOCK_STREAM as u32)?])?);
    // To whom it is connected, and to nobody by address: with MSG_FASTOPEN that would be a connect.
    rules.insert(libc::SYS_sendto, one(vec![bits(3, libc::MSG_FASTOPEN as u32, 0)?, zero(4)?])?);
    // Names, of a thread and of a memory area.
    let named = [libc::PR_SET_NAME, libc::PR_SET_VMA].map(|option| SeccompRule::new(vec![equals(0, option as u32)?]));
    rules.insert(libc::SYS_prctl, named.into_iter().collect::<Result<_, _>>()?);
    // Its own limits, to read.
    rules.insert(libc::SYS_prlimit64, one(vec![equals(0, 0)?, zero(2)?])?);
    Ok(rules)
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
