//! A handle on one process that can never point at another: a pidfd.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, OwnedFd},
    process::Child,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use tokio::{io::unix::AsyncFd, time::Instant};

use super::procfs;
use crate::sys::{self, ExitStatus};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this exit code (sq panics with 101: port taken, no thread).
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It is gone, and since it was not our child (an adopted instance) this kernel does not tell us how (before Linux 6.15).
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(number) => match Signal::from_named_raw(number) {
                Some(signal) => write!(f, "signal {number} ({})", signal_name(signal)),
                None => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("gone (exit status unknown, it was adopted)"),
        }
    }
}

impl Exit {
    /// From the status that wait(2) gives.
    fn from_wait_status(status: i32) -> Self {
        match (status & 0x7f, (status >> 8) & 0xff) {
            (0, code) => Self::Code(code),
            (signal, _) => Self::Signal(signal),
        }
    }
}

/// What one look at a process found.
enum Look {
    Alive,
    /// It has ended and its parent, who is not us, has not asked how.
    NotReaped,
    Ended(Exit),
}

/// The signals an instance really dies of; the rest is told by number.
fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::HUP => "SIGHUP",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::ILL => "SIGILL",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::FPE => "SIGFPE",
        Signal::KILL => "SIGKILL",
        Signal::SEGV => "SIGSEGV",
        Signal::PIPE => "SIGPIPE",
        Signal::TERM => "SIGTERM",
        Signal::XCPU => "SIGXCPU",
        Signal::XFSZ => "SIGXFSZ",
        Signal::SYS => "SIGSYS",
        _ => "see signal(7)",
    }
}

/// What a stop sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// Ends sq at once, since it has no handler; still pending while it is stopped.
    Term,
    /// Ends anything.
    Kill,
}

/// One running process. Dropping it neither kills nor reaps: an instance outlives the agent.
///
/// A child must be waited for with [`Process::exited`], else it stays a zombie until the agent ends.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
    /// Filled by whoever waits first: a child can be reaped only once.
    exit: Mutex<Option<Exit>>,
}

