//! State is crash-only: the agent is killed after every single step of every action, and the next one ends in what tenants.toml says.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::Signal;
use sq_agent::crash_point::POINTS;

use crate::support::{
    host::Host,
    processes::{SeenSq, ended_within, signal},
};

const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
/// Install, drains and a back-off lie between the provocation and the point at the most.
const DIES_WITHIN: Duration = Duration::from_secs(20);

/// What makes an agent come to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provoke {
    /// A start from nothing.
    Start,
    /// A start beside instances that live.
    Adopt,
    /// A tenant more.
    Add,
    /// Another tier.
    Change,
    /// A restart of one tenant.
    Restart,
    /// One tenant less.
    Remove,
    /// Another sq.
    Program,
    /// A snapshot.
    Snapshot,
    /// A snapshot put back.
    Restore,
}

fn provoke(point: &str) -> Provoke {
    match point.split_once('.').unwrap() {
        ("adopt", _) => Provoke::Adopt,
        ("take_in", _) => Provoke::Add,
        ("apply", _) => Provoke::Change,
        ("stop", _) => Provoke::Restart,
        ("remove", _) => Provoke::Remove,
        ("snapshot", _) => Provoke::Snapshot,
        ("restore", _) => Provoke::Restore,
        ("roll_out", _) => Provoke::Program,
        _ => Provoke::Start,
    }
}

/// Two tenants with a text each, served by an agent that dies at `point` once it is provoked; then the next agent.
async fn dies_and_is_followed(point: &str) {
    let mut host = Host::start(&["ada", "bob"]).await;
    for id in ["ada", "bob"] {
        let answer = host.user(id).post(WRITE, id.as_bytes()).await;
        assert_eq!(answer.status, 200, "{point}: {}", answer.text());
    }
    let provoke = provoke(point);
    if provoke == Provoke::Restore {
        assert_eq!(host.cli(&["snapshot", "ada"]).code, 0, "{point}");
    }
    // Where the point lies in a start itself, the agent dies in it; else beside what lives.
    host.end_agent(if provoke == Provoke::Start { Signal::TERM } else { Signal::KILL });
    let before: BTreeMap<_, _> = host.instances().into_iter().map(|sq| (sq.id, sq.pid)).collect();
    host.spawn_agent_that_dies_at(point);
    if !matches!(provoke, Provoke::Start | Provoke::Adopt) {
        host.settled().await;
    }
    match provoke {
        Provoke::Start | Provoke::Adopt => {}
        Provoke::Add => host.edit(|wanted| _ = wanted.add("cleo")),
        Provoke::Change => host.edit(|wanted| wanted.tenant("ada").tier = "paid"),
        Provoke::Restart => _ = host.cli(&["restart", "ada"]),
        Provoke::Snapshot => _ = host.cli(&["snapshot", "ada"]),
        Provoke::Restore => _ = host.cli(&["restore", "ada"]),
        Provoke::Remove => host.edit(|wanted| wanted.remove("ada")),
        Provoke::Program => {
            let other = host.root().join("sq");
            std::fs::copy(&host.wanted.sq, &other).unwrap();
            host.edit(|wanted| wanted.sq = other);
        }
    }
    let agent = host.agent_pid();
    assert!(ended_within(agent, DIES_WITHIN), "the agent never came to {point}\n{}", host.account());
    assert_eq!(host.reap_agent(), None, "{point}: it was killed, and did not end by itself\n{}", host.account());

    host.spawn_agent();
    let status = host.settled().await;
    host.assert_matches_proc(&status);
    for tenant in &status.tenants {
        let user = host.user(&tenant.id);
        if tenant.id != "cleo" {
            assert_eq!(user.get(READ).await.text(), tenant.id, "{point}");
        }
        // Whoever was not concerned goes on as the same process.
        if tenant.id == "bob" && provoke != Provoke::Start && provoke != Provoke::Program {
            assert_eq!(tenant.pid, before.get("bob").copied(), "{point}: bob was restarted\n{}", host.account());
        }
    }
    assert!(host.data_dir("ada").join("diary.phext").exists(), "{point}: data is never removed");
}

