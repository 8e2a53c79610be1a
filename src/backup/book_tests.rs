//! The book over the days: what is due, what was missed, what is told.

use super::*;

const HOUR: u64 = 3_600;
/// Some day.
const DAY0: u64 = 1_800_000_000;

fn config() -> Backup {
    let text = "[backup]\nrepository = \"/r\"\npassword_file = \"/p\"\n";
    crate::desired::parse(text, "/t.toml".as_ref()).unwrap().backup.unwrap()
}

/// A host whose two clocks go together.
struct Clock {
    book: Book,
    backup: Backup,
    at: u64,
}

impl Clock {
    fn new(kept: Option<&str>, at: u64) -> Self {
        Self { book: Book::new(kept, moment(at)), backup: config(), at }
    }

    fn due(&mut self) -> Option<Job> {
        self.book.due(&self.backup, self.at, moment(self.at))
    }

    fn done(&mut self, backup: Result<&str, &str>) -> Vec<&'static str> {
        let taken = |id: &str| Taken { snapshot: id.into(), tenants: 3, copied: 1, added: 0, took_ms: 1 };
        let report = Report {
            number: 1,
            seen: backup.is_ok(),
            backup: backup.map(taken).map_err(str::to_owned),
            prune: None,
            check: None,
            test_restore: None,
        };
        self.reported(&report)
    }

    fn reported(&mut self, report: &Report) -> Vec<&'static str> {
        self.book.done(report, Some(&self.backup), self.at, moment(self.at)).into_iter().map(|note| note.kind).collect()
    }

    fn status(&self) -> BackupStatus {
        self.book.status(&self.backup, self.at)
    }
}

fn moment(at: u64) -> Moment {
    Moment::from_millis((at - DAY0 + 1_000_000) * 1_000)
}

#[test]
fn the_first_is_due_a_minute_after_the_start_and_the_next_an_interval_after_the_last_good_one_began() {
    let mut host = Clock::new(None, DAY0);
    assert_eq!(host.due(), None);
    host.at += 60;
    let job = host.due().unwrap();
    assert!(job.may_make && job.check && job.test_restore && job.prune);
    assert_eq!(host.due(), None, "one at a time");
    host.at += 600;
    assert_eq!(host.done(Ok("a")), ["backup_done"]);
    host.at = DAY0 + 60 + 6 * HOUR - 1;
    assert_eq!(host.due(), None);
    host.at += 1;
    let job = host.due().unwrap();
    assert!(!job.may_make, "it was there, so one that is gone is missed and not replaced");
}

#[test]
fn an_agent_that_starts_anew_knows_how_the_last_ones_went() {
    let mut host = Clock::new(None, DAY0);
    host.at += 60;
    host.due().unwrap();
    host.done(Ok("a"));
    let kept = host.book.kept();
    let mut next = Clock::new(Some(&kept), DAY0 + 2 * HOUR);
    next.at += 60;
    assert_eq!(next.due(), None, "not due yet");
    assert_eq!((next.status().snapshot.as_deref(), next.status().last_good_age_seconds), (Some("a"), Some(2 * HOUR)));
    next.at = DAY0 + 60 + 6 * HOUR;
    assert!(next.due().is_some());
}

#[test]
fn two_missed_in_a_row_are_told_once_and_a_good_one_ends_it() {
    let mut host = Clock::new(None, DAY0);
    host.at += 60;
    host.due().unwrap();
    host.done(Ok("a"));
    let mut told = Vec::new();
    let mut runs = 0;
    while host.at < DAY0 + 60 + 24 * HOUR {
        host.at += 60;
        if host.due().is_some() {
            runs += 1;
            for kind in host.done(Err("gone")) {
                if kind == "backup_missed" {
                    told.push((host.at - DAY0 - 60) / HOUR);
                }
            }
        }
    }
    assert_eq!(told, [12], "at the second that was due, and not again");
    assert!((18..=30).contains(&runs), "tried again every hour at last, not every minute: {runs}");
    assert!(host.status().overdue && host.status().misses >= 2);
    assert!(host.status().last_error.unwrap().contains("gone"));
    host.at += 2 * HOUR;
    host.due().unwrap();
    assert_eq!(host.done(Ok("b")), ["backup_done"]);
    let status = host.status();
    assert_eq!((status.misses, status.overdue, status.last_error), (0, false, None));
}

