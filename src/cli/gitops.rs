//! `sq-agent gitops status | sync | suspend | resume`: the repository that tenants.toml comes from.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;

use crate::{
    admin::{
        client,
        status::{GitOpsStatus, Status, SyncBegun},
    },
    desired::Desired,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent gitops sync      # look at the repository now, and say what came of it\n  sq-agent gitops suspend   # before an edit by hand; `resume` after it\n\nExit: 0 the head of the branch is in force, 2 it is not, 1 error."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show which commit is in force, and what is wrong
    Status,
    /// Look at the repository now, and wait for what comes of it
    Sync {
        /// Follow a branch that was rewritten, this once
        #[arg(long)]
        accept_rewrite: bool,
    },
    /// Look at the repository no more
    Suspend,
    /// Follow it again
    Resume,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let status = match &args.command {
        Command::Status => status(desired)?,
        Command::Sync { accept_rewrite } => {
            let question = if *accept_rewrite { "/gitops/sync/accept-rewrite" } else { "/gitops/sync" };
            let SyncBegun { number, .. } = serde_json::from_slice(&client::ask(&desired.state_dir, "POST", question)?)?;
            wait_for(number, desired)?
        }
        Command::Suspend | Command::Resume => {
            let word = if matches!(args.command, Command::Suspend) { "suspend" } else { "resume" };
            let answer = client::ask(&desired.state_dir, "POST", &format!("/gitops/{word}"))?;
            return super::restart::print_detail(&answer, args.json);
        }
    };
    if args.json {
        anstream::println!("{}", serde_json::to_string(&status)?);
    } else {
        print(&status);
    }
    Ok(ExitCode::from(if status.refused.is_none() && status.last_error.is_none() && status.applied.is_some() { 0 } else { 2 }))
}

fn status(desired: &Desired) -> anyhow::Result<GitOpsStatus> {
    let status: Status = serde_json::from_slice(&client::ask(&desired.state_dir, "GET", "/status")?)?;
    status.gitops.context("tenants.toml has no [gitops]: write `url` under it")
}

/// Waits until the look of this number has ended; a fetch has a deadline of its own.
fn wait_for(number: u64, desired: &Desired) -> anyhow::Result<GitOpsStatus> {
    loop {
        let status = status(desired)?;
        anyhow::ensure!(
            status.finished >= number || status.running == Some(number) || status.asked == Some(number),
            "the agent was replaced meanwhile: run this again"
        );
        if status.finished >= number {
            return Ok(status);
        }
        pause(Duration::from_millis(20));
    }
}

/// A command has no runtime in which it could do something else meanwhile.
#[allow(clippy::disallowed_methods)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn print(status: &GitOpsStatus) {
    lines(status).iter().for_each(|line| anstream::println!("{line}"));
}

/// How it stands, for people.
pub(super) fn lines(status: &GitOpsStatus) -> Vec<String> {
    let suspended = if status.suspended { ", SUSPENDED: `sq-agent gitops resume` follows it again" } else { "" };
    let mut lines = vec![format!("repository: {} of {} ({}){suspended}", status.path, status.url, status.branch)];
    lines.push(match (&status.applied, &status.applied_at) {
        (Some(commit), Some(at)) => format!("  in force: {} by {}, since {at}: {}", commit.short(), commit.author, commit.subject),
        _ => "  in force: no commit yet".to_owned(),
    });
    if status.webhook {
        lines.push(format!("  last webhook: {}", status.last_webhook.as_deref().unwrap_or("none so far")));
    }
    if let (Some(commit), Some(why)) = (&status.refused, &status.refused_because) {
        lines.push(format!("  refused: {} by {} ({}): {why}", commit.short(), commit.author, commit.subject));
    }
    if let (Some(since), Some(why)) = (&status.failing_since, &status.last_error) {
        lines.push(format!("  failing since {since}: {why}"));
    }
    lines
}
