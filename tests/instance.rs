//! The primitives of `instance` against real sq: real processes, sockets and signals.
#![allow(clippy::unwrap_used)] // the lint only knows #[test] functions

mod support;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use sq_agent::instance::{
    Exit, Process,
    limits::{MIN_DESCRIPTORS, prepare_agent_limits},
    log::{rotate_if_needed, tail},
    network::Network,
    probe::{self, KeyedAnswer, NotReady, ProbeError},
    process::StopSignal,
    pulse::Pulse,
    scan::{scan, scan_strangers},
    stop::stop,
    usage,
};
use sq_agent::observed::Moment;
use support::{DEADLINE, Running, eventually, free_port, sq_binary};

const SECOND: Duration = Duration::from_secs(1);

fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + DEADLINE
}

fn proc_file(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
}

/// A field of /proc/<pid>/stat, counted from 1 as in the manual.
fn stat_field(pid: u32, number: usize) -> String {
    let stat = proc_file(pid, "stat");
    stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(number - 3).unwrap().to_owned()
}

#[tokio::test]
async fn a_started_sq_takes_its_own_key_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let sq = Running::start(dir.path(), "a", "key-a").await;
    assert_eq!(probe::keyed(&Network::host(), sq.port, "key-a", SECOND).await.unwrap(), KeyedAnswer::Mine);
    assert_eq!(probe::keyed(&Network::host(), sq.port, "key-b", SECOND).await.unwrap(), KeyedAnswer::OtherKey);
    assert!(usage::memory(sq.pid(), None).unwrap().bytes > 50_000);
}

#[tokio::test]
async fn a_squatter_with_another_key_is_not_taken_for_our_own() {
    let dir = tempfile::tempdir().unwrap();
    let squatter = Running::start(dir.path(), "squatter", "key-s").await;
    let ours = Running::spawn(dir.path(), "a", "key-a", squatter.port);
    let error = probe::until_ready(&Network::host(), &ours, squatter.port, "key-a", deadline()).await.unwrap_err();
    assert!(matches!(error, NotReady::Exited(Exit::Code(101)) | NotReady::PortTaken { .. }), "{error}");
    assert_eq!(ours.exited().await, Exit::Code(101));
    let log = tail(&ours.user_dir.join("sq.log"), 5).join("\n");
    assert!(log.contains("AddrInUse"), "{log}");
}

#[tokio::test]
async fn a_live_process_whose_port_another_key_answers_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Running::start(dir.path(), "a", "key-a").await, Running::start(dir.path(), "b", "key-b").await);
    let error = probe::until_ready(&Network::host(), &a, b.port, "key-a", deadline()).await.unwrap_err();
    assert!(matches!(error, NotReady::PortTaken { port } if port == b.port), "{error}");
}

#[tokio::test]
async fn an_sq_without_a_key_takes_any_and_so_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut keyless = Command::new(sq_binary())
        .args(["host", &port.to_string()])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it listens", || async { probe::keyed(&Network::host(), port, "key-a", SECOND).await.is_ok() }).await;
    let answer = probe::keyed(&Network::host(), port, "key-a", SECOND).await;
    keyless.kill().unwrap();
    keyless.wait().unwrap();
    assert_eq!(answer.unwrap(), KeyedAnswer::Other(404));
}

#[tokio::test]
async fn a_stopped_sq_misses_the_pulse_a_continued_one_does_not_and_neither_logs_it() {
    let dir = tempfile::tempdir().unwrap();
    let sq = Running::start(dir.path(), "a", "key-a").await;
    let log = sq.user_dir.join("sq.log");
    let logged = fs::metadata(&log).unwrap().len();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &sq.pid().to_string()]).status().unwrap().success());
    let limit = Duration::from_millis(300);
    for (name, answers) in [("-STOP", false), ("-CONT", true)] {
        signal(name);
        let mut pulse = Pulse::new(Network::host(), limit);
        let asked = Moment::now();
        pulse.ask("a", sq.port, asked);
        let mut known = None;
        let mut collect = || {
            known = pulse.collect(Moment::now()).pop();
            known.is_some()
        };
        eventually("it is known", || std::future::ready(collect())).await;
        assert_eq!(known, Some(("a", answers)));
        assert_eq!(Moment::now().since(asked) >= limit, !answers);
    }
    assert_eq!(fs::metadata(&log).unwrap().len(), logged);
}

#[tokio::test]
async fn nobody_a_mute_server_and_a_stranger_are_told_apart() {
    let port = free_port();
    assert!(matches!(probe::keyed(&Network::host(), port, "key-a", SECOND).await, Err(ProbeError::Refused)));
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert!(matches!(probe::keyed(&Network::host(), port, "key-a", Duration::from_millis(50)).await, Err(ProbeError::Timeout(_))));
    let stranger = std::thread::spawn(move || {
        // The mute connection above comes first.
        let (mut stream, _) = (listener.accept().unwrap(), listener.accept().unwrap()).1;
        stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).ok();
    });
    assert!(matches!(probe::keyed(&Network::host(), port, "key-a", SECOND).await, Err(ProbeError::NotHttp)));
    stranger.join().unwrap();
}

