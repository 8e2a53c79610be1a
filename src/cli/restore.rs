//! `sq-agent restore`.

use std::process::ExitCode;

use crate::{
    backup::restore_all::{Restored, Which, restore_all},
    desired::Desired,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent restore --all                            # the newest backup of this host, onto an empty machine\n  sq-agent restore --all --at 2026-02-09T22:32:00Z  # as it stood then; also 2026-02-09, or 2h for two hours ago\n\nExit: 0 all of it is back, 1 nothing was changed."
)]
pub(super) struct Args {
    /// Everybody's texts, from the repository that [backup] names, onto a host that has none
    #[arg(long, required = true)]
    all: bool,
    /// As they stood at this time
    #[arg(long, value_name = "TIME", requires = "all")]
    at: Option<String>,
    /// The backup of this host [default: this one, or the only one]
    #[arg(long, requires = "all")]
    host: Option<String>,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    debug_assert!(args.all, "clap requires it");
    let which = Which { host: args.host.as_deref(), at: args.at.as_deref() };
    let restored = restore_all(desired, which, &|line| anstream::eprintln!("{line}"))?;
    print_all(&restored, desired);
    Ok(ExitCode::SUCCESS)
}

fn print_all(restored: &Restored, desired: &Desired) {
    let Restored { host, snapshot, when, tenants, not_named, tenants_file, token_secret } = restored;
    let state_dir = desired.state_dir.display();
    anstream::println!("the texts of {} tenants are back in {state_dir}: snapshot {snapshot} of {host}, taken {when}", tenants.len());
    if *token_secret {
        anstream::println!("the tokens of before stay good: {state_dir}/jwt.key is back");
    }
    if let Some(file) = tenants_file {
        anstream::println!("the tenants.toml of then: {}", file.display());
    }
    if !not_named.is_empty() {
        anstream::println!("{} of them are not in the tenants.toml in use, and so will not be served", not_named.len());
    }
    anstream::println!("`sq-agent run` serves them");
}
