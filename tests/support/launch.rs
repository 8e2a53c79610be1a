//! Real sq through the launcher.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use sq_agent::{
    desired::{TenantId, user_dir},
    instance::{
        Process,
        cgroup::CgroupLimits,
        isolation::{Part, Wanted},
        launcher::{Launcher, LauncherConfig},
        probe,
        process::StopSignal,
        spawn::SpawnSpec,
    },
};

use super::{DEADLINE, sq_binary};

/// One through which others may pass, as below /var/lib.
pub fn state_dir() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o711)).tempdir().unwrap()
}

/// As isolated as this host permits, in the host's cgroups as they are.
pub fn config(state_dir: &Path) -> LauncherConfig {
    LauncherConfig {
        exe: PathBuf::from(env!("CARGO_BIN_EXE_sq-agent")),
        state_dir: state_dir.into(),
        wanted: Wanted::EVERYTHING,
        like: None,
        cgroups: Err(Part::unwanted()),
    }
}

/// Sq's start for a tenant in slot 3, with the key `key-a`.
pub fn spec(state_dir: &Path, id: &str, port: u16) -> SpawnSpec {
    let id = TenantId::parse(id).unwrap();
    let user_dir = user_dir(state_dir, &id);
    SpawnSpec { id, slot: 3, limits: CgroupLimits::default(), binary: sq_binary(), user_dir, port, key: "key-a".into() }
}

/// An instance that ends with the test, whatever happens.
pub struct Sq(pub Process);

impl Drop for Sq {
    fn drop(&mut self) {
        self.0.signal(StopSignal::Kill).unwrap();
    }
}

/// Starts it and waits until it answers.
pub async fn launch(launcher: &Launcher, spec: SpawnSpec) -> Sq {
    let launcher = launcher.clone();
    let port = spec.port;
    let network = launcher.network();
    let sq = Sq(tokio::task::spawn_blocking(move || launcher.launch(&spec)).await.unwrap().unwrap());
    probe::until_ready(&network, &sq.0, port, "key-a", tokio::time::Instant::now() + DEADLINE).await.unwrap();
    sq
}
