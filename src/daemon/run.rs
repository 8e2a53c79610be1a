//! The life of the process: its terms, and what happens between them.

use std::{
    net::TcpListener,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use http::StatusCode;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::mpsc;

use super::{
    check::check,
    signals::{self, Asked},
    systemd,
    term::{End, Reply, Term, TermParts},
};
use crate::{
    admin::{question::Asked as Question, status::Failure},
    desired::{self, Desired, Rejected},
    handover::{Handed, Heir, Holder, hear_again},
    store::{AgentLock, LockError, Store},
};

/// How the process comes to its host.
pub enum Start {
    /// It takes the state directory, which is free.
    Fresh,
    /// Another agent hands it over.
    TakeOver {
        /// The conversation with it.
        heir: Heir,
        /// It is this process's child, since this process was that agent before it executed the new program.
        child: Option<Pid>,
    },
}

/// The conversation with the agent before, and that one where it is this process's child.
type Inheritance = (Heir, Option<Pid>);

/// Told when a term serves, with where to ask its loop.
pub type Serving = Box<dyn Fn(&Arc<Desired>, mpsc::Sender<Question>) + Send + Sync>;

/// What [`run`] needs.
pub struct Options {
    /// tenants.toml.
    pub file: PathBuf,
    /// How it begins.
    pub start: Start,
    /// Told when a term serves.
    pub serving: Serving,
}

/// The state to bring about: the file's, or its last good copy where the file is refused.
pub struct Loaded {
    /// The state.
    pub desired: Arc<Desired>,
    /// The text that says so.
    pub text: String,
    /// Why the file itself is not in force.
    pub rejected: Option<Rejected>,
}

impl Loaded {
    /// Reads `file`.
    ///
    /// # Errors
    /// The file is refused, and there is no last good copy.
    pub fn from(file: &Path) -> Result<Self, Rejected> {
        match desired::load_with_text(file) {
            Ok((desired, text)) => Ok(Self { desired: Arc::new(desired), text, rejected: None }),
            Err(rejected) => match desired::load_last_good(file) {
                Ok(Some((desired, text))) => {
                    tracing::error!(error = %rejected.summary(), "tenants.toml is refused; starting from its last good copy");
                    Ok(Self { desired: Arc::new(desired), text, rejected: Some(rejected) })
                }
                _ => Err(rejected),
            },
        }
    }
}

/// Serves until it is told to stop, or until another agent has taken over. Inside a tokio runtime.
///
/// # Errors
/// What keeps the agent from serving, for a person.
pub async fn run(options: Options, loaded: Loaded) -> anyhow::Result<ExitCode> {
    let Options { file, start, serving } = options;
    let mut signals = signals::listen().context("listening for signals")?;
    hear_again();
    match start {
        Start::Fresh => {
            let lock = lock(&loaded.desired.state_dir).await?;
            serve(&file, loaded, lock, None, None, &serving, &mut signals).await
        }
        Start::TakeOver { heir, child } => match (take_over(&file, loaded, (heir, child), &serving, &mut signals).await, child) {
            (Err(error), Some(child)) if is_child(child) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    pid = child.as_raw_pid(),
                    "the agent stays a process of its own; this one waits for it"
                );
                wait_for(child, &mut signals).await
            }
            (outcome, _) => outcome,
        },
    }
}

/// Whether the agent before still is this process's child: it has not handed over and ended.
fn is_child(child: Pid) -> bool {
    waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok()
}

async fn take_over(
    file: &Path,
    loaded: Loaded,
    (mut heir, child): Inheritance,
    serving: &Serving,
    signals: &mut mpsc::Receiver<Asked>,
) -> anyhow::Result<ExitCode> {
    if let Err(error) = check(&loaded.desired) {
        heir.failed(&format!("{error:#}")).await;
        return Err(error);
    }
    let Handed { lock, admin_listener } = heir.inherit().await?;
    reap_ended_children();
    match AgentLock::inherit(lock, &loaded.desired.state_dir) {
        Ok(lock) => serve(file, loaded, lock, admin_listener, Some((heir, child)), serving, signals).await,
        Err(error) => {
            heir.failed(&error.to_string()).await;
            Err(error.into())
        }
    }
}

