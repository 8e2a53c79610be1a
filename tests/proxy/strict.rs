//! What a request over HTTP/1.1 must get that not every server reads alike: one test a row, over raw bytes inside TLS.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    fake::Fake,
    host::{Host, LIMITS, ready},
    support::{DEADLINE, eventually},
};

struct House {
    host: Host,
    fake: Fake,
}

/// All that came back, and whether the connection was closed properly after it.
struct Said {
    text: String,
}

impl House {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let host = Host::start(&[ready("alice", 0, fake.port)]).await;
        Self { host, fake }
    }

    async fn raw(&self) -> TlsStream<TcpStream> {
        self.host.client().raw(b"http/1.1").await.unwrap()
    }

    /// Sends `bytes`, in which `TOKEN` is a good one, and reads to the end of the connection: the proxy must end it.
    async fn say(&self, bytes: &[u8]) -> Said {
        let mut raw = self.raw().await;
        raw.write_all(&replace(bytes, &self.host.token("alice"))).await.unwrap();
        Said::to_the_end(&mut raw).await
    }

    /// `fields` beside Host and a good token, in a POST with this body, must be refused so, and nothing may reach sq.
    async fn refuses(&self, fields: &str, body: &str, status: u16, slug: &str) {
        let request = format!("POST /api/v2/update?p=a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer TOKEN\r\n{fields}\r\n{body}");
        self.refuses_bytes(request.as_bytes(), status, slug).await;
    }

    async fn refuses_bytes(&self, bytes: &[u8], status: u16, slug: &str) {
        // What follows a refused request on the same connection is nobody's.
        let more = [bytes, b"GET /api/v2/toc HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer TOKEN\r\n\r\n"].concat();
        let said = self.say(&more).await;
        let shown = String::from_utf8_lossy(bytes).chars().take(300).collect::<String>();
        said.is_refusal(status, slug, &shown);
        let id = said.problem()["request_id"].as_str().unwrap().to_owned();
        eventually("the refusal is in the log", async || {
            let log = self.host.log("access.log");
            let line = log.lines().find(|line| line.contains(&id)).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            line.is_some_and(|line| line["status"] == status && line["refused"] == slug)
        })
        .await;
        assert!(self.fake.is_untouched().await, "{shown:?} reached sq");
    }

    /// The body that sq gets of this request; it is answered with `done`.
    async fn sq_gets(&self, bytes: &[u8]) -> (String, Vec<u8>, TlsStream<TcpStream>) {
        let mut raw = self.raw().await;
        raw.write_all(&replace(bytes, &self.host.token("alice"))).await.unwrap();
        let seen = self.fake.next().await;
        let (head, body) = (seen.head.clone(), seen.body.clone());
        seen.answer("200 OK", "done").await;
        (head, body, raw)
    }
}

impl Said {
    async fn to_the_end(raw: &mut TlsStream<TcpStream>) -> Self {
        let mut bytes = Vec::new();
        timeout(DEADLINE, raw.read_to_end(&mut bytes)).await.expect("the connection stays open").expect("the connection broke");
        Self { text: String::from_utf8(bytes).unwrap() }
    }

    fn answers(&self) -> usize {
        self.text.matches("HTTP/1.1 ").count()
    }

    fn problem(&self) -> serde_json::Value {
        let body = self.text.split_once("\r\n\r\n").expect("a whole head").1;
        serde_json::from_str(body).unwrap_or_else(|_| panic!("no problem document: {}", self.text))
    }

