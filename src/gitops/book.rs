//! When the repository is to be looked at, and what came of it. Pure: clocks and chance come in as values.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use super::git::Commit;
use crate::{
    admin::status::GitOpsStatus,
    desired::{Desired, GitOps},
    observed::Moment,
    store::rfc3339,
};

/// An agent that has just started has more urgent things to do.
const AFTER_START: Duration = Duration::from_secs(2);
/// From one look for a push to the next: a storm of webhooks makes no storm of looks.
const AFTER_PUSH: Duration = Duration::from_secs(1);
/// The longest pause after looks that failed, seconds; it doubles from the interval.
const LONGEST_PAUSE: u64 = 600;
/// So long without a good look is told as an alert, seconds.
const ALERT_AFTER: u64 = 600;
/// Where a head is refused for that, its cause begins so.
const REWRITTEN: &str = "the branch was rewritten";

/// One look that is to be made.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number in the life of this agent.
    pub number: u64,
    /// Where to look.
    pub source: GitOps,
    /// The commit that is in force, as far as known.
    pub applied: Option<String>,
    /// SHA-256 of the tenants.toml that came with it.
    pub applied_hash: Option<String>,
    /// A branch that was rewritten may be followed: a person said so.
    pub accept_rewrite: bool,
    /// What a new desired state has to be able to follow.
    pub in_force: Arc<Desired>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The job's number.
    pub number: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a look ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// tenants.toml says already what this commit says; its hash.
    InPlace(Commit, String),
    /// This commit's file was put in place.
    Put {
        /// The commit.
        commit: Commit,
        /// SHA-256 of the file.
        hash: String,
        /// Where the text is kept that a person had written there.
        aside: Option<PathBuf>,
    },
    /// This commit cannot be applied; in words. What is in force stays.
    Refused(Commit, String),
    /// The branch was rewritten: its head was not made on top of what is in force.
    Rewritten(Commit),
    /// The repository could not be looked at; in words.
    Failed(String),
}

/// Something to tell people: an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A word such as `gitops_applied`.
    pub kind: &'static str,
    /// A sentence.
    pub detail: String,
    /// Somebody has to act.
    pub is_alert: bool,
}

/// Something about the repository that holds, and needs somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It has been out of reach for a while.
    Failing {
        /// Since when, seconds since 1970.
        since: u64,
        /// Why, and what to do.
        why: String,
    },
    /// The head of the branch cannot be applied.
    Refused {
        /// Which commit.
        commit: String,
        /// Whose, why not, and what to do.
        text: String,
    },
    /// The branch was rewritten.
    Rewritten {
        /// Its head.
        commit: String,
        /// Whose, and what to do.
        text: String,
    },
}

/// What of it survives the agent. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// For which repository, branch and path all of this holds.
    source: (String, String, String),
    applied: Option<Applied>,
    /// The head that cannot be applied, and why.
    refused: Option<(Commit, String)>,
    suspended: bool,
    /// The last webhook.
    pushed_at: Option<u64>,
    /// The last look that went well.
    last_good: Option<u64>,
    /// Since when none has, and why.
    failing: Option<(u64, String)>,
    failures: u32,
    alerted: bool,
}

/// The commit that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Applied {
    commit: Commit,
    hash: String,
    at: u64,
}

/// Everything known of the repository that this host follows.
#[derive(Debug)]
pub struct Book {
    kept: Kept,
    under_way: Option<u64>,
    given: u64,
    finished: u64,
    /// What the last look came to, in a sentence, and whether that was good.
    last: (String, bool),
    /// A look that a person asked for, and whether a rewritten branch may be followed.
    asked: Option<(u64, bool)>,
    /// A webhook came since the last look began.
    pushed: bool,
    /// No look for a push begins before.
    next_for_push: Moment,
    /// No look begins by itself before.
    next: Moment,
    /// Seconds between looks, as the last one was told.
    interval: u64,
}

