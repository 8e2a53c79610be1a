//! Takes one snapshot. Blocks.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    copy::{self, CopyError, Known},
    name::{Name, Reason},
    retention,
    shelf::{self, ARCHIVE, FILES, Listed, Shelf, ShelfError},
};
use crate::{
    crash_point,
    desired::Snapshots,
    file::{FileError, failed, remove_tree},
    instance::spawn::DATA_DIR,
};

/// An hourly snapshot leaves so much of the disk free: enough for what everybody writes until somebody looks.
const FREE_BYTES: u64 = 256 << 20;
/// And such a share of it, 1 in so many.
const FREE_SHARE: u64 = 20;
/// One that is wanted for a reason of its own leaves so much.
const LEAST_FREE: u64 = 64 << 20;
/// zstd's own default: text shrinks to about a third at some 300 MB a second.
const LEVEL: i32 = 3;

/// Which snapshot is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOrder {
    /// `users/<id>`.
    pub user_dir: PathBuf,
    /// Why.
    pub reason: Reason,
    /// What is kept.
    pub keep: Snapshots,
    /// Seconds since 1970.
    pub now: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// A new one.
    Made(Listed, Duration),
    /// Nothing has changed since this one.
    Unchanged(Name),
    /// There are no phexts.
    Nothing,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no copy.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// It cannot be kept.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// A file operation.
    #[error(transparent)]
    Files(#[from] FileError),
}

impl SnapshotError {
    /// Whether the disk is too full.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Copy(CopyError::NoRoom { .. }))
    }
}

/// Takes a snapshot unless nothing has changed since the last one, and removes those that are not to be kept any longer.
pub fn take(order: &SnapshotOrder) -> Result<Taken, SnapshotError> {
    if !order.user_dir.join(DATA_DIR).exists() {
        return Ok(Taken::Nothing);
    }
    let shelf = Shelf::open(&order.user_dir)?;
    let taken = take_into(&shelf, order)?;
    thin_out(&shelf, &order.keep, order.now)?;
    Ok(taken)
}

/// The same where the shelf is open, and nothing is removed.
pub(super) fn take_into(shelf: &Shelf, order: &SnapshotOrder) -> Result<Taken, SnapshotError> {
    // One whose manifest cannot be read says nothing of what has changed.
    let newest = shelf.names()?.last().copied().and_then(|name| Some((name, shelf.manifest(name).ok()?)));
    if let Some((name, manifest)) = &newest
        && copy::is_unchanged(&order.user_dir, &manifest.known)?
    {
        return Ok(Taken::Unchanged(*name));
    }
    let new = shelf.begin()?;
    let taken = make(shelf, order, &new, newest.is_some());
    if taken.is_err() {
        // The error itself says more than this one could; whoever comes next sweeps.
        let _ = remove_tree(&new);
    }
    taken
}

fn make(shelf: &Shelf, order: &SnapshotOrder, new: &Path, has_others: bool) -> Result<Taken, SnapshotError> {
    let files = new.join(FILES);
    shelf::make_directory(&files)?;
    let mut known = Known::default();
    let copied = copy::copy_tenant(&order.user_dir, &files, &mut known, keep_free(order, new)?)?;
    if copied.files.is_empty() && !has_others {
        remove_tree(new)?;
        return Ok(Taken::Nothing);
    }
    crash_point::reached("snapshot.copied");
    if copied.shared {
        copied.files.iter().try_for_each(|file| shelf::sync(&files.join(&file.name)))?;
        shelf::sync(&files)?;
    } else {
        pack(&files, copied.files.iter().map(|file| file.name.as_str()), &new.join(ARCHIVE))?;
        remove_tree(&files)?;
    }
    crash_point::reached("snapshot.packed");
    let name = shelf.finish(order.reason, order.now, copied.files, known)?;
    crash_point::reached("snapshot.named");
    Ok(Taken::Made(shelf.listed(name)?, copied.in_lane))
}

