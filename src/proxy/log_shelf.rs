//! The access log as the agent keeps it: a file in use, and older ones, compressed, of which the oldest go.
//!
//! The proxy, which may open no file, writes to its standard output. Where the log is due, the agent gives the file another name, makes a new one and
//! hands that over ([`ToProxy::AccessLog`](super::control::ToProxy)): until then lines go to the old one, from then on to the new one, and none is lost.
//! A proxy that retires meanwhile writes to the old one to its end. So that is compressed once nobody can be writing to it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use rustix::fs::{FlockOperation, OFlags, flock};
use tokio::{sync::watch, time::Instant};

use crate::desired::AccessLog;

/// The file in use, in the state directory.
const NAME: &str = "access.log";
/// Of one that was compressed.
const COMPRESSED: &str = ".zst";
/// How often the log is looked at; a busy one grows by some 6 MB a second.
const LOOK: Duration = Duration::from_secs(5);
/// After a failure.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// A write to the old file that was under way when the new one was handed over has long ended by then.
const SETTLES_IN: Duration = Duration::from_secs(10);
/// zstd's own default: such a log shrinks to a tenth.
const LEVEL: i32 = 3;
/// The lowest priority: nobody waits for it.
const NICE: i32 = 19;

/// See the file's description.
pub(super) struct Shelf {
    state_dir: PathBuf,
    policy: watch::Receiver<AccessLog>,
    /// The file to which the proxy writes, as far as that is known: device and inode.
    handed: Option<(u64, u64)>,
    /// Files that were handed over without an answer so far.
    unanswered: u32,
    tidying: Option<thread::JoinHandle<()>>,
    look_at: Instant,
    /// The next time at which old ones may be compressed.
    tidy_at: Instant,
}

impl Shelf {
    pub(super) fn new(state_dir: PathBuf, policy: watch::Receiver<AccessLog>) -> Self {
        Self { state_dir, policy, handed: None, unanswered: 0, tidying: None, look_at: Instant::now(), tidy_at: Instant::now() }
    }

    /// When [`Self::look`] is due.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Another proxy serves: to which file it writes is not known.
    pub(super) fn another_proxy(&mut self) {
        (self.handed, self.unanswered, self.look_at) = (None, 0, Instant::now());
    }

    /// The proxy writes to what it was given.
    pub(super) fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    /// Looks after the log. Returns the file to which the proxy is to write from now on, where that is another one. `alone`: no other proxy lives.
    pub(super) fn look(&mut self, now: SystemTime, alone: bool) -> Option<File> {
        self.look_at = Instant::now() + LOOK;
        let policy = self.policy.borrow().clone();
        // What was rotated before the proxy's last answer is nobody's any more.
        let is_idle = self.tidying.as_ref().is_none_or(thread::JoinHandle::is_finished) && Instant::now() >= self.tidy_at;
        if alone && self.handed.is_some() && self.unanswered == 0 && is_idle {
            self.tidy(policy.keep, now);
        }
        let looked = self.rotate(&policy, now).and_then(|()| open(&self.state_dir.join(NAME)));
        let file = match looked {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "the access log cannot be rotated: it goes on in the file that it has");
                self.look_at = Instant::now() + LOOK_AGAIN;
                return None;
            }
        };
        let identity = file.metadata().map(|found| (found.dev(), found.ino())).ok()?;
        if self.handed != Some(identity) {
            self.handed = Some(identity);
            self.unanswered += 1;
            return Some(file);
        }
        None
    }

    /// Gives a log that is due another name.
    fn rotate(&self, policy: &AccessLog, now: SystemTime) -> io::Result<()> {
        let path = self.state_dir.join(NAME);
        let size = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => found.len(),
            Ok(_) => return Err(io::Error::other("access.log is not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !is_due(policy, size, || first_time(&path), now) {
            return Ok(());
        }
        let old = self.state_dir.join(Old { stamp: stamp(now), compressed: false }.name());
        // Twice within a second: then at the next look.
        if old.exists() {
            return Ok(());
        }
        fs::rename(&path, &old)?;
        tracing::info!(bytes = size, to = %old.display(), "the access log is rotated");
        Ok(())
    }

    /// Compresses what nobody writes to any more and removes the oldest, beside everything else.
    fn tidy(&mut self, keep: u32, now: SystemTime) {
        let Ok(all) = on_shelf(&self.state_dir) else { return };
        let (old, surplus) = sort(all, keep, now);
        if old.is_empty() && surplus.is_empty() {
            return;
        }
        let state_dir = self.state_dir.clone();
        let work = move || {
            // Of this thread alone: so it is on Linux, whatever POSIX says.
            let _ = rustix::process::setpriority_process(None, NICE);
            for file in surplus {
                let _ = fs::remove_file(state_dir.join(file.name())).inspect_err(|error| tracing::warn!(%error, "an old access log stays"));
            }
            for file in old {
                let _ = compress(&state_dir.join(file.name()))
                    .inspect_err(|error| tracing::warn!(%error, "an old access log is not compressed"));
            }
        };
        match thread::Builder::new().name("log-shelf".into()).spawn(work) {
            Ok(thread) => self.tidying = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to compress the old access log"),
        }
        // It may fail, on a full disk say: not again at once.
        self.tidy_at = Instant::now() + LOOK_AGAIN;
    }
}

