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
    strangers(state_dir, known)?.collect()
}

/// Any one that [`scan`] finds: enough where all are alike, as in the network they live in. Nothing behind it is read.
pub fn any(state_dir: &Path) -> io::Result<Option<Found>> {
    strangers(state_dir, |_| false)?.next().transpose()
}

/// Reads a process only when it is asked for the next one.
fn strangers(state_dir: &Path, known: impl Fn(u32) -> bool) -> io::Result<impl Iterator<Item = io::Result<Found>>> {
    // Instances are started with the path free of links, see spawn.
    let users = match fs::canonicalize(state_dir) {
        Ok(path) => Some(path.join("users")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let processes = users.is_some().then(|| fs::read_dir("/proc")).transpose()?;
    let stranger = move |entry: io::Result<fs::DirEntry>| -> io::Result<Option<Found>> {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).filter(|pid| !known(*pid));
        let Some((pid, users)) = pid.zip(users.as_deref()) else { return Ok(None) };
        look(pid, users).or_else(|error| match error.kind() {
            // Gone meanwhile, or another user's under hidepid.
            io::ErrorKind::PermissionDenied => Ok(None),
            _ if is_gone(&error) => Ok(None),
            _ => Err(error),
        })
    };
    Ok(processes.into_iter().flatten().filter_map(move |entry| stranger(entry).transpose()))
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
    use std::{
        cell::RefCell,
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// Runs `host` under an instance's command line until its input ends.
    fn instance(dir: &Path, id: &str) -> Child {
        let data = fs::canonicalize(dir).unwrap().join("users").join(id).join(DATA_DIR);
        let args = ["host", "10001", "--key", "k", "--data-dir", data.to_str().unwrap()];
        let child = Command::new("/bin/sh").args(args).current_dir(dir).stdin(Stdio::piped()).spawn().unwrap();
        // A moment lies between the exec that spawn waits for and the command line in /proc.
        while fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        child
    }

    #[test]
    fn any_stops_at_the_first_that_it_finds() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(any(dir.path()).unwrap(), None);
        assert_eq!(any(&dir.path().join("missing")).unwrap(), None);
        // Once: who is being started reads it meanwhile.
        fs::write(dir.path().join("host"), "read line").unwrap();
        let mut running = ["a", "b"].map(|id| instance(dir.path(), id));
        let found = any(dir.path()).unwrap().unwrap();
        assert!(running.iter().any(|child| child.id() == found.pid), "{found:?}");
        let looked_at = RefCell::new(Vec::new());
        let known = |pid| {
            looked_at.borrow_mut().push(pid);
            false
        };
        let first = strangers(dir.path(), known).unwrap().next().unwrap().unwrap();
        assert_eq!(looked_at.borrow().last(), Some(&first.pid), "nothing behind it is read");
        assert_eq!(scan(dir.path()).unwrap().len(), 2);
        for child in &mut running {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

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
