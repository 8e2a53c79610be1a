//! Instances that are born through the launcher: real sq, real namespaces, as far as this host and user permit.
#![allow(clippy::unwrap_used)] // the lint only knows #[test] functions

mod support;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sq_agent::{
    desired::{TenantId, user_dir},
    instance::{
        Exit, Process,
        cgroup::CgroupLimits,
        isolation::{Part, Wanted},
        launcher::{Launcher, LauncherConfig},
        network::Network,
        ports::{PortState, probe_free},
        probe::{self, KeyedAnswer, ProbeError},
        process::StopSignal,
        spawn::SpawnSpec,
    },
};
use support::{DEADLINE, free_port, sq_binary};

const SECOND: Duration = Duration::from_secs(1);

fn config(state_dir: &Path) -> LauncherConfig {
    LauncherConfig {
        exe: PathBuf::from(env!("CARGO_BIN_EXE_sq-agent")),
        state_dir: state_dir.into(),
        wanted: Wanted::EVERYTHING,
        like: None,
        cgroups: Err(Part::unwanted()),
    }
}

fn spec(state_dir: &Path, id: &str, port: u16) -> SpawnSpec {
    let id = TenantId::parse(id).unwrap();
    let user_dir = user_dir(state_dir, &id);
    SpawnSpec { id, slot: 0, limits: CgroupLimits::default(), binary: sq_binary(), user_dir, port, key: "key-a".into() }
}

struct Sq(Process);

impl Drop for Sq {
    fn drop(&mut self) {
        self.0.signal(StopSignal::Kill).unwrap();
    }
}

async fn launch(launcher: &Launcher, spec: SpawnSpec) -> Sq {
    let launcher = launcher.clone();
    let port = spec.port;
    let network = launcher.network();
    let sq = Sq(tokio::task::spawn_blocking(move || launcher.launch(&spec)).await.unwrap().unwrap());
    probe::until_ready(&network, &sq.0, port, "key-a", tokio::time::Instant::now() + DEADLINE).await.unwrap();
    sq
}

#[tokio::test]
async fn an_sq_is_born_apart_and_answers_inside_alone() {
    let dir = tempfile::tempdir().unwrap();
    let launcher = Launcher::start(config(dir.path())).unwrap();
    eprintln!("{:#?}", launcher.isolation());
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
