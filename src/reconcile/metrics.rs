//! What the loop says of itself for the metrics: one walk over its tenants, some hundred nanoseconds each.

use std::{collections::HashMap, iter::Peekable};

use super::{core::Core, rows, world::World};
use crate::{
    desired::TenantId,
    metrics::{Snapshot, TenantFacts, Turns},
    observed::{Known, Moment, State},
    route::Happened,
};

impl<W: World> Core<W> {
    /// How everything stands, for who asks for metrics.
    pub fn snapshot(&mut self, now: Moment, turns: Turns) -> Snapshot {
        let memory = self.world.host_memory();
        let known = &self.observed.known;
        let mut tiers = Tiers::default();
        let mut adrift = 0;
        let mut wanted = Wanted { ids: self.desired.tenants.keys().peekable(), missing: 0 };
        let mut tenants = Vec::with_capacity(known.len());
        for (id, known) in known {
            adrift += usize::from(!wanted.has(id) || is_adrift(known));
            let limits = &known.spec.limits;
            tenants.push(TenantFacts {
                id: id.clone(),
                slot: known.slot,
                tier: tiers.number(&known.spec.tier),
                state: rows::route_state(known, now),
                memory: self.memory.get(id).map(|memory| memory.bytes),
                memory_max: limits.memory_max,
                storage: known.storage,
                storage_max: limits.storage_max,
                requests_per_day: limits.requests_per_day,
            });
        }
        Snapshot {
            taken: now,
            status: self.status_of_all_but_tenants(now),
            memory,
            planned: self.planned,
            desired: self.desired.tenants.len(),
            adrift: adrift + wanted.missing + wanted.ids.count(),
            turns,
            tiers: tiers.names,
            tenants,
        }
    }

    /// Counts what happened to the instance of `id`.
    pub(super) fn count(&mut self, id: &TenantId, what: Happened) {
        if let Some(known) = self.observed.known.get(id) {
            self.world.count(known.slot, what);
        }
    }

    /// Instances were found to have used so much CPU time, by process id, microseconds.
    pub(super) fn count_cpu(&mut self, used: &[(u32, u64)]) {
        let used: HashMap<u32, u64> = used.iter().copied().collect();
        for known in self.observed.known.values() {
            if let State::Running(running) = &known.state
                && let Some(used) = used.get(&running.pid)
            {
                self.world.count_cpu(known.slot, running.epoch, *used);
            }
        }
    }
}

/// Whether the instance is not as it should be, or on its way there.
fn is_adrift(known: &Known) -> bool {
    match &known.state {
        State::Absent => !known.spec.suspended && !known.leaving,
        State::Running(running) => {
            known.spec.suspended
                || known.leaving
                || running.program != known.program
                || known.unhealthy
                || known.restart_wanted
                || known.in_doubt
                || known.limits_pending
                || known.over_memory.is_some()
        }
        State::Starting { .. } | State::Stopping { .. } | State::Looking | State::Unknown => true,
    }
}

/// The ids of tenants.toml, in their order, beside those that have a place here.
struct Wanted<'a, I: Iterator<Item = &'a TenantId>> {
    ids: Peekable<I>,
    /// Passed over: they have no place here yet.
    missing: usize,
}

impl<'a, I: Iterator<Item = &'a TenantId>> Wanted<'a, I> {
    /// Whether `id` is one of them. To be asked in their order.
    fn has(&mut self, id: &TenantId) -> bool {
        while self.ids.next_if(|wanted| *wanted < id).is_some() {
            self.missing += 1;
        }
        self.ids.next_if(|wanted| *wanted == id).is_some()
    }
}

/// The names of tiers, each once.
#[derive(Default)]
struct Tiers {
    names: Vec<String>,
}

impl Tiers {
    fn number(&mut self, name: &str) -> u16 {
        // There are a few.
        let at = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        u16::try_from(at).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::testing::tenant, observed::Running};

    fn id(text: &str) -> TenantId {
        TenantId::parse(text).unwrap()
    }

    fn known(state: State) -> Known {
        Known { state, program: "sq".into(), ..Known::new(0, tenant(id("a"))) }
    }

    fn running(program: &str) -> State {
        State::Running(Running { epoch: 1, pid: 7, program: program.into(), since: Moment::from_millis(0), started_at: 0 })
    }

    #[test]
    fn a_tenant_is_adrift_while_its_instance_is_not_as_it_should_be() {
        assert!(!is_adrift(&known(running("sq"))));
        assert!(is_adrift(&known(running("another"))) && is_adrift(&known(State::Absent)) && is_adrift(&known(State::Unknown)));
        assert!(is_adrift(&Known { unhealthy: true, ..known(running("sq")) }));
        let suspend = |mut known: Known| {
            known.spec.suspended = true;
            known
        };
        assert!(is_adrift(&suspend(known(running("sq")))) && !is_adrift(&suspend(known(State::Absent))));
    }

    #[test]
    fn who_has_no_place_and_who_is_not_wanted_are_both_seen() {
        let desired = ["a", "c", "d", "f"].map(id);
        let mut wanted = Wanted { ids: desired.iter().peekable(), missing: 0 };
        assert_eq!(["b", "c", "d", "e"].map(|known| wanted.has(&id(known))), [false, true, true, false]);
        assert_eq!((wanted.missing, wanted.ids.count()), (1, 1));
    }

    #[test]
    fn each_tier_has_one_number() {
        let mut tiers = Tiers::default();
        assert_eq!(["free", "pro", "free"].map(|tier| tiers.number(tier)), [0, 1, 0]);
        assert_eq!(tiers.names, ["free", "pro"]);
    }
}
