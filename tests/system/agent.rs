//! The agent may die or be told to end; what it started goes on, or ends with it, as it should.

use rustix::process::Signal;
use sq_agent::admin::status::Status;

use crate::support::{
    eventually,
    host::{Host, tenant},
    processes::{ended_within, lives, signal},
};

const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";

fn starts(status: &Status) -> Vec<(String, Option<u32>, u64)> {
    status.tenants.iter().map(|t| (t.id.clone(), t.pid, t.epoch)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_leaves_all_serving_and_the_next_one_adopts_it() {
    let mut host = Host::start(&["ada", "bob"]).await;
    let before = host.settled().await;
    let ada = host.user("ada");
    assert_eq!(ada.post(WRITE, b"before").await.status, 200);
    host.end_agent(Signal::KILL);
    assert_eq!(ada.get(READ).await.text(), "before");
    assert_eq!(ada.post(WRITE, b"while no agent ran").await.status, 200);

    let after = host.launch().await;
    assert_eq!(starts(&after), starts(&before), "the same processes, the same starts");
    assert_eq!(after.proxy.pid, before.proxy.pid, "the same proxy");
    assert!(after.agent.generation >= before.agent.generation);
    host.assert_matches_proc(&after);
    assert_eq!(ada.get(READ).await.text(), "while no agent ran");

    // What was adopted is watched as if it were its own child.
    signal(tenant(&after, "bob").pid.unwrap(), Signal::KILL);
    let restarted = host.until("bob is back", |status| starts(status) != starts(&after) && host.as_wanted(status)).await;
    assert_eq!(tenant(&restarted, "bob").epoch, tenant(&after, "bob").epoch + 1);
    assert_eq!(tenant(&restarted, "ada").pid, tenant(&after, "ada").pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_no_agent_ran_is_made_good_by_the_next_one() {
    let mut host = Host::start(&["ada", "bob", "cleo"]).await;
    let before = host.settled().await;
    host.end_agent(Signal::KILL);
    let pid = |id: &str| tenant(&before, id).pid.unwrap();
    signal(pid("ada"), Signal::KILL);
    assert!(ended_within(pid("ada"), std::time::Duration::from_secs(5)));
    host.edit(|wanted| {
        wanted.remove("bob");
        wanted.add("dan");
    });
    let after = host.launch().await;
    host.assert_matches_proc(&after);
    assert_eq!(tenant(&after, "cleo").pid, Some(pid("cleo")));
    assert!(tenant(&after, "ada").epoch > tenant(&before, "ada").epoch);
    assert!(!lives(pid("bob")));
    assert!(host.data_dir("bob").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_and_a_killed_proxy_come_back_together() {
    let mut host = Host::start(&["ada"]).await;
    let before = host.settled().await;
    host.end_agent(Signal::KILL);
    signal(before.proxy.pid.unwrap(), Signal::KILL);
    let after = host.launch().await;
    assert_ne!(after.proxy.pid, before.proxy.pid);
    assert_eq!(starts(&after), starts(&before));
    assert_eq!(host.user("ada").get("/api/v2/version?p=x").await.text(), "0.6.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_refuses_and_says_who_is_there() {
    let host = Host::start(&["ada"]).await;
    let before = host.settled().await;
    let second = host.cli(&["run"]);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.err.contains(&format!("another sq-agent (pid {}, since 20", host.agent_pid())), "{second:?}");
    let after = host.settled().await;
    assert_eq!((starts(&after), after.proxy.pid), (starts(&before), before.proxy.pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_told_to_end_leaves_nothing_and_exits_with_0() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut host = Host::start(&["ada", "bob"]).await;
        let ada = host.user("ada");
        assert_eq!(ada.post(WRITE, b"kept").await.status, 200);
        assert_eq!(host.end_agent(signal), Some(0), "{signal:?}: {}", host.account());
        assert_eq!(host.alive(), [], "{signal:?}");
        host.launch().await;
        assert_eq!(ada.get(READ).await.text(), "kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_is_asked_for_is_not_noticed_by_a_reader() {
    let host = Host::start(&["ada"]).await;
    let before = host.settled().await;
    let ada = host.user("ada");
    assert_eq!(ada.post(WRITE, b"here").await.status, 200);
    let asked = host.cli(&["restart", "ada"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    eventually("the sq is another one, and each read on the way succeeds", || async {
        let answer = ada.get(READ).await;
        assert_eq!((answer.status, answer.text()), (200, "here"));
        host.status().is_some_and(|status| tenant(&status, "ada").epoch > tenant(&before, "ada").epoch && host.as_wanted(&status))
    })
    .await;
    assert_eq!(host.cli(&["restart", "eve"]).code, 1);
}
