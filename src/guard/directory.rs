//! A tenant's files as the guard sees them: `phext-data/` beside `guard/`, and in that the copies, the marker and the lane.
//!
//! Everything is opened below descriptors and no link is followed: what lies in `phext-data/` belongs to an instance, which is trusted with
//! its own data and nothing else.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Uid},
    io::Errno,
};

use super::{
    group_sync::GroupSync,
    write::{Files, Marker},
};
use crate::{
    crash_point,
    file::{self, FileError, Version, failed, open_if_there},
};

/// Where the copies, the marker and the lane lie, below a tenant's directory.
pub const GUARD_DIR: &str = "guard";
/// sq's data, below a tenant's directory.
const DATA_DIR: &str = crate::instance::spawn::DATA_DIR;
/// Names the write that is in doubt: JSON, padded with spaces. Where none is, it begins with a zero byte. It is written in place, by one call within
/// one page: making and removing a file would cost three entries in the file system's journal a write.
const MARKER: &str = "marker";
/// Length of the file, bytes: room for two names of 255 bytes, escaped.
const MARKER_BYTES: usize = 2_048;

/// A tenant's directories, open.
#[derive(Debug)]
pub struct Directory {
    user: OwnedFd,
    data: OwnedFd,
    guard: OwnedFd,
    marker: File,
}

impl Directory {
    /// Opens `user_dir`, `users/<id>`; makes the guard's directory in it where it is missing.
    pub fn open(user_dir: &Path) -> Result<Self, FileError> {
        let user = open_directory(CWD, user_dir.as_os_str()).map_err(failed("opening", user_dir))?;
        Self::open_in(user)
    }

    /// The same below `users/`.
    pub fn open_at(users: &OwnedFd, id: &crate::desired::TenantId) -> Result<Self, FileError> {
        let user = open_directory(users, OsStr::new(id.as_str())).map_err(failed("opening", id.as_str()))?;
        Self::open_in(user)
    }

