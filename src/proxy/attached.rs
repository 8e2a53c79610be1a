//! A proxy process that has greeted this agent, its child or not, from the greeting to its end.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{io::unix::AsyncFd, net::UnixStream, time::timeout};

use super::control::{
    socket::{ControlError, receive, send},
    wire::{Decoder, ToAgent, ToProxy},
};
use crate::{route::Side, sys};

/// A proxy greets within milliseconds; a stuck one is replaced.
pub(super) const GREETING: Duration = Duration::from_secs(10);

/// A proxy that cannot be started or spoken to.
#[derive(Debug, thiserror::Error)]
pub(super) enum SupervisorError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("it did not greet")]
    Mute,
    #[error("the proxy did not come up: {exit}; see {}: {why}", log.display())]
    Stillborn { exit: String, log: PathBuf, why: Box<SupervisorError> },
    #[error("cannot share the activity page: {0}")]
    Activity(#[from] crate::route::TableError),
    #[error("the proxy's socket belongs to user {0}")]
    Stranger(u32),
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SupervisorError {
    move |source| SupervisorError::Io { doing, path: path.to_owned(), source }
}

/// A proxy that has greeted.
pub(super) struct Proxy {
    pub(super) stream: UnixStream,
    pub(super) decoder: Decoder,
    pub(super) pid: u32,
    pub(super) side: Side,
    /// Follows the process, whoever's child it is.
    pidfd: AsyncFd<OwnedFd>,
    /// `None`: adopted.
    pub(super) child: Option<Child>,
    pub(super) up: bool,
}

impl Proxy {
    /// Takes the greeting of a proxy that somebody else started.
    pub(super) async fn adopt(stream: UnixStream) -> Result<Self, SupervisorError> {
        Self::greeting(stream, &mut None).await
    }

    /// Takes the greeting of a proxy that was just started, with its socket at `path`. One that does not greet is ended.
    pub(super) async fn born(path: &Path, log: &Path, child: Child) -> Result<Self, SupervisorError> {
        let mut child = Some(child);
        let greeted = match UnixStream::connect(path).await {
            Ok(stream) => Self::greeting(stream, &mut child).await,
            Err(error) => Err(io_error("connect to", path)(error)),
        };
        match (greeted, child) {
            (Err(why), Some(mut child)) => {
                // It is our child and not yet reaped, so its number is its own.
                let _ = child.kill();
                let exit = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                Err(SupervisorError::Stillborn { exit, log: log.to_owned(), why: Box::new(why) })
            }
            (greeted, _) => greeted,
        }
    }

    async fn greeting(stream: UnixStream, child: &mut Option<Child>) -> Result<Self, SupervisorError> {
        let path = Path::new("the control socket");
        // What a connecting side sees here is who called listen(): the agent that started this proxy.
        let owner = stream.peer_cred().map_err(io_error("look behind", path))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(SupervisorError::Stranger(owner));
        }
        let mut decoder = Decoder::default();
        let hello = timeout(GREETING, receive::<ToAgent>(&stream, &mut decoder)).await.map_err(|_| SupervisorError::Mute)??;
        let Some(ToAgent::Hello { pid, side, listeners, .. }) = hello else {
            return Err(SupervisorError::Mute);
        };
        // The agent has its listeners already; these copies are closed.
        decoder.descriptors(listeners).map_err(ControlError::from)?;
        let of = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(SupervisorError::Mute)?;
        let pidfd = pidfd_open(of, PidfdFlags::NONBLOCK).map_err(io::Error::from).map_err(io_error("follow", path))?;
        let pidfd = sys::watch_readable(pidfd).map_err(io_error("follow", path))?;
        let side = side.and_then(Side::from_number).unwrap_or(Side::A);
        Ok(Self { stream, decoder, pid, side, pidfd, child: child.take(), up: false })
    }

    /// Asks it to end within `grace`, and makes it end a little later. Says how it went.
    pub(super) async fn end(&mut self, grace: Duration) -> String {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        // A dead one hears nothing, and the wait below sees its end.
        let _ = send(&self.stream, &ToProxy::Shutdown { grace_ms }, &[]).await;
        if timeout(grace + Duration::from_secs(3), self.pidfd.readable()).await.is_err() {
            tracing::warn!(pid = self.pid, "the proxy did not end in time and is killed");
            self.kill();
        }
        self.wait_for_end().await
    }

    fn kill(&self) {
        // By descriptor, so never a stranger who got the number.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Waits until the process is gone, and says how it went. One that closed its conversation but lives on for long is killed.
    pub(super) async fn wait_for_end(&mut self) -> String {
        if timeout(Duration::from_secs(5), self.pidfd.readable()).await.is_err() {
            self.kill();
            let _ = self.pidfd.readable().await;
        }
        match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => format!("its end is unknown: {error}"),
            None => "it ended; an adopted process leaves no status".to_owned(),
        }
    }
}
