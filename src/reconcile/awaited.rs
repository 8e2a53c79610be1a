//! Who asked for a change is told once it is so: tenants.toml says it, that is in force, and the tenant's instance and its row are as they should be.

use std::time::Duration;

use super::{
    core::Core,
    plan,
    report::{json, unknown},
    world::World,
};
use crate::{
    admin::{
        page::Outcome,
        question::{Answer, Awaited, Reply},
    },
    desired::TenantId,
    observed::{Known, Moment, State},
};

/// How long somebody waits; then they are told what is still to come.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody who waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Names them.
    number: u64,
    what: Awaited,
    until: Moment,
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
enum Stands {
    /// It is so.
    Done,
    /// A person has to let it through.
    Held(String),
    /// It is not so yet, for this reason.
    Pending(String),
}

impl<W: World> Core<W> {
    /// Looks at tenants.toml now, in which the change stands, and answers once it is carried out.
    pub(super) fn await_change(&mut self, what: Awaited, now: Moment) -> Reply {
        self.reload(now);
        let number = self.keeping.next();
        self.waiting.push(Waiting { number, what, until: now + PATIENCE });
        Reply::Later(number)
    }

    /// Restarts an instance, and answers once another one is there.
    pub(super) fn restart_and_await(&mut self, id: &TenantId, now: Moment) -> Reply {
        let Some(over) = self.observed.known.get(id).map(|known| known.epoch) else { return Reply::Now(Err(unknown(id))) };
        match self.restart(id) {
            Ok(_) => self.await_change(Awaited::Restart(id.clone(), over), now),
            refused => Reply::Now(refused),
        }
    }

    /// Answers whoever has waited long enough. To be called after what is planned was carried out and published.
    pub(super) fn answer_waiting(&mut self, now: Moment) {
        for waiting in std::mem::take(&mut self.waiting) {
            match self.stands(&waiting.what, now) {
                Stands::Pending(_) if now < waiting.until && !self.is_stopping() => self.waiting.push(waiting),
                stands => {
                    let answer = self.outcome(waiting.what.id(), stands, now);
                    self.keeping.answers.push((waiting.number, answer));
                }
            }
        }
    }

    /// When somebody has to be told that it is not so yet.
    pub(super) fn next_answer(&self) -> Option<Moment> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }

    fn outcome(&self, id: &TenantId, stands: Stands, now: Moment) -> Answer {
        let tenant = self.observed.known.get(id).map(|known| self.tenant_status(id, known, now));
        let (done, confirm, detail) = match stands {
            Stands::Done => (true, None, "it is so".to_owned()),
            Stands::Held(hash) => {
                let detail =
                    format!("the removal is held until somebody confirms it: POST /api/admin/confirm/{hash}, or `sq-agent confirm {hash}`");
                (false, Some(hash), detail)
            }
            Stands::Pending(detail) => (false, None, detail),
        };
        json(&Outcome { done, confirm, detail, tenant })
    }

    fn stands(&self, what: &Awaited, now: Moment) -> Stands {
        if let Awaited::Change(change) = what
            && !change.holds(&self.desired)
        {
            return Stands::Pending(self.why_not_in_force(now));
        }
        let id = what.id();
        let known = self.observed.known.get(id);
        if let (Some(held), false) = (&self.held, self.desired.tenants.contains_key(id))
            && held.removals.binary_search(id).is_ok()
        {
            return Stands::Held(held.hash.clone());
        }
        let pending = match (known, self.desired.tenants.get(id)) {
            (None, None) => None,
            (Some(_), None) => Some("it is removed, and its instance ends".to_owned()),
            (None, Some(_)) => Some("it has no place on this host yet".to_owned()),
            (Some(known), Some(want)) if known.spec != *want || known.leaving => Some("it is about to be applied".to_owned()),
            (Some(known), Some(_)) => self.unsettled(what, id, known, now),
        };
        match pending {
            Some(why) => Stands::Pending(why),
            None if !self.routes.is_published() => Stands::Pending("the proxy is about to be told".to_owned()),
            None => Stands::Done,
        }
    }

    /// Why the tenant's instance is not as it should be.
    fn unsettled(&self, what: &Awaited, id: &TenantId, known: &Known, now: Moment) -> Option<String> {
        let as_it_should_be = match (&known.state, known.spec.suspended) {
            (State::Absent, true) => true,
            (State::Running(running), false) => {
                let is_new = !matches!(what, Awaited::Restart(_, over) if running.epoch <= *over);
                is_new && !known.limits_pending
            }
            _ => false,
        };
        let planned = || !plan::plan_tenant(&self.desired, &self.observed, id, now).is_empty();
        (!as_it_should_be || known.files.is_some() || planned()).then(|| self.tenant_status(id, known, now).detail)
    }

    fn why_not_in_force(&self, now: Moment) -> String {
        let refused = self.gitops_status().and_then(|status| status.refused_because.or(status.last_error));
        match (self.intake.stale(now), refused) {
            (Some((_, why)), _) => format!("tenants.toml as it stands is refused: {why}"),
            (None, Some(why)) => format!("the change is on the branch, which is not applied: {why}"),
            (None, None) => "tenants.toml with the change is not in force yet".to_owned(),
        }
    }
}
