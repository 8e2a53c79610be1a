//! A consistent copy of a tenant's phexts, made while sq serves them.
//!
//! Everything is copied first without the lane, then what has changed meanwhile once more in it: so a write waits for the few files that were
//! written just before, never for all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    file::{self, FileError, Version, failed},
    guard::{Directory, Lane},
};

/// How long a copy waits for the lane: longer than any write that goes well.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a file is copied anew that changes though the lane is held: a tenant with `durability = "off"` writes past it.
const TRIES: u32 = 10;
/// While more than this was written during a pass, bytes, another one is made before the lane is taken: it is copied in about a millisecond.
const LITTLE: u64 = 1 << 20;
/// But not more than so many.
const PASSES: u32 = 3;
/// Most files of a tenant: far more than sq can serve, few enough to list.
const MAX_FILES: usize = 100_000;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The tenant's files.
    #[error(transparent)]
    Files(#[from] FileError),
    /// Somebody holds the lane.
    #[error("a write of this tenant has been under way for {} s; try again when it has ended", PATIENCE.as_secs())]
    Busy,
    /// A write broke off.
    #[error("a write of this tenant broke off: the agent puts the text back as it was, within 20 s; try again then")]
    InDoubt,
    /// Written past the lane.
    #[error("{0} changes all the time while it is copied: durability = \"off\" lets writes pass unguarded; try again, or guard them")]
    Restless(String),
    /// It would fill the disk.
    #[error("a copy takes {needed} bytes and {keep} are to stay free, and {free} are: free some room on the disk of the state directory")]
    NoRoom {
        /// What the copy takes, bytes.
        needed: u64,
        /// What has to stay free.
        keep: u64,
        /// What is.
        free: u64,
    },
    /// Not what sq makes.
    #[error("there are more than {MAX_FILES} files in phext-data; remove what does not belong there")]
    TooMany,
}

/// What the files of a copy were made of, so that the next copy into the same directory takes only what is new.
///
/// A file that was written just before it was copied is left out, since it could be written again without a sign.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Known(BTreeMap<String, Version>);

/// One file of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopiedFile {
    /// Its name, as in phext-data.
    pub(crate) name: String,
    /// Its length, bytes.
    pub(crate) size: u64,
}

/// What a copy holds, and what it took.
#[derive(Debug)]
pub(crate) struct Copied {
    /// Every file, by name.
    pub(crate) files: Vec<CopiedFile>,
    /// How many of them were copied this time, in whole or anew in the lane.
    pub(crate) copied: usize,
    /// Every one that was copied shares its blocks with the original.
    pub(crate) shared: bool,
    /// How long the lane was held: what a write waited at most.
    pub(crate) in_lane: Duration,
}

/// Makes `to`, a directory of the agent's that holds nothing else, the same as the phexts of the tenant in `user_dir`, as they stand between
/// two writes: every regular file, with its time of modification. Blocks.
///
/// `known` is what `to` was made of last time, and is brought up to date; empty, everything is copied. Files whose original is the same are
/// not touched. `keep_free` bytes stay free on the disk. After an error `to` holds no consistent copy; with the same `known` it can be tried again.
pub(crate) fn copy_tenant(user_dir: &Path, to: &Path, known: &mut Known, keep_free: u64) -> Result<Copied, CopyError> {
    let directory = Directory::open(user_dir)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(CWD, to, flags, Mode::empty()).map_err(failed("opening", to))?;
    let mut copying = Copying { from: directory.data(), to: &target, path: to, known, copied: BTreeSet::new(), shared: true };
    copying.has_room(keep_free)?;
    for _ in 0..PASSES {
        if copying.pass()?.copied <= LITTLE {
            break;
        }
    }
    let (mut in_lane, mut changes) = (Duration::ZERO, None);
    for _ in 0..TRIES {
        let lane = Lane::take(&directory, PATIENCE).map_err(failed("taking", user_dir.join("guard/lane")))?.ok_or(CopyError::Busy)?;
        let taken = Instant::now();
        if directory.is_marked().map_err(failed("looking for", user_dir.join("guard/marker")))? {
            return Err(CopyError::InDoubt);
        }
        let Pass { files, restless, .. } = copying.pass()?;
        drop(lane);
        in_lane = in_lane.max(taken.elapsed());
        if restless.is_none() {
            copying.forget_others(&files)?;
            let (copied, shared) = (copying.copied.len(), copying.shared);
            return Ok(Copied { files, copied, shared, in_lane });
        }
        changes = restless;
    }
    Err(CopyError::Restless(changes.unwrap_or_default()))
}

