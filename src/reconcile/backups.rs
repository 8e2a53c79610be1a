//! The loop's part in the backups off this host: begins what is due, takes in what came of it, tells people.

use http::StatusCode;

use super::{
    core::Core,
    report::json,
    world::{Memo, Records, World},
};
use crate::{
    admin::{
        question::Answer,
        status::{BackupBegun, BackupStatus},
    },
    backup::{Book, Report, book::Note},
    observed::Moment,
};

/// What the loop knows of them.
#[derive(Debug)]
pub(super) struct Backups {
    book: Book,
    /// What the records have.
    kept: String,
}

impl Backups {
    pub(super) fn new(kept: Option<String>, started: Moment) -> Self {
        Self { book: Book::new(kept.as_deref(), started), kept: kept.unwrap_or_default() }
    }
}

impl<W: World> Core<W> {
    /// Begins a backup where one is due.
    pub(super) fn back_up(&mut self, now: Moment) {
        let Some(backup) = self.desired.backup.clone().filter(|_| !self.is_stopping()) else { return };
        let unix_now = self.world.unix_now();
        if let Some(job) = self.backups.book.due(&backup, unix_now, now) {
            tracing::info!(run = job.number, check = job.check, test_restore = job.test_restore, "a backup begins");
            self.world.back_up(job);
        }
        let late = self.backups.book.look(&backup, unix_now);
        self.tell(late.into_iter().collect());
    }

    pub(super) fn backed_up(&mut self, report: &Report, now: Moment) {
        let unix_now = self.world.unix_now();
        let backup = self.desired.backup.clone();
        let notes = self.backups.book.done(report, backup.as_ref(), unix_now, now);
        self.tell(notes);
        self.back_up(now);
    }

    fn tell(&mut self, notes: Vec<Note>) {
        for Note { kind, detail, is_alert } in notes {
            match (is_alert, kind.ends_with("_failed")) {
                (true, _) => tracing::error!(kind, detail, "the backups need somebody"),
                (false, true) => tracing::warn!(kind, detail, "a backup"),
                (false, false) => tracing::info!(kind, detail, "a backup"),
            }
            self.note_event(None, kind, &detail);
        }
        let kept = self.backups.book.kept();
        if kept != self.backups.kept {
            match self.world.records().keep(Memo::Backups, &kept) {
                Ok(()) => self.backups.kept = kept,
                Err(error) => tracing::error!(%error, "how the backups went cannot be noted"),
            }
        }
    }

    /// A person wants one now.
    pub(super) fn ask_for_backup(&mut self, may_make: bool, now: Moment) -> Answer {
        if self.is_stopping() {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".into()));
        }
        if self.desired.backup.is_none() {
            let text = "tenants.toml has no [backup]: write `repository` and `password_file` under it";
            return Err((StatusCode::CONFLICT, text.into()));
        }
        let run = self.backups.book.ask(may_make);
        self.back_up(now);
        json(&BackupBegun { detail: format!("backup {run} is to be made"), run })
    }

    pub(super) fn backup_book(&self) -> &Book {
        &self.backups.book
    }

    pub(super) fn backup_status(&self) -> Option<BackupStatus> {
        let unix_now = self.world.unix_now();
        self.desired.backup.as_ref().map(|backup| self.backups.book.status(backup, unix_now))
    }
}
