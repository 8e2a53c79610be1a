//! Finding every instance of a state directory that runs, whoever started it.
//!
//! instances.db says what the agent knows; this says what is. The key in the command line is the proof that an agent
//! with the same secret started it (compare with [`crate::instance_key::derive`]).

use std::{fmt, fs, io, path::Path};

use rustix::{
    fs::{CWD, Mode, OFlags, fstat, openat},
    process::geteuid,
};

use super::{owner, process::is_gone, procfs, spawn::DATA_DIR};
use crate::desired::TenantId;

/// A running sq that serves a tenant of this state directory.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub id: TenantId,
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, for [`super::Process::adopt`].
    pub start_time: u64,
    /// Port in its command line.
    pub port: u16,
    /// `--key` in its command line.
    pub key: String,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, pid, start_time, port, key: _ } = self;
        write!(f, "Found {{ id: {id}, pid: {pid}, start_time: {start_time}, port: {port}, key: [redacted] }}")
    }
}

/// All live processes of this user, or of the users it gives to instances, whose command line is
/// `… host PORT --key K --data-dir <state_dir>/users/<id>/phext-data`. Zombies are left out.
pub fn scan(state_dir: &Path) -> io::Result<Vec<Found>> {
    scan_strangers(state_dir, |_| false)
}

/// [`scan`] without the processes that are known by pid. A held [`super::Process`] that has not exited keeps its pid from
/// being reused, so the regular look need not read those again: that is nearly all of its cost.
pub fn scan_strangers(state_dir: &Path, known: impl Fn(u32) -> bool) -> io::Result<Vec<Found>> {
    // Instances are started with the path free of links, see spawn.
    let users = match fs::canonicalize(state_dir) {
        Ok(path) => path.join("users"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).filter(|pid| !known(*pid)) else { continue };
        match look(pid, &users) {
            Ok(Some(instance)) => found.push(instance),
            Ok(None) => {}
            // Gone meanwhile, or another user's under hidepid.
            Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// One process. The directory is held open for a candidate, since it stays with the process while a path would lead to
/// whoever has the pid next.
fn look(pid: u32, users: &Path) -> io::Result<Option<Found>> {
    if parse_command_line(&fs::read(format!("/proc/{pid}/cmdline"))?, users).is_none() {
        return Ok(None);
    }
    let dir = openat(CWD, format!("/proc/{pid}"), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Ours, or, where each instance has a user of its own, one of those.
    let (uid, own) = (fstat(&dir)?.st_uid, geteuid());
    if uid != own.as_raw() && !(own.is_root() && owner::is_instance_user(uid)) {
        return Ok(None);
    }
    let read = |name: &str| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        io::Read::read_to_end(&mut fs::File::from(file), &mut bytes)?;
        Ok(bytes)
    };
    let (line, stat) = (read("cmdline")?, read("stat")?);
    let live = procfs::parse_stat(&stat).filter(|stat| !stat.is_dead());
    Ok(parse_command_line(&line, users).zip(live).map(|((id, port, key), stat)| Found { id, pid, start_time: stat.start_time, port, key }))
}

/// Reads the arguments (each ends with a NUL) in exactly the form in which spawn writes them.
fn parse_command_line(line: &[u8], users: &Path) -> Option<(TenantId, u16, String)> {
    let args: Vec<&str> = std::str::from_utf8(line.strip_suffix(b"\0")?).ok()?.split('\0').collect();
    let [_, "host", port, "--key", key, "--data-dir", data_dir] = args[..] else { return None };
    let id = Path::new(data_dir).strip_prefix(users).ok()?.to_str()?.strip_suffix(DATA_DIR)?.strip_suffix('/')?;
    Some((TenantId::parse(id).ok()?, port.parse().ok()?, key.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Option<(TenantId, u16, String)> {
        let line: String = args.iter().flat_map(|arg| [arg, "\0"]).collect();
        parse_command_line(line.as_bytes(), Path::new("/s/users"))
    }

    #[test]
    fn a_command_line_as_spawned_is_recognized() {
        let data = "/s/users/user+x@example.com/phext-data";
        let found = parse(&["/opt/sq", "host", "10001", "--key", "k", "--data-dir", data]);
        assert_eq!(found, Some((TenantId::parse("user+x@example.com").unwrap(), 10_001, "k".into())));
    }

    #[test]
    fn anything_else_is_not_taken_for_an_instance() {
        let data = "/s/users/a/phext-data";
        assert_eq!(parse(&["sq", "host", "10001", "--key", "k", "--data-dir", "/other/users/a/phext-data"]), None);
        assert_eq!(parse(&["sq", "host", "10001", "--key", "k", "--data-dir", "/s/users/a/b/phext-data"]), None);
        assert_eq!(parse(&["sq", "host", "10001", "--key", "k", "--data-dir", "/s/users/../phext-data"]), None);
        assert_eq!(parse(&["sq", "host", "10001", "--key", "k", "--data-dir", data, "--more"]), None);
        assert_eq!(parse(&["sq", "host", "99999", "--key", "k", "--data-dir", data]), None);
        assert_eq!(parse(&["sq", "share", "10001", "--key", "k", "--data-dir", data]), None);
        assert_eq!(parse_command_line(b"", Path::new("/s/users")), None, "a zombie or kernel thread");
    }
}
