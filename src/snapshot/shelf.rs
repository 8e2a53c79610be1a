//! Where a tenant's snapshots lie: `users/<id>/snapshots/<name>/`, each with its manifest and, below it, the phexts as files (`phexts/`) or in an
//! archive (`phexts.tar.zst`) that `tar --zstd -xf` unpacks.
//!
//! A name that begins with a dot is work that was cut off: it counts for nothing and is swept away by whoever comes next.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{
    copy::{CopiedFile, Known},
    name::{Name, Reason},
};
use crate::file::{FileError, failed, remove_tree};

/// Below a tenant's directory.
pub const SNAPSHOTS_DIR: &str = "snapshots";
const MANIFEST: &str = "manifest.json";
/// The phexts of a snapshot whose blocks are the originals'.
pub(super) const FILES: &str = "phexts";
/// The phexts of any other one.
pub(super) const ARCHIVE: &str = "phexts.tar.zst";
/// A snapshot that is being made.
const NEW: &str = ".new";
/// One that is being removed.
const GONE: &str = ".gone";
/// What a restore has unpacked.
const UNPACKED: &str = ".restore";

/// What could not be done to a tenant's snapshots.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file operation.
    #[error(transparent)]
    Files(#[from] FileError),
    /// Something else stands there.
    #[error("{} is not a directory of its own; move it away", .0.display())]
    NotADirectory(PathBuf),
}

/// What stands in a snapshot's manifest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// When it was taken, as RFC 3339 has it.
    pub(super) time: String,
    /// Why.
    pub(super) reason: Reason,
    /// What it holds.
    pub(super) files: Vec<CopiedFile>,
    /// What they were made of, to tell whether anything has changed since.
    pub(super) known: Known,
}

/// One snapshot, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// When it was taken, as RFC 3339 has it.
    pub time: String,
    /// Why.
    pub reason: Reason,
    /// What it takes on the disk, bytes; blocks that it shares with the phexts themselves are counted too.
    pub bytes: u64,
    /// How many files it holds.
    pub files: usize,
    /// Where it lies.
    pub path: PathBuf,
    /// Its whole name.
    pub name: Name,
}

/// A tenant's snapshots, for one process at a time.
#[derive(Debug)]
pub(super) struct Shelf {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl Shelf {
    /// Waits for whoever is at it, and sweeps away what was cut off. `user_dir` must be there.
    pub(super) fn open(user_dir: &Path) -> Result<Self, ShelfError> {
        let path = user_dir.join(SNAPSHOTS_DIR);
        make_directory(&path)?;
        let lock = File::open(&path).map_err(failed("opening", &path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(failed("locking", &path))?;
        let shelf = Self { path, _lock: lock };
        for left in [NEW, GONE, UNPACKED] {
            remove_tree(&shelf.path.join(left))?;
        }
        Ok(shelf)
    }

    /// Every snapshot, the oldest first.
    pub(super) fn names(&self) -> Result<Vec<Name>, FileError> {
        names(&self.path)
    }

    pub(super) fn manifest(&self, name: Name) -> Result<Manifest, FileError> {
        manifest(&self.path.join(name.to_string()))
    }

    /// An empty directory for a new snapshot.
    pub(super) fn begin(&self) -> Result<PathBuf, ShelfError> {
        let path = self.path.join(NEW);
        make_directory(&path)?;
        Ok(path)
    }

    /// An empty directory for what a restore unpacks.
    pub(super) fn unpacking(&self) -> Result<PathBuf, ShelfError> {
        let path = self.path.join(UNPACKED);
        make_directory(&path)?;
        Ok(path)
    }

    /// What was begun is a snapshot from here on. Its time is `now`, or the next second that no other one has.
    pub(super) fn finish(&self, reason: Reason, now: u64, files: Vec<CopiedFile>, known: Known) -> Result<Name, FileError> {
        let taken = self.names()?;
        let at = (now..).find(|at| !taken.iter().any(|name| name.at == *at)).unwrap_or(now);
        let name = Name { at, reason };
        let (new, path) = (self.path.join(NEW), self.path.join(name.to_string()));
        let manifest = Manifest { time: name.time(), reason, files, known };
        let text = serde_json::to_vec(&manifest).map_err(io::Error::from).map_err(failed("writing", new.join(MANIFEST)))?;
        write_through(&new.join(MANIFEST), &text)?;
        sync(&new)?;
        fs::rename(&new, &path).map_err(failed("naming", &path))?;
        sync(&self.path)?;
        Ok(name)
    }

    /// Removes a snapshot; cut off, it is gone all the same.
    pub(super) fn remove(&self, name: Name) -> Result<(), FileError> {
        let (path, gone) = (self.path.join(name.to_string()), self.path.join(GONE));
        fs::rename(&path, &gone).map_err(failed("removing", &path))?;
        remove_tree(&gone)
    }

    pub(super) fn listed(&self, name: Name) -> Result<Listed, FileError> {
        listed(&self.path, name)
    }
}

/// Every snapshot of the tenant in `user_dir`, the oldest first. Also while others are at it.
pub fn list(user_dir: &Path) -> Result<Vec<Listed>, FileError> {
    let path = user_dir.join(SNAPSHOTS_DIR);
    let mut all = Vec::new();
    for name in names(&path)? {
        match listed(&path, name) {
            // Removed just now.
            Err(FileError { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            found => all.push(found?),
        }
    }
    Ok(all)
}

/// Where the snapshot `name` of the tenant in `user_dir` lies.
pub(super) fn path(user_dir: &Path, name: Name) -> PathBuf {
    user_dir.join(SNAPSHOTS_DIR).join(name.to_string())
}

pub(super) fn manifest(snapshot: &Path) -> Result<Manifest, FileError> {
    let path = snapshot.join(MANIFEST);
    let text = fs::read(&path).map_err(failed("reading", &path))?;
    serde_json::from_slice(&text).map_err(io::Error::from).map_err(failed("reading", &path))
}

fn names(shelf: &Path) -> Result<Vec<Name>, FileError> {
    let entries = match fs::read_dir(shelf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("reading", shelf))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("reading", shelf))?;
        names.extend(entry.file_name().to_str().and_then(Name::parse));
    }
    names.sort_unstable();
    Ok(names)
}

fn listed(shelf: &Path, name: Name) -> Result<Listed, FileError> {
    let path = shelf.join(name.to_string());
    let manifest = manifest(&path)?;
    let bytes = match fs::metadata(path.join(ARCHIVE)) {
        Ok(archive) => archive.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => manifest.files.iter().map(|file| file.size).sum(),
        Err(error) => return Err(failed("looking at", path.join(ARCHIVE))(error)),
    };
    Ok(Listed { time: name.time(), reason: name.reason, bytes, files: manifest.files.len(), path, name })
}

/// Makes `path`, closed to others, or takes the directory that is there.
pub(super) fn make_directory(path: &Path) -> Result<(), ShelfError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("making", path)(error).into()),
        _ => {}
    }
    let found = fs::symlink_metadata(path).map_err(failed("looking at", path))?;
    if found.is_dir() { Ok(()) } else { Err(ShelfError::NotADirectory(path.into())) }
}

fn write_through(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed("writing", path))
}

/// Brings a file, or the names in a directory, to the disk.
pub(super) fn sync(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("syncing", path))
}
