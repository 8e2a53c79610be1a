//! `sq-agent run`: sets up, prints what is served and how to try it, and goes on until it is told to stop.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};

use super::welcome;
use crate::{
    admin::{
        self,
        server::{Asked, Question},
        status::Status,
    },
    desired::{self, Desired, Rejected, Watch},
    instance::{binary, limits},
    proxy::{
        credentials,
        supervisor::{Supervisor, SupervisorConfig, SupervisorHandle},
    },
    reconcile::{
        agent::{Agent, Inputs, Signal},
        setup::Parts,
    },
    route::{Activity, TableWriter},
    store::{AgentLock, LockError, Store, unix_now},
    telemetry,
};

#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent run --tenants /etc/sq-agent/tenants.toml\n\nCtrl-C drains and stops everything it started; a second one ends at once."
)]
pub(super) struct Args {
    /// Print neither what is served nor how to try it
    #[arg(long)]
    quiet: bool,
}

/// How long the proxy may finish what is in flight when the agent stops.
const PROXY_GRACE: Duration = Duration::from_secs(10);
/// tmpfs for the shared pages.
const SHARED_MEMORY: &str = "/dev/shm";

pub(super) fn run(args: &Args, file: &Path) -> anyhow::Result<ExitCode> {
    telemetry::init();
    let (desired, text, rejected) = match desired::load_with_text(file) {
        Ok((desired, text)) => (desired, text, None),
        Err(rejected) => match desired::load_last_good(file) {
            Ok(Some((desired, text))) => (desired, text, Some(rejected)),
            _ => {
                anstream::eprintln!("{}", rejected.render(super::colour_on_stderr()));
                return Ok(ExitCode::FAILURE);
            }
        },
    };
    if let Some(rejected) = &rejected {
        tracing::error!(error = %rejected.summary(), "tenants.toml is refused; starting from its last good copy");
    }
    limits::prepare_agent_limits()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args, file, Arc::new(desired), &text, rejected))
}

async fn serve(args: &Args, file: &Path, desired: Arc<Desired>, text: &str, rejected: Option<Rejected>) -> anyhow::Result<ExitCode> {
    let lock = lock(&desired.state_dir).await?;
    let signals = signals()?;
    let opened = Store::open(&desired.state_dir)?;
    if let Some(moved) = &opened.corrupt_moved_to {
        tracing::error!(kept = %moved.display(), "instances.db was corrupt: it was moved aside and is rebuilt from what runs");
    }
    let (settings_sender, settings) = watch::channel(Arc::new(credentials::settings(&desired)?));
    let pages = ["routes", "activity"].map(|kind| PathBuf::from(SHARED_MEMORY).join(format!("sq-agent-{}-{kind}", desired.name)));
    let table = TableWriter::open(&pages[0])?;
    let activity = Arc::new(Activity::open(&pages[1])?);
    let routes = table.share()?;
    let (mut agent, events) = Agent::new(Parts {
        file: file.to_owned(),
        desired: desired.clone(),
        rejected,
        store: opened.store,
        table,
        activity: activity.clone(),
        instance_secret: credentials::instance_secret(&desired.state_dir)?,
        program: None,
        settings: settings_sender,
    })?;
    // Where an earlier agent's instances run, they and their routes come first; else nothing can be served without sq,
    // and whoever started this wants to know now.
    if agent.found_instances() {
        agent.find_program();
    } else {
        agent.set_program(binary::ensure(&desired.sq, &desired.state_dir, &|line| tracing::info!("{line}")).await?);
    }
    agent.save_last_good(text);
    let (proxy_events, proxy) = mpsc::channel(64);
    let supervisor = Supervisor::start(SupervisorConfig {
        state_dir: desired.state_dir.clone(),
        exe: std::env::current_exe().context("finding this program, to start the proxy")?,
        listen: desired.proxy.listen.clone(),
        routes,
        activity,
        settings,
        events: proxy_events,
        replace: false,
        network: None,
    })
    .await?;
    agent.listens_on(supervisor.addresses());
    let (changes, changed) = mpsc::channel(1);
    let _watch = Watch::start(file, changes)
        .inspect_err(|error| tracing::warn!(%error, "tenants.toml is not watched; it is still read every 5 s"))
        .ok();
    let (questions, asked) = mpsc::channel(16);
    let listener = admin::server::bind(&admin::socket(&desired.state_dir)).context("binding the agent's socket")?;
    tokio::spawn(admin::server::serve(listener, questions.clone()));
    let (to_loop, loop_signals) = mpsc::channel(4);
    let inputs = Inputs { events, changed, proxy, questions: asked, signals: loop_signals };
    let running = tokio::spawn(agent.run(inputs));
    if !args.quiet {
        tokio::spawn(welcome_when_ready(questions, desired.clone()));
    }
    relay(signals, to_loop, supervisor, running).await?;
    // Nothing runs any more: the pages are memory that nobody would free before the next boot.
    for page in pages {
        let _ = std::fs::remove_file(page);
    }
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

/// The state directory for this agent alone. A killed agent with thousands of instances takes a moment to let go of it.
async fn lock(state_dir: &Path) -> Result<AgentLock, LockError> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const POLL: Duration = Duration::from_millis(50);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match AgentLock::take(state_dir) {
            Err(LockError::Held { .. }) if tokio::time::Instant::now() < deadline => tokio::time::sleep(POLL).await,
            taken => return taken,
        }
    }
}

