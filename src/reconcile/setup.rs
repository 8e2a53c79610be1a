//! Puts the loop together: store, shared pages, what runs already.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, watch};

use super::{
    agent::Agent,
    event::Event,
    health::Health,
    intake::Intake,
    port_book::PortBook,
    queue::StartQueue,
    recover::{self, Recovered},
    route_book::RouteBook,
};
use crate::{
    admin::status::ProxyStatus,
    desired::{Desired, Rejected},
    instance::{Process, binary::SqBinary, boot_id, network::Network, pulse::Pulse, scan},
    observed::{Moment, Observed},
    proxy::settings::Settings,
    route::{Activity, TableError, TableWriter},
    secret::Secret,
    store::{Store, StoreError, unix_now},
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
}

impl Agent {
    /// Takes in what an earlier agent left behind. Returns the loop and the channel on which its tasks report.
    pub fn new(parts: Parts) -> Result<(Self, mpsc::UnboundedReceiver<Event>), SetupError> {
        let (reports, events) = mpsc::unbounded_channel();
        let now = Moment::now();
        let found = scan::scan(&parts.desired.state_dir).map_err(SetupError::Proc)?;
        let Recovered { known, found, instances, strays } = recover::recover(parts.store.load()?, found);
        let mut ports = PortBook::new(parts.desired.ports);
        for (port, until) in parts.store.quarantined(unix_now())? {
            ports.rest_until(port, now + std::time::Duration::from_secs(until.saturating_sub(unix_now())));
        }
        let mut routes = RouteBook::new(parts.table);
        for (id, known) in &known {
            known.port.iter().for_each(|&port| ports.give(port, id));
            routes.touch(id);
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut agent = Self {
            intake: Intake::new(&parts.file, parts.rejected.as_ref(), now),
            started_with: parts.desired.clone(),
            started: now,
            observed: Observed { known, program: parts.desired.sq.identity(), ..Observed::default() },
            desired: parts.desired,
            processes: Default::default(),
            memory: Default::default(),
            found,
            records: instances,
            boot_id: boot_id().map_err(SetupError::Proc)?,
            held: None,
            store: parts.store,
            routes,
            ports,
            queue: StartQueue::new(2 * cores),
            health: Health::new(),
            pulse: Pulse::new(Network::host(), Health::LIMIT),
            activity: parts.activity,
            instance_secret: parts.instance_secret,
            program: parts.program,
            proxy: ProxyStatus::default(),
            settings: parts.settings,
            reports,
            touched: Default::default(),
            draining: Vec::new(),
            replan: true,
            surveying: false,
            settled: false,
            stopping: false,
        };
        for stray in strays {
            if let Ok(Some(process)) = Process::adopt(stray.pid, stray.start_time) {
                agent.end_stray(&stray.id, Arc::new(process));
            }
        }
        Ok((agent, events))
    }

    /// The proxy's addresses as they came to be, for status: port 0 is some port by now.
    pub fn listens_on(&mut self, addresses: &[SocketAddr]) {
        self.proxy.listen = addresses.iter().map(ToString::to_string).collect();
    }

    /// Whether something that an earlier agent started may still run.
    pub fn found_instances(&self) -> bool {
        !self.found.is_empty()
    }
}
