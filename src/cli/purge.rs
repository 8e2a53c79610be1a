//! `sq-agent purge ID`: the only thing that ever deletes a tenant's data.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use super::snapshot::tenant;
use crate::{
    admin::{
        client::{self, AskError},
        status::Status,
    },
    desired::{Desired, TenantId},
    removed,
    store::unix_now,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent purge user1@example.com                                # asks for the id to be typed\n  sq-agent purge user1@example.com --confirm user1@example.com    # for scripts\n\nWhat is deleted lies in <state_dir>/purged/ afterwards, as an archive that `tar --zstd -xf` unpacks; that one is yours to delete."
)]
pub(super) struct Args {
    /// The tenant, which has left tenants.toml
    id: String,
    /// The id once more, instead of typing it when asked
    #[arg(long, value_name = "ID")]
    confirm: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let id = tenant(&args.id)?;
    anyhow::ensure!(!desired.tenants.contains_key(&id), "{id} stands in tenants.toml: remove it there first");
    let all = removed::list(&desired.state_dir, &desired.tenants)?;
    let found = all.iter().find(|removed| removed.id == id);
    let found = found.ok_or_else(|| anyhow::anyhow!("there are no data of {id}: `sq-agent tenants removed` lists whose there are"))?;
    not_served(desired, &id)?;
    let typed = match &args.confirm {
        Some(typed) => typed.clone(),
        None => ask(&id, &format!("{} ({}, {} files)", found.path.display(), super::table::bytes(found.bytes), found.files))?,
    };
    anyhow::ensure!(typed == id.as_str(), "that is not {id}: nothing was deleted");
    let archive = removed::purge(&desired.state_dir, &id, unix_now())?;
    if args.json {
        anstream::println!("{}", serde_json::json!({ "id": id, "archive": archive }));
    } else {
        anstream::println!("{id} is purged; all of it lies in {}", archive.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails while an agent has a place for the tenant: its removal is held, or its instance is still ending.
fn not_served(desired: &Desired, id: &TenantId) -> anyhow::Result<()> {
    match client::ask(&desired.state_dir, "GET", "/status") {
        Ok(answer) => {
            let status: Status = serde_json::from_slice(&answer)?;
            let known = status.tenants.iter().find(|tenant| tenant.id == id.as_str());
            anyhow::ensure!(
                known.is_none(),
                "the agent still has a place for {id} ({}): wait, or confirm its removal",
                known.map_or("", |tenant| &tenant.detail)
            );
            Ok(())
        }
        Err(AskError::NotRunning(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn ask(id: &TenantId, what: &str) -> anyhow::Result<String> {
    anyhow::ensure!(std::io::stdin().is_terminal(), "nobody is there to ask: say --confirm {id}");
    anstream::eprint!("{what} is archived and deleted. Type {id} to go on: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
