//! What a start of one real sq is given: its command line, and a directory that is ready for it. The start itself is the
//! launcher's, see [`super::launcher::Launcher::launch`].

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::{cgroup::CgroupLimits, process::Process};
use crate::desired::TenantId;

/// Everything one start needs. No `Debug`: it holds the key.
#[derive(Clone)]
pub struct SpawnSpec {
    /// Whose; names the cgroup.
    pub id: TenantId,
    /// The tenant's slot; gives its user where each has its own.
    pub slot: u32,
    /// What its cgroup limits, where it has one.
    pub limits: CgroupLimits,
    /// The sq program, absolute (see [`super::binary`]).
    pub binary: PathBuf,
    /// `<state_dir>/users/<id>`: made where missing; sq's working directory.
    pub user_dir: PathBuf,
    /// TCP port; sq binds it on 0.0.0.0.
    pub port: u16,
    /// `--key`: not empty, no `:` (see [`crate::instance_key`]).
    pub key: String,
}

/// Why a tenant's directory does not let an instance start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A symbolic link would lead a tenant's data out of the state directory unseen.
    #[error("{} is a symbolic link; the agent does not follow it. Put the data there itself, or mount the other place on it", .0.display())]
    Symlink(PathBuf),
    /// Something else stands where a directory has to be.
    #[error("{} is not a directory; move it away", .0.display())]
    NotADirectory(PathBuf),
    /// sq takes an argument that names a file for a phext, so it would run and never listen.
    #[error("{} is named like the port, and sq would open it instead of listening; move it away", .0.display())]
    NamedLikePort(PathBuf),
    /// What cannot stand on sq's command line.
    #[error("{} is not UTF-8; give the state directory and sq a path that is", .0.display())]
    NotText(PathBuf),
    /// A file operation failed.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// File names inside a user's directory.
pub const DATA_DIR: &str = "phext-data";
/// sq's standard output and error, appended.
pub const LOG_FILE: &str = "sq.log";
/// Pid of the last start, for people and scripts; the agent itself trusts pidfds and start times.
pub const PID_FILE: &str = "sq.pid";

/// A tenant's directory, ready for a start.
pub(super) struct Ready {
    /// Absolute and without links, so that a later scan finds the instance again by its command line.
    pub(super) user_dir: PathBuf,
    /// `phext-data` in it.
    pub(super) data_dir: PathBuf,
    /// Open for append. The log is a file and never a pipe: a pipe whose reader is gone panics sq, one that nobody reads
    /// stops it.
    pub(super) log: File,
}

impl Ready {
    /// Makes what is missing, and refuses what would lead sq astray.
    pub(super) fn make(spec: &SpawnSpec) -> Result<Self, SpawnError> {
        let parent = spec.user_dir.parent().unwrap_or(Path::new("/"));
        make_private_dir(parent)?;
        make_private_dir(&spec.user_dir)?;
        let user_dir = fs::canonicalize(&spec.user_dir).map_err(file_error("resolving", &spec.user_dir))?;
        let data_dir = user_dir.join(DATA_DIR);
        make_private_dir(&data_dir)?;
        let mode = fs::metadata(&data_dir).map_err(file_error("looking at", &data_dir))?.permissions().mode();
        if mode & 0o7777 != 0o700 {
            fs::set_permissions(&data_dir, Permissions::from_mode(0o700)).map_err(file_error("closing to others", &data_dir))?;
        }
        let named_like_port = user_dir.join(spec.port.to_string());
        if fs::symlink_metadata(&named_like_port).is_ok() {
            return Err(SpawnError::NamedLikePort(named_like_port));
        }
        let log = open_log(&user_dir.join(LOG_FILE))?;
        Ok(Self { user_dir, data_dir, log })
    }

    /// sq's command line, the program in front. [`super::scan`] knows it by this form.
    pub(super) fn command_line(&self, spec: &SpawnSpec) -> Result<Vec<String>, SpawnError> {
        let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| SpawnError::NotText(path.into()));
        let words = ["host", &spec.port.to_string(), "--key", &spec.key, "--data-dir"].map(str::to_owned);
        Ok([vec![text(&spec.binary)?], words.into(), vec![text(&self.data_dir)?]].concat())
    }
}

/// Writes the pid file. Where that cannot be (a full disk), none is better than one that names another process: the agent itself
/// needs it not, and reading must go on.
pub(super) fn note(process: &Process, user_dir: &Path) {
    if let Err(error) = write_pid(user_dir, process.pid()) {
        tracing::warn!(%error, "the pid file is left out");
        // It may be gone, and on a read-only file system it stays.
        let _ = fs::remove_file(user_dir.join(PID_FILE));
    }
}

/// Makes `path` with mode 0700, or accepts the directory that is there; never follows a symbolic link.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), SpawnError> {
    match DirBuilder::new().recursive(false).mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(file_error("making", path)(error)),
    }
    let found = fs::symlink_metadata(path).map_err(file_error("looking at", path))?;
    if found.is_symlink() {
        return Err(SpawnError::Symlink(path.into()));
    }
    if found.is_dir() { Ok(()) } else { Err(SpawnError::NotADirectory(path.into())) }
}

/// Opened for append, so that rotation may truncate it under sq's hands.
fn open_log(path: &Path) -> Result<File, SpawnError> {
    let no_links = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(no_links).open(path).map_err(file_error("opening", path))
}

/// Replaced by rename: a reader sees the old pid or the new one, never half of it.
fn write_pid(user_dir: &Path, pid: u32) -> Result<(), SpawnError> {
    let path = user_dir.join(PID_FILE);
    let new = user_dir.join(".sq.pid.new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(format!("{pid}\n").as_bytes())?;
        fs::rename(&new, &path)
    };
    write().map_err(file_error("writing", &path))
}

pub(super) fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpawnError {
    move |error| SpawnError::File { what, path: path.into(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(user_dir: PathBuf) -> SpawnSpec {
        let id = TenantId::parse("a").unwrap();
        SpawnSpec { id, slot: 0, limits: CgroupLimits::default(), binary: "/bin/true".into(), user_dir, port: 10_001, key: "k".into() }
    }

    #[test]
    fn a_linked_user_directory_is_refused_and_nothing_appears_behind_it() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let link = dir.path().join("a");
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        assert!(matches!(Ready::make(&spec(link)), Err(SpawnError::Symlink(_))));
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_linked_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let user_dir = dir.path().join("a");
        fs::create_dir(&user_dir).unwrap();
        std::os::unix::fs::symlink("/dev/full", user_dir.join(LOG_FILE)).unwrap();
        assert!(matches!(Ready::make(&spec(user_dir)), Err(SpawnError::File { what: "opening", .. })));
    }

    #[test]
    fn a_file_named_like_the_port_is_refused_since_sq_would_never_listen() {
        let dir = tempfile::tempdir().unwrap();
        let user_dir = dir.path().join("a");
        fs::create_dir(&user_dir).unwrap();
        fs::write(user_dir.join("10001"), "").unwrap();
        let error = Ready::make(&spec(user_dir)).err().unwrap();
        assert!(matches!(error, SpawnError::NamedLikePort(_)), "{error}");
    }
}
