//! Why a tenant is as it is: what is desired, what is observed, what was tried, what comes next, and what to do. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    admin::status::{Status, TenantStatus},
    desired::{Desired, Tenant, TenantId, size_text},
    store::Event,
};

/// So far back events are counted, seconds.
const LOOK_BACK: u64 = 86_400;

/// The five answers, a sentence or two each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// By tenants.toml.
    pub desired: String,
    /// As it is.
    pub observed: String,
    /// In the last 24 hours.
    pub tried: String,
    /// By itself.
    pub next: String,
    /// By whoever asks.
    pub todo: String,
}

impl Why {
    /// One paragraph.
    pub fn paragraph(&self) -> String {
        let Self { desired, observed, tried, next, todo } = self;
        [desired, observed, tried, next, todo].into_iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join(" ")
    }
}

/// What is known of it.
pub struct Known<'a> {
    /// Of whom.
    pub id: &'a TenantId,
    /// What is in force.
    pub desired: &'a Desired,
    /// What the agent says; `None` where none runs.
    pub status: Option<&'a Status>,
    /// What happened to the tenant, the newest first.
    pub events: &'a [Event],
    /// Its data lie on this host.
    pub has_data: bool,
    /// Seconds since 1970.
    pub now: u64,
}

/// Answers.
pub fn why(known: &Known<'_>) -> Why {
    let Known { id, desired, status, events, has_data, now } = *known;
    let wanted = desired.tenants.get(id);
    let seen = status.and_then(|status| status.tenants.iter().find(|tenant| tenant.id == id.as_str()));
    let held = status.is_some_and(|status| status.held.as_ref().is_some_and(|held| held.removals.contains(id)));
    let hash = status.and_then(|status| Some(status.held.as_ref()?.hash.clone()));
    let (next, todo) = match status {
        None => (String::new(), "Start the agent: `sq-agent run`, or `systemctl start sq-agent`.".to_owned()),
        Some(_) => outlook(id, wanted, seen, held.then_some(hash).flatten().as_deref()),
    };
    Why {
        desired: desire(id, wanted, status),
        observed: observation(id, seen, status.is_some(), has_data),
        tried: tried(events, now),
        next,
        todo,
    }
}

fn desire(id: &TenantId, wanted: Option<&Tenant>, status: Option<&Status>) -> String {
    let file = match status.map(|status| &status.agent).filter(|agent| agent.config_stale_seconds > 0) {
        Some(agent) => format!("tenants.toml has been refused for {} s, and the last good one", agent.config_stale_seconds),
        None => "tenants.toml".to_owned(),
    };
    match wanted {
        None => format!("{file} has no tenant {id}."),
        Some(tenant) if tenant.suspended => format!("{file} has {id} suspended: every request is answered by 403, and the data stay."),
        Some(tenant) => {
            let memory = tenant
                .limits
                .memory_max
                .map_or_else(|| "as much memory as there is".into(), |limit| format!("up to {} of memory", size_text(limit)));
            format!("{file} wants {id} to be served (tier {}, {memory}).", tenant.tier)
        }
    }
}

fn observation(id: &TenantId, seen: Option<&TenantStatus>, runs: bool, has_data: bool) -> String {
    let Some(tenant) = seen else {
        return match (runs, has_data) {
            (false, _) => "No agent runs on this host: what the last one started goes on, and nobody mends it.".to_owned(),
            (true, true) => format!("This host has no place for {id}, but its data are still here."),
            (true, false) => format!("This host has no place for {id}, and no data of it."),
        };
    };
    let mut text = match (tenant.state.as_str(), tenant.pid, tenant.port) {
        ("ready", Some(pid), Some(port)) => {
            let since = tenant.started_at.as_ref().map_or(String::new(), |at| format!(", since {at}"));
            format!("It is ready: process {pid} on port {port}{since}; {}.", tenant.detail)
        }
        (state, ..) => format!("It is {state}: {}.", tenant.detail),
    };
    if let Some(memory) = tenant.memory_bytes {
        text += &format!(" It takes {} KB of memory and was asked {} times today.", memory.div_ceil(1_024), tenant.requests_today);
    }
    if tenant.restarts > 0 {
        let last = tenant.last_exit.as_ref().map_or(String::new(), |exit| format!("; the last one ended with: {exit}"));
        text += &format!(" It is start {}{last}.", tenant.epoch);
    }
    text
}

