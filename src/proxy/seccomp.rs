//! What the proxy may ask of the kernel once it is set up: what a network server needs.

use libc::c_long;

use crate::seccomp::{AllowList, SeccompError, bits, equals};

/// Calls that are harmless whatever their arguments, beside those that every filter allows. Reading and writing go to descriptors that are
/// open already; there is no call here that opens a file, makes a process, or reaches into another one.
const ALWAYS: &[c_long] = &[
    // Descriptors.
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_ioctl,
    // Sockets that exist.
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
];

/// Older forms that only some processors have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_dup2, libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Puts the filter in force for this thread and all that it starts. `pid` is this process's.
pub(crate) fn lock_down(pid: u32) -> Result<(), SeccompError> {
    allow_list(pid)?.compile()?.apply()
}

fn allow_list(pid: u32) -> Result<AllowList, SeccompError> {
    let not_executable = || bits(2, libc::PROT_EXEC, 0);
    AllowList::common()?
        .always(ALWAYS)
        .always(OLDER)
        .only_if(libc::SYS_mmap, vec![not_executable()?])?
        .only_if(libc::SYS_mprotect, vec![not_executable()?])?
        // To the instances. (Unix sockets come only as they are accepted.)
        .tcp()?
        // abort() raises its signal in this way.
        .only_if(libc::SYS_tgkill, vec![equals(0, pid)?])?
        // The name of a thread.
        .only_if(libc::SYS_prctl, vec![equals(0, libc::PR_SET_NAME as u32)?])
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