#[test]
fn an_agent_that_was_away_for_days_tries_before_it_complains() {
    let mut host = Clock::new(None, DAY0);
    host.at += 60;
    host.due().unwrap();
    host.done(Ok("a"));
    let mut next = Clock::new(Some(&host.book.kept()), DAY0 + 100 * HOUR);
    next.at += 60;
    assert!(next.book.look(&next.backup, next.at).is_none());
    assert!(next.due().is_some());
    assert_eq!(next.book.troubles(&next.backup, next.at), Troubles::default());
    assert_eq!(next.done(Err("gone")), ["backup_failed", "backup_missed"]);
    let missed = next.book.troubles(&next.backup, next.at).missed.unwrap();
    assert!(missed.contains("one is due every 6h") && missed.ends_with("gone"), "{missed}");
    next.at += HOUR;
    next.due().unwrap();
    next.done(Ok("b"));
    assert_eq!(next.book.troubles(&next.backup, next.at), Troubles::default());
}

#[test]
fn a_run_that_hangs_is_told_of() {
    let mut host = Clock::new(None, DAY0);
    host.at += 60;
    host.due().unwrap();
    host.at += 12 * HOUR - 1;
    assert_eq!(host.book.look(&host.backup, host.at), None);
    host.at += 1;
    assert_eq!(host.book.look(&host.backup, host.at).unwrap().kind, "backup_missed");
    assert_eq!(host.book.look(&host.backup, host.at), None, "once");
}

#[test]
fn what_a_person_asks_for_begins_at_once_or_after_what_is_under_way() {
    let mut host = Clock::new(None, DAY0);
    assert_eq!(host.book.ask(false), 1);
    assert_eq!(host.book.ask(true), 1, "both get the same");
    let job = host.due().unwrap();
    assert_eq!((job.number, job.may_make), (1, true));
    assert_eq!(host.book.ask(false), 2, "what is under way may have read already what was written since");
    assert_eq!(host.due(), None);
    host.done(Err("gone"));
    assert_eq!(host.due().unwrap().number, 2, "no pause where a person asks");
}

#[test]
fn a_clock_that_was_set_back_puts_nothing_off() {
    let mut host = Clock::new(None, DAY0 + 1_000 * HOUR);
    host.at += 60;
    host.due().unwrap();
    host.done(Ok("a"));
    let mut next = Clock::new(Some(&host.book.kept()), DAY0);
    next.at += 60;
    assert!(next.due().is_some());
}

#[test]
fn another_repository_begins_with_nothing() {
    let mut host = Clock::new(None, DAY0);
    host.at += 60;
    host.due().unwrap();
    host.done(Ok("a"));
    host.backup.repository = "/other".into();
    assert_eq!(host.status().last_good, None);
    let job = host.due().unwrap();
    assert!(job.may_make && job.check);
}

#[test]
fn what_one_step_found_stays_until_that_step_is_good_again() {
    let mut host = Clock::new(None, DAY0);
    host.book.ask(false);
    host.due().unwrap();
    let taken = Taken { snapshot: "a".into(), tenants: 1, copied: 1, added: 0, took_ms: 0 };
    let mismatch = Untrue::Mismatch { tenant: "ada".into(), difference: "x.phext differs at byte 3".into() };
    let mut report = Report {
        number: 1,
        seen: true,
        backup: Ok(taken),
        prune: Some(Ok(())),
        check: Some(Err("pack 1 is damaged".into())),
        test_restore: Some(Err(mismatch)),
    };
    assert_eq!(host.reported(&report), ["backup_done", "backup_check_failed", "backup_restore_mismatch"]);
    assert!(!host.status().last_run_good);
    host.at += 6 * HOUR;
    let job = host.due().unwrap();
    assert_eq!((job.check, job.test_restore, job.prune, job.suspect.as_deref()), (true, true, false, Some("ada")));
    (report.prune, report.check, report.test_restore) = (None, None, None);
    host.reported(&report);
    assert!(host.status().last_error.is_some(), "a good backup does not make the repository whole");
    host.at += 6 * HOUR;
    host.due().unwrap();
    (report.check, report.test_restore) = (Some(Ok(())), Some(Ok(Tried { tenant: "ada".into(), files: 1 })));
    assert_eq!(host.reported(&report), ["backup_done", "backup_checked", "backup_test_restored"]);
    assert_eq!(host.status().last_error, None);
    host.at += 6 * HOUR;
    let job = host.due().unwrap();
    assert_eq!((job.check, job.test_restore), (false, false));
}
