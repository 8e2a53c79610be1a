//! `sq-agent why ID`: why a tenant is as it is.

use std::process::ExitCode;

use super::snapshot::tenant;
use crate::{
    admin::{
        client::{self, AskError},
        status::Status,
    },
    desired::Desired,
    doctor,
    store::{Reader, unix_now},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent why user1@example.com        # what is desired, what is, what was tried, what comes, what to do\n\nExit: 0 it is served as desired, 2 it is not, 1 no answer."
)]
pub(super) struct Args {
    /// The tenant
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Events that are looked at.
const EVENTS: u32 = 500;

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let id = tenant(&args.id)?;
    let status: Option<Status> = match client::ask(&desired.state_dir, "GET", "/status") {
        Ok(answer) => Some(serde_json::from_slice(&answer)?),
        Err(AskError::NotRunning(_)) => None,
        Err(error) => return Err(error.into()),
    };
    // A host on which nothing ever ran has no records.
    let events = Reader::open(&desired.state_dir).and_then(|reader| reader.events_of(Some(&id), None, None, EVENTS)).unwrap_or_default();
    let has_data = desired.user_dir(&id).exists();
    let known = doctor::Known { id: &id, desired, status: status.as_ref(), events: &events, has_data, now: unix_now() };
    let why = doctor::why(&known);
    if args.json {
        anstream::println!("{}", serde_json::to_string(&why)?);
    } else {
        anstream::println!("{}", why.paragraph());
    }
    let state = status.iter().flat_map(|status| &status.tenants).find(|tenant| tenant.id == id.as_str());
    let served = state.is_some_and(|tenant| matches!(tenant.state.as_str(), "ready" | "suspended")) && desired.tenants.contains_key(&id);
    Ok(if served { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
