//! `sq-agent doctor`.

use std::{path::Path, process::ExitCode};

use crate::{
    admin::{
        client::{self, AskError},
        status::Status,
    },
    desired,
    doctor::{self, Finding, Severity},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent doctor\n  sudo -u sq-agent sq-agent doctor --json | jq '.[] | select(.severity == \"problem\")'\n\nRun it as the agent's user: what the host permits may depend on that.\n\nExit: 0 nothing to do, 2 problems, 1 it cannot look."
)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, file: &Path) -> anyhow::Result<ExitCode> {
    let desired = super::load(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut findings = Vec::new();
    if let Err(rejected) = desired::load(file) {
        findings.push(Finding::problem(
            "tenants.toml",
            rejected.summary(),
            "`sq-agent check` shows every problem with what to write instead",
        ));
    }
    match client::ask(&desired.state_dir, "GET", "/status") {
        Ok(answer) => {
            findings.extend(doctor::of_agent(&serde_json::from_slice::<Status>(&answer)?));
            findings.extend(runtime.block_on(doctor::of_host(&desired, true)));
        }
        Err(error @ AskError::NotRunning(_)) => {
            findings.push(Finding::notice("agent", error.to_string(), "what follows is what this user may do here"));
            findings.extend(runtime.block_on(doctor::of_host(&desired, false)));
            findings.extend(runtime.block_on(async { doctor::try_isolation(&desired.state_dir, Path::new("/proc/self/exe")) }));
        }
        Err(error) => return Err(error.into()),
    }
    findings.sort_by_key(|finding| finding.severity);
    if args.json {
        anstream::println!("{}", serde_json::to_string(&findings)?);
    } else {
        findings.iter().for_each(print);
    }
    let problems = findings.iter().any(|finding| finding.severity == Severity::Problem);
    Ok(if problems { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn print(finding: &Finding) {
    let (word, colour) = match finding.severity {
        Severity::Problem => ("problem", anstyle::AnsiColor::Red),
        Severity::Notice => ("notice", anstyle::AnsiColor::Yellow),
        Severity::Ok => ("ok", anstyle::AnsiColor::Green),
    };
    let style = colour.on_default();
    anstream::println!("{style}{word:<8}{style:#}{:<14} {}", finding.subject, finding.text);
    if !finding.remedy.is_empty() {
        anstream::println!("{:<23}-> {}", "", finding.remedy);
    }
}