/// What happened in the last day, each kind with how often and when last.
fn tried(events: &[Event], now: u64) -> String {
    let mut kinds: BTreeMap<&str, (u64, &Event)> = BTreeMap::new();
    let mut order = Vec::new();
    for event in events.iter().filter(|event| event.at + LOOK_BACK >= now) {
        match kinds.get_mut(event.kind.as_str()) {
            Some((count, _)) => *count += 1,
            None => {
                order.push(event.kind.as_str());
                kinds.insert(&event.kind, (1, event));
            }
        }
    }
    let said = order.into_iter().filter_map(|kind| {
        let (count, last) = kinds.get(kind)?;
        let times = if *count > 1 { format!(" {count} times, last") } else { String::new() };
        let detail = if last.detail.is_empty() { String::new() } else { format!(" ({})", last.detail.trim()) };
        Some(format!("{}{times} {} ago{detail}", words(kind), ago(now.saturating_sub(last.at))))
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() {
        "Nothing happened to it in the last 24 hours.".to_owned()
    } else {
        format!("In the last 24 hours: {}.", said.join("; "))
    }
}

fn words(kind: &str) -> String {
    kind.replace('_', " ")
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

/// What comes by itself, and what to do.
fn outlook(id: &TenantId, wanted: Option<&Tenant>, seen: Option<&TenantStatus>, held: Option<&str>) -> (String, String) {
    let watch = format!("See what happens with `sq-agent events --follow {id}`.");
    let say = |next: &str, todo: String| (next.to_owned(), todo);
    match (wanted, seen, held) {
        (None, Some(_), Some(hash)) => say(
            "It is served on, since its removal is held with others.",
            format!("Put it back into tenants.toml, or let all of them go with `sq-agent confirm {hash}`."),
        ),
        (None, Some(_), None) => say("Its instance is stopped and its place is given up; the data stay.", watch),
        (None, None, _) => say("", format!("To have it served, add it to tenants.toml: [[tenants]] id = \"{id}\".")),
        (Some(_), None, _) => say("It is given a place at the next tick, within 5 s.", watch),
        (Some(tenant), Some(_), _) if tenant.suspended => {
            say("", "To have it served again, remove `suspended = true` from tenants.toml.".into())
        }
        (Some(tenant), Some(seen), _) => settled(id, tenant, seen, watch),
    }
}

fn settled(id: &TenantId, tenant: &Tenant, seen: &TenantStatus, watch: String) -> (String, String) {
    let over_storage = seen.storage_bytes.zip(tenant.limits.storage_max).is_some_and(|(used, limit)| used > limit);
    match seen.state.as_str() {
        "ready" if over_storage => (
            "Writes that make more are refused until it is below its limit.".into(),
            format!("Have its user remove something, or raise storage_max of {id} in tenants.toml."),
        ),
        "ready" => (String::new(), "There is nothing to do.".into()),
        "crashed" if seen.detail.contains("killed for memory") => (
            "It is started again after its pause; requests wait up to 10 s for it.".into(),
            format!("Raise memory_max of {id} in tenants.toml, or lower its body_max."),
        ),
        "crashed" => (
            "It is started again after its pause; requests wait up to 10 s for it.".into(),
            format!("See why with `sq-agent logs {id}`; once that is mended, `sq-agent restart {id}` starts it at once."),
        ),
        "draining" => ("What is in flight is finished, then it stops.".into(), watch),
        _ => ("It is about to be started; requests wait up to 10 s for it.".into(), watch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::agent::tests as fixture, reconcile::guard::Held};

    const NOW: u64 = 1_800_000_000;

    fn id() -> TenantId {
        TenantId::parse("ada@example.com").unwrap()
    }

    fn desired(more: &str) -> Desired {
        let text = format!(
            "[sq]\nbinary = \"/bin/true\"\n[tiers.free]\nmemory_max = \"20M\"\n[[tenants]]\nid = \"ada@example.com\"\ntier = \"free\"\n{more}"
        );
        crate::desired::parse(&text, std::path::Path::new("/x/tenants.toml")).unwrap()
    }

    fn seen(state: &str, detail: &str) -> Status {
        Status { tenants: vec![fixture::tenant("ada@example.com", state, detail)], ..fixture::status() }
    }

    fn event(kind: &str, ago: u64, detail: &str) -> Event {
        Event { number: 1, at: NOW - ago, id: Some(id().to_string()), kind: kind.into(), detail: detail.into() }
    }

    fn answer(desired: &Desired, status: Option<&Status>, events: &[Event]) -> Why {
        why(&Known { id: &id(), desired, status, events, has_data: true, now: NOW })
    }

    #[test]
    fn who_is_served_has_nothing_to_do() {
        let mut status = seen("ready", "answers");
        (status.tenants[0].pid, status.tenants[0].port) = (Some(77), Some(10_001));
        let said = answer(&desired(""), Some(&status), &[]);
        assert_eq!(
            said.paragraph(),
            "tenants.toml wants ada@example.com to be served (tier free, up to 20M of memory). It is ready: process 77 on port 10001; answers. \
             Nothing happened to it in the last 24 hours. There is nothing to do."
        );
    }

    #[test]
    fn a_crash_loop_says_what_was_tried_and_where_to_look() {
        let events = [
            event("crash_loop", 30, "exit 101"),
            event("crashed", 30, "exit 101"),
            event("crashed", 600, "exit 101"),
            event("stopped", 90_000, "old"),
        ];
        let said = answer(&desired(""), Some(&seen("crashed", "crash-looping: exit 101, next try in 8 s")), &events);
        assert_eq!(said.tried, "In the last 24 hours: crash loop 30 s ago (exit 101); crashed 2 times, last 30 s ago (exit 101).");
        assert!(said.todo.contains("sq-agent logs ada@example.com") && said.todo.contains("sq-agent restart"), "{said:#?}");
        assert!(said.next.contains("started again"));
        let for_memory = answer(&desired(""), Some(&seen("crashed", "crashed: killed for memory: 20 MB limit, next try in 1 s")), &[]);
        assert!(for_memory.todo.contains("memory_max"), "{for_memory:#?}");
    }

    #[test]
    fn each_way_of_not_being_served_has_its_own_remedy() {
        let todo = |desired: &Desired, status: Option<&Status>| answer(desired, status, &[]).todo;
        let suspended = desired("suspended = true\n");
        assert!(todo(&suspended, Some(&seen("suspended", "suspended in tenants.toml"))).contains("suspended = true"));
        assert!(todo(&desired(""), None).contains("sq-agent run"));
        assert!(todo(&desired(""), Some(&fixture::status())).contains("events --follow"));
        let mut without = desired("");
        without.tenants.clear();
        assert!(todo(&without, Some(&fixture::status())).contains("[[tenants]]"));
        let held = Held { hash: "abc123".into(), removals: vec![id()], of: 9 };
        assert!(todo(&without, Some(&Status { held: Some(held), ..seen("ready", "answers") })).contains("sq-agent confirm abc123"));
    }

    #[test]
    fn a_file_that_is_refused_is_said_first() {
        let mut status = seen("ready", "answers");
        status.agent.config_stale_seconds = 9;
        assert!(answer(&desired(""), Some(&status), &[]).desired.starts_with("tenants.toml has been refused for 9 s"));
    }
}