async fn all_of(group: &str) {
    let points: Vec<_> = POINTS.into_iter().filter(|point| point.split_once('.').unwrap().0 == group).collect();
    assert!(!points.is_empty());
    for point in points {
        dies_and_is_followed(point).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_takes_in_tenants_toml_is_followed() {
    all_of("file").await;
    all_of("take_in").await;
    all_of("apply").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_step_of_a_start_is_followed() {
    all_of("start").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_around_a_publish_or_an_adoption_is_followed() {
    all_of("publish").await;
    all_of("adopt").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_step_of_a_stop_or_a_removal_is_followed() {
    all_of("stop").await;
    all_of("remove").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_a_snapshot_is_taken_or_put_back_is_followed() {
    all_of("snapshot").await;
    all_of("restore").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_a_roll_out_or_while_its_proxy_starts_is_followed() {
    all_of("roll_out").await;
    for point in ["proxy.spawned", "proxy.serves"] {
        dies_and_is_followed(point).await;
    }
}

/// A tenant with a text, and what serves it, under an agent that dies at `point` once it is upgraded, or its new program does.
async fn to_be_upgraded(point: &str) -> (Host, Vec<SeenSq>) {
    let mut host = Host::start(&["ada"]).await;
    assert_eq!(host.user("ada").post(WRITE, b"ada").await.status, 200, "{point}");
    let before = host.instances();
    host.end_agent(Signal::KILL);
    host.spawn_agent_that_dies_at(point);
    host.settled().await;
    (host, before)
}

/// A new program that dies at `point` leaves the old one where it was; where it had taken over already, somebody serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_program_killed_at_any_step_of_an_upgrade_is_given_up() {
    for point in ["heir.ready", "heir.inherited", "proxy.spawned", "proxy.serves", "heir.settled"] {
        let (host, before) = to_be_upgraded(point).await;
        let agent = host.agent_pid();
        let ran = host.cli(&["upgrade"]);
        assert_eq!(ran.code, 1, "{point}: {}\n{}", ran.out, host.account());
        let status = host.settled().await;
        assert_eq!(status.agent.pid, agent, "{point}: the old agent goes on");
        assert_eq!(host.instances(), before, "{point}");
        assert_eq!(host.user("ada").get(READ).await.text(), "ada", "{point}");
        // Of a proxy that the new program had started, and the old one that it had not told.
        host.until("one proxy is left", |_| host.proxies().len() == 1).await;
    }
}

/// systemd watches the process that it started. Where that dies while it hands over, systemd starts another, and the new program must not keep
/// the host from it.
#[tokio::test(flavor = "multi_thread")]
async fn under_systemd_a_new_program_makes_way_once_the_old_one_is_dead() {
    for point in ["holder.gave", "holder.followed"] {
        let mut host = Host::start(&["ada"]).await;
        assert_eq!(host.user("ada").post(WRITE, b"ada").await.status, 200, "{point}");
        let before = host.instances();
        host.end_agent(Signal::KILL);
        let notify = host.root().join("notify");
        host.spawn_agent_with(&[(sq_agent::crash_point::VARIABLE, point), ("NOTIFY_SOCKET", notify.to_str().unwrap())]);
        host.settled().await;
        let old = host.agent_pid();
        host.cli(&["upgrade"]);
        assert!(ended_within(old, DIES_WITHIN), "{point}\n{}", host.account());
        host.reap_agent();
        host.until_heirs_are_gone().await;
        host.spawn_agent();
        let status = host.settled().await;
        assert_eq!(status.agent.pid, host.agent_pid(), "{point}");
        assert_eq!(host.instances(), before, "{point}");
        assert_eq!(host.user("ada").get(READ).await.text(), "ada", "{point}");
    }
}

/// The old program dies after it gave the host away: the new one stays, as a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_program_killed_while_it_hands_over_leaves_the_new_one() {
    for point in ["holder.gave", "holder.followed", "heir.done"] {
        let (mut host, before) = to_be_upgraded(point).await;
        let old = host.agent_pid();
        host.cli(&["upgrade"]);
        let status = match point {
            // The new program has said that it took over and is dead: the old one executes it once more, and that one dies there, too.
            "heir.done" => {
                assert!(ended_within(old, DIES_WITHIN), "{point}\n{}", host.account());
                host.reap_agent();
                host.spawn_agent();
                host.settled().await
            }
            _ => {
                assert!(ended_within(old, DIES_WITHIN), "{point}\n{}", host.account());
                host.reap_agent();
                host.settled().await
            }
        };
        assert_ne!(status.agent.pid, old, "{point}");
        assert_eq!(host.instances(), before, "{point}");
        assert_eq!(host.user("ada").get(READ).await.text(), "ada", "{point}");
        if point != "heir.done" {
            signal(status.agent.pid, Signal::TERM);
            assert!(ended_within(status.agent.pid, DIES_WITHIN), "{point}\n{}", host.account());
        }
    }
}
