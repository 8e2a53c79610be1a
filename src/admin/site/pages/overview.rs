//! How the host stands, at one look.

use maud::{Markup, html};

use super::{
    super::{list::Trouble, plot, plot::Plot, window::Sight, words},
    Part, alerts, event_rows, tenant_link, time,
};
use crate::{
    admin::{
        page::StateWord,
        sight::Row,
        status::{AgentStatus, DiskStatus, GitOpsStatus, ResourceForecast, Status},
    },
    history::{
        forecast::Outlook,
        sample::{FINE, Sample},
    },
    store::{Event, rfc3339},
};

/// Tenants that are named for the memory they take.
const LARGEST: usize = 5;
/// From there on somebody is told.
const MARKS: [(f64, &str); 2] = [(0.8, "warning"), (0.9, "critical")];

/// All of it.
pub(in crate::admin::site) fn parts(sight: &Sight, samples: &[Sample], events: &[Event]) -> Vec<Part> {
    let (status, now) = (&sight.glance.status, sight.glance.at);
    vec![
        Part::live("open", open(status, now)),
        Part::live("figures", figures(sight, samples)),
        Part::live("plots", plots(samples, now)),
        Part::live("capacity", capacity(status)),
        Part::live("largest", largest(&sight.glance.rows)),
        Part::live("agent", agent(status, sight.glance.since, now)),
        Part::live("latest", latest(events, now)),
    ]
}

fn open(status: &Status, now: u64) -> Markup {
    let open = &status.alerts.open;
    html! {
        @if open.is_empty() { p .well data-news { "No alert is open." } }
        @else {
            section aria-labelledby="open-title" {
                h2 #open-title data-news { (words::counted(open.len(), "open alert", "open alerts")) }
                (alerts::list(open.get(..open.len().min(4)).unwrap_or(open), now))
                @if open.len() > 4 { p { a href="/alerts" { "All " (open.len()) } } }
            }
        }
        @if let Some(error) = &status.agent.config_error {
            div .card.critical {
                p { span .badge.critical { "refused" } " " strong { "tenants.toml has been refused for " (words::span(status.agent.config_stale_seconds)) "; the last good one is in force." } }
                pre tabindex="0" { (error) }
            }
        }
        @if let Some(held) = &status.held {
            p .card.warning { span .badge.warning { "held" } " Removing " (held.removals.len()) " of " (held.of) " tenants waits for your word. " a href="/plan" { "See the plan" } }
        }
    }
}

fn figures(sight: &Sight, samples: &[Sample]) -> Markup {
    let rows = &sight.glance.rows;
    let latest = samples.last();
    let of = |state: StateWord| rows.iter().filter(|row| row.state == state).count();
    let others = [StateWord::Starting, StateWord::Draining, StateWord::Stopped, StateWord::Suspended, StateWord::Crashed];
    let troubled = rows.iter().filter(|row| Trouble::Any.is_of(row)).count();
    let cpu = sight.cpu.or(latest.and_then(|sample| sample.cpu));
    html! {
        div .tiles {
            section .tile aria-labelledby="t-tenants" {
                h2 #t-tenants { "Tenants" }
                p .large { a href="/tenants" { (words::count(rows.len() as u64)) } }
                p .states {
                    a href="/tenants?state=ready" { (words::count(of(StateWord::Ready) as u64)) " ready" }
                    @for state in others.into_iter().filter(|state| of(*state) > 0) {
                        " · " a href={ "/tenants?state=" (state.text()) } { (words::count(of(state) as u64)) " " (state.text()) }
                    }
                    @if troubled > 0 { " · " a .trouble href="/tenants?trouble=any" { (words::count(troubled as u64)) " in trouble" } }
                }
            }
            section .tile aria-labelledby="t-requests" {
                h2 #t-requests { "Requests a minute" }
                p .large { @match latest { Some(sample) => (words::count(sample.requests)), None => span .none { "–" } } }
                p .of { @match latest { Some(sample) => { (words::count(sample.errors)) " answered by 5xx" } None => "measured each minute" } }
            }
            (share("memory", "Memory", sight.memory.map(|share| (share.used, share.total))))
            section .tile aria-labelledby="t-cpu" {
                h2 #t-cpu { "CPU" }
                p .large { @match cpu { Some(cpu) => { (cpu.div_ceil(10)) " %" } None => span .none { "–" } } }
                @if let Some(cpu) = cpu { (plot::bar(cpu.div_ceil(10).into())) }
                p .of { @if cpu.is_some() { "of all processors" } @else { "measured while you look" } }
            }
            (share("disk", "Disk", sight.glance.status.disk.map(|DiskStatus { total, free, .. }| (total.saturating_sub(free), total))))
        }
        @if sight.glance.status.disk.is_some_and(|disk| disk.writes_refused) {
            p .card.critical { span .badge.critical { "full" } " The disk has too little room: only what makes less is written, for all tenants." }
        }
    }
}

