//! What the loop shows the page: all tenants in a line each, one of them in full, and what it would do.

use std::collections::BTreeSet;

use super::{
    core::Core,
    diff,
    plan::{self, Action},
    review::{Capacity, Review},
    rows,
    world::World,
};
use crate::{
    admin::{
        page::StateWord,
        sight::{Glance, Look, Portrait, Row},
    },
    desired::TenantId,
    observed::{Known, Moment},
    route,
};

impl<W: World> Core<W> {
    /// Answers the page.
    pub fn show(&self, look: Look, now: Moment) {
        // Who asked may have gone away.
        match look {
            Look::Glance(answer) => _ = answer.send(self.glance(now)),
            Look::Tenant(id, answer) => _ = answer.send(self.portrait(&id, now)),
            Look::Plan(answer) => _ = answer.send(self.review(now)),
        }
    }

    fn glance(&self, now: Moment) -> Glance {
        let held: BTreeSet<&TenantId> = self.held.iter().flat_map(|held| &held.removals).collect();
        let today = route::day(self.world.unix_now());
        let row = |(id, known): (&TenantId, &Known)| self.row(id, known, held.contains(id), today, now);
        Glance {
            at: self.world.unix_now(),
            since: self.started_at,
            status: self.status_of_all_but_tenants(now),
            rows: self.observed.known.iter().map(row).collect(),
        }
    }

    fn row(&self, id: &TenantId, known: &Known, is_held: bool, today: u32, now: Moment) -> Row {
        let state = StateWord::from(rows::route_state(known, now));
        let is_settled = matches!(state, StateWord::Ready | StateWord::Suspended);
        let is_plain = is_settled && !known.unhealthy && known.undone.is_none() && known.over_storage().is_none();
        Row {
            id: id.clone(),
            tier: known.spec.tier.clone(),
            state,
            memory: self.memory.get(id).map(|memory| memory.bytes),
            memory_max: known.spec.limits.memory_max,
            storage: known.storage,
            storage_max: known.spec.limits.storage_max,
            requests_today: self.world.requests_on(known.slot, today),
            restarts: known.restarts,
            is_silent: known.unhealthy,
            is_held,
            // A sentence costs more than all the rest, and ten thousand of them say the same.
            note: (!is_plain).then(|| self.tenant_status(id, known, now).detail),
        }
    }

    fn portrait(&self, id: &TenantId, now: Moment) -> Option<Box<Portrait>> {
        let known = self.observed.known.get(id)?;
        let points = self.history.points(id, self.world.unix_now());
        Some(Box::new(Portrait { tenant: self.tenant_status(id, known, now), usage: self.usage(id, known, now), points }))
    }

    fn review(&self, now: Moment) -> Review {
        let actions = plan::plan(&self.desired, &self.observed, now);
        let changes = diff::changes(&self.desired, &self.observed, &actions);
        let held = actions.into_iter().find_map(|action| if let Action::Hold(held) = action { Some(held) } else { None });
        let (memory, disk) = self.history.host();
        Review::of(&self.observed, &self.desired, changes, held, Capacity { memory, disk })
    }
}