impl Book {
    /// What an agent that `started` at this moment knows; `kept` is from the one before.
    pub fn new(kept: Option<&str>, started: Moment) -> Self {
        let kept = kept.map(serde_json::from_str).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "what was known of the repository cannot be read");
            None
        });
        Self {
            kept: kept.unwrap_or_default(),
            under_way: None,
            given: 0,
            finished: 0,
            last: (String::new(), true),
            asked: None,
            pushed: false,
            next_for_push: started,
            next: started + AFTER_START,
            interval: GitOps::INTERVAL,
        }
    }

    /// For the next agent.
    pub fn kept(&self) -> String {
        serde_json::to_string(&self.kept).unwrap_or_default()
    }

    /// A webhook says that somebody pushed. A look that is under way may have begun too early for that.
    pub fn pushed(&mut self, unix_now: u64) {
        (self.pushed, self.kept.pushed_at) = (true, Some(unix_now));
    }

    /// When [`due`](Self::due) has a look that nobody has to ask for; none before something else happens.
    pub fn next_look(&self) -> Option<Moment> {
        let next = if self.pushed { self.next.min(self.next_for_push) } else { self.next };
        (!self.kept.suspended && self.under_way.is_none()).then_some(next)
    }

    /// A person wants a look now. Returns its number: one that is under way may have begun too early.
    pub fn ask(&mut self, accept_rewrite: bool) -> u64 {
        if let Some((number, accept)) = &mut self.asked {
            *accept |= accept_rewrite;
            return *number;
        }
        self.given += 1;
        self.asked = Some((self.given, accept_rewrite));
        self.given
    }

    /// Looks no more by itself, or does again; whether that changes anything.
    pub fn suspend(&mut self, suspended: bool, now: Moment) -> bool {
        self.next = now;
        std::mem::replace(&mut self.kept.suspended, suspended) != suspended
    }

    /// The look that is to begin now, if any. `chance` in 0..=1 spreads the looks of many hosts.
    pub fn due(&mut self, source: &GitOps, in_force: &Arc<Desired>, now: Moment, chance: f64) -> Option<Job> {
        let name = (source.url.clone(), source.branch.clone(), source.path.clone());
        if self.kept.source != name {
            // Another history: nothing of it is known.
            self.kept = Kept { source: name, suspended: self.kept.suspended, ..Kept::default() };
        }
        if self.under_way.is_some() {
            return None;
        }
        let by_itself = self.next_look().is_some_and(|next| now >= next);
        let asked = self.asked.take();
        if asked.is_none() && !by_itself {
            return None;
        }
        // Whatever it is made for, it sees what was pushed by now.
        if std::mem::take(&mut self.pushed) {
            self.next_for_push = now + AFTER_PUSH;
        }
        let (number, accept_rewrite) = asked.unwrap_or_else(|| {
            self.given += 1;
            (self.given, false)
        });
        self.under_way = Some(number);
        self.interval = source.interval;
        self.next = now + spread(source.interval, chance);
        Some(Job {
            number,
            source: source.clone(),
            applied: self.kept.applied.as_ref().map(|applied| applied.commit.id.clone()),
            applied_hash: self.kept.applied.as_ref().map(|applied| applied.hash.clone()),
            accept_rewrite,
            in_force: in_force.clone(),
        })
    }

    /// To the next look, where looks fail: ever more.
    fn pause(&self) -> Duration {
        let doubled = self.interval.saturating_mul(1 << self.kept.failures.min(10));
        Duration::from_secs(doubled.min(LONGEST_PAUSE.max(self.interval)))
    }

    /// The look ended.
    pub fn done(&mut self, report: &Report, unix_now: u64, now: Moment) -> Vec<Note> {
        self.under_way = None;
        self.finished = report.number;
        let mut notes = Vec::new();
        let mut tell = |kind, detail: String, is_alert| notes.push(Note { kind, detail, is_alert });
        if let Outcome::Failed(why) = &report.outcome {
            self.last = (why.clone(), false);
            self.kept.failures = self.kept.failures.saturating_add(1);
            self.next = now + self.pause();
            let (since, before) = self.kept.failing.take().map_or((unix_now, None), |(since, before)| (since, Some(before)));
            // Once each cause, not once each look.
            if before.as_ref() != Some(why) {
                tell("gitops_failed", why.clone(), false);
            }
            let failing = unix_now.saturating_sub(since);
            if failing >= ALERT_AFTER && !std::mem::replace(&mut self.kept.alerted, true) {
                tell("gitops_stale", format!("the repository could not be looked at for {} min: {why}", failing / 60), true);
            }
            self.kept.failing = Some((since, why.clone()));
            return notes;
        }
        if let Some((since, _)) = self.kept.failing.take() {
            tell("gitops_recovered", format!("the repository is in reach again, after {} s", unix_now.saturating_sub(since)), false);
        }
        (self.kept.failures, self.kept.alerted, self.kept.last_good) = (0, false, Some(unix_now));
        match &report.outcome {
            Outcome::InPlace(commit, hash) => {
                self.last = (format!("{} is in force", commit.short()), true);
                self.applied(commit, hash, unix_now).into_iter().for_each(|note| notes.push(note));
            }
            Outcome::Put { commit, hash, aside } => {
                self.last = (format!("{} is put in place: {}", commit.short(), commit.subject), true);
                self.applied(commit, hash, unix_now).into_iter().for_each(|note| notes.push(note));
                if let Some(aside) = aside {
                    let detail = format!(
                        "tenants.toml held what no commit says; that is kept as {}, and {} is back in place",
                        aside.display(),
                        commit.short()
                    );
                    notes.push(Note { kind: "gitops_edit_replaced", detail, is_alert: false });
                }
            }
            Outcome::Refused(commit, why) => {
                let detail = format!("{} by {} ({}) is not applied: {why}", commit.short(), commit.author, commit.subject);
                self.refuse(commit, why, detail, "gitops_refused", &mut notes);
            }
            Outcome::Rewritten(commit) => {
                let applied = self.kept.applied.as_ref().map_or("what is in force", |applied| applied.commit.short()).to_owned();
                let why = format!(
                    "{REWRITTEN}: it was not made on top of {applied}; put the history back, or `sq-agent gitops sync --accept-rewrite`"
                );
                let detail = format!("{} by {} ({}) is not applied: {why}", commit.short(), commit.author, commit.subject);
                self.refuse(commit, &why, detail, "gitops_rewritten", &mut notes);
            }
            Outcome::Failed(_) => {}
        }
        notes
    }

    fn applied(&mut self, commit: &Commit, hash: &str, unix_now: u64) -> Option<Note> {
        self.kept.refused = None;
        let known = self.kept.applied.as_ref().is_some_and(|applied| applied.commit.id == commit.id);
        if known {
            return None;
        }
        self.kept.applied = Some(Applied { commit: commit.clone(), hash: hash.to_owned(), at: unix_now });
        Some(Note {
            kind: "gitops_applied",
            detail: format!("{} by {}: {}", commit.short(), commit.author, commit.subject),
            is_alert: false,
        })
    }

    fn refuse(&mut self, commit: &Commit, why: &str, detail: String, kind: &'static str, notes: &mut Vec<Note>) {
        self.last = (detail.clone(), false);
        let refused = Some((commit.clone(), why.to_owned()));
        // Once each commit and cause, not once each look.
        if self.kept.refused != refused {
            notes.push(Note { kind, detail, is_alert: true });
            self.kept.refused = refused;
        }
    }

    /// What needs somebody at `unix_now`.
    pub fn troubles(&self, unix_now: u64) -> Vec<Trouble> {
        let failing = self.kept.failing.as_ref().filter(|(since, _)| unix_now.saturating_sub(*since) >= ALERT_AFTER);
        let failing = failing.map(|(since, why)| Trouble::Failing { since: *since, why: why.clone() });
        let refused = self.kept.refused.as_ref().map(|(commit, why)| {
            let text = format!("{} by {} ({}) is not applied: {why}", commit.short(), commit.author, commit.subject);
            let commit = commit.id.clone();
            if why.starts_with(REWRITTEN) { Trouble::Rewritten { commit, text } } else { Trouble::Refused { commit, text } }
        });
        failing.into_iter().chain(refused).collect()
    }

    /// How it stands.
    pub fn status(&self, source: &GitOps) -> GitOpsStatus {
        let applied = self.kept.applied.as_ref();
        GitOpsStatus {
            url: source.url.clone(),
            branch: source.branch.clone(),
            path: source.path.clone(),
            suspended: self.kept.suspended,
            applied: applied.map(|applied| applied.commit.clone()),
            applied_at: applied.map(|applied| rfc3339(applied.at)),
            refused: self.kept.refused.as_ref().map(|(commit, _)| commit.clone()),
            refused_because: self.kept.refused.as_ref().map(|(_, why)| why.clone()),
            webhook: source.webhook_secret_file.is_some(),
            last_webhook: self.kept.pushed_at.map(rfc3339),
            last_good: self.kept.last_good.map(rfc3339),
            failing_since: self.kept.failing.as_ref().map(|(since, _)| rfc3339(*since)),
            last_error: self.kept.failing.as_ref().map(|(_, why)| why.clone()),
            running: self.under_way,
            asked: self.asked.map(|(number, _)| number),
            finished: self.finished,
            last: self.last.0.clone(),
            last_good_look: self.last.1,
        }
    }
}

