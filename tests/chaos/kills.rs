//! Who was killed when, to tell whether a failed request was in the hands of somebody who died.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Whose death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Death {
    /// That of a tenant's sq.
    Sq(String),
    /// That of the proxy that served.
    Proxy,
    /// That of the agent.
    Agent,
}

/// Every kill, with the moments before and after it.
#[derive(Debug, Default)]
pub(crate) struct Kills(Mutex<Vec<(Instant, Instant, Death)>>);

/// From the signal until the last socket of the dead process is closed: its memory is freed first.
const DYING: Duration = Duration::from_millis(500);

/// The end of a kill that is under way.
const FAR: Duration = Duration::from_secs(3_600);

impl Kills {
    /// Kills, and notes when: before it does, since whoever is hit may ask for the reason before this goes on.
    pub(crate) fn note(&self, death: Death, kill: impl FnOnce()) {
        let before = Instant::now();
        let at = {
            let mut kills = self.0.lock().unwrap();
            kills.push((before, before + FAR, death));
            kills.len() - 1
        };
        kill();
        self.0.lock().unwrap()[at].1 = Instant::now() + DYING;
    }

    /// How many deaths of this kind there were.
    pub(crate) fn count(&self, of: &Death) -> usize {
        self.0.lock().unwrap().iter().filter(|(_, _, death)| death == of).count()
    }

    /// What died last before `moment`, and how long before.
    pub(crate) fn latest(&self, moment: Instant) -> String {
        let kills = self.0.lock().unwrap();
        let last = kills.iter().rev().find(|(before, ..)| *before <= moment);
        last.map_or_else(String::new, |(before, _, death)| format!("{death:?} died {:.1?} before", moment - *before))
    }

    /// Whether the proxy, or the sq of `id`, died between `from` and `to`.
    pub(crate) fn explain(&self, id: &str, from: Instant, to: Instant) -> bool {
        let concerns = |death: &Death| match death {
            Death::Sq(of) => of == id,
            Death::Proxy => true,
            Death::Agent => false,
        };
        self.0.lock().unwrap().iter().any(|(before, after, death)| concerns(death) && *before <= to && *after >= from)
    }
}
