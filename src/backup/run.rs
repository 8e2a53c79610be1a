//! One run: stage, backup, and what is due beside it. On a thread of its own, since all of it blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Deserialize;

use super::{
    TAG,
    book::{Job, Report, Taken, Tried, Untrue},
    compare::{Comparison, compare},
    counted,
    fault::ResticError,
    place,
    restic::{LONGEST, Restic, host_name, make_private},
    snapshots,
    stage::{self, Staged},
};
use crate::{
    child::{Cancel, Running},
    desired::{Backup, TenantId},
};

/// This very program, also where its file was replaced since it started.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Everything of the last day is kept, beside what tenants.toml says.
const KEEP_WITHIN: &str = "24h";

/// Begins `job`; `report` is called when it ends, unless it is broken off: then restic is ended, and the next run takes up what it had stored.
///
/// # Errors
/// There is no thread to be had.
pub fn start(job: Job, state_dir: PathBuf, report: impl FnOnce(Report) + Send + 'static) -> io::Result<Running> {
    Running::start("backup", move |cancel| {
        let done = run(&job, &state_dir, Some(THIS_PROGRAM.into()), cancel);
        if !cancel.is_cancelled() {
            report(done);
        }
    })
}

fn run(job: &Job, state_dir: &Path, exe: Option<PathBuf>, cancel: &Cancel) -> Report {
    let mut report = Report { number: job.number, seen: false, backup: Err(String::new()), prune: None, check: None, test_restore: None };
    let restic = match make_private(&place(state_dir))
        .map_err(|error| format!("{}: {error}", place(state_dir).display()))
        .and_then(|()| Restic::new(&job.backup, state_dir, exe, cancel.clone()).map_err(|error| error.to_string()))
    {
        Ok(restic) => restic,
        Err(why) => {
            report.backup = Err(why);
            return report;
        }
    };
    let run = Run { job, state_dir, restic };
    match run.back_up(cancel) {
        Ok((taken, staged)) => {
            report.seen = true;
            report.prune = job.prune.then(|| run.prune().map_err(|error| error.to_string()));
            report.check = job.check.then(|| run.check().map_err(|error| error.to_string()));
            report.test_restore = job.test_restore.then(|| run.test_restore(&taken.snapshot, &staged)).flatten();
            report.backup = match staged.stale.first() {
                None => Ok(taken),
                Some((id, why)) => Err(format!(
                    "{} of {} could not be copied and stand in snapshot {} as they did before, the first is {id}: {why}",
                    staged.stale.len(),
                    counted(staged.tenants.len(), "tenant"),
                    taken.snapshot
                )),
            };
        }
        Err(why) => report.backup = Err(why),
    }
    report
}

/// What `restic backup --json` says at its end.
#[derive(Debug, Deserialize)]
struct Summary {
    message_type: String,
    #[serde(default)]
    snapshot_id: String,
    #[serde(default)]
    data_added: u64,
}

struct Run<'a> {
    job: &'a Job,
    state_dir: &'a Path,
    restic: Restic,
}

