//! What a running agent says of itself. Pure.

use super::Finding;
use crate::{
    admin::status::{
        AcmeStatus, AdminStatus, AlertsStatus, BackupStatus, CertificateStatus, DiskStatus, ForecastStatus, GitOpsStatus, ResourceForecast,
        Status, TenantStatus,
    },
    history::forecast::Outlook,
    instance::isolation::{Isolation, Part},
};

/// Tenants that are named one by one; more are counted.
const NAMED: usize = 10;
/// What is full within so many days deserves a thought now.
const SOON: f64 = 30.0;

/// What its status tells.
pub fn findings(status: &Status) -> Vec<Finding> {
    let agent = &status.agent;
    let mut findings = vec![Finding::ok("agent", format!("{} runs as process {}", agent.version, agent.pid))];
    findings.push(match (status.proxy.pid, &status.proxy.detail) {
        (Some(_), None) => Finding::ok("proxy", format!("serves on {}", status.proxy.listen.join(", "))),
        (Some(_), Some(detail)) => Finding::problem("proxy", detail, "mend what it names in tenants.toml, or the file that is named there"),
        (None, detail) => Finding::problem("proxy", detail.as_deref().unwrap_or("is down"), "see proxy.log in the state directory"),
    });
    for trouble in &status.proxy.troubles {
        findings.push(Finding::problem("keys", trouble, "mend that file or address; nothing needs to be restarted"));
    }
    findings.extend(status.proxy.certificate.as_ref().map(certificate));
    findings.extend(status.proxy.acme.as_ref().and_then(acme));
    if let Some(error) = &agent.config_error {
        let text = format!("refused for {} s; the last good one is in force: {error}", agent.config_stale_seconds);
        findings.push(Finding::problem("tenants.toml", text, "`sq-agent check` shows every problem with what to write instead"));
    }
    for key in &agent.pending_restart {
        findings.push(Finding::notice("tenants.toml", format!("{key} has changed"), "it takes effect when the agent starts anew"));
    }
    if let Some(held) = &status.held {
        let text = format!("the removal of {} of {} tenants is held", held.removals.len(), held.of);
        findings.push(Finding::problem(
            "removals",
            text,
            format!("look at `sq-agent plan`; `sq-agent confirm {}` lets them through", held.hash),
        ));
    }
    if let Some(rollout) = &status.rollout {
        let stands = format!("{} of {} tenants have {}, {} crashed on it", rollout.moved, rollout.total, rollout.to, rollout.crashed);
        findings.push(match &rollout.try_again {
            None => Finding::ok("roll-out", format!("under way: {stands}")),
            Some(hash) => Finding::problem(
                "roll-out",
                format!("went back to {}: {} of {} instances crashed on {}", rollout.from, rollout.crashed, rollout.moved, rollout.to),
                format!("name another version in tenants.toml, or try again with `sq-agent confirm {hash}`"),
            ),
        });
    }
    findings.extend(status.backup.as_ref().map(backup));
    findings.extend(status.gitops.as_ref().map(gitops));
    findings.extend(status.disk.as_ref().map(disk));
    findings.extend(status.admin.as_ref().and_then(admin));
    findings.extend(alerts(&status.alerts));
    findings.extend(status.forecast.iter().flat_map(forecast));
    findings.extend(tenants(&status.tenants));
    match agent.memory_enforced.as_str() {
        "kernel" => findings.push(Finding::ok("memory limits", "held by the kernel")),
        _ => findings.push(Finding::notice(
            "memory limits",
            "the kernel holds nobody to memory_max here: the agent looks every 20 s, and restarts, drained, who uses more",
            "run the agent where a cgroup of version 2 with the memory controller is delegated to it, as the unit in contrib/systemd does",
        )),
    }
    findings.extend(agent.isolation.as_ref().map(isolation).unwrap_or_default());
    findings
}

/// For how long clients will take the certificate.
fn certificate(certificate: &CertificateStatus) -> Finding {
    let CertificateStatus { source, names, not_after, days_left, ends_soon } = certificate;
    let text = format!("the one for {} ({source}) holds until {not_after}, {days_left} days", names.join(", "));
    match source.as_str() {
        "self-signed" if *days_left >= 0 => Finding::notice(
            "certificate",
            "self-signed: for this host alone, no browser elsewhere takes it",
            "write [proxy.tls] or [proxy.acme] before you face the world",
        ),
        "acme" if *ends_soon => Finding::problem("certificate", text, "it should have been renewed by now: see what is said of acme"),
        _ if *ends_soon => Finding::problem("certificate", text, "put another one into the files that [proxy.tls] names"),
        _ => Finding::ok("certificate", text),
    }
}

