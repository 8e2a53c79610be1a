//! The life of the process: its terms, and what happens between them.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{sync::mpsc, time::timeout};

use super::{
    check::check,
    signals::{self, Asked},
    systemd,
    term::{End, Term, TermParts},
};
use crate::{
    admin::status::Failure,
    desired::{self, Desired, Rejected},
    handover::{Heir, Holder},
    store::{AgentLock, LockError, Store},
};

/// How the process comes to its host.
pub enum Start {
    /// It takes the state directory, which is free.
    Fresh,
    /// Another agent hands it over.
    TakeOver(Heir),
}

/// What [`run`] needs.
pub struct Options {
    /// tenants.toml.
    pub file: PathBuf,
    /// How it begins.
    pub start: Start,
    /// Told once when the first term serves.
    pub serving: Box<dyn Fn(&Arc<Desired>, &Term) + Send>,
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
pub async fn run(options: Options, mut loaded: Loaded) -> anyhow::Result<ExitCode> {
    let Options { file, start, serving } = options;
    let mut signals = signals::listen().context("listening for signals")?;
    let (lock, mut heir) = match start {
        Start::Fresh => (lock(&loaded.desired.state_dir).await?, None),
        Start::TakeOver(heir) => {
            let (lock, heir) = inherit(heir, &loaded.desired).await?;
            (lock, Some(heir))
        }
    };
    loop {
        let desired = loaded.desired.clone();
        let begun = Term::begin(TermParts { file: file.clone(), loaded, replace_proxy: heir.is_some() }).await;
        let mut term = match (begun, heir.take()) {
            (Ok(term), None) => term,
            (Ok(mut term), Some(heir)) => match term.settled().await {
                Ok(()) => {
                    term.successor = heir.done().await.inspect_err(|error| tracing::warn!(%error, "the agent before is gone already")).ok();
                    term
                }
                Err(why) => {
                    term.leave().await;
                    heir.failed(&why).await;
                    anyhow::bail!(why);
                }
            },
            (Err(error), heir) => {
                if let Some(heir) = heir {
                    heir.failed(&format!("{error:#}")).await;
                }
                return Err(error);
            }
        };
        systemd::ready(&format!("serving {} tenants", desired.tenants.len()));
        serving(&desired, &term);
        match term.attend(&mut signals).await? {
            End::Stopped => {
                drop(lock);
                return Ok(ExitCode::SUCCESS);
            }
            End::Left => {
                lock.let_go();
                return Ok(ExitCode::SUCCESS);
            }
            End::HandOver { exe, mut holder, answer } => match give(&mut holder, &lock, &desired.state_dir).await {
                Ok(()) => return follow(exe, holder, answer, &file, lock, &mut signals).await,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the new program did not take over; this one goes on");
                    if let Some(answer) = answer {
                        answer.give(Err(format!("the new program did not take over, and the old one goes on: {error:#}"))).await;
                    }
                }
            },
        }
        loaded = Loaded::from(&file).map_err(|rejected| anyhow::anyhow!("{}", rejected.summary()))?;
    }
}

/// Takes the host over from the agent that `heir` speaks with.
async fn inherit(mut heir: Heir, desired: &Desired) -> anyhow::Result<(AgentLock, Heir)> {
    if let Err(error) = check(desired) {
        heir.failed(&format!("{error:#}")).await;
        return Err(error);
    }
    let handed = heir.inherit().await?;
    // A process that was executed in place of an agent has that one's children. Those that ended meanwhile are reaped here; their
    // end is found as that of any instance that is not there any more.
    crate::sys::reap_ended_children();
    match AgentLock::inherit(handed, &desired.state_dir) {
        Ok(lock) => Ok((lock, heir)),
        Err(error) => {
            heir.failed(&error.to_string()).await;
            Err(error.into())
        }
    }
}

/// Hands the host to the heir. Where that fails, instances.db is as this program can read it.
async fn give(holder: &mut Holder, lock: &AgentLock, state_dir: &Path) -> anyhow::Result<()> {
    let kept = Store::keep_copy(state_dir).context("keeping a copy of instances.db")?;
    let handed = lock.hand_on().context("handing on the lock")?;
    let given = holder.give(handed.as_fd()).await;
    match &given {
        Ok(()) => drop(std::fs::remove_file(&kept)),
        Err(_) => Store::go_back_to(&kept, state_dir).context("putting instances.db back")?,
    }
    Ok(given?)
}

/// The heir has the host: this process ends, or becomes the new program where it was the old one.
async fn follow(
    exe: Option<PathBuf>,
    holder: Holder,
    answer: Option<Answer>,
    file: &Path,
    lock: AgentLock,
    signals: &mut mpsc::Receiver<Asked>,
) -> anyhow::Result<ExitCode> {
    lock.let_go();
    let Some(exe) = exe else { return Ok(ExitCode::SUCCESS) };
    if let Some(answer) = answer {
        let detail = format!("{} has taken over", exe.display());
        answer.give(serde_json::to_vec(&Failure { detail }).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))).await;
    }
    if let Ok(asked) = signals.try_recv() {
        // Who asked this process to end means the agent, which is the heir now.
        return pass_on(asked, holder).await;
    }
    let error = holder.become_heir(&exe, file);
    tracing::warn!(%error, "the new program goes on as a process of its own");
    Ok(ExitCode::SUCCESS)
}
