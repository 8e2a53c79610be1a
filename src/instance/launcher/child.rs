//! Between fork and exec: everything an instance gives up, in the one order in which each step still can be taken.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    sys::resource::{Resource, setrlimit},
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execve, fchdir, geteuid, setsid},
};
use rustix::{
    fs::{Mode, OFlags, openat},
    process::setpriority_process,
};

use super::wire::{Launch, LaunchFds};
use crate::{
    instance::{
        limits,
        sandbox::{landlock::Rules, privileges, seccomp::Filters},
    },
    sys,
};

/// All of an instance's environment.
pub(super) const PATH: &str = "PATH=/usr/local/bin:/usr/bin:/bin";

/// A step that failed, as the agent reads it from the error pipe.
struct Failed {
    step: &'static str,
    error: io::Error,
}

fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, Failed> {
    result.map_err(|error| Failed { step, error: error.into() })
}

/// Becomes the program. Never returns; a failure goes into the error pipe as `errno step`.
pub(super) fn become_program(launch: &Launch, fds: LaunchFds, in_cgroup: bool, filters: Option<&Filters>) -> ! {
    // A panic must not unwind into the loop of the original.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| prepare_and_exec(launch, &fds, in_cgroup, filters)));
    let failed = match outcome {
        Ok(Err(failed)) => failed,
        Ok(Ok(never)) => match never {},
        Err(_) => Failed { step: "preparing", error: io::Error::other("panic") },
    };
    let text = format!("{} {}: {}", failed.error.raw_os_error().unwrap_or(0), failed.step, failed.error);
    // Nobody is left to hear of a failure to tell of a failure.
    let _ = io::PipeWriter::from(fds.errors).write_all(text.as_bytes());
    sys::exit_now(127)
}

fn prepare_and_exec(launch: &Launch, fds: &LaunchFds, in_cgroup: bool, filters: Option<&Filters>) -> Result<Infallible, Failed> {
    let text = |bytes: &[u8]| step("reading its arguments", CString::new(bytes).map_err(io::Error::from));
    let program = text(launch.program.as_os_str().as_bytes())?;
    let args = launch.args.iter().map(|arg| text(arg.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let environment = [text(PATH.as_bytes())?];

    if let Some(cgroup) = fds.cgroup.as_ref().filter(|_| !in_cgroup) {
        step("entering its cgroup", enter_cgroup(cgroup))?;
    }
    // Also a group for the scheduler where no cgroup is one: as many threads as a tenant makes busy, it gets no more of a core than its neighbour
    // with one (sched(7), autogroup).
    step("making its session", setsid())?;
    step_behind_the_proxy();
    let null = step("opening /dev/null", File::open("/dev/null"))?;
    step("giving it its standard input", dup2_stdin(null))?;
    step("giving it its log", dup2_stdout(&fds.log).and_then(|()| dup2_stderr(&fds.log)))?;
    step("entering its directory", fchdir(fds.directory.as_fd()))?;
    step("closing what it must not have", sys::close_inherited_on_exec())?;
    step("resetting SIGPIPE", sys::default_broken_pipe())?;
    let file_size = limits::MAX_FILE_BYTES;
    step("limiting its files", setrlimit(Resource::RLIMIT_FSIZE, file_size, file_size))?;
    // Opened anew at each start, since an update may have replaced any of these files, and before the user changes.
    let rules = launch.parts.landlock.then(|| Rules::for_program(&launch.program));
    if let Some(user) = launch.user {
        // By user, so it means something only for a user of its own.
        step("limiting its threads", setrlimit(Resource::RLIMIT_NPROC, limits::MAX_THREADS, limits::MAX_THREADS))?;
        step("becoming its own user", privileges::become_user(user))?;
    } else if launch.parts.privileges && geteuid().is_root() {
        step("leaving its groups", nix::unistd::setgroups(&[]))?;
    }
    if launch.parts.privileges {
        step("giving up privileges", privileges::give_up())?;
    }
    if let Some(rules) = rules {
        let data: Vec<_> = fds.data.iter().map(AsFd::as_fd).collect();
        step("restricting it by Landlock", rules.apply(&data, launch.port).map_err(io::Error::other))?;
    }
    if let Some(filters) = filters.filter(|_| launch.parts.seccomp) {
        step("filtering its system calls", filters.apply(std::process::id()).map_err(io::Error::other))?;
    }
    step("running", execve(&program, &args, &environment))
}

/// All tenants' requests go through the proxy: whoever keeps a core busy must not keep it waiting. Where a cgroup has its share of a core, this
/// counts only within that. A courtesy: a host that does not permit it serves all the same.
fn step_behind_the_proxy() {
    let _ = setpriority_process(None, limits::NICE);
    // Within a session's group alone the line above counts; this is the group's own (sched(7), autogroup).
    let _ = std::fs::write("/proc/self/autogroup", limits::NICE.to_string());
}

/// For a copy that was not born in it.
fn enter_cgroup(cgroup: &OwnedFd) -> io::Result<()> {
    let procs = openat(cgroup, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // 0 is whoever writes it.
    File::from(procs).write_all(b"0")
}
