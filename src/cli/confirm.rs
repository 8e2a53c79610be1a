//! `sq-agent confirm HASH`.

use std::process::ExitCode;

use crate::{admin::client, desired::Desired};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sq-agent confirm 3f9a0c51d2e7      # the hash that `sq-agent status` and `sq-agent plan` show")]
pub(super) struct Args {
    /// Hash of the held plan
    hash: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(args.hash.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{:?} is not the hash of a plan", args.hash);
    let answer = client::ask(&desired.state_dir, "POST", &format!("/confirm/{}", args.hash))?;
    super::restart::print_detail(&answer, args.json)
}
