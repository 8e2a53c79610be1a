//! What the proxy answers by itself.

use std::time::Duration;

use http::{Method, StatusCode};
use sq_agent::route::{RouteLimits, RouteState, Writes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::{
    busy::Busy,
    client::{Http, full, request},
    fake::Fake,
    host::{Host, LIMITS, now, ready, row, sign},
    support::eventually,
};

#[tokio::test(flavor = "multi_thread")]
async fn only_a_good_token_opens_a_door_and_only_its_owners() {
    let (alice, bob) = (Fake::start().await, Fake::start().await);
    let host = Host::start(&[ready("alice", 0, alice.port), ready("bob", 1, bob.port)]).await;
    let exp = now() + 60;
    let good = format!(r#"{{"sub":"alice","exp":{exp}}}"#);
    let hs256 = r#"{"alg":"HS256"}"#;
    let unsigned = host.sign(r#"{"alg":"none"}"#, &good);
    let unsigned = format!("{}.", unsigned.rsplit_once('.').unwrap().0);
    for (what, token) in [
        ("no token", String::new()),
        ("rubbish", "x.y.z".into()),
        ("alg none", unsigned),
        ("another secret", sign(hs256, &good, &[b'z'; 64])),
        ("expired", host.sign(hs256, &format!(r#"{{"sub":"alice","exp":{}}}"#, now() - 10))),
        ("no exp", host.sign(hs256, r#"{"sub":"alice"}"#)),
        ("crit", host.sign(r#"{"alg":"HS256","crit":["x"]}"#, &good)),
        ("a path as sub", host.sign(hs256, &format!(r#"{{"sub":"../bob","exp":{exp}}}"#))),
    ] {
        let answer = host.client().get(&token, "/api/v2/select").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}");
        assert!(answer.header("www-authenticate").starts_with("Bearer realm="), "{what}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
        assert_eq!(answer.header("access-control-allow-origin"), "*", "{what}");
    }
    assert_eq!(host.client().get(&host.token("carol"), "/api/v2/select").await.status, StatusCode::FORBIDDEN);
    assert!(alice.is_untouched().await && bob.is_untouched().await);
    // The port of another is only a number.
    let token = host.sign(hs256, &format!(r#"{{"sub":"alice","port":{},"exp":{exp}}}"#, bob.port));
    let client = host.client();
    let answer = tokio::spawn(async move { client.get(&token, "/api/v2/toc").await });
    alice.next().await.answer("200 OK", "alice's").await;
    assert_eq!(answer.await.unwrap().text(), "alice's");
    assert!(bob.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_burst_goes_at_once_and_then_one_request_each_600_ms() {
    let fake = Fake::start().await;
    let mut limited = ready("alice", 0, fake.port);
    limited.limits = RouteLimits { interval_ns: 600_000_000, burst: 20, ..LIMITS };
    let host = Host::start(&[limited]).await;
    let serving = tokio::spawn(async move {
        loop {
            fake.next().await.answer("200 OK", "").await;
        }
    });
    let token = host.token("alice");
    let mut connection = host.client().connect(Http::Two).await.unwrap();
    let start = Instant::now();
    let mut admitted = 0;
    let refused = loop {
        let answer = connection.ask(request(Method::GET, &token, "/api/v2/toc", full(""))).await.unwrap();
        assert_eq!(answer.header("ratelimit-policy"), "\"default\";q=100;w=60");
        assert!(answer.headers.contains_key("ratelimit"));
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            break answer;
        }
        assert_eq!(answer.status, StatusCode::OK);
        admitted += 1;
    };
    let elapsed = start.elapsed().as_millis() as u64;
    assert!((21..=21 + elapsed / 600).contains(&admitted), "{admitted} in {elapsed} ms");
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.header("ratelimit").starts_with("\"default\";r=0;t="), "{}", refused.header("ratelimit"));
    let mut after = Vec::new();
    while after.len() < 3 {
        let answer = connection.ask(request(Method::GET, &token, "/api/v2/toc", full(""))).await.unwrap();
        if answer.status == StatusCode::OK {
            after.push(start.elapsed().as_millis() as u64);
        }
    }
    // Never faster than the rate; how much slower is the machine's affair.
    for (more, at) in (1..).zip(&after) {
        assert!(admitted + more <= 21 + at / 600, "{admitted}, then at {after:?} ms");
    }
    serving.abort();
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_used_up_says_when_the_day_ends_and_refusals_take_nothing_of_it() {
    let busy = Busy::start(Duration::ZERO).await;
    let mut limited = ready("alice", 0, busy.port);
    limited.limits = RouteLimits { interval_ns: 600_000_000_000, burst: 1, requests_per_day: 3, ..LIMITS };
    let host = Host::start(&[limited.clone()]).await;
    let token = host.token("alice");
    let mut connection = host.client().connect(Http::Two).await.unwrap();
    let mut ask = async || connection.ask(request(Method::GET, &token, "/api/v2/toc", full(""))).await.unwrap();
    let policy = "\"default\";q=6;w=3600, \"day\";q=3;w=86400";
    for left in [2, 1] {
        let answer = ask().await;
        assert_eq!((answer.status, answer.header("ratelimit-policy")), (StatusCode::OK, policy));
        assert!(answer.header("ratelimit").contains(&format!("\"day\";r={left};t=")), "{}", answer.header("ratelimit"));
    }
    for _ in 0..5 {
        let refused = ask().await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.text().contains("urn:sq-agent:problem:rate-limited"), "{}", refused.text());
        assert!(refused.header("ratelimit").contains("\"day\";r=1;t="), "{}", refused.header("ratelimit"));
    }
    // Without its rate, the last one of the day.
    limited.limits.interval_ns = 0;
    host.publish(&[limited.clone()]).await;
    assert_eq!(ask().await.status, StatusCode::OK);
    let before = now();
    let refused = ask().await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let (seconds, midnight) = (refused.header("retry-after").parse::<u64>().unwrap(), (before / 86_400 + 1) * 86_400);
    assert!(seconds.abs_diff(midnight - before) <= 10, "{seconds} s");
    let text = refused.text();
    assert!(text.contains("urn:sq-agent:problem:quota-used") && text.contains("T00:00:00Z"), "{text}");
    assert_eq!(refused.header("ratelimit-policy"), "\"day\";q=3;w=86400");
    assert_eq!(refused.header("ratelimit"), format!("\"day\";r=0;t={seconds}"));
    limited.limits.requests_per_day = 4;
    host.publish(&[limited]).await;
    assert_eq!(ask().await.status, StatusCode::OK, "a raised quota holds at once");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_only_what_makes_less_reaches_sq_and_before_its_body_is_read() {
    let fake = Fake::start().await;
    let mut alice = ready("alice", 0, fake.port);
    alice.limits = RouteLimits { storage_max: 1_000, ..LIMITS };
    let host = Host::start(&[alice.clone()]).await;
    let token = host.token("alice");
    for (writes, slug) in [(Writes::OverStorage { used: 1_234 }, "storage-quota"), (Writes::DiskLow, "disk-low")] {
        alice.writes = writes;
        host.publish(&[alice.clone()]).await;
        for path in ["insert", "update", "json-export"] {
            let answer = host.client().post(&token, &format!("/api/v2/{path}?p=x"), "text").await;
            assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE, "{path}");
            assert!(answer.text().contains(&format!("urn:sq-agent:problem:{slug}\"")), "{}", answer.text());
            assert_eq!(answer.text().contains("1234 bytes and may take 1000"), slug == "storage-quota");
        }
        assert!(fake.is_untouched().await);
        for path in ["select", "delete", "toc", "something"] {
            let (client, token) = (host.client(), token.clone());
            let answer = tokio::spawn(async move { client.get(&token, &format!("/api/v2/{path}?p=x")).await });
            fake.next().await.answer("200 OK", "").await;
            assert_eq!(answer.await.unwrap().status, StatusCode::OK, "{path}");
        }
    }
    // Who announces a body and waits for a word is refused without one.
    let mut raw = host.client().raw(b"http/1.1").await.unwrap();
    let head = format!("POST /api/v2/insert?p=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 5\r\n\r\n");
    raw.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    raw.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 507");
    alice.writes = Writes::All;
    host.publish(&[alice]).await;
    let client = host.client();
    let answer = tokio::spawn(async move { client.post(&token, "/api/v2/insert?p=x", "text").await });
    fake.next().await.answer("200 OK", "").await;
    assert_eq!(answer.await.unwrap().status, StatusCode::OK, "with room all go on");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sq_answers_badly_is_answered_here() {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let token = host.token("alice");
    let preflight = host.client().ask(Http::One, request(Method::OPTIONS, "", "/api/v2/insert", full(""))).await;
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
    assert_eq!(preflight.header("access-control-allow-methods"), "GET, POST, OPTIONS");
    for method in [Method::HEAD, Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = host.client().ask(Http::One, request(method.clone(), &token, "/api/v2/toc", full(""))).await;
        assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, POST, OPTIONS"), "{method}");
    }
    assert_eq!(host.client().get(&token, "/favicon.ico").await.status, StatusCode::NOT_FOUND);
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_row_hold_for_bodies_and_for_the_queue() {
    let fake = Fake::start().await;
    let mut small = ready("alice", 0, fake.port);
    small.limits = RouteLimits { body_max: 1_000, queue: 1, ..LIMITS };
    let host = Host::start(&[small]).await;
    let token = host.token("alice");
    let large = host.client().post(&token, "/api/v2/insert", &"x".repeat(1_001)).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
    let ask = || {
        let (client, token) = (host.client(), token.clone());
        tokio::spawn(async move { client.post(&token, "/api/v2/insert", "x").await })
    };
    let first = ask();
    let seen = fake.next().await;
    let second = ask();
    eventually("the second waits", async || host.activity.slot(0).unwrap().snapshot().requests == 3).await;
    let third = host.client().post(&token, "/api/v2/insert", "x").await;
    assert_eq!(third.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(third.text().contains("queue-full") && !third.header("retry-after").is_empty(), "{}", third.text());
    seen.answer("200 OK", "").await;
    fake.next().await.answer("200 OK", "").await;
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (StatusCode::OK, StatusCode::OK));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_all_before_it_reads_still_sees_why_it_was_refused() {
    let mut small = ready("alice", 0, 1);
    small.limits.body_max = 1_000;
    let host = Host::start(&[small]).await;
    let large = "x".repeat(3_000_000);
    for (token, status) in [("a.b.c".to_owned(), StatusCode::UNAUTHORIZED), (host.token("alice"), StatusCode::PAYLOAD_TOO_LARGE)] {
        let mut raw = host.client().raw(b"http/1.1").await.unwrap();
        let head =
            format!("POST /api/v2/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n", large.len());
        raw.write_all(head.as_bytes()).await.unwrap();
        raw.write_all(large.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        raw.read_exact(&mut start).await.unwrap();
        assert_eq!(start, format!("HTTP/1.1 {}", status.as_u16()).as_bytes());
        let answer = host.client().ask(Http::Two, request(Method::POST, &token, "/api/v2/update", full(&large))).await;
        assert_eq!(answer.status, status);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_is_refused_and_a_revoked_token_too() {
    let fake = Fake::start().await;
    let mut revoked = ready("bob", 1, fake.port);
    let revocation = now() - 10;
    revoked.tokens_valid_after = revocation;
    let host = Host::start(&[row("alice", 0, RouteState::Suspended, 0, 1), revoked]).await;
    let suspended = host.client().get(&host.token("alice"), "/api/v2/toc").await;
    assert_eq!(suspended.status, StatusCode::FORBIDDEN);
    assert!(suspended.text().contains("urn:sq-agent:problem:suspended"), "{}", suspended.text());
    let token = |iat: u64| host.sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"bob","iat":{iat},"exp":{}}}"#, now() + 60));
    assert_eq!(host.client().get(&token(revocation - 1), "/api/v2/toc").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(host.client().get(&host.token("bob"), "/api/v2/toc").await.status, StatusCode::UNAUTHORIZED, "no iat");
    let (client, young) = (host.client(), token(revocation));
    let answer = tokio::spawn(async move { client.get(&young, "/api/v2/toc").await });
    fake.next().await.answer("200 OK", "").await;
    assert_eq!(answer.await.unwrap().status, StatusCode::OK);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_query_stands_in_a_log_or_an_answer() {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let token = host.token("alice");
    let (client, sent) = (host.client(), token.clone());
    let answer = tokio::spawn(async move { client.get(&sent, "/api/v2/insert?s=my-diary").await });
    drop(fake.next().await);
    let answer = answer.await.unwrap();
    let key = host.instance_key("alice", 1);
    eventually("the line is written", async || host.log("access.log").contains("bad-answer")).await;
    let all = format!("{}{:?}{}{}", answer.text(), answer.headers, host.log("access.log"), host.log("proxy.log"));
    for secret in [token.as_str(), key.as_str(), "my-diary"] {
        assert!(!all.contains(secret), "{all}");
    }
    host.stop().await;
}
