//! `/metrics`: each thing that happens moves its own metric and no other, counts outlive processes, and who may look.

use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    admin::{self, Admin, KEY},
    client::Http,
    eventually,
    host::{Host, tenant},
    processes::{self, signal},
    scrape::Scrape,
    tokens,
};

const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";

/// Scrapes until `condition` holds: the proxy counts a request when its answer is out, and what is to be told of now once a second.
async fn until(admin: &Admin, what: &str, condition: impl Fn(&Scrape) -> bool) -> Scrape {
    let seen = std::sync::Mutex::new(None);
    eventually(what, || async {
        let scrape = Scrape::of(admin).await;
        let holds = condition(&scrape);
        *seen.lock().unwrap() = Some(scrape);
        holds
    })
    .await;
    seen.into_inner().unwrap().unwrap()
}

/// That each of these has grown by so much.
#[track_caller]
fn assert_moved(before: &Scrape, after: &Scrape, series: &[(&str, f64)]) {
    for (series, by) in series {
        assert_eq!(after.get(series) - before.get(series), *by, "{series}: {before:#?} {after:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_moves_what_it_is_to_move() {
    let mut host = Host::prepare(|wanted| {
        wanted.add("ada");
        wanted.add("bob").suspended = true;
        wanted.add("cleo").tier = "metered";
        wanted.add("dora").more = "requests_per_day = 2\n";
    });
    host.launch().await;
    let api = Admin::socket(&host);
    let first = Scrape::of(&api).await;
    for (series, value) in [
        ("tenants{state=\"ready\"}", 3.0),
        ("tenants{state=\"suspended\"}", 1.0),
        ("tenants_desired", 4.0),
        ("tenants_adrift", 0.0),
        ("tenant_up{tenant=\"ada\",tier=\"free\"}", 1.0),
        ("tenant_up{tenant=\"bob\",tier=\"free\"}", 0.0),
        ("proxy_up", 1.0),
        ("config_stale_seconds", 0.0),
        ("tenant_quota{tenant=\"dora\"}", 2.0),
        ("tenant_crashes_total{tenant=\"ada\"}", 0.0),
    ] {
        assert_eq!(first.get(series), value, "{series}: {first:#?}");
    }
    assert!(first.get("route_generation") > 0.0 && first.get("loop_turn_seconds_count") > 0.0 && first.get("host_memory_size_bytes") > 0.0);
    assert!(!first.has("tenant_request_duration_seconds"), "nobody has asked anything");

    // A write, then a read with the same token.
    let ada = host.user("ada");
    assert_eq!((ada.post(WRITE, b"four").await.status, ada.get(READ).await.text()), (200, "four"));
    let asked = until(&api, "both are counted", |scrape| scrape.get("request_duration_seconds_count") == 2.0).await;
    assert_moved(
        &first,
        &asked,
        &[
            ("tenant_requests_total{tenant=\"ada\"}", 2.0),
            ("tenant_request_duration_seconds_count{tenant=\"ada\"}", 2.0),
            ("tenant_request_duration_seconds_bucket{tenant=\"ada\",le=\"+Inf\"}", 2.0),
            ("tenant_writes_total{tenant=\"ada\"}", 1.0),
            ("tenant_request_bytes_total{tenant=\"ada\"}", 4.0),
            ("tenant_errors_total{tenant=\"ada\"}", 0.0),
            ("proxy_auth_total{result=\"token_verified\"}", 1.0),
            ("proxy_auth_total{result=\"token_cached\"}", 1.0),
            ("proxy_connections_opened_total", 2.0),
            ("proxy_handshakes_total{result=\"done\"}", 2.0),
        ],
    );
    assert!(asked.get("tenant_response_bytes_total{tenant=\"ada\"}") >= 4.0 && asked.get("request_duration_seconds_sum") > 0.0);

    // A bad token, and one of somebody who is suspended.
    let mut nobody = host.user("ada");
    nobody.token = tokens::sign(b"0123456789abcdef0123456789abcdef", &tokens::claims("ada"));
    assert_eq!((nobody.get(READ).await.status, host.user("bob").get(READ).await.status), (401, 403));
    let refused = until(&api, "both are counted", |scrape| scrape.has("tenant_refused_total{tenant=\"bob\",reason=\"suspended\"}")).await;
    assert_moved(
        &asked,
        &refused,
        &[
            ("proxy_auth_total{result=\"signature\"}", 1.0),
            ("proxy_auth_total{result=\"suspended\"}", 1.0),
            ("requests_refused_total{reason=\"unauthorized\"}", 1.0),
            ("requests_refused_total{reason=\"suspended\"}", 1.0),
            ("tenant_request_duration_seconds_count{tenant=\"ada\"}", 0.0),
        ],
    );

    // More than the rate, and more than the quota of the day.
    for (id, status, reason) in [("cleo", 429, "rate-limited"), ("dora", 429, "quota-used")] {
        let user = host.user(id);
        let mut answers = 0.0;
        while user.get(READ).await.status != status {
            answers += 1.0;
        }
        let series = format!("tenant_refused_total{{tenant=\"{id}\",reason=\"{reason}\"}}");
        let limited = until(&api, "it is counted", |scrape| scrape.get(&series) == 1.0).await;
        assert_eq!(limited.get(&format!("tenant_requests_total{{tenant=\"{id}\"}}")), answers + 1.0);
        assert_eq!(limited.get(&format!("requests_refused_total{{reason=\"{reason}\"}}")), 1.0);
        assert_eq!(limited.get(&format!("tenant_errors_total{{tenant=\"{id}\"}}")), 0.0, "a user's own affair");
    }
    assert_eq!(Scrape::of(&api).await.get("tenant_quota_used{tenant=\"dora\"}"), 2.0);

    // What is no handshake, and a client that stays.
    let mut stream = tokio::net::TcpStream::connect(ada.client.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // It is told off and the connection ends, or it just ends.
    let _ = stream.read_to_end(&mut Vec::new()).await;
    let held = ada.client.connect(Http::One).await.unwrap();
    let held_seen = until(&api, "the client is seen", |scrape| scrape.get("proxy_connections") == 1.0).await;
    assert_eq!(held_seen.get("proxy_handshakes_total{result=\"failed\"}"), 1.0);
    drop(held);
    until(&api, "it is gone", |scrape| scrape.get("proxy_connections") == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_an_instance_is_counted() {
    let host = Host::start(&["ada", "bob"]).await;
    let api = Admin::socket(&host);
    let status = host.settled().await;
    // bob hangs: its probe, within ten seconds, waits three for an answer. Others go on meanwhile.
    let hung = tenant(&status, "bob").pid.unwrap();
    signal(hung, Signal::STOP);

    let ada = host.user("ada");
    let killed = tenant(&status, "ada").pid.unwrap();
    signal(killed, Signal::KILL);
    assert!(processes::ended_within(killed, Duration::from_secs(5)));
    assert_eq!(ada.get(READ).await.status, 200);
    let parked = until(&api, "a request has waited", |scrape| scrape.get("request_duration_seconds_count") == 1.0).await;
    for (series, value) in [
        ("tenant_parks_total{tenant=\"ada\"}", 1.0),
        ("parks_total", 1.0),
        ("tenant_crashes_total{tenant=\"ada\"}", 1.0),
        ("instance_crashes_total", 1.0),
        ("tenant_restarts_total{tenant=\"ada\"}", 1.0),
        ("instance_restarts_total", 1.0),
        ("tenant_crashes_total{tenant=\"bob\"}", 0.0),
        ("tenant_errors_total{tenant=\"ada\"}", 0.0),
    ] {
        assert_eq!(parked.get(series), value, "{series}: {parked:#?}");
    }
    assert!(parked.get("park_seconds_total") > 0.0);

    assert_eq!(host.cli(&["restart", "ada"]).code, 0);
    until(&api, "it was restarted", |scrape| scrape.get("tenant_restarts_total{tenant=\"ada\"}") == 2.0).await;
    until(&api, "a probe has failed", |scrape| scrape.get("tenant_failed_health_checks_total{tenant=\"bob\"}") >= 1.0).await;
    signal(hung, Signal::CONT);

    // Each survey reads what was used by then; the clock of the kernel ticks each 10 ms.
    let body = vec![b'x'; 1 << 20];
    let began = std::time::Instant::now();
    loop {
        assert_eq!(ada.post(WRITE, &body).await.status, 200);
        let scrape = Scrape::of(&api).await;
        if scrape.get("tenant_cpu_seconds_total{tenant=\"ada\"}") > 0.0 && scrape.get("tenant_memory_bytes{tenant=\"ada\"}") > 0.0 {
            assert!(scrape.get("instance_cpu_seconds_total") > 0.0 && scrape.get("instance_memory_bytes") > 0.0);
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(45), "{scrape:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_outlive_the_proxy_and_the_agent_and_what_the_dead_proxy_had_is_gone() {
    let mut host = Host::start(&["ada"]).await;
    let api = Admin::socket(&host);
    let ada = host.user("ada");
    let count = "tenant_request_duration_seconds_count{tenant=\"ada\"}";
    let mut asked = 0.0;
    for round in 0..3 {
        assert_eq!(ada.get(READ).await.status, 200);
        asked += 1.0;
        let held = ada.client.connect(Http::One).await.unwrap();
        let before = until(&api, "it is counted", |scrape| scrape.get(count) == asked && scrape.get("proxy_connections") == 1.0).await;
        let proxy = host.settled().await.proxy.pid.unwrap();
        signal(proxy, Signal::KILL);
        if round == 1 {
            host.end_agent(Signal::KILL);
            host.launch().await;
        }
        host.until("another proxy serves", |status| status.proxy.pid.is_some_and(|pid| pid != proxy)).await;
        let after = until(&api, "the dead proxy's client is gone", |scrape| scrape.get("proxy_connections") == 0.0).await;
        for series in [count, "proxy_handshakes_total{result=\"done\"}", "proxy_connections_opened_total", "request_duration_seconds_sum"] {
            assert!(after.get(series) >= before.get(series), "{series}: {before:#?} {after:#?}");
        }
        assert_eq!(after.get(count), asked);
        drop(held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_leaves_takes_its_series_along_and_leaves_its_counts_to_the_sums() {
    let mut host = Host::start(&["ada", "bob"]).await;
    let api = Admin::socket(&host);
    for _ in 0..3 {
        assert_eq!(host.user("bob").get(READ).await.status, 200);
    }
    let before = until(&api, "all are counted", |scrape| scrape.get("request_duration_seconds_count") == 3.0).await;
    assert!(before.has("tenant=\"bob\""));
    host.edit(|wanted| wanted.remove("bob"));
    let after = until(&api, "bob is gone", |scrape| !scrape.has("tenant=\"bob\"")).await;
    assert!(after.has("tenant=\"ada\""));
    assert_eq!((after.get("request_duration_seconds_count"), after.get("tenants_desired")), (3.0, 1.0));
    // Whoever comes next in that slot begins at nothing.
    host.edit(|wanted| _ = wanted.add("cleo"));
    host.settled().await;
    assert_eq!(host.user("cleo").get(READ).await.status, 200);
    let cleo = "tenant_request_duration_seconds_count{tenant=\"cleo\"}";
    let next = until(&api, "cleo is counted", |scrape| scrape.get(cleo) > 0.0).await;
    assert_eq!((next.get(cleo), next.get("tenant_requests_total{tenant=\"cleo\"}")), (1.0, 1.0));
    assert_eq!(next.get("request_duration_seconds_count"), 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_toml_says_whose_metrics_are_shown_and_the_sums_have_everybody() {
    let mut host = Host::start(&["ada", "bob", "cleo"]).await;
    let api = Admin::socket(&host);
    for id in ["bob", "bob", "cleo"] {
        assert_eq!(host.user(id).get(READ).await.status, 200);
    }
    until(&api, "all are counted", |scrape| scrape.get("request_duration_seconds_count") == 3.0).await;
    let shown = |scrape: &Scrape| ["ada", "bob", "cleo"].map(|id| scrape.has(&format!("tenant=\"{id}\"")));
    for (tenants, wanted) in [("1", [false, true, false]), ("2", [false, true, true]), ("\"none\"", [false; 3]), ("\"all\"", [true; 3])] {
        host.edit(|wanted| wanted.more = format!("\n[metrics]\ntenants = {tenants}\n"));
        let scrape = until(&api, tenants, |scrape| shown(scrape) == wanted).await;
        assert_eq!((scrape.get("request_duration_seconds_count"), scrape.get("tenants{state=\"ready\"}")), (3.0, 3.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn this_host_may_look_and_others_show_the_key_in_either_form() {
    let (host, api) = admin::start(&["ada"]).await;
    let open = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let nobody = api.with_key(None);
    for api in [&api, &nobody, &Admin::socket(&host)] {
        let plain = api.get("/metrics").await;
        assert_eq!((plain.status, &plain.headers["content-type"]), (200, &"text/plain; version=0.0.4; charset=utf-8".parse().unwrap()));
        let openmetrics = api.with("accept", open).get("/metrics").await;
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!((openmetrics.status, &openmetrics.headers["content-type"]), (200, &kind.parse().unwrap()));
        assert!(openmetrics.body.ends_with(b"# EOF\n") && !plain.body.ends_with(b"# EOF\n"));
    }
    // Through a proxy on this host somebody else may ask.
    let through = nobody.with("x-forwarded-for", "192.0.2.7");
    assert!(through.get("/metrics").await.is_problem(401, "unauthorized"));
    assert_eq!(through.with("authorization", &format!("Bearer {KEY}")).get("/metrics").await.status, 200);
    assert!(nobody.with("authorization", "Bearer wrong").get("/metrics").await.is_problem(401, "unauthorized"));
    assert!(nobody.with_key(Some("wrong")).get("/metrics").await.is_problem(401, "unauthorized"));
    // And for nothing else.
    let bearer = nobody.with("authorization", &format!("Bearer {KEY}"));
    assert!(bearer.get("/api/admin/status").await.is_problem(401, "unauthorized"));
    assert!(nobody.get("/api/admin/status").await.is_problem(401, "unauthorized"));
    assert!(api.ask(Method::POST, "/metrics", None).await.is_problem(405, "method-not-allowed"));
    assert!(nobody.with("host", "evil.example.com").get("/metrics").await.status == 421, "a page of a stranger's");
}
