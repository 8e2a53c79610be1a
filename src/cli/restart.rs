//! `sq-agent restart ID`.

use std::process::ExitCode;

use crate::{
    admin::{client, status::Failure},
    desired::{Desired, TenantId},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sq-agent restart user1@example.com      # its requests wait meanwhile; none fails")]
pub(super) struct Args {
    /// The tenant
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let id = TenantId::parse(&args.id).map_err(|error| anyhow::anyhow!("{:?}: {error}", args.id))?;
    let answer = client::ask(&desired.state_dir, "POST", &format!("/restart/{id}"))?;
    print_detail(&answer, args.json)
}

/// Prints the agent's one-sentence answer.
pub(super) fn print_detail(answer: &[u8], json: bool) -> anyhow::Result<ExitCode> {
    let said: Failure = serde_json::from_slice(answer)?;
    if json {
        anstream::println!("{}", String::from_utf8_lossy(answer));
    } else {
        anstream::println!("{}", said.detail);
    }
    Ok(ExitCode::SUCCESS)
}
