//! Finds sq and carries a roll-out along: off the loop; nothing starts without a program, nothing stops for want of it.

use std::time::Duration;

use super::{
    core::Core,
    rollout::{self, Step},
    world::{Memo, Records, World},
};
use crate::{admin::status::RolloutStatus, desired::TenantId, instance::binary::SqBinary, observed::Moment};

/// Between two tries to get a program that cannot be had.
const RETRY: Duration = Duration::from_secs(60);

impl<W: World> Core<W> {
    /// The program that tenants.toml names is there.
    pub fn set_program(&mut self, program: SqBinary) {
        self.program_found(&self.desired.sq.identity(), Ok(program));
        // The one before it may be needed, too.
        self.find_program();
    }

    /// Looks for the programs that are needed, or installs them; what runs goes on meanwhile.
    pub fn find_program(&mut self) {
        for source in self.programs.needed() {
            if self.programs.get(&source.identity()).is_none() {
                self.world.find_program(&source, Duration::ZERO);
            }
        }
    }

    /// The search for the program named `identity` ended; one that is not needed any more is no news.
    pub(super) fn program_found(&mut self, identity: &str, found: Result<SqBinary, String>) {
        let Some(source) = self.programs.needed().into_iter().find(|source| source.identity() == identity) else { return };
        match found {
            Ok(program) => {
                tracing::info!(path = %program.path.display(), version = %program.version, "sq is there");
                self.programs.insert(identity.to_owned(), program);
                self.observed.programs.insert(identity.to_owned());
                if source == *self.programs.target() {
                    self.alerting.heard_of_sq(None);
                }
                self.replan = true;
            }
            Err(error) if source != *self.programs.target() => {
                // The one before is gone: there is no way back to it, and who has none gets the new one.
                tracing::warn!(program = identity, error, "the sq that ran before cannot be had any more");
                self.settle();
            }
            Err(error) => {
                tracing::error!(error, "sq cannot be had: what runs goes on, nothing is started; tried again in a minute");
                self.note_event(None, "sq_missing", &error);
                self.alerting.heard_of_sq(Some((identity.to_owned(), error)));
                self.world.find_program(&source, RETRY);
            }
        }
    }

    /// Gives the desired program to whoever's turn it is.
    pub(super) fn roll_out(&mut self, now: Moment) {
        // Without a roll-out nobody's program changes between two full plans; in one, every piece of news may matter.
        let rolling = self.is_rolling_out();
        if !self.replan && (self.touched.is_empty() || !rolling) {
            return;
        }
        let (to, from) = (self.programs.target().identity(), self.programs.proved().identity());
        if self.programs.get(&to).is_none() {
            return; // nobody can have it yet
        }
        if !rolling {
            self.give_everybody(&to);
            if self.programs.kept().in_force.is_none() {
                self.settle();
            }
            return;
        }
        match rollout::step(self.observed.known.iter(), &to, now) {
            Step::Move(ids) => ids.iter().for_each(|id| self.give(id, &to)),
            Step::Complete => {
                tracing::info!(program = to, "the roll-out is complete");
                self.note_event(None, "rollout_complete", &to);
                self.settle();
            }
            Step::GoBack { crashed, of } => {
                let detail = format!("{to}: {crashed} of {of} restarted instances crashed; everybody goes back to {from}");
                tracing::error!(crashed, of, program = to, back_to = from, "the roll-out goes back: instances crash on the new program");
                self.note_event(None, "rollout_went_back", &detail);
                self.programs.give_up(crashed, of);
                self.keep_programs();
                self.give_everybody(&from);
            }
        }
    }

    fn settle(&mut self) {
        self.programs.settle();
        self.keep_programs();
        self.replan = true;
        let to = self.programs.target().identity();
        self.give_everybody(&to);
    }

    /// What was given up is tried once more.
    pub(super) fn try_program_again(&mut self) {
        self.programs.try_again();
        self.keep_programs();
        self.find_program();
        self.replan = true;
    }

    pub(super) fn keep_programs(&mut self) {
        let kept = serde_json::to_string(self.programs.kept()).map_err(|error| error.to_string());
        let kept = kept.and_then(|kept| self.world.records().keep(Memo::Programs, &kept).map_err(|error| error.to_string()));
        if let Err(error) = kept {
            tracing::error!(error, "where the roll-out stands cannot be noted; a restarted agent begins it anew");
        }
    }

    fn give_everybody(&mut self, program: &str) {
        let others: Vec<TenantId> =
            self.observed.known.iter().filter(|(_, known)| known.program != program).map(|(id, _)| id.clone()).collect();
        others.iter().for_each(|id| self.give(id, program));
    }

    fn give(&mut self, id: &TenantId, program: &str) {
        if let Some(known) = self.observed.known.get_mut(id) {
            known.program = program.to_owned();
            known.crashed_on_program = false;
            self.touched.insert(id.clone());
        }
    }

    /// When a roll-out may go on though nothing happens.
    pub(super) fn next_roll_out(&self, now: Moment) -> Option<Moment> {
        self.is_rolling_out().then(|| rollout::next_look(self.observed.known.values(), &self.program(), now)).flatten()
    }

    /// The program that everybody is to have in the end.
    pub fn program(&self) -> String {
        self.programs.target().identity()
    }

    /// Whether another program is on its way to the tenants.
    pub fn is_rolling_out(&self) -> bool {
        self.programs.target() != self.programs.proved()
    }

    /// Where a roll-out stands, for people.
    pub(super) fn rollout_status(&self, now: Moment) -> Option<RolloutStatus> {
        let (to, from) = (self.programs.target(), self.programs.proved());
        if self.is_rolling_out() {
            let at = rollout::progress(self.observed.known.values(), &to.identity(), now);
            return Some(RolloutStatus {
                to: to.identity(),
                from: from.identity(),
                total: at.total,
                moved: at.moved,
                healthy: at.healthy,
                crashed: at.crashed,
                try_again: None,
            });
        }
        let given_up = self.programs.given_up()?;
        Some(RolloutStatus {
            to: given_up.program.clone(),
            from: from.identity(),
            total: self.observed.known.len(),
            moved: given_up.of,
            healthy: given_up.of.saturating_sub(given_up.crashed),
            crashed: given_up.crashed,
            try_again: Some(given_up.hash()),
        })
    }

    /// Keeps `text`, the tenants.toml in force, for a restart that finds a bad one.
    pub fn save_last_good(&mut self, text: &str) {
        if let Err(error) = self.world.save_last_good(text) {
            tracing::error!(%error, "a restart depends on tenants.toml itself being good");
        }
    }
}
