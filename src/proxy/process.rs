//! The proxy process from its first line to its last: hear from the agent, give up every right, serve, and go on when the agent is gone.

use std::{
    io,
    num::NonZero,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::Duration,
};

use rustix::net::sockopt::socket_peercred;
use tokio::{
    net::{UnixListener, UnixStream},
    runtime,
    sync::mpsc,
};

use super::{
    access_log::AccessLog,
    control::{
        socket::{ControlError, receive, receive_blocking, send, send_blocking},
        wire::{Decoder, NudgeReason, ToAgent, ToProxy, WireError},
    },
    live::{BadSettings, Current, Live},
    park::Parking,
    request_id::RequestIds,
    sandbox::{self, SandboxError},
    serve::Server,
    service::Shared,
    settings::Settings,
    tenant::Tenants,
};
use crate::{desired::TenantId, telemetry};

/// Nudges that may wait for the agent; more are dropped.
const NUDGES: usize = 1_024;

/// Why the process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Started by hand, say.
    #[error("standard input is not the agent's control socket ({0}): `sq-agent run` starts the proxy")]
    NotStartedByAgent(io::Error),
    /// The kernel has no descriptors, threads or memory left.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A right that could not be given up.
    #[error("{0}")]
    Sandbox(String),
}

impl From<SandboxError> for ProxyError {
    fn from(error: SandboxError) -> Self {
        Self::Sandbox(error.to_string())
    }
}

fn doing(doing: &'static str) -> impl Fn(io::Error) -> ProxyError {
    move |source| ProxyError::Io { doing, source }
}

/// Runs the proxy. Standard input is the listening control socket; standard output takes the access log, standard error the rest.
///
/// # Errors
/// See [`ProxyError`]. Once it serves, it ends only when the agent says so.
pub fn run() -> Result<(), ProxyError> {
    telemetry::init();
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(doing("take the control socket"))?;
    let control = StdUnixListener::from(socket);
    control.local_addr().map_err(ProxyError::NotStartedByAgent)?;
    let descriptors = sandbox::raise_descriptor_limit()?;
    // Asked before the sandbox: the answer stands in files (cgroup quota).
    let threads = thread::available_parallelism().map_or(2, NonZero::get);
    let owner = rustix::process::geteuid().as_raw();
    let first = first_settings(&control, owner)?;
    let landlock = sandbox::enter(first.run_as)?;
    tracing::info!(pid = std::process::id(), uid = rustix::process::geteuid().as_raw(), threads, descriptors, landlock, "the proxy serves");
    let (log, log_thread) = AccessLog::start(io::stdout()).map_err(doing("start the access log"))?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("proxy")
        .enable_all()
        .build()
        .map_err(doing("start its threads"))?;
    runtime.block_on(serve(control, first, Given { owner, descriptors, log }))?;
    // Dropping the runtime drops the last handles of the log; then all lines are written.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let _ = log_thread.join();
    tracing::info!("the proxy has ended");
    Ok(())
}

/// The first conversation, up to settings that can be served by.
struct First {
    stream: StdUnixStream,
    decoder: Decoder,
    live: Live,
    listeners: Vec<OwnedFd>,
    serial: u64,
    side: u8,
    run_as: Option<(u32, u32)>,
}

/// Settings as they came, with what was made of them.
struct Received {
    live: Live,
    listeners: Vec<OwnedFd>,
}

