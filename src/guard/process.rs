//! The guard as a process, `sq-agent guard`: a proxy's other half, which may touch tenants' files and has no network, while the proxy has the
//! network and may touch no file. It ends with its proxy, and that is when its lanes are free again.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};

use super::{directory::sync_all, group_sync::GroupSync, keeper::Keeper, sandbox, wire};
use crate::{
    instance::{process::boot_id, spawn::make_private_dir},
    telemetry,
};

/// Writes that are worked on at once. Those that are, wait for a disk most of the time, or for a lane that another process holds: an idle thread
/// costs 10 kB.
const THREADS: usize = 64;
/// All of the agent's environment that the guard sees: how to log.
const LOGGING: [&str; 2] = [telemetry::FILTER_VARIABLE, telemetry::FORMAT_VARIABLE];

/// Why the guard cannot work.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A step of its start failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A right that could not be given up.
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
}

fn doing<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> GuardError {
    move |error| GuardError::Io { doing, source: error.into() }
}

/// A guard that runs: the proxy's end of their socket.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) socket: OwnedFd,
    pub(crate) pid: u32,
}

/// Starts a guard of the tenants below `state_dir`. Blocks for some 10 ms. It is nobody's child: it lives with its proxy, not with the agent.
pub(crate) fn start(exe: &Path, state_dir: &Path) -> io::Result<Started> {
    let users = state_dir.join("users");
    // Before the first instance.
    make_private_dir(&users).map_err(io::Error::other)?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(state_dir.join("proxy.log"))?;
    let output = Command::new(exe)
        .arg("guard")
        .arg(users)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::piped())
        .stderr(log)
        .env_clear()
        .envs(LOGGING.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/")
        .output()?;
    let pid = String::from_utf8_lossy(&output.stdout).trim().parse();
    pid.map(|pid| Started { socket: ours, pid }).map_err(|_| io::Error::other(format!("the guard did not start ({})", output.status)))
}

/// Starts the process that is to stay, with this one's standard input, and says its process id.
///
/// # Errors
/// It could not be started.
pub fn leave_behind(users: &Path) -> Result<u32, GuardError> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(doing("share its socket"))?;
    let child = Command::new("/proc/self/exe")
        .arg("guard")
        .arg("--serve")
        .arg(users)
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .spawn()
        .map_err(doing("start the process that stays"))?;
    Ok(child.id())
}

/// Works until the proxy is gone.
///
/// # Errors
/// See [`GuardError`].
pub fn run(users: &Path) -> Result<(), GuardError> {
    // As its proxy does it.
    let _ = rustix::process::setsid();
    telemetry::init();
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(doing("take the socket"))?;
    let users =
        rustix::fs::openat(CWD, users, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(doing("open the users' directory"))?;
    let boot_id = boot_id().map_err(doing("read the host's boot id"))?;
    sandbox::enter(&users)?;
    tracing::debug!(pid = std::process::id(), "the guard works");
    let keeper = Arc::new(Keeper::new(users, boot_id, GroupSync::new(sync_all)));
    let (keeper, socket) = (&keeper, socket.as_fd());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(move || serve(keeper, socket));
        }
    });
    Ok(())
}

/// Takes one message after the other, beside the other threads, until the proxy is gone.
fn serve(keeper: &Arc<Keeper>, socket: BorrowedFd<'_>) {
    let mut buffer = vec![0; wire::LONGEST];
    loop {
        let length = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => end(),
            Ok((length, _)) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "the guard cannot hear its proxy");
                end()
            }
        };
        let message = match serde_json::from_slice(&buffer[..length]) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, "the guard does not understand its proxy");
                end()
            }
        };
        let (answer, rest) = keeper.answer(message);
        let sent = serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|bytes| Ok(send(socket, &bytes, SendFlags::NOSIGNAL)?));
        if let Err(error) = sent {
            tracing::debug!(%error, "the proxy is gone");
            end()
        }
        if let Some(rest) = rest {
            rest();
        }
    }
}

/// At once: whatever else is under way has nobody to be told, and its marker says so.
fn end() -> ! {
    std::process::exit(0)
}
