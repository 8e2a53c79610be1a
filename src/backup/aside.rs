//! What a program becomes that is to be in nobody's way: the lowest priority, the first to go when memory is short, and gone with its parent.
//!
//! `sq-agent aside --parent PID PROGRAM ARGS…` does that to itself and then becomes the program: between fork and exec of a process with
//! threads there would be no safe place for it.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, setpriority_process, setsid};

use crate::sys;

/// Exit code of a program that is not there, as shells have it.
pub const NOT_FOUND: u8 = 127;
/// Exit code of a program that cannot be run, as shells have it.
pub const NOT_RUN: u8 = 126;
/// The lowest of all.
const NICE: i32 = 19;
/// Agents under systemd are at -900; what is set aside goes before any tenant.
const OOM_SCORE: &str = "500";

/// The command line that becomes `program` with `arguments`, set aside, by way of `exe`, which is this very program.
pub(super) fn command(exe: &Path, program: &Path, arguments: &[OsString]) -> Command {
    let mut command = Command::new(exe);
    command.arg("aside").arg("--parent").arg(std::process::id().to_string()).arg("--").arg(program).args(arguments);
    command
}

/// Becomes `program`. Returns only where that cannot be.
pub fn become_program(parent: i32, program: &OsStr, arguments: &[OsString]) -> io::Error {
    if let Err(error) = step_aside(parent) {
        return error;
    }
    Command::new(program).args(arguments).exec()
}

fn step_aside(parent: i32) -> io::Result<()> {
    // What a killed agent leaves behind would go on reading a stage that the next one changes.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(Pid::as_raw_pid) != Some(parent) {
        return Err(io::Error::other("whoever asked for this is gone"));
    }
    // Without a terminal, ssh cannot stop to ask for a password, and Ctrl-C reaches the agent alone, which ends this in due form.
    setsid()?;
    // Each of these is a courtesy: a host that does not permit it gets its backup all the same.
    let _ = setpriority_process(None, NICE);
    // A session of its own may be a group for the scheduler, within which alone the line above counts (sched(7), autogroup).
    let _ = fs::write("/proc/self/autogroup", NICE.to_string());
    let _ = sys::idle_io();
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    Ok(())
}