/// `seconds`, give or take a tenth.
fn spread(seconds: u64, chance: f64) -> Duration {
    Duration::from_secs(seconds).mul_f64(0.9 + 0.2 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::desired::parse;

    fn in_force() -> Arc<Desired> {
        Arc::new(parse("[gitops]\nurl = \"/srv/host.git\"\n", Path::new("/etc/t.toml")).unwrap())
    }

    fn commit(id: &str) -> Commit {
        Commit { id: id.into(), subject: "Add ada".into(), author: "Bob".into(), at: "2026-02-09T22:32:00Z".into() }
    }

    struct Host {
        book: Book,
        in_force: Arc<Desired>,
        now: Moment,
        unix_now: u64,
    }

    impl Host {
        fn new() -> Self {
            let now = Moment::from_millis(1_000_000);
            Self { book: Book::new(None, now), in_force: in_force(), now, unix_now: 1_000_000 }
        }

        fn after(&mut self, seconds: u64) -> Option<Job> {
            self.now = self.now + Duration::from_secs(seconds);
            self.unix_now += seconds;
            let source = self.in_force.gitops.clone().unwrap();
            self.book.due(&source, &self.in_force, self.now, 0.5)
        }

        fn done(&mut self, number: u64, outcome: Outcome) -> Vec<&'static str> {
            self.book.done(&Report { number, outcome }, self.unix_now, self.now).into_iter().map(|note| note.kind).collect()
        }
    }

    #[test]
    fn what_needs_somebody_is_there_until_it_is_mended() {
        let mut host = Host::new();
        let trouble = |host: &Host| host.book.troubles(host.unix_now).first().cloned();
        let look = |host: &mut Host, seconds, outcome| {
            let number = host.book.ask(false);
            host.after(seconds);
            host.done(number, outcome);
        };
        look(&mut host, 2, Outcome::InPlace(commit("a"), "h".into()));
        assert_eq!(trouble(&host), None);
        look(&mut host, 60, Outcome::Failed("no route".into()));
        let since = host.unix_now;
        look(&mut host, ALERT_AFTER - 1, Outcome::Failed("no route".into()));
        assert_eq!(trouble(&host), None, "it may pass");
        host.after(1);
        assert_eq!(trouble(&host), Some(Trouble::Failing { since, why: "no route".into() }));
        look(&mut host, 60, Outcome::Refused(commit("b"), "line 2".into()));
        assert!(
            matches!(trouble(&host), Some(Trouble::Refused { commit, text }) if commit == "b" && text.ends_with("is not applied: line 2"))
        );
        look(&mut host, 60, Outcome::Rewritten(commit("c")));
        assert!(matches!(trouble(&host), Some(Trouble::Rewritten { commit, text }) if commit == "c" && text.contains("--accept-rewrite")));
        look(&mut host, 60, Outcome::InPlace(commit("d"), "h".into()));
        assert_eq!(trouble(&host), None);
    }

    #[test]
    fn looks_come_by_the_interval_and_at_once_when_asked_for() {
        let mut host = Host::new();
        assert!(host.after(1).is_none());
        let job = host.after(1).unwrap();
        assert!(host.after(100).is_none(), "one is under way");
        let asked = host.book.ask(false);
        assert!(host.after(0).is_none(), "it waits, and is not forgotten");
        assert_eq!(host.done(job.number, Outcome::InPlace(commit("a"), "h".into())), ["gitops_applied"]);
        let second = host.after(0).unwrap();
        assert_eq!((second.number, second.applied.as_deref(), second.applied_hash.as_deref()), (asked, Some("a"), Some("h")));
        assert!(host.done(second.number, Outcome::InPlace(commit("a"), "h".into())).is_empty(), "nothing new");
        assert!(host.after(59).is_none());
        assert!(host.after(1).is_some());
        assert_eq!((spread(60, 0.0), spread(60, 1.0)), (Duration::from_secs(54), Duration::from_secs(66)));
    }

    #[test]
    fn a_push_is_looked_at_at_once_and_a_storm_of_them_once_a_second_and_once_more_after_it() {
        let mut host = Host::new();
        let job = host.after(2).unwrap();
        host.done(job.number, Outcome::InPlace(commit("a"), "h".into()));
        assert_eq!(host.book.next_look(), Some(host.now + Duration::from_secs(60)));
        // A hundred a second for ten seconds, each look taking no time.
        let (start, mut looks) = (host.now, Vec::new());
        for step in 0..1_000 {
            host.now = start + Duration::from_millis(10 * step);
            host.book.pushed(host.unix_now);
            if let Some(job) = host.after(0) {
                looks.push(host.now.since(start).as_millis());
                host.done(job.number, Outcome::InPlace(commit("a"), "h".into()));
            }
        }
        assert_eq!(looks, (0..10).map(|second| 1_000 * second).collect::<Vec<_>>());
        assert_eq!(host.book.next_look(), Some(start + Duration::from_secs(10)), "the last ones are not forgotten");
        host.now = start + Duration::from_secs(10);
        let job = host.after(0).unwrap();
        // One that comes while a look is under way may be too late for it.
        host.book.pushed(host.unix_now);
        assert!(host.after(5).is_none());
        assert_eq!(host.book.next_look(), None, "it waits for the look");
        host.done(job.number, Outcome::InPlace(commit("a"), "h".into()));
        assert!(host.after(0).is_some());
    }

    #[test]
    fn when_the_last_webhook_came_is_known_also_to_the_next_agent_and_suspended_none_is_looked_at() {
        let mut host = Host::new();
        let source = GitOps { webhook_secret_file: Some("/w".into()), ..host.in_force.gitops.clone().unwrap() };
        let job = host.after(2).unwrap();
        host.done(job.number, Outcome::InPlace(commit("a"), "h".into()));
        assert_eq!(host.book.status(&source).last_webhook, None);
        host.book.suspend(true, host.now);
        host.book.pushed(1_000_000);
        assert!(host.after(10).is_none());
        assert_eq!(host.book.next_look(), None);
        host.book = Book::new(Some(&host.book.kept()), host.now);
        let status = host.book.status(&source);
        assert_eq!((status.webhook, status.last_webhook.as_deref()), (true, Some("1970-01-12T13:46:40Z")));
        assert!(!host.book.status(&GitOps { webhook_secret_file: None, ..source }).webhook);
    }

    #[test]
    fn suspended_only_what_is_asked_for_is_looked_at() {
        let mut host = Host::new();
        assert!(host.book.suspend(true, host.now));
        assert!(!host.book.suspend(true, host.now));
        assert!(host.after(1_000).is_none());
        host.book.ask(false);
        let job = host.after(0).unwrap();
        host.done(job.number, Outcome::InPlace(commit("a"), "h".into()));
        let kept = host.book.kept();
        host.book = Book::new(Some(&kept), host.now);
        assert!(host.after(1_000).is_none(), "also by the next agent");
        host.book.suspend(false, host.now);
        assert!(host.after(0).is_some());
    }

    #[test]
    fn a_cause_is_told_once_an_alert_after_ten_minutes_and_pauses_grow() {
        let mut host = Host::new();
        let job = host.after(2).unwrap();
        assert_eq!(host.done(job.number, Outcome::Failed("no network".into())), ["gitops_failed"]);
        assert!(host.after(119).is_none(), "it doubles");
        let job = host.after(1).unwrap();
        assert!(host.done(job.number, Outcome::Failed("no network".into())).is_empty());
        let job = host.after(600).unwrap();
        assert_eq!(host.done(job.number, Outcome::Failed("no network".into())), ["gitops_stale"]);
        let job = host.after(600).unwrap();
        assert!(host.done(job.number, Outcome::Failed("no network".into())).is_empty());
        let job = host.after(600).unwrap();
        assert_eq!(host.done(job.number, Outcome::InPlace(commit("a"), "h".into())), ["gitops_recovered", "gitops_applied"]);
        assert!(host.after(60).is_some(), "and are short again");
    }

    #[test]
    fn a_bad_commit_is_told_once_and_forgotten_when_a_good_one_comes() {
        let mut host = Host::new();
        let source = host.in_force.gitops.clone().unwrap();
        let job = host.after(2).unwrap();
        host.done(job.number, Outcome::InPlace(commit("a"), "h".into()));
        let job = host.after(60).unwrap();
        assert_eq!(host.done(job.number, Outcome::Refused(commit("b"), "line 3".into())), ["gitops_refused"]);
        let job = host.after(60).unwrap();
        assert_eq!(job.applied.as_deref(), Some("a"));
        assert!(host.done(job.number, Outcome::Refused(commit("b"), "line 3".into())).is_empty());
        let status = host.book.status(&source);
        assert_eq!((status.refused_because.as_deref(), status.applied.unwrap().id.as_str()), (Some("line 3"), "a"));
        let job = host.after(60).unwrap();
        let put = Outcome::Put { commit: commit("c"), hash: "h2".into(), aside: Some("/x".into()) };
        assert_eq!(host.done(job.number, put), ["gitops_applied", "gitops_edit_replaced"]);
        assert_eq!(host.book.status(&source).refused, None);
        let job = host.after(60).unwrap();
        assert_eq!(host.done(job.number, Outcome::Rewritten(commit("z"))), ["gitops_rewritten"]);
    }

    #[test]
    fn of_another_repository_nothing_is_known() {
        let mut host = Host::new();
        let job = host.after(2).unwrap();
        host.done(job.number, Outcome::InPlace(commit("a"), "h".into()));
        let other = GitOps { branch: "next".into(), ..host.in_force.gitops.clone().unwrap() };
        host.now = host.now + Duration::from_secs(100);
        assert_eq!(host.book.due(&other, &host.in_force, host.now, 0.5).unwrap().applied, None);
    }
}
