//! Edits of a tenants.toml that lies on this host, without `[gitops]`.

use std::time::Duration;

use super::{
    apply::{Refused, apply_all},
    change::{Change, leads},
    editor::{EditError, EditorParts, Made, One},
    place::{Place, Placed},
};
use crate::{
    child::Cancel,
    desired::{self, Desired, Rejected},
};

/// How often an edit is begun anew before it is given up.
const ATTEMPTS: usize = 50;
/// So long a new text has to have stood before it is acknowledged. An editor looks whether the file has changed since it was read, and then saves;
/// what it so saves over, within this, is written once more.
const STANDS: Duration = Duration::from_millis(100);
/// Before a file is looked at again that somebody is just saving, or that cannot be applied: half of one is no good either.
const PAUSE: Duration = Duration::from_millis(50);
/// So often in a row a file is found bad before it counts as bad.
const LOOKS: usize = 6;

/// Ends what an agent that died left half done.
pub(super) fn recover(parts: &EditorParts) {
    if let Err(error) = Place::of(&parts.file, &parts.state_dir).and_then(|place| place.recover()) {
        tracing::error!(%error, "what an edit of tenants.toml left beside it cannot be looked at");
    }
}

/// Makes the changes of a batch, no two of one tenant, and answers each.
pub(super) fn edit(parts: &EditorParts, mut batch: Vec<One>, cancel: &Cancel) {
    match attempts(parts, &mut batch, cancel) {
        Ok((hash, outcomes)) => {
            for (one, outcome) in batch.into_iter().zip(outcomes) {
                let changed = one.placed;
                one.answer(outcome.map(|_| Made { hash: hash.clone(), changed, commit: None }).map_err(EditError::from));
            }
        }
        // One of them is at fault, and the others are not to suffer for it.
        Err(EditError::Unfit(_)) if batch.len() > 1 => batch.into_iter().for_each(|one| edit(parts, vec![one], cancel)),
        Err(error) => batch.into_iter().for_each(|one| one.answer(Err(error.clone()))),
    }
}

/// Goes on until a text with all that can be made has stood for a while. Returns its hash, and what became of each change.
fn attempts(parts: &EditorParts, batch: &mut [One], cancel: &Cancel) -> Result<(String, Vec<Outcome>), EditError> {
    for _ in 0..ATTEMPTS {
        let (old, base) = standing(parts, cancel)?;
        let (text, outcomes) = all_applied(&base, batch);
        if text == base {
            return Ok((old.hash, outcomes));
        }
        let made = batch.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(one, _)| &one.change);
        check(parts, &made.collect::<Vec<_>>(), &old, &text)?;
        // A link may have come to name another file.
        let placed = Place::of(&parts.file, &parts.state_dir)?.replace(base.as_bytes(), text.as_bytes())?;
        batch.iter_mut().zip(&outcomes).for_each(|(one, outcome)| one.placed |= *outcome == Ok(true));
        wait(if placed == Placed::Done { STANDS } else { PAUSE }, cancel)?;
    }
    Err(EditError::Busy(ATTEMPTS))
}

/// The file as it stands, if it can be applied.
fn standing(parts: &EditorParts, cancel: &Cancel) -> Result<(Desired, String), EditError> {
    let mut looks = 0;
    loop {
        let loaded = desired::load_with_text(&parts.file).map_err(|rejected| rejected.summary());
        let fault = match loaded.and_then(|(found, text)| parts.in_force.borrow().may_become(&found).map(|()| (found, text))) {
            Ok(good) => return Ok(good),
            Err(fault) => fault,
        };
        looks += 1;
        if looks == LOOKS {
            return Err(EditError::Standing(fault));
        }
        wait(PAUSE, cancel)?;
    }
}

/// What became of a change in a text: whether it had to be made, or why it cannot.
pub(super) type Outcome = Result<bool, Refused>;

/// `base` with all that can be made.
fn all_applied(base: &str, batch: &[One]) -> (String, Vec<Outcome>) {
    let changes: Vec<&Change> = batch.iter().map(|one| &one.change).collect();
    let (text, mut outcomes) = apply_all(base, &changes);
    for (one, outcome) in batch.iter().zip(&mut outcomes) {
        let is_gone = matches!((&one.change, &outcome), (Change::Remove { .. }, Err(Refused::UnknownTenant(_))));
        if one.placed && is_gone {
            // By us, in an attempt before this one.
            *outcome = Ok(false);
        }
    }
    (text, outcomes)
}

/// That `text` can be applied, and says nothing but what is meant.
pub(super) fn check(parts: &EditorParts, changes: &[&Change], old: &Desired, text: &str) -> Result<Desired, EditError> {
    let unfit = |rejected: Rejected| EditError::Unfit(rejected.summary());
    let new = desired::load_candidate(text, &parts.file).map_err(unfit)?;
    if !leads(changes, old, &new) {
        let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
        return Err(EditError::Unfit(format!("it would say something else beside it ({}): edit it by hand", told.join(", "))));
    }
    Ok(new)
}

fn wait(time: Duration, cancel: &Cancel) -> Result<(), EditError> {
    if cancel.wait(time) { Err(EditError::Ending) } else { Ok(()) }
}
