//! What a request over HTTP/2 must get that breaks a rule: one test a row, frame by frame.
//!
//! h2 knows most rules of RFC 9113 and takes back a stream that breaks one (`PROTOCOL_ERROR`), as section 8.1.1 wants it; the proxy refuses what
//! h2 lets pass, with a whole answer.

use super::{
    fake::Fake,
    frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, Raw, block},
    host::{Host, ready},
    support::eventually,
};

async fn house() -> (Host, Fake) {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    (host, fake)
}

/// The fields of a good request, and these.
fn post<'a>(token: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields =
        vec![(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", "/api/v2/update"), ("authorization", token)];
    fields.extend_from_slice(more);
    fields
}

fn bearer(host: &Host) -> String {
    format!("Bearer {}", host.token("alice"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_request_written_by_hand_is_answered() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    let mut raw = Raw::connect(&host).await;
    let asking = tokio::spawn(async move { raw.ask(1, &post(&token, &[("content-length", "2")]), Some(b"hi")).await });
    let seen = fake.next().await;
    assert_eq!(seen.body, b"hi");
    seen.answer("200 OK", "done").await;
    let outcome = asking.await.unwrap();
    assert!(matches!(&outcome, Outcome::Answered { status: 200, body } if body == "done"), "{outcome:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_a_connection_and_malformed_ones_take_the_stream_back() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    for (name, value) in [
        ("connection", "close"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
        ("X-Upper", "a"),
        ("with space", "a"),
        ("", "a"),
        ("a:b", "a"),
        ("a", "b\r\nc: d"),
        ("a", "b\nc"),
        ("a", "b\0c"),
        (":path", "/again"),
        (":unknown", "a"),
        (":status", "200"),
    ] {
        let outcome = Raw::connect(&host).await.ask(1, &post(&token, &[(name, value)]), None).await;
        assert!(outcome.is_malformed(), "{name}: {value:?}: {outcome:?}");
    }
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_four_pseudo_fields_once_and_first() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    let (method, scheme, path) = ((":method", "GET"), (":scheme", "https"), (":path", "/api/v2/toc"));
    let (authority, token) = ((":authority", "localhost"), ("authorization", token.as_str()));
    for fields in [
        vec![scheme, path, authority, token],
        vec![method, scheme, authority, token],
        vec![method, path, authority, token],
        vec![method, scheme, authority, token, path],
        vec![method, scheme, (":path", ""), authority, token],
        vec![method, method, scheme, path, authority, token],
        vec![(":method", "G T"), scheme, path, authority, token],
        vec![method, (":scheme", "ht tp"), path, authority, token],
        vec![method, scheme, (":path", "toc"), authority, token],
        vec![method, scheme, (":path", "/a b"), authority, token],
        vec![method, scheme, (":path", "http://x/toc"), authority, token],
        vec![method, scheme, path, (":authority", "a b"), token],
    ] {
        let outcome = Raw::connect(&host).await.ask(1, &fields, None).await;
        assert!(outcome.is_malformed(), "{fields:?}: {outcome:?}");
    }
    let outcome = Raw::connect(&host).await.ask(1, &[method, scheme, (":path", "*"), authority, token], None).await;
    assert!(outcome.is_problem(400, "bad-request"), "{outcome:?}");
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_names_one_host() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    let without = [(":method", "GET"), (":scheme", "https"), (":path", "/api/v2/toc"), ("authorization", token.as_str())];
    let authority = (":authority", "localhost");
    for (authorities, hosts) in [
        (&[][..], &[][..]),
        (&[], &[("host", "")]),
        (&[], &[("host", "a b")]),
        (&[], &[("host", "x"), ("host", "x")]),
        (&[authority], &[("host", "other")]),
        (&[(":authority", "bob@localhost")], &[]),
        (&[authority], &[("host", "localhost"), ("host", "localhost")]),
    ] {
        let fields = [authorities, &without, hosts].concat();
        let outcome = Raw::connect(&host).await.ask(1, &fields, None).await;
        assert!(outcome.is_problem(400, "bad-request"), "{hosts:?}: {outcome:?}");
    }
    for fields in [[&[authority][..], &without, &[("host", "LOCALHOST")]].concat(), [&without[..], &[("host", "x")]].concat()] {
        let mut raw = Raw::connect(&host).await;
        let asking = async { raw.ask(1, &fields, None).await };
        let answering = async { fake.next().await.answer("200 OK", "").await };
        assert_eq!(tokio::join!(asking, answering).0.status(), 200);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_is_one_number_and_that_of_the_body() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    for lengths in [&["2", "2"][..], &["2", "3"], &["+2"], &["0x2"], &["2, 2"], &["-2"], &[""]] {
        let lengths: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
        let outcome = Raw::connect(&host).await.ask(1, &post(&token, &lengths), Some(b"hi")).await;
        let refused = outcome.is_problem(400, "bad-request") || outcome.is_malformed();
        assert!(refused, "{lengths:?}: {outcome:?}");
    }
    for length in ["1", "3", "0"] {
        let outcome = Raw::connect(&host).await.ask(1, &post(&token, &[("content-length", length)]), Some(b"hi")).await;
        let refused = outcome.is_problem(400, "body-cut") || outcome.is_malformed();
        assert!(refused, "{length}: {outcome:?}");
    }
    let outcome = Raw::connect(&host).await.ask(1, &post(&token, &[("content-length", "2")]), None).await;
    assert!(outcome.is_problem(400, "body-cut") || outcome.is_malformed(), "{outcome:?}");
    assert!(fake.is_untouched().await, "a body that is not what was announced reached sq");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_like_ours_are_dropped_and_sq_hears_of_one_user() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    let more = [
        ("x_user_id", "bob"),
        ("x-user-id", "bob"),
        ("x-user-id", "carol"),
        ("authorization-x", "junk"),
        ("x-real-ip", "9.9.9.9"),
        ("te", "trailers"),
        ("x-request-id", "r-1"),
    ];
    let fields = post(&token, &more);
    let mut raw = Raw::connect(&host).await;
    let asking = async { raw.ask(1, &fields, Some(b"hi")).await };
    let answering = async {
        let seen = fake.next().await;
        let head = seen.head.clone();
        seen.answer("200 OK", "").await;
        head
    };
    let (outcome, head) = tokio::join!(asking, answering);
    assert_eq!(outcome.status(), 200);
    let expected = format!(
        "POST /api/v2/update HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\nX-User-ID: alice\r\nX-Real-IP: 127.0.0.1\r\n\
         X-Request-ID: r-1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n",
        fake.port,
        host.instance_key("alice", 1)
    );
    assert_eq!(head, expected);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_100_fields_or_32_kib_of_them_are_431() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    let outcome = Raw::connect(&host).await.ask(1, &post(&token, &[("a", "b"); 100]), None).await;
    assert!(outcome.is_problem(431, "head-too-large"), "{outcome:?}");
    eventually("it is in the log", async || host.log("access.log").contains("head-too-large")).await;
    // Longer than one frame may be (16 KiB), so in two. h2 answers by itself, in the middle of it.
    let fields = block(&post(&token, &[("a", "b".repeat(34_000).as_str())]));
    let mut raw = Raw::connect(&host).await;
    raw.send(HEADERS, END_STREAM, 1, &fields[..16_000]).await.unwrap();
    raw.send(CONTINUATION, 0, 1, &fields[16_000..32_000]).await.unwrap();
    let _ = raw.send(CONTINUATION, END_HEADERS, 1, &fields[32_000..]).await;
    let outcome = raw.outcome(1).await;
    assert!(matches!(outcome, Outcome::Answered { status: 431, .. } | Outcome::Reset(_) | Outcome::Gone(Some(_))), "{outcome:?}");
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_405_and_connect_too() {
    let (host, fake) = house().await;
    for method in ["HEAD", "PUT", "DELETE", "TRACE", "get"] {
        let fields = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", "/api/v2/toc")];
        assert_eq!(Raw::connect(&host).await.ask(1, &fields, None).await.status(), 405, "{method}");
    }
    let outcome = Raw::connect(&host).await.ask(1, &[(":method", "CONNECT"), (":authority", "x:443")], None).await;
    assert!(matches!(outcome, Outcome::Answered { status: 405, .. }), "{outcome:?}");
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_end_a_body_and_reach_nobody() {
    let (host, fake) = house().await;
    let token = bearer(&host);
    let mut raw = Raw::connect(&host).await;
    raw.send(HEADERS, END_HEADERS, 1, &block(&post(&token, &[]))).await.unwrap();
    raw.send(DATA, 0, 1, b"hi").await.unwrap();
    raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-user-id", "bob")])).await.unwrap();
    let seen = fake.next().await;
    assert_eq!(seen.body, b"hi");
    assert!(!seen.head.contains("bob"), "{}", seen.head);
    seen.answer("200 OK", "").await;
    assert_eq!(raw.outcome(1).await.status(), 200);
    host.stop().await;
}
