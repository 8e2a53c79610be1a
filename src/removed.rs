//! Tenants that left tenants.toml: their data stay, whole, until somebody purges them, which archives them first. Nothing else ever deletes a
//! tenant's data.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File},
    io::{self, BufWriter, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    desired::{Tenant, TenantId, user_dir},
    file::{FileError, failed, remove_tree},
    store::{Store, rfc3339},
};

/// Below the state directory: what was purged, an archive each.
const ARCHIVES: &str = "purged";
/// zstd's own default: these are written once.
const LEVEL: i32 = 3;

/// A tenant that was removed, with all that is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Its id; written into tenants.toml again, it brings the data back.
    pub id: TenantId,
    /// When it was removed, RFC 3339; none where that is not known.
    pub removed_at: Option<String>,
    /// The same in seconds since 1970.
    #[serde(skip)]
    pub removed: Option<u64>,
    /// Size of all its files, snapshots among them, bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Where they lie.
    pub path: PathBuf,
}

/// Everybody whose data lie below `state_dir` and who is none of `tenants`, by id.
///
/// # Errors
/// A directory cannot be read.
pub fn list(state_dir: &Path, tenants: &BTreeMap<TenantId, Tenant>) -> Result<Vec<Removed>, FileError> {
    let users = state_dir.join("users");
    let entries = match fs::read_dir(&users) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("reading", &users))?,
    };
    // Without a readable database only the time is missing.
    let times = Store::removals(state_dir).unwrap_or_default();
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("reading", &users))?;
        let id = entry.file_name().to_str().and_then(|name| TenantId::parse(name).ok());
        if let Some(id) = id.filter(|id| !tenants.contains_key(id)) {
            all.push(of(entry.path(), id, &times)?);
        }
    }
    all.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(all)
}

fn of(path: PathBuf, id: TenantId, times: &HashMap<TenantId, u64>) -> Result<Removed, FileError> {
    let (mut bytes, mut files) = (0, 0);
    each_file(&path, &mut |found| {
        bytes += found.blocks() * 512;
        files += 1;
    })?;
    let removed = times.get(&id).copied();
    Ok(Removed { removed_at: removed.map(rfc3339), removed, bytes, files, path, id })
}

fn each_file(directory: &Path, look: &mut impl FnMut(&fs::Metadata)) -> Result<(), FileError> {
    for entry in fs::read_dir(directory).map_err(failed("reading", directory))? {
        let entry = entry.map_err(failed("reading", directory))?;
        let path = entry.path();
        // Of a link, the link.
        let found = entry.metadata().map_err(failed("looking at", &path))?;
        if found.is_dir() {
            each_file(&path, look)?;
        } else {
            look(&found);
        }
    }
    Ok(())
}

/// Deletes all that is left of `id`, once it is on the disk as an archive (`tar --zstd -xf` unpacks it). Returns where that lies. Killed on its way, it
/// leaves the data, or the archive, or both.
///
/// The caller knows that `id` is not to be served and that nothing of it runs.
///
/// # Errors
/// The archive cannot be written: then nothing is deleted. Or something cannot be deleted.
pub fn purge(state_dir: &Path, id: &TenantId, unix_now: u64) -> Result<PathBuf, FileError> {
    let archives = state_dir.join(ARCHIVES);
    DirBuilder::new().recursive(true).mode(0o700).create(&archives).map_err(failed("making", &archives))?;
    let archive = archives.join(format!("{id}-{}.tar.zst", rfc3339(unix_now).replace([':', '-'], "")));
    let new = archive.with_extension("new");
    let directory = user_dir(state_dir, id);
    pack(&directory, id, &new).map_err(failed("writing", &new))?;
    fs::rename(&new, &archive).map_err(failed("naming", &archive))?;
    File::open(&archives).and_then(|archives| archives.sync_all()).map_err(failed("writing", &archives))?;
    // Out of everybody's way in one step: what is half deleted must never be taken for a tenant's data.
    let gone = state_dir.join("users").join(format!(".purged-{id}"));
    remove_tree(&gone)?;
    fs::rename(&directory, &gone).map_err(failed("removing", &directory))?;
    remove_tree(&gone)?;
    Ok(archive)
}

fn pack(directory: &Path, id: &TenantId, archive: &Path) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(archive)?;
    let mut zstd = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
    zstd.include_checksum(true)?;
    let mut tar = tar::Builder::new(zstd);
    tar.follow_symlinks(false);
    tar.append_dir_all(id.as_str(), directory)?;
    let mut file = tar.into_inner()?.finish()?;
    file.flush()?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn id(name: &str) -> TenantId {
        TenantId::parse(name).unwrap()
    }

    #[test]
    fn who_is_removed_is_listed_and_what_is_purged_can_be_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let data = user_dir(dir.path(), &id("gone")).join("phext-data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("diary.phext"), "dear diary").unwrap();
        fs::create_dir_all(dir.path().join("users/.purged-half")).unwrap();
        let desired = crate::desired::parse("[[tenants]]\nid = \"here\"\n", Path::new("/t.toml")).unwrap();
        fs::create_dir_all(user_dir(dir.path(), &id("here"))).unwrap();
        let listed = list(dir.path(), &desired.tenants).unwrap();
        assert_eq!(listed.iter().map(|removed| (removed.id.as_str(), removed.files)).collect::<Vec<_>>(), [("gone", 1)]);

        let archive = purge(dir.path(), &id("gone"), 1_795_608_000).unwrap();
        assert_eq!(list(dir.path(), &desired.tenants).unwrap(), []);
        let unpacked = dir.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        assert!(Command::new("tar").arg("--zstd").arg("-xf").arg(&archive).arg("-C").arg(&unpacked).status().unwrap().success());
        assert_eq!(fs::read_to_string(unpacked.join("gone/phext-data/diary.phext")).unwrap(), "dear diary");
        assert_eq!(fs::metadata(&archive).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_archived_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let data = user_dir(dir.path(), &id("gone")).join("phext-data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("a.phext"), "text").unwrap();
        fs::write(dir.path().join(ARCHIVES), "in the way").unwrap();
        assert!(purge(dir.path(), &id("gone"), 1).is_err());
        assert_eq!(fs::read_to_string(data.join("a.phext")).unwrap(), "text");
        assert!(purge(dir.path(), &id("nobody"), 1).is_err());
    }
}
