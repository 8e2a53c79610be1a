//! Puts a snapshot back. Blocks; nothing of the tenant runs meanwhile.
//!
//! Everything is unpacked and checked beside the data first, and what is there now is kept; only then are the files replaced, each by a rename. Cut
//! off anywhere, it leaves the old or the new text of each phext, and can be repeated.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{AtFlags, CWD, Gid, OFlags, Uid, chownat};

use super::{
    copy::CopiedFile,
    name::{Name, Reason},
    shelf::{self, ARCHIVE, FILES, Shelf, ShelfError},
    take::{SnapshotError, SnapshotOrder, Taken, take_into, thin_out},
};
use crate::{
    crash_point,
    desired::Snapshots,
    file::{self, FileError, failed, remove_tree},
    guard::{self, Directory, Lane, RecoverError},
    instance::spawn::DATA_DIR,
};

/// What sq appends to a phext's name.
const PHEXT: &str = ".phext";
/// A proxy that holds the lane of a tenant of whom nothing runs gives it back at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be put back, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOrder {
    /// `users/<id>` whose snapshot it is.
    pub from: PathBuf,
    /// The snapshot.
    pub name: Name,
    /// Only this file of it.
    pub file: Option<String>,
    /// `users/<id>` whose phexts are replaced.
    pub to: PathBuf,
    /// What is kept of that one's snapshots.
    pub keep: Snapshots,
    /// Seconds since 1970.
    pub now: u64,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Files that were put back.
    pub files: usize,
    /// Their length together, bytes.
    pub bytes: u64,
    /// Files that were removed, since the snapshot has none of that name.
    pub removed: usize,
    /// What was there before.
    pub kept: Taken,
}

/// Why nothing was restored, or not everything; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no such snapshot.
    #[error("there is no snapshot {0} any more: `sq-agent snapshots` lists those that there are")]
    Gone(Name),
    /// It does not hold that phext.
    #[error("the snapshot holds no phext {wanted:?}; it holds {holds}")]
    NoSuchPhext {
        /// What was asked for.
        wanted: String,
        /// What there is.
        holds: String,
    },
    /// It is not what it was when it was taken.
    #[error("the snapshot {name} is damaged ({what}): nothing was changed; restore another one")]
    Damaged {
        /// Which one.
        name: Name,
        /// How.
        what: String,
    },
    /// What is there now cannot be kept.
    #[error("what is there now cannot be kept, so nothing was changed: {0}")]
    NotKept(SnapshotError),
    /// A write had broken off, and cannot be ended.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The tenant's files.
    #[error(transparent)]
    Files(#[from] FileError),
    /// Something on the way.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Somebody holds the lane.
    #[error("a write of this tenant is still under way after {} s; try again", PATIENCE.as_secs())]
    Busy,
    /// While the files were replaced.
    #[error("{error}; {replaced} of {of} files are of the snapshot, the others as before, which is kept: mend that and restore again")]
    HalfWay {
        /// What went wrong.
        error: FileError,
        /// Files that were replaced.
        replaced: usize,
        /// Files that were to be.
        of: usize,
    },
}

/// The file in which sq keeps the phext that people call `name`.
pub fn phext_file(name: &str) -> String {
    if name.ends_with(PHEXT) { name.to_owned() } else { format!("{name}{PHEXT}") }
}

