//! `sq-agent plan [FILE] [--against FILE]`: what would change, by the very function that the loop runs.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    admin::client::{self, AskError},
    desired::{self, Desired},
    observed::{Moment, Observed},
    reconcile::{
        diff::{self, Change, Kind},
        guard::Held,
        plan::{self, Action},
    },
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent plan                                          # this file against what runs\n  sq-agent plan tenants.toml --against old/tenants.toml  # two files, no agent needed\n\nExit: 0 nothing would change, 2 something would, 1 error."
)]
pub(super) struct Args {
    /// The file that is wanted [default: the one in use]
    file: Option<PathBuf>,
    /// Compare with a host on which this file is true, instead of with what runs
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Report {
    changes: Vec<Change>,
    held: Option<Held>,
}

pub(super) fn run(args: &Args, find: impl FnOnce() -> anyhow::Result<PathBuf>) -> anyhow::Result<ExitCode> {
    let file = args.file.clone().map_or_else(find, Ok)?;
    let Some(wanted) = read(&file) else { return Ok(ExitCode::FAILURE) };
    let (observed, now) = match &args.against {
        Some(against) => match read(against) {
            Some(against) => (diff::as_if_running(&against), Moment::default()),
            None => return Ok(ExitCode::FAILURE),
        },
        None => (ask(&wanted)?, Moment::now()),
    };
    let mut observed = observed;
    // A roll-out goes step by step; what is shown is where it ends.
    observed.programs.insert(wanted.sq.identity());
    observed.known.values_mut().for_each(|known| known.program = wanted.sq.identity());
    let actions = plan::plan(&wanted, &observed, now);
    let changes = diff::changes(&wanted, &observed, &actions);
    let held = actions.into_iter().find_map(|action| if let Action::Hold(held) = action { Some(held) } else { None });
    let nothing = changes.is_empty();
    if args.json {
        anstream::println!("{}", serde_json::to_string(&Report { changes, held })?);
    } else {
        print(&changes, held.as_ref(), args.against.is_none());
    }
    Ok(ExitCode::from(if nothing { 0 } else { 2 }))
}

/// Shows all problems of a bad file; whoever reviews it wants them as `check` shows them.
fn read(file: &std::path::Path) -> Option<Desired> {
    desired::load_without_files(file)
        .map_err(|rejected| {
            anstream::eprintln!("{}", rejected.render(super::colour_on_stderr()));
        })
        .ok()
}

fn ask(wanted: &Desired) -> anyhow::Result<Observed> {
    match client::ask(&wanted.state_dir, "GET", "/observed") {
        Ok(answer) => Ok(serde_json::from_slice(&answer)?),
        Err(AskError::NotRunning(state_dir)) => {
            anstream::eprintln!("no agent runs on {}: this is the plan for an empty host", state_dir.display());
            Ok(Observed::default())
        }
        Err(error) => Err(error.into()),
    }
}

fn print(changes: &[Change], held: Option<&Held>, live: bool) {
    for change in changes {
        let colour = match change.kind.mark() {
            '+' => anstyle::AnsiColor::Green,
            '-' | '!' => anstyle::AnsiColor::Red,
            _ => anstyle::AnsiColor::Yellow,
        };
        let style = colour.on_default();
        let detail = if change.detail.is_empty() { String::new() } else { format!(" ({})", change.detail.join(", ")) };
        anstream::println!("{style}{} {}{style:#}: {}{detail}", change.kind.mark(), change.id, change.kind.word());
    }
    let count = |kind| changes.iter().filter(|change| change.kind == kind).count();
    if changes.is_empty() {
        anstream::println!("nothing would change");
    } else {
        let kinds = [Kind::Add, Kind::Remove, Kind::Held, Kind::Suspend, Kind::Resume, Kind::Restart, Kind::Change, Kind::Start];
        let words = ["to add", "to remove", "removals held", "to suspend", "to resume", "to restart", "to change", "to start"];
        let parts = kinds.into_iter().zip(words).map(|(kind, word)| (count(kind), word)).filter(|(n, _)| *n > 0);
        anstream::println!("{}", parts.map(|(n, word)| format!("{n} {word}")).collect::<Vec<_>>().join(", "));
    }
    if let Some(held) = held {
        let how = if live { format!("`sq-agent confirm {}` lets them through", held.hash) } else { format!("plan hash {}", held.hash) };
        anstream::println!("removing {} of {} tenants at once is held: {how}", held.removals.len(), held.of);
    }
}