    fn open_in(user: OwnedFd) -> Result<Self, FileError> {
        let data = open_directory(&user, OsStr::new(DATA_DIR)).map_err(failed("opening", DATA_DIR))?;
        let guard = match open_directory(&user, OsStr::new(GUARD_DIR)) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&user, GUARD_DIR, Mode::RWXU) {
                    Err(error) if error != Errno::EXIST => return Err(failed("making", GUARD_DIR)(error)),
                    _ => {}
                }
                open_directory(&user, OsStr::new(GUARD_DIR))
            }
            opened => opened,
        };
        let guard = guard.map_err(failed("opening", GUARD_DIR))?;
        let marker = file::open(&guard, MARKER, OFlags::RDWR | OFlags::CREATE).map_err(failed("opening", marker_path()))?;
        Ok(Self { user, data, guard, marker })
    }

    /// The phexts and whatever else sq wrote.
    pub fn data(&self) -> &OwnedFd {
        &self.data
    }

    /// sq's log, where there is one, and how it stands.
    pub(super) fn open_log(&self) -> io::Result<Option<(File, Stat)>> {
        open_if_there(&self.user, crate::instance::spawn::LOG_FILE)
    }

    /// How it stands, where there is one.
    pub(super) fn stat_log(&self) -> io::Result<Option<Stat>> {
        file::stat(&self.user, crate::instance::spawn::LOG_FILE)
    }

    pub(super) fn open_lane(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.guard, name, flags, Mode::RUSR | Mode::WUSR)?)
    }

    /// Whether somebody removed or replaced these directories since they were opened.
    pub(super) fn is_stale(&self) -> bool {
        rustix::fs::fstat(&self.data).is_ok_and(|found| found.st_nlink == 0) || self.marker.metadata().is_ok_and(|found| found.nlink() == 0)
    }

    /// Whether a marker stands.
    pub fn is_marked(&self) -> io::Result<bool> {
        let mut first = [0];
        Ok(self.marker.read_at(&mut first, 0)? == 1 && first != [0])
    }

    /// The same for a tenant whose directory is not open.
    pub(super) fn is_marked_in(user_dir: &Path) -> io::Result<bool> {
        let mut first = [0];
        match File::open(user_dir.join(GUARD_DIR).join(MARKER)) {
            Ok(mut marker) => Ok(marker.read(&mut first)? == 1 && first != [0]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The marker that stands, if one does.
    pub(super) fn marker(&self) -> Result<Option<Marker>, FileError> {
        let read = || -> io::Result<Option<Marker>> {
            let mut text = Vec::new();
            (&self.marker).seek(SeekFrom::Start(0))?;
            (&self.marker).take(MARKER_BYTES as u64).read_to_end(&mut text)?;
            if text.first().is_none_or(|&first| first == 0) {
                return Ok(None);
            }
            match serde_json::from_slice(&text) {
                Ok(marker) => Ok(Some(marker)),
                // Half of it reached the disk before the power ended: then sq never saw the request.
                Err(error) => {
                    tracing::error!(%error, "a marker cannot be read, and is taken for one that was never set");
                    Ok(None)
                }
            }
        };
        read().map_err(failed("reading", marker_path()))
    }

    /// Clears the marker, whatever it says.
    pub(super) fn unmark(&self) -> Result<(), FileError> {
        self.marker.write_all_at(&[0], 0).map_err(failed("clearing", marker_path()))
    }

    /// Bytes that a user without privileges may still write there.
    pub fn free(&self) -> io::Result<u64> {
        file::free(&self.data)
    }
}

fn marker_path() -> PathBuf {
    Path::new(GUARD_DIR).join(MARKER)
}

fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// One file of a tenant, in the lane.
pub(super) struct Guarded<'a> {
    directory: &'a Directory,
    name: &'a str,
    /// What the file was when its copy was made.
    copied: Option<Version>,
    /// With whom to share a flush of the disk.
    sync: Option<&'a GroupSync<Directory>>,
}

/// Modified in the first second of 1970: no rewrite leaves that. (Times of a file in the kernel's coarse clock stay the same for 4 ms, and on some
/// file systems for a second, so a rewrite may leave everything of an [`Version`] as it was.)
const UNTOUCHED: (i64, i64) = (1, 0);

impl<'a> Guarded<'a> {
    /// The file called `name`; `copied` is what it was when its copy was last made, where that is known.
    pub(super) fn new(directory: &'a Directory, name: &'a str, copied: Option<Version>, sync: Option<&'a GroupSync<Directory>>) -> Self {
        Self { directory, name, copied, sync }
    }

    /// What the file was when its copy was made.
    pub(super) fn copied(&self) -> Option<Version> {
        self.copied
    }

    /// The file as it stands.
    pub(super) fn version(&self) -> Result<Option<Version>, FileError> {
        let found = file::stat(&self.directory.data, self.name).map_err(failed("looking at", self.data_path()))?;
        Ok(found.as_ref().map(Version::from))
    }

    /// Marks the file, which stands like that, as not touched since. Returns when it was modified.
    pub(super) fn touch_not(&self, stands: Option<Version>) -> Result<Option<(i64, i64)>, FileError> {
        let Some(found) = stands else { return Ok(None) };
        self.set_modified(UNTOUCHED)?;
        Ok(Some(found.modified))
    }

    /// Whether sq rewrote the file since [`Self::touch_not`].
    pub(super) fn is_rewritten(&self) -> Result<bool, FileError> {
        Ok(self.version()?.is_some_and(|found| found.modified != UNTOUCHED))
    }

    /// Gives a file that was not rewritten its time back; its copy is as true as before.
    pub(super) fn untouched(&mut self, modified: Option<(i64, i64)>) -> Result<(), FileError> {
        if let Some(modified) = modified {
            self.set_modified(modified)?;
            self.copied = self.version()?;
        }
        Ok(())
    }

    fn set_modified(&self, time: (i64, i64)) -> Result<(), FileError> {
        file::set_modified(&self.directory.data, self.name, time).map_err(failed("marking the time of", self.data_path()))
    }

    fn data_path(&self) -> PathBuf {
        Path::new(DATA_DIR).join(self.name)
    }

    fn copy_path(&self) -> PathBuf {
        Path::new(GUARD_DIR).join(self.name)
    }

    /// Whether there is a file to copy.
    fn make_copy(&mut self) -> io::Result<bool> {
        self.copied = None;
        let Some((mut from, found)) = open_if_there(&self.directory.data, self.name)? else { return Ok(false) };
        let (mut to, before) = file::open_and_look(&self.directory.guard, self.name, OFlags::RDWR | OFlags::CREATE)?;
        let stands = Version::from(&found);
        file::copy_fresh(&mut from, stands.size, &mut to, Version::from(&before).size)?;
        if before.st_mode & 0o7777 != found.st_mode & 0o777 {
            rustix::fs::fchmod(&to, Mode::from_raw_mode(found.st_mode & 0o777))?;
        }
        self.copied = Some(stands);
        Ok(true)
    }

    /// Puts the copy in the place of the file: in one step, and without needing room.
    fn restore(&self) -> Result<(), FileError> {
        let copy = file::open(&self.directory.guard, self.name, OFlags::RDONLY).map_err(failed("opening", self.copy_path()))?;
        // Whose the data are: the instance's user, where it has one of its own.
        let owner = rustix::fs::fstat(&self.directory.data).map_err(failed("looking at", DATA_DIR))?;
        let found = copy.metadata().map_err(failed("looking at", self.copy_path()))?;
        if (found.uid(), found.gid()) != (owner.st_uid, owner.st_gid) {
            rustix::fs::fchown(&copy, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))
                .map_err(failed("giving back", self.copy_path()))?;
        }
        rustix::fs::renameat(&self.directory.guard, self.name, &self.directory.data, self.name)
            .map_err(failed("putting back", self.copy_path()))
    }
}

