//! Another program, run to its end: by a deadline, and as long as somebody wants it.

use std::{
    borrow::Cow,
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Seek as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, Signal, kill_process},
};

/// `text` as a shell takes it: one word. Only a NUL cannot be quoted, and neither a path nor an id holds one.
pub(crate) fn quoted(text: &str) -> String {
    shlex::try_quote(text).map(Cow::into_owned).unwrap_or_default()
}

/// Between two looks whether it has ended, at most; the first come sooner, since many a program ends within milliseconds.
const POLL: Duration = Duration::from_millis(20);
const FIRST_POLL: Duration = Duration::from_millis(1);
/// For cleaning up when it is told to end: restic removes its lock, git its half-written files.
const GRACE: Duration = Duration::from_secs(3);

/// What of the agent's own environment a program that reaches over the network may need, by ssh or a proxy; no secret of the agent's is among it.
const PASSED_ON: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// Tells a run to break off, and is what it waits on.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<(Mutex<bool>, Condvar)>);

impl Cancel {
    /// From now on nothing new begins, and what runs is ended.
    pub fn cancel(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether it was cancelled by now.
    pub fn is_cancelled(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for `time` at most; whether it was cancelled.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let cancelled = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(cancelled, time, |cancelled| !*cancelled);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Work on a thread of its own that runs other programs. Dropped, it is broken off.
#[derive(Debug)]
pub struct Running {
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Begins `work` on a thread called `name`.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn start(name: &str, work: impl FnOnce(&Cancel) + Send + 'static) -> io::Result<Self> {
        let cancel = Cancel::default();
        let cancelled = cancel.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || work(&cancelled))?;
        Ok(Self { cancel, thread: Some(thread) })
    }

    /// Breaks it off, and waits until nothing of it acts any more. Blocks.
    pub fn halt(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.halt();
    }
}

/// A program that ended by itself.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    /// What it printed.
    pub(crate) out: Vec<u8>,
    /// What it said on standard error.
    pub(crate) said: String,
}

/// Why a program did not come to its end.
#[derive(Debug)]
pub(crate) enum NotRun {
    /// Nobody wants it any more; it is ended.
    Cancelled,
    /// It took longer than it may; it is ended.
    TooLong,
    /// It could not be started or watched.
    Failed(io::Error),
}

impl From<io::Error> for NotRun {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Of the agent's own environment, what such a program is given.
pub(crate) fn passed_on() -> impl Iterator<Item = (OsString, OsString)> {
    PASSED_ON.iter().filter_map(|&name| Some((name.into(), std::env::var_os(name)?)))
}

/// Runs `program`, without input, for at most `patience`. Blocks.
pub(crate) fn run(program: &mut Command, patience: Duration, cancel: &Cancel) -> Result<Ran, NotRun> {
    if cancel.is_cancelled() {
        return Err(NotRun::Cancelled);
    }
    let (mut out, mut said) = (scratch()?, scratch()?);
    let mut child = program.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(said.try_clone()?).spawn()?;
    let deadline = Instant::now() + patience;
    let mut poll = FIRST_POLL;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if cancel.wait(poll) {
            end(&mut child);
            return Err(NotRun::Cancelled);
        }
        poll = POLL.min(2 * poll);
        if Instant::now() >= deadline {
            end(&mut child);
            return Err(NotRun::TooLong);
        }
    };
    Ok(Ran { status, out: read(&mut out)?, said: String::from_utf8_lossy(&read(&mut said)?).into_owned() })
}

/// A file without a name, which unlike a pipe never fills.
fn scratch() -> io::Result<File> {
    Ok(memfd_create("sq-agent-child", MemfdFlags::CLOEXEC)?.into())
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Ends it as Ctrl-C would, so that it cleans up; then for certain.
fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It is not reaped yet, so its number is its own.
        let _ = kill_process(pid, Signal::INT);
    }
    let (deadline, pause) = (Instant::now() + GRACE, Cancel::default());
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        pause.wait(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_program_printed_and_said_is_there_when_it_has_ended() {
        let ran = run(&mut sh("echo out; echo said >&2; exit 3"), Duration::from_secs(10), &Cancel::default()).unwrap();
        assert_eq!((ran.status.code(), ran.out.as_slice(), ran.said.as_str()), (Some(3), &b"out\n"[..], "said\n"));
        let many = run(&mut sh("head -c 300000 /dev/zero"), Duration::from_secs(10), &Cancel::default()).unwrap();
        assert_eq!(many.out.len(), 300_000, "more than a pipe holds");
    }

    #[test]
    fn one_that_takes_too_long_or_is_not_wanted_any_more_is_ended() {
        let started = Instant::now();
        assert!(matches!(run(&mut sh("exec sleep 60"), Duration::from_millis(50), &Cancel::default()), Err(NotRun::TooLong)));
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(matches!(run(&mut sh("exec sleep 60"), Duration::from_secs(60), &cancel), Err(NotRun::Cancelled)));
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(matches!(run(&mut Command::new("/nowhere/at/all"), GRACE, &Cancel::default()), Err(NotRun::Failed(_))));
    }
}
