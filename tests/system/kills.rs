//! An sq or the proxy is killed under load: requests wait and succeed, and nobody gets another's answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::support::{
    DEADLINE,
    client::{Http, Upload},
    eventually,
    host::{Host, User, tenant},
    processes::{self, signal},
};

const USERS: [&str; 3] = ["ada", "bob", "cleo"];
/// Readers of each user.
const READERS: usize = 4;
const KILLS: usize = 5;
const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";

/// What the readers saw.
#[derive(Default)]
struct Tally {
    good: AtomicUsize,
    /// 502: sq was killed between request and answer. The proxy may not send such a request again.
    broken_off: AtomicUsize,
}

/// Reads its own text until `done`; any other text or status ends the test.
async fn read_on(user: User, name: &'static str, tally: Arc<Tally>, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        let answer = user.get(READ).await;
        match answer.status {
            200 => {
                assert_eq!(answer.text(), format!("this is {name}'s"), "somebody else's answer, or a torn one");
                tally.good.fetch_add(1, Ordering::Relaxed);
            }
            502 => _ = tally.broken_off.fetch_add(1, Ordering::Relaxed),
            _ => panic!("{name}: {answer:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sq_killed_under_load_is_back_and_its_requests_wait_and_succeed() {
    let host = Host::start(&USERS).await;
    let (done, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let mut readers = Vec::new();
    for name in USERS {
        let user = host.user(name);
        assert_eq!(user.post(WRITE, format!("this is {name}'s").as_bytes()).await.status, 200);
        readers.extend((0..READERS).map(|_| tokio::spawn(read_on(user.clone(), name, tally.clone(), done.clone()))));
    }
    for round in 0..KILLS {
        let name = USERS[round % USERS.len()];
        let status = host.settled().await;
        let (pid, epoch) = (tenant(&status, name).pid.unwrap(), tenant(&status, name).epoch);
        signal(pid, Signal::KILL);
        host.until("it runs again", |status| tenant(status, name).epoch > epoch && host.as_wanted(status)).await;
        let before = tally.good.load(Ordering::Relaxed);
        eventually("the readers go on", || async { tally.good.load(Ordering::Relaxed) > before + USERS.len() * READERS }).await;
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        tokio::time::timeout(DEADLINE, reader).await.unwrap().unwrap();
    }
    // At each kill, at most every reader of that one user was between request and answer.
    let (good, broken_off) = (tally.good.load(Ordering::Relaxed), tally.broken_off.load(Ordering::Relaxed));
    assert!(broken_off <= KILLS * READERS, "{broken_off} broke off, {good} were good");
    assert!(good > 100, "{good}");
    let log = std::fs::read_to_string(host.state_dir().join("access.log")).unwrap();
    let parked = log.lines().filter(|line| line.contains("\"status\":200") && !line.contains("\"ms_parked\":0.0")).count();
    assert!(parked > 0, "no request waited: the kills hit nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_an_sq_that_was_killed_waits_for_the_next_one() {
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    assert_eq!(ada.post(WRITE, b"still here").await.status, 200);
    for _ in 0..3 {
        let status = host.settled().await;
        signal(tenant(&status, "ada").pid.unwrap(), Signal::KILL);
        // Whether the proxy reads the row before or after the agent noticed: the request goes out to nobody, waits, and succeeds.
        assert!(processes::ended_within(tenant(&status, "ada").pid.unwrap(), Duration::from_secs(5)));
        let answer = ada.get(READ).await;
        assert_eq!((answer.status, answer.text()), (200, "still here"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_wait_while_the_proxy_is_dead_are_served_by_the_next_one() {
    const WAITING: usize = 20;
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    assert_eq!(ada.post(WRITE, b"still here").await.status, 200);
    let proxy = host.settled().await.proxy.pid.unwrap();
    let held = ada.client.connect(Http::One).await.unwrap();
    // A stopped proxy accepts nothing: what connects from here on waits in the backlog.
    processes::freeze(proxy);
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        waiting.push(TcpStream::connect(ada.client.address()).await.unwrap());
    }
    signal(proxy, Signal::KILL);
    for stream in waiting {
        let served = async {
            let tls = ada.client.tls_over(stream, Http::One).await?;
            ada.client.send_over(tls, Http::One, ada.request(Method::GET, READ, Upload::default())).await
        };
        let answer = tokio::time::timeout(DEADLINE, served).await.unwrap().unwrap();
        assert_eq!((answer.status, answer.text()), (200, "still here"));
    }
    let lost = ada.client.send_over(held, Http::One, ada.request(Method::GET, READ, Upload::default())).await;
    assert!(lost.is_err(), "a connection that the dead proxy had accepted ends: {lost:?}");
    let after = host.settled().await;
    assert_ne!(after.proxy.pid, Some(proxy));
    host.assert_matches_proc(&after);
    assert_eq!(host.proxies().len(), 1);
}
