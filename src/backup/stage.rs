//! The stage: everybody's text in whole versions, as restic is to see it, and what else a host cannot be brought back without.
//!
//! A tenant whose text changed is copied beside its place in the stage, sharing what did not change by hard links, and takes that place when
//! all of it is there. So the stage holds whole texts also where a copy fails half-way, and whenever the agent dies.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use super::{TENANTS, TOKEN_SECRET, fault::ResticError, place, restic::make_private};
use crate::{
    child::Cancel,
    desired::{self, TenantId},
    file::{FileError, failed, remove_tree},
    instance::spawn::DATA_DIR,
    snapshot::copy::{self, Known},
};

/// What has to stay free on the disk for the writes of tenants, bytes: the guard refuses them below that.
const KEEP_FREE: u64 = 64 << 20;
/// After a write broke off the agent has put the text back by then.
const SECOND_TRY: Duration = Duration::from_secs(21);

/// Why the stage is not up to date.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    /// A file operation failed.
    #[error(transparent)]
    Files(#[from] FileError),
    /// A disk that is not mounted looks like this.
    #[error("{users} is empty, and {staged} tenants were backed up before: is a disk not mounted? If they are meant to be gone, remove {stage}", users = .users.display(), stage = .stage.display())]
    Vanished {
        /// Where nobody's text lies any more.
        users: PathBuf,
        /// How many there were.
        staged: usize,
        /// The stage.
        stage: PathBuf,
    },
    /// The agent ends.
    #[error(transparent)]
    BrokenOff(#[from] ResticError),
}

/// What the stage holds.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// Whose text.
    pub(super) tenants: BTreeSet<TenantId>,
    /// How many of them were copied anew.
    pub(super) copied: usize,
    /// Whose text could not be copied and stands as it did before, if it did, and why.
    pub(super) stale: Vec<(TenantId, String)>,
}

/// `<state_dir>/backup/stage`.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    place(state_dir).join("stage")
}

/// Makes the stage what the host is now. Blocks; a tenant's writes wait for what of it changed while it was copied.
pub(super) fn bring_up_to_date(state_dir: &Path, cancel: &Cancel) -> Result<Staged, StageError> {
    let (stage, users) = (Stage::open(state_dir)?, state_dir.join("users"));
    let (mut wanted, there) = (names(&users)?, names(&stage.users)?);
    if wanted.is_empty() && !there.is_empty() {
        return Err(StageError::Vanished { users, staged: there.len(), stage: stage.root });
    }
    let mut staged = Staged::default();
    let mut fresh = Vec::new();
    let mut take = |id: &TenantId, staged: &mut Staged| -> Result<bool, StageError> {
        if cancel.is_cancelled() {
            return Err(ResticError::BrokenOff.into());
        }
        match stage.take(id, &desired::user_dir(state_dir, id)) {
            Ok(Took::Same) => {}
            Ok(Took::Nothing) => return Ok(true),
            Ok(Took::New(known)) => {
                staged.copied += 1;
                fresh.push((id.clone(), known));
            }
            Err(why) => {
                staged.stale.push((id.clone(), why));
                return Ok(false);
            }
        }
        staged.tenants.insert(id.clone());
        Ok(true)
    };
    for id in &wanted {
        take(id, &mut staged)?;
    }
    if !staged.stale.is_empty() && cancel.wait(SECOND_TRY) {
        return Err(ResticError::BrokenOff.into());
    }
    for (id, _) in std::mem::take(&mut staged.stale) {
        if !take(&id, &mut staged)? && there.contains(&id) {
            staged.tenants.insert(id);
        }
    }
    wanted.retain(|id| staged.tenants.contains(id));
    for gone in there.difference(&wanted) {
        stage.remove(gone)?;
    }
    stage.keep(TENANTS, &desired::last_good_path(state_dir))?;
    stage.keep(TOKEN_SECRET, &state_dir.join(TOKEN_SECRET))?;
    stage.settle(fresh)?;
    Ok(staged)
}

/// Every tenant that has a directory in `users`.
fn names(users: &Path) -> Result<BTreeSet<TenantId>, FileError> {
    let entries = match fs::read_dir(users) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(failed("reading", users))?,
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(failed("reading", users))?;
        let is_directory = entry.file_type().map_err(failed("looking at", &entry.path()))?.is_dir();
        names.extend(entry.file_name().to_str().filter(|_| is_directory).and_then(|name| TenantId::parse(name).ok()));
    }
    Ok(names)
}

