//! The agent's side of the proxy: start it, adopt one that is there already, tell it the settings, start it again when it dies.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            net::UnixListener,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    attached::{GREETING, Proxy, SupervisorError, io_error},
    control::{
        socket::{receive, send},
        wire::{NudgeReason, ToAgent, ToProxy},
    },
    listen::{ListenError, control_path, listeners},
    settings::Settings,
};
use crate::{
    desired::TenantId,
    route::{Activity, Side},
    telemetry,
};

/// First and longest pause before a new start. The very first new start comes at once.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A proxy that lived so long starts with a clean slate.
const STABLE: Duration = Duration::from_secs(60);

/// For a proxy with which no conversation is possible.
const LAST_GRACE: Duration = Duration::from_secs(10);

/// All of the agent's environment that the proxy sees: how to log.
const LOGGING: [&str; 2] = [telemetry::FILTER_VARIABLE, telemetry::FORMAT_VARIABLE];

/// What the supervisor needs.
pub struct SupervisorConfig {
    /// Holds `run/proxy.sock`, `access.log` and `proxy.log`.
    pub state_dir: PathBuf,
    /// This program.
    pub exe: PathBuf,
    /// Addresses to listen on. They are bound here and kept open for ever, so that a dead proxy loses no connection that waits; what a
    /// proxy of an earlier agent holds is taken back from it.
    pub listen: Vec<SocketAddr>,
    /// The route table's descriptor.
    pub routes: OwnedFd,
    /// The activity page.
    pub activity: Arc<Activity>,
    /// What to serve by; each change is sent on. `side` is set here.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// What the agent should know.
    pub events: mpsc::Sender<ProxyEvent>,
}

/// What happens to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyEvent {
    /// It serves, with the settings in force.
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
    /// A request waits for this tenant's instance.
    Nudge {
        /// Whose.
        id: TenantId,
        /// Why.
        reason: NudgeReason,
    },
    /// New settings cannot be served by; the last good ones go on.
    Refused {
        /// In words for the operator.
        why: String,
    },
}

/// Holds a running supervisor.
pub struct SupervisorHandle {
    addresses: Vec<SocketAddr>,
    stop: Option<oneshot::Sender<Duration>>,
    task: JoinHandle<()>,
}

impl SupervisorHandle {
    /// What is listened on; differs from what was asked for where that was port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends the proxy: it accepts nothing more and has `grace` for what is under way. Returns when it is gone.
    pub async fn shutdown(mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            // If the task is gone already there is nothing to stop.
            let _ = stop.send(grace);
        }
        let _ = self.task.await;
    }

    /// Lets go of the proxy, which goes on serving for the next agent.
    pub fn detach(self) {
        self.task.abort();
    }
}

/// Starts, watches and restarts the proxy.
pub struct Supervisor {
    config: SupervisorConfig,
    listeners: Vec<TcpListener>,
    serial: u64,
}

impl Supervisor {
    /// Binds the addresses and starts the supervisor inside the current runtime. It adopts a living proxy or starts one.
    ///
    /// # Errors
    /// An address that cannot be listened on.
    pub async fn start(config: SupervisorConfig) -> Result<SupervisorHandle, ListenError> {
        let listeners = listeners(&config.state_dir, &config.listen).await?;
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(Self { config, listeners, serial: 0 }.run(stopped));
        Ok(SupervisorHandle { addresses, stop: Some(stop), task })
    }

