//! Files on the disk, as more than one room has to do with them: opened without following a link, told from what they were, copied, removed.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// Why something could not be done to a file.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {source}", path = .path.display())]
pub struct FileError {
    /// What was tried.
    pub doing: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What was tried on which file, for what the system says of it.
pub(crate) fn failed<E: Into<io::Error>>(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> FileError {
    move |error| FileError { doing, path: path.into(), source: error.into() }
}

/// A file that was written less than this before it was looked at, nanoseconds, may be written again without a sign: the kernel's coarse clock, by
/// which files are stamped, stands still for up to 10 ms (HZ=100).
const SETTLES_IN: i128 = 50_000_000;
/// The same where times are whole seconds.
const COARSE_SETTLES_IN: i128 = 2_000_000_000;

/// What tells a file from what it was, as long as nobody writes it within one tick of the clock by which files are stamped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    inode: u64,
    /// Length, bytes.
    pub(crate) size: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&rustix::fs::fstat(file)?))
    }

    /// Whether any later write would give it another one.
    pub(crate) fn is_settled(self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| i128::try_from(now.as_nanos()).unwrap_or(0));
        let changed = i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1);
        let whole_seconds = (self.changed.1, self.modified.1) == (0, 0);
        changed + if whole_seconds { COARSE_SETTLES_IN } else { SETTLES_IN } < now
    }
}

impl From<&Stat> for Version {
    #[allow(clippy::cast_sign_loss, reason = "no file is shorter than nothing")]
    #[allow(clippy::unnecessary_cast, reason = "the types differ between processors")]
    fn from(found: &Stat) -> Self {
        Self {
            inode: found.st_ino,
            size: found.st_size as u64,
            modified: (found.st_mtime as i64, found.st_mtime_nsec as i64),
            changed: (found.st_ctime as i64, found.st_ctime_nsec as i64),
        }
    }
}

/// What stands at `name`, if anything does; of a link, the link.
pub(crate) fn stat(directory: &OwnedFd, name: &str) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether that is a regular file.
pub(crate) fn is_regular(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
}

/// A regular file, never a link, and never waited for (a pipe).
pub(crate) fn open(parent: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    open_and_look(parent, name, flags).map(|(file, _)| file)
}

/// The same, and how it stands.
pub(crate) fn open_and_look(parent: &OwnedFd, name: &str, flags: OFlags) -> io::Result<(File, Stat)> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    let found = rustix::fs::fstat(&file)?;
    if is_regular(&found) { Ok((file.into(), found)) } else { Err(io::Error::other("it is not a regular file")) }
}

/// The same, to read, where there is one.
pub(crate) fn open_if_there(parent: &OwnedFd, name: &str) -> io::Result<Option<(File, Stat)>> {
    match open_and_look(parent, name, OFlags::RDONLY) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes `to` the same as `from`: by sharing its blocks where the file system can, else by copying in the kernel.
/// Returns whether it shares them.
pub(crate) fn copy(from: &mut File, to: &mut File) -> io::Result<bool> {
    if rustix::fs::ioctl_ficlone(&*to, &*from).is_ok() {
        // What was there before may have been longer.
        to.set_len(from.metadata()?.len())?;
        return Ok(true);
    }
    from.rewind()?;
    to.rewind()?;
    // copy_file_range where that is possible.
    let length = io::copy(from, to)?;
    to.set_len(length)?;
    Ok(false)
}

/// From this length on, bytes, a copy shares its file's blocks on XFS. That brings a file which was just written to the disk first (by
/// copy_file_range, too), and the next write waits for it: 1 MB so takes up to 140 ms where copying the bytes takes 0.1 ms. Btrfs brings one that
/// was emptied and written anew to the disk in any case, when it is closed; to share its blocks takes half the time of a second copy.
const SHARED_FROM: u64 = 8 << 20;

/// Whether the file system is XFS (linux/magic.h).
fn is_on_xfs(file: &File) -> io::Result<bool> {
    const XFS: u64 = 0x5846_5342;
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "the type differs between processors")]
    let kind = rustix::fs::fstatfs(file)?.f_type as u64;
    Ok(kind == XFS)
}

