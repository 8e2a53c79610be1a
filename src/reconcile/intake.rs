//! Takes in tenants.toml: what is in force, what was refused, and since when.

use super::world::{Refusal, World};
use crate::{desired::Desired, observed::Moment};

/// Where the file stands against what is in force.
#[derive(Debug)]
pub struct Intake {
    /// Content that was last looked at; `None` where there was no file.
    seen: Option<[u8; 32]>,
    refused: Option<Refused>,
}

/// Why the file as it stands is not in force.
#[derive(Debug)]
struct Refused {
    since: Moment,
    text: String,
}

/// What a look at the file gave.
#[derive(Debug)]
pub enum Taken {
    /// Nothing new.
    Same,
    /// A valid desired state, and the text that says so.
    New(Box<Desired>, String),
    /// It cannot be applied; what is in force stays. One line that names place and remedy.
    Refused(String),
}

impl Intake {
    /// Starts from a desired state that was loaded from the file, or from its last good copy where the file itself was `refused`.
    pub fn new(fingerprint: Option<[u8; 32]>, refused: Option<String>, now: Moment) -> Self {
        Self { seen: fingerprint, refused: refused.map(|text| Refused { since: now, text }) }
    }

    /// Looks at the file; `in_force` is what a new state must be able to follow.
    ///
    /// While the file is refused it is tried at each look: what it names, a secret file say, may have been mended.
    pub fn look(&mut self, world: &mut impl World, in_force: &Desired, now: Moment) -> Taken {
        let fingerprint = world.fingerprint();
        if fingerprint == self.seen && self.refused.is_none() {
            return Taken::Same;
        }
        self.seen = fingerprint;
        match world.load().and_then(|(new, text)| match in_force.may_become(&new) {
            Ok(()) => Ok((new, text)),
            Err(why) => Err(Refusal { summary: why.clone(), text: why }),
        }) {
            Ok((new, text)) => {
                self.refused = None;
                Taken::New(Box::new(new), text)
            }
            Err(Refusal { summary, text }) => {
                let since = self.refused.as_ref().map_or(now, |refused| refused.since);
                let said = self.refused.as_ref().is_some_and(|refused| refused.text == text);
                self.refused = Some(Refused { since, text });
                if said { Taken::Same } else { Taken::Refused(summary) }
            }
        }
    }

    /// Seconds for which the file could not be applied, and why.
    pub fn stale(&self, now: Moment) -> Option<(u64, &str)> {
        self.refused.as_ref().map(|refused| (now.since(refused.since).as_secs().max(1), refused.text.as_str()))
    }
}

/// Keys whose change takes effect only when the agent starts anew, for status and log.
pub fn pending_restart(started_with: &Desired, now: &Desired) -> Vec<String> {
    let mut keys = Vec::new();
    if started_with.isolation != now.isolation {
        keys.push("[agent] isolation".to_owned());
    }
    keys
}
