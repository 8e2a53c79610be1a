//! The side that hands over.

use std::{
    convert::Infallible,
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use nix::sys::signal::SigSet;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{net::UnixStream, time::timeout};

use super::wire::{ToHeir, ToHolder};
use crate::crash_point;
use crate::framed::{ControlError, Decoder, receive, send};

/// A new program has so long for its own check.
const CHECK: Duration = Duration::from_secs(5);
/// It has so long to adopt what runs (10,000 instances take 4 s) and to have its proxy up.
const TAKE_OVER: Duration = Duration::from_secs(60);

/// Why a hand-over came to nothing. The holder goes on.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The new program could not be started.
    #[error("{} cannot be started: {error}", exe.display())]
    Start {
        /// The program.
        exe: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It ended, or closed the conversation.
    #[error("it ended before it had taken over; its messages are in the agent's log")]
    Gone,
    /// It did not say a word in time.
    #[error("it was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// It said that it cannot.
    #[error("{0}")]
    Failed(String),
    /// It spoke out of turn.
    #[error("it said {0} where another word was due")]
    OutOfTurn(String),
    /// The lock did not come along.
    #[error("the lock of the state directory did not come along")]
    NoLock,
    /// The conversation broke.
    #[error("{0}")]
    Control(String),
}

impl From<ControlError> for HandoverError {
    fn from(error: ControlError) -> Self {
        Self::Control(error.to_string())
    }
}

/// The agent that holds the host, in conversation with the one that is to have it.
pub struct Holder {
    stream: UnixStream,
    decoder: Decoder,
    /// `None`: the heir is the process that started this one.
    heir: Option<Child>,
}

impl Holder {
    /// Starts `exe` as the heir of the agent for `tenants`, and waits until it says that it could take over. Messages of the heir go
    /// where this agent's go. Inside a tokio runtime.
    ///
    /// # Errors
    /// Anything else than its consent within 5 s; it is ended then.
    pub async fn start(exe: &Path, tenants: &Path) -> Result<Self, HandoverError> {
        let failed = |error| HandoverError::Start { exe: exe.to_owned(), error };
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let heir = Command::new(exe).args(arguments(tenants)).stdin(OwnedFd::from(theirs)).spawn().map_err(failed)?;
        let mut holder = Self { heir: Some(heir), ..Self::over(UnixStream::from_std(ours).map_err(failed)?) };
        match holder.ready_within(CHECK).await {
            Ok(()) => Ok(holder),
            Err(error) => {
                holder.end_heir().await;
                Err(error)
            }
        }
    }

    pub(super) fn over(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), heir: None }
    }

    /// Waits for the consent of a heir that another one started.
    ///
    /// # Errors
    /// Anything else than its consent within 10 s: it has to start first.
    pub async fn wait_for_heir(&mut self) -> Result<(), HandoverError> {
        self.ready_within(2 * CHECK).await
    }

    async fn ready_within(&mut self, patience: Duration) -> Result<(), HandoverError> {
        match self.hear(patience).await? {
            ToHolder::Ready { version } => {
                tracing::info!(version, "the new program could take over");
                Ok(())
            }
            ToHolder::Failed { why } => Err(HandoverError::Failed(why)),
            word @ ToHolder::Done => Err(HandoverError::OutOfTurn(format!("{word:?}"))),
        }
    }

    /// Gives the heir the `lock`, and the listener of the admin API where there is one; returns once it has taken over.
    ///
    /// # Errors
    /// It did not: it has been ended, and everything is the holder's again.
    pub async fn give(&mut self, lock: BorrowedFd<'_>, admin_listener: Option<BorrowedFd<'_>>) -> Result<(), HandoverError> {
        let descriptors: Vec<_> = [lock].into_iter().chain(admin_listener).collect();
        let sent = send(&self.stream, &ToHeir::Yours, &descriptors).await;
        crash_point::reached("holder.gave");
        let given = match sent {
            Ok(()) => match self.hear(TAKE_OVER).await {
                Ok(ToHolder::Done) => Ok(()),
                Ok(ToHolder::Failed { why }) => Err(HandoverError::Failed(why)),
                Ok(word @ ToHolder::Ready { .. }) => Err(HandoverError::OutOfTurn(format!("{word:?}"))),
                Err(error) => Err(error),
            },
            Err(error) => Err(error.into()),
        };
        if given.is_ok() {
            crash_point::reached("holder.followed");
        } else {
            self.end_heir().await;
        }
        given
    }

    async fn hear(&mut self, patience: Duration) -> Result<ToHolder, HandoverError> {
        let word = timeout(patience, receive(&self.stream, &mut self.decoder)).await;
        word.map_err(|_| HandoverError::Silent(patience))??.ok_or(HandoverError::Gone)
    }

    /// Nothing of the heir may act once the holder goes on.
    async fn end_heir(&mut self) {
        let ended = match self.heir.take() {
            Some(mut heir) => {
                // It is our child and not yet reaped, so its number is its own.
                let _ = heir.kill();
                tokio::task::spawn_blocking(move || heir.wait().map(drop)).await.map_err(io::Error::other).flatten()
            }
            None => self.kill_peer(),
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the new program cannot be ended");
        }
    }

    /// Kills whoever has the other end of the socket: the process that became the new program.
    fn kill_peer(&self) -> io::Result<()> {
        let pid = self.stream.peer_cred()?.pid().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        if Some(pid) != rustix::process::getppid() {
            // It is dead already: a parent that lives does not change.
            return Ok(());
        }
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(pidfd_send_signal(pidfd, Signal::KILL)?)
    }

    /// The heir, where it is this process's child.
    pub fn child(&self) -> Option<Pid> {
        self.heir.as_ref().map(Pid::from_child)
    }

    /// Executes `exe` in place of this program, as the next heir over the same socket; `child` is the one that has taken over. Returns
    /// only where that fails; then the child stays the agent.
    pub fn become_heir(self, exe: &Path, tenants: &Path, child: Pid) -> HandoverError {
        let execute = || -> io::Result<Infallible> {
            let stream = self.stream.into_std()?;
            stream.set_nonblocking(false)?;
            rustix::stdio::dup2_stdin(&stream)?;
            let child = child.as_raw_pid().to_string();
            let args = [exe.as_os_str()].into_iter().chain(arguments(tenants)).chain(["--child".as_ref(), child.as_ref()]);
            let args = args.map(|arg| CString::new(arg.as_bytes())).collect::<Result<Vec<_>, _>>()?;
            let program = args.first().ok_or(io::ErrorKind::InvalidInput)?;
            // What is asked of the process while the new program starts waits until that one listens, and does not kill it.
            asked_for().thread_block()?;
            Ok(nix::unistd::execv(program, &args)?)
        };
        let Err(error) = execute();
        hear_again();
        HandoverError::Start { exe: exe.to_owned(), error }
    }
}

fn arguments(tenants: &Path) -> impl Iterator<Item = &OsStr> {
    ["run", "--take-over", "--quiet", "--tenants"].map(OsStr::new).into_iter().chain([tenants.as_os_str()])
}

/// The signals by which something is asked of an agent.
fn asked_for() -> SigSet {
    SigSet::from_iter([nix::sys::signal::SIGHUP, nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM])
}

/// Delivers signals again that an agent blocked before it executed this program. Call it where they are listened to.
pub fn hear_again() {
    // It fails only for a wrong argument.
    let _ = asked_for().thread_unblock();
}
