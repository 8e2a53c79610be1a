//! Edits of a tenants.toml that comes from a git repository: each is a commit on the branch.

use std::sync::Arc;

use super::{
    apply::{Edited, apply},
    editor::{Author, EditError, EditorParts, Made, One},
    plain::{Outcome, check},
};
use crate::{
    child::Cancel,
    desired::{Desired, GitOps},
    gitops::publish::{Branch, Draft, PublishError, publish},
};

impl From<PublishError> for EditError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Overtaken { .. } => Self::Overtaken(error.to_string()),
            error => Self::Repository(error.to_string()),
        }
    }
}

/// Commits that are pushed together at most: all of them are made anew where somebody else pushed in between.
const BATCH: usize = 32;

/// Makes the changes of a batch, no two of one tenant, and answers each.
pub(super) fn edit(parts: &EditorParts, source: &GitOps, in_force: &Arc<Desired>, mut batch: Vec<One>, cancel: &Cancel) {
    let rest = batch.split_off(batch.len().min(BATCH));
    edit_together(parts, source, in_force, batch, cancel);
    if !rest.is_empty() && !cancel.is_cancelled() {
        edit(parts, source, in_force, rest, cancel);
    }
}

fn edit_together(parts: &EditorParts, source: &GitOps, in_force: &Arc<Desired>, batch: Vec<One>, cancel: &Cancel) {
    let at = Branch { source, in_force, file: &parts.file, state_dir: &parts.state_dir };
    let mut outcomes: Vec<Outcome> = Vec::new();
    let published = publish(&at, cancel, |text, old| {
        let (drafts, all) = drafts(parts, text, old, &batch)?;
        outcomes = all;
        Ok(drafts)
    });
    match published {
        Ok(published) => {
            let mut commits = published.commits.into_iter();
            for (one, outcome) in batch.into_iter().zip(outcomes) {
                let hash = published.hash.clone();
                one.answer(match outcome {
                    Ok(changed) => Ok(Made { hash, changed, commit: if changed { commits.next() } else { None } }),
                    Err(refused) => Err(refused.into()),
                });
            }
            // Also where nothing was pushed: what is asked for may stand on the branch and not be in force.
            (parts.look)();
        }
        // One of them is at fault, and the others are not to suffer for it; or all of them together take too long.
        Err(EditError::Unfit(_) | EditError::Overtaken(_)) if batch.len() > 1 => {
            batch.into_iter().for_each(|one| edit(parts, source, in_force, vec![one], cancel));
        }
        Err(error) => batch.into_iter().for_each(|one| one.answer(Err(error.clone()))),
    }
}

/// A commit for each change that is to be made on top of `text`, and what becomes of each.
fn drafts(parts: &EditorParts, text: &str, old: &Desired, batch: &[One]) -> Result<(Vec<Draft>, Vec<Outcome>), EditError> {
    let (mut text, mut old) = (text.to_owned(), old.clone());
    let (mut drafts, mut outcomes) = (Vec::new(), Vec::new());
    for one in batch {
        let outcome = match apply(&text, &one.change) {
            Ok(Edited::Changed(new)) => {
                // Each commit is one that could be applied.
                old = check(parts, &[&one.change], &old, &new)?;
                drafts.push(Draft { text: new.clone(), author: author(&one.by), message: message(one) });
                text = new;
                Ok(true)
            }
            Ok(Edited::Unchanged) => Ok(false),
            Err(refused) => Err(refused),
        };
        outcomes.push(outcome);
    }
    Ok((drafts, outcomes))
}

fn author(by: &Author) -> (String, String) {
    let name = if by.name.trim().is_empty() { "admin API" } else { by.name.trim() };
    (name.to_owned(), by.email.clone().unwrap_or_else(|| "sq-agent@localhost".into()))
}

/// What is done, and behind it why.
fn message(one: &One) -> String {
    let reason = one.by.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    match reason {
        Some(reason) if !reason.contains('\n') && reason.len() <= 72 => format!("{}: {reason}", one.change),
        Some(reason) => format!("{}\n\n{reason}", one.change),
        None => one.change.to_string(),
    }
}

#[cfg(test)]
#[path = "repository_tests.rs"]
mod tests;
