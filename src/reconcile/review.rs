//! A change of tenants.toml as a reviewer reads it in a pull request: who is added, removed, restarted, what is promised before and after against
//! what the host has, and what deserves a second look. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    diff::{Change, Kind},
    guard::{self, Held},
};
use crate::{
    desired::{Desired, Tenant, TenantId, size_text},
    observed::Observed,
};

/// Changes that are listed one by one in a kind; more are counted, so that a reviewer's page stays one.
const LISTED: usize = 50;

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Memory, bytes.
    pub memory: u64,
    /// The disk of the state directory, bytes.
    pub disk: u64,
}

/// What a desired state promises its tenants, those that are suspended left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Promised {
    /// Tenants that are to run.
    pub tenants: usize,
    /// Sum of `memory_max`, bytes.
    pub memory: u64,
    /// Tenants without a `memory_max`.
    pub unlimited: usize,
    /// Sum of `storage_max`, bytes.
    pub storage: u64,
    /// Tenants without a `storage_max`.
    pub storage_unlimited: usize,
}

impl Promised {
    /// To `tenants`.
    fn to<'a>(tenants: impl Iterator<Item = &'a Tenant>) -> Self {
        let mut sum = Self { tenants: 0, memory: 0, unlimited: 0, storage: 0, storage_unlimited: 0 };
        for tenant in tenants {
            // The data of one that is suspended stay.
            sum.storage = sum.storage.saturating_add(tenant.limits.storage_max.unwrap_or(0));
            sum.storage_unlimited += usize::from(tenant.limits.storage_max.is_none());
            if !tenant.suspended {
                sum.tenants += 1;
                sum.memory = sum.memory.saturating_add(tenant.limits.memory_max.unwrap_or(0));
                sum.unlimited += usize::from(tenant.limits.memory_max.is_none());
            }
        }
        sum
    }
}

/// A change for review.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Review {
    /// What changes.
    pub changes: Vec<Change>,
    /// Names the removals; `sq-agent confirm` takes it. None where nobody is removed.
    pub hash: Option<String>,
    /// Whether the removals wait for that.
    pub held: Option<Held>,
    /// Promised before.
    pub before: Promised,
    /// Promised after.
    pub after: Promised,
    /// What the host has.
    pub capacity: Capacity,
    /// What deserves a second look, a sentence each.
    pub warnings: Vec<String>,
}

impl Review {
    /// Of the way from `before` to `after`, which takes `changes` and of which `held` waits.
    pub fn of(before: &Observed, after: &Desired, changes: Vec<Change>, held: Option<Held>, capacity: Capacity) -> Self {
        let there = || before.known.iter().filter(|(_, known)| !known.leaving);
        let removed: Vec<TenantId> = there().map(|(id, _)| id).filter(|id| !after.tenants.contains_key(*id)).cloned().collect();
        let mut review = Self {
            hash: (!removed.is_empty()).then(|| guard::hash(&removed)),
            before: Promised::to(there().map(|(_, known)| &known.spec)),
            after: Promised::to(after.tenants.values()),
            changes,
            held,
            capacity,
            warnings: Vec::new(),
        };
        review.warn(&removed, after);
        review
    }

    fn warn(&mut self, removed: &[TenantId], after: &Desired) {
        let mut warn = |text: String| self.warnings.push(text);
        if !removed.is_empty() {
            warn(format!(
                "{} removed: their users get 403 from then on; their data stay on the host",
                counted(removed.len(), "tenant is", "tenants are")
            ));
        }
        if let Some(held) = &self.held {
            warn(format!(
                "the removals are held until somebody runs `sq-agent confirm {}` on the host; all else is applied at once",
                held.hash
            ));
        }
        let (promised, has) = (self.after.memory, self.capacity.memory);
        if promised > has && promised > self.before.memory {
            warn(format!(
                "memory is over-committed: {} promised, the host has {} ({:.1}x); tenants use far less than they may, but not all at once",
                size(promised),
                size(has),
                ratio(promised, has)
            ));
        }
        let (promised, has) = (self.after.storage, self.capacity.disk);
        if promised > has && promised > self.before.storage {
            warn(format!(
                "the disk is over-committed: {} promised, the host has {} ({:.1}x)",
                size(promised),
                size(has),
                ratio(promised, has)
            ));
        }
        if self.after.unlimited > self.before.unlimited {
            warn(format!(
                "{} without `memory_max`: one of them can take all of the host's memory",
                counted(self.after.unlimited, "tenant", "tenants")
            ));
        }
        let restarts = self.changes.iter().filter(|change| change.kind == Kind::Restart).count();
        if restarts > 0 {
            warn(format!("{} restarted; requests wait meanwhile, none fails", counted(restarts, "tenant is", "tenants are")));
        }
        if after.tenants.is_empty() {
            warn("the file has no tenant at all".into());
        }
    }

