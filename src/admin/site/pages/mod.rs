//! The pages as HTML. What comes from outside (ids, log lines, events, tiers) is text wherever it stands: maud escapes it.

pub(super) mod alerts;
pub(super) mod entry;
pub(super) mod events;
pub(super) mod overview;
pub(super) mod plan;
pub(super) mod shell;
pub(super) mod sure;
pub(super) mod tenant;
pub(super) mod tenants;

use maud::{Markup, html};

use super::{list::encoded, plot, words};
use crate::{
    admin::page::StateWord,
    alerts::Severity,
    desired::TenantId,
    store::{Event, rfc3339},
};

/// A piece of a page.
pub(super) struct Part {
    /// Names it within its page.
    pub(super) name: &'static str,
    /// It is brought up to date while the page is open.
    pub(super) is_live: bool,
    pub(super) html: Markup,
}

impl Part {
    fn live(name: &'static str, html: Markup) -> Self {
        Self { name, is_live: true, html }
    }

    fn fixed(name: &'static str, html: Markup) -> Self {
        Self { name, is_live: false, html }
    }
}

/// The state of an instance: a shape and a word, and a colour on top.
fn state(state: StateWord) -> Markup {
    html! { span .{ "state " (state.text()) } { (state.text()) } }
}

/// How bad something is.
fn severity(severity: Severity) -> Markup {
    let word = match severity {
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    };
    html! { span .{ "badge " (word) } { (word) } }
}

pub(super) fn tenant_address(id: &str) -> String {
    format!("/tenants/{}", encoded(id))
}

fn tenant_link(id: &str) -> Markup {
    html! { a href=(tenant_address(id)) { (id) } }
}

/// How much of what may be used is used.
fn used(bytes: Option<u64>, limit: Option<u64>) -> Markup {
    let percent = bytes.zip(limit).and_then(|(bytes, limit)| words::percent(bytes, limit));
    html! {
        @match bytes {
            Some(bytes) => {
                span .figure { (words::size(bytes)) }
                @if let (Some(limit), Some(percent)) = (limit, percent) {
                    " " span .of { "of " (words::size(limit)) ", " (percent) " %" }
                    (plot::bar(percent))
                }
            }
            None => { span .none { "–" } }
        }
    }
}

/// When, in UTC.
fn time(at: &str, now: u64) -> Markup {
    html! { time datetime=(at) title={ (at) } { (words::when(at, now)) } }
}

/// Events, the newest first.
fn event_rows(events: &[Event], with_tenant: bool, now: u64) -> Markup {
    html! {
        @if events.is_empty() { p .quiet { "Nothing." } } @else {
            table .cards .events {
                thead {
                    tr {
                        th scope="col" { "Time (UTC)" }
                        th scope="col" { "Kind" }
                        @if with_tenant { th scope="col" { "Tenant" } }
                        th scope="col" { "What happened" }
                    }
                }
                tbody {
                    @for event in events {
                        tr {
                            td data-label="Time" { (time(&rfc3339(event.at), now)) }
                            td data-label="Kind" { span .kind { (event.kind) } }
                            @if with_tenant {
                                td data-label="Tenant" {
                                    @match &event.id {
                                        Some(id) if TenantId::parse(id).is_ok() => { (tenant_link(id)) }
                                        _ => { span .none { "–" } }
                                    }
                                }
                            }
                            td data-label="What happened" .long { (event.detail) }
                        }
                    }
                }
            }
        }
    }
}