    fn is_refusal(&self, status: u16, slug: &str, what: &str) {
        assert!(self.text.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {}", self.text);
        assert_eq!(self.answers(), 1, "{what:?}: {}", self.text);
        let head = self.text.split_once("\r\n\r\n").unwrap().0.to_lowercase();
        assert!(head.contains("\r\ncontent-type: application/problem+json"), "{head}");
        assert!(head.contains("\r\nconnection: close"), "{what:?}: {head}");
        let problem = self.problem();
        assert_eq!(problem["type"], format!("urn:sq-agent:problem:{slug}"), "{what:?}");
        assert_eq!(problem["status"], status);
    }
}

fn replace(bytes: &[u8], token: &str) -> Vec<u8> {
    let Some(at) = bytes.windows(5).position(|window| window == b"TOKEN") else {
        return bytes.to_vec();
    };
    [&bytes[..at], token.as_bytes(), &replace(&bytes[at + 5..], token)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_not_one_plain_number_is_400() {
    let house = House::new().await;
    for fields in [
        "Content-Length: 3\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: -3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: \r\n",
        "Content-Length: 99999999999999999999999\r\n",
    ] {
        house.refuses(fields, "abc", 400, "bad-request").await;
    }
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_beside_chunks_is_one_request_and_then_the_connection_ends() {
    let house = House::new().await;
    for fields in ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"] {
        let smuggled = "GET /api/v2/delete HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n\r\n";
        let request = format!(
            "POST /api/v2/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{smuggled}"
        );
        let (head, body, mut raw) = house.sq_gets(request.as_bytes()).await;
        assert_eq!(body, b"abc");
        assert!(head.contains("\r\nContent-Length: 3\r\n") && !head.to_lowercase().contains("transfer-encoding"), "{head}");
        let said = Said::to_the_end(&mut raw).await;
        assert_eq!(said.answers(), 1, "{}", said.text);
        assert!(said.text.to_lowercase().contains("\r\nconnection: close"), "{}", said.text);
        assert!(house.fake.is_untouched().await);
    }
    house.refuses("Transfer-Encoding: chunked\r\nContent-Length: x\r\n", "0\r\n\r\n", 400, "bad-request").await;
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coding_other_than_chunked_is_400_and_one_beneath_it_501() {
    let house = House::new().await;
    for value in ["gzip", "identity", "chunked, gzip", "chunked, chunked", "xchunked", "chunked;a=b", "\x0bchunked"] {
        house.refuses(&format!("Transfer-Encoding: {value}\r\n"), "0\r\n\r\n", 400, "bad-request").await;
    }
    house.refuses("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 400, "bad-request").await;
    for fields in ["Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: gzip\r\ntransfer-encoding: chunked\r\n"] {
        house.refuses(fields, "0\r\n\r\n", 501, "unknown-coding").await;
    }
    let old = b"POST /api/v2/update HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    house.refuses_bytes(old, 400, "bad-request").await;
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_line_is_400() {
    let house = House::new().await;
    for fields in
        ["A: b\r\n c\r\n", "A : b\r\n", "A\r\n", ": b\r\n", "A: b\rc\r\n", "A: b\0c\r\n", "A\0: b\r\n", "A: b\nC: d\r\n", "A: b\n\r\n"]
    {
        house.refuses(fields, "", 400, "bad-request").await;
    }
    for request in [
        &b"GET / HTTP/1.1\nHost: x\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\n\r\n",
    ] {
        house.refuses_bytes(request, 400, "bad-request").await;
    }
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_none_are_400() {
    let house = House::new().await;
    for body in [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\nA: b\n\r\n",
        "3\r\nabcX0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
    ] {
        house.refuses("Transfer-Encoding: chunked\r\n", body, 400, "body-cut").await;
    }
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_names_one_host() {
    let house = House::new().await;
    for hosts in ["", "Host: x\r\nHost: x\r\n", "Host: x\r\nhost: y\r\n", "Host: \r\n", "Host: a b\r\n", "Host: a@b\r\n", "Host: a/b\r\n"] {
        let request = format!("GET /api/v2/toc HTTP/1.1\r\n{hosts}Authorization: Bearer TOKEN\r\n\r\n");
        house.refuses_bytes(request.as_bytes(), 400, "bad-request").await;
    }
    let (head, ..) = house.sq_gets(b"GET /api/v2/toc HTTP/1.0\r\nAuthorization: Bearer TOKEN\r\n\r\n").await;
    assert!(head.starts_with("GET /api/v2/toc HTTP/1.1\r\nHost: 127.0.0.1:"), "sq knows no HTTP/1.0: {head}");
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_a_path_and_an_absolute_one_becomes_that() {
    let house = House::new().await;
    for target in ["*", "x", "localhost:443", "/a#b", "/a?s=one#two", "/a<b", "http://", "http:///a", "?a"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n\r\n");
        house.refuses_bytes(request.as_bytes(), 400, "bad-request").await;
    }
    for (target, path) in [
        ("http://evil.example/api/v2/toc?s=%41+b", "/api/v2/toc?s=%41+b"),
        ("HTTPS://evil.example:1/api/v2/toc", "/api/v2/toc"),
        ("http://evil.example", "/"),
        ("/api/v2/toc?s={\u{fc}}", "/api/v2/toc?s={\u{fc}}"),
        ("//api/v2/toc", "//api/v2/toc"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n\r\n");
        let (head, ..) = house.sq_gets(request.as_bytes()).await;
        assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", house.fake.port)), "{target}: {head}");
    }
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_like_ours_are_dropped_and_sq_hears_of_one_user() {
    let house = House::new().await;
    let request = "POST /api/v2/update HTTP/1.1\r\nHost: x\r\nX_User_ID: bob\r\nX-User-ID: bob\r\nx-user-id: carol\r\nX-User-ID-X: bob\r\n\
                   Authorization: Bearer TOKEN\r\nAuthorization-x: junk\r\nAuthorization_: junk\r\nX-SQ-API-Key-: junk\r\nX-Real-IP: 9.9.9.9\r\n\
                   Connection: x-user-id, authorization\r\nConnection: x-real-ip\r\nContent-Length-X: 9\r\nContent_Length: 9\r\n\
                   Transfer_Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi";
    let (head, body, _) = house.sq_gets(request.as_bytes()).await;
    let id = head.lines().find_map(|line| line.strip_prefix("X-Request-ID: ")).unwrap();
    let expected = format!(
        "POST /api/v2/update HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\nX-User-ID: alice\r\nX-Real-IP: 127.0.0.1\r\n\
         X-Request-ID: {id}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n",
        house.fake.port,
        house.host.instance_key("alice", 1)
    );
    assert_eq!((head.as_str(), &body[..]), (expected.as_str(), &b"hi"[..]));
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_with_a_body_is_400_and_one_without_is_an_ordinary_request() {
    let house = House::new().await;
    house.refuses("Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", "abc", 400, "bad-request").await;
    house.refuses("Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 400, "bad-request").await;
    let request = b"GET /api/v2/toc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    let (head, _, mut raw) = house.sq_gets(request).await;
    assert!(!head.to_lowercase().contains("upgrade"), "{head}");
    let mut answer = [0; 15];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"HTTP/1.1 200 OK");
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_fields_and_32_kib_are_a_head_and_more_is_431() {
    let house = House::new().await;
    let with = |fields: &str| format!("GET /api/v2/toc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n{fields}\r\n");
    house.sq_gets(with(&"A: b\r\n".repeat(98)).as_bytes()).await;
    house.refuses_bytes(with(&"A: b\r\n".repeat(99)).as_bytes(), 431, "head-too-large").await;
    let (without, token) = (with("A: \r\n").len() - "TOKEN".len(), house.host.token("alice").len());
    let of = |length: usize| with(&format!("A: {}\r\n", "a".repeat(length - without - token)));
    house.sq_gets(of(32 * 1024).as_bytes()).await;
    house.refuses_bytes(of(32 * 1024 + 1).as_bytes(), 431, "head-too-large").await;
    house.refuses_bytes(&[&b"GET /"[..], &[b'a'; 100_000]].concat(), 431, "head-too-large").await;
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_405_and_say_which_are_not() {
    let house = House::new().await;
    for method in ["HEAD", "PUT", "DELETE", "PATCH", "TRACE", "get", "PROPFIND", "-"] {
        let said = house.say(format!("{method} /api/v2/toc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(
            said.text.starts_with("HTTP/1.1 405 ") && said.text.contains("\r\nallow: GET, POST, OPTIONS\r\n"),
            "{method}: {}",
            said.text
        );
        assert_eq!(said.text.ends_with("\r\n\r\n"), method == "HEAD", "an answer to HEAD, and only that, has no body");
    }
    let mut raw = house.raw().await;
    raw.write_all(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut start = [0; 13];
    raw.read_exact(&mut start).await.unwrap();
    assert_eq!(start, *b"HTTP/1.1 405 ");
    assert!(house.fake.is_untouched().await);
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_413_before_it_is_there() {
    let fake = Fake::start().await;
    let mut small = ready("alice", 0, fake.port);
    small.limits = sq_agent::route::RouteLimits { body_max: 1_000, ..LIMITS };
    let host = Host::start(&[small]).await;
    for (fields, body) in [
        ("Content-Length: 1001\r\n", String::new()),
        ("Content-Length: 9999999999999\r\n", String::new()),
        ("Transfer-Encoding: chunked\r\n", format!("3e9\r\n{}", "x".repeat(1_001))),
    ] {
        let mut raw = host.client().raw(b"http/1.1").await.unwrap();
        let token = host.token("alice");
        let head = format!("POST /api/v2/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{fields}\r\n{body}");
        raw.write_all(head.as_bytes()).await.unwrap();
        let mut start = [0; 13];
        timeout(DEADLINE, raw.read_exact(&mut start)).await.expect("no answer before the body is whole").unwrap();
        assert_eq!(start, *b"HTTP/1.1 413 ");
    }
    assert!(fake.is_untouched().await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_in_its_turn_behind_the_answers_before_it() {
    let house = House::new().await;
    let mut raw = house.raw().await;
    let good = "GET /api/v2/toc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n\r\n";
    let bad = "GET /api/v2/toc HTTP/1.1\r\nHost: x\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n\r\n";
    raw.write_all(&replace(format!("{good}{bad}{good}").as_bytes(), &house.host.token("alice"))).await.unwrap();
    house.fake.next().await.answer("200 OK", "first").await;
    let said = Said::to_the_end(&mut raw).await;
    assert_eq!(said.answers(), 2, "{}", said.text);
    let (first, second) = said.text.split_at(said.text.rfind("HTTP/1.1 ").unwrap());
    assert!(first.starts_with("HTTP/1.1 200 ") && first.ends_with("first"), "{first}");
    Said { text: second.to_owned() }.is_refusal(400, "bad-request", bad);
    assert!(house.fake.is_untouched().await);
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_on_one_connection_are_told_apart_whatever_their_pieces() {
    let house = House::new().await;
    let mut raw = house.raw().await;
    let field = "Host: x\r\nAuthorization: Bearer TOKEN\r\n";
    let all = format!(
        "POST /api/v2/update?1 HTTP/1.1\r\n{field}Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nT: x\r\n\r\n\
         \r\nPOST /api/v2/update?2 HTTP/1.1\r\n{field}Content-Length: 5\r\n\r\nworldGET /api/v2/toc?3 HTTP/1.1\r\n{field}Connection: close\r\n\r\n"
    );
    let bytes = replace(all.as_bytes(), &house.host.token("alice"));
    let sending = tokio::spawn(async move {
        for piece in bytes.chunks(17) {
            raw.write_all(piece).await.unwrap();
            raw.flush().await.unwrap();
        }
        Said::to_the_end(&mut raw).await
    });
    for (target, body) in [("POST /api/v2/update?1 ", "hello"), ("POST /api/v2/update?2 ", "world"), ("GET /api/v2/toc?3 ", "")] {
        let seen = house.fake.next().await;
        assert!(seen.head.starts_with(target), "{}", seen.head);
        assert_eq!(seen.body, body.as_bytes());
        seen.answer("200 OK", body).await;
    }
    assert_eq!(sending.await.unwrap().answers(), 3);
    house.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_head_is_just_coming_when_the_proxy_ends_is_still_answered() {
    let house = House::new().await;
    let (mut raw, mut idle) = (house.raw().await, house.raw().await);
    let good = replace(b"GET /api/v2/toc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n\r\n", &house.host.token("alice"));
    let (start, rest) = good.split_at(20);
    // Whole once, so that the second one is seen to have begun.
    raw.write_all(&good).await.unwrap();
    house.fake.next().await.answer("200 OK", "first").await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"first") {
        raw.read_buf(&mut answer).await.unwrap();
    }
    raw.write_all(start).await.unwrap();
    raw.flush().await.unwrap();
    tokio::time::timeout(std::time::Duration::from_millis(100), raw.read_u8()).await.expect_err("nothing comes back yet");
    let House { host, fake } = house;
    let ending = tokio::spawn(host.stop());
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "an idle connection ends");
    raw.write_all(rest).await.unwrap();
    fake.next().await.answer("200 OK", "second").await;
    let said = Said::to_the_end(&mut raw).await;
    assert!(said.text.starts_with("HTTP/1.1 200 ") && said.text.ends_with("second"), "{}", said.text);
    ending.await.unwrap();
}
