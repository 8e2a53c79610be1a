//! Words for systemd, where it runs the agent; elsewhere all of this does nothing.

use std::{
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, getppid};
use sd_notify::NotifyState;

/// The listening sockets in systemd's store have this name.
const LISTENERS: &str = "listen";
/// systemctl answers in milliseconds; a manager that is shutting down may take longer.
const ANSWER: Duration = Duration::from_secs(2);
/// How often an agent looks whether the process that started it lives; the next agent waits 2 s for the host.
const LOOK: Duration = Duration::from_millis(500);

/// The agent serves.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The agent ends on purpose.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The loop turns: the watchdog's proof of life.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Keeps the listening sockets in systemd, so that a connection that comes while neither agent nor proxy lives waits instead of being
/// refused.
pub(super) fn store(listeners: &[TcpListener]) {
    let descriptors: Vec<BorrowedFd<'_>> = listeners.iter().map(|listener| listener.as_fd()).collect();
    if !descriptors.is_empty() && supervised() {
        // Those of addresses that tenants.toml names no more go.
        log(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(LISTENERS)]));
        let stored = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(LISTENERS)], &descriptors);
        log(stored);
    }
}

/// The listening sockets that systemd kept. Those of another name are not ours and go.
pub(super) fn stored() -> Vec<TcpListener> {
    let passed = sd_notify::listen_fds_with_names().map(Vec::from_iter).unwrap_or_default();
    let mut listeners = Vec::new();
    for (descriptor, name) in passed {
        let Ok(owned) = crate::sys::own(descriptor) else { continue };
        if name == LISTENERS {
            listeners.push(TcpListener::from(owned));
        }
    }
    listeners
}

fn tell(state: &[NotifyState<'_>]) {
    if supervised() {
        log(sd_notify::notify(state));
    }
}

fn supervised() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn log(told: std::io::Result<()>) {
    if let Err(error) = told {
        tracing::debug!(%error, "systemd does not listen");
    }
}

/// Returns once `watched` is gone, the process that systemd watches and that started this one as its heir: systemd then starts another agent,
/// which needs the host. Never where nothing would start one.
pub(super) async fn orphaned(watched: Option<Pid>) {
    let Some(watched) = watched.filter(|_| supervised()) else { return std::future::pending().await };
    let mut look = tokio::time::interval(LOOK);
    while getppid() == Some(watched) {
        look.tick().await;
    }
}

/// Whether another agent is to follow after this SIGTERM: then instances and proxy go on, and it adopts them. Not so at a stop of the
/// unit or a shutdown of the host. Where systemd tells nothing (`systemctl kill`), it starts the agent again by itself.
pub(super) async fn starts_again() -> bool {
    if !supervised() {
        return false;
    }
    let Some(unit) = unit() else { return true };
    let mut jobs = std::process::Command::new("systemctl");
    jobs.args(["list-jobs", "--no-legend", "--no-pager", "--plain", &unit]).stdin(Stdio::null()).stderr(Stdio::null());
    let answered = tokio::time::timeout(ANSWER, tokio::task::spawn_blocking(move || jobs.output())).await;
    match answered {
        Ok(Ok(Ok(output))) => !is_stop(&String::from_utf8_lossy(&output.stdout), &unit),
        _ => true,
    }
}

/// `JOB UNIT TYPE STATE` a line, as `systemctl list-jobs` prints it.
fn is_stop(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(1) == Some(unit) && words.next() == Some("stop")
    })
}

/// The unit that this process runs in.
fn unit() -> Option<String> {
    unit_of(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// From `/proc/self/cgroup`: the innermost `.service` of the v2 path (`0::/system.slice/sq-agent.service/agent`), else of systemd's own v1 one.
fn unit_of(cgroups: &str) -> Option<String> {
    let path = |prefix: &str| cgroups.lines().find_map(|line| line.strip_prefix(prefix));
    let service = |path: &str| path.rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned);
    path("0::")
        .and_then(service)
        .or_else(|| cgroups.lines().find_map(|line| line.split_once(":name=systemd:")).and_then(|(_, path)| service(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_told_from_a_restart() {
        assert!(is_stop("222 sq-agent.service stop running\n", "sq-agent.service"));
        assert!(!is_stop("174 sq-agent.service restart running\n", "sq-agent.service"));
        assert!(!is_stop("9 other.service stop running\n", "sq-agent.service"));
        assert!(!is_stop("", "sq-agent.service"));
    }

    #[test]
    fn the_unit_is_the_innermost_service() {
        assert_eq!(unit_of("0::/system.slice/sq-agent.service/agent\n").as_deref(), Some("sq-agent.service"));
        assert_eq!(unit_of("0::/user.slice/user-1000.slice/user@1000.service/app.slice/sq.service\n").as_deref(), Some("sq.service"));
        assert_eq!(unit_of("9:name=systemd:/system.slice/sq.service\n0::/\n").as_deref(), Some("sq.service"));
        assert_eq!(unit_of("0::/init.scope\n"), None);
    }
}
