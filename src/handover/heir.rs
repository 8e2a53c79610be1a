//! The side that takes over.

use std::{
    io,
    net::TcpListener,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
};

use rustix::process::Pid;
use tokio::net::UnixStream;

use super::{
    HandoverError, Holder,
    wire::{ToHeir, ToHolder},
};
use crate::crash_point;
use crate::framed::{Decoder, receive, send};

/// What a holder hands over.
#[derive(Debug)]
pub struct Handed {
    /// The lock on the state directory.
    pub lock: OwnedFd,
    /// The listener of the admin API, in which connections wait.
    pub admin_listener: Option<TcpListener>,
}

/// A program that was started to take over.
pub struct Heir {
    stream: UnixStream,
    decoder: Decoder,
}

impl Heir {
    /// The socket that the holder made this program's standard input. Inside a tokio runtime.
    ///
    /// # Errors
    /// Standard input is no such socket: the program was not started by a holder.
    pub fn from_stdin() -> io::Result<Self> {
        let socket: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
        let stream = StdUnixStream::from(socket);
        // Anything but a connected Unix socket fails here.
        stream.peer_addr()?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, decoder: Decoder::default() })
    }

    /// The process that started this one to take over.
    pub fn holder(&self) -> Option<Pid> {
        Pid::from_raw(self.stream.peer_cred().ok()?.pid()?)
    }

    /// Says that this program could take over; returns what it is handed once the holder has let go of all else.
    ///
    /// # Errors
    /// The holder is gone or gave up waiting.
    pub async fn inherit(&mut self) -> Result<Handed, HandoverError> {
        self.say(&ToHolder::Ready { version: env!("CARGO_PKG_VERSION").to_owned() }).await?;
        crash_point::reached("heir.ready");
        let ToHeir::Yours = receive(&self.stream, &mut self.decoder).await?.ok_or(HandoverError::Gone)?;
        crash_point::reached("heir.inherited");
        let lock = self.decoder.descriptor().map_err(|_| HandoverError::NoLock)?;
        Ok(Handed { lock, admin_listener: self.decoder.descriptor().ok().map(TcpListener::from) })
    }

    /// Says why this program cannot go on.
    pub async fn failed(mut self, why: &str) {
        // A holder that is gone needs no word.
        let _ = self.say(&ToHolder::Failed { why: why.to_owned() }).await;
    }

    /// Says that this program has taken over. Where the holder was an old program, it is about to execute the new one in its own
    /// place and to inherit in turn, so that this one is a holder now.
    ///
    /// # Errors
    /// The holder is gone: nobody will inherit, and this program stays.
    pub async fn done(mut self) -> Result<Holder, HandoverError> {
        crash_point::reached("heir.settled");
        self.say(&ToHolder::Done).await?;
        crash_point::reached("heir.done");
        Ok(Holder::over(self.stream))
    }

    async fn say(&mut self, word: &ToHolder) -> Result<(), HandoverError> {
        Ok(send(&self.stream, word, &[]).await?)
    }
}