/// Puts the snapshot in the place of what is there, which is kept as another one.
pub fn restore(order: &RestoreOrder) -> Result<Restored, RestoreError> {
    let data = order.to.join(DATA_DIR);
    for missing in [&order.to, &data] {
        shelf::make_directory(missing)?;
    }
    let shelf = Shelf::open(&order.to)?;
    let unpacked = shelf.unpacking()?;
    let files = unpack(order, &unpacked)?;
    crash_point::reached("restore.unpacked");
    guard::recover(&order.to)?;
    let before = SnapshotOrder { user_dir: order.to.clone(), reason: Reason::BeforeRestore, keep: order.keep.clone(), now: order.now };
    let kept = take_into(&shelf, &before).map_err(RestoreError::NotKept)?;
    crash_point::reached("restore.kept");
    let directory = Directory::open(&order.to)?;
    let _lane = Lane::take(&directory, PATIENCE).map_err(failed("taking", order.to.join("guard/lane")))?.ok_or(RestoreError::Busy)?;
    let owner = fs::symlink_metadata(&data).map_err(failed("looking at", &data))?;
    for (replaced, file) in files.iter().enumerate() {
        replace(&unpacked.join(&file.name), &data.join(&file.name), &owner).map_err(|error| RestoreError::HalfWay {
            error,
            replaced,
            of: files.len(),
        })?;
        crash_point::reached("restore.replaced");
    }
    let removed = if order.file.is_none() { remove_others(&data, &files)? } else { 0 };
    shelf::sync(&data)?;
    crash_point::reached("restore.done");
    remove_tree(&unpacked)?;
    // Not before: cut off, it has to find the snapshot again.
    thin_out(&shelf, &order.keep, order.now)?;
    Ok(Restored { files: files.len(), bytes: files.iter().map(|file| file.size).sum(), removed, kept })
}

/// Brings what is to be put back into `to`, whole and on the disk.
fn unpack(order: &RestoreOrder, to: &Path) -> Result<Vec<CopiedFile>, RestoreError> {
    let snapshot = shelf::path(&order.from, order.name);
    let manifest = match shelf::manifest(&snapshot) {
        Err(FileError { source, .. }) if source.kind() == io::ErrorKind::NotFound && !snapshot.exists() => {
            return Err(RestoreError::Gone(order.name));
        }
        Err(error) => return Err(RestoreError::Damaged { name: order.name, what: error.to_string() }),
        Ok(manifest) => manifest,
    };
    let wanted = |name: &str| order.file.as_deref().is_none_or(|file| file == name);
    let files: Vec<CopiedFile> = manifest.files.iter().filter(|file| wanted(&file.name)).cloned().collect();
    if let Some(file) = order.file.as_ref().filter(|_| files.is_empty()) {
        let names: Vec<&str> = manifest.files.iter().map(|file| file.name.strip_suffix(PHEXT).unwrap_or(&file.name)).collect();
        let wanted = file.strip_suffix(PHEXT).unwrap_or(file).to_owned();
        return Err(RestoreError::NoSuchPhext { wanted, holds: if names.is_empty() { "none".into() } else { names.join(", ") } });
    }
    let damaged = |what: String| RestoreError::Damaged { name: order.name, what };
    let unpacked = match File::open(snapshot.join(ARCHIVE)) {
        Ok(archive) => unpack_archive(archive, &files, to),
        Err(error) if error.kind() == io::ErrorKind::NotFound => files.iter().try_for_each(|file| {
            let mut from = File::open(snapshot.join(FILES).join(&file.name))?;
            let mut into = create(&to.join(&file.name))?;
            file::copy(&mut from, &mut into)?;
            into.set_modified(from.metadata()?.modified()?)
        }),
        Err(error) => Err(error),
    };
    unpacked.map_err(|error| damaged(error.to_string()))?;
    for file in &files {
        let path = to.join(&file.name);
        let found = fs::symlink_metadata(&path).map_err(|error| damaged(format!("{}: {error}", file.name)))?;
        if !found.is_file() || found.len() != file.size {
            return Err(damaged(format!("{} has {} bytes and not {}", file.name, found.len(), file.size)));
        }
        shelf::sync(&path)?;
    }
    Ok(files)
}

/// Takes `files` out of the archive, and nothing else that may be in it.
fn unpack_archive(archive: File, files: &[CopiedFile], to: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(zstd::Decoder::new(archive)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_str().map(str::to_owned);
        let Some(file) = files.iter().find(|file| Some(file.name.as_str()) == name.as_deref()) else { continue };
        if !entry.header().entry_type().is_file() && !entry.header().entry_type().is_gnu_sparse() {
            continue;
        }
        let modified = entry.header().mtime()?;
        let mut into = create(&to.join(&file.name))?;
        io::copy(&mut entry, &mut into)?;
        into.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(modified))?;
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    let no_links = OFlags::NOFOLLOW.bits().cast_signed();
    File::options().read(true).write(true).create_new(true).mode(0o600).custom_flags(no_links).open(path)
}