/// The log, for append.
fn open(path: &Path) -> io::Result<File> {
    let no_links = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(no_links).open(path)
}

/// Whether a log of `size` bytes, which began at `began`, is to be rotated.
fn is_due(policy: &AccessLog, size: u64, began: impl FnOnce() -> Option<SystemTime>, now: SystemTime) -> bool {
    let is_old = |began: SystemTime| now.duration_since(began).is_ok_and(|age| age.as_secs() >= policy.max_age);
    size >= policy.max_size || size > 0 && began().is_some_and(is_old)
}

/// The time in a log's first line.
fn first_time(path: &Path) -> Option<SystemTime> {
    const BEGINS: &str = "{\"time\":\"";
    let mut start = Vec::new();
    File::open(path).ok()?.take(64).read_to_end(&mut start).ok()?;
    let (time, _) = std::str::from_utf8(&start).ok()?.strip_prefix(BEGINS)?.split_once('"')?;
    humantime::parse_rfc3339(time).ok()
}

/// A log of before: `access.log.2026-11-25T17-12-40Z`, and `.zst` behind that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Old {
    stamp: String,
    compressed: bool,
}

fn stamp(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace(':', "-")
}

impl Old {
    fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(NAME)?.strip_prefix('.')?;
        let (stamp, compressed) = rest.strip_suffix(COMPRESSED).map_or((rest, false), |stamp| (stamp, true));
        let old = Self { stamp: stamp.to_owned(), compressed };
        old.at().map(|_| old)
    }

    fn name(&self) -> String {
        format!("{NAME}.{}{}", self.stamp, if self.compressed { COMPRESSED } else { "" })
    }

    /// When it was rotated.
    fn at(&self) -> Option<SystemTime> {
        let (date, time) = self.stamp.split_once('T')?;
        humantime::parse_rfc3339(&format!("{date}T{}", time.replace('-', ":"))).ok()
    }
}

fn on_shelf(state_dir: &Path) -> io::Result<Vec<Old>> {
    let names = fs::read_dir(state_dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| Old::parse(&name)).collect())
}

/// What is to be compressed, and what is to be removed since `keep` newer ones are there. One that was rotated just now may still be written to.
fn sort(mut all: Vec<Old>, keep: u32, now: SystemTime) -> (Vec<Old>, Vec<Old>) {
    all.sort_by(|a, b| b.cmp(a));
    all.dedup_by(|plain, compressed| {
        plain.stamp == compressed.stamp && {
            // A compressed one beside the plain one was not finished, or its plain one not removed: that is done anew.
            compressed.compressed = false;
            true
        }
    });
    let is_settled = |old: &Old| old.at().is_none_or(|at| now.duration_since(at).map_or(true, |age| age >= SETTLES_IN));
    let surplus = all.split_off(all.len().min(keep as usize));
    let left = |old: &Old| !old.compressed && is_settled(old);
    (all.into_iter().filter(left).collect(), surplus.into_iter().filter(is_settled).collect())
}