/// What stands in the way of a certificate.
fn acme(acme: &AcmeStatus) -> Option<Finding> {
    let error = acme.last_error.as_ref()?;
    let next = acme.next_try.as_ref().map_or_else(String::new, |at| format!("; tried again at {at}"));
    let remedy = "mend that; a change of [proxy.acme] in tenants.toml tries at once";
    Some(Finding::problem("acme", format!("no certificate from {}: {error}{next}", acme.directory), remedy))
}

/// Whether there is a good one that is young enough.
fn backup(backup: &BackupStatus) -> Finding {
    let age = |seconds| humantime::format_duration(std::time::Duration::from_secs(seconds));
    let last = match (&backup.last_good, backup.last_good_age_seconds) {
        (Some(at), Some(seconds)) => format!("the last good one is {} old ({at})", age(seconds)),
        _ => "there is no good one so far".to_owned(),
    };
    let error = backup.last_error.as_ref().map(|error| format!("; {error}")).unwrap_or_default();
    let remedy = "mend that, then see what `sq-agent backup` says";
    match () {
        () if backup.overdue => {
            Finding::problem("backup", format!("{last}, one is due every {}{error}", age(backup.every_seconds)), remedy)
        }
        () if backup.last_error.is_some() => Finding::problem("backup", format!("{last}{error}"), remedy),
        () if backup.last_good.is_none() => {
            Finding::notice("backup", last, "the first one comes by itself; `sq-agent backup` takes it now")
        }
        () => Finding::ok("backup", last),
    }
}

/// Whether the head of the branch is in force.
fn gitops(status: &GitOpsStatus) -> Finding {
    let applied = status.applied.as_ref().map_or("no commit is in force".to_owned(), |commit| format!("{} is in force", commit.short()));
    match (&status.refused, &status.refused_because, &status.last_error) {
        (Some(commit), Some(why), _) => {
            Finding::problem("gitops", format!("{applied}; {} is not applied: {why}", commit.short()), "push a commit that mends it")
        }
        (_, _, Some(why)) => Finding::problem("gitops", format!("{applied}; {why}"), "then see what `sq-agent gitops sync` says"),
        _ if status.suspended => Finding::notice("gitops", format!("{applied}, and is followed no more"), "`sq-agent gitops resume`"),
        _ => Finding::ok("gitops", applied),
    }
}

/// Whether the admin API is where tenants.toml says, and who could hear its key.
fn admin(admin: &AdminStatus) -> Option<Finding> {
    if let Some(trouble) = &admin.trouble {
        return Some(Finding::problem("admin API", trouble, "the agent tries again every 5 s, and at once when [admin] changes"));
    }
    let listen = admin.listen.as_ref()?;
    let is_loopback = listen.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    Some(match is_loopback {
        true => Finding::ok("admin API", format!("on {listen}")),
        false => Finding::notice(
            "admin API",
            format!("on {listen} without TLS: the key can be read on its way"),
            "listen on 127.0.0.1 and put something with TLS before it, or keep it to a network that you trust",
        ),
    })
}

/// What is open, and whether anybody is told.
fn alerts(alerts: &AlertsStatus) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for alert in alerts.open.iter().take(NAMED) {
        let of = alert.tenant.as_ref().map_or_else(String::new, |id| format!(" of {id}"));
        let text = format!("open since {}: {}{of}, {}: {}", alert.since, alert.kind.title(), alert.severity, alert.text);
        findings.push(Finding::notice("alerts", text, format!("`{}`", alert.command)));
    }
    if alerts.open.len() > NAMED {
        findings.push(Finding::notice(
            "alerts",
            format!("{} more are open", alerts.open.len() - NAMED),
            "`sq-agent status --json` lists them",
        ));
    }
    for channel in &alerts.channels {
        findings.push(match &channel.trouble {
            Some(why) if channel.stopped => {
                let text = format!("nothing is sent to {} any more: {why}; {} wait", channel.name, channel.waiting);
                Finding::problem("alerts", text, "give it another webhook; `sq-agent alert test` tries it")
            }
            Some(why) => {
                let text = format!("{}: {why}; {} wait, and are tried again", channel.name, channel.waiting);
                Finding::problem("alerts", text, "mend that; `sq-agent alert test` tries it")
            }
            None => Finding::ok("alerts", format!("told by {}", channel.name)),
        });
    }
    findings
}

