//! `sq-agent launcher` (hidden): the process that starts the instances and owns their network. `sq-agent run` starts it.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::instance::launcher;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    launcher::run().context("the launcher (`sq-agent run` starts it)")?;
    Ok(ExitCode::SUCCESS)
}
