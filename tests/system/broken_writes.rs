//! A write breaks off: whoever dies over it, the text is as it was before, the client is told so where there is one, and writing goes on.

use std::{fs, path::PathBuf, time::Duration};

use http::Method;
use rustix::process::Signal;
use sq_agent::{admin::status::Status, guard};

use crate::support::{
    client::{Answer, Lost, Upload},
    eventually,
    host::{Host, User, tenant},
    processes::{ended_within, freeze, naming, signal},
};

const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
const OLD: &str = "what was there before, and must stay";
const NEW: &str = "what is being written";

/// A host with a text, and a write of another one that sq has and does not answer.
struct Broken {
    host: Host,
    user: User,
    sq: u32,
    write: tokio::task::JoinHandle<Result<Answer, Lost>>,
}

impl Broken {
    async fn off() -> Self {
        // Bob's sq goes on, and with it the network in which the proxy is.
        let host = Host::start(&["ada", "bob"]).await;
        let (user, writer) = (host.user("ada"), host.user("ada"));
        assert_eq!(user.post(WRITE, OLD.as_bytes()).await.status, 200);
        // The first write to a start of sq makes it read the phext again: let that be over.
        assert_eq!(user.post(WRITE, OLD.as_bytes()).await.status, 200);
        let sq = host.instances().into_iter().find(|sq| sq.id == "ada").unwrap().pid;
        freeze(sq);
        let write = tokio::spawn(async move { writer.send(Method::POST, WRITE, Upload::whole(NEW.as_bytes().to_vec())).await });
        let broken = Self { host, user, sq, write };
        eventually("the write is with sq", async || fs::read(broken.marker()).is_ok_and(|marker| marker.starts_with(b"{"))).await;
        broken
    }

    fn user_dir(&self) -> PathBuf {
        self.host.state_dir().join("users/ada")
    }

    fn marker(&self) -> PathBuf {
        self.user_dir().join("guard/marker")
    }

    fn phext(&self) -> PathBuf {
        self.host.data_dir("ada").join("diary.phext")
    }

    /// As sq does it, and is killed over it: the file is truncated, then written in part.
    fn sq_dies_halfway(&self) {
        fs::write(self.phext(), &NEW[..7]).unwrap();
        signal(self.sq, Signal::KILL);
    }

    async fn is_as_before(&self) {
        let ready = |status: &Status| tenant(status, "ada").state == "ready";
        self.host.within(Duration::from_secs(30), "ada is ready", ready).await;
        let answer = self.user.get(READ).await;
        assert_eq!(answer.text(), OLD, "{}", self.host.account());
        assert_eq!(fs::read_to_string(self.phext()).unwrap(), OLD);
        assert!(!guard::is_in_doubt(&self.user_dir()).unwrap());
        assert_eq!(self.user.post(WRITE, b"and on").await.status, 200);
        assert_eq!(self.user.get(READ).await.text(), "and on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sq_that_dies_over_a_write_leaves_the_text_as_it_was_and_the_client_is_told() {
    let mut broken = Broken::off().await;
    broken.sq_dies_halfway();
    let answer = (&mut broken.write).await.unwrap().unwrap();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("urn:sq-agent:problem:not-applied"), "{}", answer.text());
    assert!(answer.headers.contains_key("retry-after"));
    broken.is_as_before().await;
    assert!(broken.host.logged().contains("write_undone"), "{}", broken.host.logged());
    let status = broken.host.status().unwrap();
    assert!(tenant(&status, "ada").last_undone.as_ref().is_some_and(|text| text.contains("diary.phext")), "{status:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_dies_over_a_write_leaves_the_text_as_it_was_though_sq_wrote_it() {
    let mut broken = Broken::off().await;
    for proxy in broken.host.proxies() {
        signal(proxy, Signal::KILL);
    }
    assert!((&mut broken.write).await.unwrap().is_err(), "nobody was there to answer");
    signal(broken.sq, Signal::CONT);
    // Nobody was told that it was written; the agent sees the marker, restarts sq, and puts the text back.
    let patience = Duration::from_secs(30);
    broken.host.within(patience, "ada is restarted", |status| tenant(status, "ada").pid.is_some_and(|pid| pid != broken.sq)).await;
    broken.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_dead_meanwhile_puts_the_text_back_before_the_start() {
    let mut broken = Broken::off().await;
    broken.host.end_agent(Signal::KILL);
    broken.sq_dies_halfway();
    // Nobody starts it: told after the longest wait, and still true.
    let answer = (&mut broken.write).await.unwrap().unwrap();
    assert!(answer.status == 503 && answer.text().contains("not-applied"), "{}", answer.text());
    broken.host.spawn_agent();
    broken.host.settled().await;
    broken.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_after_it_put_the_text_back_is_followed() {
    let mut broken = Broken::off().await;
    broken.host.end_agent(Signal::KILL);
    broken.sq_dies_halfway();
    broken.host.spawn_agent_that_dies_at("recover.put_back");
    let agent = broken.host.agent_pid();
    assert!(ended_within(agent, Duration::from_secs(20)), "{}", broken.host.account());
    broken.host.reap_agent();
    broken.host.spawn_agent();
    broken.host.settled().await;
    let _answer = (&mut broken.write).await;
    broken.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_dies_is_followed_by_another_and_reading_goes_on() {
    let host = Host::start(&["ada"]).await;
    let user = host.user("ada");
    assert_eq!(user.post(WRITE, OLD.as_bytes()).await.status, 200);
    let guards = || naming(&host.state_dir().join("users")).into_iter().filter(|seen| seen.args.iter().any(|word| word == "--serve"));
    let first: Vec<u32> = guards().map(|seen| seen.pid).collect();
    assert_eq!(first.len(), 1);
    signal(first[0], Signal::KILL);
    assert_eq!(user.get(READ).await.text(), OLD);
    // The write waits for the next guard.
    let answer = user.post(WRITE, NEW.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(guards().all(|seen| seen.pid != first[0]) && guards().count() == 1);
    assert_eq!(user.get(READ).await.text(), NEW);
}
