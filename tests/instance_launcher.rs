//! Instances that are born through the launcher: real sq, real namespaces, as far as this host and user permit.
#![allow(clippy::unwrap_used)] // the lint only knows #[test] functions

mod support;

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use sq_agent::{
    desired::{TenantId, user_dir},
    instance::{
        Exit, Process,
        isolation::{Part, Wanted},
        launcher::{Launcher, LauncherConfig},
        limits::{NICE, prepare_agent_limits},
        network::Network,
        ports::{PortState, probe_free},
        probe::{self, KeyedAnswer, ProbeError},
        process::StopSignal,
        scan::scan,
        spawn::SpawnSpec,
        stop::stop,
    },
};
use support::{
    DEADLINE, eventually, free_port,
    launch::{config, launch, spec, state_dir},
    sq_binary,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn an_sq_is_born_apart_and_answers_inside_alone() {
    let dir = state_dir();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    let port = free_port();
    let sq = launch(&launcher, spec(dir.path(), "a", port)).await;
    let network = launcher.network();
    assert_eq!(probe::keyed(&network, port, "key-a", SECOND).await.unwrap(), KeyedAnswer::Mine);
    if network.is_apart() {
        assert!(matches!(probe::keyed(&Network::host(), port, "key-a", SECOND).await, Err(ProbeError::Refused)));
        assert_eq!(probe_free(&Network::host(), port), PortState::Free);
        let PortState::Taken { by } = probe_free(&network, port) else { panic!("sq has it") };
        assert!(by.contains(&format!("pid {} (sq)", sq.0.pid())), "{by}");
    }
    sq.0.signal(StopSignal::Kill).unwrap();
    assert_eq!(sq.0.exited().await, Exit::Signal(9), "it is a child as any other");
}

/// One request to an instance, with its key, one a connection: the status and the body.
async fn request(network: &Network, port: u16, line: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = network.connect(port).await.unwrap();
    let head = format!("{line} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key-a\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(end))
}

#[tokio::test]
async fn the_whole_of_sq_works_in_the_sandbox() {
    let dir = state_dir();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    let port = free_port();
    let _sq = launch(&launcher, spec(dir.path(), "a", port)).await;
    let network = launcher.network();
    let at = "p=diary&c=1.1.1/1.1.1/1.1.1";
    let get = async |what: &str| request(&network, port, &format!("GET /api/v2/{what}"), b"").await;
    let post = async |what: &str, body: &[u8]| request(&network, port, &format!("POST /api/v2/{what}"), body).await.0;
    let text = async |what: &str| String::from_utf8(get(what).await.1).unwrap();

    assert_eq!(post(&format!("insert?{at}"), b"one").await, 200);
    assert_eq!(post(&format!("insert?{at}"), b" two").await, 200);
    assert_eq!(text(&format!("select?{at}")).await, "one two");
    for size in [1_000_000, 16_000_000] {
        let body = vec![b'x'; size];
        assert_eq!(post(&format!("update?{at}"), &body).await, 200);
        // From the file, not from memory.
        assert_eq!(get("load?p=diary").await.0, 200);
        assert!(get(&format!("select?{at}")).await.1 == body, "{size} bytes come back");
    }
    assert_eq!(post(&format!("update?{at}"), b"short").await, 200);
    for read in ["toc?p=diary", "get?p=diary", "delta?p=diary", "checksum?p=diary", "status?p=diary", "version", "json-export?p=diary"] {
        assert_eq!(get(read).await.0, 200, "{read}");
    }
    assert_eq!(post("where?p=diary", b"short").await, 200);
    let exported = user_dir(dir.path(), &TenantId::parse("a").unwrap()).join("phext-data/diary.phext.json");
    assert!(fs::read_to_string(exported).unwrap().contains("short"));
    assert_eq!(get(&format!("delete?{at}")).await.0, 200);
    assert_eq!(text(&format!("select?{at}")).await, "");
}

#[tokio::test]
async fn an_sq_in_the_sandbox_serves_its_512_connections_and_refuses_the_next() {
    let dir = state_dir();
    prepare_agent_limits().unwrap();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    let port = free_port();
    let sq = launch(&launcher, spec(dir.path(), "a", port)).await;
    let network = launcher.network();
    let mut open = Vec::new();
    for _ in 0..512 {
        open.push(network.connect(port).await.unwrap());
    }
    // Each has a thread by now, or will have; the refusal may come as a reset.
    let refused = async || !matches!(probe::keyed(&network, port, "key-a", SECOND).await, Ok(KeyedAnswer::Mine));
    eventually("the next one is refused", refused).await;
    for stream in &mut open {
        stream.write_all(b"OPTIONS / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 204");
    }
    drop(open);
    eventually("it serves again", || async { matches!(probe::keyed(&network, port, "key-a", SECOND).await, Ok(KeyedAnswer::Mine)) }).await;
    assert_eq!(sq.0.try_exit(), None);
}

#[tokio::test]
async fn what_an_instance_has_given_up_is_seen_from_outside() {
    let dir = state_dir();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    let sq = launch(&launcher, spec(dir.path(), "a", free_port())).await;
    let status = fs::read_to_string(format!("/proc/{}/status", sq.0.pid())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    let isolation = launcher.isolation();
    if isolation.seccomp.is_on() {
        assert_eq!(field("Seccomp:"), "2");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    if is_root() {
        assert_eq!(field("CapBnd:"), "0000000000000000");
        assert_eq!((field("Uid:"), field("Groups:")), ("1879048195\t1879048195\t1879048195\t1879048195", ""));
    }
    // The connection of the last probe may still be closing.
    eventually("its own four descriptors alone", || {
        let entries = fs::read_dir(format!("/proc/{}/fd", sq.0.pid())).unwrap();
        let mut open: Vec<String> = entries.map(|fd| fd.unwrap().file_name().into_string().unwrap()).collect();
        open.sort();
        std::future::ready(open == ["0", "1", "2", "3"])
    })
    .await;
    let environment = fs::read_to_string(format!("/proc/{}/environ", sq.0.pid())).unwrap();
    assert_eq!(environment, "PATH=/usr/local/bin:/usr/bin:/bin\0");
    let limits = fs::read_to_string(format!("/proc/{}/limits", sq.0.pid())).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max file size") && line.contains("1073741824")), "{limits}");
    let pid = rustix::process::Pid::from_raw(sq.0.pid().try_into().unwrap());
    assert_eq!(rustix::process::getpriority_process(pid), Ok(NICE), "it stands behind the proxy");
    // What the agent looks at stays open to it.
    fs::read(format!("/proc/{}/smaps_rollup", sq.0.pid())).unwrap();
}

#[tokio::test]
async fn an_sq_that_was_replaced_under_a_running_agent_starts() {
    let dir = state_dir();
    let binary = dir.path().join("sq");
    let launcher = Launcher::start(config(dir.path())).unwrap();
    for id in ["a", "b"] {
        // By rename, as a package does: another file of the same name. Written by another process, since a descriptor of ours
        // would make it busy.
        let new = dir.path().join("sq.new");
        assert!(Command::new("cp").args([&sq_binary(), &new]).status().unwrap().success());
        fs::rename(&new, &binary).unwrap();
        launch(&launcher, SpawnSpec { binary: binary.clone(), ..spec(dir.path(), id, free_port()) }).await;
    }
}

#[tokio::test]
async fn an_sq_that_other_users_cannot_reach_runs_as_the_agents_own_and_that_is_said() {
    let dir = state_dir();
    let closed = dir.path().join("closed");
    fs::DirBuilder::new().mode(0o700).create(&closed).unwrap();
    assert!(Command::new("cp").args([&sq_binary(), &closed.join("sq")]).status().unwrap().success());
    let launcher = Launcher::start(config(dir.path())).unwrap();
    assert_eq!(launcher.isolation().user.is_on(), is_root());
    let sq = launch(&launcher, SpawnSpec { binary: closed.join("sq"), ..spec(dir.path(), "a", free_port()) }).await;
    assert_eq!(fs::metadata(format!("/proc/{}", sq.0.pid())).unwrap().uid(), rustix::process::geteuid().as_raw());
    let Part::Off { reason, .. } = launcher.isolation().user else { panic!("it is off now") };
    assert!(!is_root() || reason.contains("closed"), "{reason}");
}

#[tokio::test]
async fn data_belong_to_the_instances_user_and_all_else_to_the_agent_and_back_again() {
    let dir = state_dir();
    let user_dir = user_dir(dir.path(), &TenantId::parse("a").unwrap());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(user_dir.join("phext-data")).unwrap();
    fs::write(user_dir.join("phext-data/old.phext"), "text").unwrap();
    let me = rustix::process::geteuid().as_raw();
    let seen = |name: &str| fs::symlink_metadata(user_dir.join(name)).map(|found| (found.uid(), found.mode() & 0o777)).unwrap();
    for user in [true, false, true] {
        let launcher = Launcher::start(LauncherConfig { wanted: Wanted { user, ..Wanted::EVERYTHING }, ..config(dir.path()) }).unwrap();
        let port = free_port();
        let sq = launch(&launcher, spec(dir.path(), "a", port)).await;
        let (owner, mode) = if user && is_root() { (0x7000_0003, 0o710) } else { (me, 0o700) };
        assert_eq!(seen("phext-data"), (owner, 0o700));
        assert_eq!((seen("phext-data/old.phext").0, seen(".sq").0), (owner, owner));
        assert_eq!((seen("."), seen("sq.log"), seen("sq.pid").0), ((me, mode), (me, 0o600), me));
        let text = request(&launcher.network(), port, "GET /api/v2/select?p=old&c=1.1.1/1.1.1/1.1.1", b"").await.1;
        assert_eq!(text, b"text");
        let found = scan(dir.path()).unwrap();
        assert_eq!(found.iter().map(|found| found.pid).collect::<Vec<_>>(), [sq.0.pid()], "a scan finds it whosever it is");
        sq.0.signal(StopSignal::Kill).unwrap();
        sq.0.exited().await;
    }
}

#[tokio::test]
async fn a_launcher_that_died_is_started_again_in_the_same_network() {
    let dir = state_dir();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    let (network, ports) = (launcher.network(), [free_port(), free_port()]);
    let before = launch(&launcher, spec(dir.path(), "a", ports[0])).await;
    let dead = launcher.pid();
    launcher.end();
    assert_eq!(probe::keyed(&network, ports[0], "key-a", SECOND).await.unwrap(), KeyedAnswer::Mine, "instances go on");
    let after = launch(&launcher, spec(dir.path(), "b", ports[1])).await;
    assert_ne!(launcher.pid(), dead);
    for port in ports {
        assert_eq!(probe::keyed(&network, port, "key-a", SECOND).await.unwrap(), KeyedAnswer::Mine);
    }
    assert_eq!(namespace(before.0.pid()), namespace(after.0.pid()));
}

#[tokio::test]
async fn the_next_agents_launcher_lives_where_the_instances_of_the_last_one_live() {
    let dir = state_dir();
    for wanted in [Wanted::EVERYTHING, Wanted { network: false, ..Wanted::EVERYTHING }] {
        let first = Launcher::start(LauncherConfig { wanted, ..config(dir.path()) }).unwrap();
        let ports = [free_port(), free_port()];
        let old = launch(&first, spec(dir.path(), "a", ports[0])).await;
        drop(first);
        let next = Launcher::start(LauncherConfig { like: Some(old.0.pid()), ..config(dir.path()) }).unwrap();
        let new = launch(&next, spec(dir.path(), "b", ports[1])).await;
        assert_eq!(namespace(old.0.pid()), namespace(new.0.pid()));
        for port in ports {
            assert_eq!(probe::keyed(&next.network(), port, "key-a", SECOND).await.unwrap(), KeyedAnswer::Mine);
        }
        assert_eq!(next.network().is_apart(), wanted.network && next.isolation().network.is_on());
    }
}

#[tokio::test]
async fn where_the_host_has_no_network_to_give_instances_live_in_its_own_and_the_reason_is_said() {
    let dir = state_dir();
    // As a container's filter does: no namespaces, and no clone3.
    let launcher = std::thread::spawn({
        let config = config(dir.path());
        move || {
            refuse(&[(libc::SYS_unshare, libc::EPERM), (libc::SYS_clone3, libc::ENOSYS)]);
            Launcher::start(config)
        }
    });
    let launcher = launcher.join().unwrap().unwrap();
    let Part::Off { reason, remedy } = launcher.isolation().network else { panic!("it cannot be on") };
    assert!(reason.contains("EPERM") && !remedy.is_empty(), "{reason}: {remedy}");
    let port = free_port();
    let sq = launch(&launcher, spec(dir.path(), "a", port)).await;
    assert_eq!(probe::keyed(&Network::host(), port, "key-a", SECOND).await.unwrap(), KeyedAnswer::Mine);
    assert_eq!(stop(&sq.0, DEADLINE).await, Exit::Signal(15), "a child all the same");
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_told_with_the_step() {
    let dir = state_dir();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    let text = |spec: SpawnSpec| launcher.launch(&spec).unwrap_err().to_string();
    let missing = text(SpawnSpec { binary: "/no/such/sq".into(), ..spec(dir.path(), "a", 10_001) });
    assert!(missing.contains("/no/such/sq") && missing.contains("running") && missing.contains("No such file"), "{missing}");
    let no_program = text(SpawnSpec { binary: "/etc/passwd".into(), ..spec(dir.path(), "a", 10_001) });
    assert!(no_program.contains("Permission denied"), "{no_program}");
    assert!(scan(dir.path()).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_starts_at_once_all_come_up() {
    let dir = state_dir();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    let starts: Vec<_> = (0..40).map(|n| (format!("t{n}"), free_port())).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (id, port) in starts {
        let (launcher, spec) = (launcher.clone(), spec(dir.path(), &id, port));
        tasks.spawn(async move { (launch(&launcher, spec).await, port) });
    }
    let running = tasks.join_all().await;
    let pids: std::collections::BTreeSet<u32> = running.iter().map(|(sq, _)| sq.0.pid()).collect();
    assert_eq!(pids.len(), 40);
}

#[tokio::test]
async fn how_an_adopted_instance_ended_is_known_where_the_kernel_tells() {
    let dir = state_dir();
    let (fifo, pid) = (dir.path().join("fifo"), dir.path().join("pid"));
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0).unwrap();
    // A grandchild, whose parent waits for it as init does for an orphan.
    let script = format!("(read line < {}; exit 7) & echo $! > {}; wait", fifo.display(), pid.display());
    let mut parent = Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
    eventually("it has a number", || std::future::ready(fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')))).await;
    let pid: u32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_time = stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    let process = Process::adopt(pid, start_time).unwrap().unwrap();
    assert_eq!(process.try_exit(), None);
    fs::write(fifo, "go\n").unwrap();
    let exit = process.exited().await;
    if kernel_at_least(6, 15) {
        assert_eq!(exit, Exit::Code(7));
    } else {
        assert!(matches!(exit, Exit::Unknown | Exit::Code(7)), "{exit}");
    }
    assert_eq!((process.try_exit(), process.exited().await), (Some(exit), exit), "and stays so");
    parent.wait().unwrap();
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}

fn namespace(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes system calls fail for this thread and what it starts.
fn refuse(calls: &[(libc::c_long, i32)]) {
    for (call, errno) in calls {
        let rules = [(*call, Vec::new())].into();
        let refused = SeccompAction::Errno(errno.cast_unsigned());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into().unwrap()).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    }
}
