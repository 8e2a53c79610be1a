//! `sq-agent snapshots ID`.

use std::process::ExitCode;

use super::{snapshot::tenant, table};
use crate::{desired::Desired, snapshot};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent snapshots user1@example.com\n  sq-agent snapshots user1@example.com --json | jq -r '.[-1].path'    # where the newest one lies\n\nAlso of a tenant that has left tenants.toml. The oldest stands first."
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
    let user_dir = desired.user_dir(&id);
    let there = desired.tenants.contains_key(&id) || user_dir.try_exists()?;
    anyhow::ensure!(there, "no tenant {id}, now or before: {} is not there", user_dir.display());
    let all = snapshot::list(&user_dir)?;
    if args.json {
        anstream::println!("{}", serde_json::to_string(&all)?);
    } else {
        let row = |listed: &snapshot::Listed| {
            vec![listed.time.clone(), listed.reason.to_string(), table::bytes(listed.bytes), listed.files.to_string()]
        };
        table::print(&["TIME", "REASON", "SIZE", "FILES"], &all.iter().map(row).collect::<Vec<_>>());
    }
    Ok(ExitCode::SUCCESS)
}