/// The signals that are meant for us, one by one.
fn signals() -> anyhow::Result<mpsc::Receiver<i32>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]).context("listening for signals")?;
    let (sender, receiver) = mpsc::channel(4);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.blocking_send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Passes signals on until the loop has ended: the proxy first takes no more and finishes what is in flight, then the
/// instances are stopped.
async fn relay(
    mut signals: mpsc::Receiver<i32>,
    to_loop: mpsc::Sender<Signal>,
    supervisor: SupervisorHandle,
    mut running: tokio::task::JoinHandle<Agent>,
) -> anyhow::Result<()> {
    let mut stopping = None;
    let mut supervisor = Some(supervisor);
    loop {
        tokio::select! {
            ended = &mut running => return ended.map(drop).context("the loop ended before its time"),
            Some(signal) = signals.recv() => match (signal, supervisor.take()) {
                (signal_hook::consts::SIGHUP, kept) => {
                    supervisor = kept;
                    let _ = to_loop.send(Signal::Reload).await;
                }
                (_, Some(supervisor)) => {
                    tracing::info!("stopping: the proxy finishes what is in flight; a second signal skips that");
                    stopping = Some(tokio::spawn(supervisor.shutdown(PROXY_GRACE)));
                }
                (_, None) => {
                    stopping = None;
                    let _ = to_loop.send(Signal::Stop).await;
                }
            },
            Some(_) = async { Some(stopping.as_mut()?.await) } => {
                stopping = None;
                let _ = to_loop.send(Signal::Stop).await;
            }
        }
    }
}

/// Prints what is served once every tenant has come up or has had the time to.
async fn welcome_when_ready(questions: mpsc::Sender<Asked>, desired: Arc<Desired>) {
    const PATIENCE: Duration = Duration::from_secs(30);
    const POLL: Duration = Duration::from_millis(50);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (sender, receiver) = oneshot::channel();
        let asked = questions.send((Question::Status, sender)).await;
        let answer = match (asked, receiver.await) {
            (Ok(()), Ok(Ok(answer))) => answer,
            _ => return,
        };
        let Ok(status) = serde_json::from_slice::<Status>(&answer) else { return };
        let settled = status.proxy.pid.is_some() && status.tenants.len() >= desired.tenants.len();
        let settled = settled && status.tenants.iter().all(|tenant| tenant.state != "starting");
        if settled || tokio::time::Instant::now() >= deadline {
            return welcome::print(&desired, &status, unix_now());
        }
        tokio::time::sleep(POLL).await;
    }
}