/// Whether writes are taken.
fn disk(disk: &DiskStatus) -> Finding {
    let room = format!("{} MB of {} MB are free", disk.free >> 20, disk.total >> 20);
    if disk.writes_refused {
        let text = format!("{room}: only what makes less is written, for all");
        Finding::problem("disk", text, "make room, or give `[agent] disk_reserve` a smaller value")
    } else {
        Finding::ok("disk", room)
    }
}

/// Whether there is room for what is to come.
fn forecast(forecast: &ForecastStatus) -> Vec<Finding> {
    let of = |subject: &str, resource: &ResourceForecast, remedy: &str| match resource.outlook {
        Outlook::Reached => Finding::problem(subject, &resource.detail, remedy),
        Outlook::Full { in_days } if in_days < SOON => Finding::notice(subject, &resource.detail, remedy),
        _ => Finding::ok(subject, &resource.detail),
    };
    let fits = forecast.fit_text();
    vec![
        of("memory ahead", &forecast.memory, "plan for more memory, or fewer tenants; `sq-agent usage --daily` shows who took how much"),
        of("disk ahead", &forecast.disk, "plan for a larger disk, or lower storage_max; `sq-agent usage --daily` shows who took how much"),
        match &forecast.tenants_fit {
            Some(fit) if fit.tenants == 0 => Finding::notice("room", fits, "add no more tenants before there is room"),
            _ => Finding::ok("room", fits),
        },
    ]
}

fn tenants(tenants: &[TenantStatus]) -> Vec<Finding> {
    let settled = |tenant: &&TenantStatus| matches!(tenant.state.as_str(), "ready" | "suspended");
    let troubled: Vec<_> = tenants.iter().filter(|tenant| !settled(tenant)).collect();
    let served = tenants.len() - troubled.len();
    let mut findings = vec![Finding::ok("tenants", format!("{served} of {} as desired", tenants.len()))];
    for tenant in troubled.iter().take(NAMED) {
        let remedy = match tenant.state.as_str() {
            "crashed" => format!("see its sq.log; `sq-agent restart {}` tries again at once", tenant.id),
            _ => String::new(),
        };
        findings.push(match tenant.state.as_str() {
            "crashed" => Finding::problem(&tenant.id, &tenant.detail, remedy),
            _ => Finding::notice(&tenant.id, format!("{}: {}", tenant.state, tenant.detail), remedy),
        });
    }
    if troubled.len() > NAMED {
        let text = format!("{} more are not as desired", troubled.len() - NAMED);
        findings.push(Finding::problem("tenants", text, "`sq-agent status` lists them"));
    }
    findings
}

