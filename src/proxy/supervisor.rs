//! The agent's side of the proxy, as the agent sees it: what it must give, what it hears, and how it lets go. `supervise` does the work.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    build,
    control::NudgeReason,
    front::Addresses,
    listen::{ListenError, listeners},
    network::{self, JoinNetwork},
    settings::Settings,
    standing::{self, Wanted},
    supervise::Keeper,
};
use crate::{
    desired::{AccessLog, TenantId},
    route::{Activity, Meters, Side},
};

/// What the supervisor needs.
pub struct SupervisorConfig {
    /// Holds `run/proxy-a.sock` and `run/proxy-b.sock`, `access.log` and `proxy.log`.
    pub state_dir: PathBuf,
    /// This program.
    pub exe: PathBuf,
    /// Addresses to listen on, until the settings name others. They are bound here and kept open, so that a dead proxy loses no connection that
    /// waits; what a proxy of an earlier agent holds is taken back from it.
    pub listen: Addresses,
    /// Told what is listened on at the start and at each change: whoever keeps the sockets while neither agent nor proxy lives.
    pub keep: fn(&[TcpListener]),
    /// Sockets that listen already, kept by whoever supervises the agent.
    pub kept: Vec<TcpListener>,
    /// The route table's descriptor.
    pub routes: OwnedFd,
    /// The activity page.
    pub activity: Arc<Activity>,
    /// The page of metrics.
    pub meters: Arc<Meters>,
    /// What to serve by; each change is sent on. `side` is set here.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// When the access log is rotated, and what is kept.
    pub access_log: watch::Receiver<AccessLog>,
    /// Told what is served by, as soon as it is.
    pub in_force: watch::Sender<Option<Arc<Settings>>>,
    /// What the agent should know.
    pub events: mpsc::Sender<ProxyEvent>,
    /// An upgrade: a living proxy is replaced by a new one, not adopted. One of another build of the program, or in another network than
    /// `network`, is so in any case.
    pub replace: bool,
    /// The network in which the instances are, where that is not the agent's own.
    pub network: Option<JoinNetwork>,
}

/// What happens to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyEvent {
    /// It serves, with the settings in force. If another one did, that one retires.
    Up {
        /// Process id.
        pid: u32,
        /// Its half of the in-flight words.
        side: Side,
        /// It was there before this agent.
        adopted: bool,
    },
    /// It is gone; its connections wait in the listeners' queues.
    Down {
        /// What is known of its end.
        exit: String,
        /// Pause before the next start.
        next_try: Duration,
    },
    /// A proxy whose place another has taken is gone, and its side is free.
    Retired {
        /// Process id.
        pid: u32,
        /// Requests that did not finish within 30 s, each named in proxy.log. `None`: it died before it could say.
        cut: Option<u64>,
    },
    /// The proxy was given a guard.
    Guarded {
        /// Process id of the guard.
        pid: u32,
    },
    /// A request waits for this tenant's instance.
    Nudge {
        /// Whose.
        id: TenantId,
        /// Why.
        reason: NudgeReason,
    },
    /// A token names a kid that no key has.
    UnknownKid,
    /// A webhook says that somebody pushed to the repository that tenants.toml comes from.
    Pushed,
    /// It is listened elsewhere from now on.
    Listens {
        /// Where, as it came to be.
        addresses: Vec<SocketAddr>,
    },
    /// It cannot be listened where the settings say; they are in force, and it is listened where it was.
    ListensInVain {
        /// In words for the operator.
        why: String,
    },
    /// New settings cannot be served by; the last good ones go on.
    Refused {
        /// In words for the operator.
        why: String,
    },
}

/// The first proxy that serves for this agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Process id.
    pub pid: u32,
    /// Its half of the in-flight words.
    pub side: Side,
    /// It was there before this agent.
    pub adopted: bool,
}

/// The first try to have a proxy that serves as it should has failed. (The supervisor goes on as it can: a new start follows where nobody serves.)
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}{}", .still_serving.map(|pid| format!("; the old proxy (pid {pid}) goes on")).unwrap_or_default())]
pub struct NotUp {
    /// In words for the operator.
    pub why: String,
    /// The proxy that was to be replaced, and serves on unharmed.
    pub still_serving: Option<u32>,
}

/// Where sockets listen.
pub(super) fn local_addresses(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
}

/// Places in the channel that nudges leave to news, of which none may be lost.
const FOR_NEWS: usize = 8;

/// Passes a nudge on. A busy agent looks at everything by itself soon; no proxy may wait for it.
pub(super) fn nudge(events: &mpsc::Sender<ProxyEvent>, id: TenantId, reason: NudgeReason) {
    if events.capacity() > FOR_NEWS {
        let _ = events.try_send(ProxyEvent::Nudge { id, reason });
    }
}

/// Holds a running supervisor.
pub struct SupervisorHandle {
    addresses: Vec<SocketAddr>,
    up: watch::Receiver<Option<Result<Serving, NotUp>>>,
    stop: Option<oneshot::Sender<Duration>>,
    task: JoinHandle<()>,
}

impl SupervisorHandle {
    /// What was listened on at the start; differs from what was asked for where that was port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// Waits for the first proxy of this agent: the new one where one is to be replaced. That takes 5 s at most, or 30 s more where the proxy
    /// of an upgrade before this one has not finished yet.
    ///
    /// # Errors
    /// It did not come up. An upgrade is to be given up then; [`detach`](Self::detach) leaves the old proxy to the agent before.
    pub async fn up(&mut self) -> Result<Serving, NotUp> {
        match self.up.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(NotUp { why: "the supervisor ended before a proxy served".to_owned(), still_serving: None }),
        }
    }

    /// Ends the proxy, and any that still retires: they accept nothing more and have `grace` for what is under way. Returns when they are gone.
    pub async fn shutdown(mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            // If the task is gone already there is nothing to stop.
            let _ = stop.send(grace);
        }
        let _ = self.task.await;
    }

    /// Lets go of the proxy, which goes on serving for the next agent; so does one that retires, which that agent then watches.
    pub async fn detach(self) {
        self.task.abort();
        // An error says that it was cut off, as it should be.
        let _ = self.task.await;
    }
}

/// Starts, watches, replaces and restarts the proxy.
pub struct Supervisor;

impl Supervisor {
    /// Binds the addresses and starts the supervisor inside the current runtime. It adopts a living proxy, replaces it, or starts one.
    ///
    /// # Errors
    /// An address that cannot be listened on.
    pub async fn start(mut config: SupervisorConfig) -> Result<SupervisorHandle, ListenError> {
        let found = standing::look(&config.state_dir).await;
        let kept = std::mem::take(&mut config.kept);
        let listeners = listeners(found.listeners.into_iter().chain(kept).collect(), &config.listen.all())?;
        let addresses = local_addresses(&listeners);
        (config.keep)(&listeners);
        let network = match &config.network {
            Some(network) => network.inode().ok(),
            None => network::own_inode(),
        };
        let wanted = Wanted { replace: config.replace, build: build::of(&config.exe), network };
        let (stop, stopped) = oneshot::channel();
        let (outcome, up) = watch::channel(None);
        let keeper = Keeper::new(config, listeners, wanted, outcome);
        let task = tokio::spawn(keeper.run(found.sides, stopped));
        Ok(SupervisorHandle { addresses, up, stop: Some(stop), task })
    }
}
