//! `sq-agent guard` (hidden): a proxy's other half, which may touch tenants' files. `sq-agent run` starts it.

use std::{path::PathBuf, process::ExitCode};

use crate::guard::process;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// `users` in the state directory.
    users: PathBuf,
    /// Be the process that stays.
    #[arg(long)]
    serve: bool,
}

#[allow(clippy::print_stdout, reason = "the agent reads it")]
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.serve {
        process::run(&args.users)?;
    } else {
        println!("{}", process::leave_behind(&args.users)?);
    }
    Ok(ExitCode::SUCCESS)
}