/// Whether the phexts of the tenant in `user_dir` are what `known` was made of.
pub(crate) fn is_unchanged(user_dir: &Path, known: &Known) -> Result<bool, CopyError> {
    let directory = Directory::open(user_dir)?;
    let names = names(directory.data())?;
    if names.len() != known.0.len() {
        return Ok(false);
    }
    for name in names {
        let found = regular(directory.data(), &name).map_err(failed("looking at", user_dir.join(&name)))?;
        if found.is_none() || found != known.0.get(&name).copied() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the regular file called `name` is, if there is one.
fn regular(directory: &OwnedFd, name: &str) -> io::Result<Option<Version>> {
    Ok(file::stat(directory, name)?.filter(file::is_regular).as_ref().map(Version::from))
}

/// The regular files in `directory`, by name. What has no name in UTF-8 is not sq's.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<String>, CopyError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(failed("reading", "phext-data"))? {
        let entry = entry.map_err(failed("reading", "phext-data"))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let regular = match entry.file_type() {
            FileType::RegularFile => true,
            // Some file systems do not say.
            FileType::Unknown => regular(directory, name).map_err(failed("looking at", name))?.is_some(),
            _ => false,
        };
        if regular {
            names.push(name.to_owned());
        }
        if names.len() > MAX_FILES {
            return Err(CopyError::TooMany);
        }
    }
    names.sort_unstable();
    Ok(names)
}

struct Copying<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    /// Of `to`, for errors.
    path: &'a Path,
    known: &'a mut Known,
    copied: BTreeSet<String>,
    shared: bool,
}

/// What one pass over all files found.
struct Pass {
    files: Vec<CopiedFile>,
    /// Bytes that were copied.
    copied: u64,
    /// A file that changed while it was copied.
    restless: Option<String>,
}