#[tokio::test]
async fn waiting_for_readiness_ends_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let sq = Running::start(dir.path(), "a", "key-a").await;
    let soon = tokio::time::Instant::now() + Duration::from_millis(50);
    let error = probe::until_ready(&Network::host(), &sq, free_port(), "key-a", soon).await.unwrap_err();
    assert!(matches!(error, NotReady::Timeout { last: ProbeError::Refused }), "{error}");
}

#[tokio::test]
async fn a_killed_sq_is_noticed_at_once_and_the_exit_says_how() {
    let dir = tempfile::tempdir().unwrap();
    let sq = Running::start(dir.path(), "a", "key-a").await;
    assert_eq!(sq.try_exit(), None);
    let killed = Instant::now();
    sq.signal(StopSignal::Kill).unwrap();
    let exit = sq.exited().await;
    assert!(killed.elapsed() < SECOND, "{:?}", killed.elapsed());
    assert_eq!(exit.to_string(), "signal 9 (SIGKILL)");
    assert!(!Path::new(&format!("/proc/{}", sq.pid())).exists(), "reaped");
}

#[tokio::test]
async fn an_sq_that_ends_during_its_start_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let sq = Running::spawn(dir.path(), "a", "key-a", free_port());
    sq.signal(StopSignal::Kill).unwrap();
    let started = Instant::now();
    let error = probe::until_ready(&Network::host(), &sq, free_port(), "key-a", deadline()).await.unwrap_err();
    assert!(matches!(error, NotReady::Exited(Exit::Signal(9))), "{error}");
    assert!(started.elapsed() < SECOND);
}

#[tokio::test]
async fn sq_inherits_nothing_but_the_limits() {
    let dir = tempfile::tempdir().unwrap();
    // As a careless supervisor would leave it: open across exec.
    let leaked = rustix::io::dup(File::open("/dev/zero").unwrap()).unwrap();
    prepare_agent_limits().unwrap();
    let sq = Running::start(dir.path(), "a", "key-a").await;
    let descriptor = |fd: &str| fs::read_link(format!("/proc/{}/fd/{fd}", sq.pid())).unwrap().display().to_string();
    // The connection of the last probe may still be closing.
    eventually("its own four descriptors alone", || {
        let entries = fs::read_dir(format!("/proc/{}/fd", sq.pid())).unwrap();
        let mut open: Vec<String> = entries.map(|fd| fd.unwrap().file_name().into_string().unwrap()).collect();
        open.sort();
        let alone = open == ["0", "1", "2", "3"];
        async move { alone }
    })
    .await;
    let log = fs::canonicalize(sq.user_dir.join("sq.log")).unwrap().display().to_string();
    assert_eq!([descriptor("0"), descriptor("1"), descriptor("2")], ["/dev/null".to_owned(), log.clone(), log]);
    assert!(descriptor("3").starts_with("socket:"), "its listener");
    drop(leaked);

    let limits = proc_file(sq.pid(), "limits");
    let limit =
        |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_ascii_whitespace().next().unwrap().to_owned();
    assert_eq!(limit("Max core file size"), "0");
    assert!(limit("Max open files").parse().unwrap_or(u64::MAX) >= MIN_DESCRIPTORS);
    assert_eq!([5, 6].map(|field| stat_field(sq.pid(), field)), [sq.pid().to_string(), sq.pid().to_string()], "a session of its own");
    assert_eq!(proc_file(sq.pid(), "environ"), "PATH=/usr/local/bin:/usr/bin:/bin\0");
    assert_eq!(stat_field(sq.pid(), 22), sq.start_time().to_string());
}

#[tokio::test]
async fn a_users_directory_has_the_layout_and_is_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let sq = Running::start(dir.path(), "a", "key-a").await;
    let mode = |name: &str| fs::metadata(sq.user_dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("../../users"), mode("."), mode("phext-data"), mode("sq.log")), (0o700, 0o700, 0o700, 0o600));
    assert_eq!(fs::read_to_string(sq.user_dir.join("sq.pid")).unwrap(), format!("{}\n", sq.pid()));
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", sq.pid())).unwrap(), fs::canonicalize(&sq.user_dir).unwrap());
}

