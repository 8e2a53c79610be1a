//! A plan in words: who is added, removed, suspended, restarted, and whose limits change.

use serde::Serialize;

use super::plan::Action;
use crate::{
    desired::{Desired, Limits, Tenant, TenantId, size_text},
    observed::{Known, Moment, Observed, Running, State},
    snapshot::Reason,
};

/// What happens to one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The tenant.
    pub id: TenantId,
    /// What happens.
    pub kind: Kind,
    /// The particulars: `rate: 100/m -> 200/m`.
    pub detail: Vec<String>,
}

/// Kinds of change, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// New on this host.
    Add,
    /// Stops; its data stays.
    Remove,
    /// Would be removed, but too many would at once.
    Held,
    /// Stops; requests get 403.
    Suspend,
    /// Starts again.
    Resume,
    /// Its instance is replaced; requests wait meanwhile.
    Restart,
    /// Limits or tier change; nothing restarts.
    Change,
    /// Starts, without a change in the file: it is not running.
    Start,
}

impl Kind {
    /// One character, as in a diff.
    pub fn mark(self) -> char {
        match self {
            Self::Add | Self::Resume | Self::Start => '+',
            Self::Remove | Self::Suspend => '-',
            Self::Held => '!',
            Self::Restart | Self::Change => '~',
        }
    }

    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove (its data stays)",
            Self::Held => "remove, HELD",
            Self::Suspend => "suspend (403, its data stays)",
            Self::Resume => "resume",
            Self::Restart => "restart (requests wait)",
            Self::Change => "change",
            Self::Start => "start",
        }
    }
}

/// The observed state of a host on which `desired` is true: what `plan --against FILE` starts from.
pub fn as_if_running(desired: &Desired) -> Observed {
    let known = desired.tenants.iter().zip(0..).map(|((id, tenant), slot)| {
        let running = Running { epoch: 1, pid: 0, program: desired.sq.identity(), since: Moment::default(), started_at: 0 };
        let state = if tenant.suspended { State::Absent } else { State::Running(running) };
        (id.clone(), Known { program: desired.sq.identity(), state, ..Known::new(slot, tenant.clone()) })
    });
    Observed { known: known.collect(), programs: [desired.sq.identity()].into(), ..Observed::default() }
}

/// `actions` in words, sorted by kind and id.
pub fn changes(desired: &Desired, observed: &Observed, actions: &[Action]) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for action in actions {
        match action {
            Action::Apply(id) => changes.extend(applied(desired, observed, id)),
            // What is kept before another program starts; the start follows.
            Action::Start(id) | Action::Keep(id, Reason::BeforeProgramChange) => push_unless_told(&mut changes, id, Kind::Start),
            Action::Stop(id, _) => push_unless_told(&mut changes, id, Kind::Restart),
            Action::Leave(id) => changes.push(change(id, Kind::Remove)),
            Action::Hold(held) => changes.extend(held.removals.iter().map(|id| change(id, Kind::Held))),
            Action::Look(_) | Action::Forget(_) | Action::Keep(..) | Action::Restore(_) => {}
        }
    }
    changes.sort_by(|a, b| (a.kind, &a.id).cmp(&(b.kind, &b.id)));
    changes
}

fn change(id: &TenantId, kind: Kind) -> Change {
    Change { id: id.clone(), kind, detail: Vec::new() }
}

/// An action that only follows from a change that is told already needs no line of its own.
fn push_unless_told(changes: &mut Vec<Change>, id: &TenantId, kind: Kind) {
    if !changes.iter().rev().any(|change| change.id == *id) {
        changes.push(change(id, kind));
    }
}

fn applied(desired: &Desired, observed: &Observed, id: &TenantId) -> Option<Change> {
    let new = desired.tenants.get(id)?;
    let Some(known) = observed.known.get(id) else {
        return Some(Change { id: id.clone(), kind: Kind::Add, detail: vec![format!("tier: {}", new.tier)] });
    };
    let kind = match (known.spec.suspended, new.suspended) {
        (false, true) => Kind::Suspend,
        (true, false) => Kind::Resume,
        _ => Kind::Change,
    };
    Some(Change { id: id.clone(), kind, detail: differences(&known.spec, new) })
}

/// What differs between two versions of a tenant, a line each.
fn differences(old: &Tenant, new: &Tenant) -> Vec<String> {
    let mut lines = Vec::new();
    let mut compare = |key: &str, old: String, new: String| {
        if old != new {
            lines.push(format!("{key}: {old} -> {new}"));
        }
    };
    compare("tier", old.tier.clone(), new.tier.clone());
    for ((key, old), (_, new)) in shown(&old.limits).into_iter().zip(shown(&new.limits)) {
        compare(key, old, new);
    }
    compare("api_keys", format!("{} keys", old.api_keys.len()), format!("{} keys", new.api_keys.len()));
    compare("tokens_valid_after", old.tokens_valid_after.to_string(), new.tokens_valid_after.to_string());
    if old.api_keys.len() == new.api_keys.len() && old.api_keys != new.api_keys {
        lines.push("api_keys: replaced".into());
    }
    lines
}

/// Each limit with its key and its value as tenants.toml writes them, so that a reviewer finds them there.
fn shown(limits: &Limits) -> [(&'static str, String); 9] {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".into());
    [
        ("memory_max", or_none(limits.memory_max.map(size_text))),
        ("cpu_quota", or_none(limits.cpu_quota.map(|percent| format!("{percent}%")))),
        ("rate", or_none(limits.rate.map(|rate| rate.to_string()))),
        ("burst", limits.burst.to_string()),
        ("requests_per_day", or_none(limits.requests_per_day.map(|count| count.to_string()))),
        ("concurrency", limits.concurrency.to_string()),
        ("queue", limits.queue.to_string()),
        ("body_max", size_text(limits.body_max)),
        ("storage_max", or_none(limits.storage_max.map(size_text))),
    ]
}
