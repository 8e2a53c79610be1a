//! The rules that hold at every moment, and what has to be true in the end.

use std::collections::BTreeSet;

use sq_agent::{
    admin::status::Status,
    alerts::{Key, Kind},
    desired::TenantId,
    observed::State as Instance,
    reconcile::{core::Core, world::Start},
    route::RouteState,
};

use crate::{
    hands::SimWorld,
    state::{STARTS, State},
};

/// A port is nobody else's for this long after use, ms.
const QUARANTINE: u64 = 60_000;

/// No more starts at once than the queue allows, in both of its lanes together.
pub(crate) fn start(state: &mut State, start: &Start) {
    if state.at_files.contains(&start.id) {
        state.broken(format!("{} is started while its files are worked on", start.id));
    }
    if state.starting.len() > 2 * STARTS {
        state.broken(format!("{} starts at once", state.starting.len()));
    }
    let used = state.port_used.get(&start.port).filter(|(at, by)| *by != start.id && at + QUARANTINE > state.now);
    if let Some((at, by)) = used {
        let ago = state.now - at;
        state.broken(format!("port {} of {by} is given to another tenant {ago} ms after its last use", start.port));
    }
}

/// Nothing of a tenant runs that an agent started, when its files are to be worked on.
pub(crate) fn untouched(state: &mut State, id: &TenantId, what: &str) {
    let runs = state.procs.values().any(|proc| proc.id == *id && proc.epoch > 0);
    if runs || state.at_files.contains(id) {
        state.broken(format!("{id} is {what} while it runs, or its files are worked on"));
    }
}

/// No second process of a tenant, no second one on a port, no epoch twice, nobody who was forgotten.
pub(crate) fn spawn(state: &mut State, start: &Start) {
    let Start { id, epoch, port, .. } = start;
    // One that somebody starts by hand can come between any look and the start; it is stopped at the next survey.
    let ours = || state.procs.values().filter(|proc| proc.epoch > 0);
    let twin = ours().find(|proc| proc.id == *id).map(|proc| format!("two processes of one tenant: epoch {epoch} beside {}", proc.epoch));
    let same = ours().find(|proc| proc.port == *port && proc.id != *id).map(|proc| format!("one port for two tenants: beside {}", proc.id));
    let forgotten = state.records.get(id).is_none_or(|record| record.removed_at.is_some());
    let forgotten = forgotten.then(|| "a start of a tenant that was removed".to_owned());
    let again = (!state.epochs.insert((id.clone(), *epoch))).then(|| format!("epoch {epoch} is used twice"));
    for rule in [twin, same, forgotten, again].into_iter().flatten() {
        state.broken(format!("{rule} ({id}, port {port})"));
    }
}

/// Nobody is told to end whom the proxy still sends requests, and nobody in the middle of one.
pub(crate) fn term(state: &mut State, pid: u32, hasty: bool) {
    let Some(proc) = state.procs.get(&pid).filter(|proc| proc.listening && !hasty && !state.hasty) else { return };
    let (id, epoch) = (proc.id.clone(), proc.epoch);
    if state.is_routed(proc) {
        state.broken(format!("TERM while the row is ready ({id} epoch {epoch})"));
    }
    if state.flights.values().flatten().any(|(of, _)| *of == pid) {
        state.broken(format!("TERM while a request is in flight ({id} epoch {epoch})"));
    }
}

/// A row that is published as ready names an instance that lives, or whose end the agent has not been told.
pub(crate) fn ready_rows(state: &mut State) {
    let lost = state.table.iter().filter(|row| row.state == RouteState::Ready).find(|row| {
        let lives = state.procs.values().any(|proc| proc.id.as_str() == row.id && (proc.epoch, proc.port) == (row.epoch, row.port));
        let told = state.told.iter().any(|(id, epoch)| id.as_str() == row.id && *epoch == row.epoch);
        let started = state.epochs.iter().any(|(id, epoch)| id.as_str() == row.id && *epoch == row.epoch);
        !lives && (told || !started)
    });
    if let Some(row) = lost {
        let rule = format!("a row is ready whose instance is gone ({} epoch {} port {})", row.id, row.epoch, row.port);
        state.broken(rule);
    }
}

