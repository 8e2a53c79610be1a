//! All edits by program of one tenants.toml: one queue, in order, on a thread of its own.

use std::{fmt, io, path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};

use super::{apply::Refused, change::Change, plain, repository};
use crate::{
    child::{Cancel, Running},
    desired::Desired,
    file::FileError,
};

/// Edits that may wait. Whoever asks for more waits until there is room.
const QUEUE: usize = 1_024;
/// Edits that are written together at most.
const BATCH: usize = QUEUE;

/// Who asks for a change, and why: the author and the message of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// A name, such as that of an API key.
    pub name: String,
    /// A mail address.
    pub email: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// A change that stands where it is to stand: on the disk or, with `[gitops]`, on the branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// [`crate::desired::hash`] of a tenants.toml that has it.
    pub hash: String,
    /// It was not so before.
    pub changed: bool,
    /// The commit that made it; `None` without `[gitops]`, or where it was so before.
    pub commit: Option<String>,
}

/// Why a change was not made. Each says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EditError {
    /// It contradicts what is there.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// What a person left there is not in force; it is mended first.
    #[error("tenants.toml cannot be applied as it stands, so nothing is written into it: {0}")]
    Standing(String),
    /// The host could not follow the file with the change.
    #[error("with this change tenants.toml could not be applied: {0}")]
    Unfit(String),
    /// People write it all the time.
    #[error("tenants.toml was saved by somebody else at each of {0} attempts: try again")]
    Busy(usize),
    /// The disk, or what may be done on it.
    #[error("{0}; the agent has to be able to write tenants.toml and its directory: let it be a link to a file in a directory of its own")]
    File(Arc<FileError>),
    /// The repository.
    #[error("{0}")]
    Repository(String),
    /// People push all the time.
    #[error("{0}")]
    Overtaken(String),
    /// The agent is about to end.
    #[error("the agent ends: ask the next one")]
    Ending,
}

impl From<FileError> for EditError {
    fn from(error: FileError) -> Self {
        Self::File(Arc::new(error))
    }
}

/// What an [`Editor`] edits.
pub struct EditorParts {
    /// tenants.toml, as it was named.
    pub file: PathBuf,
    /// `[agent] state_dir`.
    pub state_dir: PathBuf,
    /// What is in force.
    pub in_force: watch::Receiver<Arc<Desired>>,
    /// Has the repository looked at now, since something was pushed.
    pub look: Box<dyn Fn() + Send>,
}

impl fmt::Debug for EditorParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EditorParts").field("file", &self.file).finish_non_exhaustive()
    }
}

/// A change that waits to be made.
#[derive(Debug)]
pub(super) struct One {
    pub(super) change: Change,
    pub(super) by: Author,
    /// It was made in a text that was put in place, if only for an instant: somebody may have seen it there, and saved on top of it.
    pub(super) placed: bool,
    answer: oneshot::Sender<Result<Made, EditError>>,
}

impl One {
    /// Whoever asked may have gone; the change was made all the same.
    pub(super) fn answer(self, answer: Result<Made, EditError>) {
        let _ = self.answer.send(answer);
    }
}

/// Makes changes in tenants.toml. Dropped, it ends what it is at, and leaves the rest.
#[derive(Debug)]
pub struct Editor {
    // Dropped first, so that the thread that is waited for then has nothing to wait for.
    queue: mpsc::Sender<One>,
    _thread: Running,
}

impl Editor {
    /// Takes changes from now on. What an agent that died left half done is ended first.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(parts: EditorParts) -> io::Result<Self> {
        let (queue, asked) = mpsc::channel(QUEUE);
        let thread = Running::start("edit", move |cancel| run(&parts, asked, cancel))?;
        Ok(Self { queue, _thread: thread })
    }

    /// Makes `change` for `by`. Returns once it stands on the disk, or on the branch; it is in force a moment later.
    ///
    /// # Errors
    /// It was not made.
    pub async fn make(&self, change: Change, by: Author) -> Result<Made, EditError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(One { change, by, placed: false, answer }).await.map_err(|_| EditError::Ending)?;
        answered.await.map_err(|_| EditError::Ending)?
    }
}

fn run(parts: &EditorParts, mut asked: mpsc::Receiver<One>, cancel: &Cancel) {
    plain::recover(parts);
    let mut next = None;
    while let Some(first) = next.take().or_else(|| asked.blocking_recv()) {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match asked.try_recv() {
                // Each may be made twice to no other end than once; two of one tenant together might not.
                Ok(other) if batch.iter().any(|one| one.change.id() == other.change.id()) => {
                    next = Some(other);
                    break;
                }
                Ok(other) => batch.push(other),
                Err(_) => break,
            }
        }
        if cancel.is_cancelled() {
            return;
        }
        let in_force = parts.in_force.borrow().clone();
        match &in_force.gitops {
            Some(source) => repository::edit(parts, source, &in_force, batch, cancel),
            None => plain::edit(parts, batch, cancel),
        }
    }
}

#[cfg(test)]
#[path = "editor_tests.rs"]
pub(super) mod tests;
