//! What the loop tells the admin API: pages of tenants, what they use, how their instances are, and what happened.

use std::time::Duration;

use http::StatusCode;

use super::{
    core::Core,
    report::{json, unknown},
    rows,
    world::{Records, World},
};
use crate::{
    admin::{
        page::{
            EventOut, EventsPage, EventsWish, HealthResult, HealthResults, HealthWord, StateWord, TenantsPage, TenantsWish, Usage,
            UsagePage,
        },
        question::{Answer, RequestName},
        status::AdminStatus,
    },
    desired::TenantId,
    observed::{Known, Moment, State},
    route::{self, RouteState, SlotSnapshot},
    store::{Event, rfc3339},
};

/// A start that is younger is told as one, by the check of all instances' health.
const LATELY: Duration = Duration::from_secs(300);

impl<W: World> Core<W> {
    pub(super) fn tell_of_tenant(&self, id: &TenantId, now: Moment) -> Answer {
        let known = self.observed.known.get(id).ok_or_else(|| unknown(id))?;
        json(&self.tenant_status(id, known, now))
    }

    pub(super) fn tell_of_tenants(&self, wish: &TenantsWish, now: Moment) -> Answer {
        let (total, page, next) = self.page(wish, now);
        json(&TenantsPage { tenants: page.into_iter().map(|(id, known)| self.tenant_status(id, known, now)).collect(), next, total })
    }

    pub(super) fn tell_usage(&self, id: &TenantId, now: Moment) -> Answer {
        let known = self.observed.known.get(id).ok_or_else(|| unknown(id))?;
        json(&self.usage(id, known, now))
    }

    pub(super) fn tell_usages(&self, wish: &TenantsWish, now: Moment) -> Answer {
        let (_, page, next) = self.page(wish, now);
        json(&UsagePage { usage: page.into_iter().map(|(id, known)| self.usage(id, known, now)).collect(), next })
    }

    pub(super) fn tell_health(&self, now: Moment) -> Answer {
        let result = |(id, known): (&TenantId, &Known)| HealthResult { user_id: id.to_string(), status: health(known, now) };
        json(&HealthResults { results: self.observed.known.iter().map(result).collect() })
    }

    pub(super) fn tell_events(&mut self, wish: &EventsWish) -> Answer {
        let EventsWish { tenant, kind, limit, cursor } = wish;
        // One more says whether there is a next page.
        let found = self.world.records().events(tenant.as_ref(), kind.as_deref(), *cursor, u32::from(*limit) + 1);
        let mut events = found.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let more = events.len() > usize::from(*limit);
        events.truncate((*limit).into());
        let next = events.last().filter(|_| more).map(|event| event.number);
        let event = |Event { number, at, id, kind, detail }: Event| EventOut { number, at: rfc3339(at), tenant: id, kind, detail };
        json(&EventsPage { events: events.into_iter().map(event).collect(), next })
    }

