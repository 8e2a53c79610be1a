//! `sq-agent backup`.

use std::{process::ExitCode, time::Duration};

use crate::{
    admin::{
        client,
        status::{BackupBegun, BackupStatus, Status},
    },
    desired::Desired,
};

/// An upgrade replaces the agent twice.
const ASKED_AT_MOST: u32 = 5;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent backup             # also what is due beside it: a check, a test restore\n  sq-agent backup --init      # begin anew where a repository is gone for good\n\nExit: 0 all of it went well, 1 not."
)]
pub(super) struct Args {
    /// Make a repository where the one of before is gone
    #[arg(long)]
    init: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let question = if args.init { "/backup/init" } else { "/backup" };
    let mut asked = 0;
    let done = loop {
        let BackupBegun { run, .. } = serde_json::from_slice(&client::ask(&desired.state_dir, "POST", question)?)?;
        asked += 1;
        match wait_for(run, desired)? {
            Some(done) => break done,
            None if asked < ASKED_AT_MOST => {}
            None => anyhow::bail!("the agent was replaced again and again, which broke the backup off each time: run this later"),
        }
    };
    if args.json {
        anstream::println!("{}", serde_json::to_string(&done)?);
    } else {
        done.last_run.iter().for_each(|line| anstream::println!("{line}"));
    }
    Ok(if done.last_run_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits until the run of this number has ended, however long that takes; `None` where the agent was replaced meanwhile.
fn wait_for(run: u64, desired: &Desired) -> anyhow::Result<Option<BackupStatus>> {
    loop {
        let status: Status = serde_json::from_slice(&client::ask(&desired.state_dir, "GET", "/status")?)?;
        let backup = status.backup.ok_or_else(|| anyhow::anyhow!("[backup] was taken out of tenants.toml meanwhile"))?;
        if backup.finished >= run {
            return Ok(Some(backup));
        }
        // A new agent knows nothing of it.
        if backup.running != Some(run) && backup.asked != Some(run) {
            return Ok(None);
        }
        pause(Duration::from_millis(100));
    }
}

/// A command has no runtime in which it could do something else meanwhile.
#[allow(clippy::disallowed_methods)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
