//! `sq-agent run`: sets up, prints what is served and how to try it, and goes on until it is told to stop.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Once},
    time::Duration,
};

use rustix::process::Pid;
use tokio::sync::{mpsc, oneshot};

use super::welcome;
use crate::{
    admin::{
        question::{Asked, Question},
        status::Status,
    },
    daemon::{self, Loaded, Options, Start},
    desired::{Desired, GitOps},
    gitops,
    handover::Heir,
    store::unix_now,
    telemetry,
};

#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent run --tenants /etc/sq-agent/tenants.toml\n\nCtrl-C drains and stops everything it started; a second one ends at once."
)]
pub(super) struct Args {
    #[command(flatten)]
    git: Git,
    /// Print neither what is served nor how to try it
    #[arg(long)]
    quiet: bool,
    /// Take over from the agent at the other end of standard input; given by an upgrade
    #[arg(long, hide = true)]
    take_over: bool,
    /// That agent is this process's child
    #[arg(long, hide = true, requires = "take_over", value_parser = clap::value_parser!(i32).range(1..))]
    child: Option<i32>,
}

/// Where the first tenants.toml comes from, on a host that has none; from then on its own [gitops] says it.
#[derive(Debug, Default, clap::Args)]
struct Git {
    /// Where there is no tenants.toml yet: take it from this git repository. It must have a [gitops] of its own
    #[arg(long, value_name = "URL")]
    git_url: Option<String>,
    /// The branch
    #[arg(long, value_name = "NAME", default_value = GitOps::BRANCH, requires = "git_url")]
    git_branch: String,
    /// The file's path in the repository
    #[arg(long, value_name = "PATH", default_value = GitOps::PATH, requires = "git_url")]
    git_path: String,
    /// Private key for ssh
    #[arg(long, value_name = "FILE", requires = "git_url")]
    git_ssh_key: Option<PathBuf>,
    /// Access token for https
    #[arg(long, value_name = "FILE", requires = "git_url")]
    git_token_file: Option<PathBuf>,
    /// Take only a commit that a key in this allowed_signers file, or GnuPG home, signed
    #[arg(long, value_name = "FILE", requires = "git_url")]
    git_verify: Option<PathBuf>,
}

impl Git {
    /// What tenants.toml would say of it.
    fn source(&self) -> Option<GitOps> {
        Some(GitOps {
            url: self.git_url.clone()?,
            branch: self.git_branch.clone(),
            path: self.git_path.clone(),
            interval: GitOps::INTERVAL,
            ssh_key_file: self.git_ssh_key.clone(),
            known_hosts_file: None,
            token_file: self.git_token_file.clone(),
            verify: self.git_verify.clone(),
            webhook_secret_file: None,
            signing_key_file: None,
            git: GitOps::GIT.into(),
        })
    }
}

impl Args {
    /// tenants.toml; one that is to come from a repository need not be there yet.
    pub(super) fn file(&self, given: Option<PathBuf>, find: impl FnOnce() -> anyhow::Result<PathBuf>) -> anyhow::Result<PathBuf> {
        match (find(), &self.git.git_url) {
            (Err(_), Some(_)) => Ok(given.unwrap_or_else(|| super::PLACES[0].into())),
            (found, _) => found,
        }
    }
}

pub(super) fn run(args: &Args, file: &Path) -> anyhow::Result<ExitCode> {
    telemetry::init();
    if let Some(source) = args.git.source().filter(|_| !file.exists()) {
        let commit = gitops::first(&source, file).map_err(|why| anyhow::anyhow!("{}: {why}", source.url))?;
        tracing::info!(commit = commit.short(), author = commit.author, subject = commit.subject, "tenants.toml comes from the repository");
    }
    let loaded = match Loaded::from(file) {
        Ok(loaded) => loaded,
        Err(rejected) => {
            anstream::eprintln!("{}", rejected.render(super::colour_on_stderr()));
            return Ok(ExitCode::FAILURE);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let start = match args.take_over {
            true => Start::TakeOver { heir: Heir::from_stdin()?, child: args.child.and_then(Pid::from_raw) },
            false => Start::Fresh,
        };
        let (quiet, once) = (args.quiet, Once::new());
        let serving = Box::new(move |desired: &Arc<Desired>, questions| {
            once.call_once(|| {
                if !quiet {
                    tokio::spawn(welcome_when_ready(questions, desired.clone()));
                }
            });
        });
        daemon::run(Options { file: file.to_owned(), start, serving }, loaded).await
    })
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
