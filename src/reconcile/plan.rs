//! The plan: what to do so that the observed state becomes the desired one.
//!
//! Pure: no I/O, no clock, no randomness. The same function serves the loop, `sq-agent plan` in a pull request, and simulations.
//! Level-triggered: it looks at how things are, never at what happened, so a lost or doubled event changes nothing.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    desired::{Desired, Tenant, TenantId},
    observed::{Known, Moment, Observed, Running, State, StopReason},
    reconcile::guard::{self, Held},
    snapshot::Reason,
};

/// One thing to do. At most one a tenant is in flight: a tenant that is starting or stopping gets none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give a new tenant its place, or bring the limits in force up to date; takes effect with the next route table.
    Apply(TenantId),
    /// Start an instance.
    Start(TenantId),
    /// Drain and end the instance.
    Stop(TenantId, StopReason),
    /// Keep its phexts as a snapshot before it goes on: nothing of it runs.
    Keep(TenantId, Reason),
    /// Put back the snapshot that is wanted: nothing of it runs.
    Restore(TenantId),
    /// Find out whether an instance of this tenant lives, and whether it is ours.
    Look(TenantId),
    /// The tenant's removal was let through: from now on it is on its way out.
    Leave(TenantId),
    /// Nothing of a leaving tenant runs any more: give up its port. Its data stays.
    Forget(TenantId),
    /// These removals wait for a person.
    Hold(Held),
}

/// At most this share of the tenants is restarted for failed probes in a minute, percent: when most probes fail at once,
/// the fault is the host's, and restarting everything makes it worse.
const PROBE_RESTARTS_PERCENT: usize = 5;
/// The period of [`PROBE_RESTARTS_PERCENT`].
pub const PROBE_RESTARTS_PERIOD: Duration = Duration::from_secs(60);
/// How many instances are restarted side by side when the program changed.
const ROLLING: usize = 4;

/// Everything to do now, in the order in which it should begin.
pub fn plan(desired: &Desired, observed: &Observed, now: Moment) -> Vec<Action> {
    let mut budget = Budget::new(observed, now);
    let removals: Vec<TenantId> = observed
        .known
        .iter()
        .filter(|(id, known)| !known.leaving && !desired.tenants.contains_key(*id))
        .map(|(id, _)| id.clone())
        .collect();
    let mut actions = Vec::new();
    let held =
        guard::hold(&removals, observed.known.len(), desired.tenants.len(), desired.require_reviewed_hash, observed.confirmed.as_deref());
    let let_through = if held.is_some() { &[][..] } else { &removals[..] };
    actions.extend(held.map(Action::Hold));
    for id in let_through {
        actions.push(Action::Leave(id.clone()));
    }
    for (id, known) in &observed.known {
        let leaving = known.leaving || let_through.binary_search(id).is_ok();
        plan_known(id, desired.tenants.get(id), known, leaving, &observed.programs, now, &mut budget, &mut actions);
    }
    for (id, tenant) in desired.tenants.iter().filter(|(id, _)| !observed.known.contains_key(*id)) {
        actions.push(Action::Apply(id.clone()));
        if !tenant.suspended {
            actions.push(Action::Start(id.clone()));
        }
    }
    actions
}

/// The same for one tenant that has a place, between two full plans; removals are decided by the full plan alone.
pub fn plan_tenant(desired: &Desired, observed: &Observed, id: &TenantId, now: Moment) -> Vec<Action> {
    let mut actions = Vec::new();
    if let Some(known) = observed.known.get(id) {
        let mut budget = Budget::new(observed, now);
        plan_known(id, desired.tenants.get(id), known, known.leaving, &observed.programs, now, &mut budget, &mut actions);
    }
    actions
}

/// What may still be restarted now.
struct Budget {
    probe_restarts: usize,
    rolling: usize,
}

impl Budget {
    fn new(observed: &Observed, now: Moment) -> Self {
        let allowed = (observed.known.len() * PROBE_RESTARTS_PERCENT / 100).max(1);
        let recent = observed.probe_restarts.iter().filter(|&&at| now.since(at) < PROBE_RESTARTS_PERIOD).count();
        let moving = |known: &&Known| {
            matches!(known.state, State::Stopping { why, .. } if why.is_rolling()) || matches!(known.state, State::Starting { .. })
        };
        Self {
            probe_restarts: allowed.saturating_sub(recent),
            rolling: ROLLING.saturating_sub(observed.known.values().filter(moving).count()),
        }
    }

