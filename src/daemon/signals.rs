//! The signals that are meant for the agent, one by one.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::sync::mpsc;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGHUP: read tenants.toml and all it names again.
    Reload,
    /// SIGINT: a person at a terminal stops everything.
    Stop,
    /// SIGTERM: so does a supervisor, unless it is about to start the agent again.
    Terminate,
}

/// Hears signals on a thread of its own, for as long as the process lives.
pub(super) fn listen() -> io::Result<mpsc::Receiver<Asked>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let (sender, receiver) = mpsc::channel(4);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let asked = match signal {
                SIGHUP => Asked::Reload,
                SIGTERM => Asked::Terminate,
                _ => Asked::Stop,
            };
            if sender.blocking_send(asked).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