/// What a look at one tenant led to.
enum Took {
    /// The stage had it all.
    Same,
    /// There is no text: it never started.
    Nothing,
    /// Copied from what is known by this.
    New(Known),
}

struct Stage {
    root: PathBuf,
    /// As in the state directory.
    users: PathBuf,
    /// Where copies are made.
    work: PathBuf,
    /// What each tenant's files in the stage were made of.
    known: PathBuf,
}

impl Stage {
    fn open(state_dir: &Path) -> Result<Self, FileError> {
        let (root, place) = (directory(state_dir), place(state_dir));
        let stage = Self { users: root.join("users"), work: place.join("work"), known: place.join("known"), root };
        remove_tree(&stage.work)?;
        for path in [&stage.users, &stage.work, &stage.known] {
            make_private(path).map_err(failed("making", path))?;
        }
        Ok(stage)
    }

    fn data(&self, id: &TenantId) -> PathBuf {
        self.users.join(id.as_str()).join(DATA_DIR)
    }

    fn known_path(&self, id: &TenantId) -> PathBuf {
        self.known.join(format!("{id}.json"))
    }

    /// Brings one tenant up to date; why not, in words, leaves it as it was.
    fn take(&self, id: &TenantId, user_dir: &Path) -> Result<Took, String> {
        let data = self.data(id);
        if !user_dir.join(DATA_DIR).is_dir() {
            return Ok(Took::Nothing);
        }
        let known = fs::read(self.known_path(id)).ok().and_then(|text| serde_json::from_slice::<Known>(&text).ok());
        let staged = data.is_dir();
        if let Some(known) = known.as_ref().filter(|_| staged)
            && copy::is_unchanged(user_dir, known).map_err(|error| error.to_string())?
        {
            return Ok(Took::Same);
        }
        let work = self.work.join(id.as_str());
        let made = self.copy(user_dir, &data, &work, known.unwrap_or_default());
        // What it replaced, or what came of a copy that failed.
        let _ = fs::remove_dir_all(&work);
        made.map(Took::New)
    }

    fn copy(&self, user_dir: &Path, data: &Path, work: &Path, mut known: Known) -> Result<Known, String> {
        let said = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("{path}: {error}")
        };
        make_private(work).map_err(said(work))?;
        let staged = data.is_dir();
        if staged {
            for entry in fs::read_dir(data).map_err(said(data))? {
                let entry = entry.map_err(said(data))?;
                fs::hard_link(entry.path(), work.join(entry.file_name())).map_err(said(&entry.path()))?;
            }
        }
        let copied = copy::copy_tenant(user_dir, work, &mut known, KEEP_FREE).map_err(|error| error.to_string())?;
        let in_lane_us = copied.in_lane.as_micros();
        tracing::debug!(user_dir = %user_dir.display(), files = copied.files.len(), copied = copied.copied, in_lane_us, "a tenant is staged");
        if staged {
            renameat_with(CWD, work, CWD, data, RenameFlags::EXCHANGE).map_err(|error| said(data)(error.into()))?;
        } else {
            data.parent().iter().try_for_each(|parent| make_private(parent).map_err(said(parent)))?;
            fs::rename(work, data).map_err(said(data))?;
        }
        Ok(known)
    }

    /// A tenant whose directory is gone.
    fn remove(&self, id: &TenantId) -> Result<(), FileError> {
        let known = self.known_path(id);
        fs::remove_file(&known)
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
            .map_err(failed("removing", &known))?;
        remove_tree(&self.users.join(id.as_str()))
    }

    /// Keeps a copy of `from` as `name`, where there is such a file. It changes only when its content does.
    fn keep(&self, name: &str, from: &Path) -> Result<(), FileError> {
        let to = self.root.join(name);
        let bytes = match fs::read(from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(failed("reading", from))?,
        };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        write_whole(&to, &self.work.join(name), &bytes).map_err(failed("writing", &to))
    }

    /// Notes what the copies were made of, once they are on the disk: after a power cut they are made anew instead of believed.
    fn settle(&self, fresh: Vec<(TenantId, Known)>) -> Result<(), FileError> {
        if fresh.is_empty() {
            return Ok(());
        }
        let sync = || -> io::Result<()> { Ok(syncfs(fs::File::open(&self.root)?)?) };
        sync().map_err(failed("writing to the disk", &self.root))?;
        for (id, known) in fresh {
            let path = self.known_path(&id);
            let text = serde_json::to_vec(&known).map_err(io::Error::from).map_err(failed("writing", &path))?;
            write_whole(&path, &self.work.join("known"), &text).map_err(failed("writing", &path))?;
        }
        Ok(())
    }
}