impl Run<'_> {
    fn back_up(&self, cancel: &Cancel) -> Result<(Taken, Staged), String> {
        let began = Instant::now();
        let staged = stage::bring_up_to_date(self.state_dir, cancel).map_err(|error| error.to_string())?;
        let summary = self.snapshot().map_err(|error| error.to_string())?;
        let taken = Taken {
            snapshot: snapshots::short(&summary.snapshot_id).to_owned(),
            tenants: staged.tenants.len(),
            copied: staged.copied,
            added: summary.data_added,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        Ok((taken, staged))
    }

    fn snapshot(&self) -> Result<Summary, ResticError> {
        let host = self.host()?;
        // From inside, so that what comes back begins with users/.
        let (arguments, stage) = (["backup", "--json", "--quiet", "--host", &host, "--tag", TAG, "."], stage::directory(self.state_dir));
        let take = || self.restic.run(&arguments, Some(&stage), LONGEST);
        let said = match take() {
            Err(ResticError::NoRepository(_)) if self.job.may_make => {
                tracing::info!(repository = self.job.backup.repository, "a repository is made");
                self.restic.init()?;
                take()?
            }
            // A disk that is not mounted must not get a second, nearly empty repository beside the real one.
            Err(ResticError::NoRepository(at)) => return Err(ResticError::Gone(at)),
            said => said?,
        };
        let mut summaries = said.lines().filter_map(|line| serde_json::from_str::<Summary>(line).ok());
        summaries
            .rfind(|line| line.message_type == "summary" && !line.snapshot_id.is_empty())
            .ok_or_else(|| ResticError::Other { command: "backup".into(), said: "it ended well and named no snapshot".into() })
    }

    fn host(&self) -> Result<String, ResticError> {
        host_name().map_err(|error| ResticError::Other { command: "backup".into(), said: format!("the host's name: {error}") })
    }

    fn prune(&self) -> Result<(), ResticError> {
        let host = self.host()?;
        let keep = keep(&self.job.backup);
        let mut arguments = vec!["forget", "--quiet", "--prune", "--tag", TAG, "--host", &host, "--group-by", "host"];
        arguments.extend(keep.iter().map(String::as_str));
        self.restic.run(&arguments, None, LONGEST).map(drop)
    }

    fn check(&self) -> Result<(), ResticError> {
        self.restic.run(&["check", "--quiet"], None, LONGEST).map(drop)
    }

    /// None where nobody has any text.
    fn test_restore(&self, snapshot: &str, staged: &Staged) -> Option<Result<Tried, Untrue>> {
        let suspect = self.job.suspect.as_deref().and_then(|id| staged.tenants.iter().find(|tenant| tenant.as_str() == id));
        let id = suspect.or_else(|| drawn(&staged.tenants.iter().collect::<Vec<_>>()))?;
        let target = place(self.state_dir).join("test-restore");
        let tried = self.try_out(snapshot, id, &target);
        // What is left is removed before the next one.
        let _ = fs::remove_dir_all(&target);
        Some(tried)
    }

    fn try_out(&self, snapshot: &str, id: &TenantId, target: &Path) -> Result<Tried, Untrue> {
        let failed = |error: &dyn std::fmt::Display| Untrue::Failed(format!("a test restore of {id}: {error}"));
        let below = Path::new("users").join(id.as_str());
        let original = stage::directory(self.state_dir).join(&below);
        let restored = target.join(&below);
        let _ = fs::remove_dir_all(target);
        make_private(&restored).map_err(|error| failed(&error))?;
        snapshots::restore(&self.restic, snapshot, Some(&format!("/users/{id}")), target).map_err(|error| failed(&error))?;
        match compare(&original, &restored).map_err(|error| failed(&error))? {
            Comparison::Same(files) => Ok(Tried { tenant: id.to_string(), files }),
            Comparison::Different(difference) => Err(Untrue::Mismatch { tenant: id.to_string(), difference }),
        }
    }
}

/// What is kept, as restic takes it.
fn keep(backup: &Backup) -> Vec<String> {
    let policy = [("--keep-daily", backup.keep_daily), ("--keep-weekly", backup.keep_weekly), ("--keep-monthly", backup.keep_monthly)];
    let counted = policy.into_iter().filter(|(_, count)| *count > 0).flat_map(|(flag, count)| [flag.to_owned(), count.to_string()]);
    ["--keep-within".to_owned(), KEEP_WITHIN.to_owned()].into_iter().chain(counted).collect()
}

fn drawn<'a>(all: &[&'a TenantId]) -> Option<&'a TenantId> {
    let random = getrandom::u32().unwrap_or(0) as usize;
    all.get(random % all.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_said_in_restics_words() {
        let text = "[backup]\nrepository = \"/r\"\npassword_file = \"/p\"\nkeep_weekly = 0\n";
        let backup = crate::desired::parse(text, "/t.toml".as_ref()).unwrap().backup.unwrap();
        assert_eq!(keep(&backup).join(" "), "--keep-within 24h --keep-daily 7 --keep-monthly 12");
    }
}