impl Copying<'_> {
    fn is_there(&self, name: &str, version: Version) -> io::Result<bool> {
        if self.known.0.get(name) != Some(&version) {
            return Ok(false);
        }
        let there = regular(self.to, name)?;
        Ok(there.is_some_and(|there| (there.size, there.modified) == (version.size, version.modified)))
    }

    fn has_room(&self, keep: u64) -> Result<(), CopyError> {
        let mut needed = 0_u64;
        for name in names(self.from)? {
            let Some(version) = regular(self.from, &name).map_err(failed("looking at", &name))? else { continue };
            if !self.is_there(&name, version).map_err(failed("looking at", self.path.join(&name)))? {
                needed = needed.saturating_add(version.size);
            }
        }
        let free = file::free(self.to).map_err(failed("asking for free room in", self.path))?;
        if free < needed.saturating_add(keep) { Err(CopyError::NoRoom { needed, keep, free }) } else { Ok(()) }
    }

    /// Copies what is not there yet as it stands now.
    fn pass(&mut self) -> Result<Pass, CopyError> {
        let mut pass = Pass { files: Vec::new(), copied: 0, restless: None };
        for name in names(self.from)? {
            let Some(version) = regular(self.from, &name).map_err(failed("looking at", &name))? else { continue };
            let mut size = version.size;
            if !self.is_there(&name, version).map_err(failed("looking at", self.path.join(&name)))? {
                self.copied.insert(name.clone());
                match self.copy(&name).map_err(failed("copying", self.path.join(&name)))? {
                    Some(copied) => size = copied,
                    // Removed, or written just now.
                    None => pass.restless = Some(name.clone()),
                }
                pass.copied += size;
            }
            pass.files.push(CopiedFile { name, size });
        }
        Ok(pass)
    }

    /// Its size; `None` where it changed meanwhile.
    fn copy(&mut self, name: &str) -> io::Result<Option<u64>> {
        self.known.0.remove(name);
        let mut from = match file::open(self.from, name, OFlags::RDONLY) {
            Ok(from) => from,
            // Removed just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let before = Version::of(&from)?;
        let settled = before.is_settled();
        // Never into what is there: it may be linked from the copy before, which has to stay whole.
        match rustix::fs::unlinkat(self.to, name, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => return Err(error.into()),
            _ => {}
        }
        let mut to = file::open(self.to, name, OFlags::RDWR | OFlags::CREATE)?;
        let shared = file::copy(&mut from, &mut to)?;
        self.shared &= shared || before.size == 0;
        file::set_modified(self.to, name, before.modified)?;
        if Version::of(&from)? != before {
            return Ok(None);
        }
        if settled {
            self.known.0.insert(name.to_owned(), before);
        }
        Ok(Some(before.size))
    }

    /// Removes what the tenant has no more.
    fn forget_others(&mut self, files: &[CopiedFile]) -> Result<(), CopyError> {
        let stays = |name: &str| files.binary_search_by(|file| file.name.as_str().cmp(name)).is_ok();
        for name in names(self.to)?.iter().filter(|name| !stays(name)) {
            rustix::fs::unlinkat(self.to, name.as_str(), AtFlags::empty()).map_err(failed("removing", self.path.join(name)))?;
        }
        self.known.0.retain(|name, _| stays(name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
        path::PathBuf,
        time::UNIX_EPOCH,
    };

    use super::*;

    /// A tenant's directory with some files, and an empty one for the copy.
    struct Tenant {
        dir: tempfile::TempDir,
        known: Known,
    }

    impl Tenant {
        fn with(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("user/phext-data")).unwrap();
            fs::create_dir(dir.path().join("copy")).unwrap();
            let tenant = Self { dir, known: Known::default() };
            files.iter().for_each(|(name, text)| tenant.write(name, text));
            tenant
        }

        fn user_dir(&self) -> PathBuf {
            self.dir.path().join("user")
        }

        fn data(&self, name: &str) -> PathBuf {
            self.user_dir().join("phext-data").join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.data(name), text).unwrap();
        }

        fn copy(&mut self) -> Result<Copied, CopyError> {
            copy_tenant(&self.dir.path().join("user"), &self.dir.path().join("copy"), &mut self.known, 0)
        }

        /// What the copy holds.
        fn copies(&self) -> Vec<(String, String)> {
            let entries = fs::read_dir(self.dir.path().join("copy")).unwrap().map(|entry| entry.unwrap());
            let mut files: Vec<_> =
                entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())).collect();
            files.sort();
            files
        }

        /// Until a file that was written just now cannot be written again without a sign.
        fn settle(&self, name: &str) {
            let file = File::open(self.data(name)).unwrap();
            while !Version::of(&file).unwrap().is_settled() {
                std::thread::yield_now();
            }
        }
    }

    fn texts(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn the_first_copy_takes_everything_and_the_next_only_what_is_new() {
        let mut tenant = Tenant::with(&[("a.phext", "a"), (".phext", ""), ("é b.phext", "b")]);
        tenant.settle("é b.phext");
        assert_eq!(tenant.copy().unwrap().copied, 3);
        assert_eq!(tenant.copies(), texts(&[(".phext", ""), ("a.phext", "a"), ("é b.phext", "b")]));
        assert!(is_unchanged(&tenant.user_dir(), &tenant.known).unwrap());
        assert_eq!(tenant.copy().unwrap().copied, 0);

        tenant.write("a.phext", "longer");
        fs::remove_file(tenant.data("é b.phext")).unwrap();
        assert!(!is_unchanged(&tenant.user_dir(), &tenant.known).unwrap());
        let copied = tenant.copy().unwrap();
        let bytes: u64 = copied.files.iter().map(|file| file.size).sum();
        assert_eq!((copied.copied, copied.files.len(), bytes), (1, 2, 6));
        assert_eq!(tenant.copies(), texts(&[(".phext", ""), ("a.phext", "longer")]));
        tenant.write("c.phext", "c");
        assert!(!is_unchanged(&tenant.user_dir(), &tenant.known).unwrap());
    }

    #[test]
    fn a_copy_is_the_agents_own_and_as_old_as_its_original() {
        let mut tenant = Tenant::with(&[("a.phext", "a")]);
        fs::set_permissions(tenant.data("a.phext"), fs::Permissions::from_mode(0o644)).unwrap();
        let old = File::options().write(true).open(tenant.data("a.phext")).unwrap();
        old.set_modified(UNIX_EPOCH + Duration::from_nanos(1_234_567_890)).unwrap();
        tenant.copy().unwrap();
        let copy = fs::metadata(tenant.dir.path().join("copy/a.phext")).unwrap();
        assert_eq!((copy.permissions().mode() & 0o777, copy.mtime(), copy.mtime_nsec()), (0o600, 1, 234_567_890));
    }

    #[test]
    fn a_file_that_was_written_a_moment_ago_is_not_taken_for_known() {
        let mut tenant = Tenant::with(&[("a.phext", "1")]);
        // The same length and, within one tick of the kernel's clock, the same times.
        for text in ["2", "3", "4", "5"] {
            tenant.copy().unwrap();
            tenant.write("a.phext", text);
            tenant.copy().unwrap();
            assert_eq!(tenant.copies(), texts(&[("a.phext", text)]));
            // Kernels since 6.13 would tell; the rule is for all of them.
            assert_eq!(tenant.known, Known::default());
        }
    }

    #[test]
    fn neither_links_nor_directories_nor_pipes_are_copied() {
        let mut tenant = Tenant::with(&[("a.phext", "a")]);
        let secret = tenant.dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, tenant.data("b.phext")).unwrap();
        fs::create_dir(tenant.data("c.phext")).unwrap();
        rustix::fs::mknodat(CWD, tenant.data("d.phext"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        tenant.copy().unwrap();
        assert_eq!(tenant.copies(), texts(&[("a.phext", "a")]));
    }

    #[test]
    fn a_tenant_in_doubt_is_refused() {
        let mut tenant = Tenant::with(&[("a.phext", "a")]);
        fs::create_dir(tenant.user_dir().join("guard")).unwrap();
        fs::write(tenant.user_dir().join("guard/marker"), "{}").unwrap();
        assert!(matches!(tenant.copy(), Err(CopyError::InDoubt)));
    }

    #[test]
    fn a_full_disk_is_left_as_it_is() {
        let mut tenant = Tenant::with(&[("a.phext", "a")]);
        let (user_dir, to) = (tenant.user_dir(), tenant.dir.path().join("copy"));
        let error = copy_tenant(&user_dir, &to, &mut tenant.known, u64::MAX).unwrap_err();
        assert!(matches!(error, CopyError::NoRoom { needed: 1, .. }), "{error}");
        assert_eq!(tenant.copies(), []);
    }

    #[test]
    fn what_is_written_between_two_looks_is_copied_in_the_lane_and_a_write_waits_no_longer() {
        let mut tenant = Tenant::with(&[("a.phext", "0"), ("b.phext", "0")]);
        let (user_dir, done) = (tenant.user_dir(), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            // Both files say the same between two writes, never within one.
            let writer = scope.spawn(|| {
                let directory = Directory::open(&user_dir).unwrap();
                for round in 1.. {
                    let lane = Lane::take(&directory, Duration::from_secs(60)).unwrap();
                    for name in ["a.phext", "b.phext"] {
                        fs::write(user_dir.join("phext-data").join(name), format!("{round}")).unwrap();
                    }
                    drop(lane);
                    if done.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let mut seen = BTreeSet::new();
            let deadline = Instant::now() + Duration::from_secs(60);
            while seen.len() < 10 {
                assert!(Instant::now() < deadline, "{seen:?}");
                tenant.copy().unwrap();
                let copies = tenant.copies();
                assert_eq!(copies[0].1, copies[1].1, "of two moments");
                seen.insert(copies[0].1.clone());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            writer.join().unwrap();
        });
    }
}