fn first_settings(control: &StdUnixListener, owner: u32) -> Result<First, ProxyError> {
    loop {
        let (stream, _) = control.accept().map_err(doing("accept the agent"))?;
        if !is_owner(&stream, owner) {
            continue;
        }
        match hear(&stream) {
            Ok(Some((settings, serial, decoder, received))) => {
                let Received { live, listeners } = received;
                return Ok(First { stream, decoder, live, listeners, serial, side: settings.side, run_as: settings.run_as });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the agent's first words"),
        }
    }
}

type Heard = (Box<Settings>, u64, Decoder, Received);

/// Waits for settings that are good; `None` when the agent went away.
fn hear(stream: &StdUnixStream) -> Result<Option<Heard>, ControlError> {
    send_blocking(stream, &hello(None, 0))?;
    let mut decoder = Decoder::default();
    while let Some(message) = receive_blocking::<ToProxy>(stream, &mut decoder)? {
        match message {
            ToProxy::Settings { settings, listeners, serial } => match take(&settings, listeners, &mut decoder)? {
                Ok(received) => return Ok(Some((settings, serial, decoder, received))),
                Err(why) => send_blocking(stream, &ToAgent::Refused { serial, why: why.to_string() })?,
            },
            ToProxy::Shutdown { .. } => std::process::exit(0),
        }
    }
    Ok(None)
}

/// Makes something to serve by of settings and their descriptors.
fn take(settings: &Settings, listeners: usize, decoder: &mut Decoder) -> Result<Result<Received, BadSettings>, WireError> {
    let mut descriptors = decoder.descriptors(listeners.saturating_add(2))?;
    let (Some(activity), Some(routes)) = (descriptors.pop(), descriptors.pop()) else {
        return Err(WireError::MissingDescriptors(2));
    };
    Ok(Live::new(settings, routes, activity).map(|live| Received { live, listeners: descriptors }))
}

fn hello(side: Option<u8>, listeners: usize) -> ToAgent {
    ToAgent::Hello { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned(), side, listeners }
}

/// Only the user who started this process may command it.
fn is_owner(stream: &impl AsFd, owner: u32) -> bool {
    let peer = socket_peercred(stream).map(|peer| peer.uid.as_raw());
    if peer != Ok(owner) {
        tracing::warn!(?peer, owner, "somebody else spoke to the control socket");
    }
    peer == Ok(owner)
}

/// What the process was found with at its start.
struct Given {
    /// The user whose agent may command it.
    owner: u32,
    descriptors: u64,
    log: AccessLog,
}

async fn serve(control: StdUnixListener, first: First, given: Given) -> Result<(), ProxyError> {
    let (nudges, mut nudged) = mpsc::channel(NUDGES);
    let mut prefix = [0; 8];
    getrandom::fill(&mut prefix).map_err(|error| ProxyError::Io { doing: "get random numbers", source: io::Error::other(error) })?;
    let shared = Arc::new(Shared {
        live: Current::new(first.live),
        tenants: Tenants::new(),
        parking: Arc::new(Parking::new()),
        ids: RequestIds::new(u64::from_le_bytes(prefix)),
        log: given.log,
        nudges,
        body_memory: Arc::new(AtomicU64::new(0)),
        in_flight: Arc::new(AtomicU64::new(0)),
    });
    let for_ticker = Arc::clone(&shared);
    let ticker = tokio::spawn(Arc::clone(&shared.parking).tick(move || for_ticker.live.get().routes.generation()));
    let mut server = Server::new(shared, given.descriptors);
    server.listen(first.listeners).map_err(doing("listen"))?;

    control.set_nonblocking(true).map_err(doing("set up the control socket"))?;
    let control = UnixListener::from_std(control).map_err(doing("set up the control socket"))?;
    first.stream.set_nonblocking(true).map_err(doing("set up the control socket"))?;
    let stream = UnixStream::from_std(first.stream).map_err(doing("set up the control socket"))?;
    let mut agent = Agent { stream, decoder: first.decoder, side: first.side };
    // If the agent is gone by now, the next one is told by Hello.
    let _ = send(&agent.stream, &ToAgent::Applied { serial: first.serial }, &[]).await;
    let grace = loop {
        match agent.converse(&mut server, &mut nudged).await {
            Ok(Some(grace)) => break grace,
            Ok(None) => tracing::info!("the agent is gone; serving goes on"),
            Err(error) => tracing::warn!(%error, "the agent is lost; serving goes on"),
        }
        agent.stream = next_agent(&control, given.owner, &mut nudged).await;
        agent.decoder = Decoder::default();
        let listeners: Vec<_> = server.listeners().iter().map(AsFd::as_fd).collect();
        if let Err(error) = send(&agent.stream, &hello(Some(agent.side), listeners.len()), &listeners).await {
            tracing::warn!(%error, "cannot greet the agent");
        }
    };
    tracing::info!(?grace, "the agent says: end");
    server.shut_down(grace).await;
    ticker.abort();
    Ok(())
}

/// Waits for an agent. Nudges in the meantime are dropped: a new agent looks at everything first.
async fn next_agent(control: &UnixListener, owner: u32, nudged: &mut mpsc::Receiver<(TenantId, NudgeReason)>) -> UnixStream {
    loop {
        tokio::select! {
            accepted = control.accept() => match accepted {
                Ok((stream, _)) if is_owner(&stream, owner) => return stream,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the agent");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = nudged.recv() => {}
        }
    }
}

/// The agent that is connected.
struct Agent {
    stream: UnixStream,
    decoder: Decoder,
    side: u8,
}

impl Agent {
    /// Does as the agent says. `Some` is the time it gives to end; `None` that it has gone.
    async fn converse(
        &mut self,
        server: &mut Server,
        nudged: &mut mpsc::Receiver<(TenantId, NudgeReason)>,
    ) -> Result<Option<Duration>, ControlError> {
        loop {
            tokio::select! {
                message = receive::<ToProxy>(&self.stream, &mut self.decoder) => match message? {
                    None => return Ok(None),
                    Some(ToProxy::Shutdown { grace_ms }) => return Ok(Some(Duration::from_millis(grace_ms))),
                    Some(ToProxy::Settings { settings, listeners, serial }) => {
                        let answer = self.apply(server, &settings, listeners, serial)?;
                        send(&self.stream, &answer, &[]).await?;
                    }
                },
                Some((id, reason)) = nudged.recv() => send(&self.stream, &ToAgent::Nudge { id, reason }, &[]).await?,
            }
        }
    }

    /// Swaps new settings in whole, or says why not and leaves all as it was.
    fn apply(&mut self, server: &mut Server, settings: &Settings, listeners: usize, serial: u64) -> Result<ToAgent, ControlError> {
        let received = match take(settings, listeners, &mut self.decoder)? {
            Ok(received) => received,
            Err(why) => {
                tracing::warn!(%why, "new settings are refused; the last good ones go on");
                return Ok(ToAgent::Refused { serial, why: why.to_string() });
            }
        };
        if let Err(why) = server.listen(received.listeners) {
            return Ok(ToAgent::Refused { serial, why: format!("cannot listen: {why}") });
        }
        self.side = settings.side;
        let shared = server.shared();
        shared.live.set(received.live);
        shared.tenants.forget_keys();
        tracing::info!(serial, "new settings are in force");
        Ok(ToAgent::Applied { serial })
    }
}