/// One term after another: more than one only where a new program did not take over.
async fn serve(
    file: &Path,
    mut loaded: Loaded,
    lock: AgentLock,
    mut admin_listener: Option<TcpListener>,
    mut inheritance: Option<Inheritance>,
    serving: &Serving,
    signals: &mut mpsc::Receiver<Asked>,
) -> anyhow::Result<ExitCode> {
    let watched = inheritance.as_ref().filter(|(_, child)| child.is_none()).and_then(|(heir, _)| heir.holder());
    // Those of a process that inherits are the proxy's, which lives.
    let mut kept = if inheritance.is_none() { systemd::stored() } else { Vec::new() };
    loop {
        let desired = loaded.desired.clone();
        // Where a process inherits from its child, that one is of the same program, and so is its proxy.
        let replace_proxy = inheritance.as_ref().is_some_and(|(_, child)| child.is_none());
        let parts = TermParts {
            file: file.to_owned(),
            loaded,
            replace_proxy,
            kept_listeners: std::mem::take(&mut kept),
            admin_listener: admin_listener.take(),
        };
        let term = match (Term::begin(parts).await, inheritance.take()) {
            (Ok(term), None) => term,
            (Ok(term), Some(inheritance)) => settle(term, inheritance).await?,
            (Err(error), inheritance) => {
                if let Some((heir, _)) = inheritance {
                    heir.failed(&format!("{error:#}")).await;
                }
                return Err(error);
            }
        };
        systemd::ready(&format!("serving {} tenants", desired.tenants.len()));
        serving(&desired, term.questions());
        match term.attend(signals, watched).await? {
            End::Stopped => return Ok(ExitCode::SUCCESS),
            End::Left => {
                lock.let_go();
                return Ok(ExitCode::SUCCESS);
            }
            End::HandOver { exe, mut holder, reply, admin_listener: left } => {
                match give(&mut holder, &lock, left.as_ref(), &desired.state_dir).await {
                    Ok(()) => {
                        lock.let_go();
                        return follow(exe, holder, reply, file, signals).await;
                    }
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), "the new program did not take over; this one goes on");
                        admin_listener = left;
                        if let Some(reply) = reply {
                            let detail = format!("the new program did not take over, and the old one goes on: {error:#}");
                            reply.give(Err((StatusCode::CONFLICT, detail))).await;
                        }
                    }
                }
            }
        }
        loaded = Loaded::from(file).map_err(|rejected| anyhow::anyhow!("{}", rejected.summary()))?;
    }
}

/// Sees a term that was taken over through to where the agent before may let go.
async fn settle(mut term: Term, (heir, child): Inheritance) -> anyhow::Result<Term> {
    match term.settled().await {
        Ok(()) => {
            match (heir.done().await, child) {
                (Ok(holder), None) => term.succeeded_by(holder),
                (Err(error), None) => tracing::warn!(%error, "the agent before is gone: this process stays the agent"),
                (_, Some(child)) => drop(tokio::task::spawn_blocking(move || waitid(WaitId::Pid(child), WaitIdOptions::EXITED))),
            }
            Ok(term)
        }
        Err(why) => {
            term.leave().await;
            heir.failed(&why).await;
            anyhow::bail!(why)
        }
    }
}

/// Hands the host to the heir. Where that fails, instances.db is as this program can read it.
async fn give(holder: &mut Holder, lock: &AgentLock, admin_listener: Option<&TcpListener>, state_dir: &Path) -> anyhow::Result<()> {
    let kept = Store::keep_copy(state_dir).context("keeping a copy of instances.db")?;
    let handed = lock.hand_on().context("handing on the lock")?;
    let given = holder.give(handed.as_fd(), admin_listener.map(TcpListener::as_fd)).await;
    match &given {
        Ok(()) => drop(std::fs::remove_file(&kept)),
        Err(_) => Store::go_back_to(&kept, state_dir).context("putting instances.db back")?,
    }
    Ok(given?)
}

/// The heir has the host. Where it is this process's child, this process becomes the new program and inherits in turn; else it ends.
async fn follow(
    exe: Option<PathBuf>,
    holder: Holder,
    reply: Option<Reply>,
    file: &Path,
    signals: &mut mpsc::Receiver<Asked>,
) -> anyhow::Result<ExitCode> {
    let (Some(exe), Some(child)) = (exe, holder.child()) else { return Ok(ExitCode::SUCCESS) };
    if let Some(reply) = reply {
        let detail = format!("{} has taken over", exe.display());
        let answer = serde_json::to_vec(&Failure { detail }).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()));
        reply.give(answer).await;
    }
    // Who asked this process for something means the agent, which is the child now.
    let mut ends = false;
    while let Ok(asked) = signals.try_recv() {
        ends |= asked != Asked::Reload;
        pass_on(asked, child);
    }
    if !ends {
        let error = holder.become_heir(&exe, file, child);
        tracing::warn!(%error, pid = child.as_raw_pid(), "the new program stays a process of its own; this one waits for it");
    }
    wait_for(child, signals).await
}

/// Waits for the agent that is this process's child, passes on what is asked of it, and ends as it does: whoever supervises this
/// process sees the agent through it.
async fn wait_for(child: Pid, signals: &mut mpsc::Receiver<Asked>) -> anyhow::Result<ExitCode> {
    const PROOF_OF_LIFE: Duration = Duration::from_secs(5);
    let mut alive = tokio::time::interval(PROOF_OF_LIFE);
    let mut ended = tokio::task::spawn_blocking(move || waitid(WaitId::Pid(child), WaitIdOptions::EXITED));
    loop {
        tokio::select! {
            ended = &mut ended => {
                let status = ended.context("waiting for the agent")?.context("waiting for the agent")?;
                let code = status.and_then(|status| status.exit_status()).and_then(|code| u8::try_from(code).ok());
                return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
            }
            Some(asked) = signals.recv() => pass_on(asked, child),
            _ = alive.tick() => systemd::alive(),
        }
    }
}

fn pass_on(asked: Asked, child: Pid) {
    let signal = match asked {
        Asked::Reload => Signal::HUP,
        Asked::Stop => Signal::INT,
        Asked::Terminate => Signal::TERM,
    };
    // It is not reaped yet, so its number is its own; where it has ended, that is what the caller waits for.
    let _ = kill_process(child, signal);
}

/// A process that executed the new program has the children of the old one. Those that ended meanwhile are reaped here, before any
/// is adopted; that they are gone is found as after any crash.
fn reap_ended_children() {
    while matches!(waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(Some(_))) {}
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