/// Puts a compressed file in the place of a log. One at a time on this host, also where two agents follow each other: the file itself is the lock.
fn compress(path: &Path) -> io::Result<()> {
    let no_links = OFlags::NOFOLLOW.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(no_links).open(path)?;
    if flock(&log, FlockOperation::NonBlockingLockExclusive).is_err() || log.metadata()?.nlink() == 0 {
        return Ok(());
    }
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (new, compressed) = (with(".zst.new"), with(COMPRESSED));
    let mut done = || -> io::Result<()> {
        // Of one who died over it.
        let _ = fs::remove_file(&new);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let mut zstd = zstd::Encoder::new(file, LEVEL)?;
        zstd.include_checksum(true)?;
        io::copy(&mut log, &mut zstd)?;
        zstd.finish()?.sync_all()?;
        fs::rename(&new, &compressed)?;
        fs::remove_file(path)
    };
    done().inspect_err(|_| _ = fs::remove_file(&new))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    fn now() -> SystemTime {
        at("2026-11-25T17:12:40Z")
    }

    fn policy() -> AccessLog {
        AccessLog { max_size: 100, max_age: 3_600, keep: 2 }
    }

    fn old(stamp: &str, compressed: bool) -> Old {
        Old { stamp: stamp.into(), compressed }
    }

    #[test]
    fn a_log_is_due_when_it_is_large_or_began_long_ago() {
        let due = |size, began: Option<&str>| is_due(&policy(), size, || began.map(at), now());
        assert_eq!([due(100, None), due(99, None), due(0, None)], [true, false, false]);
        assert!(due(1, Some("2026-11-25T16:12:40Z")) && !due(1, Some("2026-11-25T16:12:41Z")));
        assert!(!due(1, Some("2027-01-01T00:00:00Z")), "a clock that was set back");
        assert!(!due(0, Some("2026-11-25T16:12:40Z")), "nothing in it");
    }

    #[test]
    fn the_first_line_says_when_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        assert_eq!(first_time(&path), None);
        for (text, time) in [
            ("{\"time\":\"2026-11-25T17:12:40.000Z\",\"request_id\":\"x\"}\n", Some(now())),
            ("rest of a line\n{\"time\":\"2026-11-25T17:12:40.000Z\"}\n", None),
            ("{\"time\":\"soon\"}\n", None),
            ("", None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(first_time(&path), time, "{text}");
        }
    }

    #[test]
    fn only_what_was_rotated_here_is_on_the_shelf() {
        let names = ["access.log.2026-11-25T17-12-40Z", "access.log.2026-11-25T17-12-40Z.zst"];
        assert_eq!(names.map(|name| Old::parse(name).unwrap().name()), names);
        for name in
            ["access.log", "access.log.1", "access.log.", "access.log.2026-11-25T17-12-40Z.zst.new", "proxy.log.2026-11-25T17-12-40Z"]
        {
            assert_eq!(Old::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_newest_are_kept_and_what_may_still_be_written_is_left_alone() {
        let all = || {
            vec![
                old("2026-11-25T17-12-35Z", false),
                old("2026-11-22T00-00-00Z", true),
                old("2026-11-24T00-00-00Z", false),
                old("2026-11-23T00-00-00Z", true),
            ]
        };
        let (compress, remove) = sort(all(), 3, now());
        assert_eq!(compress, [old("2026-11-24T00-00-00Z", false)]);
        assert_eq!(remove, [old("2026-11-22T00-00-00Z", true)]);
        let (compress, remove) = sort(all(), 0, now());
        assert_eq!((compress.len(), remove.len()), (0, 3), "not the one of just now");
        let half_done = vec![old("2026-11-24T00-00-00Z", true), old("2026-11-24T00-00-00Z", false)];
        assert_eq!(sort(half_done, 3, now()), (vec![old("2026-11-24T00-00-00Z", false)], vec![]));
    }

    #[test]
    fn what_is_compressed_is_the_same_and_the_plain_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log.2026-11-25T17-12-40Z");
        let text = "{\"time\":\"2026-11-25T17:12:40Z\"}\n".repeat(10_000);
        fs::write(&path, &text).unwrap();
        fs::write(dir.path().join("access.log.2026-11-25T17-12-40Z.zst.new"), "half of an earlier one").unwrap();
        compress(&path).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["access.log.2026-11-25T17-12-40Z.zst"]);
        let file = dir.path().join(&names[0]);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(zstd::decode_all(File::open(&file).unwrap()).unwrap() == text.as_bytes());
    }

    #[test]
    fn a_log_that_another_agent_compresses_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log.2026-11-25T17-12-40Z");
        fs::write(&path, "text").unwrap();
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        compress(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[tokio::test]
    async fn a_file_is_handed_over_when_it_is_another_one_and_tidied_once_all_write_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (_policy, receiver) = watch::channel(policy());
        let mut shelf = Shelf::new(dir.path().to_owned(), receiver);
        let mut file = shelf.look(now(), true).unwrap();
        assert!(shelf.look(now(), true).is_none(), "it has that one");
        file.write_all(&[b'x'; 100]).unwrap();
        let later = now() + Duration::from_secs(60);
        let mut next = shelf.look(now(), true).unwrap();
        next.write_all(b"next").unwrap();
        let plain = dir.path().join("access.log.2026-11-25T17-12-40Z");
        assert_eq!((fs::read(&plain).unwrap().len(), fs::read(dir.path().join(NAME)).unwrap().as_slice()), (100, &b"next"[..]));
        shelf.answered();
        shelf.look(later, true);
        assert!(shelf.tidying.is_none(), "one of two was answered");
        shelf.answered();
        shelf.look(later, false);
        assert!(shelf.tidying.is_none(), "another proxy lives");
        shelf.look(later, true);
        shelf.tidying.take().unwrap().join().unwrap();
        assert!(!plain.exists() && dir.path().join("access.log.2026-11-25T17-12-40Z.zst").exists());
        fs::remove_file(dir.path().join(NAME)).unwrap();
        assert!(shelf.look(later, true).is_some(), "somebody took it away");
        shelf.another_proxy();
        assert!(shelf.look(later, true).is_some());
    }
}