    /// As Markdown, for a comment on a pull request.
    pub fn markdown(&self) -> String {
        let mut out = String::from("### sq-agent plan\n\n");
        // Writing to a String cannot fail.
        for warning in &self.warnings {
            let _ = writeln!(out, "> **Note** {warning}");
        }
        if !self.warnings.is_empty() {
            out.push('\n');
        }
        if self.changes.is_empty() {
            out.push_str("Nothing would change.\n");
        }
        for group in self.changes.chunk_by(|one, next| one.kind == next.kind) {
            let kind = group[0].kind;
            let _ = writeln!(out, "**{}** ({})\n", heading(kind), group.len());
            for change in group.iter().take(LISTED) {
                let detail = if change.detail.is_empty() { String::new() } else { format!(": {}", change.detail.join(", ")) };
                let _ = writeln!(out, "- `{}`{detail}", change.id);
            }
            if group.len() > LISTED {
                let _ = writeln!(out, "- and {} more", group.len() - LISTED);
            }
            out.push('\n');
        }
        let _ = write!(
            out,
            "\n| | before | after | the host has |\n|---|---|---|---|\n| tenants that run | {} | {} | |\n| memory promised | {} | {} | {} |\n| storage promised | {} | {} | {} |\n",
            self.before.tenants,
            self.after.tenants,
            sum(self.before.memory, self.before.unlimited),
            sum(self.after.memory, self.after.unlimited),
            size(self.capacity.memory),
            sum(self.before.storage, self.before.storage_unlimited),
            sum(self.after.storage, self.after.storage_unlimited),
            size(self.capacity.disk),
        );
        if let Some(hash) = &self.hash {
            let _ = writeln!(out, "\nPlan hash of the removals: `{hash}`");
        }
        out
    }
}

/// What is promised to those who have a limit, and how many have none.
fn sum(bytes: u64, unlimited: usize) -> String {
    match (bytes, unlimited) {
        (0, unlimited) if unlimited > 0 => format!("{unlimited} without a limit"),
        (bytes, 0) => size(bytes),
        (bytes, unlimited) => format!("{} + {unlimited} without a limit", size(bytes)),
    }
}

fn heading(kind: Kind) -> &'static str {
    match kind {
        Kind::Add => "Added",
        Kind::Remove => "Removed (data stay)",
        Kind::Held => "Removed, HELD",
        Kind::Suspend => "Suspended (403, data stay)",
        Kind::Resume => "Resumed",
        Kind::Restart => "Restarted (requests wait)",
        Kind::Change => "Changed (nothing restarts)",
        Kind::Start => "Started",
    }
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// In MiB, or GiB with one decimal.
fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < GIB { size_text(bytes.div_ceil(1 << 20) << 20) } else { format!("{:.1}G", ratio(bytes, GIB)) }
}

#[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn ratio(one: u64, of: u64) -> f64 {
    one as f64 / of.max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        desired::parse,
        observed::Moment,
        reconcile::{
            diff,
            plan::{self, Action},
        },
    };

    fn review(before: &str, after: &str, memory: u64) -> Review {
        let parse = |text| parse(text, Path::new("/etc/t.toml")).unwrap();
        let (before, after) = (parse(before), parse(after));
        let observed = diff::as_if_running(&before);
        let actions = plan::plan(&after, &observed, Moment::default());
        let changes = diff::changes(&after, &observed, &actions);
        let held = actions.into_iter().find_map(|action| if let Action::Hold(held) = action { Some(held) } else { None });
        Review::of(&observed, &after, changes, held, Capacity { memory, disk: 80 << 30 })
    }

    fn tenants(ids: std::ops::Range<u32>, more: &str) -> String {
        ids.map(|n| format!("[[tenants]]\nid = \"t{n}\"\n{more}\n")).collect()
    }

    #[test]
    fn a_reviewer_sees_who_comes_and_goes_and_what_is_promised() {
        let before = tenants(0..3, "");
        let after = format!("{}[[tenants]]\nid = \"big\"\nmemory_max = \"2G\"\nstorage_max = \"1G\"\n", tenants(1..3, ""));
        let review = review(&before, &after, 1 << 30);
        let text = review.markdown();
        for part in [
            "**Added** (1)\n\n- `big`: tier: free",
            "**Removed (data stay)** (1)\n\n- `t0`",
            "| tenants that run | 3 | 3 | |",
            "| memory promised | 60M | 2.0G | 1.0G |",
            "| storage promised | 3 without a limit | 1.0G + 2 without a limit | 80.0G |",
            "1 tenant is removed",
            "memory is over-committed: 2.0G promised, the host has 1.0G (2.0x)",
            "Plan hash of the removals: `",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn many_removals_are_said_to_be_held_under_the_hash_that_the_host_will_ask_for() {
        let review = review(&tenants(0..100, ""), &tenants(0..40, ""), 1 << 40);
        let held = review.held.clone().unwrap();
        assert_eq!((held.removals.len(), review.hash.as_ref()), (60, Some(&held.hash)));
        let text = review.markdown();
        assert!(text.contains("**Removed, HELD** (60)") && text.contains("- and 10 more"), "{text}");
        assert!(text.contains(&format!("`sq-agent confirm {}`", held.hash)));
    }

    #[test]
    fn nothing_is_nothing_and_a_tenant_without_a_limit_is_told() {
        let same = review(&tenants(0..2, ""), &tenants(0..2, ""), 1 << 30);
        assert!(same.markdown().contains("Nothing would change.") && same.warnings.is_empty() && same.hash.is_none());
        let unlimited = review(&tenants(0..1, ""), &tenants(0..1, "memory_max = \"none\""), 1 << 30);
        assert!(unlimited.warnings[0].contains("without `memory_max`"), "{:?}", unlimited.warnings);
        assert!(unlimited.markdown().contains("| 20M | 1 without a limit |"), "{}", unlimited.markdown());
    }
}