fn write_whole(path: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;
    use crate::guard::{Directory, Lane};

    struct Host(tempfile::TempDir);

    impl Host {
        fn new(texts: &[(&str, &str, &str)]) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            texts.iter().for_each(|(id, name, text)| host.write(id, name, text));
            host
        }

        fn write(&self, id: &str, name: &str, text: &str) {
            let data = self.user_dir(id).join(DATA_DIR);
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join(name), text).unwrap();
        }

        fn user_dir(&self, id: &str) -> PathBuf {
            self.0.path().join("users").join(id)
        }

        fn stage(&self) -> Staged {
            bring_up_to_date(self.0.path(), &Cancel::default()).unwrap()
        }

        fn staged(&self, path: &str) -> Option<String> {
            fs::read_to_string(directory(self.0.path()).join(path)).ok()
        }
    }

    #[test]
    fn the_stage_follows_the_host() {
        let host = Host::new(&[("ada", "x.phext", "one"), ("ada", "same.phext", "same"), ("bob", "y.phext", "two")]);
        fs::write(host.0.path().join("jwt.key"), "secret").unwrap();
        fs::write(host.0.path().join("tenants.last-good.toml"), "# file").unwrap();
        fs::create_dir(host.user_dir("new")).unwrap();
        let staged = host.stage();
        assert_eq!((staged.tenants.len(), staged.copied, staged.stale.len()), (2, 2, 0), "one has no text yet");
        assert_eq!(host.staged("users/ada/phext-data/x.phext").as_deref(), Some("one"));
        assert_eq!((host.staged("jwt.key").as_deref(), host.staged("tenants.toml").as_deref()), (Some("secret"), Some("# file")));
        // What was written just now may be written again without a sign, and so is copied anew.
        while host.stage().copied > 0 {}
        let inode = || fs::metadata(directory(host.0.path()).join("users/ada/phext-data/same.phext")).unwrap();
        let before = inode();
        host.write("ada", "x.phext", "three");
        fs::remove_dir_all(host.user_dir("bob")).unwrap();
        let staged = host.stage();
        assert_eq!(staged.tenants.len(), 1);
        assert_eq!(host.staged("users/ada/phext-data/x.phext").as_deref(), Some("three"));
        assert_eq!(host.staged("users/bob/phext-data/y.phext"), None);
        assert_eq!((inode().ino(), inode().nlink()), (before.ino(), 1), "what did not change is not copied");
        assert_eq!(inode().permissions().mode() & 0o777, 0o600);
        assert!(!place(host.0.path()).join("known/bob.json").exists());
    }

    #[test]
    fn a_copy_that_fails_leaves_the_whole_one_before_it() {
        let host = Host::new(&[("ada", "x.phext", "one"), ("bob", "y.phext", "two")]);
        host.stage();
        host.write("ada", "x.phext", "half of a wri");
        let stage = Stage::open(host.0.path()).unwrap();
        let id = TenantId::parse("ada").unwrap();
        let directory = Directory::open(&host.user_dir("ada")).unwrap();
        // A write is under way and never ends.
        let lane = Lane::try_take(&directory).unwrap().unwrap();
        let refused = stage.take(&id, &host.user_dir("ada"));
        assert!(refused.is_err_and(|why| why.contains("under way")));
        assert_eq!(host.staged("users/ada/phext-data/x.phext").as_deref(), Some("one"));
        drop(lane);
        host.write("ada", "x.phext", "a whole write");
        host.stage();
        assert_eq!(host.staged("users/ada/phext-data/x.phext").as_deref(), Some("a whole write"));
    }

    #[test]
    fn a_disk_that_is_not_mounted_empties_nothing() {
        let host = Host::new(&[("ada", "x.phext", "one")]);
        host.stage();
        fs::rename(host.0.path().join("users"), host.0.path().join("elsewhere")).unwrap();
        let error = bring_up_to_date(host.0.path(), &Cancel::default()).unwrap_err();
        assert!(matches!(error, StageError::Vanished { staged: 1, .. }), "{error}");
        assert!(host.staged("users/ada/phext-data/x.phext").is_some());
    }
}
