//! The loop's part in following a git repository: begins the looks that are due, takes in what came of them, tells people. What a look puts in
//! place is a new tenants.toml like any other.

use http::StatusCode;

use super::{
    core::Core,
    report::json,
    world::{Memo, Records, World},
};
use crate::{
    admin::{
        question::{Answer, GitOpsAsked},
        status::{GitOpsStatus, SyncBegun},
    },
    crash_point,
    gitops::{Book, Report},
    observed::Moment,
};

/// What the loop knows of the repository.
#[derive(Debug)]
pub(super) struct Following {
    book: Book,
    /// What the records have.
    kept: String,
}

impl Following {
    pub(super) fn new(kept: Option<String>, started: Moment) -> Self {
        Self { book: Book::new(kept.as_deref(), started), kept: kept.unwrap_or_default() }
    }
}

impl<W: World> Core<W> {
    /// Begins a look at the repository where one is due.
    pub(super) fn follow_repository(&mut self, now: Moment) {
        let Some(source) = self.desired.gitops.clone().filter(|_| !self.is_stopping()) else { return };
        let chance = self.world.jitter();
        if let Some(job) = self.following.book.due(&source, &self.desired, now, chance) {
            self.world.sync(job);
        }
    }

    /// A webhook says that somebody pushed.
    pub(super) fn pushed(&mut self, now: Moment) {
        let unix_now = self.world.unix_now();
        self.following.book.pushed(unix_now);
        self.follow_repository(now);
    }

    /// When the repository is to be looked at next, if nobody asks before.
    pub(super) fn next_look_at_repository(&self) -> Option<Moment> {
        self.following.book.next_look().filter(|_| !self.is_stopping() && self.desired.gitops.is_some())
    }

    pub(super) fn synced(&mut self, report: &Report, now: Moment) {
        let unix_now = self.world.unix_now();
        for note in self.following.book.done(report, unix_now, now) {
            let (kind, detail) = (note.kind, note.detail);
            if note.is_alert {
                tracing::error!(kind, detail, "the repository needs somebody");
            } else {
                tracing::info!(kind, detail, "the repository");
            }
            self.note_event(None, kind, &detail);
        }
        crash_point::reached("gitops.told");
        self.keep_following();
        // The watch tells of it too; this is sooner.
        self.reload(now);
        self.follow_repository(now);
    }

    fn keep_following(&mut self) {
        let kept = self.following.book.kept();
        if kept != self.following.kept {
            match self.world.records().keep(Memo::GitOps, &kept) {
                Ok(()) => self.following.kept = kept,
                Err(error) => tracing::error!(%error, "what is known of the repository cannot be noted"),
            }
        }
    }

    /// A person, or a push, asks for something.
    pub(super) fn ask_gitops(&mut self, asked: GitOpsAsked, now: Moment) -> Answer {
        if self.desired.gitops.is_none() {
            return Err((StatusCode::CONFLICT, "tenants.toml has no [gitops]: write `url` under it".into()));
        }
        match asked {
            GitOpsAsked::Sync { accept_rewrite } => {
                let number = self.following.book.ask(accept_rewrite);
                self.follow_repository(now);
                json(&SyncBegun { detail: format!("look {number} is to be made"), number })
            }
            GitOpsAsked::Suspend(suspended) => {
                let detail =
                    if suspended { "the repository is not looked at until `sq-agent gitops resume`" } else { "the repository is followed" };
                if self.following.book.suspend(suspended, now) {
                    let kind = if suspended { "gitops_suspended" } else { "gitops_resumed" };
                    self.note_event(None, kind, detail);
                    self.keep_following();
                }
                self.follow_repository(now);
                json(&serde_json::json!({ "detail": detail }))
            }
        }
    }

    pub(super) fn gitops_book(&self) -> &Book {
        &self.following.book
    }

    pub(super) fn gitops_status(&self) -> Option<GitOpsStatus> {
        self.desired.gitops.as_ref().map(|source| self.following.book.status(source))
    }
}
