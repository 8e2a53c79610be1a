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

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::unix::AsyncFd,
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    control::{
        socket::{ControlError, receive, send},
        wire::{Decoder, NudgeReason, ToAgent, ToProxy},
    },
    listen::{ListenError, control_path, listeners},
    settings::Settings,
};
use crate::{
    desired::TenantId,
    route::{Activity, Side},
    sys, telemetry,
};

/// First and longest pause before a new start. The very first new start comes at once.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A proxy that lived so long starts with a clean slate.
const STABLE: Duration = Duration::from_secs(60);

/// A proxy greets within milliseconds; a stuck one is replaced.
const GREETING: Duration = Duration::from_secs(10);

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

/// A proxy that cannot be started or spoken to.
#[derive(Debug, thiserror::Error)]
enum SupervisorError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the proxy did not greet within 10 s")]
    Mute,
    #[error("cannot share the activity page: {0}")]
    Activity(#[from] crate::route::TableError),
    #[error("the proxy's socket belongs to user {0}")]
    Stranger(u32),
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
                        proxy.kill();
                        format!("{error}; {}", proxy.wait_for_end().await)
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
            match Proxy::greet(stream, None).await {
                Ok(proxy) => return Ok(proxy),
                Err(error) => tracing::warn!(%error, "a proxy holds the socket but does not answer; starting another"),
            }
        }
        self.config.activity.slots().iter().for_each(|slot| {
            slot.clear_side(Side::A);
            slot.clear_side(Side::B);
        });
        let child = self.spawn(&path)?;
        let stream = UnixStream::connect(&path).await.map_err(io_error("connect to", &path))?;
        Proxy::greet(stream, Some(child)).await
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
            ToAgent::Nudge { id, reason } => self.tell(ProxyEvent::Nudge { id, reason }).await,
            ToAgent::Hello { .. } => {}
        }
    }

    async fn tell(&self, event: ProxyEvent) {
        // Nobody listens: the agent is ending.
        let _ = self.config.events.send(event).await;
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SupervisorError {
    move |source| SupervisorError::Io { doing, path: path.to_owned(), source }
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

/// A proxy that has greeted.
struct Proxy {
    stream: UnixStream,
    decoder: Decoder,
    pid: u32,
    side: Side,
    /// Follows the process, whoever's child it is.
    pidfd: AsyncFd<OwnedFd>,
    /// `None`: adopted.
    child: Option<Child>,
    up: bool,
}

impl Proxy {
    async fn greet(stream: UnixStream, child: Option<Child>) -> Result<Self, SupervisorError> {
        let mut child = child;
        let greeted = Self::greeting(stream, &mut child).await;
        if let (Err(_), Some(mut child)) = (&greeted, child) {
            // A new one that does not greet is of no use. It is our child and not yet reaped, so its pid is its own.
            let _ = child.kill();
            let _ = child.wait();
        }
        greeted
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

    /// Asks it to end within `grace`, and makes it end a little later.
    async fn end(&mut self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        // A dead one hears nothing, and the wait below sees its end.
        let _ = send(&self.stream, &ToProxy::Shutdown { grace_ms }, &[]).await;
        if timeout(grace + Duration::from_secs(3), self.pidfd.readable()).await.is_err() {
            tracing::warn!(pid = self.pid, "the proxy did not end in time and is killed");
            self.kill();
        }
        self.wait_for_end().await;
    }

    fn kill(&self) {
        // By descriptor, so never a stranger who got the number.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Waits until the process is gone, and says how it went. One that closed its conversation but lives on for long is killed.
    async fn wait_for_end(&mut self) -> String {
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
