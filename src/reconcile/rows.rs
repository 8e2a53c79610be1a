//! The route table's rows: what each tenant's observed state means for its requests.

use crate::{
    desired::{Limits, TenantId},
    observed::{Known, Moment, State},
    route::{RouteLimits, RouteState, Row, Writes},
};

/// The row of one tenant. `disk_low`: the disk has no room for more.
pub fn row(id: &TenantId, known: &Known, disk_low: bool, now: Moment) -> Row {
    Row {
        id: id.as_str().to_owned(),
        port: known.port.unwrap_or(0),
        state: route_state(known, now),
        epoch: known.epoch,
        slot: known.slot,
        tokens_valid_after: known.spec.tokens_valid_after,
        limits: limits(&known.spec.limits),
        writes: match known.over_storage() {
            // Said first: about this the tenant can do something.
            Some((used, _)) => Writes::OverStorage { used },
            None if disk_low => Writes::DiskLow,
            None => Writes::All,
        },
        api_keys: known.spec.api_keys.clone(),
    }
}

/// The state of the row. Only `Ready` is forwarded at once, so everything unclear is something else.
pub fn route_state(known: &Known, now: Moment) -> RouteState {
    match &known.state {
        _ if known.spec.suspended => RouteState::Suspended,
        State::Running(_) => RouteState::Ready,
        State::Starting { .. } | State::Unknown | State::Looking => RouteState::Starting,
        State::Stopping { .. } => RouteState::Draining,
        State::Absent if known.leaving => RouteState::Stopped,
        State::Absent if known.back_off.not_before.is_some_and(|at| at > now) => RouteState::Crashed,
        State::Absent => RouteState::Starting,
    }
}

fn limits(limits: &Limits) -> RouteLimits {
    RouteLimits {
        interval_ns: limits.rate.map_or(0, |rate| rate.interval_ns()),
        burst: limits.burst,
        requests_per_day: limits.requests_per_day.unwrap_or(0),
        concurrency: limits.reads_at_once(),
        queue: limits.queue,
        body_max: limits.body_max,
        memory_max: limits.memory_max.unwrap_or(0),
        storage_max: limits.storage_max.unwrap_or(0),
        durability: limits.durability,
    }
}
