//! `sq-agent status [--json]`.

use std::process::ExitCode;

use super::table;
use crate::{
    admin::{
        client,
        status::{
            AcmeStatus, AdminStatus, AlertStatus, AlertsStatus, BackupStatus, CertificateStatus, RolloutStatus, Status, TenantStatus,
        },
    },
    desired::Desired,
};

/// More open alerts are counted.
const SHOWN_ALERTS: usize = 20;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent status\n  sq-agent status --json | jq '.tenants[] | select(.state != \"ready\")'\n\nExit: 0 all is as desired, 2 something is not, 1 no answer."
)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let answer = client::ask(&desired.state_dir, "GET", "/status")?;
    let status: Status = serde_json::from_slice(&answer)?;
    if args.json {
        anstream::println!("{}", String::from_utf8_lossy(&answer));
    } else {
        print(&status);
    }
    Ok(if trouble(&status) { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

/// Whether something is not as desired: for scripts.
fn trouble(status: &Status) -> bool {
    let settled = |tenant: &TenantStatus| matches!(tenant.state.as_str(), "ready" | "suspended");
    status.agent.config_stale_seconds > 0
        || status.held.is_some()
        || status.rollout.as_ref().is_some_and(|rollout| rollout.try_again.is_some())
        || status.backup.as_ref().is_some_and(|backup| backup.overdue || backup.last_error.is_some())
        || status.gitops.as_ref().is_some_and(|gitops| gitops.refused.is_some() || gitops.last_error.is_some())
        || status.admin.as_ref().is_some_and(|admin| admin.trouble.is_some())
        || status.disk.is_some_and(|disk| disk.writes_refused)
        || status.alerts.channels.iter().any(|channel| channel.trouble.is_some())
        || status.proxy.pid.is_none()
        || !status.proxy.troubles.is_empty()
        || status.proxy.certificate.as_ref().is_some_and(|certificate| certificate.ends_soon)
        || status.proxy.acme.as_ref().is_some_and(|acme| acme.last_error.is_some())
        || !status.tenants.iter().all(settled)
}

fn print(status: &Status) {
    let agent = &status.agent;
    let uptime = humantime::format_duration(std::time::Duration::from_secs(agent.uptime_seconds));
    anstream::eprintln!("agent {} (pid {}) up {uptime}, routes generation {}", agent.version, agent.pid, agent.generation);
    match (status.proxy.pid, &status.proxy.detail) {
        (Some(pid), None) => anstream::eprintln!("proxy (pid {pid}) on {}", status.proxy.listen.join(", ")),
        (pid, detail) => anstream::eprintln!(
            "proxy {} {}",
            pid.map_or("is down".to_owned(), |pid| format!("(pid {pid})")),
            detail.as_deref().unwrap_or_default()
        ),
    }
    for trouble in &status.proxy.troubles {
        anstream::eprintln!("no good: {trouble}");
    }
    status.proxy.certificate.iter().for_each(print_certificate);
    match &status.admin {
        Some(AdminStatus { trouble: Some(trouble), .. }) => anstream::eprintln!("admin API: {trouble}"),
        Some(AdminStatus { listen: Some(listen), .. }) => anstream::eprintln!("admin API on {listen}"),
        _ => {}
    }
    if let Some(AcmeStatus { directory, last_error: Some(error), next_try, .. }) = &status.proxy.acme {
        let next = next_try.as_ref().map_or_else(String::new, |at| format!(" (next try at {at})"));
        anstream::eprintln!("no certificate from {directory}{next}: {error}");
    }
    if let Some(error) = &agent.config_error {
        anstream::eprintln!("tenants.toml has been refused for {} s; the last good one is in force:\n{error}", agent.config_stale_seconds);
    }
    for key in &agent.pending_restart {
        anstream::eprintln!("{key} has changed and takes effect when the agent starts anew");
    }
    if let Some(held) = &status.held {
        anstream::eprintln!("held: removing {} of {} tenants waits for `sq-agent confirm {}`", held.removals.len(), held.of, held.hash);
    }
    match &status.rollout {
        Some(RolloutStatus { to, from, moved, total, healthy, crashed, try_again: None }) => {
            anstream::eprintln!(
                "roll-out of {to}: {moved} of {total} tenants have it, {healthy} run well on it, {crashed} crashed (before: {from})"
            );
        }
        Some(RolloutStatus { to, from, moved, crashed, try_again: Some(hash), .. }) => anstream::eprintln!(
            "the roll-out of {to} went back to {from}: {crashed} of {moved} restarted instances crashed; name another version in tenants.toml, or try again with `sq-agent confirm {hash}`"
        ),
        None => {}
    }
    status.gitops.iter().flat_map(super::gitops::lines).for_each(|line| anstream::eprintln!("{line}"));
    status.backup.iter().for_each(print_backup);
    if let Some(disk) = status.disk.filter(|disk| disk.writes_refused) {
        let (free, total) = (table::bytes(disk.free), table::bytes(disk.total));
        anstream::eprintln!("disk: {free} of {total} are free: only what makes less is written, for all; make room");
    }
    print_alerts(&status.alerts);
    if let Some(forecast) = &status.forecast {
        anstream::eprintln!("{}\n{}\n{}", forecast.memory.detail, forecast.disk.detail, forecast.fit_text());
    }
    let mut heading = vec!["ID", "TIER", "STATE", "PORT", "PID", "EPOCH", "RESTARTS", "MEMORY", "REQUESTS", "DETAIL"];
    let mut rows: Vec<Vec<String>> = status.tenants.iter().map(row).collect();
    // Scripts that cut columns never see this one.
    if table::is_wide() {
        const AT: usize = 8;
        heading.insert(AT, "STORAGE");
        let storage = status.tenants.iter().map(|tenant| tenant.storage_bytes.map_or_else(|| "-".to_owned(), table::bytes));
        rows.iter_mut().zip(storage).for_each(|(row, storage)| row.insert(AT, storage));
    }
    table::print(&heading, &rows);
}

/// Open ones; a channel only where something is the matter with it.
fn print_alerts(alerts: &AlertsStatus) {
    for AlertStatus { kind, tenant, severity, since, text, command } in alerts.open.iter().take(SHOWN_ALERTS) {
        let of = tenant.as_ref().map_or_else(String::new, |id| format!(" of {id}"));
        anstream::eprintln!("alert ({severity}, since {since}): {}{of}: {text}; `{command}`", kind.title());
    }
    if let Some(more) = alerts.open.len().checked_sub(SHOWN_ALERTS).filter(|&more| more > 0) {
        anstream::eprintln!("{more} more alerts are open: `sq-agent status --json` lists them");
    }
    for channel in &alerts.channels {
        if let Some(why) = &channel.trouble {
            let what = if channel.stopped { "no alert is sent any more" } else { "alerts are not taken and are tried again" };
            anstream::eprintln!("{}: {what} ({} wait): {why}", channel.name, channel.waiting);
        }
    }
}

fn print_certificate(certificate: &CertificateStatus) {
    let CertificateStatus { source, names, not_after, days_left, ends_soon } = certificate;
    let soon = if *ends_soon { ", which is soon" } else { "" };
    anstream::eprintln!("certificate ({source}) for {} until {not_after}, {days_left} days{soon}", names.join(", "));
}

fn print_backup(backup: &BackupStatus) {
    let or_never = |what: &Option<String>| what.clone().unwrap_or_else(|| "never".to_owned());
    let last = match (&backup.last_good, backup.last_good_age_seconds, &backup.snapshot) {
        (Some(at), Some(age), Some(snapshot)) => {
            format!("last good {} ago ({at}, snapshot {snapshot})", humantime::format_duration(std::time::Duration::from_secs(age)))
        }
        _ => "none so far".to_owned(),
    };
    let running = if backup.running.is_some() { ", one is under way" } else { "" };
    anstream::eprintln!(
        "backup: {last}, checked {}, test restore {}{running}",
        or_never(&backup.last_check),
        or_never(&backup.last_test_restore)
    );
    if let Some(error) = &backup.last_error {
        let missing = if backup.misses > 0 { format!(" ({} missing)", backup.misses) } else { String::new() };
        anstream::eprintln!("backup failed {}{missing}: {error}", or_never(&backup.last_error_at));
    }
}

fn row(tenant: &TenantStatus) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        tenant.id.clone(),
        tenant.tier.clone(),
        tenant.state.clone(),
        or_dash(tenant.port.map(|port| port.to_string())),
        or_dash(tenant.pid.map(|pid| pid.to_string())),
        tenant.epoch.to_string(),
        tenant.restarts.to_string(),
        or_dash(tenant.memory_bytes.map(table::bytes)),
        tenant.requests.to_string(),
        tenant.detail.clone(),
    ]
}
