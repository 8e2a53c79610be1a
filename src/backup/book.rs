//! When a backup is due, and how the last ones went. Pure: clocks come in as values.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::counted;
use crate::{admin::status::BackupStatus, desired::Backup, observed::Moment, store::rfc3339};

/// An agent that has just started has more urgent things to do.
const AFTER_START: Duration = Duration::from_secs(60);
/// The first pause after a run that failed; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// Old snapshots are let go this often at most, seconds: it takes the repository for itself.
const PRUNE_EVERY: u64 = 86_400;
/// So many misses in a row are an alert.
const ALERT: u64 = 2;

/// One run that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number in the life of this agent.
    pub number: u64,
    /// As tenants.toml has it.
    pub backup: Backup,
    /// Where no repository is, one is made: none was there before, or a person said so.
    pub may_make: bool,
    /// Old snapshots are to go.
    pub prune: bool,
    /// The repository is to be checked.
    pub check: bool,
    /// A tenant is to be restored and compared.
    pub test_restore: bool,
    /// The one that was not the same last time.
    pub suspect: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The job's number.
    pub number: u64,
    /// The repository is there, or was there in the course of the run.
    pub seen: bool,
    /// The backup itself.
    pub backup: Result<Taken, String>,
    /// Letting old snapshots go, where that was tried.
    pub prune: Option<Result<(), String>>,
    /// The check of the repository, where that was tried.
    pub check: Option<Result<(), String>>,
    /// The test restore, where that was tried.
    pub test_restore: Option<Result<Tried, Untrue>>,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its short id.
    pub snapshot: String,
    /// Tenants in it.
    pub tenants: usize,
    /// Of these, copied anew since the last one.
    pub copied: usize,
    /// What the repository has grown by, bytes.
    pub added: u64,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// A tenant that was restored and is the same, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Whose text.
    pub tenant: String,
    /// Files that were compared.
    pub files: usize,
}

/// A test restore that did not give what was backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untrue {
    /// It gave something else.
    Mismatch {
        /// Whose text.
        tenant: String,
        /// Where it differs.
        difference: String,
    },
    /// It gave nothing.
    Failed(String),
}

/// Something to tell people: an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A word such as `backup_done`.
    pub kind: &'static str,
    /// A sentence.
    pub detail: String,
    /// Somebody has to act.
    pub is_alert: bool,
}

impl Note {
    fn told(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), is_alert: false }
    }

    fn alert(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), is_alert: true }
    }
}

/// What of the backups needs somebody, in sentences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Two in a row, or more, are missing.
    pub missed: Option<String>,
    /// The repository has errors, or what came back was not what went in.
    pub untrue: Option<String>,
}

/// What of it survives the agent. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// For which repository all of this holds.
    repository: String,
    /// Since when it is the repository.
    since: u64,
    /// It was there once.
    seen: bool,
    last_good: Option<u64>,
    snapshot: Option<String>,
    last_prune: Option<u64>,
    last_check: Option<u64>,
    last_test_restore: Option<u64>,
    suspect: Option<String>,
    /// Runs that failed since the last good one.
    failures: u32,
    misses: u64,
    alerted: bool,
    backup_error: Option<Failed>,
    prune_error: Option<Failed>,
    check_error: Option<Failed>,
    test_restore_error: Option<Failed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failed {
    at: u64,
    text: String,
}

/// A run that is under way.
#[derive(Debug)]
struct UnderWay {
    number: u64,
    began: u64,
}

/// Everything known of this host's backups.
#[derive(Debug)]
pub struct Book {
    kept: Kept,
    started: Moment,
    under_way: Option<UnderWay>,
    /// Numbers given so far.
    given: u64,
    /// The last run that ended.
    finished: u64,
    /// What it did, a sentence each; whether all of it was good.
    last_run: (Vec<String>, bool),
    /// A run that a person asked for, and whether it may make a repository.
    asked: Option<(u64, bool)>,
    /// No run begins by itself before.
    not_before: Moment,
}

