//! The place at which a file stands that people edit as well: nothing of theirs is lost, whenever and however they save.
//!
//! The new text is written beside the file, and the two are exchanged (renameat2, RENAME_EXCHANGE). What came out is then compared with what was
//! read: where a person saved in between, that came out, and it goes back in place at once. The name of the file beside says what each of the two
//! was, so that after a death at any step the next agent knows what is to be done with it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Gid, RenameFlags, Uid, fchown, renameat_with},
    io::Errno,
};

use crate::{
    crash_point,
    digest::{hex, sha256},
    file::{FileError, failed},
    store::{rfc3339, unix_now},
    sys,
};

/// Part of the names of files beside the one that is edited.
const BESIDE: &str = "sq-agent-edit";
/// Of a text that is not whole yet.
const UNFINISHED: &str = "new";

/// Whether a text got into its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// It did.
    Done,
    /// Somebody else saved at the same moment, and what they saved stands there.
    Overtaken,
}

/// The file, links followed.
#[derive(Debug)]
pub(super) struct Place {
    file: PathBuf,
    /// `<state_dir>/edited`, for what came between two edits and has no other place.
    aside: PathBuf,
}

impl Place {
    /// Of what `file` names: a link stays one.
    pub(super) fn of(file: &Path, state_dir: &Path) -> Result<Self, FileError> {
        Ok(Self { file: fs::canonicalize(file).map_err(failed("finding", file))?, aside: state_dir.join("edited") })
    }

    /// Puts `new` where `base` stands.
    pub(super) fn replace(&self, base: &[u8], new: &[u8]) -> Result<Placed, FileError> {
        let unfinished = self.beside(UNFINISHED);
        let beside = self.beside(&format!("{}.{}", name(base), name(new)));
        let placed = self.write(&unfinished, new).and_then(|()| {
            crash_point::reached("edit.written");
            fs::rename(&unfinished, &beside).map_err(failed("naming", &beside))?;
            crash_point::reached("edit.named");
            self.exchange(&beside, base, new)
        });
        // Where it failed half-way, what lies there may be a person's: the next agent sees to that.
        if placed.is_ok() || stands(&beside, new) {
            remove(&beside)?;
        }
        remove(&unfinished)?;
        let placed = placed?;
        self.sync()?;
        crash_point::reached("edit.placed");
        Ok(placed)
    }

    fn exchange(&self, beside: &Path, base: &[u8], new: &[u8]) -> Result<Placed, FileError> {
        // Most who save at the same moment are seen here already, and nobody gets to see a text that is taken back.
        if !stands(&self.file, base) {
            return Ok(Placed::Overtaken);
        }
        self.swap(beside, base, new)
    }

    fn swap(&self, beside: &Path, base: &[u8], new: &[u8]) -> Result<Placed, FileError> {
        let swap = || renameat_with(CWD, beside, CWD, &self.file, RenameFlags::EXCHANGE);
        match swap() {
            Ok(()) => {}
            // An editor that renames the old one away first is between its two steps.
            Err(Errno::NOENT) => return Ok(Placed::Overtaken),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => return self.rename(beside),
            Err(error) => return Err(failed("exchanging", &self.file)(error)),
        }
        crash_point::reached("edit.exchanged");
        if stands(beside, base) {
            return Ok(Placed::Done);
        }
        swap().map_err(failed("exchanging", &self.file))?;
        crash_point::reached("edit.restored");
        // Whoever saved over the new one in these few instructions saved last.
        if !stands(beside, new) {
            swap().map_err(failed("exchanging", &self.file))?;
            self.keep_aside(beside)?;
        }
        Ok(Placed::Overtaken)
    }

    /// On a file system that exchanges nothing (NFS, some of FUSE): what stands there was looked at a moment before.
    fn rename(&self, beside: &Path) -> Result<Placed, FileError> {
        fs::rename(beside, &self.file).map_err(failed("replacing", &self.file))?;
        crash_point::reached("edit.exchanged");
        Ok(Placed::Done)
    }

    /// Writes `text` to `path`, for those who may read and write the file itself.
    fn write(&self, path: &Path, text: &[u8]) -> Result<(), FileError> {
        remove(path)?;
        let write = || {
            let before = fs::metadata(&self.file)?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(text)?;
            // As far as this user may give a file away.
            let _ = fchown(&file, Some(Uid::from_raw(before.uid())), Some(Gid::from_raw(before.gid())));
            file.set_permissions(before.permissions())?;
            file.sync_all()
        };
        write().map_err(failed("writing", path))
    }

