//! The admin API: who gets in, what can be looked at, and where it is listened on.

use std::net::TcpListener;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    admin::{self, Admin, KEY},
    eventually, free_port,
    processes::signal,
};

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_be_looked_at_says_how_it_stands() {
    let (host, api) = admin::start_with(&["ada", "bob", "cleo"], |wanted| {
        wanted.tenant("bob").tier = "metered";
        wanted.tenant("cleo").suspended = true;
    })
    .await;
    assert_eq!(host.user("ada").get("/api/v2/toc?p=x").await.status, 200);
    for api in [api, Admin::socket(&host)] {
        let health = api.get("/api/admin/health-check-all").await;
        assert_eq!(
            (health.status, &health.headers["content-type"], &health.headers["cache-control"]),
            (200, &"application/json".parse().unwrap(), &"no-store".parse().unwrap())
        );
        let wanted = json!({"results": [{"userId": "ada", "status": "ok"}, {"userId": "bob", "status": "ok"}, {"userId": "cleo", "status": "suspended"}]});
        assert_eq!(health.json(), wanted);
        let ids = async |query: &str| -> Value {
            let page = api.get(&format!("/api/admin/tenants{query}")).await.json();
            let ids: Vec<_> = page["tenants"].as_array().unwrap().iter().map(|tenant| tenant["id"].clone()).collect();
            json!([ids, page["next"], page["total"]])
        };
        assert_eq!(ids("").await, json!([["ada", "bob", "cleo"], null, 3]));
        assert_eq!(ids("?state=suspended").await, json!([["cleo"], null, 1]));
        assert_eq!(ids("?tier=metered&state=ready").await, json!([["bob"], null, 1]));
        assert_eq!(ids("?q=c").await, json!([["cleo"], null, 1]));
        assert_eq!(ids("?limit=2").await, json!([["ada", "bob"], "bob", 3]));
        assert_eq!(ids("?limit=2&cursor=bob").await, json!([["cleo"], null, 3]));
        let ada = api.get("/api/admin/tenants/ada").await.json();
        assert_eq!((&ada["state"], &ada["requests"], ada["pid"].is_u64()), (&"ready".into(), &1.into(), true), "{ada:#}");
        let usage = api.get("/api/admin/tenants/ada/usage").await.json();
        assert_eq!((&usage["requests_today"], usage["bytes_out"].as_u64() > Some(0)), (&1.into(), true), "{usage:#}");
        assert!(usage["last_request"].as_str().unwrap().ends_with('Z'));
        assert_eq!(api.get("/api/admin/usage?limit=2").await.json()["next"], "bob");
        assert_eq!(api.get("/api/admin/status").await.json()["agent"]["pid"], host.agent_pid());
        let document = api.get("/api/openapi.json").await.json();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_pages_the_newest_first() {
    let (host, api) = admin::start(&["ada", "bob"]).await;
    for _ in 0..3 {
        assert_eq!(host.cli(&["restart", "ada"]).code, 0);
        host.until("it has restarted", |status| host.as_wanted(status)).await;
    }
    let page = api.get("/api/admin/events?tenant=ada&kind=restart_asked&limit=2").await.json();
    assert_eq!(page["events"].as_array().unwrap().len(), 2, "{page:#}");
    assert!(page["events"][0]["number"].as_u64() > page["events"][1]["number"].as_u64());
    assert_eq!((&page["events"][0]["tenant"], &page["events"][0]["kind"]), (&"ada".into(), &"restart_asked".into()));
    let next = api.get(&format!("/api/admin/events?tenant=ada&kind=restart_asked&limit=2&cursor={}", page["next"])).await.json();
    assert_eq!((next["events"].as_array().unwrap().len(), &next["next"]), (1, &Value::Null));
    assert_eq!(api.get("/api/admin/events?tenant=bob&kind=restart_asked").await.json()["events"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_s_usage_comes_in_pages_and_a_tenant_s_by_the_day() {
    let (mut host, api) = admin::start(&["ada", "bob"]).await;
    assert_eq!(host.user("ada").get("/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1").await.status, 200);
    // It is recorded by the minute, and at the end.
    assert_eq!(host.end_agent(Signal::TERM), Some(0));
    host.launch().await;
    let month = sq_agent::history::month::Month::of(sq_agent::route::day(sq_agent::store::unix_now())).to_string();
    let page = api.get(&format!("/api/admin/usage/{month}?limit=1")).await.json();
    assert_eq!((&page["next"], &page["usage"][0]["requests"]), (&"ada".into(), &1.into()), "{page:#}");
    assert_eq!((&page["usage"][0]["id"], &page["usage"][0]["period"]), (&"ada".into(), &month.clone().into()));
    let rest = api.get(&format!("/api/admin/usage/{month}?cursor=ada")).await.json();
    assert_eq!((&rest["usage"][0]["id"], rest["usage"].as_array().unwrap().len(), &rest["next"]), (&"bob".into(), 1, &Value::Null));
    let days = api.get(&format!("/api/admin/tenants/ada/usage/{month}")).await.json();
    assert!(days["usage"][0]["period"].as_str().unwrap().starts_with(&format!("{month}-")), "{days:#}");
    for bad in ["/api/admin/usage/2026-13", "/api/admin/tenants/ada/usage/never", "/api/admin/usage/2026-02?limit=0"] {
        assert!(api.get(bad).await.is_problem(400, "bad-request"), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_shows_the_key_in_its_header_gets_in_and_each_refusal_says_why() {
    let (host, api) = admin::start(&["ada"]).await;
    let tenants = "/api/admin/tenants";
    let refused = async |api: &Admin, target: &str, status: u16, name: &str| {
        let said = api.get(target).await;
        assert!(said.is_problem(status, name), "{target}: {said:?}");
        assert_eq!(said.json()["request_id"], said.headers["x-request-id"].to_str().unwrap());
        said
    };
    let none = api.with_key(None);
    let said = refused(&none, tenants, 401, "unauthorized").await;
    assert!(said.headers["www-authenticate"].to_str().unwrap().contains("X-Admin-API-Key"));
    refused(&none, &format!("{tenants}?key={KEY}"), 401, "unauthorized").await;
    refused(&none.with("authorization", &format!("Bearer {KEY}")), tenants, 401, "unauthorized").await;
    refused(&none, "/api/admin/nothing/of/this/name", 401, "unauthorized").await;
    refused(&api.with_key(Some(&KEY[1..])), tenants, 401, "unauthorized").await;
    refused(&api.with_key(Some("")), tenants, 401, "unauthorized").await;
    refused(&api.with("host", "evil.example.com"), tenants, 421, "misdirected").await;
    refused(&api, "/api/admin/nothing", 404, "not-found").await;
    refused(&api, "/status", 404, "not-found").await;
    refused(&api, "/api/admin/tenants/nobody", 404, "no-such-tenant").await;
    refused(&api, "/api/admin/tenants/..%2Fada", 400, "bad-request").await;
    refused(&api, "/api/admin/tenants/%ff", 400, "bad-request").await;
    for query in ["limit=0", "limit=1001", "limit=x", "limit=2&limit=3", "state=odd", "cursor=a/b", "key=1"] {
        refused(&api, &format!("{tenants}?{query}"), 400, "bad-request").await;
    }
    refused(&api.with("x-admin-actor", " "), tenants, 400, "bad-request").await;
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
        let said = api.ask(method, tenants, None).await;
        assert!(said.is_problem(405, "method-not-allowed"), "{said:?}");
        assert_eq!(said.headers["allow"], "GET,HEAD");
    }
    let big = |size: usize| {
        Request::post(tenants).header("content-type", "application/json").body(Full::from(Bytes::from(vec![b' '; size]))).unwrap()
    };
    let said = api.send_raw(big((64 << 10) + 1)).await.unwrap();
    assert!(said.is_problem(413, "body-too-large"), "{said:?}");
    let said = none.send_raw(big(900_000)).await.unwrap();
    assert!(said.is_problem(401, "unauthorized"), "{said:?}");
    let said = api.send_raw(Request::post(tenants).header("content-type", "text/plain").body(Full::from("{}")).unwrap()).await.unwrap();
    assert!(said.is_problem(415, "not-json"), "{said:?}");
    assert!(!host.logged().contains(KEY) && !host.logged().contains(&KEY[1..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_again_and_wrong_keys_sooner() {
    let (_host, api) =
        admin::start_with(&["ada"], |wanted| wanted.more = wanted.more.replace("rate = \"none\"", "rate = \"60/h\"\nburst = 19")).await;
    let wrong = api.with_key(Some("wrong"));
    let many = async |api: &Admin| {
        let mut statuses = Vec::new();
        loop {
            let said = api.get("/api/admin/tenants").await;
            statuses.push(said.status);
            if said.status == 429 {
                assert!(said.is_problem(429, "rate-limited"), "{said:?}");
                return (statuses.len() - 1, said.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap());
            }
        }
    };
    let (tries, wait) = many(&wrong).await;
    assert!(tries == 2 && (500..=600).contains(&wait), "{tries} {wait}");
    let (asked, wait) = many(&api).await;
    assert!(asked == 20 && (40..=60).contains(&wait), "nothing was taken from who has the key: {asked} {wait}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_counts_at_once_and_a_spoiled_file_leaves_the_old_one_in_force() {
    let (host, api) = admin::start(&["ada"]).await;
    let new = "bmV3LWtleS1mb3ItdGVzdHMtYWxvbmUtbmV3LWtleQ==";
    let opens = async |key: &str| api.with_key(Some(key)).get("/api/admin/tenants").await.status == 200;
    admin::put_key(host.root(), new);
    eventually("the new key opens", async || opens(new).await).await;
    assert!(!opens(KEY).await);
    admin::put_key(host.root(), "short");
    let status = host.until("that is told", |status| !status.proxy.troubles.is_empty()).await;
    assert!(
        status.proxy.troubles[0].contains("admin.key") && status.proxy.troubles[0].contains("openssl rand"),
        "{:?}",
        status.proxy.troubles
    );
    assert!(opens(new).await && !opens("short").await);
    assert_eq!(host.cli(&["status"]).code, 2);
    admin::put_key(host.root(), KEY);
    host.until("it is good again", |status| status.proxy.troubles.is_empty()).await;
    assert!(opens(KEY).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_is_listened_on_at_once_and_one_that_cannot_be_had_is_told() {
    let (mut host, api) = admin::start(&["ada"]).await;
    let opens = async |api: &Admin| api.send(Method::GET, "/api/admin/tenants", None).await.is_ok_and(|said| said.status == 200);
    let elsewhere = free_port();
    let table = admin::table(host.root(), elsewhere);
    host.edit(|wanted| wanted.more = table);
    let other = Admin::tcp(elsewhere);
    eventually("it listens elsewhere", async || opens(&other).await).await;
    eventually("and no more where it was", async || !opens(&api).await).await;

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let table = admin::table(host.root(), taken.local_addr().unwrap().port());
    host.edit(|wanted| wanted.more = table);
    let trouble = |status: &sq_agent::admin::status::Status| status.admin.as_ref().and_then(|admin| admin.trouble.clone());
    let status = host.until("that is told", |status| trouble(status).is_some()).await;
    let text = trouble(&status).unwrap();
    assert!(text.contains("ss -ltnp") && text.contains(&format!("still listened on 127.0.0.1:{elsewhere}")), "{text}");
    assert!(opens(&other).await);
    assert!(host.cli(&["doctor"]).out.contains("cannot listen on"));
    let events = other.get("/api/admin/events?kind=admin_listen_failed").await.json();
    assert_eq!(events["events"].as_array().unwrap().len(), 1, "{events:#}");
    let there = Admin::tcp(taken.local_addr().unwrap().port());
    drop(taken);
    eventually("it is had as soon as it is free", async || opens(&there).await).await;

    host.edit(|wanted| wanted.more = String::new());
    let status = host.until("there is none", |status| status.admin.is_none()).await;
    assert!(status.agent.pending_restart.is_empty());
    eventually("it is closed", async || !opens(&there).await).await;
    assert!(opens(&Admin::socket(&host)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_agent_is_replaced() {
    let (host, api) = admin::start(&["ada"]).await;
    let agent = host.agent_pid();
    let asking = tokio::spawn({
        let api = api.clone();
        async move {
            let mut statuses = std::collections::BTreeMap::new();
            loop {
                let said = api.send(Method::GET, "/api/admin/tenants/ada", None).await.map(|said| said.status).unwrap_or(0);
                *statuses.entry(said).or_insert(0) += 1;
                if said != 200 || statuses[&200] >= 100_000 {
                    return statuses;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    for _ in 0..3 {
        let ran = host.cli(&["upgrade"]);
        assert_eq!(ran.code, 0, "{}{}", ran.err, host.account());
        host.until("the first process is the agent again", |status| status.agent.pid == agent && host.as_wanted(status)).await;
    }
    assert!(!asking.is_finished(), "{:?}", asking.await);
    asking.abort();
    // A program that does not take over gives it back.
    assert_eq!(host.cli(&["upgrade", "--exe", "/bin/true"]).code, 1);
    assert_eq!(api.get("/api/admin/tenants/ada").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_listens_again_after_a_kill() {
    let (mut host, api) = admin::start(&["ada"]).await;
    signal(host.agent_pid(), Signal::KILL);
    host.reap_agent();
    host.launch().await;
    eventually("it listens", async || api.send(Method::GET, "/api/admin/tenants", None).await.is_ok_and(|said| said.status == 200)).await;
}
