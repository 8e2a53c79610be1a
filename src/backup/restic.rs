//! One `restic` after the other, for one repository. Secrets go by file and by environment, never by a command line.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Seek as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, Signal, kill_process},
};

use super::{aside, env_file, fault, fault::ResticError, place};
use crate::desired::Backup;

/// A first backup over a slow line may take a day. One that takes longer hangs.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3_600);
/// A question to the repository.
pub(super) const QUESTION: Duration = Duration::from_secs(5 * 60);
/// A lock may stand in the way that a killed restic left, and one counts as living until somebody has reaped it; or another host's that is let go soon.
const UNLOCK_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(8)];
/// Between two looks whether it has ended.
const POLL: Duration = Duration::from_millis(20);
/// For removing its lock when it is told to end.
const GRACE: Duration = Duration::from_secs(3);
/// What of the agent's own environment restic and its ssh may need; no secret of the agent's is among it.
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
    pub(super) fn wait(&self, time: Duration) -> bool {
        let cancelled = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(cancelled, time, |cancelled| !*cancelled);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// restic and one repository.
#[derive(Debug)]
pub struct Restic {
    program: PathBuf,
    repository: String,
    environment: Vec<(OsString, OsString)>,
    secrets: Vec<String>,
    /// This very program, which sets restic aside; none: restic is run as it is.
    exe: Option<PathBuf>,
    cancel: Cancel,
}

impl Restic {
    /// For the repository of `backup`, with a cache below `state_dir`.
    ///
    /// # Errors
    /// A secret file is missing, open to others, or not what it should be.
    pub fn new(backup: &Backup, state_dir: &Path, exe: Option<PathBuf>, cancel: Cancel) -> Result<Self, ResticError> {
        env_file::check_private(&backup.password_file)?;
        let own = backup.env_file.as_deref().map(env_file::read).transpose()?.unwrap_or_default();
        let passed = PASSED_ON.iter().filter_map(|&name| Some((OsString::from(name), std::env::var_os(name)?)));
        let cache = place(state_dir).join("cache");
        let ours: [(&str, &OsStr); 6] = [
            ("RESTIC_REPOSITORY", backup.repository.as_ref()),
            ("RESTIC_PASSWORD_FILE", backup.password_file.as_ref()),
            ("RESTIC_CACHE_DIR", cache.as_ref()),
            // Messages are read by this program.
            ("LC_ALL", "C".as_ref()),
            // Times of snapshots are those of the zone.
            ("TZ", "UTC".as_ref()),
            // Where sftp asks for a password, it must fail instead of waiting.
            ("SSH_ASKPASS_REQUIRE", "never".as_ref()),
        ];
        let environment = passed
            .chain(own.iter().map(|(key, value)| (key.into(), value.into())))
            .chain(ours.map(|(key, value)| (key.into(), value.to_owned())))
            .collect();
        Ok(Self {
            program: backup.restic.clone(),
            repository: backup.repository.clone(),
            environment,
            secrets: own.into_iter().map(|(_, value)| value).collect(),
            exe,
            cancel,
        })
    }

    /// Makes the repository.
    pub(super) fn init(&self) -> Result<(), ResticError> {
        self.run(&["init", "--quiet"], None, QUESTION).map(drop)
    }

    /// Runs `restic ARGUMENTS`, in `directory`; a lock that a dead restic left is removed first where it stands in the way. Returns what
    /// it printed. Blocks.
    pub(super) fn run(&self, arguments: &[&str], directory: Option<&Path>, patience: Duration) -> Result<String, ResticError> {
        let mut outcome = self.run_once(arguments, directory, patience);
        for pause in UNLOCK_AFTER {
            if !matches!(outcome, Err(ResticError::Locked(_))) {
                break;
            }
            // Told by the next command, where it was.
            self.cancel.wait(pause);
            // Removes only what restic itself knows to be stale: older than 30 minutes, or of a process of this host that is gone.
            self.run_once(&["unlock", "--quiet"], None, QUESTION)?;
            outcome = self.run_once(arguments, directory, patience);
        }
        outcome
    }

    fn run_once(&self, arguments: &[&str], directory: Option<&Path>, patience: Duration) -> Result<String, ResticError> {
        let command = arguments.first().copied().unwrap_or_default();
        if self.cancel.is_cancelled() {
            return Err(ResticError::BrokenOff);
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ResticError::Missing(self.program.clone()),
            _ => ResticError::Other { command: command.into(), said: error.to_string() },
        };
        let (mut out, mut words) = (scratch().map_err(failed)?, scratch().map_err(failed)?);
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let mut child = match &self.exe {
            Some(exe) => aside::command(exe, &self.program, &arguments),
            None => {
                let mut command = Command::new(&self.program);
                command.args(arguments);
                command
            }
        };
        child.env_clear().envs(self.environment.iter().map(|(key, value)| (key, value))).stdin(Stdio::null());
        child.stdout(out.try_clone().map_err(failed)?).stderr(words.try_clone().map_err(failed)?);
        directory.iter().for_each(|directory| _ = child.current_dir(directory));
        let mut child = child.spawn().map_err(failed)?;
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if self.cancel.wait(POLL) {
                end(&mut child);
                return Err(ResticError::BrokenOff);
            }
            if Instant::now() >= deadline {
                end(&mut child);
                return Err(ResticError::TooLong(patience));
            }
        };
        let said = read(&mut words).map_err(failed)?;
        if status.success() {
            return read(&mut out).map_err(failed);
        }
        Err(fault::of_exit(command, &self.program, &self.repository, status.code(), &said, &self.secrets))
    }
}

/// A file without a name, which never fills a pipe.
fn scratch() -> io::Result<File> {
    Ok(memfd_create("sq-agent-restic", MemfdFlags::CLOEXEC)?.into())
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Ends it as Ctrl-C would, so that it removes its lock; then for certain.
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

/// Makes `path` for this user alone, with what leads to it below the state directory.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Name of this host, as restic takes it by itself.
pub(super) fn host_name() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}