    /// Brings the directory to the disk.
    fn sync(&self) -> Result<(), FileError> {
        let directory = self.directory();
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("syncing", directory))
    }

    fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    /// `.tenants.toml.sq-agent-edit.LAST`
    fn beside(&self, last: &str) -> PathBuf {
        let mut name = self.prefix();
        name.push(last);
        self.file.with_file_name(name)
    }

    fn prefix(&self) -> OsString {
        let mut name = OsString::from(".");
        name.push(self.file.file_name().unwrap_or_default());
        name.push(format!(".{BESIDE}."));
        name
    }

    /// Ends what an agent that died in an edit left half done. Nothing else edits through this place by now.
    pub(super) fn recover(&self) -> Result<(), FileError> {
        let directory = self.directory();
        let prefix = self.prefix();
        for entry in fs::read_dir(directory).map_err(failed("reading", directory))?.flatten() {
            let entry_name = entry.file_name();
            let Some(last) = entry_name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes()) else { continue };
            let path = entry.path();
            if let Some((base, new)) = std::str::from_utf8(last).ok().and_then(|last| last.split_once('.')) {
                self.end(&path, base, new)?;
            }
            remove(&path)?;
        }
        self.sync()
    }

    /// Ends the exchange of `base` for `new`, of which `path` is left; nobody needs what is left there then.
    fn end(&self, path: &Path, base: &str, new: &str) -> Result<(), FileError> {
        let named = |path: &Path| fs::read(path).map(|text| name(&text)).ok();
        let left = named(path);
        if left.as_deref() == Some(base) || left.as_deref() == Some(new) {
            return Ok(());
        }
        // A person's edit came out.
        if named(&self.file).as_deref() != Some(new) {
            return self.keep_aside(path);
        }
        tracing::warn!(file = %self.file.display(), "an edit by hand is back in place, which an agent that died had just taken out");
        fs::rename(path, &self.file).map_err(failed("putting back", &self.file))
    }

    /// Keeps what a person saved, and another one saved over, under the time of now.
    fn keep_aside(&self, path: &Path) -> Result<(), FileError> {
        fs::create_dir_all(&self.aside).map_err(failed("making", &self.aside))?;
        let kept = self.aside.join(format!("{}.toml", rfc3339(unix_now()).replace(':', "")));
        fs::copy(path, &kept).map_err(failed("writing", &kept))?;
        tracing::warn!(kept = %kept.display(), "two edits by hand came at the same moment: the earlier one is kept there");
        Ok(())
    }
}

/// Removes `path`, if it is there.
fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Whether `path` holds `text`, and nobody is about to write another one into it.
fn stands(path: &Path, text: &[u8]) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    // Where that cannot be told, the content has to do.
    if sys::is_being_written(file.as_fd()).unwrap_or(false) {
        return false;
    }
    let mut found = Vec::with_capacity(text.len() + 1);
    file.read_to_end(&mut found).is_ok() && found == text
}

/// A text in a file's name: 128 bits of its digest.
fn name(text: &[u8]) -> String {
    hex(&sha256(text)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        _dir: tempfile::TempDir,
        place: Place,
    }

    impl Bench {
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("t.toml");
            fs::write(&file, text).unwrap();
            Self { place: Place::of(&file, dir.path()).unwrap(), _dir: dir }
        }

        /// The only file in the directory.
        fn text(&self) -> String {
            assert_eq!(fs::read_dir(self.place.directory()).unwrap().count(), 1, "nothing is left beside it");
            fs::read_to_string(&self.place.file).unwrap()
        }
    }

    #[test]
    fn what_a_person_saved_since_it_was_read_is_back_in_place() {
        let it = Bench::new("read");
        assert_eq!(it.place.replace(b"read", b"new").unwrap(), Placed::Done);
        assert_eq!(it.text(), "new");
        fs::write(&it.place.file, "by hand").unwrap();
        assert_eq!(it.place.replace(b"new", b"newer").unwrap(), Placed::Overtaken);
        assert_eq!(it.text(), "by hand");
    }

    #[test]
    fn a_file_that_somebody_is_about_to_write_into_stays_theirs() {
        let it = Bench::new("read");
        let mut open = File::options().write(true).open(&it.place.file).unwrap();
        assert_eq!(it.place.replace(b"read", b"new").unwrap(), Placed::Overtaken);
        open.write_all(b"by hand").unwrap();
        assert_eq!(it.text(), "by hand");
    }

    #[test]
    fn what_a_person_saves_between_the_last_look_and_the_exchange_comes_out_and_goes_back() {
        let it = Bench::new("by hand");
        let beside = it.place.beside("a.b");
        it.place.write(&beside, b"new").unwrap();
        assert_eq!(it.place.swap(&beside, b"read", b"new").unwrap(), Placed::Overtaken);
        fs::remove_file(&beside).unwrap();
        assert_eq!(it.text(), "by hand");
    }

    #[test]
    fn where_nothing_can_be_exchanged_it_is_renamed() {
        let it = Bench::new("read");
        let beside = it.place.beside("a.b");
        it.place.write(&beside, b"new").unwrap();
        assert_eq!(it.place.rename(&beside).unwrap(), Placed::Done);
        assert_eq!(it.text(), "new");
    }
}
