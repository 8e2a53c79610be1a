use std::collections::BTreeSet;

use prometheus_client::{encoding, registry::Registry};

use super::*;
use crate::{
    admin::status::{
        AgentStatus, AlertStatus, BackupStatus, CertificateStatus, ChannelStatus, DiskStatus, ForecastStatus, GitOpsStatus, ProxyStatus,
        ResourceForecast, Status,
    },
    alerts::{Kind, Severity, Share},
    desired::TenantId,
    gitops::book::Commit,
    history::forecast::{Bound, Fit, Outlook},
    metrics::{TenantFacts, Turns},
    observed::Moment,
    route::RouteState,
};

/// A host that has everything.
fn status() -> Status {
    let resource = ResourceForecast::new("memory", 0, 0, Outlook::NoTrend);
    let fit = Fit { tenants: 90, bound_by: Bound::Memory, at_present_use: 0, peak_each: 0, memory_each: 0, storage_each: 0 };
    let alert = |tenant: &str| AlertStatus {
        kind: Kind::CrashLoop,
        tenant: TenantId::parse(tenant).ok(),
        severity: Severity::Critical,
        since: String::new(),
        text: String::new(),
        command: String::new(),
    };
    let channel = ChannelStatus {
        name: "discord".into(),
        waiting: 3,
        last_sent: None,
        trouble: None,
        trouble_since: None,
        stopped: false,
        given_up: 1,
    };
    let commit = Commit { id: "c0ffee".into(), subject: String::new(), author: String::new(), at: String::new() };
    let certificate = CertificateStatus {
        source: "files".into(),
        names: vec![],
        not_after: "2026-02-09T00:00:00Z".into(),
        days_left: 1,
        ends_soon: true,
    };
    Status {
        agent: AgentStatus {
            pid: 1,
            version: "0.1.0".into(),
            uptime_seconds: 60,
            desired_hash: "abc".into(),
            generation: 12,
            config_stale_seconds: 7,
            config_error: None,
            isolation: None,
            memory_enforced: String::new(),
            pending_restart: vec![],
        },
        proxy: ProxyStatus { pid: Some(2), certificate: Some(certificate), ..ProxyStatus::default() },
        held: None,
        rollout: None,
        backup: Some(BackupStatus { last_good_age_seconds: Some(5), overdue: true, ..serde_json::from_str(NO_BACKUP).unwrap() }),
        gitops: Some(GitOpsStatus { applied: Some(commit), ..serde_json::from_str(NO_GITOPS).unwrap() }),
        disk: Some(DiskStatus { total: 100, free: 40, writes_refused: false }),
        admin: None,
        alerts: crate::admin::status::AlertsStatus { open: vec![alert("a"), alert("b")], channels: vec![channel] },
        forecast: Some(ForecastStatus { memory: resource.clone(), disk: resource, tenants_fit: Some(fit) }),
        tenants: vec![],
    }
}

const NO_BACKUP: &str = r#"{"repository":"r","every_seconds":1,"last_good":null,"last_good_age_seconds":null,"snapshot":null,"last_check":null,
    "last_test_restore":null,"last_error":null,"last_error_at":null,"misses":0,"overdue":false,"running":null,"asked":null,"finished":0,
    "last_run":[],"last_run_good":true}"#;
const NO_GITOPS: &str = r#"{"url":"u","branch":"main","path":"p","suspended":false,"applied":null,"applied_at":null,"refused":null,
    "refused_because":null,"last_good":null,"failing_since":null,"last_error":null,"running":null,"asked":null,"finished":0,"last":"",
    "last_good_look":true}"#;

fn families(shown: bool) -> Families {
    let tenant = |slot: u32, id: &str, state| TenantFacts {
        id: TenantId::parse(id).unwrap(),
        slot,
        tier: 0,
        state,
        memory: Some(2_000),
        memory_max: Some(20 << 20),
        storage: Some(5),
        storage_max: Some(6),
        requests_per_day: (slot == 0).then_some(1_000),
    };
    let mut turns = Turns::default();
    turns.note(Duration::from_millis(2));
    let snapshot = Snapshot {
        taken: Moment::from_millis(0),
        status: status(),
        memory: Some(Share { used: 30, total: 100 }),
        planned: 4,
        desired: 3,
        adrift: 1,
        turns,
        tiers: vec!["free".into()],
        tenants: vec![tenant(0, "a@b.c", RouteState::Ready), tenant(1, "quiet", RouteState::Crashed)],
    };
    let mut meter = Meter { took_us: 2_500_000, failed: 1, parked: 2, cpu_us: 1_500_000, crashes: 1, ..Meter::default() };
    (meter.took[0], meter.took[BUCKETS - 1]) = (3, 1);
    (meter.refused[0], meter.refused[17]) = (5, 1);
    let activity = SlotSnapshot { requests: 9, bytes_in: 10, day: 20_000, requests_that_day: 8, ..SlotSnapshot::default() };
    let mut proxy = ProxyMeter { connections: 11, ..ProxyMeter::default() };
    (proxy.refused[0], proxy.refused[7], proxy.auths[0]) = (2, 3, 6);
    let shown = if shown { vec![(0, activity, meter), (1, SlotSnapshot::default(), Meter::default())] } else { vec![] };
    Families { snapshot: Arc::new(snapshot), age: Duration::from_millis(500), all: meter, proxy, lost_log_lines: 0, today: 20_000, shown }
}

use crate::route::BUCKETS;

fn text(families: Families, open: bool) -> String {
    let mut registry = Registry::with_prefix("sq_agent");
    registry.register_collector(Box::new(families));
    let mut text = String::new();
    match open {
        true => encoding::text::encode(&mut text, &registry).unwrap(),
        false => encoding::prometheus_text::encode(&mut text, &registry).unwrap(),
    }
    text
}