/// Open are exactly the alerts that hold, and whoever is told believes just that. What only happens holds for ten minutes.
pub(crate) fn alerts(state: &State, status: &Status, core: &Core<SimWorld>, calm: u64) -> Option<String> {
    const HAPPENS: [Kind; 4] = [Kind::AgentRestarted, Kind::CrashLoop, Kind::OomKill, Kind::HealthChecks];
    const FOR: u64 = 600_000;
    if !core.has_told_all() {
        return Some(format!("alerts are not told in time: {:?}", status.alerts));
    }
    let open: BTreeSet<Key> = core.open_alerts().into_iter().collect();
    let holds = [
        (Kind::RemovalsHeld, status.held.is_some()),
        (Kind::ConfigRefused, status.agent.config_error.is_some()),
        (Kind::RolloutWentBack, status.rollout.as_ref().is_some_and(|rollout| rollout.try_again.is_some())),
    ];
    let mut expected: BTreeSet<Key> = holds.into_iter().filter(|(_, holds)| *holds).map(|(kind, _)| Key::host(kind)).collect();
    if calm < FOR {
        let happened = |key: &&Key| {
            HAPPENS.contains(&key.kind)
                && key.tenant.as_ref().is_none_or(|id| state.file.wanted.tenants.contains_key(id) || is_held(core, id))
        };
        expected.extend(open.iter().filter(happened).cloned());
    }
    if open != expected {
        return Some(format!("the open alerts are {open:?}, and what holds is {expected:?}"));
    }
    let believed = state.heard.iter().filter(|(_, holds)| **holds).map(|(key, _)| key);
    let heard: BTreeSet<&Key> = believed.filter(|key| !state.forgotten.contains(*key)).collect();
    let open: BTreeSet<&Key> = open.iter().filter(|key| !state.forgotten.contains(*key)).collect();
    (heard != open).then(|| format!("who is told believes {heard:?}, and open are {open:?}"))
}

fn is_held(core: &Core<SimWorld>, id: &TenantId) -> bool {
    core.held().is_some_and(|held| held.removals.binary_search(id).is_ok())
}

/// What is not yet as desired; `None`: all is.
pub(crate) fn not_as_desired(state: &State, core: &Core<SimWorld>) -> Option<String> {
    if !state.has_program {
        return Some("sq is not there".to_owned());
    }
    if core.is_rolling_out() {
        return Some("a program is rolled out".to_owned());
    }
    let wanted = &state.file.wanted;
    let is_held = |id| is_held(core, id);
    for proc in state.procs.values() {
        let may = wanted.tenants.contains_key(&proc.id) || is_held(&proc.id);
        if proc.epoch == 0 || proc.dying || !may {
            return Some(format!("{} epoch {} runs and should not", proc.id, proc.epoch));
        }
    }
    for (id, tenant) in &wanted.tenants {
        match core.observed().known.get(id) {
            Some(known) if known.spec == *tenant => {}
            _ => return Some(format!("{id} is not taken in as it stands in the file")),
        }
    }
    for (id, known) in &core.observed().known {
        if !wanted.tenants.contains_key(id) && !is_held(id) {
            return Some(format!("{id} is not forgotten"));
        }
        let Some(row) = state.row(id) else { return Some(format!("{id} has no row")) };
        let live: Vec<_> = state.procs.values().filter(|proc| proc.id == *id).collect();
        let expected = if known.spec.suspended { 0 } else { 1 };
        if live.len() != expected {
            return Some(format!("{id} has {} processes", live.len()));
        }
        match live.first() {
            None if row.state != RouteState::Suspended => return Some(format!("the row of {id} is {:?}", row.state)),
            Some(proc) if !state.is_routed(proc) => return Some(format!("the row of {id} is {:?} epoch {}", row.state, row.epoch)),
            Some(proc) if !proc.listening || proc.hangs => return Some(format!("{id} does not answer")),
            Some(proc) if proc.program != core.program() => return Some(format!("{id} runs {}", proc.program)),
            Some(_) if state.doubts.contains(id) => return Some(format!("what a write of {id} left is not put back")),
            Some(_) if known.unhealthy => return Some(format!("{id} waits for its restart")),
            Some(_) if !matches!(known.state, Instance::Running(_)) => return Some(format!("{id} is held for {:?}", known.state)),
            _ => {}
        }
    }
    (state.table.len() != core.observed().known.len()).then(|| "there is a row too many".to_owned())
}
