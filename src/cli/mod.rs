//! The commands: one file each. Only this room talks to a terminal, and nothing imports it.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command's answer is what it prints

mod alert;
mod aside;
mod backup;
mod check;
mod confirm;
mod doctor;
mod events;
mod follow;
mod gitops;
mod guard;
mod import;
mod launcher;
mod logs;
mod plan;
mod proxy;
mod purge;
mod restart;
mod restore;
mod restore_all;
mod run;
mod schema;
mod snapshot;
mod snapshots;
mod status;
mod table;
mod tenants;
mod token;
mod top;
mod upgrade;
mod usage;
mod welcome;
mod why;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::desired::{self, Desired};

/// Where tenants.toml is looked for, after `--tenants` and `SQ_AGENT_TENANTS`.
const PLACES: [&str; 2] = ["./tenants.toml", "/etc/sq-agent/tenants.toml"];

/// Runs a host of sq processes from one desired-state file.
#[derive(Debug, Parser)]
#[command(
    name = "sq-agent",
    version,
    about,
    after_help = "Without a command, `run`.\n\nExample:\n  sq-agent run                 # serve ./tenants.toml\n  sq-agent status              # what runs\n  sq-agent plan                # what an edit would change"
)]
struct Arguments {
    /// The desired state [default: ./tenants.toml, else /etc/sq-agent/tenants.toml]
    #[arg(long, global = true, value_name = "FILE", env = "SQ_AGENT_TENANTS")]
    tenants: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve what tenants.toml says, until Ctrl-C
    Run(run::Args),
    /// Say whether tenants.toml is valid, with every problem of it at once
    Check(check::Args),
    /// Show what would change: exit 0 nothing, 2 changes, 1 error
    Plan(plan::Args),
    /// Let held removals through, or have a roll-out that went back try again
    Confirm(confirm::Args),
    /// Show what runs
    Status(status::Args),
    /// Everybody on one screen, live; one tenant's log and events on another
    Top(top::Args),
    /// Say what this host permits, what is wrong, and what to do
    Doctor(doctor::Args),
    /// Say why a tenant is as it is, and what to do
    Why(why::Args),
    /// Show what happened
    Events(events::Args),
    /// Show what a tenant's sq wrote
    Logs(logs::Args),
    /// Show what tenants used, by month or day; also as CSV for bills
    Usage(usage::Args),
    /// Restart a tenant's sq, drained first
    Restart(restart::Args),
    /// Take a backup off this host now, and wait for it
    Backup(backup::Args),
    /// Take a snapshot of a tenant's phexts
    Snapshot(snapshot::Args),
    /// List a tenant's snapshots
    Snapshots(snapshots::Args),
    /// Put a tenant's phexts back as a snapshot has them, or everybody's from a backup
    Restore(restore::Args),
    /// Send a test message to every channel for alerts
    Alert(alert::Args),
    /// Look at the repository that tenants.toml comes from
    Gitops(gitops::Args),
    /// Hand the host over to a new sq-agent, without a failed request
    Upgrade(upgrade::Args),
    /// List who left tenants.toml and whose data are still here
    Tenants(tenants::Args),
    /// Archive and delete the data of a tenant that left tenants.toml
    Purge(purge::Args),
    /// Mint a token for a tenant
    Token(token::Args),
    /// Make a tenants.toml of an sq gateway's file
    Import(import::Args),
    /// Print the JSON Schema of tenants.toml, for editors
    Schema(schema::Args),
    /// The proxy process; started by `run`
    #[command(hide = true)]
    Proxy(proxy::Args),
    /// The process that starts the instances; started by `run`
    #[command(hide = true)]
    Launcher(launcher::Args),
    /// The process that guards the tenants' files; started by `run`
    #[command(hide = true)]
    Guard(guard::Args),
    /// Becomes a program that is in nobody's way; for backups
    #[command(hide = true)]
    Aside(aside::Args),
}

/// The program: parses the arguments, runs the command, says what went wrong.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => {
            // One sentence for a person; a cause only where it adds something.
            anstream::eprintln!("sq-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let find = || find(arguments.tenants.as_deref());
    match arguments.command.unwrap_or(Command::Run(run::Args::default())) {
        Command::Run(args) => run::run(&args, &args.file(arguments.tenants.clone(), find)?),
        Command::Check(args) => check::run(&args, &args.file.clone().map_or_else(find, Ok)?),
        Command::Plan(args) => plan::run(&args, find),
        Command::Confirm(args) => confirm::run(&args, &load(&find()?)?),
        Command::Status(args) => status::run(&args, &load(&find()?)?),
        Command::Top(args) => top::run(&args, &load(&find()?)?),
        Command::Doctor(args) => doctor::run(&args, &find()?),
        Command::Why(args) => why::run(&args, &load(&find()?)?),
        Command::Events(args) => events::run(&args, &load(&find()?)?),
        Command::Logs(args) => logs::run(&args, &load(&find()?)?),
        Command::Usage(args) => usage::run(&args, &load(&find()?)?),
        Command::Restart(args) => restart::run(&args, &load(&find()?)?),
        Command::Backup(args) => backup::run(&args, &load(&find()?)?),
        Command::Snapshot(args) => snapshot::run(&args, &load(&find()?)?),
        Command::Snapshots(args) => snapshots::run(&args, &load(&find()?)?),
        Command::Restore(args) => restore::run(&args, &load(&find()?)?),
        Command::Alert(args) => alert::run(&args, &load(&find()?)?),
        Command::Gitops(args) => gitops::run(&args, &load(&find()?)?),
        Command::Upgrade(args) => upgrade::run(&args, &load(&find()?)?),
        Command::Tenants(args) => tenants::run(&args, &load(&find()?)?),
        Command::Purge(args) => purge::run(&args, &load(&find()?)?),
        Command::Token(args) => token::run(&args, &load(&find()?)?),
        Command::Import(args) => import::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Proxy(args) => proxy::run(&args),
        Command::Launcher(args) => launcher::run(&args),
        Command::Guard(args) => guard::run(&args),
        Command::Aside(args) => Ok(aside::run(&args)),
    }
}

/// Whether messages may have colour.
fn colour_on_stderr() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

/// The tenants.toml to use.
fn find(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(file) = given {
        return Ok(file.to_owned());
    }
    PLACES
        .iter()
        .map(PathBuf::from)
        .find(|file| file.exists())
        .with_context(|| format!("no tenants.toml at {}: name one with --tenants FILE or SQ_AGENT_TENANTS", PLACES.join(" nor at ")))
}

/// The desired state that tells where the agent runs: the file, or its last good copy while it is refused, since a command
/// is needed most when something is wrong.
fn load(file: &Path) -> anyhow::Result<Desired> {
    match desired::load_without_files(file) {
        Ok(desired) => Ok(desired),
        Err(rejected) => match desired::load_last_good(file) {
            Ok(Some((desired, _))) => Ok(desired),
            _ => anyhow::bail!("{}", rejected.summary()),
        },
    }
}
