//! The launcher's loop: one request, one answer, until the agent is gone.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::prctl;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{
    child,
    network::{self, Namespaces},
    trial::{self, Tried},
    wire::{self, Launch, LaunchFds, MAX_DESCRIPTORS, Ready, Reply, Request},
};
use crate::{
    instance::sandbox::{privileges, seccomp::Filters},
    sys::{Forked, ParentOfFork, SingleThread},
};

/// Runs the launcher; standard input is the agent's socket. Returns when the agent closes it, as it does when it ends.
///
/// # Errors
/// Standard input is something else, this process has more than one thread, or the conversation breaks.
pub fn run() -> io::Result<()> {
    let agent = io::stdin().as_fd().try_clone_to_owned()?;
    let thread = SingleThread::prove()?;
    let Some((Request::Begin { network, parts, own_user }, fds)) = wire::receive::<Request>(&agent)? else {
        return Err(io::Error::other("the first message does not begin the conversation"));
    };
    let (network, namespaces) = network::enter(network, fds);
    // An instance of the same user must not look into the process that starts the next one. Not before: it would close the
    // files in /proc that map our user.
    prctl::set_dumpable(false)?;
    if parts.privileges {
        // It counts at an exec alone, so this process keeps what it needs, and no instance can get it back.
        privileges::close_bounding_set();
    }
    let Tried { privileges, landlock, seccomp, user } = trial::hold(&thread, parts, own_user)?;
    let fds: Vec<BorrowedFd<'_>> = namespaces.iter().map(AsFd::as_fd).collect();
    wire::send(&agent, &Reply::Ready(Box::new(Ready { network, privileges, landlock, seccomp, user })), &fds)?;
    Starter { thread, filters: Filters::compile().ok(), _namespaces: namespaces }.serve(&agent)
}

struct Starter {
    thread: SingleThread,
    filters: Option<Filters>,
    _namespaces: Namespaces,
}

impl Starter {
    fn serve(self, agent: &OwnedFd) -> io::Result<()> {
        while let Some((request, fds)) = wire::receive::<Request>(agent)? {
            let (reply, fds) = match request {
                Request::Launch(launch) => self.launch(&launch, fds),
                Request::Sockets { count } => sockets(count),
                Request::Begin { .. } => (failed("begin twice", None), Vec::new()),
            };
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match wire::send(agent, &reply, &borrowed) {
                // The agent ended while it was answered.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                sent => sent?,
            }
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch, fds: Vec<OwnedFd>) -> (Reply, Vec<OwnedFd>) {
        let Some(fds) = LaunchFds::sort(launch, fds) else { return (failed("read the descriptors of a launch", None), Vec::new()) };
        let cgroup = fds.cgroup.as_ref().map(AsFd::as_fd);
        match self.thread.fork(ParentOfFork::Grandparent, cgroup) {
            Ok(Forked::Child { in_cgroup }) => child::become_program(launch, fds, in_cgroup, self.filters.as_ref()),
            Ok(Forked::Parent { pid, pidfd }) => (Reply::Launched { pid }, vec![pidfd]),
            Err(error) => (failed("fork", error.raw_os_error()), Vec::new()),
        }
    }
}

fn sockets(count: usize) -> (Reply, Vec<OwnedFd>) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = || socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    match (0..count.min(MAX_DESCRIPTORS)).map(|_| socket()).collect::<Result<Vec<_>, _>>() {
        Ok(sockets) => (Reply::Sockets, sockets),
        Err(error) => (failed("make sockets", Some(error.raw_os_error())), Vec::new()),
    }
}

fn failed(what: &str, errno: Option<i32>) -> Reply {
    Reply::Failed { what: what.to_owned(), errno }
}
