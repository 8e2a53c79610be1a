//! What sq sees, byte by byte, and what becomes of its answers.

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use sq_agent::{
    proxy::{NudgeReason, supervisor::ProxyEvent},
    route::RouteState,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    client::{Http, full, pieces, request},
    fake::Fake,
    host::{Host, ready, row},
    support::eventually,
};

async fn host_with_fake() -> (Host, Fake) {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    (host, fake)
}

#[tokio::test(flavor = "multi_thread")]
async fn sq_sees_the_allowed_headers_and_nothing_else_of_a_request() {
    let (host, fake) = host_with_fake().await;
    let mut asked = request(Method::POST, &host.token("alice"), "/api/v2/insert?p=a%20b&c=1.1.1/1.1.1/1.1.1", full("hello"));
    for (name, value) in [
        ("content-type", "text/plain"),
        ("authorization-extra", "junk"),
        ("x-user-id", "bob"),
        ("x-real-ip", "9.9.9.9"),
        ("x-forwarded-for", "9.9.9.9"),
        ("cookie", "a=b"),
        ("x-request-id", "from-client-1"),
        ("content-length-extra", "1"),
    ] {
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let client = host.client();
    let answer = tokio::spawn(async move { client.ask(Http::One, asked).await });
    let seen = fake.next().await;
    let expected = format!(
        "POST /api/v2/insert?p=a%20b&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\nX-User-ID: alice\r\n\
         X-Real-IP: 127.0.0.1\r\nX-Request-ID: from-client-1\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
        fake.port,
        host.instance_key("alice", 1)
    );
    assert_eq!(seen.head, expected);
    assert_eq!(seen.body, b"hello");
    seen.answer("200 OK", "done").await;
    let answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "done"));
    assert_eq!(answer.header("x-request-id"), "from-client-1");
    assert_eq!(answer.headers.get_all("access-control-allow-origin").iter().count(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_without_a_length_reach_sq_whole_and_with_one() {
    let (host, fake) = host_with_fake().await;
    for http in [Http::One, Http::Two] {
        let (sender, body) = pieces();
        let asked = request(Method::POST, &host.token("alice"), "/api/v2/update", body);
        let client = host.client();
        let answer = tokio::spawn(async move { client.ask(http, asked).await });
        sender.send(Bytes::from_static(b"one ")).await.unwrap();
        sender.send(Bytes::from_static("zw\u{f6}lf ".as_bytes())).await.unwrap();
        assert!(fake.is_untouched().await, "nothing may go out before the body is whole");
        sender.send(Bytes::from(vec![b'x'; 100_000])).await.unwrap();
        drop(sender);
        let seen = fake.next().await;
        let expected = ["one zw\u{f6}lf ".as_bytes(), &[b'x'; 100_000]].concat();
        assert!(seen.head.contains(&format!("\r\nContent-Length: {}\r\n", expected.len())), "{}", seen.head);
        assert!(!seen.head.to_lowercase().contains("transfer-encoding"));
        assert!(seen.body == expected);
        seen.answer("200 OK", "").await;
        assert_eq!(answer.await.unwrap().status, StatusCode::OK, "{http:?}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_never_reaches_sq() {
    let (host, fake) = host_with_fake().await;
    let mut raw = host.client().raw(b"http/1.1").await.unwrap();
    let head = format!(
        "POST /api/v2/update HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\n",
        host.token("alice")
    );
    raw.write_all(head.as_bytes()).await.unwrap();
    raw.write_all(&[b'x'; 300_000]).await.unwrap();
    raw.flush().await.unwrap();
    drop(raw);
    eventually("the cut upload is in the log", async || {
        host.log("access.log").contains("body-cut") || host.log("access.log").contains("\"cut\":true")
    })
    .await;
    assert!(fake.is_untouched().await);
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_becomes_origin_form_and_bytes_after_a_body_are_another_request() {
    let (host, fake) = host_with_fake().await;
    let mut raw = host.client().raw(b"http/1.1").await.unwrap();
    let token = host.token("alice");
    let one = format!(
        "POST http://evil.example/api/v2/insert?s=%41+b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 2\r\n\r\nhi"
    );
    let two = format!("GET /api/v2/toc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
    raw.write_all(format!("{one}{two}").as_bytes()).await.unwrap();
    let seen = fake.next().await;
    assert!(seen.head.starts_with("POST /api/v2/insert?s=%41+b HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.body, b"hi");
    seen.answer("200 OK", "first").await;
    let seen = fake.next().await;
    assert!(seen.head.starts_with("GET /api/v2/toc HTTP/1.1\r\n"), "{}", seen.head);
    seen.answer("200 OK", "second").await;
    let mut answers = String::new();
    raw.read_to_string(&mut answers).await.unwrap();
    assert!(answers.contains("first") && answers.ends_with("second"), "{answers}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_sq_broke_off_is_never_sent_again() {
    let (host, fake) = host_with_fake().await;
    let (client, token) = (host.client(), host.token("alice"));
    let answer = tokio::spawn(async move { client.post(&token, "/api/v2/insert", "x").await });
    drop(fake.next().await);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.text().contains("bad-answer"), "{}", answer.text());
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_is_cut_for_the_client_too() {
    let (host, fake) = host_with_fake().await;
    for http in [Http::One, Http::Two] {
        let (client, asked) = (host.client(), request(Method::GET, &host.token("alice"), "/api/v2/select", full("")));
        let answer = tokio::spawn(async move {
            let head = client.connect(http).await.unwrap().begin(asked).await?;
            head.into_body().collect().await.map(|body| body.to_bytes().len())
        });
        fake.next().await.raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(300_000))).await;
        assert!(answer.await.unwrap().is_err(), "{http:?}: a cut answer must not look whole");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_on_the_port_is_never_heard_and_the_request_waits_for_its_own() {
    let (host, wrong) = host_with_fake().await;
    let right = Fake::start().await;
    let (client, token) = (host.client(), host.token("alice"));
    let answer = tokio::spawn(async move { client.post(&token, "/api/v2/insert", "x").await });
    wrong.next().await.answer("401 Unauthorized", "Unauthorized").await;
    let nudge = host.event(|event| matches!(event, ProxyEvent::Nudge { .. })).await;
    assert!(matches!(&nudge, ProxyEvent::Nudge { id, reason: NudgeReason::WrongInstance } if id.as_str() == "alice"), "{nudge:?}");
    host.publish(&[row("alice", 0, RouteState::Ready, right.port, 2)]).await;
    let seen = right.next().await;
    assert!(seen.head.contains(&host.instance_key("alice", 2)));
    assert_eq!(seen.body, b"x");
    seen.answer("200 OK", "").await;
    assert_eq!(answer.await.unwrap().status, StatusCode::OK);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_parks_while_its_instance_starts_and_then_succeeds() {
    let fake = Fake::start().await;
    let host = Host::start(&[row("alice", 0, RouteState::Starting, 0, 1)]).await;
    let (client, token) = (host.client(), host.token("alice"));
    let answer = tokio::spawn(async move { client.get(&token, "/api/v2/toc").await });
    let nudge = host.event(|event| matches!(event, ProxyEvent::Nudge { .. })).await;
    assert!(matches!(nudge, ProxyEvent::Nudge { reason: NudgeReason::Parked, .. }));
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 0, "a parked request does not hold up a drain");
    host.publish(&[ready("alice", 0, fake.port)]).await;
    fake.next().await.answer("200 OK", "here").await;
    assert_eq!(answer.await.unwrap().text(), "here");
    eventually("the log says how long it waited", async || {
        let log = host.log("access.log");
        log.lines().next().is_some_and(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["ms_parked"].as_f64() > Some(0.0))
    })
    .await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_parks_until_the_instance_is_there_again() {
    let fake = Fake::start().await;
    let gone = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, gone.port)]).await;
    drop(gone);
    let (client, token) = (host.client(), host.token("alice"));
    let answer = tokio::spawn(async move { client.post(&token, "/api/v2/insert", "kept").await });
    host.event(|event| matches!(event, ProxyEvent::Nudge { reason: NudgeReason::Refused, .. })).await;
    host.publish(&[row("alice", 0, RouteState::Ready, fake.port, 2)]).await;
    let seen = fake.next().await;
    assert_eq!(seen.body, b"kept");
    seen.answer("200 OK", "").await;
    assert_eq!(answer.await.unwrap().status, StatusCode::OK);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_what_is_in_flight_finish_and_nothing_new_in() {
    let (host, fake) = host_with_fake().await;
    let ask = |target: &'static str| {
        let (client, token) = (host.client(), host.token("alice"));
        tokio::spawn(async move { client.post(&token, target, "x").await })
    };
    let first = ask("/api/v2/insert?first");
    let seen = fake.next().await;
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 1);
    host.publish(&[row("alice", 0, RouteState::Draining, fake.port, 1)]).await;
    let second = ask("/api/v2/insert?second");
    host.event(|event| matches!(event, ProxyEvent::Nudge { .. })).await;
    seen.answer("200 OK", "one").await;
    assert_eq!(first.await.unwrap().text(), "one");
    eventually("nothing in flight", async || host.activity.slot(0).unwrap().in_flight() == 0).await;
    assert!(fake.is_untouched().await);
    host.publish(&[row("alice", 0, RouteState::Ready, fake.port, 2)]).await;
    fake.next().await.answer("200 OK", "two").await;
    assert_eq!(second.await.unwrap().text(), "two");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_keeps_the_lane_until_sq_has_answered_even_if_its_client_is_gone() {
    let (host, fake) = host_with_fake().await;
    let (client, token) = (host.client(), host.token("alice"));
    let gone = tokio::spawn(async move { client.post(&token, "/api/v2/insert?first", "x").await });
    let first = fake.next().await;
    gone.abort();
    let (client, token) = (host.client(), host.token("alice"));
    let second = tokio::spawn(async move { client.post(&token, "/api/v2/insert?second", "y").await });
    assert!(fake.is_untouched().await, "two writes at once");
    let (client, token) = (host.client(), host.token("alice"));
    let read = tokio::spawn(async move { client.get(&token, "/api/v2/toc").await });
    fake.next().await.answer("200 OK", "a read goes beside it").await;
    assert_eq!(read.await.unwrap().text(), "a read goes beside it");
    first.answer("200 OK", "").await;
    let seen = fake.next().await;
    assert!(seen.head.contains("?second"));
    seen.answer("200 OK", "").await;
    assert_eq!(second.await.unwrap().status, StatusCode::OK);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_request_whose_client_is_gone_is_never_sent() {
    let (host, fake) = host_with_fake().await;
    let ask = |target: &'static str| {
        let (client, token) = (host.client(), host.token("alice"));
        tokio::spawn(async move { client.post(&token, target, "x").await })
    };
    let first = ask("/api/v2/insert?first");
    let seen = fake.next().await;
    let second = ask("/api/v2/insert?second");
    eventually("the second is counted", async || host.activity.slot(0).unwrap().snapshot().requests == 2).await;
    second.abort();
    eventually("its end is in the log", async || host.log("access.log").contains("\"cut\":true")).await;
    seen.answer("200 OK", "").await;
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_before_it_uploads_is_told_to_go_on_only_if_it_may() {
    let (host, fake) = host_with_fake().await;
    let head = |token: &str| {
        format!(
            "POST /api/v2/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
    };
    let mut raw = host.client().raw(b"http/1.1").await.unwrap();
    raw.write_all(head(&host.token("alice")).as_bytes()).await.unwrap();
    let mut answer = [0; 25];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"HTTP/1.1 100 Continue\r\n\r\n");
    raw.write_all(b"hi").await.unwrap();
    let seen = fake.next().await;
    assert!(!seen.head.contains("Expect"));
    assert_eq!(seen.body, b"hi");
    seen.answer("200 OK", "").await;

    let mut raw = host.client().raw(b"http/1.1").await.unwrap();
    raw.write_all(head("a.b.c").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"HTTP/1.1 401");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waited_for_its_turn_looks_again_whether_its_instance_is_still_to_be_used() {
    let (host, fake) = host_with_fake().await;
    let ask = |target: &'static str| {
        let (client, token) = (host.client(), host.token("alice"));
        tokio::spawn(async move { client.post(&token, target, "x").await })
    };
    let first = ask("/api/v2/insert?first");
    let seen = fake.next().await;
    let second = ask("/api/v2/insert?second");
    eventually("the second waits for its turn", async || host.activity.slot(0).unwrap().snapshot().requests == 2).await;
    assert!(fake.is_untouched().await);
    host.publish(&[row("alice", 0, RouteState::Draining, fake.port, 1)]).await;
    seen.answer("200 OK", "").await;
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert!(fake.is_untouched().await, "a drained instance must get nothing new");
    host.publish(&[row("alice", 0, RouteState::Ready, fake.port, 2)]).await;
    let seen = fake.next().await;
    assert!(seen.head.contains(&host.instance_key("alice", 2)), "{}", seen.head);
    seen.answer("200 OK", "").await;
    assert_eq!(second.await.unwrap().status, StatusCode::OK);
    host.stop().await;
}
