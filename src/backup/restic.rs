//! One `restic` after the other, for one repository. Secrets go by file and by environment, never by a command line.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{aside, env_file, fault, fault::ResticError, place};
use crate::{
    child::{self, Cancel, NotRun, Ran},
    desired::Backup,
};

/// A first backup over a slow line may take a day. One that takes longer hangs.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3_600);
/// A question to the repository.
pub(super) const QUESTION: Duration = Duration::from_secs(5 * 60);
/// A lock may stand in the way that a killed restic left, and one counts as living until somebody has reaped it; or another host's that is let go soon.
const UNLOCK_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(8)];

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
        let environment = child::passed_on()
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
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let mut program = match &self.exe {
            Some(exe) => aside::command(exe, &self.program, &arguments),
            None => {
                let mut program = Command::new(&self.program);
                program.args(arguments);
                program
            }
        };
        program.env_clear().envs(self.environment.iter().map(|(key, value)| (key, value)));
        directory.iter().for_each(|directory| _ = program.current_dir(directory));
        let Ran { status, out, said } = child::run(&mut program, patience, &self.cancel).map_err(|why| match why {
            NotRun::Cancelled => ResticError::BrokenOff,
            NotRun::TooLong => ResticError::TooLong(patience),
            NotRun::Failed(error) => failed(error),
        })?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&out).into_owned());
        }
        Err(fault::of_exit(command, &self.program, &self.repository, status.code(), &said, &self.secrets))
    }
}

/// Makes `path` for this user alone, with what leads to it below the state directory.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Name of this host, as restic takes it by itself.
pub(super) fn host_name() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}
