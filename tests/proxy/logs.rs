//! The access log: what a line says, and that none is lost or torn, whoever rotates it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Request, StatusCode};
use serde_json::Value;
use sq_agent::desired::AccessLog;
use tokio::{task::JoinSet, time::sleep};

use super::{
    agent::kill,
    busy::Busy,
    client::{AnyBody, Http, full, request},
    fake::Fake,
    host::{Host, ready},
    replace::is_retiring,
    support::eventually,
};

/// A look every 5 s, and what is rotated is compressed 10 s later: for several of them on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

fn with_id(token: &str, id: &str) -> Request<AnyBody> {
    let mut request = request(Method::GET, token, "/api/v2/toc", full(""));
    request.headers_mut().insert("x-request-id", HeaderValue::from_str(id).unwrap());
    request
}

/// Old logs with this ending.
fn old(host: &Host, compressed: bool) -> Vec<PathBuf> {
    let names = fs::read_dir(host.path()).unwrap().map(|entry| entry.unwrap().path());
    let is_old = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("access.log.") && name.ends_with(if compressed { "Z.zst" } else { "Z" })
    };
    names.filter(is_old).collect()
}

/// The log and all old ones, once nobody writes or compresses any more: one that is being compressed is there twice for a moment.
fn all_that_was_logged(host: &Host) -> String {
    let packed = old(host, true);
    let plain = old(host, false)
        .into_iter()
        .filter(|path| !packed.contains(&path.with_file_name(format!("{}.zst", path.file_name().unwrap().to_str().unwrap()))));
    let plain: Vec<_> = plain.chain([host.path().join("access.log")]).map(|path| fs::read(path).unwrap()).collect();
    let packed = packed.into_iter().map(|path| zstd::decode_all(fs::File::open(path).unwrap()).unwrap());
    String::from_utf8(plain.into_iter().chain(packed).collect::<Vec<_>>().concat()).unwrap()
}

/// Waits for what takes the agent several looks.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_torn_while_the_log_is_rotated_and_the_proxy_replaced() {
    let busy = Busy::start(Duration::from_secs(15)).await;
    let mut host = Host::start(&[ready("alice", 0, busy.port)]).await;
    host.access_log.send_replace(AccessLog { max_size: 20_000, max_age: 86_400, keep: 100 });
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let mut users = JoinSet::new();
    for user in 0..3 {
        let (client, token, stop, asked) = (host.client(), host.token("alice"), stop.clone(), asked.clone());
        users.spawn(async move {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let id = format!("{user}-{number}");
                assert_eq!(client.ask(Http::One, with_id(&token, &id)).await.status, StatusCode::OK);
                asked.lock().unwrap().push(id);
            }
        });
    }
    until("it is rotated", || !old(&host, false).is_empty()).await;
    let (client, mut slow) = (host.client(), with_id(&host.token("alice"), "slow"));
    (*slow.method_mut(), *slow.uri_mut()) = (Method::POST, "https://localhost/api/v2/update".parse().unwrap());
    let slow = tokio::spawn(async move { client.ask(Http::One, slow).await.status });
    eventually("a write is under way", async || busy.is_writing()).await;
    host.agent_that(true).await;
    is_retiring(&host).await;
    let before = old(&host, false).len();
    until("it is rotated beside a proxy that retires", || old(&host, false).len() > before).await;
    assert!(busy.is_writing(), "that proxy has a line to write");
    eventually("the new one writes to the new file", async || !host.log("access.log").is_empty()).await;
    assert_eq!(slow.await.unwrap(), StatusCode::OK);
    asked.lock().unwrap().push("slow".to_owned());
    until("an old one is compressed", || !old(&host, true).is_empty()).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(user) = users.join_next().await {
        user.unwrap();
    }
    // Every line is written before the end.
    host.supervisor.take().unwrap().shutdown(Duration::from_secs(5)).await;
    let mut logged: BTreeMap<String, usize> = BTreeMap::new();
    for line in all_that_was_logged(&host).lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        *logged.entry(line["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let asked = asked.lock().unwrap().clone();
    assert!(asked.len() > 100, "{}", asked.len());
    for id in &asked {
        assert_eq!(logged.remove(id), Some(1), "{id}");
    }
    assert!(logged.is_empty(), "{logged:?}");
    assert_eq!(host.activity.lost_lines(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_has_the_parts_of_its_time_and_a_trace_goes_on_to_sq() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let ask = |id: &str, trace: &'static str| {
        let (client, mut asked) = (host.client(), with_id(&host.token("alice"), id));
        asked.headers_mut().insert("traceparent", HeaderValue::from_static(trace));
        asked.headers_mut().insert("tracestate", HeaderValue::from_static("a=1"));
        tokio::spawn(async move { client.ask(Http::Two, asked).await })
    };
    let good = ask("good", TRACE);
    let seen = fake.next().await;
    assert!(seen.head.contains(&format!("\r\ntraceparent: {TRACE}\r\ntracestate: a=1\r\n")), "{}", seen.head);
    seen.answer("200 OK", "answer").await;
    assert!(!good.await.unwrap().headers.contains_key("traceparent"), "it is for those behind, not for who asked");
    let bad = ask("bad", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01");
    let seen = fake.next().await;
    assert!(!seen.head.to_ascii_lowercase().contains("trace"), "{}", seen.head);
    seen.answer("200 OK", "").await;
    bad.await.unwrap();
    assert_eq!(host.client().get("x.y.z", "/api/v2/select?p=diary").await.status, StatusCode::UNAUTHORIZED);
    eventually("the lines are written", async || host.log("access.log").lines().count() == 3).await;
    let lines: Vec<Value> = host.log("access.log").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [good, bad, refused] = lines.as_slice() else { panic!("{lines:#?}") };
    assert_eq!((&good["request_id"], &good["trace_id"]), (&"good".into(), &"4bf92f3577b34da6a3ce929d0e0e4736".into()));
    assert_eq!((&bad["request_id"], bad.get("trace_id")), (&"bad".into(), None));
    let ms = |name: &str| good[name].as_f64().unwrap();
    assert!(ms("ms_auth") > 0.0 && ms("ms_upstream") > 0.0 && ms("ms_parked") >= 0.0, "{good}");
    assert!(ms("ms_auth") + ms("ms_parked") + ms("ms_upstream") <= ms("ms") + 0.01, "{good}");
    let expected: [Value; 5] = ["alice".into(), "GET".into(), "/api/v2/toc".into(), 200.into(), 6.into()];
    assert_eq!(["tenant", "method", "path", "status", "bytes_out"].map(|name| good[name].clone()), expected);
    assert_eq!((&refused["refused"], &refused["status"], refused.get("tenant")), (&"unauthorized".into(), &401.into(), None));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_the_disk_does_not_take_are_counted_where_the_agent_sees_it_and_cost_no_request() {
    let busy = Busy::start(Duration::ZERO).await;
    let mut host = Host::start(&[ready("alice", 0, busy.port)]).await;
    // What the next proxy is born with is always full.
    fs::remove_file(host.path().join("access.log")).unwrap();
    symlink("/dev/full", host.path().join("access.log")).unwrap();
    kill(host.pid);
    host.pid = host.until_up().await;
    for _ in 0..7 {
        assert_eq!(host.client().get(&host.token("alice"), "/api/v2/toc").await.status, StatusCode::OK);
    }
    eventually("they are counted", async || host.activity.lost_lines() == 7).await;
    assert_eq!(fs::read_link(host.path().join("access.log")).unwrap(), PathBuf::from("/dev/full"), "what is no file is left alone");
    host.stop().await;
}
