//! What keeps instances apart, shown by one that tries: this very program in sq's place.
//!
//! The attempts are made with nothing in force, with each part alone and with all of them. With nothing in force they must
//! succeed: an attempt that fails by itself would show nothing.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // a test without the usual harness

mod attack;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr as UnixAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use attack::{Last, ORDERS, OUTCOME, Orders, Outcome, SHELL, THREADS};
use sq_agent::{
    desired::{TenantId, user_dir},
    instance::{
        Exit, Process,
        cgroup::CgroupLimits,
        isolation::{Isolation, Part, Wanted},
        launcher::{Launcher, LauncherConfig},
        limits::MAX_THREADS,
        probe,
        process::StopSignal,
        spawn::SpawnSpec,
    },
};
use support::{DEADLINE, free_port, sq_binary};

const TESTS: &[(&str, fn())] = &[
    ("each_part_refuses_what_it_should_and_nothing_in_force_refuses_nothing", each_part),
    ("an_instance_that_fills_the_disk_is_ended_by_its_limit", disk),
    ("an_instance_with_a_user_of_its_own_gets_no_more_threads_than_sq_needs", threads),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "host") {
        attack::run(&args);
        return ExitCode::SUCCESS;
    }
    let wanted = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    if args.iter().any(|arg| arg == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut code = ExitCode::SUCCESS;
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted.is_none_or(|part| name.contains(part.as_str()))) {
        let begun = Instant::now();
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, begun.elapsed().as_millis());
        if !passed {
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What is in force, for one round.
struct InForce {
    isolation: Isolation,
    /// Of Landlock; 0 where it is off.
    abi: u32,
}

impl InForce {
    fn of(isolation: Isolation) -> Self {
        let abi = match &isolation.landlock {
            Part::On { detail } => detail.strip_prefix("ABI ").unwrap().split(':').next().unwrap().parse().unwrap(),
            Part::Off { .. } => 0,
        };
        Self { isolation, abi }
    }

    /// Whether something in force must refuse an attempt.
    fn refuses(&self, attempt: &str) -> bool {
        let Isolation { network, seccomp, user, .. } = &self.isolation;
        let (network, seccomp, user) = (network.is_on(), seccomp.is_on(), user.is_on());
        let landlock = |since| self.abi >= since;
        match attempt {
            "serve" => false,
            "read another's file" | "write another's file" => landlock(1) || user,
            "write outside" | "read another's key" => landlock(1),
            "read another's memory" => landlock(1) || user || seccomp,
            "connect to another" => landlock(4) || seccomp,
            "connect to the host" => landlock(4) || seccomp || network,
            "listen elsewhere" => landlock(4),
            "connect to the agent's socket" => seccomp || user,
            "connect to an abstract socket" => landlock(6) || seccomp || network,
            "signal another" | "signal the agent" => landlock(6) || seccomp || user,
            "start processes" => landlock(1) || seccomp,
            "make a link" => landlock(1) || seccomp,
            "make namespaces" => seccomp,
            other => panic!("no expectation of: {other}"),
        }
    }
}

/// What a host may forbid by itself, whatever is in force.
fn host_may_refuse(attempt: &str) -> bool {
    matches!(attempt, "make namespaces" | "read another's memory")
}

fn each_part() {
    let nothing = Wanted::NOTHING;
    let rounds = [
        ("nothing", nothing),
        ("network", Wanted { network: true, ..nothing }),
        ("landlock", Wanted { landlock: true, ..nothing }),
        ("seccomp", Wanted { seccomp: true, ..nothing }),
        ("user", Wanted { user: true, ..nothing }),
        ("everything", Wanted::EVERYTHING),
    ];
    for (name, wanted) in rounds {
        // A thousand where they are refused; where not, a few show as much.
        let forks = if wanted == Wanted::EVERYTHING { 1_000 } else { 3 };
        // The filter alone lets a shell start, which then gets nowhere, each kind of shell in its own way.
        let last = if wanted.seccomp && !wanted.landlock { Last::Nothing } else { Last::Shell };
        let round = Round::play(wanted, forks, last);
        let in_force = InForce::of(round.isolation.clone());
        eprintln!("{name}: off are {:?}", in_force.isolation.missing());
        for (attempt, refused) in &round.outcome() {
            match in_force.refuses(attempt) {
                true => assert!(refused.is_some(), "{name}: {attempt} succeeded"),
                false if host_may_refuse(attempt) => {}
                false => assert_eq!(refused, &None, "{name}: {attempt}"),
            }
        }
        assert_eq!(round.data.join(SHELL).exists(), in_force.abi == 0 && last == Last::Shell, "{name}: a shell");
        assert_eq!(round.exit, Exit::Code(0), "{name}");
    }
}

fn disk() {
    let round = Round::play(Wanted::EVERYTHING, 1, Last::Disk);
    assert_eq!(round.exit.to_string(), "signal 25 (SIGXFSZ)");
}

fn threads() {
    if !is_root() {
        return; // without a user of its own, nothing but its cgroup counts them
    }
    let round = Round::play(Wanted::EVERYTHING, 1, Last::Threads);
    assert!(round.isolation.user.is_on(), "{:?}", round.isolation.user);
    let count: u64 = fs::read_to_string(round.data.join(THREADS)).unwrap().parse().unwrap();
    assert!((512..MAX_THREADS).contains(&count), "{count} threads beside the first");
}

/// One hostile instance's life.
struct Round {
    isolation: Isolation,
    exit: Exit,
    data: PathBuf,
    _dir: tempfile::TempDir,
}

impl Round {
    fn outcome(&self) -> Outcome {
        serde_json::from_slice(&fs::read(self.data.join(OUTCOME)).unwrap()).unwrap()
    }

    /// Starts another user's real sq and the hostile instance beside it, and waits for the end of the latter.
    fn play(wanted: Wanted, forks: usize, last: Last) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Self::play_inside(wanted, forks, last))
    }

    async fn play_inside(wanted: Wanted, forks: usize, last: Last) -> Self {
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o711)).tempdir().unwrap();
        let state_dir = dir.path().join("state");
        fs::create_dir(&state_dir).unwrap();
        let config = LauncherConfig {
            exe: env!("CARGO_BIN_EXE_sq-agent").into(),
            state_dir: state_dir.clone(),
            wanted,
            like: None,
            cgroups: Err(Part::unwanted()),
        };
        let launcher = Launcher::start(config).unwrap();
        let other = Instance::start(&launcher, &state_dir, "other", 1, sq_binary());
        probe::until_ready(&launcher.network(), &other.process, other.port, "key-other", tokio::time::Instant::now() + DEADLINE)
            .await
            .unwrap();
        let other_file = other.data.join("a.phext");
        fs::write(&other_file, "secret").unwrap();
        fs::set_permissions(&other_file, fs::Permissions::from_mode(0o600)).unwrap();

        let open_dir = dir.path().join("open");
        fs::create_dir(&open_dir).unwrap();
        fs::set_permissions(&open_dir, fs::Permissions::from_mode(0o1777)).unwrap();
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let agent_socket = state_dir.join("agent.sock");
        let _agent = UnixListener::bind(&agent_socket).unwrap();
        fs::set_permissions(&agent_socket, fs::Permissions::from_mode(0o600)).unwrap();
        let abstract_name = dir.path().display().to_string();
        let _nameless = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&abstract_name).unwrap()).unwrap();
        let orders = Orders {
            other_file,
            open_dir,
            other_pid: other.process.pid().cast_signed(),
            other_port: other.port,
            free_port: free_port(),
            host_port: host.local_addr().unwrap().port(),
            agent_pid: std::process::id().cast_signed(),
            agent_socket,
            abstract_name,
            forks,
            last,
        };
        let data = user_dir(&state_dir, &TenantId::parse("hostile").unwrap()).join("phext-data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join(ORDERS), serde_json::to_vec(&orders).unwrap()).unwrap();
        let hostile = Instance::start(&launcher, &state_dir, "hostile", 2, std::env::current_exe().unwrap());
        let exit = tokio::time::timeout(DEADLINE, hostile.process.exited()).await.unwrap();
        let log = fs::read_to_string(data.parent().unwrap().join("sq.log")).unwrap();
        assert!(data.join(OUTCOME).exists(), "{exit}: {log}");
        Self { isolation: launcher.isolation(), exit, data, _dir: dir }
    }
}

/// Something started in sq's place, that ends with its round.
struct Instance {
    process: Process,
    port: u16,
    data: PathBuf,
}

impl Instance {
    fn start(launcher: &Launcher, state_dir: &Path, id: &str, slot: u32, binary: PathBuf) -> Self {
        let (key, id, port) = (format!("key-{id}"), TenantId::parse(id).unwrap(), free_port());
        let user_dir = user_dir(state_dir, &id);
        let data = user_dir.join("phext-data");
        let process = launcher.launch(&SpawnSpec { id, slot, limits: CgroupLimits::default(), binary, user_dir, port, key }).unwrap();
        Self { process, port, data }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.process.signal(StopSignal::Kill).unwrap();
    }
}