#[test]
fn every_value_stands_under_its_name() {
    let text = text(families(true), true);
    for line in [
        "# TYPE sq_agent_tenants gauge",
        "sq_agent_build_info{version=\"0.1.0\"} 1",
        "sq_agent_tenants{state=\"ready\"} 1",
        "sq_agent_tenants{state=\"crashed\"} 1",
        "sq_agent_tenants{state=\"starting\"} 0",
        "sq_agent_tenants_adrift 1",
        "sq_agent_plan_actions 4",
        "sq_agent_route_generation 12",
        "sq_agent_config_stale_seconds 7",
        "sq_agent_gitops_applied_info{branch=\"main\",commit=\"c0ffee\"} 1",
        "sq_agent_loop_turn_seconds_bucket{le=\"0.005\"} 1",
        "sq_agent_host_memory_used_bytes 30",
        "sq_agent_certificate_not_after_timestamp_seconds 1770595200",
        "sq_agent_alerts_open{kind=\"crash_loop\",severity=\"critical\"} 2",
        "sq_agent_alert_messages_given_up_total{channel=\"discord\"} 1",
        "sq_agent_proxy_auth_total{result=\"token_cached\"} 6",
        "sq_agent_requests_refused_total{reason=\"unauthorized\"} 2",
        "sq_agent_request_duration_seconds_count 4",
        "# UNIT sq_agent_tenant_memory_bytes bytes",
        "sq_agent_tenant_up{tenant=\"a@b.c\",tier=\"free\"} 1",
        "sq_agent_tenant_up{tenant=\"quiet\",tier=\"free\"} 0",
        "sq_agent_tenant_memory_bytes{tenant=\"quiet\"} 2000",
        "sq_agent_tenant_cpu_seconds_total{tenant=\"a@b.c\"} 1.5",
        "sq_agent_tenant_requests_total{tenant=\"a@b.c\"} 9",
        "sq_agent_tenant_refused_total{tenant=\"a@b.c\",reason=\"suspended\"} 5",
        "sq_agent_tenant_quota_used{tenant=\"a@b.c\"} 8",
        "sq_agent_tenant_request_duration_seconds_sum{tenant=\"a@b.c\"} 2.5",
        "sq_agent_tenant_request_duration_seconds_bucket{tenant=\"a@b.c\",le=\"0.005\"} 3",
        "sq_agent_tenant_request_duration_seconds_bucket{tenant=\"a@b.c\",le=\"10.0\"} 3",
        "sq_agent_tenant_request_duration_seconds_bucket{tenant=\"a@b.c\",le=\"+Inf\"} 4",
    ] {
        // The encoder has its own order of labels that belong to a bucket.
        assert!(text.lines().any(|have| have == line || sorted(have) == sorted(line)), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("tenant_request_duration_seconds_count{tenant=\"quiet\"}"), "nobody asked anything of it");
    assert!(!text.contains("tenant_quota{tenant=\"quiet\"}"));
}

/// A sample with its labels in the order of the alphabet.
fn sorted(line: &str) -> String {
    let Some((name, rest)) = line.split_once('{') else { return line.to_owned() };
    let (labels, value) = rest.split_once('}').unwrap();
    let mut labels: Vec<_> = labels.split(',').collect();
    labels.sort_unstable();
    format!("{name}{{{}}}{value}", labels.join(","))
}

#[test]
fn a_reason_that_both_have_stands_there_once() {
    let text = text(families(false), false);
    assert_eq!(text.matches("sq_agent_requests_refused_total{reason=\"table-busy\"} 4").count(), 1);
    assert_eq!(text.matches("reason=\"table-busy\"").count(), 1);
}

#[test]
fn without_tenants_there_is_nothing_of_any() {
    let text = text(families(false), true);
    assert!(!text.contains("tenant=") && !text.contains("sq_agent_tenant_"), "{text}");
    assert!(text.contains("sq_agent_tenants{state=\"ready\"} 1"));
}

/// The names of all series.
fn series(text: &str) -> BTreeSet<&str> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(['{', ' ']).next().unwrap()).collect()
}

#[test]
fn both_forms_have_the_same_series() {
    let (open, plain) = (text(families(true), true), text(families(true), false));
    assert_eq!(series(&open), series(&plain));
    assert_eq!(open.lines().filter(|line| !line.starts_with('#')).count(), plain.lines().filter(|line| !line.starts_with('#')).count());
}

/// What `text` names that looks like one of ours: metrics, and recording rules.
fn named(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !is_name(c)).filter(|word| word.starts_with("sq_agent_"));
    // The job of the example, and groups of rules, are called so too.
    words.filter(|word| !matches!(*word, "sq_agent_rules")).collect()
}

#[test]
fn dashboard_and_rules_name_only_metrics_that_there_are() {
    let text = text(families(true), false);
    let known = series(&text);
    let read = |path: &str| std::fs::read_to_string(format!("{}/contrib/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for path in ["grafana/sq-agent.json", "prometheus/rules.yml", "prometheus/rules_test.yml"] {
        let file = read(path);
        let names = named(&file);
        assert!(names.len() > 5, "{path} names {names:?}");
        let unknown: Vec<_> = names.difference(&known).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}, which /metrics has not");
    }
}

#[test]
fn the_readme_names_only_metrics_that_there_are() {
    let text = text(families(true), false);
    let known = series(&text);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let chapter = readme.split("\n## ").find(|chapter| chapter.starts_with("Metrics")).expect("a chapter on metrics");
    let family =
        |name: &str| known.iter().any(|series| *series == name || series.strip_prefix(name).is_some_and(|rest| matches!(rest, "_bucket")));
    for name in named(chapter) {
        assert!(family(name), "the README names {name}, which /metrics has not");
    }
}
