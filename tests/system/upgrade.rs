//! The agent and its proxy are replaced by another program while people work: nobody notices.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use http::{Method, Request};
use rustix::process::Signal;

use crate::support::{
    client::{Answer, Http, Lost, Session, Upload},
    eventually,
    host::{Host, SQ_AGENT, User},
    processes::signal,
};

const USERS: [&str; 4] = ["ada", "bob", "cleo", "dan"];
const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";

/// `UPGRADES=100 cargo test --test system upgrade` does more of them.
fn upgrades() -> usize {
    std::env::var("UPGRADES").map_or(6, |n| n.parse().expect("UPGRADES is a number"))
}

/// Writes and reads a text of its own in turn until `done`, over connections that are kept (or not); anything but the right answer
/// ends the test.
async fn work(user: User, name: &'static str, http: Http, keep: bool, answered: Arc<AtomicUsize>, done: Arc<AtomicBool>) {
    let mut session = user.client.session(http);
    let mut round = 0_u64;
    while !done.load(Ordering::Relaxed) {
        let text = format!("{name} {round}");
        let target = format!("/api/v2/update?p={name}-{http:?}-{keep}&c=1.1.1/1.1.1/1.1.1");
        let write = || user.request(Method::POST, &target, Upload::whole(text.clone().into_bytes()));
        let written = ask(&mut session, write).await.unwrap_or_else(|error| panic!("{name} {http:?} {keep}, write {round}: {error:?}"));
        assert_eq!(written.status, 200, "{name}: {written:?}");
        let read = ask(&mut session, || user.request(Method::GET, &target.replace("update", "select"), Upload::default())).await;
        let read = read.unwrap_or_else(|error| panic!("{name} {http:?} {keep}, read {round}: {error:?}"));
        assert_eq!((read.status, read.text()), (200, text.as_str()), "{name}: not what was written just before");
        answered.fetch_add(2, Ordering::Relaxed);
        round += 1;
        if !keep {
            session = user.client.session(http);
        }
    }
}

/// Sends a request, once more over another connection where the server went away in due form before it took it: that GOAWAY names the
/// last stream that it takes, and a client sends what came after anew (RFC 9113, 6.8).
async fn ask(session: &mut Session, request: impl Fn() -> Request<Upload>) -> Result<Answer, Lost> {
    loop {
        match session.send(request()).await {
            Err(error) if format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)") => {}
            outcome => return outcome,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_request_and_restart_no_sq() {
    let host = Host::start(&USERS).await;
    let before = host.instances();
    let agent = host.status().unwrap().agent.pid;
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut workers = Vec::new();
    for name in USERS {
        for (http, keep) in [(Http::One, true), (Http::One, false), (Http::Two, true)] {
            workers.push(tokio::spawn(work(host.user(name), name, http, keep, answered.clone(), done.clone())));
        }
    }
    for n in 0..upgrades() {
        let proxy = host.until("the proxy is up", |status| status.proxy.pid.is_some()).await.proxy.pid;
        let so_far = answered.load(Ordering::Relaxed);
        let ran = host.cli(&["upgrade"]);
        assert_eq!(ran.code, 0, "upgrade {n}: {}{}", ran.out, host.account());
        let status = host
            .until("the first process is the agent again", |status| {
                status.agent.pid == agent && status.proxy.pid.is_some() && status.proxy.pid != proxy && host.as_wanted(status)
            })
            .await;
        assert_eq!(status.tenants.iter().map(|tenant| tenant.restarts).sum::<u64>(), 0);
        eventually("the work goes on", async || answered.load(Ordering::Relaxed) > so_far + 20).await;
        assert!(workers.iter().all(|worker| !worker.is_finished()), "a worker gave up");
    }
    done.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(host.instances(), before, "the same processes");
    eprintln!("{} upgrades, {} requests, none failed", upgrades(), answered.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_program_that_is_not_fit_is_given_up_and_the_old_one_goes_on() {
    let host = Host::start(&["ada"]).await;
    let user = host.user("ada");
    assert_eq!(user.post(WRITE, b"hello").await.status, 200);
    let before = (host.status().unwrap().agent.pid, host.status().unwrap().proxy.pid, host.instances());
    let script = |name: &str, text: &str| {
        let path = host.root().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (exe, says) in [
        ("/no/such/sq-agent".to_owned(), "cannot be started"),
        ("/bin/true".to_owned(), "ended before"),
        (script("mute", "#!/bin/sh\nexec sleep 30\n"), "silent for 5 s"),
    ] {
        let ran = host.cli(&["upgrade", "--exe", &exe]);
        assert_eq!(ran.code, 1, "{exe}: {}", ran.out);
        assert!(ran.err.contains(says) && ran.err.contains("not fit"), "{exe}: {}", ran.err);
        let status = host.settled().await;
        assert_eq!((status.agent.pid, status.proxy.pid, host.instances()), before, "{exe}");
        assert_eq!(user.get(READ).await.text(), "hello");
    }
}

#[tokio::test]
async fn a_program_that_dies_as_it_takes_over_is_given_up_and_the_old_one_goes_on() {
    let host = Host::start(&["ada", "bob"]).await;
    let user = host.user("ada");
    assert_eq!(user.post(WRITE, b"hello").await.status, 200);
    let (agent, before) = (host.status().unwrap().agent.pid, host.instances());
    // Once it has said that it could take over, it is killed.
    let path = host.root().join("doomed");
    let text = format!(
        "#!/bin/sh\nexec 3<&0\n{SQ_AGENT} \"$@\" <&3 3<&- &\nchild=$!\n(exec 3<&-; while ! tail -n 3 {} | grep -q 'could take over'; do :; done; kill -9 $child) &\nwait $child\n",
        host.agent_log().display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = host.cli(&["upgrade", "--exe", path.to_str().unwrap()]);
    let status = host.settled().await;
    assert_eq!(status.agent.pid, agent);
    assert_eq!(host.instances(), before);
    assert_eq!(user.get(READ).await.text(), "hello");
    assert!(ran.code == 1 && ran.err.contains("old one goes on"), "{} {}{}", ran.code, ran.err, host.account());
    // And another upgrade works.
    let ran = host.cli(&["upgrade"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(user.get(READ).await.text(), "hello");
}

#[tokio::test]
async fn an_exit_after_an_upgrade_is_still_known_by_its_signal() {
    let host = Host::start(&["ada"]).await;
    assert_eq!(host.cli(&["upgrade"]).code, 0);
    let agent = host.agent_pid();
    let status = host.until("the upgrade is over", |status| status.agent.pid == agent && host.as_wanted(status)).await;
    signal(status.tenants[0].pid.unwrap(), Signal::KILL);
    let status = host.until("it is restarted", |status| status.tenants[0].restarts == 1 && host.as_wanted(status)).await;
    assert_eq!(status.tenants[0].last_exit.as_deref(), Some("signal 9 (SIGKILL)"));
}
