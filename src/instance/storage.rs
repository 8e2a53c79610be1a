//! What a tenant's phexts take on the disk, and what the disk has.

use std::{
    ffi::CStr,
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, statvfs, statx},
    io::Errno,
};

use super::spawn::DATA_DIR;

/// In such steps a file's length counts, bytes, and one for a file without any: so that a million empty files are not nothing.
const STEP: u64 = 4 * 1024;

/// What a tenant's phexts were found to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// The files' lengths, each rounded up to a whole step of 4 KiB.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
}

impl Stored {
    fn add(&mut self, length: u64) {
        self.bytes = self.bytes.saturating_add(length.div_ceil(STEP).max(1).saturating_mul(STEP));
        self.files += 1;
    }
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that a user without privileges may still write.
    pub free: u64,
}

/// Measures what sq keeps below `user_dir`: all regular files in `phext-data`, which has no directories. The guard's copies and the
/// snapshots lie elsewhere and do not count. Where there is nothing yet, nothing is stored.
///
/// Lengths, not blocks: those that a file system puts aside for a file that grows (XFS), or shares between files, are no doing of the tenant.
/// Costs some 10 µs, and 1 µs a file.
pub fn measure(user_dir: &Path) -> io::Result<Stored> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let directory = match rustix::fs::openat(CWD, user_dir.join(DATA_DIR), flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(Stored::default()),
        Err(error) => return Err(error.into()),
    };
    let mut stored = Stored::default();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
            length(&directory, entry.file_name())?.into_iter().for_each(|length| stored.add(length));
        }
    }
    Ok(stored)
}

/// The length of a regular file, never of what a link names; `None` where it is none, or is gone by now.
fn length(directory: &impl rustix::fd::AsFd, name: &CStr) -> io::Result<Option<u64>> {
    // The kernel need not ask anybody else for what it knows, nor work out what nobody wants.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    match statx(directory, name, flags, StatxFlags::TYPE | StatxFlags::SIZE) {
        Ok(found) => Ok((FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile).then_some(found.stx_size)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The room where tenants' files and the agent's own lie: of two file systems, that of the fuller one.
pub fn space(state_dir: &Path) -> io::Result<DiskSpace> {
    let of = |path: PathBuf| -> io::Result<DiskSpace> {
        let found = statvfs(&path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(DiskSpace { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    };
    let own = of(state_dir.to_owned())?;
    // Made with the first tenant.
    let users = of(state_dir.join("users")).unwrap_or(own);
    Ok(if users.free < own.free { users } else { own })
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::File, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn files_count_in_whole_steps_and_only_those_that_sq_keeps() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(measure(dir.path()).unwrap(), Stored::default(), "nothing yet");
        let data = dir.path().join("phext-data");
        fs::create_dir(&data).unwrap();
        assert_eq!(measure(dir.path()).unwrap(), Stored::default());
        for (name, length) in [(".phext", 0), ("a.phext", 1), ("b.phext", STEP), ("c.phext", STEP + 1)] {
            File::create(data.join(name)).unwrap().set_len(length).unwrap();
        }
        for elsewhere in ["guard", "snapshots", "phext-data/directory"] {
            fs::create_dir(dir.path().join(elsewhere)).unwrap();
            fs::write(dir.path().join(elsewhere).join("copy"), "x".repeat(100_000)).unwrap();
        }
        symlink("/proc/self/exe", data.join("link")).unwrap();
        assert_eq!(measure(dir.path()).unwrap(), Stored { bytes: 5 * STEP, files: 4 });
    }

    #[test]
    fn the_disk_has_some_room_and_no_more_than_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path()).unwrap();
        assert!(space.total > 0 && space.free <= space.total, "{space:?}");
    }

    /// `cargo test --release --lib what_a_look -- --ignored --nocapture` says what 2,300 tenants cost.
    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stderr)]
    fn what_a_look_at_2300_tenants_costs() {
        let dir = tempfile::tempdir().unwrap();
        for tenant in 0..2_300 {
            let data = dir.path().join(tenant.to_string()).join(DATA_DIR);
            fs::create_dir_all(&data).unwrap();
            (0..5).for_each(|n| fs::write(data.join(format!("{n}.phext")), "text").unwrap());
        }
        let began = std::time::Instant::now();
        for tenant in 0..2_300 {
            assert_eq!(measure(&dir.path().join(tenant.to_string())).unwrap().files, 5);
        }
        eprintln!("2,300 tenants with 5 files each: {:?}", began.elapsed());
    }
}
