//! What this host permits, found out by doing it: a copy of the launcher gives everything up and looks whether it is gone.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    os::unix::net::UnixDatagram,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    instance::{
        isolation::Part,
        sandbox::{Parts, landlock::Rules, privileges, seccomp::Filters},
    },
    sys::{self, Forked, ParentOfFork, SingleThread},
};

/// What came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tried {
    pub(super) privileges: Part,
    pub(super) landlock: Part,
    pub(super) seccomp: Part,
    pub(super) user: Part,
}

/// Tries what is wanted in a copy of this process. `own_user` is a uid that an instance would get.
pub(super) fn hold(thread: &SingleThread, wanted: Parts, own_user: Option<u32>) -> io::Result<Tried> {
    let (mut reader, mut writer) = io::pipe()?;
    match thread.fork(ParentOfFork::Caller, None)? {
        Forked::Child { .. } => {
            drop(reader);
            let tried = std::panic::catch_unwind(|| attempt(wanted, own_user));
            let _ = tried.ok().and_then(|tried| writer.write_all(&serde_json::to_vec(&tried).ok()?).ok());
            sys::exit_now(0)
        }
        Forked::Parent { pidfd, .. } => {
            drop(writer);
            let mut text = Vec::new();
            reader.read_to_end(&mut text)?;
            rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), rustix::process::WaitIdOptions::EXITED)?;
            serde_json::from_slice(&text).map_err(|_| io::Error::other("the trial of the sandbox ended without a result"))
        }
    }
}

fn attempt(wanted: Parts, own_user: Option<u32>) -> Tried {
    let unless_unwanted = |wanted: bool, trial: &mut dyn FnMut() -> Part| if wanted { trial() } else { Part::unwanted() };
    let user = own_user.map_or_else(Part::not_root, become_user);
    let privileges = unless_unwanted(wanted.privileges, &mut give_up);
    let landlock = unless_unwanted(wanted.landlock, &mut restrict);
    let seccomp = unless_unwanted(wanted.seccomp, &mut filter);
    Tried { privileges, landlock, seccomp, user }
}

fn become_user(user: u32) -> Part {
    match privileges::become_user(user) {
        Ok(()) => Part::on(),
        Err(error) => Part::off(
            format!("cannot become user {user}: {error}"),
            "give the container the whole range of user ids, and CAP_SETUID, CAP_SETGID, CAP_CHOWN",
        ),
    }
}

fn give_up() -> Part {
    match privileges::give_up() {
        Ok(()) => Part::on(),
        Err(error) => Part::off(format!("cannot drop capabilities: {error}"), "look for a security module that forbids it"),
    }
}

/// A file that every user may read and no instance needs.
const OUT_OF_REACH: &str = "/proc/version";

fn restrict() -> Part {
    let part = match Rules::for_program(Path::new("/proc/self/exe")).apply(&[], 1) {
        Ok(part) => part,
        Err(error) => return Part::off(format!("Landlock: {error}"), "look for what forbids it: a container's seccomp profile, say"),
    };
    match File::open(OUT_OF_REACH) {
        Ok(_) if part.is_on() => Part::off(
            format!("Landlock was switched on and {OUT_OF_REACH} is readable all the same"),
            "report this with the kernel's version",
        ),
        _ => part,
    }
}

fn filter() -> Part {
    let applied = Filters::compile().and_then(|filters| filters.apply(std::process::id()));
    match applied {
        Err(error) => Part::off(error.to_string(), "use a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or AArch64"),
        Ok(()) if UnixDatagram::unbound().is_ok() => {
            Part::off("the filter was put in force and forbids nothing", "report this with the kernel's version")
        }
        Ok(()) => Part::on(),
    }
}
