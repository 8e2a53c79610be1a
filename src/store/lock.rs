//! One agent a state directory.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{rfc3339, unix_now};

/// Why this agent may not use the state directory.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent runs on it.
    #[error("another sq-agent ({holder}) runs on {}; stop it first, or give this one a state_dir of its own", state_dir.display())]
    Held {
        /// `pid 123, since 2026-02-09T22:32:00Z`.
        holder: String,
        /// The directory.
        state_dir: PathBuf,
    },
    /// Others could plant links or swap files in it.
    #[error("everybody may write to {}; run `chmod o-w` on it, or choose another state_dir", .0.display())]
    OpenToAll(PathBuf),
    /// It belongs to another user.
    #[error("{} may not be written by this user; run the agent as its owner, or choose another state_dir under [agent]", .0.display())]
    Denied(PathBuf),
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

/// The right to act on a state directory; let go when dropped, and by the kernel when the agent dies.
#[derive(Debug)]
pub struct AgentLock {
    /// `None` once it was let go of.
    file: Option<File>,
    run_dir: PathBuf,
    /// Another process has, or had, the same lock: an unlock would take it from that one as well.
    shared: AtomicBool,
}

impl AgentLock {
    /// Makes the state directory and its `run/` where missing, and takes the flock on `ports.lock`.
    ///
    /// The state directory is 0711: others may pass but not look around, since the proxy runs as another user and has to
    /// reach its own log in it. All it holds is closed by itself: files are 0600, `run/` and `users/` are 0700.
    /// The lock file stays when the lock goes: removing it would let two agents lock two files of one name.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        make_dir(state_dir, 0o711)?;
        let mode = fs::metadata(state_dir).map_err(fail("looking at", state_dir))?.mode();
        if mode & 0o002 != 0 {
            return Err(LockError::OpenToAll(state_dir.into()));
        }
        let run_dir = state_dir.join("run");
        make_dir(&run_dir, 0o700)?;
        let path = state_dir.join("ports.lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(fail("opening", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Held { holder: holder(&mut file), state_dir: state_dir.into() }),
            Err(TryLockError::Error(error)) => return Err(fail("locking", &path)(error)),
        }
        write_holder(&mut file).map_err(fail("writing", &path))?;
        Ok(Self { file: Some(file), run_dir, shared: false.into() })
    }

    /// Takes over the lock that another agent `handed` on: it was never free. Its holder is this process from now on.
    pub fn inherit(handed: OwnedFd, state_dir: &Path) -> Result<Self, LockError> {
        let mut file = File::from(handed);
        let path = state_dir.join("ports.lock");
        write_holder(&mut file).map_err(fail("writing", &path))?;
        Ok(Self { file: Some(file), run_dir: state_dir.join("run"), shared: true.into() })
    }

    /// Whether some agent holds the state directory now.
    pub fn is_held(state_dir: &Path) -> bool {
        // Shared, and let go at once: an agent that tries just now tries again.
        File::open(state_dir.join("ports.lock")).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// For the agent that is to have the lock; both hold it then.
    pub fn hand_on(&self) -> io::Result<OwnedFd> {
        self.shared.store(true, Ordering::Relaxed);
        self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.as_fd().try_clone_to_owned()
    }

    /// Leaves the lock to the agent that it was handed to.
    pub fn let_go(mut self) {
        // Closed, not unlocked: an unlock would take it from the other one as well.
        self.file.take();
    }

    /// `<state_dir>/run`: sockets and pid files.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }
}

impl Drop for AgentLock {
    fn drop(&mut self) {
        if !self.shared.load(Ordering::Relaxed) {
            // Closing alone lets go only once a child that is between fork and exec just now has closed its copy.
            let _ = self.file.as_ref().map(File::unlock);
        }
    }
}

fn write_holder(file: &mut File) -> io::Result<()> {
    let since = rfc3339(unix_now());
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(format!("pid {}, since {since}\n", std::process::id()).as_bytes())
}

/// What the holder wrote; it may be about to.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(128).read_to_string(&mut text);
    let text = text.trim();
    if read.is_err() || text.is_empty() { "pid not known yet".into() } else { text.chars().filter(|c| !c.is_control()).collect() }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), LockError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(fail("making", path))
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LockError {
    move |error| match error.kind() {
        io::ErrorKind::PermissionDenied => LockError::Denied(path.into()),
        _ => LockError::File { what, path: path.into(), error },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_second_agent_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let lock = AgentLock::take(&state_dir).unwrap();
        assert_eq!(lock.run_dir(), state_dir.join("run"));
        let text = AgentLock::take(&state_dir).unwrap_err().to_string();
        assert!(text.contains(&format!("(pid {}, since 20", std::process::id())), "{text}");
        drop(lock);
        AgentLock::take(&state_dir).unwrap();
    }

    #[test]
    fn a_lock_that_is_handed_on_is_never_free() {
        let dir = tempfile::tempdir().unwrap();
        let first = AgentLock::take(dir.path()).unwrap();
        let handed = first.hand_on().unwrap();
        first.let_go();
        assert!(matches!(AgentLock::take(dir.path()), Err(LockError::Held { .. })));
        let second = AgentLock::inherit(handed, dir.path()).unwrap();
        assert!(matches!(AgentLock::take(dir.path()), Err(LockError::Held { .. })));
        drop(second);
        AgentLock::take(dir.path()).unwrap();
    }

    #[test]
    fn an_heir_that_comes_to_nothing_leaves_the_lock_to_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let holder = AgentLock::take(dir.path()).unwrap();
        drop(AgentLock::inherit(holder.hand_on().unwrap(), dir.path()).unwrap());
        assert!(matches!(AgentLock::take(dir.path()), Err(LockError::Held { .. })));
        drop(holder);
        AgentLock::take(dir.path()).unwrap();
    }

    #[test]
    fn others_may_pass_but_neither_look_nor_write() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let lock = AgentLock::take(&state_dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state_dir), mode(lock.run_dir()), mode(&state_dir.join("ports.lock"))), (0o711, 0o700, 0o600));
        drop(lock);
        fs::set_permissions(&state_dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(AgentLock::take(&state_dir), Err(LockError::OpenToAll(_))));
    }
}
