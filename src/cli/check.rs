//! `sq-agent check`: is a tenants.toml good, and if not, what to write instead.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;

use crate::{
    desired::{self, Desired, Rejected},
    proxy::ring::Ring,
};

/// Says whether a tenants.toml is good; shows every problem with its place and its remedy.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sq-agent check                               the file that `sq-agent run` would read
  sq-agent check --no-files --json deploy.toml in a pull request, away from the host

Exit codes: 0 good, 1 problems.")]
pub(super) struct Args {
    /// The file to check instead of the one found as for every command.
    pub file: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Do not look at the secrets, certificates and programs that the file names: it is meant for another host.
    #[arg(long)]
    pub no_files: bool,
}

/// Checks `file`. Good news and JSON go to standard output, problems for people to standard error.
pub(super) fn run(args: &Args, file: &Path) -> anyhow::Result<ExitCode> {
    let result = if args.no_files { desired::load_without_files(file) } else { desired::load(file) };
    let troubles = result.as_ref().ok().filter(|_| !args.no_files).map(Ring::troubles).unwrap_or_default();
    match &result {
        _ if args.json => anstream::println!("{:#}", as_json(file, &result, &troubles)),
        Ok(desired) if troubles.is_empty() => anstream::println!("{}", summary(file, desired)),
        Ok(_) => {
            troubles.iter().for_each(|trouble| anstream::eprintln!("error: {trouble}"));
            anstream::eprintln!("\n{}: {} with what it names", file.display(), count(troubles.len(), "problem"));
        }
        Err(rejected) => anstream::eprintln!("{}\n\n{}", rejected.render(true), verdict(rejected)),
    }
    Ok(if result.is_ok() && troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(file: &Path, desired: &Desired) -> String {
    let suspended = desired.tenants.values().filter(|tenant| tenant.suspended).count();
    let suspended = if suspended == 0 { String::new() } else { format!(" ({suspended} suspended)") };
    format!(
        "{}: ok: {}{suspended}, {}, ports {}-{}, state in {}",
        file.display(),
        count(desired.tenants.len(), "tenant"),
        count(desired.tiers.len(), "tier"),
        desired.ports.first,
        desired.ports.last,
        desired.state_dir.display()
    )
}

fn verdict(rejected: &Rejected) -> String {
    format!("{}: {}", rejected.file.display(), count(rejected.problems.len(), "problem"))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// `troubles`: what is no good of the files that it names.
fn as_json(file: &Path, result: &Result<Desired, Rejected>, troubles: &[String]) -> serde_json::Value {
    match result {
        Ok(_) if !troubles.is_empty() => {
            let problems: Vec<_> = troubles.iter().map(|message| json!({ "message": message })).collect();
            json!({ "file": file, "ok": false, "problems": problems })
        }
        Ok(desired) => json!({
            "file": file, "ok": true, "hash": desired.hash, "tenants": desired.tenants.len(), "tiers": desired.tiers.len(), "problems": [],
        }),
        Err(rejected) => json!({ "file": file, "ok": false, "problems": rejected.problems }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_is_summed_up_in_a_line() {
        let text = "[[tenants]]\nid = \"a\"\nsuspended = true\n[[tenants]]\nid = \"b\"\n";
        let desired = desired::parse(text, Path::new("/etc/t.toml")).unwrap();
        let line = summary(Path::new("t.toml"), &desired);
        assert_eq!(line, "t.toml: ok: 2 tenants (1 suspended), 1 tier, ports 10001-19999, state in /etc/state");
        assert_eq!(as_json(Path::new("t.toml"), &Ok(desired), &[])["tenants"], 2);
    }

    #[test]
    fn a_bad_file_is_json_with_a_line_and_a_column() {
        let rejected = desired::parse("[agent]\nportz = 1\n", Path::new("t.toml")).unwrap_err();
        assert_eq!(verdict(&rejected), "t.toml: 1 problem");
        let json = as_json(Path::new("t.toml"), &Err(rejected), &[]);
        assert_eq!((&json["ok"], &json["problems"][0]["place"]["line"]), (&json!(false), &json!(2)));
        assert_eq!(json["problems"][0]["offending"], "portz");
    }
}
