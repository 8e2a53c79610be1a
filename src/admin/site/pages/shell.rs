//! What is around every page: head, way around, foot.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use maud::{DOCTYPE, Markup, html};

use super::{
    super::{
        assets::{ICON, SCRIPT, STYLE},
        list::encoded,
        session::{Said, Visitor},
        window::Sight,
        words,
    },
    Part,
};
use crate::{admin::api::Problem, alerts::Severity, store::rfc3339};

/// Where in the product a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin::site) enum Tab {
    Overview,
    Tenants,
    Events,
    Alerts,
    Plan,
}

impl Tab {
    const EACH: [(Self, &'static str, &'static str); 5] = [
        (Self::Overview, "/", "Overview"),
        (Self::Tenants, "/tenants", "Tenants"),
        (Self::Events, "/events", "Events"),
        (Self::Alerts, "/alerts", "Alerts"),
        (Self::Plan, "/plan", "Plan"),
    ];
}

/// A page of somebody who is logged in.
pub(in crate::admin::site) struct Page<'a> {
    pub(in crate::admin::site) title: &'a str,
    pub(in crate::admin::site) tab: Tab,
    pub(in crate::admin::site) parts: &'a [Part],
    /// Its own address, where something on it is brought up to date.
    pub(in crate::admin::site) address: Option<&'a str>,
    pub(in crate::admin::site) visitor: &'a Visitor,
    pub(in crate::admin::site) said: Option<Said>,
    pub(in crate::admin::site) sight: &'a Sight,
}

impl Page<'_> {
    pub(in crate::admin::site) fn html(&self) -> Markup {
        let Self { title, tab, parts, address, visitor, said, sight } = self;
        let live = address.map(|address| format!("/live?at={}&seen={}", encoded(address), marks(*tab, sight, parts)));
        let status = &sight.glance.status;
        let body = html! {
            body data-live=[live] {
                a .skip href="#main" { "Skip to the content" }
                header .top {
                    a .brand href="/" { img src=(ICON) alt="" width="20" height="20"; "sq-agent" }
                    nav aria-label="Main" data-part="nav" { (nav(*tab, sight)) }
                    div .visitor {
                        span #live .connection role="status" data-title=(title) {}
                        form method="post" action="/logout" {
                            (token(visitor))
                            @if let Some(name) = &visitor.name { span .of { (name) } " " }
                            button .plain type="submit" { "Log out" }
                        }
                    }
                }
                main #main tabindex="-1" {
                    @if let Some(Said { is_good, text }) = said {
                        p .{ "said " (if *is_good { "good" } else { "bad" }) } role="status" { (text) }
                    }
                    h1 { (title) }
                    div .parts {
                        @for part in *parts {
                            div .{ "part part-" (part.name) } data-part=[part.is_live.then_some(part.name)] { (part.html) }
                        }
                    }
                }
                footer {
                    p {
                        "sq-agent " (status.agent.version) " · as of " time datetime=(rfc3339(sight.glance.at)) { (words::when(&rfc3339(sight.glance.at), sight.glance.at)) }
                        " UTC · all times are UTC"
                    }
                    p #news .visually-hidden role="status" aria-live="polite" {}
                }
            }
        };
        document(title, &body)
    }
}

/// The way around, with what needs somebody.
pub(in crate::admin::site) fn nav(tab: Tab, sight: &Sight) -> Markup {
    let status = &sight.glance.status;
    let open = &status.alerts.open;
    let worst = if open.iter().any(|alert| alert.severity == Severity::Critical) { "critical" } else { "warning" };
    html! {
        ul {
            @for (each, address, text) in Tab::EACH {
                li {
                    a href=(address) aria-current=[(each == tab).then_some("page")] {
                        (text)
                        @if each == Tab::Alerts && !open.is_empty() { " " span .{ "pill " (worst) } { (open.len()) span .visually-hidden { " open" } } }
                        @if each == Tab::Plan && status.held.is_some() { " " span .pill.warning { "held" } }
                    }
                }
            }
        }
    }
}

/// The pieces that are brought up to date, by name.
pub(in crate::admin::site) fn live(tab: Tab, sight: &Sight, parts: &[Part]) -> Vec<(&'static str, String)> {
    let parts = parts.iter().filter(|part| part.is_live).map(|part| (part.name, part.html.0.clone()));
    [("nav", nav(tab, sight).0)].into_iter().chain(parts).collect()
}

/// By what a piece is known again.
pub(in crate::admin::site) fn mark(html: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    html.hash(&mut hasher);
    // Half of it: one of four billion changes is seen with the next one.
    (hasher.finish() >> 32) as u32
}

/// What stands on a page, so that its stream need not begin with all of it.
fn marks(tab: Tab, sight: &Sight, parts: &[Part]) -> String {
    live(tab, sight, parts).iter().map(|(name, html)| format!("{name}.{:x}", mark(html))).collect::<Vec<_>>().join("-")
}

/// The same, read back.
pub(in crate::admin::site) fn read_marks(text: &str) -> HashMap<String, u32> {
    let mark = |mark: &str| mark.split_once('.').and_then(|(name, mark)| Some((name.to_owned(), u32::from_str_radix(mark, 16).ok()?)));
    text.split('-').filter_map(mark).collect()
}

/// What every form holds: another site's does not.
pub(in crate::admin::site) fn token(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name="token" value=(visitor.ticket.form_token()); }
}

/// A whole document.
pub(super) fn document(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · sq-agent" }
                link rel="icon" href=(ICON);
                link rel="stylesheet" href=(STYLE.path);
                script src=(SCRIPT.path) defer {}
            }
            (body)
        }
    }
}

/// A page by itself, without the way around: who sees it may not be logged in.
pub(super) fn alone(title: &str, content: &Markup) -> Markup {
    let body = html! {
        body .alone {
            main #main {
                p .brand { img src=(ICON) alt="" width="20" height="20"; "sq-agent" }
                (content)
            }
        }
    };
    document(title, &body)
}

/// Why there is no other page.
pub(in crate::admin::site) fn problem(problem: &Problem, request_id: &str) -> Markup {
    let content = html! {
        h1 { (problem.title) }
        p .lead { (problem.detail) "." }
        @if let Some(seconds) = problem.retry_after { p { "Try again in " (words::span(seconds)) "." } }
        p { a href="/" { "Overview" } }
        p .quiet { (problem.status.as_u16()) ", request " code { (request_id) } }
    };
    alone(problem.title, &content)
}
