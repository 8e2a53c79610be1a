//! One tenant.

use maud::{Markup, html};

use super::{
    super::{plot::Plot, words},
    Part, alerts, event_rows, state, tenant_address, time, used,
};
use crate::{
    admin::{
        page::StateWord,
        sight::Portrait,
        status::{AlertStatus, TenantStatus},
    },
    desired::TenantId,
    doctor::Why,
    history::{ring::Point, sample::COARSE},
    store::{Event, Usage},
};

/// What is known of it.
pub(in crate::admin::site) struct Known<'a> {
    pub(in crate::admin::site) id: &'a TenantId,
    /// None: it has no place.
    pub(in crate::admin::site) portrait: Option<&'a Portrait>,
    pub(in crate::admin::site) why: &'a Why,
    /// The last lines of its sq.
    pub(in crate::admin::site) log: &'a [String],
    pub(in crate::admin::site) events: &'a [Event],
    pub(in crate::admin::site) days: &'a [Usage],
    pub(in crate::admin::site) alerts: &'a [AlertStatus],
    pub(in crate::admin::site) now: u64,
}

impl Known<'_> {
    /// All of it.
    pub(in crate::admin::site) fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::live("standing", self.standing())];
        if let Some(portrait) = self.portrait {
            parts.push(Part::live("figures", facts(portrait, self.now)));
            parts.push(Part::live("plots", plots(portrait, self.now)));
        }
        parts.push(Part::live("log", self.log()));
        parts.push(Part::live("latest", self.events()));
        parts.push(Part::fixed("days", self.days()));
        parts
    }

    fn standing(&self) -> Markup {
        let Why { desired, observed, tried, next, todo } = self.why;
        let suspended = self.portrait.is_some_and(|portrait| portrait.tenant.state == "suspended");
        let address = tenant_address(self.id.as_str());
        html! {
            div .standing {
                p .now data-news {
                    @match self.portrait.and_then(|portrait| Some((word(&portrait.tenant.state)?, portrait))) {
                        Some((word, portrait)) => { (state(word)) " " span .tier { "tier " (portrait.tenant.tier) } }
                        None => { span .badge.warning { "no place on this host" } }
                    }
                }
                @if self.portrait.is_some() {
                    div .buttons {
                        @if !suspended { a .button href={ (address) "/restart" } { "Restart…" } }
                        @if suspended { a .button.primary href={ (address) "/resume" } { "Resume…" } } @else { a .button.grave href={ (address) "/suspend" } { "Suspend…" } }
                    }
                }
            }
            @if !self.alerts.is_empty() { (alerts::list(self.alerts, self.now)) }
            section aria-labelledby="why-title" {
                h2 #why-title { "Why it is so" }
                dl .facts.why {
                    @for (name, text) in [("Wanted", desired), ("Is", observed), ("Tried", tried), ("Comes by itself", next), ("To do", todo)].into_iter().filter(|(_, text)| !text.is_empty()) {
                        dt { (name) } dd { (text) }
                    }
                }
            }
        }
    }

    fn log(&self) -> Markup {
        html! {
            section aria-labelledby="log-title" {
                h2 #log-title { "Log" }
                @if self.log.is_empty() { p .quiet { "Its sq has written nothing." } }
                @else {
                    pre .log tabindex="0" role="region" aria-label="The last lines of the log" { @for line in self.log { (line) "\n" } }
                    p .quiet { "The last lines. " code { "sq-agent logs " (self.id) " --follow" } " has more." }
                }
            }
        }
    }

    fn events(&self) -> Markup {
        html! {
            section aria-labelledby="latest-title" {
                h2 #latest-title { "Events" }
                (event_rows(self.events, false, self.now))
                p { a href={ "/events?tenant=" (super::encoded(self.id.as_str())) } { "All of its events" } }
            }
        }
    }

    fn days(&self) -> Markup {
        html! {
            section aria-labelledby="days-title" {
                h2 #days-title { "By the day" }
                @if self.days.is_empty() { p .quiet { "Nothing is written down yet." } }
                @else {
                    table .cards {
                        thead { tr { th scope="col" { "Day" } th scope="col" .number { "Requests" } th scope="col" .number { "Writes" } th scope="col" .number { "Errors" } th scope="col" .number { "In" } th scope="col" .number { "Out" } th scope="col" .number { "Peak memory" } th scope="col" .number { "Storage" } } }
                        tbody {
                            @for day in self.days {
                                tr {
                                    th scope="row" { (day.period) }
                                    td data-label="Requests" .number { (words::count(day.requests)) }
                                    td data-label="Writes" .number { (words::count(day.writes)) }
                                    td data-label="Errors" .number { (words::count(day.errors)) }
                                    td data-label="In" .number { (words::size(day.bytes_in)) }
                                    td data-label="Out" .number { (words::size(day.bytes_out)) }
                                    td data-label="Peak memory" .number { (words::size(day.peak_memory_bytes)) }
                                    td data-label="Storage" .number { (words::size(day.storage_bytes)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn word(text: &str) -> Option<StateWord> {
    [StateWord::Starting, StateWord::Ready, StateWord::Draining, StateWord::Stopped, StateWord::Suspended, StateWord::Crashed]
        .into_iter()
        .find(|word| word.text() == text)
}

fn facts(portrait: &Portrait, now: u64) -> Markup {
    let Portrait { tenant, usage, .. } = portrait;
    let TenantStatus { port, pid, epoch, restarts, last_exit, last_undone, started_at, .. } = tenant;
    let number = |number: Option<u64>| number.map_or_else(|| "–".to_owned(), |number| number.to_string());
    html! {
        div .tiles {
            section .tile aria-labelledby="t-memory" { h2 #t-memory { "Memory" } (used(usage.memory_bytes, usage.memory_max)) }
            section .tile aria-labelledby="t-storage" { h2 #t-storage { "Storage" } (used(usage.storage_bytes, usage.storage_max)) }
            section .tile aria-labelledby="t-requests" {
                h2 #t-requests { "Requests today" }
                span .figure { (words::count(usage.requests_today.into())) }
                @if let Some(most) = usage.requests_per_day {
                    " " span .of { "of " (words::count(most.into())) }
                    @if let Some(percent) = words::percent(usage.requests_today.into(), most.into()) { (super::plot::bar(percent)) }
                }
                p .of { "last " @match &usage.last_request { Some(at) => (time(at, now)), None => "not since the host booted" } }
            }
            section .tile aria-labelledby="t-starts" {
                h2 #t-starts { "Restarts" }
                span .figure { (words::count(*restarts)) }
                p .of { "start " (epoch) @if let Some(at) = started_at { " since " (time(at, now)) } }
            }
        }
        dl .facts {
            dt { "Instance" } dd { "process " (number(pid.map(Into::into))) ", port " (number(port.map(Into::into))) }
            @if let Some(exit) = last_exit { dt { "The last one ended" } dd { (exit) } }
            @if let Some(undone) = last_undone { dt { "Write that broke off" } dd { (undone) } }
            dt { "Since the host booted" } dd { (words::count(usage.requests)) " requests, " (words::count(usage.errors)) " answered by 5xx, " (words::size(usage.bytes_in)) " in, " (words::size(usage.bytes_out)) " out" }
        }
    }
}

fn plots(portrait: &Portrait, now: u64) -> Markup {
    let points: &[Point] = &portrait.points;
    let memory: Vec<(u64, f64)> = points.iter().filter_map(|point| Some((point.at, point.memory? as f64))).collect();
    let requests: Vec<(u64, f64)> = points.iter().map(|point| (point.at, point.requests as f64)).collect();
    let size = |value: f64| words::size(value.round() as u64);
    let number = |value: f64| words::number(value);
    let limit = portrait.usage.memory_max.map(|limit| limit as f64);
    let marks: &[(f64, &str)] = if limit.is_some() { &[(0.8, "warning"), (0.9, "critical")] } else { &[] };
    let step = u64::from(COARSE);
    html! {
        section aria-labelledby="plots-title" {
            h2 #plots-title { "The last 24 hours, by the quarter of an hour" }
            div .plots {
                (Plot { id: "p-memory", title: "Memory at its peak", points: &memory, step, full: limit, marks, text: &size, now }.draw())
                (Plot { id: "p-requests", title: "Requests", points: &requests, step, full: None, marks: &[], text: &number, now }.draw())
            }
            p .quiet { "As far back as this agent runs." }
        }
    }
}
