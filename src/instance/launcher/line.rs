//! One launcher process and the conversation with it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};

use super::wire::{self, Enter, Ready as Found, Reply, Request};
use crate::instance::sandbox::Parts;

/// An answer that takes longer never comes: the slowest takes milliseconds.
const ANSWER: Duration = Duration::from_secs(10);

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// It could not be started, or the conversation with it broke.
    #[error("the launcher of instances: {what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// It refused.
    #[error("the launcher of instances could not {what}{}", errno.map_or_else(String::new, |errno| format!(": {}", io::Error::from_raw_os_error(errno))))]
    Refused {
        /// What.
        what: String,
        /// The kernel's reason, where it was the kernel.
        errno: Option<i32>,
    },
    /// It answered something else.
    #[error("the launcher of instances answered out of turn")]
    OutOfTurn,
    /// The network in which instances of an earlier agent live is out of reach.
    #[error("the network in which process {pid} lives cannot be entered: {why}; restart the instances with `sq-agent restart`")]
    Network {
        /// The process.
        pid: u32,
        /// Why.
        why: String,
    },
}

/// A conversation with one launcher process.
pub(super) struct Line {
    socket: OwnedFd,
    child: Child,
}

impl Line {
    /// Starts a launcher and hears what it found.
    pub(super) fn begin(
        exe: &Path,
        network: Enter,
        namespaces: &[OwnedFd],
        parts: Parts,
        own_user: Option<u32>,
    ) -> Result<(Self, Found, Vec<OwnedFd>), LauncherError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| io_error("making its socket", error.into()))?;
        let child = Command::new(exe)
            .arg0("sq-agent")
            .arg("launcher")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .current_dir("/")
            .env_clear()
            .process_group(0)
            .spawn()
            .map_err(|error| io_error("starting it", error))?;
        set_socket_timeout(&ours, Timeout::Recv, Some(ANSWER)).map_err(|error| io_error("making its socket", error.into()))?;
        let mut line = Self { socket: ours, child };
        let (found, namespaces) = line.introduce(network, namespaces, parts, own_user)?;
        Ok((line, found, namespaces))
    }

    fn introduce(
        &mut self,
        network: Enter,
        namespaces: &[OwnedFd],
        parts: Parts,
        own_user: Option<u32>,
    ) -> Result<(Found, Vec<OwnedFd>), LauncherError> {
        let fds: Vec<BorrowedFd<'_>> = namespaces.iter().map(AsFd::as_fd).collect();
        self.say(&Request::Begin { network, parts, own_user }, &fds).map_err(|error| io_error("greeting it", error))?;
        match self.hear()? {
            (Reply::Ready(found), namespaces) => Ok((*found, namespaces)),
            _ => Err(LauncherError::OutOfTurn),
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says something; fails where it has died.
    pub(super) fn say(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        wire::send(&self.socket, request, fds)
    }

    /// Hears the answer. Without one it is ended, since nobody knows what it would answer next.
    pub(super) fn hear(&mut self) -> Result<(Reply, Vec<OwnedFd>), LauncherError> {
        let heard = match wire::receive(&self.socket) {
            Ok(Some((Reply::Failed { what, errno }, _))) => return Err(LauncherError::Refused { what, errno }),
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        };
        self.end();
        Err(io_error("hearing its answer", heard))
    }

    /// Ends and reaps it.
    pub(super) fn end(&mut self) {
        // Both fail only where it has ended and was reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

pub(super) fn io_error(what: &'static str, error: io::Error) -> LauncherError {
    LauncherError::Io { what, error }
}

/// The namespaces of a process that differ from ours: user, then network. Empty if it lives in our network.
pub(super) fn namespaces_of(pid: u32) -> io::Result<Vec<OwnedFd>> {
    let foreign = |kind: &str| -> io::Result<Option<OwnedFd>> {
        let file = File::open(format!("/proc/{pid}/ns/{kind}"))?;
        let (theirs, ours) = (file.metadata()?, fs::metadata(format!("/proc/self/ns/{kind}"))?);
        Ok(((theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino())).then(|| file.into()))
    };
    match foreign("net")? {
        None => Ok(Vec::new()),
        Some(network) => Ok(foreign("user")?.into_iter().chain([network]).collect()),
    }
}
