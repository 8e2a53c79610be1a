//! System call filters: what a process may ask of the kernel once it is set up.
//!
//! Allow-lists: what a process needs is short and known, while what else a kernel offers grows with each release (io_uring opens
//! files past any deny-list of `open`). What is not listed fails with EPERM instead of killing the process: an unforeseen call of
//! a library then costs an error, not every user's connection or a half-done write.
//!
//! Here is what all of them share; each filter's own calls and rules stand with the process that it is for.
#![forbid(unsafe_code)]

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

/// What glibc and Rust's standard library need in any process, and what can be done to descriptors that are open already. No call
/// here opens a file, makes a socket or a process, or reaches into another one.
const COMMON: &[c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    // Sockets that exist.
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
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    // Threads of this process. clone3 stands here so that the other program's ENOSYS is what it gets.
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
const OLDER: &[c_long] = &[libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// A filter in the making.
pub(crate) struct AllowList(BTreeMap<i64, Vec<SeccompRule>>);

impl AllowList {
    /// What every one of them allows: [`COMMON`], and threads.
    pub(crate) fn common() -> Result<Self, SeccompError> {
        // Threads, not processes.
        Self(BTreeMap::new()).always(COMMON).always(OLDER).only_if(libc::SYS_clone, vec![bits(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?])
    }

    /// Allows `calls` whatever their arguments.
    pub(crate) fn always(mut self, calls: &[c_long]) -> Self {
        // To the library, no rule means no condition.
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// Allows a call where all `conditions` hold; one that is named again, where those of either time do.
    pub(crate) fn only_if(mut self, call: c_long, conditions: Vec<SeccompCondition>) -> Result<Self, SeccompError> {
        self.0.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(self)
    }

    /// Allows sockets for TCP over IPv4, which is how sq talks.
    pub(crate) fn tcp(self) -> Result<Self, SeccompError> {
        self.only_if(libc::SYS_socket, vec![equals(0, libc::AF_INET as u32)?, bits(1, 0xf, libc::SOCK_STREAM)?])
    }

    /// Compiles it.
    pub(crate) fn compile(self) -> Result<Filter, SeccompError> {
        let arch: TargetArch = std::env::consts::ARCH.try_into()?;
        let eperm = SeccompAction::Errno(libc::EPERM as u32);
        let allowed = SeccompFilter::new(self.0, eperm, SeccompAction::Allow, arch)?;
        // clone3's flags lie in memory where a filter cannot look. glibc falls back to clone, whose flags it can see, on ENOSYS alone.
        let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let enosys = SeccompFilter::new(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?;
        Ok(Filter([enosys.try_into()?, allowed.try_into()?]))
    }
}

/// A compiled filter. Of two programs' answers the kernel obeys the stricter.
pub(crate) struct Filter([BpfProgram; 2]);

impl Filter {
    /// Puts it in force for this thread and all that it starts, across an exec; sets no_new_privs.
    pub(crate) fn apply(&self) -> Result<(), SeccompError> {
        self.0.iter().try_for_each(|program| apply_filter(program)).map_err(SeccompError::from)
    }
}

/// Of an argument's low 32 bits, those in `mask` are those of `value`.
pub(crate) fn bits(argument: u8, mask: i32, value: i32) -> Result<SeccompCondition, SeccompError> {
    let (mask, value) = (u64::from(mask as u32), u64::from(value as u32));
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)?)
}

/// An argument's low 32 bits, which is all that the kernel reads of an `int`, are `value`.
pub(crate) fn equals(argument: u8, value: u32) -> Result<SeccompCondition, SeccompError> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value))?)
}

/// An argument is zero in all its bits, as a null pointer is.
pub(crate) fn zero(argument: u8) -> Result<SeccompCondition, SeccompError> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?)
}