impl Files for Guarded<'_> {
    type Error = FileError;

    fn copy(&mut self) -> Result<bool, FileError> {
        if self.copied.is_some() && self.version()? == self.copied {
            return Ok(true);
        }
        self.make_copy().map_err(failed("copying", self.data_path()))
    }

    fn mark(&mut self, marker: &Marker) -> Result<(), FileError> {
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec(marker)?;
            if text.len() > MARKER_BYTES {
                return Err(io::Error::other("its name is too long for a marker"));
            }
            text.resize(MARKER_BYTES, b' ');
            self.directory.marker.write_all_at(&text, 0)
        };
        write().map_err(failed("writing", marker_path()))
    }

    fn marker(&mut self) -> Result<Option<Marker>, FileError> {
        self.directory.marker()
    }

    fn unmark(&mut self) -> Result<(), FileError> {
        self.directory.unmark()
    }

    fn put_back(&mut self, marker: &Marker) -> Result<(), FileError> {
        self.copied = None;
        if !marker.existed {
            return match rustix::fs::unlinkat(&self.directory.data, self.name, AtFlags::empty()) {
                Err(error) if error != Errno::NOENT => Err(failed("removing", self.data_path())(error)),
                _ => Ok(()),
            };
        }
        match self.restore() {
            // Put back already, by a recovery that died before it removed the marker.
            Err(error)
                if error.source.kind() == io::ErrorKind::NotFound && self.version()?.is_some_and(|found| found.size == marker.size) =>
            {
                Ok(())
            }
            restored => restored,
        }
        .inspect(|()| crash_point::reached("recover.put_back"))
    }

    fn copy_is_whole(&mut self, marker: &Marker) -> Result<bool, FileError> {
        let look = || -> io::Result<bool> {
            let Some((mut copy, _)) = open_if_there(&self.directory.guard, self.name)? else { return Ok(false) };
            let mut bytes = Vec::new();
            copy.read_to_end(&mut bytes)?;
            // What a file system makes of blocks that never reached the disk; no phext holds it.
            Ok(bytes.len() as u64 == marker.size && !bytes.contains(&0))
        };
        look().map_err(failed("reading", self.copy_path()))
    }

    fn sync(&mut self) -> Result<(), FileError> {
        let synced = match self.sync {
            Some(group) => group.sync(self.directory),
            None => sync_all(self.directory),
        };
        synced.map_err(failed("syncing", self.data_path()))
    }
}

/// Brings everything that was written on the directory's file system to the disk.
pub(super) fn sync_all(directory: &Directory) -> io::Result<()> {
    Ok(rustix::fs::syncfs(&directory.data)?)
}
