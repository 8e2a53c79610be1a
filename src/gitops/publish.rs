//! A change made on the branch: committed on top of its head and pushed; where somebody else pushed in between, made anew on top of that.
//!
//! Nothing is put in place here. It works in a repository of its own beside that of the looks, so that neither waits for the other.

use std::path::Path;

pub(crate) use super::git::Draft;
use super::{
    git::{Commit, Committer, Git, GitError},
    place,
    sync::{candidate, meant},
};
use crate::{
    child::Cancel,
    crash_point,
    desired::{Desired, GitOps, Rejected, hash},
};

/// How often a change is made anew because somebody else pushed in between.
pub(crate) const REBASES: usize = 5;

/// Where, and for which host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Branch<'a> {
    pub(crate) source: &'a GitOps,
    pub(crate) in_force: &'a Desired,
    pub(crate) file: &'a Path,
    pub(crate) state_dir: &'a Path,
}

/// What stands on the branch now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// [`hash`] of the last text.
    pub(crate) hash: String,
    /// The commits that were made, one a draft.
    pub(crate) commits: Vec<String>,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("{branch} is not edited: its head, {} by {}, cannot be applied: {why}; mend it by a commit", head.short(), head.author)]
    Head { branch: String, head: Box<Commit>, why: String },
    #[error(
        "only signed commits are applied (`verify` under [gitops]), and the agent has no key: write `signing_key_file` beside it, and its public half into {0}"
    )]
    NoKey(String),
    #[error("the agent's own commit would not be applied: {0}; is the public half of `signing_key_file` in it?")]
    Stranger(GitError),
    #[error("somebody else pushed to {branch} at each of {} attempts: try again", REBASES + 1)]
    Overtaken { branch: String },
}

/// Has `drafts` say which commits follow on the text of the head, with what that means, and pushes them.
pub(crate) fn publish<E: From<PublishError>>(
    at: &Branch<'_>,
    cancel: &Cancel,
    mut drafts: impl FnMut(&str, &Desired) -> Result<Vec<Draft>, E>,
) -> Result<Published, E> {
    let branch = &at.source.branch;
    let git = Git::new(at.source, &place(at.state_dir), "edit.git", cancel.clone()).map_err(PublishError::from)?;
    for _ in 0..=REBASES {
        let head = git.fetch(branch).map_err(PublishError::from)?;
        crash_point::reached("edit.fetched");
        let (text, old) = read(at, &git, &head)?;
        let drafts = drafts(&text, &old)?;
        let hash = hash(drafts.last().map_or(&text, |draft| &draft.text));
        let commits = commit(at, &git, &head, &drafts)?;
        let Some(last) = commits.last() else { return Ok(Published { hash, commits }) };
        crash_point::reached("edit.committed");
        if push(&git, &head, last, branch)? {
            crash_point::reached("edit.pushed");
            return Ok(Published { hash, commits });
        }
    }
    Err(PublishError::Overtaken { branch: branch.clone() }.into())
}

/// What `head` says. On one that would not be applied nothing is built: a signature of the agent's would cover what stands below it.
fn read(at: &Branch<'_>, git: &Git, head: &Commit) -> Result<(String, Desired), PublishError> {
    let read = candidate(git, head, at.source).and_then(|text| {
        let desired = meant(&text, at.source, at.file, Rejected::summary)?;
        at.in_force.may_become(&desired).map_err(GitError::Unfit)?;
        Ok((text, desired))
    });
    read.map_err(|error| match error {
        GitError::Unfit(why) => PublishError::Head { branch: at.source.branch.clone(), head: Box::new(head.clone()), why },
        other => other.into(),
    })
}

/// Makes the commits of `drafts`, one on top of the other.
fn commit(at: &Branch<'_>, git: &Git, head: &Commit, drafts: &[Draft]) -> Result<Vec<String>, PublishError> {
    let signing_key = at.source.signing_key_file.as_deref();
    if drafts.is_empty() {
        return Ok(Vec::new());
    }
    if let (Some(keys), None) = (&at.source.verify, signing_key) {
        return Err(PublishError::NoKey(keys.display().to_string()));
    }
    let by = Committer { identity: ("sq-agent".into(), format!("sq-agent@{}", at.in_force.name)), signing_key };
    let bench = git.bench(&head.id, &at.source.path)?;
    let mut commits: Vec<String> = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let parent = commits.last().unwrap_or(&head.id);
        commits.push(git.commit(&bench, parent, draft, &by)?);
    }
    if let (Some(keys), Some(last)) = (&at.source.verify, commits.last()) {
        git.verify(last, keys)
            .map_err(|error| if matches!(error, GitError::Unfit(_)) { PublishError::Stranger(error) } else { error.into() })?;
    }
    Ok(commits)
}

/// Whether `last`, made on top of `head`, is on the branch now; else somebody else's is.
fn push(git: &Git, head: &Commit, last: &str, branch: &str) -> Result<bool, PublishError> {
    let Err(refused) = git.push(last, branch) else { return Ok(true) };
    if !matches!(refused, GitError::Said { .. }) {
        return Err(refused.into());
    }
    let now = git.fetch(branch)?;
    match now.id == head.id {
        true => Err(refused.into()),
        // The answer to a push that came through was lost.
        false => Ok(git.is_ancestor(last, &now.id)?),
    }
}
