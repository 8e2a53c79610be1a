//! Whose a tenant's files are. Where each instance has a user of its own, its data belong to that user; everything beside
//! them (log, pid file, the guard's copies) stays the agent's, so that an instance can neither change nor swap them.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fstat, openat, statat};

/// First of the users that instances get where the agent is root: a range that systemd, and so every distribution with it,
/// leaves unused (UIDS-GIDS: from 0x70000000 on, beyond what it gives to containers).
pub const FIRST_USER: u32 = 0x7000_0000;
/// How many there are: one for each slot of the route table.
const USERS: u32 = crate::store::SLOTS;

/// uid and gid of the tenant in `slot`.
pub fn user_of(slot: u32) -> u32 {
    FIRST_USER + slot
}

/// Whether `uid` may be that of an instance.
pub fn is_instance_user(uid: u32) -> bool {
    (FIRST_USER..FIRST_USER + USERS).contains(&uid)
}

/// Nesting of directories below a tenant's data; sq makes none.
const DEEPEST: usize = 16;

/// Gives what lies in `directory`, and itself, to `user` (as uid and gid), or back to the agent's own. Touches only what
/// belongs to somebody else, and never follows a symbolic link: whoever owned the tree before may have placed some.
pub(super) fn give(directory: &OwnedFd, user: u32) -> io::Result<()> {
    give_below(directory, user, DEEPEST)
}

fn give_below(directory: &OwnedFd, user: u32, depth: usize) -> io::Result<()> {
    let owner = (Uid::from_raw(user), Gid::from_raw(user));
    let differs = |stat: &rustix::fs::Stat| (stat.st_uid, stat.st_gid) != (user, user);
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if depth == 0 {
                return Err(io::Error::other(format!("directories are nested deeper than {DEEPEST}")));
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            give_below(&openat(directory, name, flags, Mode::empty())?, user, depth - 1)?;
        } else if differs(&stat) {
            chownat(directory, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    if differs(&fstat(directory)?) {
        fchown(directory, Some(owner.0), Some(owner.1))?;
    }
    Ok(())
}

/// Lets `group` pass through a tenant's directory that stays the agent's, or nobody.
pub(super) fn let_through(directory: &OwnedFd, group: Option<u32>) -> io::Result<()> {
    let (gid, mode) = match group {
        Some(group) => (group, 0o710),
        None => (rustix::process::getegid().as_raw(), 0o700),
    };
    let stat = fstat(directory)?;
    if stat.st_gid != gid {
        fchown(directory, None, Some(Gid::from_raw(gid)))?;
    }
    if stat.st_mode & 0o7777 != mode {
        fchmod(directory, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// The first part of `path` that users other than its owner and group cannot pass through, or where it is a program, not
/// execute.
pub(super) fn closed_to_others(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = fs::canonicalize(path)?;
    let ancestors: Vec<&Path> = path.ancestors().collect();
    for part in ancestors.into_iter().rev() {
        if fs::metadata(part)?.permissions().mode() & 0o001 == 0 {
            return Ok(Some(part.to_owned()));
        }
    }
    Ok(None)
}

/// Lets other users pass through a directory of the agent's, and no more than pass; who could do more before still can.
pub(super) fn make_passable(path: &Path) -> io::Result<()> {
    const PASS: u32 = 0o011;
    let found = fs::symlink_metadata(path)?;
    if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & PASS != PASS {
        let directory = openat(CWD, path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        fchmod(&directory, Mode::from_raw_mode((found.mode() & 0o7777) | PASS))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_tree_changes_hands_and_what_a_link_points_to_does_not() {
        if !rustix::process::geteuid().is_root() {
            return; // nobody else can give files away
        }
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/a.phext"), "text").unwrap();
        fs::write(elsewhere.path().join("b"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("b"), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("dir")).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
        for user in [user_of(7), 0] {
            give(&open(dir.path()), user).unwrap();
            for name in ["", "sub", "sub/a.phext", "link", "dir"] {
                assert_eq!(owner(&dir.path().join(name)), (user, user), "{name}");
            }
            assert_eq!((owner(elsewhere.path()), owner(&elsewhere.path().join("b"))), ((0, 0), (0, 0)));
        }
    }

    #[test]
    fn the_part_of_a_path_that_is_closed_to_others_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(path.join("in")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(closed_to_others(&path.join("in")).unwrap(), Some(path.clone()));
        make_passable(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o711);
        assert_ne!(closed_to_others(&path.join("in")).unwrap(), Some(path));
    }

    #[test]
    fn the_users_of_all_slots_are_told_from_others() {
        assert!(is_instance_user(user_of(0)) && is_instance_user(user_of(USERS - 1)));
        assert!(!is_instance_user(0) && !is_instance_user(65_534) && !is_instance_user(user_of(USERS)));
    }
}
