//! What the proxy may ask of the kernel once it is set up.
//!
//! An allow-list: what a network server needs is short and known, while what else a kernel offers grows with each release (io_uring opens
//! files past any deny-list of `open`). What is not on it fails with EPERM instead of killing the process: an unforeseen call of a library then
//! costs an error, not every user's connection.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// A filter that could not be made or put in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("no system call filter for this processor: {0}")]
    Build(#[from] seccompiler::BackendError),
    #[error("the kernel refused the system call filter: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// Calls that are harmless whatever their arguments. Reading and writing go to descriptors that are open already; there is no call here that
/// opens a file, makes a process, or reaches into another one.
const ALWAYS: &[c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_ioctl,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    // Sockets that exist.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    // Threads of this process. clone3 stands here so that the other filter's ENOSYS is what it gets.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
];

/// Older forms that only some processors have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Puts the filter in force for this thread and all that it starts. `pid` is this process's.
pub(crate) fn lock_down(pid: u32) -> Result<(), SeccompError> {
    for program in programs(pid)? {
        apply_filter(&program)?;
    }
    Ok(())
}

fn programs(pid: u32) -> Result<[BpfProgram; 2], SeccompError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let eperm = SeccompAction::Errno(libc::EPERM as u32);
    let allowed = SeccompFilter::new(rules(pid)?, eperm, SeccompAction::Allow, arch)?;
    // clone3's flags lie in memory where a filter cannot look. glibc falls back to clone, whose flags it can see, on ENOSYS alone.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let enosys = SeccompFilter::new(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?;
    Ok([enosys.try_into()?, allowed.try_into()?])
}

fn rules(pid: u32) -> Result<BTreeMap<i64, Vec<SeccompRule>>, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALWAYS.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let bits = |argument, mask: i32, value: i32| {
        let (mask, value) = (mask as u32, value as u32);
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(u64::from(mask)), u64::from(value))
    };
    let equals = |argument, value: u32| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value));
    // Threads, not processes.
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![bits(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?])?]);
    // Memory that is not executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![bits(2, libc::PROT_EXEC, 0)?])?]);
    }
    // TCP over IPv4, to the instances. (Unix sockets come only as they are accepted.)
    let tcp = vec![equals(0, libc::AF_INET as u32)?, bits(1, 0xf, libc::SOCK_STREAM)?];
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(tcp)?]);
    // abort() raises its signal in this way.
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![equals(0, pid)?])?]);
    // The name of a thread.
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![equals(0, libc::PR_SET_NAME as u32)?])?]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io,
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
    fn a_locked_down_thread_can_serve_but_neither_open_nor_start_nor_signal_anything() {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = upstream.local_addr().unwrap().port();
        let trial = thread::spawn(move || {
            lock_down(std::process::id()).unwrap();
            assert!(denied(File::open("/dev/null")), "open");
            assert!(denied(File::create("/dev/shm/sq-agent-seccomp-test")), "create");
            assert!(Command::new("/bin/true").spawn().is_err(), "exec");
            assert_eq!(kill(Pid::this(), None::<Signal>), Err(nix::Error::EPERM), "kill");
            assert!(denied(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))), "listen");
            assert!(denied(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))), "UDP");
            assert!(denied(UnixStream::connect("/run/nothing").map(|_| ())), "a Unix socket");
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), "an instance");
            thread::spawn(|| ()).join().unwrap();
        });
        trial.join().unwrap();
    }
}
