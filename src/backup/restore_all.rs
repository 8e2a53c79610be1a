//! Everybody's text brought back from the repository onto a host that has none.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    TENANTS, TOKEN_SECRET,
    fault::ResticError,
    place,
    restic::{Restic, host_name, make_private},
    snapshots,
};
use crate::{
    child::Cancel,
    desired::{Desired, TenantId},
    file::{FileError, failed, remove_tree},
    store::{AgentLock, LockError},
};

/// The tenants.toml of the backup, in the state directory.
pub const TENANTS_OF_BACKUP: &str = "tenants.from-backup.toml";

/// Why nothing was brought back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreAllError {
    /// It is not said from where.
    #[error("tenants.toml has no [backup]: write `repository` and `password_file` under it, as on the host that was backed up")]
    NotConfigured,
    /// It would be overwritten.
    #[error("{} holds texts of {} already: `restore --all` is for a host without any. Move that directory away first, or restore one tenant by `sq-agent restore ID`", users.display(), super::counted(*count, "tenant"))]
    NotEmpty {
        /// Where texts lie.
        users: PathBuf,
        /// Of how many tenants.
        count: usize,
    },
    /// Whose files it would make could not be used by the agent.
    #[error("{} belongs to another user (uid {owner}): run this as its owner, the agent's user", state_dir.display())]
    NotOwner {
        /// The state directory.
        state_dir: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// An agent runs there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It is not clear which backup is meant.
    #[error("{0}")]
    Which(String),
    /// restic.
    #[error(transparent)]
    Restic(#[from] ResticError),
    /// The snapshot is not one of ours.
    #[error("snapshot {0} holds no users/: it was not taken by sq-agent")]
    NotOurs(String),
    /// A file operation failed.
    #[error(transparent)]
    Files(#[from] FileError),
}

/// Which backup.
#[derive(Debug, Default, Clone, Copy)]
pub struct Which<'a> {
    /// Of which host; else of this one, or of the only one.
    pub host: Option<&'a str>,
    /// The newest that is no later than this; see [`snapshots::moment`].
    pub at: Option<&'a str>,
}

/// What is there now.
#[derive(Debug)]
pub struct Restored {
    /// Of which host.
    pub host: String,
    /// Short id of the snapshot.
    pub snapshot: String,
    /// When it was taken.
    pub when: String,
    /// Whose text came back.
    pub tenants: Vec<TenantId>,
    /// Those that tenants.toml does not name, so that they are not served.
    pub not_named: Vec<TenantId>,
    /// The tenants.toml of the backup, where it held one.
    pub tenants_file: Option<PathBuf>,
    /// The secret is back by which the tokens of before verify.
    pub token_secret: bool,
}

/// Brings everything back into the state directory of `desired`, where there is nothing yet; `told` hears what is being done. Blocks.
///
/// # Errors
/// What stands against it; no text is in its place then.
pub fn restore_all(desired: &Desired, which: Which<'_>, told: &dyn Fn(&str)) -> Result<Restored, RestoreAllError> {
    let backup = desired.backup.as_ref().ok_or(RestoreAllError::NotConfigured)?;
    let state_dir = &desired.state_dir;
    let until = which.at.map(|at| snapshots::moment(at, SystemTime::now())).transpose().map_err(RestoreAllError::Which)?;
    check_owner(state_dir)?;
    let _lock = AgentLock::take(state_dir)?;
    let users = state_dir.join("users");
    check_empty(&users)?;
    make_private(&place(state_dir)).map_err(failed("making", &place(state_dir)))?;
    let restic = Restic::new(backup, state_dir, None, Cancel::default())?;
    let this_host = host_name().unwrap_or_default();
    let snapshot = snapshots::choose(snapshots::list(&restic)?, which.host, &this_host, until).map_err(RestoreAllError::Which)?;
    told(&format!("restoring snapshot {} of {}, taken {}", snapshots::short(&snapshot.id), snapshot.hostname, snapshot.when()));

    // Beside its place, on the same disk, and moved there when all of it is there.
    let target = place(state_dir).join("restore");
    remove_tree(&target)?;
    make_private(&target).map_err(failed("making", &target))?;
    snapshots::restore(&restic, &snapshot.id, None, &target)?;
    let restored = target.join("users");
    if !restored.is_dir() {
        return Err(RestoreAllError::NotOurs(snapshots::short(&snapshot.id).to_owned()));
    }
    let mut tenants = own(&target)?;
    tenants.sort();
    let tenants_file = put(&target.join(TENANTS), &state_dir.join(TENANTS_OF_BACKUP))?;
    let token_secret = put(&target.join(TOKEN_SECRET), &state_dir.join(TOKEN_SECRET))?.is_some();
    remove_tree(&users)?;
    fs::rename(&restored, &users).map_err(failed("moving into place", &users))?;
    remove_tree(&target)?;
    Ok(Restored {
        host: snapshot.hostname.clone(),
        when: snapshot.when(),
        snapshot: snapshots::short(&snapshot.id).to_owned(),
        not_named: tenants.iter().filter(|id| !desired.tenants.contains_key(*id)).cloned().collect(),
        tenants,
        tenants_file,
        token_secret,
    })
}

fn check_owner(state_dir: &Path) -> Result<(), RestoreAllError> {
    match fs::metadata(state_dir) {
        Ok(found) if found.uid() != rustix::process::geteuid().as_raw() => {
            Err(RestoreAllError::NotOwner { state_dir: state_dir.into(), owner: found.uid() })
        }
        _ => Ok(()),
    }
}

/// Directories that a start made before anything was written count for nothing.
fn check_empty(users: &Path) -> Result<(), RestoreAllError> {
    let entries = match fs::read_dir(users) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("reading", users))?,
    };
    let mut count = 0;
    for entry in entries {
        let data = entry.map_err(failed("reading", users))?.path().join(crate::instance::spawn::DATA_DIR);
        let holds = match fs::read_dir(&data) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => false,
            entries => entries.map_err(failed("reading", &data))?.next().is_some(),
        };
        count += usize::from(holds);
    }
    if count == 0 { Ok(()) } else { Err(RestoreAllError::NotEmpty { users: users.into(), count }) }
}

