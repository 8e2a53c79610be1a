//! A proxy process that has greeted this agent, its child or not, from the greeting to its end.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::unix::AsyncFd,
    net::UnixStream,
    time::{Instant, sleep_until, timeout},
};

use super::control::{Hello, PROTOCOL, ToAgent, ToProxy};
use crate::framed::{ControlError, Decoder, receive, send};
use crate::{guard, route::Side, sys};

/// A proxy greets within milliseconds; a stuck one is no longer waited for.
pub(super) const GREETING: Duration = Duration::from_secs(5);

/// A proxy that closed its conversation is about to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// For a proxy's last words after the time that it was given.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(3);

/// A proxy that cannot be started or spoken to.
#[derive(Debug, thiserror::Error)]
pub(super) enum SupervisorError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("it did not greet")]
    Mute,
    #[error("it did not serve within {} s", .0.as_secs())]
    Late(Duration),
    #[error("it refuses the settings: {0}")]
    Refused(String),
    #[error("it closed the conversation")]
    Closed,
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
    pub(super) hello: Hello,
    /// By its socket.
    pub(super) side: Side,
    /// Follows the process, whoever's child it is.
    pidfd: AsyncFd<OwnedFd>,
    /// `None`: adopted.
    pub(super) child: Option<Child>,
    /// It serves by settings of this agent.
    pub(super) up: bool,
    /// The guard that this agent gave it.
    pub(super) guard: Option<Guard>,
}

/// A guard that was given to a proxy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard {
    pub(super) pid: u32,
    since: Instant,
}

/// Between two guards of one proxy.
const NEXT_GUARD: Duration = Duration::from_secs(1);

impl Proxy {
    /// Starts a guard for it, and gives it the way there.
    pub(super) async fn give_guard(&mut self, exe: &Path, state_dir: &Path) -> Result<(), SupervisorError> {
        if let Some(last) = self.guard {
            sleep_until(last.since + NEXT_GUARD).await;
        }
        let (program, state) = (exe.to_owned(), state_dir.to_owned());
        let started = tokio::task::spawn_blocking(move || guard::process::start(&program, &state)).await.map_err(io::Error::other);
        let started = started.and_then(|started| started).map_err(io_error("start the guard of", state_dir))?;
        self.guard = Some(Guard { pid: started.pid, since: Instant::now() });
        Ok(send(&self.stream, &ToProxy::Guard, &[started.socket.as_fd()]).await?)
    }

    /// Takes the greeting of the proxy of `side`, and the listeners that it hands back.
    pub(super) async fn greeted(stream: UnixStream, side: Side) -> Result<(Self, Vec<OwnedFd>), SupervisorError> {
        let path = Path::new("the control socket");
        // What a connecting side sees here is who called listen(): the agent that started this proxy.
        let owner = stream.peer_cred().map_err(io_error("look behind", path))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(SupervisorError::Stranger(owner));
        }
        let mut decoder = Decoder::default();
        let hello = timeout(GREETING, receive::<ToAgent>(&stream, &mut decoder)).await.map_err(|_| SupervisorError::Mute)??;
        let Some(ToAgent::Hello(hello)) = hello else {
            return Err(SupervisorError::Mute);
        };
        let listeners = decoder.descriptors(hello.listeners).map_err(ControlError::from)?;
        let of = i32::try_from(hello.pid).ok().and_then(Pid::from_raw).ok_or(SupervisorError::Mute)?;
        let pidfd = pidfd_open(of, PidfdFlags::NONBLOCK).map_err(io::Error::from).map_err(io_error("follow", path))?;
        let pidfd = sys::watch_readable(pidfd).map_err(io_error("follow", path))?;
        Ok((Self { stream, decoder, hello, side, pidfd, child: None, up: false, guard: None }, listeners))
    }

    /// Whether it understands more than to end.
    pub(super) fn speaks(&self) -> bool {
        self.hello.protocol == PROTOCOL
    }

    /// Its next word.
    pub(super) async fn word(&mut self) -> Result<Option<ToAgent>, ControlError> {
        receive(&self.stream, &mut self.decoder).await
    }

    /// Its next word; `None` when it is gone, or about to be. One with whom no conversation is possible has no words.
    pub(super) async fn word_or_end(&mut self) -> Result<Option<ToAgent>, ControlError> {
        if self.speaks() {
            self.word().await
        } else {
            self.gone().await;
            Ok(None)
        }
    }

    /// Tells it to end within `grace`; a dead one hears nothing. These words must never change.
    pub(super) async fn say_end(&self, grace: Duration, retire: bool) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let _ = timeout(GREETING, send(&self.stream, &ToProxy::Shutdown { grace_ms, retire }, &[])).await;
    }

    /// Asks it to end within `grace`, and makes it end a little later. Says how it went.
    pub(super) async fn end(&mut self, grace: Duration) -> String {
        self.say_end(grace, false).await;
        self.gone_within(grace).await
    }

    /// Waits `grace` and a little for its end, and then makes it end. Says how it went.
    pub(super) async fn gone_within(&mut self, grace: Duration) -> String {
        if timeout(grace.saturating_add(LAST_WORDS), self.gone()).await.is_err() {
            tracing::warn!(pid = self.hello.pid, "the proxy did not end in time and is killed");
            self.kill();
        }
        self.wait_for_end().await
    }

    /// Waits until the process is gone.
    pub(super) async fn gone(&self) {
        // An error here means that the runtime ends.
        let _ = self.pidfd.readable().await;
    }

    pub(super) fn kill(&self) {
        // By descriptor, so never a stranger who got the number.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Waits until the process is gone, and says how it went. One that closed its conversation but lives on for long is killed.
    pub(super) async fn wait_for_end(&mut self) -> String {
        if timeout(GONE_WITHIN, self.gone()).await.is_err() {
            self.kill();
            self.gone().await;
        }
        match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => format!("its end is unknown: {error}"),
            None => "it ended; an adopted process leaves no status".to_owned(),
        }
    }
}
