//! Puts the loop together: store, shared pages, what runs already.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, watch};

use super::{
    agent::{Agent, HostEvent},
    core::{Core, Start},
    host::{Host, HostParts},
    port_book::QUARANTINE,
};
use crate::{
    desired::{Desired, Rejected},
    instance::{binary::SqBinary, boot_id, launcher::Launcher},
    observed::Moment,
    proxy::settings::Settings,
    route::{Activity, TableError, TableWriter},
    secret::Secret,
    store::{Store, StoreError},
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
    /// tenants.toml.
    pub file: PathBuf,
    /// The state to bring about.
    pub desired: Arc<Desired>,
    /// Why the file itself is not in force, where `desired` is the last good copy.
    pub rejected: Option<Rejected>,
    /// instances.db.
    pub store: Store,
    /// The route table.
    pub table: TableWriter,
    /// The activity page.
    pub activity: Arc<Activity>,
    /// From which each instance's key is derived.
    pub instance_secret: Secret,
    /// sq, where it is known already.
    pub program: Option<SqBinary>,
    /// Where the proxy's settings go.
    pub settings: watch::Sender<Arc<Settings>>,
    /// Starts instances.
    pub launcher: Launcher,
    /// Told at each tick that the loop turns, for whoever watches over the agent.
    pub alive: fn(),
}

impl Agent {
    /// Takes in what an earlier agent left behind. Returns the loop and the channel on which its tasks report.
    pub fn new(parts: Parts) -> Result<(Self, mpsc::UnboundedReceiver<HostEvent>), SetupError> {
        let Parts { file, desired, rejected, store, table, activity, instance_secret, program, settings, launcher, alive } = parts;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let start = Start {
            desired: desired.clone(),
            refused: rejected.map(|rejected| rejected.to_string()),
            program,
            boot_id: boot_id().map_err(SetupError::Proc)?,
            starts: 2 * cores,
            quarantine: QUARANTINE,
        };
        let state_dir = desired.state_dir.clone();
        let (host, events) = Host::new(HostParts { file, state_dir, store, table, activity, instance_secret, settings, launcher, alive });
        Ok((Self { core: Core::new(host, start, Moment::now())?, settled: watch::Sender::new(false) }, events))
    }
}