impl Book {
    /// What an agent that `started` at this moment knows; `kept` is from the one before.
    pub fn new(kept: Option<&str>, started: Moment) -> Self {
        let kept = kept.map(serde_json::from_str).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "how the last backups went cannot be read");
            None
        });
        Self {
            kept: kept.unwrap_or_default(),
            started,
            under_way: None,
            given: 0,
            finished: 0,
            last_run: (Vec::new(), true),
            asked: None,
            not_before: started,
        }
    }

    /// For the next agent.
    pub fn kept(&self) -> String {
        serde_json::to_string(&self.kept).unwrap_or_default()
    }

    /// A person wants a backup of what stands now. Returns the number of the run that will have it: what is under way does not.
    pub fn ask(&mut self, may_make: bool) -> u64 {
        if let Some((number, make)) = &mut self.asked {
            *make |= may_make;
            return *number;
        }
        self.given += 1;
        self.asked = Some((self.given, may_make));
        self.given
    }

    /// The run that is to begin now, if any.
    pub fn due(&mut self, backup: &Backup, unix_now: u64, now: Moment) -> Option<Job> {
        self.follow(backup, unix_now);
        if self.under_way.is_some() {
            return None;
        }
        let every = Duration::from_secs(backup.every);
        let rested = now.since(self.started) >= every.min(AFTER_START) && now >= self.not_before;
        let by_itself = rested && unix_now >= self.due_at(backup, unix_now);
        let asked = self.asked.take();
        if asked.is_none() && !by_itself {
            return None;
        }
        let (number, may_make) = asked.unwrap_or_else(|| {
            self.given += 1;
            (self.given, false)
        });
        self.under_way = Some(UnderWay { number, began: unix_now });
        let over = |last: Option<u64>, period: u64| last.is_none_or(|last| last > unix_now || unix_now - last >= period);
        Some(Job {
            number,
            backup: backup.clone(),
            may_make: may_make || !self.kept.seen,
            prune: over(self.kept.last_prune, PRUNE_EVERY),
            check: over(self.kept.last_check, backup.check_every),
            test_restore: over(self.kept.last_test_restore, backup.test_restore_every),
            suspect: self.kept.suspect.clone(),
        })
    }

    /// Another repository knows nothing of what was in the one before.
    fn follow(&mut self, backup: &Backup, unix_now: u64) {
        if self.kept.repository != backup.repository {
            self.kept = Kept { repository: backup.repository.clone(), since: unix_now, ..Kept::default() };
            self.not_before = self.started;
        }
    }

    /// When the next backup is due. A clock that was set back must not put it off.
    fn due_at(&self, backup: &Backup, unix_now: u64) -> u64 {
        match self.kept.last_good {
            Some(at) if at <= unix_now => at + backup.every,
            Some(_) => unix_now,
            None => self.kept.since.min(unix_now),
        }
    }

    /// How many backups that were due are missing, where the one that is due now cannot be had.
    fn missed(&self, backup: &Backup, unix_now: u64) -> u64 {
        let due_at = self.due_at(backup, unix_now);
        if unix_now < due_at { 0 } else { 1 + (unix_now - due_at) / backup.every.max(1) }
    }

    /// A run that takes so long that others are missed meanwhile is told of too.
    pub fn look(&mut self, backup: &Backup, unix_now: u64) -> Option<Note> {
        let under_way = self.under_way.as_ref()?;
        let (number, running) = (under_way.number, unix_now.saturating_sub(under_way.began));
        let late = running / backup.every.max(1);
        if late < ALERT || self.kept.alerted {
            return None;
        }
        self.kept.misses = late;
        self.kept.alerted = true;
        Some(Note::alert("backup_missed", format!("run {number} has been under way for {running} s, {late} more were due meanwhile")))
    }

    /// The run ended. Where tenants.toml names another repository by now, or none, it counts for nothing.
    pub fn done(&mut self, report: &Report, backup: Option<&Backup>, unix_now: u64, now: Moment) -> Vec<Note> {
        let began = self.under_way.take().map_or(unix_now, |under_way| under_way.began);
        self.finished = report.number;
        let Some(backup) = backup.filter(|backup| backup.repository == self.kept.repository) else {
            self.last_run = (vec!["tenants.toml names another repository by now".into()], false);
            return Vec::new();
        };
        self.kept.seen |= report.seen;
        let mut notes = vec![match &report.backup {
            Ok(taken) => self.taken(taken, began, now),
            Err(why) => self.failed(why, backup, unix_now, now),
        }];
        notes.extend(self.missing(backup));
        let failed = |text: &str| Some(Failed { at: unix_now, text: text.to_owned() });
        match &report.prune {
            Some(Ok(())) => (self.kept.last_prune, self.kept.prune_error) = (Some(unix_now), None),
            Some(Err(why)) => {
                self.kept.prune_error = failed(why);
                notes.push(Note::told("backup_prune_failed", why));
            }
            None => {}
        }
        match &report.check {
            Some(Ok(())) => {
                (self.kept.last_check, self.kept.check_error) = (Some(unix_now), None);
                notes.push(Note::told("backup_checked", "the repository has no errors"));
            }
            Some(Err(why)) => {
                self.kept.check_error = failed(why);
                notes.push(Note::alert("backup_check_failed", why));
            }
            None => {}
        }
        match &report.test_restore {
            Some(Ok(Tried { tenant, files })) => {
                (self.kept.last_test_restore, self.kept.test_restore_error, self.kept.suspect) = (Some(unix_now), None, None);
                notes.push(Note::told("backup_test_restored", format!("{tenant}: {}, the same byte for byte", counted(*files, "file"))));
            }
            Some(Err(Untrue::Mismatch { tenant, difference })) => {
                let text = format!("a test restore of {tenant} did not give what was backed up: {difference}");
                self.kept.test_restore_error = failed(&text);
                self.kept.suspect = Some(tenant.clone());
                notes.push(Note::alert("backup_restore_mismatch", text));
            }
            Some(Err(Untrue::Failed(why))) => {
                self.kept.test_restore_error = failed(why);
                notes.push(Note::alert("backup_restore_failed", why));
            }
            None => {}
        }
        let all_good = report.backup.is_ok()
            && !matches!(report.prune, Some(Err(_)))
            && !matches!(report.check, Some(Err(_)))
            && !matches!(report.test_restore, Some(Err(_)));
        self.last_run = (notes.iter().map(|note| format!("{}: {}", note.kind, note.detail)).collect(), all_good);
        notes
    }

    fn taken(&mut self, taken: &Taken, began: u64, now: Moment) -> Note {
        let Taken { snapshot, tenants: count, copied, added, took_ms } = taken;
        self.kept.last_good = Some(began);
        self.kept.snapshot = Some(snapshot.clone());
        (self.kept.failures, self.kept.misses, self.kept.alerted, self.kept.backup_error) = (0, 0, false, None);
        self.not_before = now;
        let text = format!(
            "snapshot {snapshot}: {}, {copied} changed, {:.1} MB more in the repository, {:.1} s",
            counted(*count, "tenant"),
            *added as f64 / 1e6,
            *took_ms as f64 / 1e3
        );
        Note::told("backup_done", text)
    }

    fn failed(&mut self, why: &str, backup: &Backup, unix_now: u64, now: Moment) -> Note {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.kept.failures.min(10));
        self.not_before = now + pause.min(LONGEST_PAUSE).min(Duration::from_secs(backup.every));
        self.kept.failures = self.kept.failures.saturating_add(1);
        self.kept.misses = self.kept.misses.max(self.missed(backup, unix_now));
        self.kept.backup_error = Some(Failed { at: unix_now, text: why.to_owned() });
        Note::told("backup_failed", why)
    }

    /// Said once, until a backup is good again.
    fn missing(&mut self, backup: &Backup) -> Option<Note> {
        let misses = self.kept.misses;
        if misses < ALERT || std::mem::replace(&mut self.kept.alerted, true) {
            return None;
        }
        let why = self.kept.backup_error.as_ref().map_or("", |failed| &failed.text);
        let last =
            self.kept.last_good.map_or("there is no good backup".to_owned(), |at| format!("the last good one is of {}", rfc3339(at)));
        let every = humantime::format_duration(Duration::from_secs(backup.every));
        Some(Note::alert("backup_missed", format!("{misses} in a row, one was due every {every}; {last}: {why}")))
    }

    /// What needs somebody at `unix_now`.
    pub fn troubles(&self, backup: &Backup, unix_now: u64) -> Troubles {
        if self.kept.repository != backup.repository {
            return Troubles::default();
        }
        let status = self.status(backup, unix_now);
        let last = status.last_good.map_or("there is no good one".to_owned(), |at| format!("the last good one is of {at}"));
        let every = humantime::format_duration(Duration::from_secs(backup.every));
        let why = self.kept.backup_error.as_ref().map(|failed| format!(": {}", failed.text)).unwrap_or_default();
        let untrue = [&self.kept.check_error, &self.kept.test_restore_error].into_iter().flatten().max_by_key(|failed| failed.at);
        Troubles {
            // Not by the age alone: an agent that was away for days tries first.
            missed: self.kept.alerted.then(|| format!("one is due every {every}, {last}{why}")),
            untrue: untrue.map(|failed| failed.text.clone()),
        }
    }

    /// For people.
    pub fn status(&self, backup: &Backup, unix_now: u64) -> BackupStatus {
        // Nothing of what another repository held counts.
        let nothing = Kept::default();
        let kept = if self.kept.repository == backup.repository { &self.kept } else { &nothing };
        let errors = [&kept.backup_error, &kept.prune_error, &kept.check_error, &kept.test_restore_error];
        let last_error = errors.into_iter().flatten().max_by_key(|failed| failed.at);
        let time = |at: Option<u64>| at.map(rfc3339);
        // A host that is new to this has two intervals as well.
        let last_or_begun = kept.last_good.or(Some(kept.since).filter(|&since| since > 0));
        BackupStatus {
            repository: backup.repository.clone(),
            every_seconds: backup.every,
            last_good: time(kept.last_good),
            last_good_age_seconds: kept.last_good.map(|at| unix_now.saturating_sub(at)),
            snapshot: kept.snapshot.clone(),
            last_check: time(kept.last_check),
            last_test_restore: time(kept.last_test_restore),
            last_error: last_error.map(|failed| failed.text.clone()),
            last_error_at: last_error.map(|failed| rfc3339(failed.at)),
            misses: kept.misses,
            overdue: kept.misses >= ALERT || last_or_begun.is_some_and(|at| unix_now.saturating_sub(at) > 2 * backup.every),
            running: self.under_way.as_ref().map(|under_way| under_way.number),
            asked: self.asked.map(|(number, _)| number),
            finished: self.finished,
            last_run: self.last_run.0.clone(),
            last_run_good: self.last_run.1,
        }
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