/// What has to stay free while the copy is made: for the archive that is made of it, and for everybody else.
fn keep_free(order: &SnapshotOrder, new: &Path) -> Result<u64, SnapshotError> {
    let disk = rustix::fs::statvfs(new).map_err(failed("asking for free room in", new))?;
    let for_others = match order.reason {
        Reason::Hourly => FREE_BYTES.max(disk.f_blocks.saturating_mul(disk.f_frsize) / FREE_SHARE),
        _ => LEAST_FREE,
    };
    let data = order.user_dir.join(DATA_DIR);
    let sizes = fs::read_dir(&data).map_err(failed("reading", &data))?.filter_map(|entry| entry.ok()?.metadata().ok());
    let archive: u64 = sizes.filter(fs::Metadata::is_file).map(|found| found.len()).sum();
    Ok(for_others.saturating_add(archive))
}

fn pack<'a>(files: &Path, names: impl Iterator<Item = &'a str>, archive: &Path) -> Result<(), FileError> {
    let pack = || -> io::Result<()> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(archive)?;
        let mut zstd = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
        zstd.include_checksum(true)?;
        let mut tar = tar::Builder::new(zstd);
        for name in names {
            tar.append_file(name, &mut File::open(files.join(name))?)?;
        }
        let mut file = tar.into_inner()?.finish()?;
        file.flush()?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    pack().map_err(failed("writing", archive))
}

