//! The agent and its proxy are replaced by another program while people work: nobody notices.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::process::Signal;

use crate::support::{
    host::{Host, SQ_AGENT},
    processes::signal,
    work::Work,
};

const USERS: [&str; 4] = ["ada", "bob", "cleo", "dan"];
const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";

/// `UPGRADES=100 cargo test --test system upgrade` does more of them.
fn upgrades() -> usize {
    std::env::var("UPGRADES").map_or(6, |n| n.parse().expect("UPGRADES is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_request_and_restart_no_sq() {
    let host = Host::start(&USERS).await;
    let before = host.instances();
    let agent = host.status().unwrap().agent.pid;
    let work = Work::of(&host, &USERS);
    for n in 0..upgrades() {
        let proxy = host.until("the proxy is up", |status| status.proxy.pid.is_some()).await.proxy.pid;
        let ran = host.cli(&["upgrade"]);
        assert_eq!(ran.code, 0, "upgrade {n}: {}{}", ran.out, host.account());
        let status = host
            .until("the first process is the agent again", |status| {
                status.agent.pid == agent && status.proxy.pid.is_some() && status.proxy.pid != proxy && host.as_wanted(status)
            })
            .await;
        assert_eq!(status.tenants.iter().map(|tenant| tenant.restarts).sum::<u64>(), 0);
        work.goes_on().await;
    }
    let answered = work.end().await;
    assert_eq!(host.instances(), before, "the same processes");
    eprintln!("{} upgrades, {answered} requests, none failed", upgrades());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reloads_all_the_time_keeps_no_process_from_becoming_the_agent_again() {
    let host = Host::start(&["ada"]).await;
    let agent = host.status().unwrap().agent.pid;
    for n in 0..5 {
        let done = Arc::new(AtomicBool::new(false));
        let reloading = {
            let done = done.clone();
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    signal(agent, Signal::HUP);
                    std::thread::yield_now();
                }
            })
        };
        let ran = host.cli(&["upgrade"]);
        done.store(true, Ordering::Relaxed);
        reloading.join().unwrap();
        assert_eq!(ran.code, 0, "upgrade {n}: {}{}", ran.out, host.account());
        host.until("the first process is the agent again", |status| status.agent.pid == agent).await;
    }
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