/// Makes everything below `target` this user's and closed to others, as a start expects it. Returns whose text lies there.
fn own(target: &Path) -> Result<Vec<TenantId>, FileError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut tenants = Vec::new();
    let mut open = vec![(target.to_owned(), 0)];
    while let Some((path, depth)) = open.pop() {
        let found = fs::symlink_metadata(&path).map_err(failed("looking at", &path))?;
        if (found.uid(), found.gid()) != (uid, gid) {
            lchown(&path, Some(uid), Some(gid)).map_err(failed("making one's own", &path))?;
        }
        if found.is_symlink() {
            continue;
        }
        let mode = if found.is_dir() { 0o700 } else { 0o600 };
        if found.mode() & 0o7777 != mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed("closing to others", &path))?;
        }
        if found.is_dir() {
            let is_tenant = depth == 2 && path.parent().is_some_and(|parent| parent.ends_with("users"));
            tenants
                .extend(path.file_name().and_then(|name| name.to_str()).filter(|_| is_tenant).and_then(|name| TenantId::parse(name).ok()));
            for entry in fs::read_dir(&path).map_err(failed("reading", &path))? {
                open.push((entry.map_err(failed("reading", &path))?.path(), depth + 1));
            }
        }
    }
    Ok(tenants)
}

/// Moves a file that the backup may hold.
fn put(from: &Path, to: &Path) -> Result<Option<PathBuf>, FileError> {
    match fs::rename(from, to) {
        Ok(()) => Ok(Some(to.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("moving into place", to)(error)),
    }
}
