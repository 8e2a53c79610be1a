//! The network of the instances' own: a namespace in which nothing but `lo` exists. sq binds 0.0.0.0, and here that is
//! reachable from nowhere but inside; who wants to talk to an instance needs a socket that was made here.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    unistd::{getegid, geteuid},
};

use super::wire::Enter;
use crate::{instance::isolation::Part, sys};

/// The namespaces this process moved into: user (where it is not root), then network.
pub(super) type Namespaces = Vec<OwnedFd>;

/// Moves this process into a network of its own, or into an existing one. On failure it is where it was, or in namespaces
/// that are as the host's: the instances then live in the host's network.
pub(super) fn enter(how: Enter, existing: Vec<OwnedFd>) -> (Part, Namespaces) {
    let entered = match how {
        Enter::Host => return (Part::unwanted(), Vec::new()),
        Enter::New => create(),
        Enter::Join => join(existing),
    };
    match entered {
        Ok(namespaces) => (Part::on(), namespaces),
        Err(Refused { what, errno }) => (why_not(what, errno, &Host::look()), Vec::new()),
    }
}

/// A step that the host forbids.
struct Refused {
    what: &'static str,
    errno: Errno,
}

fn refused(what: &'static str) -> impl Fn(Errno) -> Refused {
    move |errno| Refused { what, errno }
}

fn from_io(what: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| Refused { what, errno: error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw) }
}

fn create() -> Result<Namespaces, Refused> {
    let mut files = vec!["/proc/self/ns/net"];
    if geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNET).map_err(refused("make a network namespace"))?;
    } else {
        let (uid, gid) = (geteuid(), getegid());
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(refused("make a user namespace"))?;
        // To themselves, so that files belong to the same user inside as outside (user_namespaces(7)).
        let write = |file: &str, text: String| fs::write(file, text).map_err(from_io("map its own user into a user namespace"));
        write("/proc/self/setgroups", "deny".into())?;
        write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
        files.insert(0, "/proc/self/ns/user");
    }
    sys::bring_up_loopback().map_err(from_io("bring up loopback in the new network"))?;
    files.into_iter().map(|file| File::open(file).map(OwnedFd::from).map_err(from_io("open its own namespaces"))).collect()
}

fn join(existing: Vec<OwnedFd>) -> Result<Namespaces, Refused> {
    // The user namespace first: only its root may enter its network.
    for namespace in &existing {
        enter_one(namespace.as_fd()).map_err(refused("enter the instances' network"))?;
    }
    Ok(existing)
}

fn enter_one(namespace: BorrowedFd<'_>) -> nix::Result<()> {
    setns(namespace, CloneFlags::empty())
}

/// What of the host explains a refusal.
struct Host {
    root: bool,
    apparmor_restricts: bool,
    max_user_namespaces: Option<u64>,
    unprivileged_clone: Option<u64>,
}

impl Host {
    fn look() -> Self {
        let number = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok();
        Self {
            root: geteuid().is_root(),
            apparmor_restricts: number("kernel/apparmor_restrict_unprivileged_userns") == Some(1),
            max_user_namespaces: number("user/max_user_namespaces"),
            unprivileged_clone: number("kernel/unprivileged_userns_clone"),
        }
    }
}

fn why_not(what: &str, errno: Errno, host: &Host) -> Part {
    let reason = |because: &str| format!("cannot {what}: {because}");
    match host {
        Host { root: false, max_user_namespaces: Some(0), .. } => {
            Part::off(reason("user.max_user_namespaces is 0"), "sysctl user.max_user_namespaces=10000, or run the agent as root")
        }
        Host { root: false, unprivileged_clone: Some(0), .. } => Part::off(
            reason("kernel.unprivileged_userns_clone is 0"),
            "sysctl kernel.unprivileged_userns_clone=1, or run the agent as root",
        ),
        Host { root: false, apparmor_restricts: true, .. } => Part::off(
            reason("AppArmor restricts user namespaces (kernel.apparmor_restrict_unprivileged_userns is 1)"),
            "give sq-agent an AppArmor profile with the rule `userns,`, or run the agent as root",
        ),
        Host { root: true, .. } => Part::off(
            reason(&format!("{errno}, as in a container without CAP_SYS_ADMIN or a unit with RestrictNamespaces=")),
            "give the container CAP_SYS_ADMIN, or take RestrictNamespaces= and CapabilityBoundingSet= out of the unit",
        ),
        _ => Part::off(
            reason(&format!("{errno}, as by a container's seccomp profile or a unit with RestrictNamespaces=")),
            "allow user and network namespaces there, or run the agent as root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_setting_that_forbids_it_and_the_remedy() {
        let host =
            |root, apparmor, max, clone| Host { root, apparmor_restricts: apparmor, max_user_namespaces: max, unprivileged_clone: clone };
        let cases = [
            (host(false, false, Some(0), None), "user.max_user_namespaces"),
            (host(false, true, Some(100), None), "apparmor_restrict_unprivileged_userns"),
            (host(false, false, Some(100), Some(0)), "unprivileged_userns_clone"),
            (host(false, false, Some(100), Some(1)), "RestrictNamespaces"),
            (host(true, true, Some(0), Some(0)), "CAP_SYS_ADMIN"),
        ];
        for (host, names) in cases {
            let Part::Off { reason, remedy } = why_not("do it", Errno::EPERM, &host) else { panic!() };
            assert!(reason.contains(names) && !remedy.is_empty(), "{reason}");
        }
    }
}
