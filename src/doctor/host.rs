//! What the host itself permits, tried where that changes nothing.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use super::{Finding, agent};
use crate::{
    desired::{Desired, SqSource},
    instance::{
        binary::{self, CargoSearch},
        isolation::{Part, Wanted},
        launcher::{Launcher, LauncherConfig},
        limits,
        network::Network,
        ports::{PortState, probe_free},
    },
};

/// Below this share of the disk, percent, it is told.
const DISK_LOW: u64 = 10;

/// Looks at the host. `runs`: an agent does, and holds ports and addresses. Inside a tokio runtime.
pub async fn findings(desired: &Desired, runs: bool) -> Vec<Finding> {
    let mut findings = vec![descriptors(), shared_memory(), disk(&desired.state_dir), sq(desired).await];
    findings.push(cgroup());
    findings.extend(desired.backup.as_ref().map(|backup| program("restic", &backup.restic, "version", "backup")));
    findings.extend(desired.gitops.as_ref().map(|gitops| program("git", &gitops.git, "--version", "gitops")));
    if !runs {
        findings.extend(desired.proxy.listen.iter().map(|address| match TcpListener::bind(address) {
            Ok(_) => Finding::ok("listen", format!("{address} is free")),
            Err(error) => {
                let remedy = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need root or CAP_NET_BIND_SERVICE, as the unit in contrib/systemd gives"
                    }
                    _ => "see `ss -ltnp` for who has it, or choose another address in [proxy] listen",
                };
                Finding::problem("listen", format!("{address}: {error}"), remedy)
            }
        }));
        findings.push(ports(desired));
    }
    findings
}

/// What keeps instances apart, tried as this user. How the agent is started may change it.
pub fn isolation(state_dir: &Path, exe: &Path) -> Vec<Finding> {
    let cgroups = Err(Part::off("not known while no agent runs: it depends on how it is started", "ask again when one does"));
    let config = LauncherConfig { exe: exe.into(), state_dir: state_dir.into(), wanted: Wanted::EVERYTHING, like: None, cgroups };
    match Launcher::start(config) {
        Ok(launcher) => {
            let isolation = launcher.isolation();
            launcher.end();
            agent::isolation(&isolation)
        }
        Err(error) => vec![Finding::problem("isolation", error.to_string(), "no instance can be started before that is mended")],
    }
}

fn descriptors() -> Finding {
    match limits::prepare_agent_limits() {
        Ok(descriptors) => Finding::ok("open files", format!("{descriptors} a process")),
        Err(error) => Finding::problem("open files", error.to_string(), ""),
    }
}

/// The shared pages lie there.
fn shared_memory() -> Finding {
    let path = Path::new("/dev/shm").join(format!("sq-agent-doctor-{}", std::process::id()));
    let tried = fs::File::create_new(&path).map(drop);
    let _ = fs::remove_file(&path);
    match tried {
        Ok(()) => Finding::ok("/dev/shm", "can be written"),
        Err(error) => Finding::problem("/dev/shm", error.to_string(), "mount a tmpfs there that this user may write to"),
    }
}

fn disk(state_dir: &Path) -> Finding {
    // The nearest directory that is there: it may be the first start.
    let Some(there) = state_dir.ancestors().find(|path| path.exists()) else {
        return Finding::problem("disk", format!("{} cannot be reached", state_dir.display()), "choose another state_dir under [agent]");
    };
    match rustix::fs::statvfs(there) {
        Ok(about) => {
            let (free, all) = (about.f_bavail * about.f_frsize, (about.f_blocks * about.f_frsize).max(1));
            let text = format!("{} GB of {} GB are free below {}", free >> 30, all >> 30, there.display());
            match free * 100 / all < DISK_LOW {
                true => Finding::notice("disk", text, "make room: below `[agent] disk_reserve` only what makes less is written"),
                false => Finding::ok("disk", text),
            }
        }
        Err(error) => Finding::problem("disk", format!("{}: {error}", there.display()), "choose another state_dir under [agent]"),
    }
}

async fn sq(desired: &Desired) -> Finding {
    match &desired.sq {
        SqSource::Version(version) if !binary::is_installed(version, &desired.state_dir).await => {
            match CargoSearch::from_environment().cargo() {
                Some(cargo) => {
                    Finding::ok("sq", format!("{version} is not installed yet; the agent does that at its start, by {}", cargo.display()))
                }
                None => Finding::problem(
                    "sq",
                    format!("{version} is not installed, and there is no cargo to install it"),
                    "install Rust (https://rustup.rs), or name an sq that is there by [sq] binary",
                ),
            }
        }
        source => match binary::ensure(source, &desired.state_dir, &|_| {}).await {
            Ok(program) => Finding::ok("sq", format!("{} at {}", program.version, program.path.display())),
            Err(error) => Finding::problem("sq", error.to_string(), ""),
        },
    }
}

/// A program of Debian's that `name` under `[section]` calls; `asks` makes it say its version.
fn program(name: &'static str, path: &Path, asks: &str, section: &str) -> Finding {
    match Command::new(path).arg(asks).stdin(Stdio::null()).output() {
        Ok(said) if said.status.success() => {
            Finding::ok(name, String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().trim_start_matches(name).trim())
        }
        Ok(said) => Finding::problem(
            name,
            format!("{} does not run: {}", path.display(), String::from_utf8_lossy(&said.stderr).trim()),
            format!("name one that does by [{section}] {name}"),
        ),
        Err(error) => Finding::problem(
            name,
            format!("{}: {error}", path.display()),
            format!("`apt-get install {name}`, or name it by [{section}] {name}"),
        ),
    }
}

fn cgroup() -> Finding {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let controllers = roots.iter().find_map(|root| fs::read_to_string(Path::new(root).join("cgroup.controllers")).ok());
    match controllers {
        Some(list) if list.split_ascii_whitespace().any(|name| name == "memory") => {
            Finding::ok("cgroup v2", format!("the kernel offers {}", list.trim()))
        }
        Some(_) => Finding::notice(
            "cgroup v2",
            "the memory controller is not in it: limits of memory are polled",
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
        ),
        None => Finding::notice("cgroup v2", "is not mounted: limits are polled", "mount it on /sys/fs/cgroup"),
    }
}

fn ports(desired: &Desired) -> Finding {
    let (range, wanted) = (desired.ports, desired.tenants.len());
    let taken = (range.first..=range.last).take(wanted).find_map(|port| match probe_free(&Network::host(), port) {
        PortState::Free => None,
        PortState::Taken { by } => Some(format!("{port} is held by {by}")),
        PortState::Forbidden(why) => Some(format!("{port}: {why}")),
    });
    match taken {
        None => Finding::ok("ports", format!("{}-{} for {wanted} tenants", range.first, range.last)),
        Some(text) => Finding::notice(
            "ports",
            format!("{text} in the host's network"),
            "it matters only where instances have no network of their own; others are taken then",
        ),
    }
}
