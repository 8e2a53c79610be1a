//! `sq-agent tenants removed`.

use std::process::ExitCode;

use super::table;
use crate::{desired::Desired, removed, store::unix_now};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sq-agent tenants removed        # whose data are still here; the id in tenants.toml brings them back")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List who left tenants.toml and whose data are still here
    Removed,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let Command::Removed = args.command;
    let all = removed::list(&desired.state_dir, &desired.tenants)?;
    if args.json {
        anstream::println!("{}", serde_json::to_string(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    let now = unix_now();
    let age = |at: Option<u64>| at.map_or("-".into(), |at| days(now.saturating_sub(at)));
    let row = |removed: &removed::Removed| {
        vec![
            removed.id.to_string(),
            age(removed.removed),
            table::bytes(removed.bytes),
            removed.files.to_string(),
            removed.path.display().to_string(),
        ]
    };
    table::print(&["ID", "AGE", "SIZE", "FILES", "PATH"], &all.iter().map(row).collect::<Vec<_>>());
    Ok(ExitCode::SUCCESS)
}

/// A time as a person reads it: `12d`, `3h`, `5m`.
fn days(seconds: u64) -> String {
    match seconds {
        86_400.. => format!("{}d", seconds / 86_400),
        3_600.. => format!("{}h", seconds / 3_600),
        _ => format!("{}m", seconds / 60),
    }
}