fn share(id: &str, title: &str, of: Option<(u64, u64)>) -> Markup {
    let percent = of.and_then(|(used, total)| words::percent(used, total));
    html! {
        section .tile aria-labelledby={ "t-" (id) } {
            h2 id={ "t-" (id) } { (title) }
            p .large { @match percent { Some(percent) => { (percent) " %" } None => span .none { "–" } } }
            @if let (Some(percent), Some((used, total))) = (percent, of) {
                (plot::bar(percent))
                p .of { (words::size(used)) " of " (words::size(total)) }
            }
        }
    }
}

fn plots(samples: &[Sample], now: u64) -> Markup {
    let points = |of: &dyn Fn(&Sample) -> Option<f64>| -> Vec<(u64, f64)> {
        samples.iter().filter_map(|sample| Some((sample.at, of(sample)?))).collect()
    };
    let share = |used: u64, total: u64| (total > 0).then(|| used as f64 * 100.0 / total as f64);
    let percent = |value: f64| format!("{value:.0} %");
    let number = |value: f64| words::number(value);
    let step = u64::from(FINE);
    let memory = points(&|sample| share(sample.memory_used, sample.memory_total));
    let cpu = points(&|sample| Some(f64::from(sample.cpu?) / 10.0));
    let disk = points(&|sample| share(sample.disk_used, sample.disk_total));
    let requests = points(&|sample| Some(sample.requests as f64));
    let draw = |id, title, points: &[(u64, f64)], marks: &[(f64, &str)]| {
        Plot { id, title, points, step, full: Some(100.0), marks, text: &percent, now }.draw()
    };
    html! {
        section aria-labelledby="plots-title" {
            h2 #plots-title { "The last 24 hours" }
            div .plots {
                (draw("p-memory", "Memory", &memory, &MARKS))
                (draw("p-cpu", "CPU", &cpu, &[]))
                (draw("p-disk", "Disk", &disk, &MARKS))
                (Plot { id: "p-requests", title: "Requests a minute", points: &requests, step, full: None, marks: &[], text: &number, now }.draw())
            }
        }
    }
}

fn capacity(status: &Status) -> Markup {
    html! {
        section aria-labelledby="capacity-title" {
            h2 #capacity-title { "Capacity" }
            @if let Some(forecast) = &status.forecast {
                dl .facts {
                    dt { "Room for" }
                    dd {
                        @match &forecast.tenants_fit {
                            Some(fit) => { strong { (words::count(fit.tenants)) " more tenants" } " at their peak (" (words::size(fit.peak_each)) " each), then " (fit.bound_by.text()) " is 90 % used; " (words::count(fit.at_present_use)) " by what they use now (" (words::size(fit.memory_each)) " each)" }
                            None => "not known yet: no tenant runs that was measured"
                        }
                    }
                    dt { "Memory at 90 %" } dd { (outlook(&forecast.memory)) }
                    dt { "Disk at 90 %" } dd { (outlook(&forecast.disk)) }
                }
            }
        }
    }
}

