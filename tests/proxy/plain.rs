//! The plain port.

use std::time::{Duration, Instant};

use sq_agent::{
    proxy::front::{Challenge, Front, Trusted},
    route::RouteState,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    host::{Host, ready, row},
    support::eventually,
};

/// All that comes back for `text`, until the connection is closed.
async fn said(host: &Host, text: &str) -> String {
    let mut tcp = TcpStream::connect(host.plain.unwrap()).await.unwrap();
    tcp.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(host: &Host, target: &str) -> String {
    said(host, &format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
}

async fn plain(front: Front) -> Host {
    Host::start_behind(front, true, &[ready("alice", 0, 1)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_port_sends_to_https_says_whether_all_is_well_and_does_nothing_else() {
    let mut host = plain(Front::default()).await;
    let moved = get(&host, "/api/v2/toc?a=b%20c").await;
    let location = format!("\r\nlocation: https://localhost:{}/api/v2/toc?a=b%20c\r\n", host.address.port());
    assert!(moved.starts_with("HTTP/1.1 308 ") && moved.contains(&location), "{moved}");
    assert!(!moved.contains("strict-transport-security"), "RFC 6797, section 7.2: not over plain HTTP");
    let health = get(&host, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200 ") && health.ends_with("\r\n\r\nok\n"), "{health}");
    let with_token = format!(
        "POST /api/v2/update?p=x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 2\r\n\r\nhi",
        host.token("alice")
    );
    assert!(said(&host, &with_token).await.starts_with("HTTP/1.1 308 "));
    assert_eq!(host.activity.slot(0).unwrap().snapshot().requests, 0, "no request of a tenant is taken here");
    let two = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    assert_eq!(said(&host, &two).await.matches("HTTP/1.1").count(), 1, "one request a connection");
    assert!(said(&host, "GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400 "));

    // The next agent gets the plain port back, too.
    let (before, pid) = (host.plain, host.pid);
    host.agent().await;
    assert_eq!((host.plain, host.pid), (before, pid));
    assert!(get(&host, "/healthz").await.starts_with("HTTP/1.1 200 "));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_url_is_where_everybody_is_sent_and_a_token_is_answered_as_long_as_it_is_asked_for() {
    let challenge = Challenge::Text { token: "t0k3n".into(), answer: "t0k3n.thumb".into() };
    let host = plain(Front { public: Some("sq.example.com".into()), challenges: vec![challenge], ..Front::default() }).await;
    let moved = said(&host, "GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
    assert!(moved.contains("\r\nlocation: https://sq.example.com/x\r\n"), "{moved}");
    let answer = get(&host, "/.well-known/acme-challenge/t0k3n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nt0k3n.thumb"), "{answer}");
    host.change(|settings| settings.front.challenges.clear()).await;
    assert!(get(&host, "/.well-known/acme-challenge/t0k3n").await.starts_with("HTTP/1.1 404 "));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_long_or_too_slow_is_not_waited_for() {
    let host = plain(Front::default()).await;
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "x".repeat(17 * 1024));
    assert!(said(&host, &long).await.starts_with("HTTP/1.1 431 "));
    let started = Instant::now();
    let mut slow = TcpStream::connect(host.plain.unwrap()).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    assert!(matches!(slow.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    let took = started.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(13)).contains(&took), "{took:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancers_header_comes_before_plain_http_too() {
    let trusted = Trusted::new(vec!["127.0.0.1/32".parse().unwrap()]);
    let host = plain(Front { trusted, proxy_protocol: true, ..Front::default() }).await;
    assert_eq!(get(&host, "/healthz").await, "", "it does not come");
    let mut tcp = TcpStream::connect(host.plain.unwrap()).await.unwrap();
    tcp.write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_ends_says_so_to_whoever_still_asks() {
    let mut host = plain(Front::default()).await;
    host.publish(&[row("alice", 0, RouteState::Starting, 1, 1)]).await;
    // Connections that the first process has accepted, and that ask only after its end has begun. Each may wait for 10 s, so they come one
    // after the other for as long as that takes.
    let (address, first) = (host.plain.unwrap(), host.pid);
    let (waiting, mut waits) = tokio::sync::mpsc::channel(100);
    let come = async move || {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        waiting.send(tcp).await.unwrap();
    };
    come().await;
    // Whoever came before it has been accepted too, and by the first process, the only one so far.
    assert!(get(&host, "/healthz").await.starts_with("HTTP/1.1 200 "), "the first one serves");
    let comes = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            come().await;
        }
    });
    host.agent_that(true).await;
    comes.abort();
    assert_ne!(host.pid, first);
    eventually("the first one retires", async || host.log("proxy.log").contains("the agent says: end")).await;
    let mut told = 0;
    while let Some(mut tcp) = waits.recv().await {
        let _ = tcp.write_all(b"Host: a\r\n\r\n").await;
        let mut answer = String::new();
        let _ = tcp.read_to_string(&mut answer).await;
        told += usize::from(answer.starts_with("HTTP/1.1 503 "));
    }
    assert!(told > 0, "nobody was told");
    assert!(get(&host, "/healthz").await.starts_with("HTTP/1.1 200 "), "the new one serves");
    host.stop().await;
}