/// What is copied at once, bytes.
const BUFFER: usize = 256 * 1024;

/// [`copy`] of a file of `length` bytes that was written just now; `to` has `before`.
pub(crate) fn copy_fresh(from: &mut File, length: u64, to: &mut File, before: u64) -> io::Result<()> {
    // What fits the buffer is there in two calls, where sharing or copying in the kernel takes ten to find out how.
    if length < BUFFER as u64 || (length < SHARED_FROM && is_on_xfs(from)?) {
        copy_bytes(from, length, to, before)
    } else {
        copy(from, to).map(drop)
    }
}

/// Makes `to` the same as `from`, byte for byte, in memory.
fn copy_bytes(from: &mut File, expected: u64, to: &mut File, before: u64) -> io::Result<()> {
    // One more than there should be, so that one read finds the end.
    let mut buffer = vec![0; usize::try_from(expected).map_or(BUFFER, |length| (length + 1).min(BUFFER))];
    let mut length = 0;
    loop {
        let read = match from.read_at(&mut buffer, length) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all_at(&buffer[..read], length)?;
        length += read as u64;
        if read == 0 || (read < buffer.len() && length == expected) {
            break;
        }
    }
    if before > length { to.set_len(length) } else { Ok(()) }
}

/// Says of `name` that it was modified at this time, seconds and nanoseconds since 1970.
pub(crate) fn set_modified(directory: &OwnedFd, name: &str, (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    };
    Ok(rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Replaces `path` by `bytes` at one stroke: a reader, or a power cut, finds the old content or the new. Mode and owner stay what they were (as
/// far as this user may give a file away); a new file is its maker's alone.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let before = fs::metadata(path).ok();
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        if let Some(before) = &before {
            let _ = rustix::fs::fchown(&file, Some(Uid::from_raw(before.uid())), Some(Gid::from_raw(before.gid())));
            file.set_permissions(before.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Bytes that a user without privileges may still write on the file system of `directory`.
pub(crate) fn free(directory: &OwnedFd) -> io::Result<u64> {
    let found = rustix::fs::fstatvfs(directory)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn remove_tree(directory: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", directory)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_whatever_stood_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| File::options().read(true).write(true).create(true).truncate(false).open(dir.path().join(name)).unwrap();
        fn length_of(file: &File) -> u64 {
            file.metadata().unwrap().len()
        }
        type Copying = fn(&mut File, &mut File) -> io::Result<()>;
        let ways: [Copying; 3] = [
            |from, to| copy(from, to).map(drop),
            |from, to| copy_fresh(from, length_of(from), to, length_of(to)),
            |from, to| copy_bytes(from, length_of(from), to, length_of(to)),
        ];
        for length in [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER] {
            let text: Vec<u8> = (0..length).map(|n| n as u8).collect();
            fs::write(dir.path().join("from"), &text).unwrap();
            for way in ways {
                for before in [0, length / 2, length + 7] {
                    fs::write(dir.path().join("to"), vec![b'x'; before]).unwrap();
                    way(&mut open("from"), &mut open("to")).unwrap();
                    assert!(fs::read(dir.path().join("to")).unwrap() == text, "{length} bytes over {before}");
                }
            }
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_stays_whose_it_was() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        write_whole(&path, b"one").unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode()), (&b"two"[..], 0o644));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(write_whole(dir.path(), b"x").is_err());
    }

    #[test]
    fn neither_links_nor_pipes_nor_directories_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let directory: OwnedFd = File::open(dir.path()).unwrap().into();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        rustix::fs::mknodat(&directory, "pipe", FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        for name in ["link", "pipe", "directory"] {
            assert!(open(&directory, name, OFlags::RDONLY).is_err(), "{name}");
        }
        assert!(open_if_there(&directory, "nothing").unwrap().is_none());
    }
}