/// When it is nearly full.
fn outlook(forecast: &ResourceForecast) -> Markup {
    html! {
        @match forecast.outlook {
            Outlook::Unmeasured => "it cannot be told how much there is",
            Outlook::NotYet { hours, needed } => { "not known yet: " (hours) " of " (needed) " hours are looked at" }
            Outlook::Reached => span .badge.critical { "now" },
            Outlook::Full { in_days } if in_days < 1.0 => span .badge.critical { "within a day" },
            Outlook::Full { in_days } => { strong { "in " (format!("{in_days:.0}")) " days" } ", if it goes on as in the last two weeks" }
            Outlook::NoTrend => "not within a year, by anything that stands out",
        }
    }
}

fn largest(rows: &[Row]) -> Markup {
    let mut largest: Vec<&Row> = rows.iter().filter(|row| row.memory.is_some()).collect();
    if largest.len() > LARGEST {
        largest.select_nth_unstable_by_key(LARGEST, |row| std::cmp::Reverse(row.memory));
        largest.truncate(LARGEST);
    }
    largest.sort_by_key(|row| std::cmp::Reverse(row.memory));
    html! {
        section aria-labelledby="largest-title" {
            h2 #largest-title { "Most memory" }
            @if largest.is_empty() { p .quiet { "No tenant is measured yet." } }
            @else {
                ol .ranking {
                    @for row in largest { li { (tenant_link(row.id.as_str())) " " (super::used(row.memory, row.memory_max)) } }
                }
                p { a href="/tenants?sort=memory" { "All by memory" } }
            }
        }
    }
}

fn agent(status: &Status, since: u64, now: u64) -> Markup {
    let AgentStatus { desired_hash, generation, pending_restart, memory_enforced, version, pid, .. } = &status.agent;
    let since = rfc3339(since);
    html! {
        section aria-labelledby="agent-title" {
            h2 #agent-title { "In force" }
            dl .facts {
                @if let Some(gitops) = &status.gitops { (repository(gitops, now)) }
                dt { "tenants.toml" } dd { code { (desired_hash.get(..12).unwrap_or(desired_hash)) } ", generation " (generation) }
                dt { "Agent" } dd { (version) ", process " (pid) ", since " (time(&since, now)) ", memory limits by the " (if memory_enforced == "kernel" { "kernel" } else { "agent" }) }
                dt { "Proxy" }
                dd {
                    @match status.proxy.pid { Some(pid) => { "process " (pid) ", " (status.proxy.listen.join(", ")) } None => { span .badge.critical { "down" } } }
                    @for trouble in &status.proxy.troubles { br; span .badge.warning { "trouble" } " " (trouble) }
                }
                @if let Some(certificate) = &status.proxy.certificate {
                    dt { "Certificate" }
                    dd { (certificate.source) ", " @if certificate.ends_soon { span .badge.warning { "ends soon" } " " } (certificate.days_left) " days left" }
                }
                @if let Some(backup) = &status.backup {
                    dt { "Last backup" }
                    dd { @match &backup.last_good { Some(at) => (time(at, now)), None => "none yet" } @if backup.overdue { " " span .badge.warning { "overdue" } } }
                }
                @if !pending_restart.is_empty() { dt { "At the next start" } dd { (pending_restart.join(", ")) } }
            }
        }
    }
}

fn repository(gitops: &GitOpsStatus, now: u64) -> Markup {
    html! {
        dt { "Applied commit" }
        dd {
            @match &gitops.applied {
                Some(commit) => { code { (commit.short()) } " " (commit.subject) " (" (commit.author) @if let Some(at) = &gitops.applied_at { ", since " (time(at, now)) } ")" }
                None => "none yet"
            }
            " · " (gitops.branch) " of " (gitops.url)
            @if gitops.suspended { " " span .badge.warning { "not followed" } }
        }
        @if let Some(why) = &gitops.refused_because {
            dt { "Refused commit" }
            dd { span .badge.warning { "refused" } " " @if let Some(commit) = &gitops.refused { code { (commit.short()) } " " } (why) }
        }
        @if let Some(why) = gitops.last_error.as_ref().filter(|_| gitops.failing_since.is_some()) { dt { "Repository" } dd { span .badge.warning { "failing" } " " (why) } }
    }
}

