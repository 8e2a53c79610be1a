//! Two proxies side by side: one rate limit, and one write at a time.

use std::time::Duration;

use http::{Method, StatusCode};
use sq_agent::route::RouteLimits;
use tokio::task::JoinSet;

use super::{
    busy::Busy,
    client::{Connection, Http, full, request},
    host::{Host, LIMITS, ready},
    replace::{is_retiring, retired},
    support::eventually,
};

/// Replaces the proxy. Returns `count` connections to the old one, which each may ask once more.
async fn two_proxies(host: &mut Host, count: usize) -> Vec<Connection> {
    let mut to_old = Vec::new();
    for _ in 0..count {
        to_old.push(host.client().connect(Http::One).await.unwrap());
    }
    host.agent_that(true).await;
    is_retiring(host).await;
    to_old
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_together_admit_no_more_than_one_alone() {
    let busy = Busy::start(Duration::ZERO).await;
    let mut alice = ready("alice", 0, busy.port);
    alice.limits = RouteLimits { interval_ns: 3_600_000_000_000, burst: 20, ..LIMITS };
    let mut host = Host::start(&[alice]).await;
    let to_old = two_proxies(&mut host, 15).await;
    let (client, token) = (host.client(), host.token("alice"));
    let mut asked = JoinSet::new();
    for mut connection in to_old {
        let request = request(Method::GET, &token, "/api/v2/toc", full(""));
        asked.spawn(async move {
            let answer = connection.ask(request).await.unwrap();
            assert_eq!(answer.header("connection"), "close", "from the old one");
            answer.status
        });
    }
    for _ in 0..15 {
        let (client, token) = (client.clone(), token.clone());
        asked.spawn(async move { client.get(&token, "/api/v2/toc").await.status });
    }
    let answers = asked.join_all().await;
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(StatusCode::OK), count(StatusCode::TOO_MANY_REQUESTS)), (21, 9));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_together_let_in_no_more_in_a_day_than_the_quota_and_so_does_the_next_agent() {
    let busy = Busy::start(Duration::ZERO).await;
    let mut alice = ready("alice", 0, busy.port);
    alice.limits = RouteLimits { requests_per_day: 20, ..LIMITS };
    let mut host = Host::start(&[alice]).await;
    let to_old = two_proxies(&mut host, 15).await;
    let (client, token) = (host.client(), host.token("alice"));
    let mut asked = JoinSet::new();
    for mut connection in to_old {
        let request = request(Method::GET, &token, "/api/v2/toc", full(""));
        asked.spawn(async move { connection.ask(request).await.unwrap().status });
    }
    for _ in 0..15 {
        let (client, token) = (client.clone(), token.clone());
        asked.spawn(async move { client.get(&token, "/api/v2/toc").await.status });
    }
    let answers = asked.join_all().await;
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(StatusCode::OK), count(StatusCode::TOO_MANY_REQUESTS)), (20, 10));
    let slot = host.activity.slot(0).unwrap().snapshot();
    assert_eq!((slot.requests, slot.requests_that_day), (30, 20), "all are counted, and those that were let in");
    assert_eq!(retired(&host).await.1, Some(0));
    // A proxy that dies, and an agent that begins anew.
    super::agent::kill(host.pid);
    host.pid = host.until_up().await;
    host.agent().await;
    let refused = host.client().get(&token, "/api/v2/toc").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.text().contains("urn:sq-agent:problem:quota-used"), "{}", refused.text());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_write_to_a_tenant_one_at_a_time() {
    let busy = Busy::start(Duration::from_millis(20)).await;
    let mut host = Host::start(&[ready("alice", 0, busy.port)]).await;
    let to_old = two_proxies(&mut host, 10).await;
    let (client, token) = (host.client(), host.token("alice"));
    let mut asked = JoinSet::new();
    for mut connection in to_old {
        let request = request(Method::POST, &token, "/api/v2/update", full("old"));
        asked.spawn(async move { connection.ask(request).await.unwrap().status });
    }
    for _ in 0..10 {
        let (client, token) = (client.clone(), token.clone());
        asked.spawn(async move { client.post(&token, "/api/v2/update", "new").await.status });
    }
    assert!(asked.join_all().await.iter().all(|status| *status == StatusCode::OK));
    assert_eq!(busy.writes(), (20, 1), "all writes, and the most at once");
    assert_eq!(retired(&host).await.1, Some(0));
    host.stop().await;
}

/// How long the killed one's write would have taken.
const LONG: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_killed_in_the_middle_of_a_write_keeps_the_other_from_writing_only_until_it_is_dead() {
    let busy = Busy::start(LONG).await;
    let quick = Busy::start(Duration::from_millis(1)).await;
    let mut host = Host::start(&[ready("alice", 0, busy.port)]).await;
    let old = host.pid;
    let mut to_old = two_proxies(&mut host, 1).await.remove(0);
    let (client, token) = (host.client(), host.token("alice"));
    let first = request(Method::POST, &token, "/api/v2/update", full("old"));
    let lost = tokio::spawn(async move { to_old.ask(first).await });
    eventually("the old one writes", async || busy.is_writing()).await;
    host.publish(&[ready("alice", 0, quick.port)]).await;
    let waiting = tokio::spawn(async move { client.post(&token, "/api/v2/update", "new").await });
    let (reader, token) = (host.client(), host.token("alice"));
    assert_eq!(reader.get(&token, "/api/v2/toc").await.status, StatusCode::OK, "who only reads waits for nobody");
    assert_eq!((quick.writes(), host.activity.slot(0).unwrap().in_flight()), ((0, 0), 1), "the new one waits, uncounted");
    super::agent::kill(old);
    assert_eq!(waiting.await.unwrap().status, StatusCode::OK);
    assert!(lost.await.unwrap().is_err());
    assert_eq!((busy.writes(), quick.writes()), ((1, 1), (1, 1)));
    assert_eq!(retired(&host).await, (old, None));
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 0);
    host.stop().await;
}
