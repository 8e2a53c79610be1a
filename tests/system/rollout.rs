//! Another sq reaches the tenants: one first, the others once that one has run well; nobody notices, and a bad one goes back.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use sq_agent::admin::status::{RolloutStatus, Status};

use crate::support::{
    host::{Host, tenant},
    processes::SeenSq,
    sq_binary,
    work::Work,
};

const USERS: [&str; 4] = ["ada", "bob", "cleo", "dan"];
/// How long each stage has to run well: what design and README say, not what the code does.
const WATCHED: Duration = Duration::from_secs(10);
/// Two stages of a host of four, and a busy machine.
const COMPLETE_WITHIN: Duration = Duration::from_secs(60);

/// Another program: a good sq under another name.
fn good(host: &Host, name: &str) -> PathBuf {
    let path = host.root().join(name);
    fs::copy(sq_binary(), &path).unwrap();
    path
}

/// Says its version as sq does, and cannot serve. How often it was asked to is in `<path>.tries`.
fn bad(host: &Host, name: &str) -> PathBuf {
    let path = host.root().join(name);
    let tries = path.with_extension("tries");
    fs::write(&tries, "").unwrap();
    let text = format!("#!/bin/sh\nif [ \"$1\" = version ]; then echo 0.6.1; exit 0; fi\necho x >> {}\nexit 3\n", tries.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn tries(program: &Path) -> usize {
    fs::read_to_string(program.with_extension("tries")).unwrap().lines().count()
}

/// Of which program each tenant's instance is.
fn programs(host: &Host) -> BTreeMap<String, String> {
    host.instances().into_iter().map(|sq| (sq.id, sq.program)).collect()
}

/// Who runs on `program`.
fn on(host: &Host, program: &Path) -> Vec<SeenSq> {
    host.instances().into_iter().filter(|sq| sq.program == program.to_str().unwrap()).collect()
}

/// A host whose every tenant is served by the first program, and that program.
async fn host(isolation: &'static str) -> (Host, PathBuf) {
    let mut host = Host::prepare(|wanted| {
        USERS.iter().for_each(|id| _ = wanted.add(id));
        wanted.isolation = isolation;
    });
    let first = good(&host, "sq-first");
    host.edit(|wanted| wanted.sq.clone_from(&first));
    host.launch().await;
    assert!(programs(&host).values().all(|program| *program == first.to_str().unwrap()), "{:?}", programs(&host));
    (host, first)
}

fn under_way(status: &Status) -> Option<&RolloutStatus> {
    status.rollout.as_ref().filter(|rollout| rollout.try_again.is_none())
}

fn gone_back(status: &Status) -> Option<&RolloutStatus> {
    status.rollout.as_ref().filter(|rollout| rollout.try_again.is_some())
}

/// Waits until everybody runs on `program`, and the roll-out is over.
async fn complete(host: &Host, program: &Path) -> Status {
    host.within(COMPLETE_WITHIN, "everybody runs on the new program", |status| {
        status.rollout.is_none() && host.as_wanted(status) && on(host, program).len() == USERS.len()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_sq_reaches_one_tenant_first_and_the_rest_ten_seconds_later_and_no_request_fails() {
    let (mut host, first) = host("auto").await;
    let before = host.instances();
    let work = Work::of(&host, &USERS);
    let second = good(&host, "sq-second");
    host.edit(|wanted| wanted.sq.clone_from(&second));

    let status = host.until("one is on the new program", |_| on(&host, &second).len() == 1).await;
    let canary = on(&host, &second).remove(0);
    let rollout = under_way(&status).expect("status shows the roll-out");
    assert_eq!((rollout.to.as_str(), rollout.from.as_str()), (second.to_str().unwrap(), first.to_str().unwrap()));
    assert_eq!((rollout.total, rollout.moved, rollout.crashed), (4, 1, 0));
    assert!(host.cli(&["status"]).err.contains("roll-out of"), "and people read of it");

    let others = |seen: Vec<SeenSq>| seen.into_iter().filter(|sq| sq.id != canary.id).collect::<Vec<_>>();
    let ready = host.until("it is ready", |status| tenant(status, &canary.id).state == "ready").await;
    let started = tenant(&ready, &canary.id).started_at.clone().unwrap();
    let started = humantime::parse_rfc3339(&started).unwrap();
    host.within(COMPLETE_WITHIN, "the next ones have their turn", |_| others(host.instances()) != others(before.clone())).await;
    // `started_at` is cut to the second, so the wait looks longer than it was by less than one: what this sees is more than nine seconds.
    let waited = started.elapsed().unwrap();
    assert!(waited >= WATCHED, "the others had to wait until it had run 10 s, not {waited:?}");

    let status = complete(&host, &second).await;
    let restarts: BTreeMap<_, _> = status.tenants.iter().map(|tenant| (tenant.id.as_str(), tenant.restarts)).collect();
    assert!(restarts.values().all(|&restarts| restarts == 1), "each was restarted once: {restarts:?}");
    assert_eq!(status.tenants.iter().find(|t| t.id == canary.id).unwrap().pid, Some(canary.pid), "the first one goes on");
    work.goes_on().await;
    eprintln!("{} requests, none failed", work.end().await);
    host.assert_matches_proc(&status);
    assert_eq!(host.cli(&["status"]).code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sq_that_cannot_serve_is_given_up_after_one_tenant_and_tried_again_only_when_told_to() {
    let (mut host, first) = host("off").await;
    let before = host.instances();
    let work = Work::of(&host, &USERS);
    let broken = bad(&host, "sq-broken");
    host.edit(|wanted| wanted.sq.clone_from(&broken));

    let back = |status: &Status| gone_back(status).is_some() && host_is_on(&host, status, &first);
    let status = host.until("it is given up and everybody is on the first one", back).await;
    let rollout = gone_back(&status).unwrap().clone();
    assert_eq!((rollout.to.as_str(), rollout.from.as_str()), (broken.to_str().unwrap(), first.to_str().unwrap()));
    assert_eq!((rollout.moved, rollout.crashed), (1, 1), "one was enough");
    assert_eq!(tries(&broken), 1);
    let same = |seen: &[SeenSq]| before.iter().filter(|sq| seen.contains(sq)).count();
    assert_eq!(same(&host.instances()), USERS.len() - 1, "the others were not touched");
    let hash = rollout.try_again.unwrap();
    let said = host.cli(&["status"]);
    assert_eq!((said.code, said.err.contains(&format!("sq-agent confirm {hash}"))), (2, true), "{said:?}");
    work.goes_on().await; // its requests waited

    let wrong = host.cli(&["confirm", "000000000000"]);
    assert_eq!(wrong.code, 1, "{wrong:?}");
    assert_eq!(tries(&broken), 1);
    let confirmed = host.cli(&["confirm", &hash]);
    assert_eq!(confirmed.code, 0, "{confirmed:?}");
    let back = |status: &Status| tries(&broken) == 2 && gone_back(status).is_some() && host_is_on(&host, status, &first);
    host.until("it was tried once more and given up again", back).await;
    work.goes_on().await;

    let second = good(&host, "sq-second");
    host.edit(|wanted| wanted.sq.clone_from(&second));
    complete(&host, &second).await;
    assert_eq!(tries(&broken), 2);
    assert_eq!(host.cli(&["status"]).code, 0);
    work.goes_on().await;
    eprintln!("{} requests, none failed", work.end().await);
}

fn host_is_on(host: &Host, status: &Status, program: &Path) -> bool {
    host.as_wanted(status) && on(host, program).len() == USERS.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_while_the_first_is_watched_is_followed_by_one_that_goes_on_with_the_roll_out() {
    let (mut host, first) = host("auto").await;
    let work = Work::of(&host, &USERS);
    let second = good(&host, "sq-second");
    host.edit(|wanted| wanted.sq.clone_from(&second));
    host.until("one is ready on the new program", |status| on(&host, &second).len() == 1 && host.as_wanted(status)).await;
    let canary = on(&host, &second).remove(0);

    host.end_agent(Signal::KILL);
    host.spawn_agent();
    let status = host.settled().await;
    assert_eq!((on(&host, &second), on(&host, &first).len()), (vec![canary.clone()], 3), "the same one is watched on");
    let rollout = under_way(&status).unwrap_or_else(|| panic!("{:?}{}", status.rollout, host.account()));
    assert_eq!((rollout.total, rollout.moved, rollout.crashed), (4, 1, 0));
    complete(&host, &second).await;
    assert!(on(&host, &second).contains(&canary), "and was not restarted");
    work.goes_on().await;
    eprintln!("{} requests, none failed", work.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_after_it_went_back_is_followed_by_one_that_does_not_try_the_bad_one_again() {
    let (mut host, first) = host("off").await;
    let broken = bad(&host, "sq-broken");
    host.edit(|wanted| wanted.sq.clone_from(&broken));
    let back = |status: &Status| gone_back(status).is_some() && host_is_on(&host, status, &first);
    let hash = gone_back(&host.until("it is given up", back).await).unwrap().try_again.clone();
    let before = host.instances();

    host.end_agent(Signal::KILL);
    host.spawn_agent();
    let status = host.settled().await;
    assert_eq!(gone_back(&status).and_then(|rollout| rollout.try_again.clone()), hash);
    // An sq of the good program that crashes under the new agent comes back on the good program.
    let victim = before[0].clone();
    crate::support::processes::signal(victim.pid, Signal::KILL);
    host.until("it is back", |status| host_is_on(&host, status, &first) && tenant(status, &victim.id).pid != Some(victim.pid)).await;
    assert_eq!(tries(&broken), 1, "the bad one was tried by the first agent alone");
    assert_eq!(host.instances().iter().filter(|sq| before.contains(sq)).count(), USERS.len() - 1);
}
