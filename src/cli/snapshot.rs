//! `sq-agent snapshot ID`.

use std::{os::unix::fs::MetadataExt as _, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;

use crate::{
    admin::{
        client::{self, AskError},
        status::SnapshotAnswer,
    },
    desired::{Desired, TenantId},
    snapshot::{self, Reason, SnapshotOrder},
    store::{AgentLock, unix_now},
};

/// A tenant of some gigabytes takes some seconds to copy, and to pack.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent snapshot user1@example.com       # while it is served; where nothing has changed since the last one, none is taken"
)]
pub(super) struct Args {
    /// The tenant
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let id = tenant(&args.id)?;
    let answer = match client::ask_with(&desired.state_dir, "POST", &format!("/snapshot/{id}"), &[], PATIENCE) {
        Err(AskError::NotRunning(state_dir)) => {
            let _lock = alone(&state_dir)?;
            let user_dir = desired.user_dir(&id);
            let order = SnapshotOrder { user_dir, reason: Reason::Asked, keep: desired.snapshots.clone(), now: unix_now() };
            SnapshotAnswer::of(&id, &snapshot::take(&order).with_context(|| id.to_string())?)
        }
        answer => serde_json::from_slice(&answer?)?,
    };
    show(&answer, &answer.detail, args.json)
}

/// An answer for a person, or for a program.
pub(super) fn show(answer: &impl serde::Serialize, detail: &str, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        anstream::println!("{}", serde_json::to_string(answer)?);
    } else {
        anstream::println!("{detail}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn tenant(id: &str) -> anyhow::Result<TenantId> {
    TenantId::parse(id).map_err(|error| anyhow::anyhow!("{id:?}: {error}"))
}

/// The right to act where no agent runs: what is written then is the agent's all the same.
pub(super) fn alone(state_dir: &Path) -> anyhow::Result<AgentLock> {
    let owner = std::fs::metadata(state_dir).with_context(|| format!("looking at {}", state_dir.display()))?.uid();
    let user = rustix::process::geteuid().as_raw();
    anyhow::ensure!(
        owner == user,
        "no agent runs on {}, and it belongs to user {owner}: run this as that user, or start the agent",
        state_dir.display()
    );
    Ok(AgentLock::take(state_dir)?)
}