/// Puts a file in the place of another one, in one step, as the instance's own.
fn replace(from: &Path, to: &Path, owner: &fs::Metadata) -> Result<(), FileError> {
    let found = fs::symlink_metadata(from).map_err(failed("looking at", from))?;
    if (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
        let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        chownat(CWD, from, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("giving back", from))?;
    }
    fs::rename(from, to).map_err(failed("replacing", to))
}

/// Removes the files that are not of the snapshot; they are kept in the one that was taken just before.
fn remove_others(data: &Path, files: &[CopiedFile]) -> Result<usize, FileError> {
    let mut removed = 0;
    for entry in fs::read_dir(data).map_err(failed("reading", data))? {
        let entry = entry.map_err(failed("reading", data))?;
        let is_file = entry.file_type().map_err(failed("looking at", entry.path()))?.is_file();
        // What is no regular file or has no name in UTF-8 is in no snapshot either.
        let other = entry.file_name().to_str().is_some_and(|name| !files.iter().any(|file| file.name == name));
        if is_file && other {
            fs::remove_file(entry.path()).map_err(failed("removing", entry.path()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            shelf::{Listed, list},
            take::tests::{KEEP, taken, tenant, write},
        },
        *,
    };

    const NOON: u64 = 1_795_608_000;

    fn texts(user_dir: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(user_dir.join("phext-data")).unwrap().map(|entry| entry.unwrap());
        let mut texts: Vec<_> =
            entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())).collect();
        texts.sort();
        texts
    }

    fn is(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    fn order(user_dir: &Path, name: Name) -> RestoreOrder {
        RestoreOrder { from: user_dir.into(), name, file: None, to: user_dir.into(), keep: KEEP, now: NOON + 100 }
    }

    fn snapshot(user_dir: &Path, now: u64) -> Listed {
        match taken(user_dir, Reason::Asked, now) {
            Taken::Made(listed, _) => listed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_restore_brings_back_what_was_and_keeps_what_is() {
        let dir = tenant(&[("a.phext", "old"), ("b.phext", "b")]);
        let user_dir = dir.path();
        let first = snapshot(user_dir, NOON);
        write(user_dir, "a.phext", "new text");
        write(user_dir, "c.phext", "c");
        fs::remove_file(user_dir.join("phext-data/b.phext")).unwrap();

        let restored = restore(&order(user_dir, first.name)).unwrap();
        assert_eq!((restored.files, restored.bytes, restored.removed), (2, 4, 1));
        assert_eq!(texts(user_dir), is(&[("a.phext", "old"), ("b.phext", "b")]));

        let Taken::Made(before, _) = restored.kept else { panic!("{restored:?}") };
        assert_eq!(before.reason, Reason::BeforeRestore);
        restore(&order(user_dir, before.name)).unwrap();
        assert_eq!(texts(user_dir), is(&[("a.phext", "new text"), ("c.phext", "c")]));
    }

    #[test]
    fn what_is_put_back_belongs_to_the_instance_and_to_nobody_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tenant(&[("a.phext", "old")]);
        let user_dir = dir.path();
        let first = snapshot(user_dir, NOON);
        write(user_dir, "a.phext", "new");
        // Nobody but root can give files away.
        let user = if rustix::process::geteuid().is_root() { 0x7000_0007 } else { rustix::process::geteuid().as_raw() };
        std::os::unix::fs::chown(user_dir.join("phext-data"), Some(user), None).unwrap();
        restore(&order(user_dir, first.name)).unwrap();
        let found = fs::metadata(user_dir.join("phext-data/a.phext")).unwrap();
        assert_eq!((found.uid(), found.permissions().mode() & 0o777), (user, 0o600));
    }

    #[test]
    fn one_phext_is_restored_alone() {
        let dir = tenant(&[("a.phext", "old"), ("b.phext", "old")]);
        let user_dir = dir.path();
        let first = snapshot(user_dir, NOON);
        for name in ["a.phext", "b.phext", "c.phext"] {
            write(user_dir, name, "new text");
        }
        let one = RestoreOrder { file: Some(phext_file("a")), ..order(user_dir, first.name) };
        assert_eq!(restore(&one).unwrap().files, 1);
        assert_eq!(texts(user_dir), is(&[("a.phext", "old"), ("b.phext", "new text"), ("c.phext", "new text")]));
        let none = RestoreOrder { file: Some(phext_file("d.phext")), ..one };
        assert_eq!(restore(&none).unwrap_err().to_string(), "the snapshot holds no phext \"d\"; it holds a, b");
    }

    #[test]
    fn into_another_tenant_it_takes_nothing_from_the_first() {
        let (ada, bob) = (tenant(&[("a.phext", "ada")]), tenant(&[("b.phext", "bob")]));
        let first = snapshot(ada.path(), NOON);
        restore(&RestoreOrder { to: bob.path().into(), ..order(ada.path(), first.name) }).unwrap();
        assert_eq!((texts(ada.path()), texts(bob.path())), (is(&[("a.phext", "ada")]), is(&[("a.phext", "ada")])));
        assert_eq!(list(ada.path()).unwrap(), [first]);
        assert_eq!(list(bob.path()).unwrap().len(), 1, "what bob had");
    }

    #[test]
    fn a_damaged_snapshot_changes_nothing() {
        let dir = tenant(&[("a.phext", &"text ".repeat(10_000))]);
        let user_dir = dir.path();
        let first = snapshot(user_dir, NOON);
        write(user_dir, "a.phext", "new");
        let content = if first.path.join(ARCHIVE).exists() { first.path.join(ARCHIVE) } else { first.path.join(FILES).join("a.phext") };
        let whole = fs::read(&content).unwrap();
        fs::write(&content, &whole[..whole.len() / 2]).unwrap();
        let error = restore(&order(user_dir, first.name)).unwrap_err();
        assert!(matches!(error, RestoreError::Damaged { .. }), "{error}");
        assert_eq!(texts(user_dir), is(&[("a.phext", "new")]));
        // Whole, and not what it says that it is.
        fs::write(&content, &whole).unwrap();
        let manifest = first.path.join("manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        for (is, is_not) in [("\"size\":50000", "\"size\":50001"), ("\"name\":\"a.phext\"", "\"name\":\"b.phext\"")] {
            fs::write(&manifest, text.replacen(is, is_not, 1)).unwrap();
            let error = restore(&order(user_dir, first.name)).unwrap_err();
            assert!(matches!(error, RestoreError::Damaged { .. }), "{error}");
        }
        assert_eq!(texts(user_dir), is(&[("a.phext", "new")]));
        fs::remove_dir_all(&first.path).unwrap();
        assert!(matches!(restore(&order(user_dir, first.name)), Err(RestoreError::Gone(_))));
    }

    #[test]
    fn a_write_that_broke_off_is_undone_before_what_is_there_is_kept() {
        let dir = tenant(&[("a.phext", "old")]);
        let user_dir = dir.path();
        let first = snapshot(user_dir, NOON);
        write(user_dir, "a.phext", "cu");
        fs::create_dir_all(user_dir.join("guard")).unwrap();
        fs::write(user_dir.join("guard/a.phext"), "current").unwrap();
        let marker = r#"{"file":"a.phext","request_id":"r","epoch":1,"existed":true,"size":7,"durable":true,"boot_id":"b"}"#;
        fs::write(user_dir.join("guard/marker"), marker).unwrap();
        let restored = restore(&order(user_dir, first.name)).unwrap();
        let Taken::Made(before, _) = restored.kept else { panic!("{restored:?}") };
        restore(&order(user_dir, before.name)).unwrap();
        assert_eq!(texts(user_dir), is(&[("a.phext", "current")]));
    }
}
