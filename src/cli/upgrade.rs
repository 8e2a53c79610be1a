//! `sq-agent upgrade`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;

use super::restart::print_detail;
use crate::{
    admin::{client, status::UpgradeRequest},
    desired::Desired,
};

/// The new program's check (5 s), what it has to take over (60 s), and the same for going back.
const PATIENCE: Duration = Duration::from_secs(150);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent upgrade                                   # to the program that is run by this command\n  sq-agent upgrade --exe /usr/local/bin/sq-agent     # to that one\n\nThe new program checks itself, takes over instances and listening sockets, and starts a proxy of its own; the old proxy finishes\nwhat is in flight, 30 s at most. Where anything of that fails, the agent that runs goes on, and this exits with 1."
)]
pub(super) struct Args {
    /// The new program [default: this one]
    #[arg(long, value_name = "PATH")]
    exe: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let exe = match &args.exe {
        Some(exe) => std::path::absolute(exe).with_context(|| exe.display().to_string())?,
        None => std::env::current_exe().context("finding this program")?,
    };
    let body = serde_json::to_vec(&UpgradeRequest { exe })?;
    print_detail(&client::ask_with(&desired.state_dir, "POST", "/upgrade", &body, PATIENCE)?, args.json)
}
