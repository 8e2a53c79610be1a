//! Snapshots: taken while requests go on, before what a person may regret, and put back without a failed request.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sq_agent::{
    admin::status::{RestoreAnswer, SnapshotAnswer},
    snapshot::{Listed, Reason},
};

use crate::support::{
    eventually,
    host::{Host, User},
    processes::ended_within,
    work::Work,
};

async fn write(user: &User, phext: &str, text: &str) {
    let answer = user.post(&format!("/api/v2/update?p={phext}&c=1.1.1/1.1.1/1.1.1"), text.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn read(user: &User, phext: &str) -> String {
    let answer = user.get(&format!("/api/v2/select?p={phext}&c=1.1.1/1.1.1/1.1.1")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().to_owned()
}

/// Takes a snapshot, which must be a new one.
fn snapshot(host: &Host, id: &str) -> (Listed, Duration) {
    let ran = host.cli(&["snapshot", id, "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}\n{}", host.account());
    let said: SnapshotAnswer = serde_json::from_str(&ran.out).unwrap();
    (said.made.unwrap_or_else(|| panic!("{}", said.detail)), Duration::from_micros(said.in_lane_us.unwrap()))
}

fn snapshots(host: &Host, id: &str) -> Vec<Listed> {
    let ran = host.cli(&["snapshots", id, "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    serde_json::from_str(&ran.out).unwrap()
}

fn reasons(host: &Host, id: &str) -> Vec<Reason> {
    snapshots(host, id).iter().map(|listed| listed.reason).collect()
}

fn restore(host: &Host, args: &[&str]) -> RestoreAnswer {
    let ran = host.cli(&[&["restore", "--json"], args].concat());
    assert_eq!(ran.code, 0, "{ran:?}\n{}", host.account());
    serde_json::from_str(&ran.out).unwrap()
}

/// Fails, and says this.
fn refused(host: &Host, args: &[&str], why: &str) {
    let ran = host.cli(args);
    assert_eq!((ran.code, ran.err.contains(why)), (1, true), "{ran:?}");
}

/// Somebody who writes one phext all the time, and to whom every write must be answered with 200.
struct Writer {
    done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u64, Duration)>,
}

impl Writer {
    fn of(user: User, phext: &'static str) -> Self {
        Self::of_texts(user, phext, String::new())
    }

    /// Each of whose texts begins with the round and ends like that.
    fn of_texts(user: User, phext: &'static str, end: String) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let ended = done.clone();
        let task = tokio::spawn(async move {
            let (mut writes, mut longest) = (0, Duration::ZERO);
            while !ended.load(Ordering::Relaxed) {
                let began = Instant::now();
                write(&user, phext, &format!("round {writes} {end}")).await;
                longest = longest.max(began.elapsed());
                writes += 1;
            }
            (writes, longest)
        });
        Self { done, task }
    }

    /// How many writes there were, and how long one waited at most.
    async fn end(self) -> (u64, Duration) {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_and_put_back_under_load_and_no_request_fails() {
    let host = Host::start(&["ada", "bob"]).await;
    let ada = host.user("ada");
    let work = Work::of(&host, &["bob"]);
    write(&ada, "diary", "one").await;
    let writer = Writer::of(ada.clone(), "load");
    let (first, _) = snapshot(&host, "ada");
    assert_eq!(first.reason, Reason::Asked);
    write(&ada, "diary", "two").await;
    write(&ada, "later", "later").await;

    let restored = restore(&host, &["ada"]);
    assert_eq!(restored.removed, 1, "{restored:?}");
    assert_eq!(read(&ada, "diary").await, "one");
    assert_eq!(read(&ada, "later").await, "");
    write(&ada, "diary", "three").await;
    assert_eq!(read(&ada, "diary").await, "three", "and it can be written");

    let before = restored.before.unwrap();
    restore(&host, &["ada", "--at", &before]);
    assert_eq!((read(&ada, "diary").await, read(&ada, "later").await), ("two".to_owned(), "later".to_owned()), "the way back");
    let (writes, longest) = writer.end().await;
    assert_eq!(reasons(&host, "ada"), [Reason::Asked, Reason::BeforeRestore, Reason::BeforeRestore]);
    work.goes_on().await;
    eprintln!("{writes} writes of ada, the longest {longest:?}, and {} answers for bob: none failed", work.end().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_phext_is_put_back_alone_and_a_whole_tenant_into_another() {
    let host = Host::start(&["ada", "bob"]).await;
    let (ada, bob) = (host.user("ada"), host.user("bob"));
    for phext in ["diary", "notes"] {
        write(&ada, phext, "old").await;
    }
    write(&bob, "notes", "bob's").await;
    snapshot(&host, "ada");
    for phext in ["diary", "notes"] {
        write(&ada, phext, "new").await;
    }
    restore(&host, &["ada", "--phext", "diary"]);
    assert_eq!((read(&ada, "diary").await, read(&ada, "notes").await), ("old".to_owned(), "new".to_owned()));

    restore(&host, &["ada", "--as", "bob"]);
    assert_eq!((read(&bob, "diary").await, read(&bob, "notes").await), ("old".to_owned(), "old".to_owned()));
    write(&bob, "diary", "bob's by now").await;
    assert_eq!(read(&ada, "diary").await, "old");
    assert_eq!(reasons(&host, "bob"), [Reason::BeforeRestore]);

    refused(&host, &["restore", "ada", "--phext", "dairy"], "holds no phext \"dairy\"; it holds diary, notes");
    refused(&host, &["restore", "ada", "--at", "1999-01-01T00:00:00Z"], "no snapshot as old as");
    refused(&host, &["restore", "ada", "--at", "soon"], "write it as `sq-agent snapshots` shows it");
    refused(&host, &["restore", "ada", "--as", "eve"], "eve is not in tenants.toml");
    refused(&host, &["snapshot", "eve"], "no tenant eve");
    refused(&host, &["snapshots", "eve"], "no tenant eve");
    assert_eq!(read(&ada, "notes").await, "new", "nothing of that changed anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_changed_is_not_kept_again_whatever_reads_or_restarts() {
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    let none = host.cli(&["snapshot", "ada"]);
    assert_eq!((none.code, none.out.as_str()), (0, "ada: there is no phext yet\n"), "{none:?}");
    write(&ada, "diary", "one").await;
    // One that is taken within a moment of a write cannot tell whether another write followed.
    eventually("it is known that nothing changes", async || host.cli(&["snapshot", "ada"]).out.contains("unchanged since")).await;
    let so_far = snapshots(&host, "ada");
    assert_eq!(host.cli(&["restart", "ada"]).code, 0);
    host.until("it is restarted", |status| status.tenants[0].restarts == 1 && host.as_wanted(status)).await;
    assert_eq!(read(&ada, "diary").await, "one");
    assert!(host.cli(&["snapshot", "ada"]).out.contains("unchanged since"));
    assert_eq!(snapshots(&host, "ada"), so_far);
    write(&ada, "diary", "two").await;
    snapshot(&host, "ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_removed_or_suspended_is_kept_first_and_can_be_put_back() {
    let mut host = Host::start(&["ada", "bob"]).await;
    let (ada, bob) = (host.user("ada"), host.user("bob"));
    write(&ada, "diary", "before").await;
    write(&bob, "diary", "bob's").await;
    host.edit(|wanted| wanted.remove("ada"));
    host.settled().await;
    assert_eq!(reasons(&host, "ada"), [Reason::BeforeRemoval]);
    refused(&host, &["restore", "ada"], "ada is not in tenants.toml");

    host.edit(|wanted| _ = wanted.add("ada"));
    host.settled().await;
    assert_eq!(read(&ada, "diary").await, "before", "its data stayed");
    write(&ada, "diary", "after").await;
    restore(&host, &["ada", "--at", &snapshots(&host, "ada")[0].time]);
    assert_eq!(read(&ada, "diary").await, "before");

    host.edit(|wanted| wanted.tenant("bob").suspended = true);
    host.settled().await;
    eventually("it is kept", async || reasons(&host, "bob") == [Reason::BeforeSuspension]).await;
    assert_eq!(restore(&host, &["bob"]).files, 1, "also while it is suspended");
    host.edit(|wanted| wanted.tenant("bob").suspended = false);
    host.settled().await;
    assert_eq!(read(&bob, "diary").await, "bob's");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_another_sq_starts_each_tenant_is_kept() {
    let mut host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    write(&ada, "diary", "old sq").await;
    host.settled().await;
    let work = Work::of(&host, &["ada"]);
    let other = host.root().join("sq-other");
    fs::copy(&host.wanted.sq, &other).unwrap();
    host.edit(|wanted| wanted.sq.clone_from(&other));
    let program = other.to_str().unwrap();
    host.until("it runs on the other one", |_| host.instances().iter().any(|sq| sq.program == program)).await;
    assert_eq!(reasons(&host, "ada"), [Reason::BeforeProgramChange]);
    host.settled().await;
    work.goes_on().await;
    eprintln!("{} requests, none failed", work.end().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_it_is_done_directly_and_never_under_an_sq_that_lives() {
    let mut host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    write(&ada, "diary", "one").await;
    host.end_agent(Signal::KILL);
    snapshot(&host, "ada");
    write(&ada, "diary", "two").await;
    refused(&host, &["restore", "ada"], "still runs (pid ");
    assert_eq!(read(&ada, "diary").await, "two");
    host.launch().await;
    host.end_agent(Signal::TERM);
    restore(&host, &["ada"]);
    host.launch().await;
    assert_eq!(read(&ada, "diary").await, "one");
    write(&ada, "diary", "three").await;
    assert_eq!(read(&ada, "diary").await, "three", "its files are its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_the_middle_of_a_snapshot_leaves_none_or_a_whole_one() {
    for (point, whole) in [("snapshot.copied", 0), ("snapshot.packed", 0), ("snapshot.named", 1)] {
        let mut host = Host::start(&["ada"]).await;
        let ada = host.user("ada");
        write(&ada, "diary", "one").await;
        host.end_agent(Signal::KILL);
        host.spawn_agent_that_dies_at(point);
        host.settled().await;
        let agent = host.agent_pid();
        assert_eq!(host.cli(&["snapshot", "ada"]).code, 1, "{point}");
        assert!(ended_within(agent, Duration::from_secs(10)), "{point}");
        host.reap_agent();
        assert_eq!(snapshots(&host, "ada").len(), whole, "{point}");

        host.launch().await;
        write(&ada, "diary", "two").await;
        snapshot(&host, "ada");
        let shelf = host.state_dir().join("users/ada/snapshots");
        let left = fs::read_dir(&shelf).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.filter(|name| name.starts_with('.')).count(), 0, "{point}: what was cut off is swept away");
        restore(&host, &["ada"]);
        assert_eq!(read(&ada, "diary").await, "two", "{point}");
    }
}

/// Killed after the first of two files was replaced: the one is new, the other one old, and the same command ends it.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_the_middle_of_a_restore_leaves_whole_texts_and_the_restore_can_be_repeated() {
    for point in ["restore.unpacked", "restore.kept", "restore.replaced", "restore.done", "restore.told"] {
        let mut host = Host::start(&["ada"]).await;
        let ada = host.user("ada");
        for phext in ["a", "b"] {
            write(&ada, phext, "old").await;
        }
        snapshot(&host, "ada");
        for phext in ["a", "b"] {
            write(&ada, phext, "new").await;
        }
        host.end_agent(Signal::KILL);
        host.spawn_agent_that_dies_at(point);
        host.settled().await;
        let agent = host.agent_pid();
        assert_eq!(host.cli(&["restore", "ada"]).code, 1, "{point}");
        assert!(ended_within(agent, Duration::from_secs(10)), "{point}");
        host.reap_agent();

        host.launch().await;
        let texts = (read(&ada, "a").await, read(&ada, "b").await);
        let expected = match point {
            "restore.unpacked" | "restore.kept" => ("new", "new"),
            "restore.replaced" => ("old", "new"),
            _ => ("old", "old"),
        };
        assert_eq!((texts.0.as_str(), texts.1.as_str()), expected, "{point}");
        restore(&host, &["ada"]);
        assert_eq!((read(&ada, "a").await, read(&ada, "b").await), ("old".to_owned(), "old".to_owned()), "{point}");
        write(&ada, "a", "after").await;
    }
}

/// 1 MB of words by chance, another one each time; it shrinks as prose does.
fn prose(seed: u64) -> String {
    let (mut chance, mut text) = (seed, String::new());
    let mut below = |count: usize| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(chance >> 33).unwrap() % count
    };
    while text.len() < 1 << 20 {
        text.push_str(["the", "of", "and", "text", "phext", "dimension", "write", "eleven", "scroll", "a"][below(10)]);
        text.push(char::from(b"  \n ,.etaoin"[below(12)]));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn how_long_a_restore_takes_from_the_command_to_the_first_answer() {
    let host = Host::start(&["ada"]).await;
    let ada = host.user("ada");
    for count in [1, 20] {
        for at in 0..count {
            write(&ada, &format!("p{at}"), &prose(at)).await;
        }
        let mut took = Vec::new();
        let mut lane = Vec::new();
        for round in 0..5 {
            write(&ada, "p0", &prose(100 + round)).await;
            let writer = Writer::of_texts(ada.clone(), "load", prose(7));
            let (made, in_lane) = snapshot(&host, "ada");
            lane.push(in_lane);
            writer.end().await;
            let writer = Writer::of(ada.clone(), "load");
            let began = Instant::now();
            restore(&host, &["ada", "--at", &made.time]);
            let command = began.elapsed();
            read(&ada, "p0").await;
            took.push((command, began.elapsed()));
            let (_, longest) = writer.end().await;
            eprintln!(
                "{count} MB: command {command:?}, first answer {:?}, longest wait of a writer {longest:?}, snapshot {} bytes, in the lane {in_lane:?}",
                began.elapsed(),
                made.bytes
            );
        }
        took.sort();
        lane.sort();
        eprintln!(
            "{count} phexts of 1 MB: command {:?}, to the first answer {:?} (medians of 5); lane held {:?}",
            took[2].0, took[2].1, lane[2]
        );
    }
}
