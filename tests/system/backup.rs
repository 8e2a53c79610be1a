//! Backups off the host, by the real restic: taken while people write, missed, broken off, tried out, and brought back.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use sq_agent::{admin::status::BackupStatus, store::Store};

use crate::support::{
    eventually, has_programs,
    host::{Host, Ran, User, ran},
    processes,
};

const PASSWORD: &str = "correct horse battery staple";
const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
/// Longer than any test: a backup comes only when it is asked for.
const NEVER: &str = "30d";

/// The real restic.
fn restic() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|dir| dir.join("restic")).find(|program| program.exists());
    found.expect("these tests need the real restic: apt-get install restic")
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A host of `ids` that backs up into a directory beside its state; it does not run yet.
fn host(ids: &[&str], every: &str, more: &str) -> Host {
    restic();
    let mut host = Host::prepare(|wanted| ids.iter().for_each(|id| _ = wanted.add(id)));
    private(&host.root().join("password"), &format!("{PASSWORD}\n"));
    let table = format!("\n[backup]\nrepository = \"vault\"\npassword_file = \"password\"\nevery = {every:?}\n{more}\n");
    host.edit(|wanted| wanted.more = table);
    host
}

/// A program in restic's place, as a shell script that may call the real one as `"$restic"`.
fn instead(host: &Host, script: &str) {
    let path = host.root().join("instead");
    fs::write(&path, format!("#!/bin/sh\nroot={:?}\nrestic={:?}\n{script}\n", host.root(), restic())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What restic, and nothing of ours, gives back.
fn plain_restore(host: &Host, snapshot: &str, name: &str) -> PathBuf {
    let target = host.root().join(name);
    let mut command = Command::new(restic());
    command.arg("-r").arg(host.root().join("vault")).args(["restore", snapshot, "--no-cache", "--target"]).arg(&target);
    let done = ran(command.env("RESTIC_PASSWORD", PASSWORD));
    assert_eq!(done.code, 0, "{done:?}");
    target
}

/// Every file below `users/*/phext-data`, by its path from `root`.
fn texts(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.join("users")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false if path.parent().unwrap().ends_with("phext-data") => {
                    found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
                }
                false => {}
            }
        }
    }
    found
}

fn events(host: &Host) -> Vec<(String, String)> {
    let events = Store::open(&host.state_dir()).unwrap().store.events(1_000).unwrap();
    events.into_iter().rev().filter(|event| event.kind.starts_with("backup")).map(|event| (event.kind, event.detail)).collect()
}

fn count(host: &Host, kind: &str) -> usize {
    events(host).iter().filter(|(found, _)| found == kind).count()
}

async fn backup(host: &Host) -> BackupStatus {
    host.status().unwrap().backup.unwrap()
}

