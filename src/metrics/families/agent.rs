//! The agent and its host.

use std::{fmt, time::UNIX_EPOCH};

use super::{
    Families,
    writer::{Writer, bytes, name, seconds},
};
use crate::{
    admin::status::{BackupStatus, ChannelStatus, GitOpsStatus},
    route::RouteState,
};

/// Every state, with its word.
const STATES: [(RouteState, &str); 6] = [
    (RouteState::Starting, "starting"),
    (RouteState::Ready, "ready"),
    (RouteState::Draining, "draining"),
    (RouteState::Stopped, "stopped"),
    (RouteState::Suspended, "suspended"),
    (RouteState::Crashed, "crashed"),
];

pub(super) fn write(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    about_itself(families, out)?;
    about_tenants(families, out)?;
    about_the_file(families, out)?;
    about_the_host(families, out)?;
    if let Some(backup) = &families.snapshot.status.backup {
        about_backups(backup, out)?;
    }
    about_alerts(families, out)
}

fn about_itself(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let agent = &families.snapshot.status.agent;
    out.info(name("build", "The program that runs"), [("version", &agent.version)])?;
    out.gauge(seconds("uptime", "Time since the agent started"), agent.uptime_seconds)?;
    let turns = &families.snapshot.turns;
    out.histogram(seconds("loop_turn", "How long the turns of the agent's loop took"), turns.sum(), &turns.buckets())?;
    out.gauge(
        seconds("loop_snapshot_age", "Age of what the loop said last: more than a few seconds, and it stands still"),
        families.age.as_secs_f64(),
    )?;
    out.gauge(name("plan_actions", "Actions in the last plan for all tenants"), families.snapshot.planned)?;
    out.gauge(name("route_generation", "Generation of the route table"), agent.generation)
}

fn about_tenants(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let snapshot = &families.snapshot;
    let mut counts = [0_u64; STATES.len()];
    for tenant in &snapshot.tenants {
        STATES.iter().zip(&mut counts).filter(|((state, _), _)| *state == tenant.state).for_each(|(_, count)| *count += 1);
    }
    let states = STATES.iter().zip(counts).map(|((_, word), count)| ([*word], count));
    out.gauges(name("tenants", "Tenants that have a place on this host, by the state of their instance"), ["state"], states)?;
    out.gauge(name("tenants_desired", "Tenants in the tenants.toml in force"), snapshot.desired)?;
    out.gauge(name("tenants_adrift", "Tenants whose instance is not as it should be"), snapshot.adrift)?;
    let held = snapshot.status.held.as_ref().map_or(0, |held| held.removals.len());
    out.gauge(name("removals_held", "Removals that wait for sq-agent confirm"), held)?;
    let all = &families.all;
    out.counter(name("instance_restarts", "Starts of an instance after its first, of all tenants"), all.restarts)?;
    out.counter(name("instance_crashes", "Instances that ended unasked or did not come up"), all.crashes)?;
    out.counter(name("instance_memory_kills", "Instances that were ended for their memory"), all.memory_kills)?;
    out.counter(name("instance_failed_health_checks", "Probes that an instance did not answer"), all.failed_probes)?;
    out.counter(seconds("instance_cpu", "CPU time of all instances"), super::seconds(all.cpu_us))?;
    let memory: u64 = snapshot.tenants.iter().filter_map(|tenant| tenant.memory).sum();
    out.gauge(bytes("instance_memory", "Memory of all instances (proportional set size)"), memory)?;
    match snapshot.status.forecast.as_ref().and_then(|forecast| forecast.tenants_fit.as_ref()) {
        Some(fit) => out.gauge(name("tenants_fit", "Tenants that still fit, measured by those that are here at their peak"), fit.tenants),
        None => Ok(()),
    }
}

fn about_the_file(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let status = &families.snapshot.status;
    out.info(name("config", "SHA-256 of the tenants.toml in force"), [("hash", &status.agent.desired_hash)])?;
    out.gauge(
        seconds("config_stale", "For how long tenants.toml has been something that could not be applied; 0: it is in force"),
        status.agent.config_stale_seconds,
    )?;
    let Some(GitOpsStatus { applied, branch, refused, failing_since, suspended, .. }) = &status.gitops else { return Ok(()) };
    if let Some(applied) = applied {
        let labels = [("branch", branch.as_str()), ("commit", &applied.id)];
        out.info(name("gitops_applied", "The commit in force"), labels)?;
    }
    out.gauge(name("gitops_failing", "1: the repository cannot be looked at"), u32::from(failing_since.is_some()))?;
    out.gauge(name("gitops_refused", "1: the head of the branch cannot be applied"), u32::from(refused.is_some()))?;
    out.gauge(name("gitops_suspended", "1: the repository is looked at only when somebody asks"), u32::from(*suspended))
}

fn about_the_host(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let snapshot = &families.snapshot;
    if let Some(memory) = snapshot.memory {
        out.gauge(bytes("host_memory_size", "Memory of the host, or of the cgroup in which the agent lives"), memory.total)?;
        out.gauge(bytes("host_memory_used", "What of it is taken"), memory.used)?;
    }
    if let Some(disk) = snapshot.status.disk {
        out.gauge(bytes("disk_size", "Size of the disk where the tenants' files lie"), disk.total)?;
        out.gauge(bytes("disk_free", "What of it is free"), disk.free)?;
        let refused = u32::from(disk.writes_refused);
        out.gauge(name("disk_writes_refused", "1: so little is free that only what makes less is written"), refused)?;
    }
    match snapshot.status.proxy.certificate.as_ref().and_then(|certificate| unix(&certificate.not_after)) {
        Some(end) => out.gauge(seconds("certificate_not_after_timestamp", "When the certificate in force ends, seconds since 1970"), end),
        None => Ok(()),
    }
}

fn about_backups(backup: &BackupStatus, out: &mut Writer<'_>) -> fmt::Result {
    if let Some(age) = backup.last_good_age_seconds {
        out.gauge(seconds("backup_last_good_age", "Age of the last good backup off this host"), age)?;
    }
    out.gauge(name("backup_overdue", "1: the last good backup is older than two intervals"), u32::from(backup.overdue))
}

fn about_alerts(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let alerts = &families.snapshot.status.alerts;
    let mut open: Vec<([&str; 2], u64)> = Vec::new();
    for alert in &alerts.open {
        let labels = [alert.kind.word(), alert.severity.word()];
        match open.iter_mut().find(|(known, _)| *known == labels) {
            Some((_, count)) => *count += 1,
            None => open.push((labels, 1)),
        }
    }
    out.gauges(name("alerts_open", "Alerts of the agent's own that are open"), ["kind", "severity"], open)?;
    if alerts.channels.is_empty() {
        return Ok(());
    }
    let each = |value: fn(&ChannelStatus) -> u64| alerts.channels.iter().map(move |channel| ([channel.name.as_str()], value(channel)));
    out.gauges(name("alert_messages_waiting", "Messages that a channel has not taken yet"), ["channel"], each(|c| c.waiting as u64))?;
    out.counters(name("alert_messages_given_up", "Messages that a channel did not take"), ["channel"], each(|c| c.given_up))
}

fn unix(rfc3339: &str) -> Option<u64> {
    Some(humantime::parse_rfc3339(rfc3339).ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs())
}
