//! What the loop would do, what it holds, and the word that lets that through.

use maud::{Markup, html};

use super::{Part, tenant_link};
use crate::{
    admin::status::{RolloutStatus, Status},
    reconcile::{diff::Change, review::Review},
};

/// Changes that are listed: more are counted.
const LISTED: usize = 200;

/// All of it.
pub(in crate::admin::site) fn parts(review: &Review, status: &Status) -> Vec<Part> {
    vec![Part::live("held", held(review, status)), Part::live("diff", diff(review)), Part::live("promised", promised(review))]
}

fn held(review: &Review, status: &Status) -> Markup {
    html! {
        section aria-labelledby="held-title" {
            h2 #held-title { "Waits for you" }
            @match &review.held {
                Some(held) => {
                    div .card.warning {
                        p data-news { span .badge.warning { "held" } " " strong { "Removing " (held.removals.len()) " of " (held.of) " tenants at once waits for your word." } }
                        p { "All else is applied. Their users get 403 once they are removed; their data stay on the host. To keep them, put them back into tenants.toml." }
                        p { "Plan " code { (held.hash) } " names exactly these removals: another edit makes another plan." }
                        div .buttons { a .button.primary.grave href={ "/plan/confirm?hash=" (held.hash) } { "Confirm the plan…" } }
                    }
                }
                None => { p .well data-news { "No plan is held." } }
            }
            @if let Some(rollout) = &status.rollout { (rolled(rollout)) }
        }
    }
}

fn rolled(rollout: &RolloutStatus) -> Markup {
    let RolloutStatus { to, from, total, moved, healthy, crashed, try_again } = rollout;
    html! {
        div .card {
            p { strong { "Roll-out of " (to) } " from " (from) ": " (moved) " of " (total) " tenants have it, " (healthy) " run well, " (crashed) " crashed." }
            @if let Some(hash) = try_again {
                p { "It went back. " a .button href={ "/plan/confirm?hash=" (hash) } { "Try it once more…" } }
            }
        }
    }
}

fn diff(review: &Review) -> Markup {
    let changes = &review.changes;
    // That they are held is said above already.
    let notes = review.warnings.iter().filter(|text| review.held.as_ref().is_none_or(|held| !text.contains(&held.hash)));
    html! {
        section aria-labelledby="diff-title" {
            h2 #diff-title { "What would change" }
            @if changes.is_empty() { p .well { "Nothing: everything is as tenants.toml says." } }
            @else {
                @for text in notes { p .note { (text) "." } }
                table .cards .diff {
                    thead { tr { th scope="col" { "Tenant" } th scope="col" { "What" } th scope="col" { "Particulars" } } }
                    tbody {
                        @for change in changes.iter().take(LISTED) {
                            tr .{ (sign(change)) } {
                                th scope="row" { span .mark aria-hidden="true" { (change.kind.mark()) } " " (tenant_link(change.id.as_str())) }
                                td data-label="What" { (change.kind.word()) }
                                td data-label="Particulars" .long { (change.detail.join(", ")) }
                            }
                        }
                    }
                }
                @if changes.len() > LISTED { p .quiet { "and " (changes.len() - LISTED) " more: " code { "sq-agent plan" } " lists them all." } }
            }
        }
    }
}

fn sign(change: &Change) -> &'static str {
    match change.kind.mark() {
        '+' => "more",
        '-' | '!' => "less",
        _ => "other",
    }
}

fn promised(review: &Review) -> Markup {
    let size = super::words::size;
    let sum = |bytes: u64, unlimited: usize| match (bytes, unlimited) {
        (0, 1..) => format!("{unlimited} without a limit"),
        (bytes, 0) => size(bytes),
        (bytes, unlimited) => format!("{} + {unlimited} without a limit", size(bytes)),
    };
    let Review { before, after, capacity, .. } = review;
    let rows = [
        ("Tenants that run", before.tenants.to_string(), after.tenants.to_string(), String::new()),
        ("Memory promised", sum(before.memory, before.unlimited), sum(after.memory, after.unlimited), size(capacity.memory)),
        (
            "Storage promised",
            sum(before.storage, before.storage_unlimited),
            sum(after.storage, after.storage_unlimited),
            size(capacity.disk),
        ),
    ];
    html! {
        section aria-labelledby="promised-title" {
            h2 #promised-title { "What is promised" }
            table .cards {
                thead { tr { th scope="col" { "What" } th scope="col" .number { "Now" } th scope="col" .number { "By tenants.toml" } th scope="col" .number { "The host has" } } }
                tbody {
                    @for (what, before, after, has) in rows {
                        tr {
                            th scope="row" { (what) }
                            td data-label="Now" .number { (before) }
                            td data-label="By tenants.toml" .number { (after) }
                            td data-label="The host has" .number { @if has.is_empty() { span .none { "–" } } @else { (has) } }
                        }
                    }
                }
            }
        }
    }
}