    async fn run(mut self, mut stop: oneshot::Receiver<Duration>) {
        let mut back_off = Duration::ZERO;
        loop {
            let begun = Instant::now();
            let exit = match self.attach().await {
                Ok(mut proxy) => match self.attend(&mut proxy, &mut stop).await {
                    Ok(End::Stopped) => return,
                    Ok(End::Gone) => proxy.wait_for_end().await,
                    Err(error) => {
                        // A conversation that broke: most often the proxy is dead. One that is not still serves somebody.
                        format!("{error}; {}", proxy.end(LAST_GRACE).await)
                    }
                },
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > STABLE {
                back_off = Duration::ZERO;
            }
            self.tell(ProxyEvent::Down { exit, next_try: back_off }).await;
            tokio::select! {
                () = sleep(back_off) => {}
                _ = &mut stop => return,
            }
            back_off = (back_off * 2).clamp(BACK_OFF.0, BACK_OFF.1);
        }
    }

    /// A proxy that has greeted: the one that lives, or a new one.
    async fn attach(&mut self) -> Result<Proxy, SupervisorError> {
        let path = control_path(&self.config.state_dir);
        if let Ok(stream) = UnixStream::connect(&path).await {
            match Proxy::adopt(stream).await {
                Ok(proxy) => return Ok(proxy),
                Err(error) => {
                    tracing::warn!(%error, "a proxy holds the socket but cannot be adopted; it is sent away and another one started");
                    send_away(&path).await;
                }
            }
        }
        self.config.activity.slots().iter().for_each(|slot| {
            slot.clear_side(Side::A);
            slot.clear_side(Side::B);
        });
        let child = self.spawn(&path)?;
        Proxy::born(&path, &self.config.state_dir.join("proxy.log"), child).await
    }

    fn spawn(&self, path: &Path) -> Result<Child, SupervisorError> {
        let state_dir = &self.config.state_dir;
        let run = state_dir.join("run");
        fs::create_dir_all(&run).map_err(io_error("make", &run))?;
        let control = bind_private(path)?;
        let log = |name: &str| {
            let path = state_dir.join(name);
            OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(io_error("open", &path))
        };
        Command::new(&self.config.exe)
            .arg("proxy")
            .stdin(Stdio::from(OwnedFd::from(control)))
            .stdout(log("access.log")?)
            .stderr(log("proxy.log")?)
            .env_clear()
            .envs(LOGGING.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .current_dir("/")
            .process_group(0)
            .spawn()
            .map_err(io_error("start", &self.config.exe))
    }

    /// Tells the proxy the settings and each change of them, and hears what it has to say.
    async fn attend(&mut self, proxy: &mut Proxy, stop: &mut oneshot::Receiver<Duration>) -> Result<End, SupervisorError> {
        self.send_settings(proxy).await?;
        loop {
            tokio::select! {
                message = receive::<ToAgent>(&proxy.stream, &mut proxy.decoder) => match message? {
                    Some(message) => self.hear(proxy, message).await,
                    None => return Ok(End::Gone),
                },
                Ok(()) = self.config.settings.changed() => self.send_settings(proxy).await?,
                grace = &mut *stop => {
                    // A handle that was dropped without a word leaves the proxy to the next agent.
                    let Ok(grace) = grace else { return Ok(End::Stopped) };
                    proxy.end(grace).await;
                    return Ok(End::Stopped);
                }
            }
        }
    }

    async fn send_settings(&mut self, proxy: &Proxy) -> Result<(), SupervisorError> {
        self.serial += 1;
        let mut settings = Settings::clone(&self.config.settings.borrow_and_update());
        settings.side = proxy.side as u8;
        let activity = self.config.activity.share()?;
        let mut descriptors: Vec<_> = self.listeners.iter().map(AsFd::as_fd).collect();
        descriptors.extend([self.config.routes.as_fd(), activity.as_fd()]);
        let message = ToProxy::Settings { settings: Box::new(settings), listeners: self.listeners.len(), serial: self.serial };
        Ok(send(&proxy.stream, &message, &descriptors).await?)
    }

    async fn hear(&self, proxy: &mut Proxy, message: ToAgent) {
        match message {
            ToAgent::Applied { .. } if proxy.up => {}
            ToAgent::Applied { .. } => {
                proxy.up = true;
                self.tell(ProxyEvent::Up { pid: proxy.pid, side: proxy.side, adopted: proxy.child.is_none() }).await;
            }
            ToAgent::Refused { why, .. } => self.tell(ProxyEvent::Refused { why }).await,
            ToAgent::Nudge { id, reason } => {
                // A busy agent looks at everything by itself soon; the proxy must not wait for it.
                let _ = self.config.events.try_send(ProxyEvent::Nudge { id, reason });
            }
            ToAgent::Hello { .. } => {}
        }
    }

    async fn tell(&self, event: ProxyEvent) {
        // Nobody listens: the agent is ending.
        let _ = self.config.events.send(event).await;
    }
}

/// Asks a proxy that cannot be adopted (of another version, say) to end after what it has in flight. These words must never change.
async fn send_away(path: &Path) {
    const GRACE_MS: u64 = 30_000;
    if let Ok(stream) = UnixStream::connect(path).await {
        // One that does not listen cannot be helped; it accepts nothing either.
        let _ = timeout(GREETING, send(&stream, &ToProxy::Shutdown { grace_ms: GRACE_MS }, &[])).await;
    }
}

/// A socket at `path` for this user alone, in place of whatever stood there.
fn bind_private(path: &Path) -> Result<UnixListener, SupervisorError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", path)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(io_error("listen on", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io_error("protect", path))?;
    Ok(listener)
}

/// How attending ended.
enum End {
    /// The agent wanted it so.
    Stopped,
    /// The proxy closed the conversation: it is dead or dying.
    Gone,
}
