//! The proxy process from its first line to its last: hear from the agent, give up every right, serve, and go on when the agent is gone.

use std::{
    io,
    num::NonZero,
    os::{fd::AsFd, unix::net::UnixListener},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::Duration,
};

use tokio::{
    runtime,
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    access_log::{AccessLog, Stdout},
    build, clock,
    control::{Hello, PROTOCOL, ToAgent, ToProxy},
    conversation::{Conversation, News},
    first_words::{self, First, Received, take},
    guardian::Guardian,
    live::Current,
    measure, network,
    park::Parking,
    request_id::RequestIds,
    sandbox::{self, SandboxError},
    serve::{Phase, Server},
    service::Shared,
    settings::Settings,
    tenant::Tenants,
    unknown_kid::UnknownKids,
    webhook::Webhooks,
};
use crate::framed::WireError;
use crate::telemetry;

/// Nudges that may wait for the agent; more are dropped.
const NUDGES: usize = 1_024;

/// After so many turns each thread looks at the network, however much there is to do: with turns of up to 100 µs (see `answer`), every few
/// milliseconds is too rarely for who asks for little.
const TURNS: u32 = 16;

/// In place of a grace that no clock can add.
const FAR: Duration = Duration::from_secs(86_400 * 365);

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

pub(super) fn doing(doing: &'static str) -> impl Fn(io::Error) -> ProxyError {
    move |source| ProxyError::Io { doing, source }
}

/// Runs the proxy. Standard input is the listening control socket; standard output takes the access log, standard error the rest.
///
/// # Errors
/// See [`ProxyError`]. Once it serves, it ends only when the agent says so.
pub fn run() -> Result<(), ProxyError> {
    // Ctrl-C is for the agent; and where no cgroup is, the scheduler gives a session its share beside those of the instances (sched(7), autogroup).
    let _ = rustix::process::setsid();
    telemetry::init();
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(doing("take the control socket"))?;
    let control = UnixListener::from(socket);
    control.local_addr().map_err(ProxyError::NotStartedByAgent)?;
    let descriptors = sandbox::raise_descriptor_limit()?;
    // Asked before the sandbox: the answer stands in files (cgroup quota).
    let threads = thread::available_parallelism().map_or(2, NonZero::get);
    let mut hello = newborn();
    let first = first_words::hear(&control, &hello)?;
    hello.side = Some(first.side);
    hello.network = network::own_inode();
    let landlock = sandbox::enter(first.run_as, first.in_user_namespace)?;
    tracing::info!(pid = hello.pid, uid = rustix::process::geteuid().as_raw(), threads, descriptors, landlock, "the proxy serves");
    let (log, log_thread) = AccessLog::start(Stdout).map_err(doing("start the access log"))?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .event_interval(TURNS)
        .thread_name("proxy")
        .enable_all()
        .build()
        .map_err(doing("start its threads"))?;
    runtime.block_on(serve(control, first, hello, descriptors, log))?;
    // Dropping the runtime drops the last handles of the log; then all lines are written.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let _ = log_thread.join();
    tracing::info!("the proxy has ended");
    Ok(())
}

/// Who this process is, before it has heard anything.
fn newborn() -> Hello {
    Hello {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        build: build::of(Path::new(build::OWN)),
        born_ns: clock::monotonic_ns(),
        network: network::own_inode(),
        ..Hello::default()
    }
}

