//! Puts the loop together: store, shared pages, what runs already.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{
    agent::{Agent, HostEvent},
    core::{Core, Start},
    host::{Host, HostParts},
    port_book::QUARANTINE,
};
use crate::{
    desired::{Desired, Rejected},
    instance::boot_id,
    observed::Moment,
    route::TableError,
    store::StoreError,
};

/// Why the loop cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// instances.db cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A shared page cannot be used.
    #[error(transparent)]
    Page(#[from] TableError),
    /// /proc cannot be read.
    #[error("/proc: {0}; the agent must see its own processes")]
    Proc(std::io::Error),
}

/// What the loop starts from.
pub struct Parts {
    /// The state to bring about.
    pub desired: Arc<Desired>,
    /// Why the file itself is not in force, where `desired` is the last good copy.
    pub rejected: Option<Rejected>,
    /// Where instances.db was moved, if it was corrupt.
    pub corrupt_records: Option<String>,
    /// The host on which it acts.
    pub host: HostParts,
}

impl Agent {
    /// Takes in what an earlier agent left behind. Returns the loop and the channel on which its tasks report.
    pub fn new(parts: Parts) -> Result<(Self, mpsc::UnboundedReceiver<HostEvent>), SetupError> {
        let Parts { desired, rejected, corrupt_records, host } = parts;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let start = Start {
            desired,
            refused: rejected.map(|rejected| rejected.to_string()),
            boot_id: boot_id().map_err(SetupError::Proc)?,
            starts: 2 * cores,
            quarantine: QUARANTINE,
            corrupt_records,
        };
        let (host, events) = Host::new(host);
        let in_force = watch::Sender::new(start.desired.clone());
        Ok((Self { core: Core::new(host, start, Moment::now())?, settled: watch::Sender::new(false), in_force }, events))
    }
}