    fn take(left: &mut usize) -> bool {
        let any = *left > 0;
        *left = left.saturating_sub(1);
        any
    }
}

#[allow(clippy::too_many_arguments)] // one tenant's whole view; a struct for it would be named after nothing
fn plan_known(
    id: &TenantId,
    want: Option<&Tenant>,
    known: &Known,
    leaving: bool,
    programs: &BTreeSet<String>,
    now: Moment,
    budget: &mut Budget,
    actions: &mut Vec<Action>,
) {
    // A tenant that is on its way out and came back is taken in again.
    let leaving = leaving && want.is_none();
    if want.is_some_and(|want| *want != known.spec || known.leaving) {
        actions.push(Action::Apply(id.clone()));
    }
    match &known.state {
        State::Unknown => actions.push(Action::Look(id.clone())),
        State::Starting { .. } | State::Stopping { .. } | State::Looking => {}
        State::Absent if known.files.is_some() => {}
        State::Absent if known.restore.is_some() => actions.push(Action::Restore(id.clone())),
        State::Absent => {
            let suspended = want.unwrap_or(&known.spec).suspended;
            let starts = !leaving && !suspended && may_start(want, known, now);
            match why_keep(leaving, suspended, starts, known) {
                Some(reason) => actions.push(Action::Keep(id.clone(), reason)),
                None if leaving => actions.push(Action::Forget(id.clone())),
                None if starts => actions.push(Action::Start(id.clone())),
                None => {}
            }
        }
        State::Running(running) => {
            let suspended = want.unwrap_or(&known.spec).suspended;
            actions.extend(why_stop(leaving, suspended, known, running, programs, budget).map(|why| Action::Stop(id.clone(), why)));
        }
    }
}

/// For what its phexts are to be kept before anything else is done, if they are not kept for that already.
fn why_keep(leaving: bool, suspended: bool, starts: bool, known: &Known) -> Option<Reason> {
    let another_program = !known.launched.is_empty() && known.launched != known.program;
    let reason = if leaving {
        Reason::BeforeRemoval
    } else if suspended {
        Reason::BeforeSuspension
    } else if starts && another_program {
        Reason::BeforeProgramChange
    } else {
        return None;
    };
    (known.kept != Some(reason)).then_some(reason)
}

/// Whether back-off allows a start. A changed desired state resets it (the `Apply` ahead of the start does so).
fn may_start(want: Option<&Tenant>, known: &Known, now: Moment) -> bool {
    want.is_some_and(|want| *want != known.spec) || known.back_off.not_before.is_none_or(|at| now >= at)
}

fn why_stop(
    leaving: bool,
    suspended: bool,
    known: &Known,
    running: &Running,
    programs: &BTreeSet<String>,
    budget: &mut Budget,
) -> Option<StopReason> {
    if leaving {
        Some(StopReason::Removed)
    } else if suspended {
        Some(StopReason::Suspended)
    } else if known.restart_wanted {
        Some(StopReason::Asked)
    } else if known.restore.is_some() {
        Some(StopReason::Restore)
    } else if known.in_doubt {
        Some(StopReason::InDoubt)
    } else if known.unhealthy && Budget::take(&mut budget.probe_restarts) {
        Some(StopReason::FailedProbes)
    } else if known.over_memory.is_some() && Budget::take(&mut budget.rolling) {
        Some(StopReason::OverMemory)
    } else if known.limits_pending && Budget::take(&mut budget.rolling) {
        Some(StopReason::LimitsChanged)
    } else if running.program != known.program && programs.contains(&known.program) && Budget::take(&mut budget.rolling) {
        Some(StopReason::ProgramChanged)
    } else {
        None
    }
}

/// The next moment at which a plan could differ though nothing happened: the end of the nearest back-off.
pub fn next_try(observed: &Observed) -> Option<Moment> {
    observed.known.values().filter(|known| known.state == State::Absent).filter_map(|known| known.back_off.not_before).min()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
