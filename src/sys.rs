//! Calls to the system that no crate offers safely: beside `route/` the only place with `unsafe`.
//!
//! Small on purpose: rustix and nix give pidfds, limits, namespaces and waiting as safe functions. A new entry belongs here
//! only after looking there first.

#![allow(unsafe_code)]

use std::{
    fs, io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Marks every descriptor from 3 upwards close-on-exec, so that no child inherits what the agent was started with.
///
/// Everything the standard library and rustix open is close-on-exec already; this is for descriptors that a shell or
/// supervisor left open. Call it once at start. A descriptor that is meant for one child (a listening socket for the
/// proxy) is made inheritable again for that child alone. Needs Linux 5.11.
pub fn close_inherited_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: close_range takes three integers and touches no memory of ours. With CLOSE_RANGE_CLOEXEC it closes
    // nothing, it only sets a flag, so no descriptor owned elsewhere in the process becomes invalid.
    let done = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    checked(done).map(drop)
}

/// Lets a task wait until `fd` becomes readable. Must run inside a tokio runtime.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, Interest::READABLE)
}

/// Lets tasks wait until `fd` becomes readable or writable, as `interest` says. Must run inside a tokio runtime.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the type owns an open descriptor, gives the same number at each call, and closes it only when dropped; the
    // AsyncFd owns it and hands out shared references alone, through which it can be neither closed nor replaced.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// A process that has one thread and, whoever holds this says, never starts another.
///
/// That makes a copy of it as good as itself: no lock of the allocator or the standard library is held by a thread that the
/// copy does not have.
#[derive(Debug)]
pub struct SingleThread(PhantomData<*const ()>);

/// Which side of a [`SingleThread::fork`] this is.
#[derive(Debug)]
pub enum Forked {
    /// The copy. It ends by exec or [`exit_now`], and never returns into what its original was doing.
    Child {
        /// It was born in the cgroup that was asked for; else it has to go there by itself.
        in_cgroup: bool,
    },
    /// The original.
    Parent {
        /// The copy's process id.
        pid: u32,
        /// A descriptor of the copy, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Whose child a fork is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentOfFork {
    /// The process that forks.
    Caller,
    /// That process's own parent, which then gets the SIGCHLD and reaps.
    Grandparent,
}

/// As in linux/sched.h, the first 88 bytes (CLONE_ARGS_SIZE_VER2, Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

impl SingleThread {
    /// Proves it for now by /proc; fails where there is another thread.
    pub fn prove() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(PhantomData)),
            threads => Err(io::Error::other(format!("this process has {threads} threads and must have one"))),
        }
    }

    /// Copies this process, as fork(2) does, with a pidfd and where wanted straight into a cgroup (Linux 5.7): the copy never
    /// runs outside of it. The descriptor of the cgroup is its open directory.
    ///
    /// Where clone3 is not to be had (the usual system call filter of containers says ENOSYS) by clone, which knows no cgroups.
    pub fn fork(&self, parent: ParentOfFork, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
        let mut pidfd: libc::c_int = -1;
        let mut args = CloneArgs { flags: libc::CLONE_PIDFD as u64, pidfd: (&raw mut pidfd) as u64, ..CloneArgs::default() };
        match parent {
            ParentOfFork::Caller => args.exit_signal = libc::SIGCHLD as u64,
            // The signal then is the one with which this process itself was born; the kernel takes no other.
            ParentOfFork::Grandparent => args.flags |= libc::CLONE_PARENT as u64,
        }
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: the kernel reads `args`, which lives until the call returns, and writes one int through `pidfd`. Without
        // CLONE_VM the copy has memory of its own, as after fork(2), and goes on on a copy of this stack; and since there is
        // one thread, no lock is held in it by a thread that it lacks.
        let mut forked = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) });
        let mut in_cgroup = cgroup.is_some();
        if forked.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS)) {
            in_cgroup = false;
            let flags = (args.flags & !CLONE_INTO_CGROUP) | libc::SIGCHLD as u64;
            let (stack, nothing) = (0u64, 0u64);
            // SAFETY: as above. A stack of 0 is a copy of this one; the third argument is where CLONE_PIDFD puts the
            // descriptor, an int; the other two belong to flags that are not set.
            forked = checked(unsafe { libc::syscall(libc::SYS_clone, flags, stack, &raw mut pidfd, nothing, nothing) });
        }
        let pid = forked?;
        if pid == 0 {
            return Ok(Forked::Child { in_cgroup });
        }
        // SAFETY: the call succeeded with CLONE_PIDFD, so the kernel has opened this descriptor for us, and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Forked::Parent { pid: u32::try_from(pid).map_err(io::Error::other)?, pidfd })
    }
}