    /// Whether this request was made before.
    pub(super) fn begin_request(&mut self, request: &RequestName) -> Answer {
        let unix_now = self.world.unix_now();
        let begun = self.world.records().begin_request(&request.lookup, &request.fingerprint, unix_now);
        begun.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())).and_then(|begun| json(&begun))
    }

    pub(super) fn end_request(&mut self, lookup: &str, answer: Option<&[u8]>) -> Answer {
        let ended = self.world.records().end_request(lookup, answer);
        ended.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())).and_then(|()| json(&()))
    }

    /// How the admin API is listened on from now on.
    pub fn hear_door(&mut self, stands: AdminStatus) {
        match (&stands.trouble, &self.admin.trouble) {
            (Some(trouble), before) if before.as_ref() != Some(trouble) => {
                tracing::error!(trouble, "the admin API is not where tenants.toml says");
                self.note_event(None, "admin_listen_failed", trouble);
            }
            (None, _) if stands.listen != self.admin.listen => tracing::info!(listen = stands.listen, "the admin API"),
            _ => {}
        }
        self.admin = stands;
    }

    /// How many tenants are wished for, those of the page, and the cursor of the next one.
    fn page(&self, wish: &TenantsWish, now: Moment) -> (usize, Vec<(&TenantId, &Known)>, Option<String>) {
        let matches = |(id, known): &(&TenantId, &Known)| {
            wish.state.is_none_or(|state| StateWord::from(rows::route_state(known, now)) == state)
                && wish.tier.as_ref().is_none_or(|tier| known.spec.tier == *tier)
                && wish.q.as_ref().is_none_or(|part| id.as_str().contains(part.as_str()))
        };
        let all: Vec<_> = self.observed.known.iter().filter(matches).collect();
        let from = wish.cursor.as_ref().map_or(0, |cursor| all.partition_point(|(id, _)| *id <= cursor));
        let to = (from + usize::from(wish.limit)).min(all.len());
        let next = all.get(from..to).and_then(<[_]>::last).filter(|_| to < all.len()).map(|(id, _)| id.to_string());
        (all.len(), all.get(from..to).unwrap_or_default().to_vec(), next)
    }

    pub(super) fn usage(&self, id: &TenantId, known: &Known, now: Moment) -> Usage {
        let unix_now = self.world.unix_now();
        let counted = self.world.activity(known.slot);
        let count = |of: fn(&SlotSnapshot) -> u64| counted.as_ref().map_or(0, of);
        let last = counted.as_ref().and_then(|counted| counted.last_request).map(u64::from);
        Usage {
            id: id.to_string(),
            tier: known.spec.tier.clone(),
            requests_today: self.world.requests_on(known.slot, route::day(unix_now)),
            requests_per_day: known.spec.limits.requests_per_day,
            requests: count(|counted| counted.requests),
            errors: count(|counted| counted.errors),
            bytes_in: count(|counted| counted.bytes_in),
            bytes_out: count(|counted| counted.bytes_out),
            last_request: last.map(|at| rfc3339(unix_now.saturating_sub((now.as_millis() / 1_000).saturating_sub(at)))),
            memory_bytes: self.memory.get(id).map(|memory| memory.bytes),
            memory_max: known.spec.limits.memory_max,
            storage_bytes: known.storage,
            storage_max: known.spec.limits.storage_max,
        }
    }
}

/// One tenant's health, in a word.
fn health(known: &Known, now: Moment) -> HealthWord {
    match (rows::route_state(known, now), &known.state) {
        (RouteState::Ready, _) if known.unhealthy => HealthWord::Unhealthy,
        (RouteState::Ready, State::Running(running)) if known.restarts > 0 && now.since(running.since) < LATELY => HealthWord::Restarted,
        (RouteState::Ready, _) => HealthWord::Ok,
        (RouteState::Starting, _) => HealthWord::Starting,
        (RouteState::Draining, _) => HealthWord::Draining,
        (RouteState::Stopped, _) => HealthWord::Stopped,
        (RouteState::Suspended, _) => HealthWord::Suspended,
        (RouteState::Crashed, _) => HealthWord::Crashed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::testing::tenant,
        observed::{BackOff, Running},
    };

    #[test]
    fn health_tells_who_answers_who_was_restarted_and_who_does_not() {
        let spec = tenant(TenantId::parse("a").unwrap());
        let since = Moment::from_millis(1_000);
        let running = Running { epoch: 1, pid: 1, program: String::new(), since, started_at: 0 };
        let known = Known { state: State::Running(running), ..Known::new(0, spec) };
        let soon = since + Duration::from_secs(1);
        assert_eq!(health(&known, soon), HealthWord::Ok, "the first start is no restart");
        let restarted = Known { restarts: 1, ..known.clone() };
        assert_eq!(health(&restarted, soon), HealthWord::Restarted);
        assert_eq!(health(&restarted, since + LATELY), HealthWord::Ok);
        assert_eq!(health(&Known { unhealthy: true, ..restarted.clone() }, soon), HealthWord::Unhealthy);
        let back_off = BackOff { streak: 1, not_before: Some(soon + LATELY), ..BackOff::default() };
        assert_eq!(health(&Known { state: State::Absent, back_off, ..known }, soon), HealthWord::Crashed);
    }
}
