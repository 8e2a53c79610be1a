//! What really runs, read from /proc: the tests' own look, not the product's.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

/// A live process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Process id.
    pub pid: u32,
    /// Its command line.
    pub args: Vec<String>,
}

/// A live sq that serves a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenSq {
    /// Process id.
    pub pid: u32,
    /// Port in its command line.
    pub port: u16,
    /// The tenant in whose directory it keeps its data.
    pub id: String,
    /// The program that it was started as.
    pub program: String,
}

/// All live processes whose command line names `dir`, zombies left out (theirs is empty).
pub fn naming(dir: &Path) -> Vec<Seen> {
    let dir = dir.to_str().unwrap();
    all().into_iter().filter(|seen| seen.args.iter().any(|arg| arg.contains(dir))).collect()
}

/// All live instances of `state_dir`.
pub fn instances(state_dir: &Path) -> Vec<SeenSq> {
    let users = format!("{}/users/", state_dir.display());
    let instance = |seen: Seen| {
        let data = seen.args.iter().find_map(|arg| arg.strip_prefix(&users))?;
        let at = seen.args.iter().position(|arg| arg == "host")?;
        let port = seen.args.get(at + 1)?.parse().ok()?;
        Some(SeenSq { pid: seen.pid, port, id: data.split('/').next()?.to_owned(), program: seen.args[0].clone() })
    };
    naming(state_dir).into_iter().filter_map(instance).collect()
}

/// Live proxy processes of `state_dir`: their errors go to its `proxy.log`. Without root that cannot be seen of a process that may not be
/// looked into, as a proxy is; so those in `known` count too, if they still are proxies.
pub fn proxies(state_dir: &Path, known: &BTreeSet<u32>) -> Vec<u32> {
    let log = state_dir.join("proxy.log");
    let ours = |pid: &u32| known.contains(pid) || fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|target| target == log);
    all().into_iter().filter(|seen| seen.args.get(1).is_some_and(|arg| arg == "proxy")).map(|seen| seen.pid).filter(ours).collect()
}

/// All live processes.
pub fn all() -> Vec<Seen> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let seen = |pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
        let args = line.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        Some(Seen { pid, args })
    };
    pids.filter_map(seen).collect()
}

/// Whether the process is there and no zombie.
pub fn lives(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Sends a signal; one that is gone already is as good as signalled.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signal to {pid:?}: {error}"),
    }
}

/// Stops the process as SIGSTOP does, and returns once none of its threads runs any more: the signal alone does not wait for them.
pub fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
    let deadline = Instant::now() + Duration::from_secs(10);
    let stopped = |task: fs::DirEntry| {
        // The name, which may hold anything, stands in parentheses ahead of the state.
        let stat = fs::read_to_string(task.path().join("stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    while !fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| stopped(task.unwrap())) {
        assert!(Instant::now() < deadline, "process {pid} does not stop");
        std::thread::yield_now();
    }
}

/// Whether the process ended within `patience`. Blocks.
pub fn ended_within(pid: u32, patience: Duration) -> bool {
    let Ok(pidfd) = pidfd_open(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), PidfdFlags::empty()) else { return true };
    let timeout = Timespec { tv_sec: patience.as_secs().try_into().unwrap(), tv_nsec: patience.subsec_nanos().into() };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}
