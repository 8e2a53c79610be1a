//! One look at the repository, and what it leads to. On a thread of its own, since all of it blocks.
//!
//! It may be killed at any instruction: the repository is fetched anew where it is broken, the file is put in place by one rename, and the next look
//! finds that it says what the commit says.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    book::{Job, Outcome, Report},
    git::{Commit, Git, GitError},
    place,
};
use crate::{
    child::{Cancel, Running},
    crash_point,
    desired::{self, Desired, GitOps, Rejected},
    file::{self, FileError, failed},
    store::{rfc3339, unix_now},
};

/// Begins `job` for the tenants.toml at `file`; `report` is called when it ends, unless it is broken off.
///
/// # Errors
/// There is no thread to be had.
pub fn start(job: Job, file: PathBuf, state_dir: PathBuf, report: impl FnOnce(Report) + Send + 'static) -> io::Result<Running> {
    Running::start("gitops", move |cancel| {
        let outcome = look(&job, &file, &state_dir, cancel).unwrap_or_else(|error| Outcome::Failed(error.to_string()));
        if !cancel.is_cancelled() {
            report(Report { number: job.number, outcome });
        }
    })
}

/// Puts the first tenants.toml in place at `file`, on a host that has none yet.
///
/// # Errors
/// In words, with a remedy.
pub fn first(source: &GitOps, file: &Path) -> Result<Commit, String> {
    // git runs elsewhere, and would look for `./tenants.toml` there.
    let file = &std::path::absolute(file).map_err(|error| failed("finding", file)(error).to_string())?;
    // Beside a link nothing may be written, perhaps.
    let place = target(file).with_extension("gitops");
    let fetched = (|| {
        let git = Git::new(source, &place, "repo.git", Cancel::default())?;
        let head = git.fetch(&source.branch)?;
        let text = candidate(&git, &head, source)?;
        meant(&text, source, file, Rejected::to_string)?;
        put(file, &text)?;
        Ok(head)
    })();
    // It is fetched again into the state directory, which was not known before.
    let _ = file::remove_tree(&place);
    fetched.map_err(|error: GitError| error.to_string())
}

fn look(job: &Job, file: &Path, state_dir: &Path, cancel: &Cancel) -> Result<Outcome, GitError> {
    let place = place(state_dir);
    let source = &job.source;
    let git = Git::new(source, &place, "repo.git", cancel.clone())?;
    let head = git.fetch(&source.branch)?;
    crash_point::reached("gitops.fetched");
    if let Some(applied) = job.applied.as_ref().filter(|applied| **applied != head.id && !job.accept_rewrite)
        && !git.is_ancestor(applied, &head.id)?
    {
        return Ok(Outcome::Rewritten(head));
    }
    match apply(job, &git, &head, &place, file) {
        Err(GitError::Unfit(why)) => Ok(Outcome::Refused(head, why)),
        outcome => outcome,
    }
}

/// Puts in place what `head` says.
fn apply(job: &Job, git: &Git, head: &Commit, place: &Path, file: &Path) -> Result<Outcome, GitError> {
    let commit = head.clone();
    let text = candidate(git, head, &job.source)?;
    let standing = fs::read_to_string(file).ok();
    if standing.as_deref() == Some(text.as_str()) {
        return Ok(Outcome::InPlace(commit, desired::hash(&text)));
    }
    let new = meant(&text, &job.source, file, Rejected::summary)?;
    job.in_force.may_become(&new).map_err(GitError::Unfit)?;
    // What stands there and came from no commit was written by a person: it is kept.
    let edited = standing.filter(|standing| job.applied_hash.as_ref() != Some(&desired::hash(standing)));
    // At the first look, a text that some commit has came from there: with `--git-url`, or with a disk.
    let from_a_commit = edited.is_some() && job.applied.is_none() && git.has(file)?;
    let edited = edited.filter(|_| !from_a_commit);
    let aside = edited.map(|edited| keep_aside(place, &edited)).transpose()?;
    crash_point::reached("gitops.judged");
    put(file, &text)?;
    crash_point::reached("gitops.put");
    Ok(Outcome::Put { commit, hash: desired::hash(&text), aside })
}

/// The text of the desired state in `head`, if a known key signed `head`.
pub(super) fn candidate(git: &Git, head: &Commit, source: &GitOps) -> Result<String, GitError> {
    if let Some(keys) = &source.verify {
        git.verify(&head.id, keys)?;
    }
    let bytes = git.file(&head.id, &source.path)?;
    String::from_utf8(bytes).map_err(|_| GitError::Unfit(format!("{} is not UTF-8", source.path)))
}

/// What `text` would mean at `file`, if it can; `told` words why not.
pub(super) fn meant(text: &str, source: &GitOps, file: &Path, told: fn(&Rejected) -> String) -> Result<Desired, GitError> {
    let desired = desired::load_candidate(text, file).map_err(|rejected| GitError::Unfit(told(&rejected)))?;
    if desired.gitops.is_none() {
        return Err(GitError::Unfit(format!(
            "its {} has no [gitops], which would cut this host off from its repository: write [gitops] with url = {:?} into it",
            source.path, source.url
        )));
    }
    Ok(desired)
}

/// Keeps a text that a person wrote, under the time of now.
fn keep_aside(place: &Path, text: &str) -> Result<PathBuf, FileError> {
    let directory = place.join("edited");
    fs::create_dir_all(&directory).map_err(failed("making", &directory))?;
    let path = directory.join(format!("{}.toml", rfc3339(unix_now()).replace(':', "")));
    file::write_whole(&path, text.as_bytes()).map_err(failed("writing", &path))?;
    Ok(path)
}

/// `file`, or what it names where it is a link.
fn target(file: &Path) -> PathBuf {
    fs::read_link(file).map_or_else(|_| file.to_owned(), |target| file.parent().unwrap_or(Path::new("/")).join(target))
}

/// Puts `text` in place at `file` in one step, for whoever could read it before. A link stays one: what it names is replaced.
fn put(file: &Path, text: &str) -> Result<(), GitError> {
    let file = target(file);
    file::write_whole(&file, text.as_bytes()).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => GitError::NotWritable { file, error },
        _ => failed("writing", &file)(error).into(),
    })
}
