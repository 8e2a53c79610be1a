//! What every test with real sq needs: the program, free ports, and an end for each process.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it
#![allow(clippy::unwrap_used, clippy::print_stderr)] // as in any test; the lint only knows #[test] functions

pub mod admin;
pub mod browser;
pub mod client;
pub mod dice;
pub mod host;
pub mod launch;
pub mod ports;
pub mod processes;
pub mod receiver;
pub mod scrape;
pub mod tokens;
pub mod wanted;
pub mod work;

use std::{
    future::Future,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use sq_agent::{
    desired::SqSource,
    instance::{
        Process, binary,
        isolation::Wanted,
        launcher::{Launcher, LauncherConfig},
        network::Network,
        ports::{PortState, probe_free},
        probe,
        process::StopSignal,
        spawn::SpawnSpec,
    },
};

/// The version all tests run.
pub const SQ_VERSION: &str = "0.6.0";

/// The real sq, installed once below target/ and shared by all test processes (a lock lets one install).
pub fn sq_binary() -> PathBuf {
    static SQ: OnceLock<PathBuf> = OnceLock::new();
    // A thread of its own, since a test may be inside a runtime already.
    let install = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR"));
        std::fs::create_dir_all(shared).unwrap();
        let source = SqSource::Version(SQ_VERSION.into());
        runtime.block_on(binary::ensure(&source, shared, &|line| eprintln!("{line}"))).unwrap().path
    };
    SQ.get_or_init(|| std::thread::spawn(install).join().unwrap()).clone()
}

/// Whether all of these programs are there. Where one is not, the test that asks is left out and says so; not in CI, which installs them all.
pub fn has_programs(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap();
    let is_there = |program: &&str| std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    let missing: Vec<&&str> = programs.iter().filter(|program| !is_there(program)).collect();
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "{missing:?} is not there");
    if !missing.is_empty() {
        eprintln!("LEFT OUT: {missing:?} is not there");
    }
    missing.is_empty()
}

/// A port that sq can bind, below those the kernel gives to outgoing connections, and given once in this process. Each
/// process starts at a place of its own.
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(97) % u32::from(COUNT);
    loop {
        let offset = (start + u32::from(GIVEN.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).unwrap();
        if probe_free(&Network::host(), port) == PortState::Free {
            return port;
        }
    }
}

/// A real sq in the host's network and without a sandbox, that ends with the test, whatever happens.
pub struct Running {
    /// The process.
    pub process: Process,
    /// Its port.
    pub port: u16,
    /// Its key.
    pub key: String,
    /// `users/<id>`.
    pub user_dir: PathBuf,
}

impl Running {
    /// Spawns one without waiting for it, by a launcher that has this process's limits of now.
    pub fn spawn(state_dir: &Path, id: &str, key: &str, port: u16) -> Self {
        let launcher = Launcher::start(LauncherConfig { wanted: Wanted::NOTHING, ..launch::config(state_dir) }).unwrap();
        let spec = SpawnSpec { key: key.into(), ..launch::spec(state_dir, id, port) };
        let process = launcher.launch(&spec).unwrap();
        Self { process, port, key: spec.key, user_dir: spec.user_dir }
    }

    /// Spawns one on a free port and waits until it answers.
    pub async fn start(state_dir: &Path, id: &str, key: &str) -> Self {
        let running = Self::spawn(state_dir, id, key, free_port());
        let deadline = tokio::time::Instant::now() + DEADLINE;
        probe::until_ready(&Network::host(), &running.process, running.port, key, deadline).await.unwrap();
        running
    }
}

impl Deref for Running {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.signal(StopSignal::Kill).unwrap();
    }
}

/// How long a test waits for anything before it fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Asks again every few milliseconds until `condition` holds, and fails after [`DEADLINE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
