//! What commands and the admin API ask of the loop, and how the answer comes back.

use std::path::PathBuf;

use http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::{
    page::{EventsWish, TenantsWish},
    sight::Look,
    status::RestoreRequest,
};
use crate::{desired::TenantId, edit::Change};

/// What is asked of the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// How everything stands.
    Status,
    /// What a plan starts from.
    Observed,
    /// Let the held removals of this hash through, or a roll-out that went back try once more.
    Confirm(String),
    /// Restart this tenant's instance.
    Restart(TenantId),
    /// Take a backup off this host, which may make a repository where one was before.
    Backup {
        /// It may.
        may_make: bool,
    },
    /// About the repository that tenants.toml comes from.
    GitOps(GitOpsAsked),
    /// Take a snapshot.
    Snapshot(TenantId),
    /// Put one back.
    Restore(RestoreRequest),
    /// How one tenant stands.
    Tenant(TenantId),
    /// A page of the tenants.
    Tenants(TenantsWish),
    /// What one tenant uses.
    Usage(TenantId),
    /// What the tenants of a page use.
    Usages(TenantsWish),
    /// The instance of every tenant, in a word.
    Health,
    /// A page of what happened.
    Events(EventsWish),
    /// Say when this is so, or after 30 s what is still to come.
    Await(Awaited),
    /// Restart this tenant's instance, and say when another one answers.
    RestartAndAwait(TenantId),
    /// A request with an Idempotency-Key begins.
    Begin(RequestName),
    /// The request that is looked up by this ended: with an answer that is to be kept, or so that it may be made anew.
    End(String, Option<Vec<u8>>),
    /// Note an event: about whom, of which kind, in words.
    Note(Option<TenantId>, &'static str, String),
}

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awaited {
    /// A change that stands in tenants.toml, or on the branch, is carried out.
    Change(Change),
    /// The tenant runs in a later start than this.
    Restart(TenantId, u64),
}

impl Awaited {
    /// Whom it concerns.
    pub fn id(&self) -> &TenantId {
        match self {
            Self::Change(change) => change.id(),
            Self::Restart(id, _) => id,
        }
    }
}

/// A request that is to be done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestName {
    /// Made of its Idempotency-Key; says nothing of it.
    pub lookup: String,
    /// Made of all that it asks.
    pub fingerprint: String,
}

/// What is asked of the repository that tenants.toml comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitOpsAsked {
    /// A look now.
    Sync {
        /// Also where the branch was rewritten.
        accept_rewrite: bool,
    },
    /// No more looks, or looks again.
    Suspend(bool),
}

/// What the loop says to a question.
#[derive(Debug)]
pub enum Reply {
    /// This.
    Now(Answer),
    /// What it says once the work of this number has ended.
    Later(u64),
}

/// The answer: a JSON body, or why not.
pub type Answer = Result<Vec<u8>, (StatusCode, String)>;

/// A question on its way to the loop.
pub type Asked = (Question, oneshot::Sender<Answer>);

/// Hand the host over to the program at this path. It is not the loop that answers, since the loop ends by it.
pub type UpgradeAsked = (PathBuf, oneshot::Sender<Answer>);

/// Where questions go.
#[derive(Debug, Clone)]
pub struct Desk {
    /// To the loop.
    pub questions: mpsc::Sender<Asked>,
    /// To the loop, from the page.
    pub looks: mpsc::Sender<Look>,
    /// To whoever runs the loop.
    pub upgrades: mpsc::Sender<UpgradeAsked>,
}

impl Desk {
    /// Asks the loop.
    ///
    /// # Errors
    /// What it says against it; 503 where it ends.
    pub async fn ask(&self, question: Question) -> Answer {
        ask(&self.questions, question).await
    }

    /// Looks at what the loop has; none where it ends.
    pub async fn look<T>(&self, at: impl FnOnce(oneshot::Sender<T>) -> Look) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.looks.send(at(sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Asks for an upgrade to the program at `exe`.
    ///
    /// # Errors
    /// It did not take over; 503 where the agent ends.
    pub async fn upgrade(&self, exe: PathBuf) -> Answer {
        ask(&self.upgrades, exe).await
    }
}

async fn ask<Q>(to: &mpsc::Sender<(Q, oneshot::Sender<Answer>)>, question: Q) -> Answer {
    let stopping = || Err((StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".to_owned()));
    let (sender, receiver) = oneshot::channel();
    match to.send((question, sender)).await {
        Ok(()) => receiver.await.unwrap_or_else(|_| stopping()),
        Err(_) => stopping(),
    }
}