/// Removes what is not to be kept any longer.
pub(super) fn thin_out(shelf: &Shelf, keep: &Snapshots, now: u64) -> Result<(), FileError> {
    let mut all = Vec::new();
    for name in shelf.names()? {
        // One that cannot be read is left for a person.
        all.extend(shelf.listed(name).ok().map(|listed| (name, listed.bytes)));
    }
    retention::surplus(&all, keep, now).into_iter().try_for_each(|name| shelf.remove(name))
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use super::*;

    pub(in crate::snapshot) const KEEP: Snapshots = Snapshots { hourly: 24, daily: 7, weekly: 4, max_size: 256 << 20 };
    const NOON: u64 = 1_795_608_000;

    /// A tenant with these phexts.
    pub(in crate::snapshot) fn tenant(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("phext-data")).unwrap();
        files.iter().for_each(|(name, text)| write(dir.path(), name, text));
        dir
    }

    pub(in crate::snapshot) fn write(user_dir: &Path, name: &str, text: &str) {
        let path = user_dir.join("phext-data").join(name);
        fs::write(&path, text).unwrap();
        // Long ago for whoever asks whether it may still change.
        std::thread::yield_now();
    }

    pub(in crate::snapshot) fn order(user_dir: &Path, reason: Reason, now: u64) -> SnapshotOrder {
        SnapshotOrder { user_dir: user_dir.into(), reason, keep: KEEP, now }
    }

    /// Takes one once what was written just before has settled.
    pub(in crate::snapshot) fn taken(user_dir: &Path, reason: Reason, now: u64) -> Taken {
        settle();
        take(&order(user_dir, reason, now)).unwrap()
    }

    #[allow(clippy::disallowed_methods)] // what is waited for is that nothing happens: the kernel's clock has to move on
    fn settle() {
        std::thread::sleep(Duration::from_millis(60));
    }

    fn made(taken: Taken) -> Listed {
        match taken {
            Taken::Made(listed, _) => listed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_snapshot_is_made_once_and_again_only_when_something_changed() {
        let dir = tenant(&[("a.phext", "one"), ("b.phext", "two")]);
        let first = made(taken(dir.path(), Reason::Hourly, NOON));
        assert_eq!((first.time.as_str(), first.reason, first.files), ("2026-11-25T12:00:00Z", Reason::Hourly, 2));
        assert_eq!(taken(dir.path(), Reason::Asked, NOON + 1), Taken::Unchanged(first.name));
        write(dir.path(), "a.phext", "new");
        let second = made(taken(dir.path(), Reason::Asked, NOON + 2));
        assert_eq!(list(dir.path()), [first, second]);
    }

    fn list(user_dir: &Path) -> Vec<Listed> {
        shelf::list(user_dir).unwrap()
    }

    #[test]
    fn two_of_one_second_have_times_of_their_own() {
        let dir = tenant(&[("a.phext", "1")]);
        for text in ["1", "22", "333"] {
            write(dir.path(), "a.phext", text);
            made(taken(dir.path(), Reason::Asked, NOON));
        }
        let times: Vec<u64> = list(dir.path()).iter().map(|listed| listed.name.at).collect();
        assert_eq!(times, [NOON, NOON + 1, NOON + 2]);
    }

    #[test]
    fn a_tenant_without_phexts_has_nothing_to_keep() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(take(&order(dir.path(), Reason::Hourly, NOON)).unwrap(), Taken::Nothing);
        let dir = tenant(&[]);
        assert_eq!(taken(dir.path(), Reason::Hourly, NOON), Taken::Nothing);
        assert_eq!(list(dir.path()), []);
    }

    #[test]
    fn what_was_cut_off_counts_for_nothing_and_is_swept_away() {
        let dir = tenant(&[("a.phext", "1")]);
        let shelf = dir.path().join("snapshots");
        for left in [".new/phexts", ".gone/x", ".restore"] {
            fs::create_dir_all(shelf.join(left)).unwrap();
        }
        assert_eq!(list(dir.path()), []);
        made(taken(dir.path(), Reason::Hourly, NOON));
        let names: Vec<_> = fs::read_dir(&shelf).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["2026-11-25T12-00-00Z.hourly"]);
    }

    fn shares_blocks(dir: &Path) -> bool {
        let (from, to) = (File::open(dir.join("phext-data/a.phext")).unwrap(), File::create(dir.join("probe")).unwrap());
        rustix::fs::ioctl_ficlone(&to, &from).is_ok()
    }

    #[test]
    fn people_can_unpack_it_without_us_and_others_cannot_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tenant(&[("a.phext", "one"), (".phext", ""), ("é b.phext", "two")]);
        let made = made(taken(dir.path(), Reason::Hourly, NOON));
        let to = tempfile::tempdir().unwrap();
        let archive = made.path.join(ARCHIVE);
        assert_eq!(archive.exists(), !shares_blocks(dir.path()), "packed where the blocks cannot be shared");
        let unpacked = if archive.exists() {
            let ran = Command::new("tar").arg("--zstd").arg("-xf").arg(&archive).arg("-C").arg(to.path()).output();
            match ran {
                Ok(ran) if ran.status.success() => to.path().to_owned(),
                // No tar, or no zstd beside it: then by the crates that made it.
                _ => {
                    tar::Archive::new(zstd::Decoder::new(File::open(&archive).unwrap()).unwrap()).unpack(to.path()).unwrap();
                    to.path().to_owned()
                }
            }
        } else {
            made.path.join(FILES)
        };
        for (name, text) in [("a.phext", "one"), (".phext", ""), ("é b.phext", "two")] {
            assert_eq!(fs::read_to_string(unpacked.join(name)).unwrap(), text, "{name}");
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir.path().join("snapshots")), mode(&made.path), mode(&made.path.join("manifest.json"))), (0o700, 0o700, 0o600));
        if archive.exists() {
            assert_eq!(mode(&archive), 0o600);
        }
    }

    #[test]
    fn the_oldest_go_where_there_are_too_many() {
        let dir = tenant(&[]);
        let keep = Snapshots { hourly: 2, daily: 0, weekly: 0, ..KEEP };
        for hour in 0..4 {
            write(dir.path(), "a.phext", &"x".repeat(hour + 1));
            settle();
            take(&SnapshotOrder { keep: keep.clone(), ..order(dir.path(), Reason::Hourly, NOON + hour as u64 * 3_600) }).unwrap();
        }
        let times: Vec<u64> = list(dir.path()).iter().map(|listed| listed.name.at).collect();
        assert_eq!(times, [NOON + 2 * 3_600, NOON + 3 * 3_600]);
    }
}
