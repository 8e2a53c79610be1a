//! Tenants' cgroups: real processes in them, with as many controllers as this host hands on.
//!
//! A small shell script stands for sq. Where there are no cgroups for us, or a controller is missing, a test says so and
//! shows the rest; the whole is shown by a kernel with cgroup v2 alone.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // the lint only knows #[test] functions

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use sq_agent::{
    desired::{TenantId, user_dir},
    instance::{
        Exit, Process,
        cgroup::{Applied, CgroupLimits, Cgroups},
        isolation::{Part, Wanted},
        launcher::{Launcher, LauncherConfig},
        process::StopSignal,
        spawn::SpawnSpec,
    },
};
use support::eventually;

const MB: u64 = 1 << 20;

/// A launcher with cgroups of its own, which are removed with it.
struct Host {
    dir: tempfile::TempDir,
    cgroups: Cgroups,
    launcher: Launcher,
}

impl Host {
    /// `None` where this host has no cgroups for us.
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // The directory's random name: tests run side by side.
        let name = dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let cgroups = Cgroups::open(&name).inspect_err(|why| eprintln!("not shown here: {why}")).ok()?;
        let config = LauncherConfig {
            exe: PathBuf::from(env!("CARGO_BIN_EXE_sq-agent")),
            state_dir: dir.path().into(),
            wanted: Wanted::NOTHING,
            like: None,
            cgroups: Ok(cgroups.clone()),
        };
        let launcher = Launcher::start(config).unwrap();
        assert!(launcher.isolation().cgroup.is_on());
        Some(Self { dir, cgroups, launcher })
    }

    /// Runs `script` in sq's place: as `sh host PORT …`, so it lies in a file of that name.
    fn run(&self, id: &str, limits: CgroupLimits, script: &str) -> Process {
        let id = tenant(id);
        let user_dir = user_dir(self.dir.path(), &id);
        fs::create_dir_all(&user_dir).unwrap();
        fs::write(user_dir.join("host"), script).unwrap();
        self.launcher.launch(&SpawnSpec { id, slot: 0, limits, binary: "/bin/sh".into(), user_dir, port: 10_001, key: "k".into() }).unwrap()
    }

    fn has(&self, part: fn(&Cgroups) -> &Part) -> bool {
        match part(&self.cgroups) {
            Part::On { .. } => true,
            Part::Off { reason, .. } => {
                eprintln!("not shown here: {reason}");
                false
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for id in self.cgroups.list().unwrap() {
            self.cgroups.kill(&id).unwrap();
            // Waits for their end.
            self.cgroups.prepare(&id, &CgroupLimits::default()).unwrap();
        }
        self.cgroups.clear();
    }
}

fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

const SLEEP: &str = "sleep 60";
const NONE: CgroupLimits = CgroupLimits { memory_max: None, cpu_quota: None };

#[tokio::test]
async fn an_instance_is_born_in_its_cgroup_and_found_there_with_its_children() {
    let Some(host) = Host::start() else { return };
    let process = host.run("cgroup.procs", NONE, "cat /proc/self/cgroup > born; sleep 60 & sleep 60");
    let id = tenant("cgroup.procs");
    eventually("its children are there", || std::future::ready(host.cgroups.processes(&id).unwrap().len() == 3)).await;
    assert!(host.cgroups.processes(&id).unwrap().contains(&process.pid()));
    let born = fs::read_to_string(user_dir(host.dir.path(), &id).join("born")).unwrap();
    assert!(born.lines().any(|line| line.starts_with("0::") && line.ends_with("/tenant-cgroup.procs")), "{born}");
    assert_eq!(host.cgroups.list().unwrap(), std::slice::from_ref(&id));
    host.cgroups.remove(&id).unwrap_err();
    assert!(host.cgroups.processes(&tenant("nobody")).unwrap().is_empty());
    host.cgroups.kill(&tenant("nobody")).unwrap();

    host.cgroups.kill(&id).unwrap();
    assert_eq!(process.exited().await, Exit::Signal(9));
    eventually("all of them are gone", || std::future::ready(host.cgroups.processes(&id).unwrap().is_empty())).await;
    eventually("it can be removed", || std::future::ready(host.cgroups.remove(&id).is_ok())).await;
    assert!(host.cgroups.list().unwrap().is_empty());
    host.cgroups.remove(&id).unwrap();
}

#[tokio::test]
async fn a_second_writer_is_impossible_since_a_start_ends_what_lives_in_the_cgroup() {
    let Some(host) = Host::start() else { return };
    let first = host.run("a", NONE, "sleep 60 & sleep 60");
    let second = host.run("a", NONE, SLEEP);
    assert_eq!(first.try_exit(), Some(Exit::Signal(9)), "it is gone before the second one is there");
    assert_eq!(second.try_exit(), None);
    let alone = || host.cgroups.processes(&tenant("a")).is_ok_and(|pids| pids.contains(&second.pid()) && !pids.contains(&first.pid()));
    assert!(alone());
}

#[tokio::test]
async fn each_controller_is_on_or_off_with_a_reason_and_a_remedy() {
    let Some(host) = Host::start() else { return };
    let controllers = host.cgroups.controllers();
    for part in [&controllers.memory, &controllers.cpu, &controllers.pids] {
        match part {
            Part::On { .. } => {}
            Part::Off { reason, remedy } => assert!(!reason.is_empty() && !remedy.is_empty()),
        }
    }
    let id = tenant("a");
    host.run("a", NONE, "while :; do :; done");
    eventually("it has used a processor", || std::future::ready(host.cgroups.cpu(&id).unwrap().usage_us > 10_000)).await;
    assert_eq!(host.cgroups.memory(&id).unwrap().is_some(), controllers.memory.is_on());
    assert_eq!(host.cgroups.pids(&id).unwrap().is_some(), controllers.pids.is_on());
}

/// Holds so many bytes and waits. A file in memory that has no name any more is the fastest way to get them.
fn holds(bytes: u64) -> String {
    format!("exec 3<> /dev/shm/sq-agent-test-$$; rm /dev/shm/sq-agent-test-$$; head -c {bytes} /dev/zero >&3; echo there > there; sleep 60")
}

fn there(host: &Host, id: &str) -> bool {
    user_dir(host.dir.path(), &tenant(id)).join("there").exists()
}

#[tokio::test]
async fn an_instance_that_eats_memory_is_killed_whole_and_known_to_be() {
    let Some(host) = Host::start() else { return };
    if !host.has(|cgroups| &cgroups.controllers().memory) {
        return;
    }
    let limits = CgroupLimits { memory_max: Some(20 * MB), cpu_quota: None };
    let process = host.run("a", limits, &holds(60 * MB));
    assert_eq!(process.exited().await, Exit::Signal(9));
    let memory = host.cgroups.memory(&tenant("a")).unwrap().unwrap();
    assert!(memory.events.oom_kill > 0 && memory.events.high > 0 && memory.events.max > 0, "{memory:?}");
    assert!(memory.peak.is_none_or(|peak| peak <= 20 * MB), "{memory:?}");
    eventually("the whole of it is gone", || std::future::ready(host.cgroups.processes(&tenant("a")).unwrap().is_empty())).await;
}

#[tokio::test]
async fn a_lowered_limit_is_in_force_at_once_where_there_is_room_and_else_after_a_restart() {
    let Some(host) = Host::start() else { return };
    if !host.has(|cgroups| &cgroups.controllers().memory) {
        return;
    }
    let (id, limit) = (tenant("a"), |mb: u64| CgroupLimits { memory_max: Some(mb * MB), cpu_quota: Some(50) });
    let process = host.run("a", limit(200), &holds(20 * MB));
    eventually("it holds them", || std::future::ready(there(&host, "a"))).await;
    assert_eq!(host.cgroups.apply(&id, &limit(100)).unwrap(), Applied::Now);
    assert_eq!(host.cgroups.apply(&id, &limit(10)).unwrap(), Applied::NeedsRestart);
    assert_eq!(process.try_exit(), None);
    let memory = host.cgroups.memory(&id).unwrap().unwrap();
    assert!(memory.current > 20 * MB && memory.events.oom_kill == 0, "{memory:?}");
    assert_eq!(host.cgroups.apply(&id, &limit(300)).unwrap(), Applied::Now, "a raised one always");
}

#[tokio::test]
async fn an_instance_that_starts_processes_without_end_is_refused() {
    let Some(host) = Host::start() else { return };
    if !host.has(|cgroups| &cgroups.controllers().pids) {
        return;
    }
    host.run("a", NONE, "mkfifo fifo; while :; do (: < fifo) & done");
    eventually("one more was refused", || std::future::ready(host.cgroups.pids(&tenant("a")).unwrap().unwrap().refused > 0)).await;
    assert!(host.cgroups.pids(&tenant("a")).unwrap().unwrap().current <= 1_024);
}

#[tokio::test]
async fn an_instance_gets_no_more_of_a_processor_than_its_quota() {
    let Some(host) = Host::start() else { return };
    if !host.has(|cgroups| &cgroups.controllers().cpu) {
        return;
    }
    host.run("a", CgroupLimits { memory_max: None, cpu_quota: Some(10) }, "while :; do :; done");
    eventually("it had to wait", || std::future::ready(host.cgroups.cpu(&tenant("a")).unwrap().throttled > 3)).await;
    let cpu = host.cgroups.cpu(&tenant("a")).unwrap();
    assert!(cpu.throttled_us > cpu.usage_us, "nine tenths of the time: {cpu:?}");
}

#[tokio::test]
async fn another_process_can_be_put_beside_the_agent() {
    let Some(host) = Host::start() else { return };
    let mut proxy = std::process::Command::new("/bin/sh").args(["-c", "read line"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let placed = host.cgroups.place_proxy(proxy.id());
    let place = fs::read_to_string(Path::new("/proc").join(proxy.id().to_string()).join("cgroup")).unwrap();
    drop(proxy.stdin.take());
    proxy.wait().unwrap();
    placed.unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let unified = |text: &str| text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    match unified(&own).strip_suffix("/agent") {
        Some(base) => assert_eq!(unified(&place), format!("{base}/proxy")),
        None => assert_eq!(unified(&place), unified(&own), "no need to move where no process has to"),
    }
}

#[tokio::test]
async fn the_agents_own_kill_reaches_an_instance_in_its_cgroup() {
    let Some(host) = Host::start() else { return };
    let process = host.run("a", NONE, SLEEP);
    process.signal(StopSignal::Kill).unwrap();
    assert_eq!(process.exited().await, Exit::Signal(9));
}
