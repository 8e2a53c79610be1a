//! What needs somebody, and whether people can be told.

use maud::{Markup, html};

use super::{Part, severity, tenant_link, time};
use crate::admin::status::{AlertStatus, AlertsStatus, ChannelStatus};

/// All of it.
pub(in crate::admin::site) fn parts(alerts: &AlertsStatus, now: u64) -> Vec<Part> {
    vec![Part::live("open", open(&alerts.open, now)), Part::live("channels", channels(&alerts.channels, now))]
}

/// Those that are open, the worst first.
pub(super) fn list(open: &[AlertStatus], now: u64) -> Markup {
    let mut sorted: Vec<&AlertStatus> = open.iter().collect();
    sorted.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
    html! {
        ul .alerts {
            @for alert in sorted {
                li .{ (alert.severity.to_string()) } {
                    p {
                        (severity(alert.severity)) " " strong { (alert.kind.title()) }
                        @if let Some(id) = &alert.tenant { " · " (tenant_link(id.as_str())) }
                        span .of { " since " (time(&alert.since, now)) }
                    }
                    p { (alert.text) }
                    @if !alert.command.is_empty() { p .command { span .of { "Run " } code { (alert.command) } } }
                }
            }
        }
    }
}

fn open(open: &[AlertStatus], now: u64) -> Markup {
    html! {
        section aria-labelledby="open-title" {
            h2 #open-title { "Open" }
            @if open.is_empty() { p .well data-news { "No alert is open." } }
            @else {
                p .visually-hidden data-news { (open.len()) " open alerts" }
                (list(open, now))
            }
        }
    }
}

fn channels(channels: &[ChannelStatus], now: u64) -> Markup {
    html! {
        section aria-labelledby="channels-title" {
            h2 #channels-title { "Who is told" }
            @if channels.is_empty() { p { "Nobody: name a channel under " code { "[alerts]" } " in tenants.toml." } }
            @else {
                table .cards {
                    thead { tr { th scope="col" { "Channel" } th scope="col" { "Last message" } th scope="col" .number { "Waiting" } th scope="col" .number { "Given up" } th scope="col" { "Trouble" } } }
                    tbody {
                        @for channel in channels {
                            tr {
                                th scope="row" { (channel.name) }
                                td data-label="Last message" { @match &channel.last_sent { Some(at) => (time(at, now)), None => span .none { "none yet" } } }
                                td data-label="Waiting" .number { (channel.waiting) }
                                td data-label="Given up" .number { (channel.given_up) }
                                td data-label="Trouble" .long {
                                    @if channel.stopped { span .badge.critical { "stopped" } " " }
                                    @match &channel.trouble { Some(trouble) => (trouble), None => span .none { "none" } }
                                }
                            }
                        }
                    }
                }
                p .quiet { "Try them out with " code { "sq-agent alert test" } "." }
            }
        }
    }
}
