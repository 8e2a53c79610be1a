//! `sq-agent proxy` (hidden): the process that faces the network. `sq-agent run` starts it.

use std::process::ExitCode;

use crate::proxy::process;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    process::run()?;
    Ok(ExitCode::SUCCESS)
}
