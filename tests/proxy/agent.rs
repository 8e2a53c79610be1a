//! Agent and proxy: each may die, be replaced or be told something new without a user noticing.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use sq_agent::{
    proxy::{
        front::Addresses,
        supervisor::{ProxyEvent, Supervisor, SupervisorConfig},
    },
    secret::Secret,
};

use super::{
    client::{Http, full, request},
    fake::Fake,
    host::{Host, ready},
    support::eventually,
};

pub fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_proxy_is_replaced_and_those_who_wait_at_its_door_are_served() {
    let fake = Fake::start().await;
    let mut host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let old = host.pid;
    kill(old);
    let (client, token) = (host.client(), host.token("alice"));
    let waiting = tokio::spawn(async move { client.get(&token, "/api/v2/toc").await });
    host.event(|event| matches!(event, ProxyEvent::Down { .. })).await;
    host.pid = host.until_up().await;
    assert_ne!(host.pid, old);
    fake.next().await.answer("200 OK", "served").await;
    assert_eq!(waiting.await.unwrap().text(), "served");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_killed_proxy_do_not_count_as_in_flight_for_ever() {
    let fake = Fake::start().await;
    let mut host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let (client, token) = (host.client(), host.token("alice"));
    let lost =
        tokio::spawn(
            async move { client.connect(Http::Two).await.unwrap().ask(request(Method::GET, &token, "/api/v2/toc", full(""))).await },
        );
    let _seen = fake.next().await;
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 1);
    kill(host.pid);
    host.pid = host.until_up().await;
    assert!(lost.await.unwrap().is_err());
    assert_eq!(host.activity.slot(0).unwrap().in_flight(), 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_goes_on_without_its_agent_and_the_next_agent_adopts_it() {
    let fake = Fake::start().await;
    let mut host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let pid = host.pid;
    let mut kept = host.client().connect(Http::Two).await.unwrap();
    host.supervisor.take().unwrap().detach().await;
    let (client, token) = (host.client(), host.token("alice"));
    let answer = tokio::spawn(async move { client.get(&token, "/api/v2/toc").await });
    fake.next().await.answer("200 OK", "without an agent").await;
    assert_eq!(answer.await.unwrap().text(), "without an agent");

    host.agent().await;
    assert_eq!(host.pid, pid, "adopted, not started anew");
    let asked = request(Method::GET, &host.token("alice"), "/api/v2/toc", full(""));
    let answer = tokio::spawn(async move { kept.ask(asked).await });
    fake.next().await.answer("200 OK", "with the next").await;
    assert_eq!(answer.await.unwrap().unwrap().text(), "with the next");

    // The adopted listeners are the agent's too: a proxy that dies now loses nothing either.
    kill(pid);
    let (client, token) = (host.client(), host.token("alice"));
    let waiting = tokio::spawn(async move { client.get(&token, "/api/v2/toc").await });
    host.pid = host.until_up().await;
    fake.next().await.answer("200 OK", "served").await;
    assert_eq!(waiting.await.unwrap().text(), "served");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_settings_are_swapped_in_under_way_and_bad_ones_change_nothing() {
    let fake = Fake::start().await;
    let host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let (client, token) = (host.client(), host.token("alice"));
    let under_way = tokio::spawn(async move { client.get(&token, "/api/v2/toc").await });
    let seen = fake.next().await;

    let mut bad = host.settings.borrow().as_ref().clone();
    bad.tls_key_pem = Secret::new(*b"no key at all");
    host.settings.send_replace(Arc::new(bad));
    let refused = host.event(|event| matches!(event, ProxyEvent::Refused { .. })).await;
    assert!(matches!(&refused, ProxyEvent::Refused { why } if why.contains("private key")), "{refused:?}");
    assert_eq!(host.client().get("", "/").await.status, StatusCode::UNAUTHORIZED, "the old certificate still serves");

    let other = tempfile::tempdir().unwrap();
    let mut new = host.settings.borrow().as_ref().clone();
    (new.tls_cert_pem, new.tls_key_pem) = sq_agent::proxy::credentials::self_signed(other.path()).unwrap();
    new.token_keys[0].secret = Secret::new([b'n'; 32]);
    let client = super::client::Client::new(host.address, &new.tls_cert_pem);
    host.settings.send_replace(Arc::new(new));
    eventually("the new certificate is served", async || client.raw(b"h2").await.is_ok()).await;
    assert_eq!(client.get(&host.token("alice"), "/api/v2/toc").await.status, StatusCode::UNAUTHORIZED, "the old secret opens nothing");
    seen.answer("200 OK", "began before, ended after").await;
    assert_eq!(under_way.await.unwrap().text(), "began before, ended after");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_in_good_order_finishes_what_is_under_way() {
    let fake = Fake::start().await;
    let mut host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let mut answers = Vec::new();
    for http in [Http::One, Http::Two] {
        let (client, asked) = (host.client(), request(Method::GET, &host.token("alice"), "/api/v2/toc", full("")));
        answers.push(tokio::spawn(async move { client.ask(http, asked).await }));
    }
    let seen = [fake.next().await, fake.next().await];
    let idle = host.client().connect(Http::One).await.unwrap();
    let ending = tokio::spawn(host.supervisor.take().unwrap().shutdown(Duration::from_secs(10)));
    for seen in seen {
        seen.answer("200 OK", "to the end").await;
    }
    for answer in answers {
        assert_eq!(answer.await.unwrap().text(), "to the end");
    }
    ending.await.unwrap();
    drop(idle);
    assert!(host.log("proxy.log").contains("the proxy has ended"), "{}", host.log("proxy.log"));
    assert_eq!(host.log("access.log").lines().count(), 2, "every line is written before the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_in_time_is_cut_and_named() {
    let fake = Fake::start().await;
    let mut host = Host::start(&[ready("alice", 0, fake.port)]).await;
    let (client, token) = (host.client(), host.token("alice"));
    let cut =
        tokio::spawn(
            async move { client.connect(Http::Two).await.unwrap().ask(request(Method::GET, &token, "/api/v2/toc", full(""))).await },
        );
    let _seen = fake.next().await;
    host.supervisor.take().unwrap().shutdown(Duration::from_millis(100)).await;
    assert!(cut.await.unwrap().is_err());
    let log = host.log("proxy.log");
    assert!(
        log.lines().any(|line| line.contains("did not finish in time") && line.contains("alice") && line.contains("/api/v2/toc")),
        "{log}"
    );
    assert!(host.log("access.log").contains("\"tenant\":\"alice\""), "{}", host.log("access.log"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_no_proxy_is_tried_again_ever_more_slowly_and_said() {
    let host = Host::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut events) = tokio::sync::mpsc::channel(16);
    let supervisor = Supervisor::start(SupervisorConfig {
        state_dir: dir.path().to_owned(),
        exe: "/bin/false".into(),
        listen: Addresses { https: vec![([127, 0, 0, 1], 0).into()], plain: vec![] },
        keep: |_| {},
        kept: Vec::new(),
        routes: host.routes().await,
        activity: host.activity.clone(),
        meters: host.meters.clone(),
        access_log: host.access_log.subscribe(),
        settings: host.settings.subscribe(),
        in_force: host.in_force.clone(),
        events: sender,
        replace: false,
        network: None,
    })
    .await
    .unwrap();
    let mut pauses = Vec::new();
    while pauses.len() < 3 {
        match events.recv().await {
            Some(ProxyEvent::Down { exit, next_try }) => {
                assert!(exit.contains("exit status: 1") && exit.contains("proxy.log"), "{exit}");
                pauses.push(next_try.as_secs());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pauses, [0, 1, 2]);
    supervisor.shutdown(Duration::ZERO).await;
    host.stop().await;
}
