//! What a tier limits is limited, and said in headers.

use std::time::{Duration, Instant};

use http::Method;

use crate::support::{
    client::{Http, Upload},
    eventually,
    host::Host,
};

const VERSION: &str = "/api/v2/version?p=x";

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_a_minute_with_burst_20_admits_21_at_once_and_then_one_each_600_ms() {
    const AT_ONCE: usize = 40;
    const EACH: Duration = Duration::from_millis(600);
    let mut host = Host::prepare(|wanted| wanted.add("ada").tier = "metered");
    host.launch().await;
    let ada = host.user("ada");
    // The connections stand before the first request, so that handshakes take none of the time.
    let mut connections = Vec::new();
    for _ in 0..AT_ONCE {
        connections.push(ada.client.connect(Http::One).await.unwrap());
    }
    let began = Instant::now();
    let requests = connections.into_iter().map(|connection| {
        let ada = ada.clone();
        tokio::spawn(async move {
            let request = ada.request(Method::GET, VERSION, Upload::default());
            ada.client.send_over(connection, Http::One, request).await.unwrap()
        })
    });
    let mut answers = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        answers.push(request.await.unwrap());
    }
    let since = began.elapsed();
    let admitted = answers.iter().filter(|answer| answer.status == 200).count();
    let grown = usize::try_from(since.as_millis() / EACH.as_millis()).unwrap();
    assert!((21..=21 + grown).contains(&admitted), "{admitted} of {AT_ONCE} in {since:?}");
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!(refused.status, 429);
        assert_eq!(refused.header("retry-after"), "1");
        assert_eq!(refused.header("ratelimit-policy"), "\"default\";q=100;w=60");
        assert!(refused.header("ratelimit").starts_with("\"default\";r=0;t="), "{refused:?}");
        assert_eq!(refused.header("content-type"), "application/problem+json");
    }
    // Then one each 600 ms: after the last look and before the next one is due, none; soon after, one.
    let next = Instant::now();
    eventually("the next one is admitted", || async { ada.get(VERSION).await.status == 200 }).await;
    assert!(next.elapsed() <= 2 * EACH, "{:?}", next.elapsed());
    assert_eq!(ada.get(VERSION).await.status, 429, "and only one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_tiers_limit_gets_413_and_is_not_stored() {
    let mut host = Host::prepare(|wanted| wanted.add("ada").tier = "small");
    host.launch().await;
    let ada = host.user("ada");
    let (write, read) = ("/api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1", "/api/v2/select?p=x&c=1.1.1/1.1.1/1.1.1");
    let fits = vec![b'a'; 4_096];
    assert_eq!(ada.post(write, &fits).await.status, 200);
    let over = vec![b'b'; 4_097];
    for http in [Http::One, Http::Two] {
        for upload in [Upload::whole(over.clone()), Upload::pieces(&over, 1_000)] {
            let answer = ada.client.send(http, ada.request(Method::POST, write, upload)).await.unwrap();
            assert_eq!((answer.status, answer.text().contains("4096")), (413, true), "{http:?}: {answer:?}");
        }
    }
    assert_eq!(ada.get(read).await.body, fits);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_tier_holds_for_the_next_request() {
    let mut host = Host::prepare(|wanted| wanted.add("ada").tier = "small");
    host.launch().await;
    let ada = host.user("ada");
    let write = "/api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1";
    assert_eq!(ada.post(write, &[b'a'; 5_000]).await.status, 413);
    host.edit(|wanted| wanted.tenant("ada").tier = "free");
    host.settled().await;
    assert_eq!(ada.post(write, &[b'a'; 5_000]).await.status, 200);
}
