//! `sq-agent plan [FILE] [--against FILE|REV:PATH] [--format text|markdown|json]`: what would change, by the very function that the loop runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Context as _;

use crate::{
    admin::{
        client::{self, AskError},
        status::{ForecastStatus, Status},
    },
    desired::{self, Desired},
    observed::{Moment, Observed},
    reconcile::{
        diff::{self, Change, Kind},
        guard::Held,
        plan::{self, Action},
        review::{Capacity, Review},
    },
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent plan                                          # this file against what runs\n  sq-agent plan tenants.toml --against old/tenants.toml  # two files, no agent needed\n  sq-agent plan --against origin/main:tenants.toml --format markdown --host-memory 4G --host-disk 80G   # for a pull request\n\nExit: 0 nothing would change, 2 something would, 1 error."
)]
pub(super) struct Args {
    /// The file that is wanted [default: the one in use]
    file: Option<PathBuf>,
    /// Compare with a host on which this file is true, instead of with what runs; REVISION:PATH is asked of git
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text, conflicts_with = "json")]
    format: Format,
    /// Memory of the host for which it is meant, as 4G [default: that of this machine]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    host_memory: Option<u64>,
    /// Its disk, as 80G [default: that of the state directory, or of this one]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    host_disk: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For a terminal
    Text,
    /// For a comment on a pull request
    Markdown,
    /// For programs
    Json,
}

fn parse_size(text: &str) -> Result<u64, String> {
    desired::parse_size(text).ok_or_else(|| format!("{text:?} is no size: write for example 4G"))
}

/// Memory of this machine, bytes.
fn memory() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo has no MemTotal: say --host-memory")? * 1024)
}

pub(super) fn run(args: &Args, find: impl FnOnce() -> anyhow::Result<PathBuf>) -> anyhow::Result<ExitCode> {
    let file = args.file.clone().map_or_else(find, Ok)?;
    let Some(wanted) = read(&file) else { return Ok(ExitCode::FAILURE) };
    let (observed, now) = match &args.against {
        Some(against) => match read_against(against)? {
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
    let forecast = if args.against.is_none() { forecast(&wanted.state_dir) } else { None };
    let added = changes.iter().filter(|change| change.kind == Kind::Add).count() as u64;
    if args.format == Format::Text && !args.json {
        print(&changes, held.as_ref(), args.against.is_none());
        if let Some(forecast) = forecast.filter(|_| added > 0) {
            anstream::println!("{}", forecast.crowded(added).unwrap_or_else(|| forecast.fit_text()));
        }
    } else {
        let capacity = Capacity {
            memory: args.host_memory.map_or_else(memory, Ok)?,
            disk: args.host_disk.map_or_else(|| disk(&wanted.state_dir), Ok)?,
        };
        let mut review = Review::of(&observed, &wanted, changes, held, capacity);
        review.warnings.extend(forecast.and_then(|forecast| forecast.crowded(added)));
        match args.format {
            Format::Markdown => anstream::print!("{}", review.markdown()),
            _ => anstream::println!("{}", serde_json::to_string(&review)?),
        }
    }
    Ok(ExitCode::from(if nothing { 0 } else { 2 }))
}

/// Shows all problems of a bad file; whoever reviews it wants them as `check` shows them.
fn read(file: &Path) -> Option<Desired> {
    desired::load_without_files(file)
        .map_err(|rejected| {
            anstream::eprintln!("{}", rejected.render(super::colour_on_stderr()));
        })
        .ok()
}

/// Size of the file system of `state_dir`, where that is there, else of the current directory, bytes.
fn disk(state_dir: &Path) -> anyhow::Result<u64> {
    let found = rustix::fs::statvfs(state_dir).or_else(|_| rustix::fs::statvfs(".")).context("asking for the size of the disk")?;
    Ok(found.f_blocks.saturating_mul(found.f_frsize))
}

/// What to compare with: a file, or what git has under REVISION:PATH.
fn read_against(against: &Path) -> anyhow::Result<Option<Desired>> {
    let Some(object) = against.to_str().filter(|text| text.contains(':') && !against.exists()) else { return Ok(read(against)) };
    let git = Command::new("git").args(["cat-file", "blob", "--end-of-options", object]).output().context("running git")?;
    anyhow::ensure!(git.status.success(), "git has no {object}: {}", String::from_utf8_lossy(&git.stderr).trim());
    let text = String::from_utf8(git.stdout).with_context(|| format!("{object} is not UTF-8"))?;
    Ok(desired::parse(&text, against).map_err(|rejected| anstream::eprintln!("{}", rejected.render(super::colour_on_stderr()))).ok())
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

/// What the agent that runs foretells; where none does, nobody knows.
fn forecast(state_dir: &Path) -> Option<ForecastStatus> {
    let answer = client::ask(state_dir, "GET", "/status").ok()?;
    serde_json::from_slice::<Status>(&answer).ok()?.forecast
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