/// Each means by which instances are kept apart.
pub(super) fn isolation(isolation: &Isolation) -> Vec<Finding> {
    let meaning = |name: &str| match name {
        "network" => "instances listen in a network of their own, out of reach from outside and of other users",
        "landlock" => "an instance reaches its own files and port, and nothing else",
        "seccomp" => "an instance makes the system calls that sq needs, and no other",
        "privileges" => "an instance has no capabilities and gains none",
        "user" => "each instance runs as a user of its own",
        _ => "each instance has a cgroup of its own",
    };
    let finding = |(name, part): (&str, &Part)| match part {
        Part::On { detail } if detail.is_empty() => Finding::ok(name, format!("on: {}", meaning(name))),
        Part::On { detail } => Finding::ok(name, format!("on: {} ({detail})", meaning(name))),
        Part::Off { reason, remedy } => Finding::notice(name, format!("off: {reason}"), remedy),
    };
    isolation.parts().into_iter().map(finding).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        admin::status::{AgentStatus, AlertStatus, ChannelStatus, ProxyStatus},
        alerts::{self, Kind},
        doctor::Severity,
    };

    pub(crate) fn tenant(id: &str, state: &str, detail: &str) -> TenantStatus {
        TenantStatus {
            id: id.into(),
            tier: "free".into(),
            state: state.into(),
            port: None,
            pid: None,
            epoch: 1,
            restarts: 0,
            last_exit: None,
            last_undone: None,
            started_at: None,
            memory_bytes: None,
            storage_bytes: None,
            requests: 0,
            requests_today: 0,
            detail: detail.into(),
        }
    }

    pub(crate) fn status() -> Status {
        let agent = AgentStatus {
            pid: 7,
            version: "1".into(),
            uptime_seconds: 1,
            desired_hash: String::new(),
            generation: 1,
            config_stale_seconds: 0,
            config_error: None,
            isolation: None,
            memory_enforced: "kernel".into(),
            pending_restart: vec![],
        };
        let proxy = ProxyStatus { pid: Some(8), listen: vec!["127.0.0.1:8443".into()], ..ProxyStatus::default() };
        Status {
            agent,
            proxy,
            held: None,
            rollout: None,
            backup: None,
            gitops: None,
            disk: None,
            admin: None,
            alerts: AlertsStatus::default(),
            forecast: None,
            tenants: vec![tenant("a", "ready", "answers")],
        }
    }

    #[test]
    fn an_admin_api_that_strangers_can_hear_is_a_notice_and_one_that_is_not_there_a_problem() {
        let severity = |listen: Option<&str>, trouble: Option<&str>| {
            admin(&AdminStatus { listen: listen.map(str::to_owned), trouble: trouble.map(str::to_owned) }).map(|finding| finding.severity)
        };
        assert_eq!(severity(Some("127.0.0.1:3000"), None), Some(Severity::Ok));
        assert_eq!(severity(Some("[::1]:3000"), None), Some(Severity::Ok));
        assert_eq!(severity(Some("10.0.0.1:3000"), None), Some(Severity::Notice));
        assert_eq!(severity(Some("127.0.0.1:3000"), Some("cannot")), Some(Severity::Problem));
        assert_eq!(severity(None, None), None);
    }

    #[test]
    fn a_host_that_is_well_has_no_finding_that_asks_for_something() {
        assert!(findings(&status()).iter().all(|finding| finding.severity == Severity::Ok && finding.remedy.is_empty()));
    }

    #[test]
    fn a_disk_that_is_nearly_full_asks_for_room() {
        let with = |writes_refused| Status { disk: Some(DiskStatus { total: 1 << 30, free: 1 << 20, writes_refused }), ..status() };
        let of = |status: &Status| findings(status).into_iter().find(|finding| finding.subject == "disk").unwrap();
        assert_eq!(of(&with(false)).severity, Severity::Ok);
        assert_eq!(of(&with(true)).severity, Severity::Problem);
        assert!(of(&with(true)).text.starts_with("1 MB of 1024 MB are free"), "{:?}", of(&with(true)));
    }

    #[test]
    fn an_open_alert_is_said_with_what_to_run_and_a_channel_that_is_gone_is_a_problem() {
        let mut status = status();
        status.alerts.open.push(AlertStatus {
            kind: Kind::HostMemory,
            tenant: None,
            severity: alerts::Severity::Critical,
            since: "2026-02-09T22:32:00Z".into(),
            text: "92 % of the memory of this host is taken".into(),
            command: "sq-agent status".into(),
        });
        let channel = |stopped, trouble: Option<&str>| ChannelStatus {
            name: "discord".into(),
            waiting: 1,
            last_sent: None,
            trouble: trouble.map(str::to_owned),
            trouble_since: None,
            stopped,
            given_up: 0,
        };
        status.alerts.channels = vec![channel(false, None), channel(false, Some("no answer")), channel(true, Some("404"))];
        let found: Vec<_> = findings(&status).into_iter().filter(|finding| finding.subject == "alerts").collect();
        let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Notice, Severity::Ok, Severity::Problem, Severity::Problem]);
        assert!(found[0].text.contains("92 %") && found[0].remedy.contains("sq-agent status"), "{found:?}");
        assert!(found[3].text.contains("nothing is sent") && found[3].text.contains("404"), "{found:?}");
    }

    #[test]
    fn what_fills_up_within_a_month_is_said_before_it_is_full() {
        let with = |outlook| {
            let full = |what| ResourceForecast::new(what, 100 << 20, 50 << 20, outlook);
            let forecast = ForecastStatus { memory: full("memory"), disk: full("disk"), tenants_fit: None };
            let all = findings(&Status { forecast: Some(forecast), ..status() });
            all.into_iter().find(|finding| finding.subject == "disk ahead").unwrap()
        };
        assert_eq!(with(Outlook::Full { in_days: 40.0 }).severity, Severity::Ok);
        let soon = with(Outlook::Full { in_days: 12.4 });
        assert!(soon.severity == Severity::Notice && soon.text.contains("50 of 100 MB") && soon.text.contains("12 days"), "{soon:?}");
        assert_eq!(with(Outlook::Reached).severity, Severity::Problem);
        assert_eq!(with(Outlook::NotYet { hours: 3, needed: 24 }).severity, Severity::Ok);
    }

    #[test]
    fn a_crashed_tenant_is_named_with_why_and_what_to_do() {
        let mut status = status();
        status.tenants.push(tenant("b", "crashed", "killed for memory: 20 MB limit; raise memory_max or lower body_max"));
        let all = findings(&status);
        let finding = all.iter().find(|finding| finding.subject == "b").unwrap();
        assert_eq!(finding.severity, Severity::Problem);
        assert!(finding.text.contains("20 MB limit") && finding.remedy.contains("sq-agent restart b"));
    }

    #[test]
    fn a_backup_that_is_missing_is_a_problem_and_a_young_one_is_none() {
        let mut backup = BackupStatus {
            repository: "/r".into(),
            every_seconds: 3_600,
            last_good: Some("2026-02-09T22:32:00Z".into()),
            last_good_age_seconds: Some(60),
            snapshot: Some("1a2b3c4d".into()),
            last_check: None,
            last_test_restore: None,
            last_error: None,
            last_error_at: None,
            misses: 0,
            overdue: false,
            running: None,
            asked: None,
            finished: 0,
            last_run: vec![],
            last_run_good: true,
        };
        let severity = |backup: &BackupStatus| {
            let all = findings(&Status { backup: Some(backup.clone()), ..status() });
            all.into_iter().find(|finding| finding.subject == "backup").unwrap()
        };
        assert_eq!(severity(&backup).severity, Severity::Ok);
        backup.overdue = true;
        backup.last_error = Some("the password is wrong".into());
        let finding = severity(&backup);
        assert!(finding.severity == Severity::Problem && finding.text.contains("1h") && finding.text.contains("password"), "{finding:?}");
    }

    #[test]
    fn a_key_or_certificate_that_is_no_good_is_a_problem() {
        let mut status = status();
        status.proxy.troubles = vec!["[proxy.tls]: the key file holds no private key in PEM form".into()];
        let all = findings(&status);
        let finding = all.iter().find(|finding| finding.subject == "keys").unwrap();
        assert!(finding.severity == Severity::Problem && finding.text.contains("no private key"), "{finding:?}");
    }

    #[test]
    fn a_certificate_that_ends_soon_is_a_problem_and_a_self_signed_one_a_notice() {
        let mut certificate = CertificateStatus {
            source: "files".into(),
            names: vec!["sq.example.com".into()],
            not_after: "2026-03-01T00:00:00Z".into(),
            days_left: 60,
            ends_soon: false,
        };
        let severity = |certificate: &CertificateStatus| {
            let mut status = status();
            status.proxy.certificate = Some(certificate.clone());
            findings(&status).into_iter().find(|finding| finding.subject == "certificate").unwrap().severity
        };
        assert_eq!(severity(&certificate), Severity::Ok);
        (certificate.days_left, certificate.ends_soon) = (13, true);
        assert_eq!(severity(&certificate), Severity::Problem);
        (certificate.source, certificate.ends_soon) = ("self-signed".into(), false);
        assert_eq!(severity(&certificate), Severity::Notice);
    }

    #[test]
    fn a_certificate_that_does_not_come_is_said_with_why() {
        let mut status = status();
        status.proxy.acme = Some(AcmeStatus {
            directory: "https://acme.example/dir".into(),
            domains: vec!["sq.example.com".into()],
            asking: false,
            next_try: Some("2026-03-01T00:00:00Z".into()),
            last_error: Some("sq.example.com is not proved".into()),
            last_error_at: None,
        });
        let all = findings(&status);
        let finding = all.iter().find(|finding| finding.subject == "acme").unwrap();
        assert!(finding.severity == Severity::Problem && finding.text.contains("not proved") && finding.text.contains("2026-03-01"));
    }

    #[test]
    fn many_in_trouble_are_counted() {
        let mut status = status();
        status.tenants.extend((0..30).map(|n| tenant(&format!("t{n}"), "crashed", "exit 101")));
        let all = findings(&status);
        assert!(all.iter().any(|finding| finding.text == "20 more are not as desired"), "{all:#?}");
    }

    #[test]
    fn who_holds_memory_limits_is_said() {
        let mut status = status();
        status.agent.memory_enforced = "polled".into();
        let all = findings(&status);
        assert!(all.iter().any(|finding| finding.subject == "memory limits" && finding.severity == Severity::Notice));
    }
}