/// Ends a copy of a process without running what its original registered for its own end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Makes SIGPIPE end the program that is started next: the standard library ignores it, and what is ignored stays so across
/// an exec.
pub fn default_broken_pipe() -> io::Result<()> {
    // SAFETY: SIG_DFL installs no handler, so no code of ours runs in a signal's context.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Brings up `lo` in this process's network namespace: in a new one it is down, and then even 127.0.0.1 is out of reach.
pub fn bring_up_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid ifreq: it holds integers and arrays of them, and unions of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed() as libc::c_char;
    }
    // Bits 0 and 6 of a short: always in range.
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq (netdevice(7)), which lives until the call returns, with a name that ends in NUL.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw mut request) }.into()).map(drop)
}

/// Lets this process read and write only while nobody else does (the class "idle" of ioprio_set(2)).
pub fn idle_io() -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const SELF: libc::c_int = 0;
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: ioprio_set takes three integers and touches no memory of ours.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, SELF, IDLE) }).map(drop)
}

/// What [`exit_status`] could learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// How it ended, in the form of wait(2).
    Known(i32),
    /// It runs, or nobody has reaped it so far.
    NotYet,
    /// This kernel does not tell (before Linux 6.15), or the descriptor was opened too late.
    NeverTold,
}

/// struct pidfd_info of linux/pidfd.h, its first version (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// _IOWR(0xFF, 11, struct pidfd_info)
const PIDFD_GET_INFO: u32 = 0xC000_FF0B | ((size_of::<PidfdInfo>() as u32) << 16);

/// Asks the kernel how the process of `pidfd` ended, whoever its parent was. It knows once that parent has reaped it, if the
/// descriptor was opened before (Linux 6.15).
pub fn exit_status(pidfd: BorrowedFd<'_>) -> ExitStatus {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: PIDFD_GET_INFO carries the size of the struct in its number; the kernel reads and writes that many bytes of
    // `info`, which lives until the call returns and in which every bit pattern is valid.
    let done = checked(unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as libc::Ioctl, &raw mut info) }.into());
    match done {
        Ok(_) if info.mask & PIDFD_INFO_EXIT != 0 => ExitStatus::Known(info.exit_code),
        Ok(_) => ExitStatus::NotYet,
        // ESRCH: reaped, and nothing was kept. ENOTTY, EINVAL: a kernel that does not know the question.
        Err(_) => ExitStatus::NeverTold,
    }
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes the ownership of a descriptor that this process was started with and that nothing in it owns yet.
///
/// # Errors
/// It is not open.
pub fn own(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open. Descriptors named by the environment of this process (LISTEN_FDS) were opened by whoever started it; the
    // caller reads that environment once.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Whether somebody has the regular file open to write into it, this process included. `file` is open for reading only.
///
/// It is asked for a lease, which the kernel gives only where nobody has (fcntl(2), "Leases"), and gives that back at once.
///
/// # Errors
/// It cannot be told: the file is another user's, or its file system has no leases.
pub fn is_being_written(file: BorrowedFd<'_>) -> io::Result<bool> {
    /// As in fcntl.h; the same on each of Linux's architectures but a few old ones.
    const F_SETSIG: libc::c_int = 10;
    let set = |command, argument: libc::c_int| {
        // SAFETY: each of these commands takes an integer and touches no memory of ours; the descriptor is open for as long as it is borrowed.
        checked(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) }.into())
    };
    // Who would open it to write in the moment in which the lease is held would else end this process by SIGIO.
    set(F_SETSIG, libc::SIGURG)?;
    match set(libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(_) => set(libc::F_SETLEASE, libc::F_UNLCK).map(|_| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, process::Command};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernels_headers() {
        assert_eq!((size_of::<CloneArgs>(), size_of::<PidfdInfo>(), PIDFD_GET_INFO), (88, 64, 0xC040_FF0B));
    }

    #[test]
    fn a_file_is_being_written_while_somebody_has_it_open_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = fs::File::create(&path).unwrap();
        let reader = fs::File::open(&path).unwrap();
        let asked = || is_being_written(reader.as_fd()).unwrap();
        assert!(asked());
        let appends = fs::File::options().append(true).open(&path).unwrap();
        drop(writer);
        assert!(asked());
        drop(appends);
        assert!(!asked());
        let _another_reader = fs::File::open(&path).unwrap();
        assert!(!asked());
    }

    #[test]
    fn a_process_with_threads_is_not_taken_for_one_without() {
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || receiver.recv());
            assert!(SingleThread::prove().unwrap_err().to_string().contains("must have one"));
            drop(sender);
        });
    }

    #[test]
    fn how_a_process_ended_is_known_once_it_was_reaped_and_not_before() {
        let mut child = Command::new("/bin/sh").args(["-c", "read line; exit 7"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_raw(child.id().cast_signed()).unwrap(), PidfdFlags::empty()).unwrap();
        let running = exit_status(pidfd.as_fd());
        drop(child.stdin.take());
        child.wait().unwrap();
        match running {
            // Before Linux 6.15.
            ExitStatus::NeverTold => {}
            running => {
                assert_eq!(running, ExitStatus::NotYet);
                assert_eq!(exit_status(pidfd.as_fd()), ExitStatus::Known(7 << 8));
            }
        }
    }
}