impl Process {
    /// Takes over a child that nobody has waited for yet; where that fails, the child is ended, since nobody would ever
    /// watch it. Pipes are taken out of it before. Must run inside a tokio runtime.
    pub fn from_child(mut child: Child) -> io::Result<Self> {
        // Until it is reaped the pid cannot be reused, so both look-ups mean the child.
        let taken = open(child.id()).and_then(|pidfd| {
            let pidfd = pidfd.ok_or(io::ErrorKind::NotFound)?;
            Self::new(child.id(), procfs::stat(child.id())?.start_time, pidfd)
        });
        if taken.is_err() {
            // Both can only fail if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
        taken
    }

    /// Takes over a child by the pidfd that came with its birth. Must run inside a tokio runtime.
    pub(super) fn from_birth(pid: u32, pidfd: OwnedFd) -> io::Result<Self> {
        // Nobody else reaps it, so the pid is still its own.
        match procfs::stat(pid) {
            Ok(stat) => Self::new(pid, stat.start_time, pidfd),
            Err(error) => {
                Self::end_newborn(&pidfd);
                Err(error)
            }
        }
    }

    /// Kills and reaps a child of which there is a pidfd alone.
    pub(super) fn end_newborn(pidfd: &OwnedFd) {
        // Both fail only where it is gone already.
        let _ = pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    }

    /// Kills a child and reaps it before returning; for one that must not stay, where nothing can be awaited.
    pub(super) fn end_now(self) {
        if self.signal(StopSignal::Kill).is_ok() {
            // Fails only if it is no child of ours or reaped already.
            let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }

    /// Opens the process that had this pid and start time (clock ticks since boot), `None` where it is gone.
    ///
    /// The pidfd is opened first and the start time compared after: a pid that was reused meanwhile is never taken.
    /// Both numbers mean something only within one boot: compare [`boot_id`] before. Must run inside a tokio runtime.
    pub fn adopt(pid: u32, start_time: u64) -> io::Result<Option<Self>> {
        let Some(pidfd) = open(pid)? else { return Ok(None) };
        let stat = match procfs::stat(pid) {
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if stat.start_time != start_time {
            return Ok(None);
        }
        let process = Self::new(pid, start_time, pidfd)?;
        // Also reaps it, where the agent is pid 1 of a container and so the parent of every orphan.
        Ok(if process.try_exit().is_some() || stat.is_dead() { None } else { Some(process) })
    }

    fn new(pid: u32, start_time: u64, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { pid, start_time, pidfd: sys::watch_readable(pidfd)?, exit: Mutex::new(None) })
    }

    /// Process id, for messages and records; never signal by it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Start time in clock ticks since boot: with the pid and the boot id, a name that is never used twice.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Waits for the end and reaps a child. Any number of tasks may wait; all get the same answer.
    pub async fn exited(&self) -> Exit {
        loop {
            match self.pidfd.readable().await {
                Ok(mut ready) => match self.look() {
                    Look::Ended(exit) => return exit,
                    Look::NotReaped => return self.reaped().await,
                    Look::Alive => ready.clear_ready(),
                },
                // Only when the runtime shuts down: this task is about to be dropped.
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }

    /// How an adopted process ended that has ended already: only once its parent has reaped it the kernel tells. systemd does so
    /// within milliseconds; for an init that takes its time the end is unknown, since the next start does not wait for it.
    async fn reaped(&self) -> Exit {
        const PATIENCE: Duration = Duration::from_millis(250);
        const FIRST_PAUSE: Duration = Duration::from_millis(1);
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.look() {
                Look::Ended(exit) => return exit,
                _ if Instant::now() >= deadline => return *self.known().get_or_insert(Exit::Unknown),
                _ => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
    }

    /// The end, if it has come already; reaps a child. Never blocks. How an adopted process ended may be unknown for a moment
    /// yet; [`Process::exited`] waits for it.
    pub fn try_exit(&self) -> Option<Exit> {
        match self.look() {
            Look::Alive => None,
            Look::NotReaped => Some(Exit::Unknown),
            Look::Ended(exit) => Some(exit),
        }
    }

    fn look(&self) -> Look {
        // Held throughout: between the reaping and the note of it, another task would find neither.
        let mut known = self.known();
        if let Some(exit) = *known {
            return Look::Ended(exit);
        }
        let exit = match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) => return Look::Alive,
            // Not our child: the pidfd itself still tells whether it has ended.
            Err(_) if !self.has_ended() => return Look::Alive,
            Err(_) => match sys::exit_status(self.pidfd.as_fd()) {
                ExitStatus::Known(status) => Exit::from_wait_status(status),
                ExitStatus::NotYet => return Look::NotReaped,
                ExitStatus::NeverTold => Exit::Unknown,
            },
        };
        *known = Some(exit);
        Look::Ended(exit)
    }

    fn known(&self) -> MutexGuard<'_, Option<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0)
    }

    /// Sends a signal through the pidfd; a process that has ended already is no error.
    pub fn signal(&self, signal: StopSignal) -> io::Result<()> {
        let signal = match signal {
            StopSignal::Term => Signal::TERM,
            StopSignal::Kill => Signal::KILL,
        };
        match pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        // EINVAL/ENOENT: the number now belongs to a thread, so the process it named is gone.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether an error from /proc/<pid> means that the process has ended.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// Random id of this boot: pids and start times recorded under another one mean nothing.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_reads_as_a_person_would_say_it() {
        assert_eq!(Exit::Code(101).to_string(), "exit 101");
        assert_eq!(Exit::Signal(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(Exit::Signal(40).to_string(), "signal 40");
        assert!(Exit::Unknown.to_string().contains("unknown"));
    }

    #[test]
    fn a_wait_status_is_read_as_wait_does() {
        assert_eq!(Exit::from_wait_status(101 << 8), Exit::Code(101));
        assert_eq!(Exit::from_wait_status(9), Exit::Signal(9));
        assert_eq!(Exit::from_wait_status(0x80 | 6), Exit::Signal(6), "with a core dump");
    }

    #[tokio::test]
    async fn a_pid_with_another_start_time_is_not_adopted() {
        let me = std::process::id();
        let started = procfs::stat(me).unwrap().start_time;
        assert!(Process::adopt(me, started).unwrap().is_some());
        assert!(Process::adopt(me, started + 1).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_pid_that_does_not_exist_is_not_adopted() {
        assert!(Process::adopt(0, 1).unwrap().is_none());
        assert!(Process::adopt(u32::MAX, 1).unwrap().is_none());
        assert!(Process::adopt(4_194_304, 1).unwrap().is_none(), "above the kernel's largest pid_max");
    }

    #[tokio::test]
    async fn every_waiter_hears_the_same_exit_and_no_zombie_stays() {
        let child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = child.id();
        let process = Process::from_child(child).unwrap();
        let (a, b) = tokio::join!(process.exited(), process.exited());
        assert_eq!((a, b), (Exit::Code(7), Exit::Code(7)));
        assert!(procfs::stat(pid).is_err(), "a zombie would still have a stat file");
        process.signal(StopSignal::Term).unwrap();
    }
}
