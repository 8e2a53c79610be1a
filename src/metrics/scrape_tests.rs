use std::{path::Path, time::Instant};

use super::*;
use crate::{
    admin::status::Status,
    desired,
    metrics::{TenantFacts, Turns},
    route::{Happened, RouteState},
};

/// A host of so many tenants, with a loop that answers as long as the sender of news lives.
struct Host {
    metrics: Metrics,
    activity: Arc<Activity>,
    meters: Arc<Meters>,
    _dir: tempfile::TempDir,
}

fn status() -> Status {
    let agent = r#"{"pid":1,"version":"0.1.0","uptime_seconds":1,"desired_hash":"","generation":1,"config_stale_seconds":0,"config_error":null,
        "pending_restart":[]}"#;
    let status = format!(r#"{{"agent":{agent},"proxy":{{"pid":2,"listen":[],"detail":null}},"held":null,"tenants":[]}}"#);
    serde_json::from_str(&status).unwrap()
}

fn snapshot(tenants: u32) -> Snapshot {
    let tenant = |slot: u32| TenantFacts {
        id: desired::TenantId::parse(&format!("somebody.{slot:05}@a-company.example.com")).unwrap(),
        slot,
        tier: 0,
        state: RouteState::Ready,
        memory: Some(2_400_000 + u64::from(slot)),
        memory_max: Some(20 << 20),
        storage: Some(1_048_576),
        storage_max: Some(1 << 30),
        requests_per_day: Some(10_000),
    };
    Snapshot {
        taken: Moment::now(),
        status: status(),
        memory: None,
        planned: 0,
        desired: tenants as usize,
        adrift: 0,
        turns: Turns::default(),
        tiers: vec!["free".into()],
        tenants: (0..tenants).map(tenant).collect(),
    }
}

impl Host {
    fn new(tenants: u32, options: &str, loop_: impl FnOnce(mpsc::Receiver<Ask>)) -> Self {
        // Where the pages lie on a real host.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let activity = Arc::new(Activity::open(&dir.path().join("activity")).unwrap());
        let meters = Arc::new(Meters::open(&dir.path().join("metrics")).unwrap());
        meters.reserve(tenants.saturating_sub(1)).unwrap();
        let desired = desired::parse(options, Path::new("/nowhere/tenants.toml")).unwrap();
        let (ask, asked) = mpsc::channel(4);
        loop_(asked);
        let (_, in_force) = watch::channel(Arc::new(desired));
        let parts = MetricsParts { ask, activity: activity.clone(), meters: meters.clone(), in_force };
        Self { metrics: Metrics::new(parts), activity, meters, _dir: dir }
    }
}

/// A loop that answers.
fn answering(tenants: u32) -> impl FnOnce(mpsc::Receiver<Ask>) {
    move |mut asked| {
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                let _ = ask.send(Arc::new(snapshot(tenants)));
            }
        });
    }
}

#[test]
fn openmetrics_is_for_who_asks_for_it() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::of(prometheus), Format::OpenMetrics);
    for other in ["", "*/*", "text/plain;version=0.0.4", "application/openmetrics-text;q=0, text/plain", "application/json"] {
        assert_eq!(Format::of(other), Format::Prometheus, "{other}");
    }
}

#[tokio::test]
async fn who_is_shown_is_what_tenants_toml_says() {
    for (options, shown) in
        [("", 4), ("[metrics]\ntenants = \"all\"\n", 4), ("[metrics]\ntenants = \"none\"\n", 0), ("[metrics]\ntenants = 3\n", 3)]
    {
        let host = Host::new(4, options, answering(4));
        host.activity.slot(2).unwrap().note_request(1);
        let text = host.metrics.scrape(Format::Prometheus).await.unwrap();
        let ups: Vec<&str> = text.lines().filter(|line| line.starts_with("sq_agent_tenant_up{")).collect();
        assert_eq!(ups.len(), shown, "{options}");
        assert!(shown == 0 || ups.iter().any(|line| line.contains("somebody.00002@")), "{ups:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_stands_still_is_shown_as_it_was_with_its_age_and_one_that_never_spoke_not_at_all() {
    let host = Host::new(1, "", std::mem::forget);
    assert_eq!(host.metrics.scrape(Format::Prometheus).await, Err(NoAnswer::Silent));
    let spoken = |mut asked: mpsc::Receiver<Ask>| {
        tokio::spawn(async move {
            let old = Snapshot { taken: Moment::from_millis(0), ..snapshot(1) };
            let _ = asked.recv().await.map(|ask: Ask| ask.send(Arc::new(old)));
            std::future::pending::<()>().await;
            drop(asked);
        });
    };
    let host = Host::new(1, "", spoken);
    for _ in 0..2 {
        let text = host.metrics.scrape(Format::Prometheus).await.unwrap();
        let age = text.lines().find_map(|line| line.strip_prefix("sq_agent_loop_snapshot_age_seconds ")).unwrap();
        assert!(age.parse::<f64>().unwrap() > 1.0, "since boot: {age}");
        host.meters.slot(0).unwrap().note(Happened::Crash);
    }
    let text = host.metrics.scrape(Format::Prometheus).await.unwrap();
    assert!(text.contains("\nsq_agent_instance_crashes_total 2\n"), "what is counted is counted on");
}

/// `cargo test --release --lib metrics -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr)]
async fn what_10_000_tenants_take_of_a_scrape() {
    const TENANTS: u32 = 10_000;
    const SCRAPES: usize = 50;
    for (who, asked) in [("none of them has ever asked", 0), ("all of them have asked, and met three reasons", TENANTS)] {
        for options in ["", "[metrics]\ntenants = 200\n", "[metrics]\ntenants = \"none\"\n"] {
            let host = Host::new(TENANTS, options, answering(TENANTS));
            for slot in 0..asked {
                let (activity, meters) = (host.activity.slot(slot).unwrap(), host.meters.slot(slot).unwrap());
                for n in 0..40 {
                    activity.note_request(1);
                    activity.add_bytes_out(12_345);
                    let reason = ["rate-limited", "queue-full", "not-ready"].get(n).copied();
                    meters.note_answer(Duration::from_micros(137 << (n / 3)), 200, reason);
                }
                meters.note_cpu(1, 1_234_567 + u64::from(slot));
            }
            for format in [Format::Prometheus, Format::OpenMetrics] {
                let mut took = Vec::new();
                let mut text = String::new();
                for _ in 0..SCRAPES {
                    // As rarely as by a Prometheus: each is a snapshot of its own.
                    host.metrics.0.kept().latest = None;
                    let began = Instant::now();
                    text = host.metrics.scrape(format).await.unwrap();
                    took.push(began.elapsed().as_secs_f64() * 1_000.0);
                }
                took.sort_by(f64::total_cmp);
                eprintln!(
                    "{TENANTS} tenants, {who}; {:?}, {format:?}: {:.1} MB, {} lines, median {:.1} ms, worst {:.1} ms",
                    options.trim(),
                    text.len() as f64 / 1e6,
                    text.lines().count(),
                    took[SCRAPES / 2],
                    took[SCRAPES - 1]
                );
            }
        }
    }
}
