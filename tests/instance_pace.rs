//! What a start through the launcher costs, beside a plain spawn.
#![allow(clippy::unwrap_used)] // the lint only knows #[test] functions

mod support;

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use sq_agent::instance::{
    Process,
    isolation::Wanted,
    launcher::{Launcher, LauncherConfig},
    limits::prepare_agent_limits,
    network::Network,
    probe,
    process::StopSignal,
    spawn::{DATA_DIR, LOG_FILE, SpawnSpec},
};
use support::{
    DEADLINE, free_port,
    launch::{Sq, config, spec, state_dir},
};

/// What starts cost.
struct Pace {
    per_second: f64,
    /// From the call until sq's image runs, on average.
    born: Duration,
    /// Processor time of all that took part: this process, the launcher, sq.
    cpu: Duration,
}

/// As the standard library starts any program: neither cgroup nor sandbox, and nobody in between.
fn plain(spec: &SpawnSpec) -> Process {
    let data_dir = spec.user_dir.join(DATA_DIR);
    fs::create_dir_all(&data_dir).unwrap();
    let log = File::create(spec.user_dir.join(LOG_FILE)).unwrap();
    let child = Command::new(&spec.binary)
        .args(["host", &spec.port.to_string(), "--key", &spec.key, "--data-dir"])
        .arg(data_dir)
        .current_dir(&spec.user_dir)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0)
        .spawn()
        .unwrap();
    Process::from_child(child).unwrap()
}

/// Starts `count` instances, a few at once, and waits until each has answered.
async fn pace(launcher: Option<Launcher>, state_dir: &Path, count: u32) -> Pace {
    const AT_ONCE: usize = 4;
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let network = launcher.as_ref().map_or_else(Network::host, Launcher::network);
    let specs: Vec<_> = (0..count).map(|n| spec(state_dir, &format!("t{n}"), free_port())).collect();
    let cpu_before = cpu(launcher.as_ref());
    let begun = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for spec in specs {
        let (launcher, network, permits) = (launcher.clone(), network.clone(), permits.clone());
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await.unwrap();
            let (port, begun) = (spec.port, std::time::Instant::now());
            let start = move || match launcher {
                Some(launcher) => launcher.launch(&spec).unwrap(),
                None => plain(&spec),
            };
            let sq = Sq(tokio::task::spawn_blocking(start).await.unwrap());
            let born = begun.elapsed();
            probe::until_ready(&network, &sq.0, port, "key-a", tokio::time::Instant::now() + DEADLINE).await.unwrap();
            (sq, born)
        });
    }
    let started = tasks.join_all().await;
    let per_second = f64::from(count) / begun.elapsed().as_secs_f64();
    for (sq, _) in &started {
        sq.0.signal(StopSignal::Kill).unwrap();
        sq.0.exited().await;
    }
    let born = started.iter().map(|(_, born)| *born).sum::<Duration>() / count;
    Pace { per_second, born, cpu: (cpu(launcher.as_ref()) - cpu_before) / count }
}

/// Processor time so far.
fn cpu(launcher: Option<&Launcher>) -> Duration {
    let used = |who| {
        let usage = nix::sys::resource::getrusage(who).unwrap();
        let time =
            |time: nix::sys::time::TimeVal| Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap());
        time(usage.user_time()) + time(usage.system_time())
    };
    let launcher = launcher.map_or(0, |launcher| {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", launcher.pid())).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    });
    use nix::sys::resource::UsageWho::{RUSAGE_CHILDREN, RUSAGE_SELF};
    used(RUSAGE_SELF) + used(RUSAGE_CHILDREN) + Duration::from_nanos(launcher)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it with --release --nocapture on an idle machine"]
async fn the_launchers_pace_beside_a_plain_spawn() {
    prepare_agent_limits().unwrap();
    let nothing = Wanted::NOTHING;
    let ways = [
        ("plain spawn", None),
        ("nothing", Some(nothing)),
        ("network", Some(Wanted { network: true, ..nothing })),
        ("landlock", Some(Wanted { landlock: true, ..nothing })),
        ("seccomp", Some(Wanted { seccomp: true, ..nothing })),
        ("privileges", Some(Wanted { privileges: true, ..nothing })),
        ("user", Some(Wanted { user: true, ..nothing })),
        ("everything", Some(Wanted::EVERYTHING)),
    ];
    for (name, wanted) in ways {
        let dir = state_dir();
        let launcher = wanted.map(|wanted| Launcher::start(LauncherConfig { wanted, ..config(dir.path()) }).unwrap());
        let Pace { per_second, born, cpu } = pace(launcher, dir.path(), 500).await;
        println!("{name}: {per_second:.0} starts/s, {} µs until sq runs, {} µs of processor each", born.as_micros(), cpu.as_micros());
    }
}
