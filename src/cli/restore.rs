//! `sq-agent restore ID`, and `restore --all`.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{
    restore_all,
    snapshot::{PATIENCE, alone, show, tenant},
};
use crate::{
    admin::{
        client::{self, AskError},
        status::{RestoreAnswer, RestoreRequest},
    },
    desired::Desired,
    instance::scan,
    snapshot::{self, Name, RestoreOrder, phext_file},
    store::unix_now,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent restore user1@example.com                             # as the newest snapshot has it\n  sq-agent restore user1@example.com --at 2026-11-24T18:00:00Z   # as it was then: the newest at or before that\n  sq-agent restore user1@example.com --phext diary               # only that one\n  sq-agent restore user1@example.com --as user2@example.com      # into another tenant\n  sq-agent restore --all                                         # everybody, from the newest backup, onto a machine that has none\n  sq-agent restore --all --at 2h                                 # as it stood two hours ago; also a day or a time\n\nRequests wait meanwhile, for about a second. What is replaced is kept as a snapshot; `--at` with its time undoes the restore."
)]
pub(super) struct Args {
    /// Whose snapshot
    #[arg(required_unless_present = "all")]
    id: Option<String>,
    /// Everybody's texts, from the repository that [backup] names, onto a host that has none
    #[arg(long, conflicts_with_all = ["id", "phext", "other", "json"])]
    all: bool,
    /// With --all: the backup of this host [default: this one, or the only one]
    #[arg(long, requires = "all")]
    host: Option<String>,
    /// A time as `sq-agent snapshots` shows it, or its beginning [default: the newest that no restore made]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Only this phext, named as in ?p=
    #[arg(long, value_name = "NAME")]
    phext: Option<String>,
    /// The tenant whose phexts are replaced [default: the same]
    #[arg(long = "as", value_name = "OTHER-ID")]
    other: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let Some(id) = args.id.as_deref().filter(|_| !args.all) else {
        return restore_all::run(args.host.as_deref(), args.at.as_deref(), desired);
    };
    let from = tenant(id)?;
    let to = args.other.as_deref().map_or_else(|| Ok(from.clone()), tenant)?;
    anyhow::ensure!(desired.tenants.contains_key(&to), "{to} is not in tenants.toml: add it there, or name another one with --as");
    let names: Vec<Name> = snapshot::list(&desired.user_dir(&from))?.into_iter().map(|listed| listed.name).collect();
    let name = snapshot::choose(&names, args.at.as_deref()).with_context(|| from.to_string())?;
    let file = args.phext.as_deref().map(phext_file);
    let wish = RestoreRequest { from, name, file, to };
    let answer = match client::ask_with(&desired.state_dir, "POST", "/restore", &serde_json::to_vec(&wish)?, PATIENCE) {
        Err(AskError::NotRunning(_)) => without_agent(wish, desired)?,
        answer => serde_json::from_slice(&answer?)?,
    };
    show(&answer, &answer.detail, args.json)
}

fn without_agent(wish: RestoreRequest, desired: &Desired) -> anyhow::Result<RestoreAnswer> {
    let _lock = alone(&desired.state_dir)?;
    let RestoreRequest { from, name, file, to } = wish;
    if let Some(lives) = scan::scan(&desired.state_dir)?.into_iter().find(|found| found.id == to) {
        anyhow::bail!("the sq of {to} still runs (pid {}) without an agent: start one with `sq-agent run`, then restore", lives.pid);
    }
    let (from, to_dir) = (desired.user_dir(&from), desired.user_dir(&to));
    let order = RestoreOrder { from, name, file, to: to_dir, keep: desired.snapshots.clone(), now: unix_now() };
    Ok(RestoreAnswer::of(&to, &snapshot::restore(&order).with_context(|| to.to_string())?))
}
