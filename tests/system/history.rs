//! What the records say and outlive: usage across kills and restarts, events, the reasons of a tenant, and the loss of the records themselves.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sq_agent::store::{Event, Reader, Usage};

use crate::support::{
    DEADLINE,
    host::{Host, SQ_AGENT, User, tenant},
    processes,
};

const TEXT: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
/// A crash is seen at once; the back-off of a few in a row stays far below this.
const SEEN: Duration = Duration::from_secs(30);

async fn writes(user: &User, count: usize) {
    for n in 0..count {
        assert_eq!(user.post(TEXT, format!("text {n}").as_bytes()).await.status, 200);
    }
}

async fn reads(user: &User, count: usize) {
    for _ in 0..count {
        assert_eq!(user.get(READ).await.status, 200);
    }
}

fn usage_of(host: &Host, id: &str) -> Option<Usage> {
    let ran = host.cli(&["usage", id, "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    serde_json::from_str::<Vec<Usage>>(&ran.out).unwrap().pop()
}

/// Waits until the records know a tenant.
async fn recorded(host: &Host, id: &str) {
    let began = Instant::now();
    while usage_of(host, id).is_none() {
        assert!(began.elapsed() < DEADLINE, "no usage of {id}\n{}", host.account());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_neither_lost_nor_doubled_by_kills_restarts_and_a_full_stop() {
    let mut host = Host::start(&["ada@example.com", "bob"]).await;
    let ada = host.user("ada@example.com");
    recorded(&host, "ada@example.com").await;
    writes(&ada, 3).await;
    reads(&ada, 2).await;
    assert_eq!(ada.get("/api/v2/no-such-call").await.status, 404, "a request, though sq knows nothing of it");
    host.end_agent(Signal::KILL);
    writes(&ada, 1).await;
    host.launch().await;
    reads(&ada, 1).await;
    assert_eq!(host.end_agent(Signal::TERM), Some(0));

    let used = usage_of(&host, "ada@example.com").unwrap();
    assert_eq!((used.requests, used.writes, used.errors), (8, 4, 0), "{used:?}");
    assert!(used.bytes_in >= 24 && used.bytes_out > 0 && used.days == 1, "{used:?}");
    assert_eq!(usage_of(&host, "bob").unwrap().requests, 0);

    // The pages are gone with the full stop: the next ones count from nothing.
    host.launch().await;
    assert_eq!(host.end_agent(Signal::TERM), Some(0));
    assert_eq!(usage_of(&host, "ada@example.com").unwrap().requests, 8);

    let month = used.period;
    let bill = host.cli(&["usage", "--month", &month, "--format", "csv"]);
    let lines: Vec<&str> = bill.out.lines().collect();
    assert_eq!(lines.len(), 3, "{bill:?}");
    assert!(lines[0].contains("\"period\",\"id\",\"days\",\"requests\""), "{bill:?}");
    assert!(lines[1].starts_with(&format!("\"{month}\",\"ada@example.com\",1,8,0,4,")), "{bill:?}");
    let daily = host.cli(&["usage", "--daily", "--format", "csv"]);
    assert!(daily.out.lines().nth(1).unwrap().starts_with(&format!("\"{month}-")), "{daily:?}");
    let none = host.cli(&["usage", "--month", "2001-02", "--format", "csv"]);
    assert_eq!(none.out.lines().collect::<Vec<_>>(), lines[..1], "the heading alone");
    assert_eq!(host.cli(&["usage", "--month", "2026-13"]).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_and_why_is_told_to_who_asks_and_to_who_follows() {
    let mut host = Host::start(&["ada", "bob"]).await;
    let why = host.cli(&["why", "ada"]);
    assert!(why.code == 0 && why.out.contains("wants ada to be served") && why.out.contains("There is nothing to do."), "{why:?}");

    let mut follow = Command::new(SQ_AGENT)
        .args(["events", "ada", "--follow", "--json", "--tenants"])
        .arg(host.file())
        .env_remove("SQ_AGENT_TENANTS")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let out = BufReader::new(follow.stdout.take().unwrap());
    let reader = std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let epoch = tenant(&host.settled().await, "ada").epoch;
    processes::signal(tenant(&host.status().unwrap(), "ada").pid.unwrap(), Signal::KILL);
    processes::signal(tenant(&host.status().unwrap(), "bob").pid.unwrap(), Signal::KILL);
    host.within(SEEN, "ada runs anew", |status| tenant(status, "ada").epoch > epoch && tenant(status, "ada").state == "ready").await;
    let event: Event = serde_json::from_str(&lines.recv_timeout(DEADLINE).unwrap()).unwrap();
    assert_eq!((event.id.as_deref(), event.kind.as_str()), (Some("ada"), "crashed"), "{event:?}");
    follow.kill().unwrap();
    follow.wait().unwrap();
    let _ = reader.join().unwrap();

    let events = host.cli(&["events", "ada"]);
    assert!(events.out.lines().last().unwrap().contains("crashed") && !events.out.contains("  bob"), "{events:?}");
    let why = host.cli(&["why", "ada"]);
    assert!(why.out.contains("In the last 24 hours: crashed") && why.out.contains("signal 9"), "{why:?}");

    host.edit(|wanted| _ = wanted.tenants.remove("bob"));
    host.settled().await;
    let why = host.cli(&["why", "bob"]);
    assert!(why.code == 2 && why.out.contains("has no tenant bob") && why.out.contains("its data are still here"), "{why:?}");
    host.end_agent(Signal::TERM);
    let why = host.cli(&["why", "ada"]);
    assert!(why.code == 2 && why.out.contains("No agent runs"), "{why:?}");
    let events = host.cli(&["events", "-n", "1", "--json"]);
    assert_eq!(serde_json::from_str::<Vec<Event>>(&events.out).unwrap().len(), 1, "also without an agent: {events:?}");
}

#[test]
fn the_live_screen_wants_a_terminal_and_says_what_to_use_without() {
    let ran = Host::prepare(|wanted| _ = wanted.add("ada")).cli(&["top"]);
    assert!(ran.code == 1 && ran.err.contains("sq-agent status"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenants_sq_wrote_is_shown() {
    let host = Host::start(&["ada"]).await;
    let logs = host.cli(&["logs", "ada"]);
    assert!(logs.code == 0 && logs.out.contains("listening on port"), "{logs:?}");
    assert_eq!(host.cli(&["logs", "ada", "-n", "1"]).out.lines().count(), 1);
    let nobody = host.cli(&["logs", "nobody"]);
    assert!(nobody.code == 1 && nobody.err.contains("no tenant nobody"), "{nobody:?}");
}

fn rebuilt(host: &Host) -> Vec<Event> {
    Reader::open(&host.state_dir()).unwrap().events_of(None, Some("records_rebuilt"), None, 100).unwrap()
}

fn pids(host: &Host) -> Vec<(String, u32, u16)> {
    let mut all: Vec<_> = host.instances().into_iter().map(|sq| (sq.id, sq.pid, sq.port)).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_corrupt_or_missing_are_rebuilt_from_what_runs_and_nobody_is_restarted() {
    let ids = ["ada", "bob", "cid", "dan", "eve"];
    let mut host = Host::start(&ids).await;
    host.edit(|wanted| wanted.tenants.get_mut("eve").unwrap().suspended = true);
    host.settled().await;
    // Of several starts, so that the key is not that of the first one.
    assert_eq!(host.cli(&["restart", "cid"]).code, 0);
    let before = host.until("cid runs anew", |status| tenant(status, "cid").epoch > 1 && host.as_wanted(status)).await;
    let (ran, ada) = (pids(&host), host.user("ada"));
    assert_eq!(ran.len(), 4);
    for (n, what) in ["was corrupt", "was missing", "was corrupt"].into_iter().enumerate() {
        host.end_agent(Signal::KILL);
        // The journal as well: as long as that is good, nothing is lost.
        for name in ["instances.db", "instances.db-wal", "instances.db-shm"] {
            let path = host.state_dir().join(name);
            if what == "was corrupt" { fs::write(&path, vec![b'x'; 100_000]) } else { fs::remove_file(&path) }.unwrap();
        }
        reads(&ada, 1).await;
        host.launch().await;
        assert_eq!(pids(&host), ran, "round {n}: the same processes on the same ports\n{}", host.account());
        let said = rebuilt(&host);
        assert!(said.len() == 1 && said[0].detail.contains(what) && said[0].detail.contains("5 tenants"), "round {n}: {said:?}");
        reads(&ada, 1).await;
    }
    // Also an emptied file and lost records together take nobody away: that waits for a person.
    host.end_agent(Signal::KILL);
    let file = fs::read_to_string(host.file()).unwrap();
    host.write(file.split("[[tenants]]").next().unwrap());
    for name in ["instances.db", "instances.db-wal", "instances.db-shm"] {
        fs::remove_file(host.state_dir().join(name)).unwrap();
    }
    host.spawn_agent();
    host.until("the removals are held", |status| status.held.as_ref().is_some_and(|held| held.removals.len() == 4)).await;
    assert_eq!(pids(&host), ran, "{}", host.account());
    host.write(&file);
    let now = host.settled().await;
    // Of eve nothing ran when the records were lost a last time and she stood in no file: she was taken in as a new one.
    let places = |status: &sq_agent::admin::status::Status| {
        let running = status.tenants.iter().filter(|tenant| tenant.pid.is_some());
        running.map(|tenant| (tenant.id.clone(), tenant.epoch, tenant.port)).collect::<Vec<_>>()
    };
    assert_eq!(places(&now), places(&before), "ports and epochs are as they were");
    // A start after that has a number, and with it a key, that never was.
    assert_eq!(host.cli(&["restart", "cid"]).code, 0);
    host.until("cid runs anew", |status| tenant(status, "cid").epoch > 1_000_000 && host.as_wanted(status)).await;
    let kept = fs::read_dir(host.state_dir())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("instances.db.corrupt-"));
    assert!(kept.count() >= 1, "what was corrupt is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_turn_out_corrupt_under_way_are_begun_anew_while_everybody_is_served() {
    let mut host = Host::start(&["ada", "bob"]).await;
    let (ran, ada) = (pids(&host), host.user("ada"));
    // What SQLite has in memory it does not read again, so the journal that it does read is hit as well.
    for name in ["instances.db", "instances.db-wal", "instances.db-shm"] {
        let path = host.state_dir().join(name);
        let length = fs::metadata(&path).unwrap().len();
        fs::File::options().write(true).open(&path).unwrap().write_all(&vec![0xff; usize::try_from(length).unwrap()]).unwrap();
    }
    host.edit(|wanted| _ = wanted.add("new"));
    let began = Instant::now();
    while Reader::open(&host.state_dir())
        .and_then(|reader| reader.events_of(None, Some("records_rebuilt"), None, 9))
        .map_or(0, |all| all.len())
        == 0
    {
        assert!(began.elapsed() < SEEN, "never rebuilt\n{}", host.account());
        reads(&ada, 1).await;
    }
    host.settled().await;
    let old = |now: Vec<(String, u32, u16)>| now.into_iter().filter(|(id, ..)| id != "new").collect::<Vec<_>>();
    assert_eq!(old(pids(&host)), ran);
    host.end_agent(Signal::KILL);
    host.launch().await;
    assert_eq!(old(pids(&host)), ran, "the next agent finds all of it in the new records");
    assert_eq!(rebuilt(&host).len(), 1);
}