async fn write(user: &User, target: &str, text: &[u8]) {
    let answer = user.post(target, text).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn good(ran: &Ran) {
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_comes_back_on_an_empty_machine_and_is_served() {
    if !has_programs(&["restic"]) {
        return;
    }
    let ids = ["ada@example.com", "bob+sq@example.com", "gone"];
    let mut host = host(&ids, NEVER, "");
    host.launch().await;
    let user = host.user(ids[0]);
    for id in ids {
        let user = host.user(id);
        write(&user, WRITE, format!("{id} first").as_bytes()).await;
        write(&user, "/api/v2/update?p=other%20one&c=2.1.1/1.1.1/1.1.7", id.as_bytes()).await;
    }
    // Who left has data still.
    host.edit(|wanted| wanted.remove("gone"));
    host.settled().await;
    let first = host.cli(&["backup"]);
    good(&first);
    for part in ["backup_done", "3 tenants", "backup_checked", "backup_test_restored"] {
        assert!(first.out.contains(part), "{part} in {first:?}");
    }
    let between = humantime_now();
    let earlier = texts(&host.state_dir());
    tokio::time::sleep(Duration::from_millis(1_100)).await; // snapshots are told apart by the second
    write(&user, WRITE, b"ada second").await;
    let acknowledged = texts(&host.state_dir());
    let second = host.cli(&["backup", "--json"]);
    good(&second);
    let told: BackupStatus = serde_json::from_str(&second.out).unwrap();
    assert!(told.last_good_age_seconds.unwrap() < 60 && told.last_check.is_some() && told.last_test_restore.is_some(), "{told:?}");
    assert!(told.last_run[0].contains("1 changed"), "{told:?}");

    // With nothing but restic and the password.
    let plain = plain_restore(&host, "latest", "plain");
    assert_eq!(texts(&plain), acknowledged);
    assert_eq!(fs::read(plain.join("jwt.key")).unwrap(), fs::read(host.state_dir().join("jwt.key")).unwrap());
    assert_eq!(fs::read_to_string(plain.join("tenants.toml")).unwrap(), host.wanted.text());

    let refused = host.cli(&["restore", "--all"]);
    assert_eq!((refused.code, refused.err.contains("runs on")), (1, true), "an agent runs: {refused:?}");
    host.end_agent(Signal::TERM);
    let refused = host.cli(&["restore", "--all"]);
    assert!(refused.code == 1 && refused.err.contains(host.state_dir().join("users").to_str().unwrap()), "{refused:?}");

    fs::remove_dir_all(host.state_dir()).unwrap();
    let too_early = host.cli(&["restore", "--all", "--at", "2020-01-01"]);
    assert!(too_early.code == 1 && too_early.err.contains("the oldest is of"), "{too_early:?}");
    good(&host.cli(&["restore", "--all", "--at", &between]));
    assert_eq!(texts(&host.state_dir()), earlier);
    fs::remove_dir_all(host.state_dir()).unwrap();
    let restored = host.cli(&["restore", "--all"]);
    good(&restored);
    assert!(restored.out.contains("3 tenants") && restored.out.contains("1 of them are not in"), "{restored:?}");
    assert_eq!(texts(&host.state_dir()), acknowledged);
    host.launch().await;
    // The token of before, and everybody's text.
    let answer = User { client: host.client(), token: user.token }.get(READ).await;
    assert_eq!((answer.status, answer.text()), (200, "ada second"));
    assert_eq!(host.user(ids[1]).get(READ).await.text(), format!("{} first", ids[1]));
    // And it goes on being backed up there.
    good(&host.cli(&["backup"]));
}

fn humantime_now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let days = ran(Command::new("date").args(["-u", "-d", &format!("@{now}"), "+%Y-%m-%dT%H:%M:%SZ"]));
    days.out.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_a_missing_restic_and_an_open_secret_are_told_with_their_remedy() {
    if !has_programs(&["restic"]) {
        return;
    }
    let mut host = host(&["ada"], NEVER, "restic = \"./instead\"\nenv_file = \"env\"\n");
    private(&host.root().join("env"), "AWS_SECRET_ACCESS_KEY=hunter2hunter2\n");
    instead(&host, "env > \"$root/seen\"; cat /proc/$$/stat > \"$root/stat\"; exec \"$restic\" \"$@\"");
    host.launch().await;
    good(&host.cli(&["backup"]));
    let seen = fs::read_to_string(host.root().join("seen")).unwrap();
    assert!(seen.contains("AWS_SECRET_ACCESS_KEY=hunter2hunter2") && !seen.contains(PASSWORD) && !seen.contains("CARGO"), "{seen}");
    let stat = fs::read_to_string(host.root().join("stat")).unwrap();
    assert_eq!(stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(16), Some("19"), "in nobody's way: {stat}");

    private(&host.root().join("password"), "another\n");
    let wrong = host.cli(&["backup"]);
    assert!(wrong.code == 1 && wrong.out.contains("the password is wrong") && wrong.out.contains("password_file"), "{wrong:?}");
    let status = host.cli(&["status"]);
    assert!(status.code == 2 && status.err.contains("the password is wrong"), "{status:?}");
    assert!(backup(&host).await.last_good.is_some(), "the one before still counts");

    fs::set_permissions(host.root().join("env"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = host.cli(&["backup"]);
    assert!(open.code == 1 && open.out.contains("chmod 600"), "{open:?}");
    private(&host.root().join("env"), "AWS_SECRET_ACCESS_KEY=hunter2hunter2\n");

    fs::remove_file(host.root().join("instead")).unwrap();
    let missing = host.cli(&["backup"]);
    assert!(missing.code == 1 && missing.out.contains("apt-get install restic"), "{missing:?}");
    let doctor = host.cli(&["doctor"]);
    assert!(doctor.code == 2 && doctor.out.contains("apt-get install restic"), "{doctor:?}");

    private(&host.root().join("password"), &format!("{PASSWORD}\n"));
    instead(&host, "exec \"$restic\" \"$@\"");
    good(&host.cli(&["backup"]));
    assert_eq!(backup(&host).await.last_error, None);
    let told = host.logged() + &events(&host).into_iter().map(|(_, detail)| detail).collect::<String>();
    assert!(!told.contains("hunter2") && !told.contains(PASSWORD), "a secret is in a log or an event");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_gone_is_missed_and_taken_up_again_when_it_is_back() {
    if !has_programs(&["restic"]) {
        return;
    }
    let mut host = host(&["ada"], "10s", "");
    host.launch().await;
    write(&host.user("ada"), WRITE, b"text").await;
    // restic is the last to get a core, and tests run beside others.
    let patience = Duration::from_secs(300);
    host.within(patience, "the first comes by itself", |status| status.backup.as_ref().is_some_and(|b| b.last_good.is_some())).await;
    let (vault, away) = (host.root().join("vault"), host.root().join("away"));
    fs::rename(&vault, &away).unwrap();
    let status = host
        .within(patience, "two are missed", |status| status.backup.as_ref().is_some_and(|b| b.misses >= 2 && b.last_error.is_some()))
        .await;
    let told = status.backup.unwrap();
    assert!(told.overdue && told.last_error.as_ref().unwrap().contains("is gone"), "{told:?}");
    assert!(!vault.exists(), "no second repository is made in its place");
    let told_since_the_good_one =
        || events(&host).iter().rev().take_while(|(kind, _)| kind != "backup_done").filter(|(kind, _)| kind == "backup_missed").count();
    assert_eq!(told_since_the_good_one(), 1, "once: {:?}", events(&host));
    assert!(host.cli(&["doctor"]).out.contains("backup"), "doctor says so");

    fs::rename(&away, &vault).unwrap();
    host.within(patience, "it recovers by itself", |status| status.backup.as_ref().is_some_and(|b| !b.overdue && b.last_error.is_none()))
        .await;

    // Gone for good: a person says so.
    fs::rename(&vault, &away).unwrap();
    let gone = host.cli(&["backup"]);
    assert!(gone.code == 1 && gone.out.contains("sq-agent backup --init"), "{gone:?}");
    good(&host.cli(&["backup", "--init"]));
    assert_eq!(texts(&plain_restore(&host, "latest", "plain")), texts(&host.state_dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_died_with_its_agent_leaves_nothing_in_the_way_of_the_next() {
    if !has_programs(&["restic"]) {
        return;
    }
    // restic stops in the middle, its lock in the repository, until it is killed.
    let mut host = host(&["ada"], NEVER, "restic = \"./instead\"\n");
    instead(&host, "exec \"$restic\" \"$@\"");
    host.launch().await;
    write(&host.user("ada"), WRITE, b"first").await;
    good(&host.cli(&["backup"]));
    // One that was too quick for it has taken its lock along, and is tried again.
    let stuck = "if [ \"$1\" = check ]; then echo $$ > \"$root/pid\"; held() { ls \"$root\"/vault/locks/* > /dev/null 2>&1; }; \
                 while :; do \"$restic\" \"$@\" & real=$!; while ! held && kill -0 $real 2> /dev/null; do :; done; \
                 kill -STOP $real 2> /dev/null && held && break; kill -CONT $real 2> /dev/null; wait $real; done; \
                 echo $real > \"$root/real\"; wait; fi; exec \"$restic\" \"$@\"";
    instead(&host, stuck);
    host.edit(|wanted| wanted.more.push_str("check_every = \"1s\"\n"));
    host.settled().await;
    tokio::time::sleep(Duration::from_millis(2_100)).await; // until a check is due
    let asked = Command::new(crate::support::host::SQ_AGENT).args(["backup", "--tenants"]).arg(host.file()).spawn();
    let mut asked = asked.unwrap();
    let real = host.root().join("real");
    eventually("restic works on the repository", async || fs::read_to_string(&real).is_ok_and(|pid| pid.ends_with('\n'))).await;
    host.end_agent(Signal::KILL);
    let pid = |name: &str| fs::read_to_string(host.root().join(name)).unwrap().trim().parse::<u32>().unwrap();
    assert!(processes::ended_within(pid("pid"), Duration::from_secs(5)), "it outlives the agent");
    // Its own child, which a real restic has not.
    processes::signal(pid("real"), Signal::KILL);
    asked.wait().unwrap();
    assert!(fs::read_dir(host.root().join("vault/locks")).unwrap().count() > 0, "the test is about a lock that stays");

    instead(&host, "exec \"$restic\" \"$@\"");
    host.launch().await;
    write(&host.user("ada"), WRITE, b"second").await;
    let next = host.cli(&["backup"]);
    good(&next);
    assert!(next.out.contains("backup_checked"), "which takes the repository for itself: {next:?}");
    assert_eq!(texts(&plain_restore(&host, "latest", "plain")), texts(&host.state_dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_under_way_ends_with_its_agent_and_with_an_upgrade_in_good_time() {
    if !has_programs(&["restic"]) {
        return;
    }
    let mut host = host(&["ada"], NEVER, "restic = \"./instead\"\n");
    instead(&host, "echo $$ > \"$root/pid\"; exec sleep 600");
    host.launch().await;
    let pid = host.root().join("pid");
    let under_way = async || {
        eventually("it is under way", async || fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n'))).await;
        let restic: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        fs::remove_file(&pid).unwrap();
        restic
    };
    let mut asked = Command::new(crate::support::host::SQ_AGENT).args(["backup", "--tenants"]).arg(host.file()).spawn().unwrap();
    let before = under_way().await;
    good(&host.cli(&["upgrade"]));
    assert!(processes::ended_within(before, Duration::from_secs(1)), "it works on while another agent has the stage");
    // Whoever waits asks the agent that follows, and the one after that: an upgrade hands over twice.
    let mut restic = under_way().await;
    while let Ok(again) = tokio::time::timeout(Duration::from_secs(3), under_way()).await {
        restic = again;
    }
    assert_eq!(host.end_agent(Signal::TERM), Some(0));
    assert!(processes::ended_within(restic, Duration::from_secs(1)));
    assert_eq!(asked.wait().unwrap().code(), Some(1), "nobody is left to do it");
}

/// A text that shows by itself whether it is whole: its number, and as many letters as it says.
fn version(number: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(number % 26).unwrap());
    format!("{number} ") + &letter.to_string().repeat(200_000 + number)
}

fn number_of(text: &[u8]) -> usize {
    let text = std::str::from_utf8(text).unwrap();
    let number = text.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no version: {:.40}", text));
    assert!(text == version(number), "version {number} is cut or mixed, {} bytes", text.len());
    number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_text_in_a_backup_is_a_whole_version_though_people_write_all_the_time() {
    if !has_programs(&["restic"]) {
        return;
    }
    let ids = ["ada", "bob", "cleo"];
    let mut host = host(&ids, NEVER, "");
    host.launch().await;
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for id in ids {
        let (user, done, acknowledged) = (host.user(id), done.clone(), Arc::new(AtomicUsize::new(0)));
        write(&user, WRITE, version(0).as_bytes()).await;
        let counted = acknowledged.clone();
        let writing = tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            for number in 1.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let begun = std::time::Instant::now();
                write(&user, WRITE, version(number).as_bytes()).await;
                slowest = slowest.max(begun.elapsed());
                counted.store(number, Ordering::Relaxed);
            }
            slowest
        });
        writers.push((id, acknowledged, writing));
    }
    for round in 0..4 {
        let before: Vec<usize> = writers.iter().map(|(_, acknowledged, _)| acknowledged.load(Ordering::Relaxed)).collect();
        good(&tokio::task::block_in_place(|| host.cli(&["backup"])));
        let restored = texts(&plain_restore(&host, "latest", &format!("plain{round}")));
        for ((id, acknowledged, _), before) in writers.iter().zip(before) {
            let number = number_of(&restored[&Path::new("users").join(id).join("phext-data/diary.phext")]);
            assert!(
                before <= number && number <= acknowledged.load(Ordering::Relaxed) + 1,
                "{id}: {number}, {before} were acknowledged before"
            );
        }
    }
    done.store(true, Ordering::Relaxed);
    for (id, _, writing) in writers {
        let slowest = writing.await.unwrap();
        assert!(slowest < Duration::from_secs(3), "{id} waited {slowest:?} for a write");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_restore_that_gives_another_byte_is_an_alert_until_it_gives_the_same() {
    if !has_programs(&["restic"]) {
        return;
    }
    let mut host = host(&["ada"], NEVER, "restic = \"./instead\"\n");
    let flip = "\"$restic\" \"$@\" || exit\nif [ \"$1\" = restore ]; then\n  for file in \"$root\"/state/backup/test-restore/users/*/phext-data/*; do printf X | dd of=\"$file\" bs=1 seek=3 conv=notrunc status=none; done\nfi";
    instead(&host, flip);
    host.launch().await;
    write(&host.user("ada"), WRITE, b"a text of ada's").await;
    let told = host.cli(&["backup"]);
    assert!(
        told.code == 1 && told.out.contains("backup_restore_mismatch") && told.out.contains("diary.phext differs from byte 3 on"),
        "{told:?}"
    );
    assert!(told.out.contains("backup_done"), "the backup itself is good: {told:?}");
    assert_eq!(count(&host, "backup_restore_mismatch"), 1);
    let status = backup(&host).await;
    assert!(status.last_test_restore.is_none() && status.last_error.unwrap().contains("differs"));
    assert!(!host.state_dir().join("backup/test-restore").exists(), "nothing is left lying about");

    instead(&host, "exec \"$restic\" \"$@\"");
    let again = host.cli(&["backup"]);
    assert!(again.code == 0 && again.out.contains("backup_test_restored: ada"), "tried again at once: {again:?}");
    assert_eq!(backup(&host).await.last_error, None);
}