fn latest(events: &[Event], now: u64) -> Markup {
    html! {
        section aria-labelledby="latest-title" {
            h2 #latest-title { "Latest events" }
            (event_rows(events, true, now))
            p { a href="/events" { "All events" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admin::sight::Glance;

    /// A host whose repository, forecast and agent say these.
    fn shown(gitops: serde_json::Value, config_error: serde_json::Value) -> String {
        let full = json!({"total": 100 << 20, "used": 95 << 20, "outlook": "reached", "detail": ""});
        let later = json!({"total": 100 << 20, "used": 5 << 20, "outlook": "full", "in_days": 12.4, "detail": ""});
        let fit = json!({"tenants": 1_234, "bound_by": "memory", "at_present_use": 9_000, "peak_each": 3 << 20, "memory_each": 1 << 20, "storage_each": 0});
        let status = json!({
            "agent": {"pid": 1, "version": "9.9", "uptime_seconds": 5, "desired_hash": "0123456789abcdef", "generation": 7, "config_stale_seconds": 300,
                      "config_error": config_error, "pending_restart": []},
            "proxy": {"pid": null, "listen": [], "detail": null}, "held": null, "gitops": gitops, "tenants": [],
            "forecast": {"memory": full, "disk": later, "tenants_fit": fit},
        });
        let glance = Glance { at: 1_800_000_000, since: 1_799_999_000, status: serde_json::from_value(status).unwrap(), rows: Vec::new() };
        let event = Event { number: 1, at: 1_799_999_999, id: Some("../<b>".into()), kind: "<i>".into(), detail: "<script>".into() };
        let parts = parts(&Sight { glance, memory: None, cpu: Some(421) }, &[], &[event]);
        parts.into_iter().map(|part| part.html.into_string()).collect()
    }

    fn repository(more: serde_json::Value) -> serde_json::Value {
        let commit = |id: &str| json!({"id": format!("{id}bcdef0123456789"), "subject": "raise <b>limits</b>", "author": "ada", "at": "2027-01-15T07:00:00Z"});
        let mut gitops = json!({
            "url": "https://git.example.com/r", "branch": "main", "path": "tenants.toml", "suspended": false, "applied": commit("a"),
            "applied_at": "2027-01-15T07:00:00Z", "refused": null, "refused_because": null, "last_good": null, "failing_since": null, "last_error": null,
            "running": null, "asked": null, "finished": 1, "last": "", "last_good_look": true,
        });
        gitops.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        if gitops["refused_because"].is_string() {
            gitops["refused"] = commit("f");
        }
        gitops
    }

    #[test]
    fn the_commit_in_force_and_what_is_refused_are_named() {
        let html = shown(repository(json!({})), json!(null));
        assert!(
            html.contains("<code>abcdef0123</code> raise &lt;b&gt;limits&lt;/b&gt; (ada")
                && html.contains("main of https://git.example.com/r"),
            "{html}"
        );
        assert!(!html.contains("Refused commit") && !html.contains("has been refused"), "{html}");
        let html = shown(repository(json!({"refused_because": "line 3 <x>", "suspended": true})), json!("tenants.toml:3: <no>"));
        assert!(html.contains("<code>fbcdef0123</code> line 3 &lt;x&gt;") && html.contains("not followed"), "{html}");
        assert!(html.contains("refused for 5 minutes") && html.contains("tenants.toml:3: &lt;no&gt;"), "{html}");
    }

    #[test]
    fn what_is_to_come_and_what_is_not_known_is_said() {
        let html = shown(json!(null), json!(null));
        for part in [
            "1,234 more tenants",
            "memory is 90 % used",
            ">now</span>",
            "<strong>in 12 days</strong>",
            "43 %",
            "<code>0123456789ab</code>",
            ">down</span>",
            "nothing is known yet",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("Applied commit") && !html.contains("<script>") && !html.contains("<i>") && !html.contains("<b>"), "{html}");
        assert!(html.contains("<span class=\"none\">–</span></td>"), "an event of no tenant that could be leads nowhere: {html}");
    }
}