#[tokio::test]
async fn a_term_ends_sq_and_a_stopped_one_gets_the_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Running::start(dir.path(), "a", "key-a").await, Running::start(dir.path(), "b", "key-b").await);
    assert_eq!(stop(&a, DEADLINE).await, Exit::Signal(15));
    assert_eq!(stop(&a, DEADLINE).await, Exit::Signal(15), "again is harmless");
    let pid = rustix::process::Pid::from_raw(b.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    eventually("it is stopped", || async { stat_field(b.pid(), 3) == "T" }).await;
    assert_eq!(stop(&b, Duration::from_millis(100)).await, Exit::Signal(9));
}

#[tokio::test]
async fn an_orphan_is_found_adopted_and_its_end_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let id = "user+x@example.com";
    let data_dir = fs::canonicalize(dir.path()).unwrap().join("users").join(id).join("phext-data");
    fs::create_dir_all(&data_dir).unwrap();
    let port = free_port();
    // Started by a parent that ends, as by an agent that was killed.
    let script = format!(
        "cd {} && exec >sq.log 2>&1 </dev/null && '{}' host {port} --key key-x --data-dir {} &",
        data_dir.parent().unwrap().display(),
        sq_binary().display(),
        data_dir.display()
    );
    assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
    eventually("it listens", || async { probe::keyed(&Network::host(), port, "key-a", SECOND).await.is_ok() }).await;

    let found = scan(dir.path()).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let found = &found[0];
    assert_eq!((found.id.as_str(), found.port, found.key.as_str()), (id, port, "key-x"));
    assert!(!format!("{found:?}").contains("key-x"), "the key is not for logs");
    let process = Process::adopt(found.pid, found.start_time).unwrap().unwrap();
    let orphan = Running { process, port, key: found.key.clone(), user_dir: data_dir };
    assert!(Process::adopt(found.pid, found.start_time + 1).unwrap().is_none(), "a reused pid");
    assert_eq!(orphan.try_exit(), None);
    let exit = stop(&orphan, DEADLINE).await;
    assert!(matches!(exit, Exit::Unknown | Exit::Signal(15)), "unless orphans are given to us: {exit}");
    assert!(Process::adopt(found.pid, found.start_time).unwrap().is_none());
    assert!(scan(dir.path()).unwrap().is_empty());
}

#[tokio::test]
async fn a_scan_finds_the_instances_of_this_state_directory_alone() {
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ids = ["user+x@example.com", "a_b-c.d", "-dash"];
    let mut started = Vec::new();
    for id in ids {
        started.push(Running::start(mine.path(), id, &format!("key-{}", id.len())).await);
    }
    let _other = Running::start(other.path(), "a", "key-o").await;
    let dead = Running::start(mine.path(), "zombie", "key-z").await;
    dead.signal(StopSignal::Kill).unwrap();
    eventually("it is a zombie", || async { stat_field(dead.pid(), 3) == "Z" }).await;

    // A second name of the same directory must not hide what runs in it.
    let link = other.path().join("link");
    std::os::unix::fs::symlink(mine.path(), &link).unwrap();
    for state_dir in [mine.path(), &link] {
        let mut found: Vec<_> = scan(state_dir).unwrap().into_iter().map(|f| (f.pid, f.id.to_string(), f.port, f.start_time)).collect();
        found.sort();
        let mut expected: Vec<_> = started.iter().zip(ids).map(|(sq, id)| (sq.pid(), id.to_owned(), sq.port, sq.start_time())).collect();
        expected.sort();
        assert_eq!(found, expected);
        let strangers = scan_strangers(state_dir, |pid| pid != started[1].pid()).unwrap();
        assert_eq!(strangers.iter().map(|f| f.pid).collect::<Vec<_>>(), [started[1].pid()]);
    }
    dead.exited().await;
}

#[tokio::test]
async fn sq_goes_on_logging_through_a_rotation() {
    const LIMIT: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let sq = Running::start(dir.path(), "a", "key-a").await;
    let log = sq.user_dir.join("sq.log");
    let mut rotations = 0;
    eventually("three rotations", || {
        rotations += i32::from(rotate_if_needed(&log, LIMIT).unwrap());
        let done = rotations == 3;
        let (port, key) = (sq.port, &sq.key);
        async move { done || probe::keyed(&Network::host(), port, key, SECOND).await.unwrap() != KeyedAnswer::Mine }
    })
    .await;
    let line = "404: GET /healthz HTTP/1.1";
    let old = fs::read_to_string(sq.user_dir.join("sq.log.1")).unwrap();
    assert!(old.len() as u64 >= LIMIT && old.ends_with(&format!("{line}\n")), "{old}");
    eventually("the next line stands in the new log", || async {
        probe::keyed(&Network::host(), sq.port, &sq.key, SECOND).await.unwrap();
        tail(&log, 1) == [line]
    })
    .await;
    let new = fs::read(&log).unwrap();
    assert!(!new.contains(&0) && (new.len() as u64) < LIMIT, "no hole where the old text was");
    assert_eq!(sq.try_exit(), None);
}