async fn serve(control: UnixListener, first: First, mut hello: Hello, descriptors: u64, log: AccessLog) -> Result<(), ProxyError> {
    let First { stream, decoder, received, guard, serial, owner, .. } = first;
    let (nudges, nudged) = mpsc::channel(NUDGES);
    let (lost, guard_lost) = mpsc::channel(1);
    let (ask_for_keys, unknown_kids) = mpsc::channel(1);
    let pushes = Arc::new(Notify::new());
    let mut prefix = [0; 8];
    getrandom::fill(&mut prefix).map_err(|error| ProxyError::Io { doing: "get random numbers", source: io::Error::other(error) })?;
    let shared = Arc::new(Shared {
        live: Current::new(received.live),
        tenants: Tenants::new(),
        parking: Arc::new(Parking::new()),
        ids: RequestIds::new(u64::from_le_bytes(prefix)),
        log,
        nudges,
        unknown_kids: UnknownKids::new(ask_for_keys),
        webhooks: Webhooks::new(Arc::clone(&pushes)),
        guardian: Guardian::new(guard, lost).map_err(doing("talk to its guard"))?,
        body_memory: Arc::default(),
        connections: AtomicU64::new(0),
        queued: AtomicU64::new(0),
        in_flight: Arc::new(AtomicU64::new(0)),
        cut: Arc::default(),
    });
    let for_ticker = Arc::clone(&shared);
    let ticker = tokio::spawn(Arc::clone(&shared.parking).tick(move || for_ticker.live.get().routes.generation()));
    let counted = Arc::clone(&shared);
    let counting = tokio::spawn(async move { measure::tell(&counted).await });
    let mut server = Server::new(shared, descriptors);
    server.listen(received.listeners).map_err(doing("listen"))?;
    let news = News { nudges: nudged, unknown_kids, lost: guard_lost, pushes };
    let conversation = Conversation::go_on(control, stream, decoder, owner, news);
    let mut conversation = conversation.map_err(doing("set up the control socket"))?;
    // If the agent is gone by now, the next one is told by Hello.
    conversation.say(&ToAgent::Applied { serial }).await;
    let cut = obey(&mut server, &mut conversation, &mut hello).await;
    conversation.say(&ToAgent::Ended { cut }).await;
    ticker.abort();
    counting.abort();
    Ok(())
}

/// Does as the agents say, to the end. Returns how many requests did not finish in time.
async fn obey(server: &mut Server, conversation: &mut Conversation, hello: &mut Hello) -> u64 {
    let mut deadline = None;
    loop {
        let word = tokio::select! {
            cut = server.finish(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return cut,
            word = conversation.next(hello, server.listeners()) => word,
        };
        match word {
            ToProxy::Settings { settings, listeners, plain, serial } => {
                let received = take(&settings, (listeners, plain), conversation.descriptors());
                match received.map(|received| apply(server, hello, &settings, received.map_err(|why| why.to_string()), serial)) {
                    Ok(answer) => conversation.say(&answer).await,
                    Err(error) => conversation.misunderstood(error),
                }
            }
            ToProxy::Shutdown { grace_ms, retire } => {
                // A time beyond what the clock can say is no deadline that anybody lives to see.
                let asked = Instant::now().checked_add(Duration::from_millis(grace_ms));
                let end = asked.unwrap_or_else(|| Instant::now() + FAR);
                deadline = Some(deadline.map_or(end, |before: Instant| before.min(end)));
                server.end(if retire { Phase::Retiring } else { Phase::Draining });
                tracing::info!(grace_ms, retire, "the agent says: end");
                hello.retiring = true;
            }
            ToProxy::Guard => match conversation.descriptors().descriptor() {
                Ok(guard) => match server.shared().guardian.replace(guard) {
                    Ok(()) => tracing::info!("another guard is there: writes go on"),
                    Err(error) => tracing::error!(%error, "the new guard cannot be talked to"),
                },
                Err(error) => conversation.misunderstood(error),
            },
            ToProxy::AccessLog => match conversation.descriptors().descriptor() {
                // At once for all threads: what is being written goes to the one file or to the other, whole.
                Ok(file) => match rustix::stdio::dup2_stdout(&file) {
                    Ok(()) => conversation.say(&ToAgent::AccessLog).await,
                    Err(error) => tracing::error!(%error, "the access log goes on in its old file"),
                },
                Err(error) => conversation.misunderstood(error),
            },
            ToProxy::Join { .. } => conversation.misunderstood(WireError::TooLate),
        }
    }
}

/// Swaps new settings in whole, or says why not and leaves all as it was.
fn apply(server: &mut Server, hello: &mut Hello, settings: &Settings, received: Result<Received, String>, serial: u64) -> ToAgent {
    let received = match received {
        Ok(_) if hello.retiring => Err("it was told to end".to_owned()),
        Ok(Received { live, listeners }) => match server.listen(listeners) {
            Ok(()) => Ok(live),
            Err(why) => Err(format!("cannot listen: {why}")),
        },
        Err(why) => Err(why),
    };
    match received {
        Ok(live) => {
            hello.side = Some(settings.side);
            let shared = server.shared();
            shared.live.set(live);
            shared.tenants.forget_keys();
            tracing::info!(serial, "new settings are in force");
            ToAgent::Applied { serial }
        }
        Err(why) => {
            tracing::warn!(%why, "new settings are refused; the last good ones go on");
            ToAgent::Refused { serial, why }
        }
    }
}
