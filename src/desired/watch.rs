//! Notices that tenants.toml, or a file that it names, may have changed.
//!
//! Editors, git and Kubernetes replace files by rename or swap symlinks, so the *directories* in which the name can come
//! to mean something else are watched, never the file. Each notice only says "look": the loop compares content.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{EventKind, RecursiveMode, Watcher, event::AccessKind};

use super::debounce::Debounce;
use crate::digest::sha256;

/// How often it is checked that the watched directories are still those that the path leads through: a directory that
/// was moved away takes its watch along and sends no event under its old name.
const RECHECK: Duration = Duration::from_secs(2);
/// As the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Why a file cannot be watched. The agent can go on: its tick looks at the content anyway.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// inotify is not to be had.
    #[error(
        "changes to the desired state are noticed at the next tick only: {0}; raise fs.inotify.max_user_instances and max_user_watches"
    )]
    Notify(#[from] notify::Error),
    /// No thread.
    #[error("no thread for watching the desired state: {0}")]
    Thread(#[from] io::Error),
}

/// Watches until dropped.
#[derive(Debug)]
pub struct Watch {
    wake: mpsc::Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

enum Wake {
    Changed,
    /// The files to watch beside the first.
    Follow(Vec<PathBuf>),
    Stop,
}

impl Watch {
    /// Sends `()` on `notify` after each burst of changes that may concern `file`: 100 ms after the last, 1 s after the
    /// first at the latest. The file need not exist. A full channel loses nothing: a notice already waits in it.
    pub fn start(file: &Path, notify: tokio::sync::mpsc::Sender<()>) -> Result<Self, WatchError> {
        let file = std::path::absolute(file)?;
        let (wake, woken) = mpsc::channel();
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let watcher = notify::recommended_watcher(filter(wake.clone(), names.clone()))?;
        let mut eyes = Eyes { files: vec![file], watcher, names, watched: BTreeMap::new() };
        eyes.turn()?;
        let run = move || eyes.run(&woken, &notify);
        let thread = std::thread::Builder::new().name("watch".into()).spawn(run)?;
        Ok(Self { wake, thread: Some(thread) })
    }

    /// Watches these `files` beside that of the start, and no others from now on. What changed before it does so is noticed as well.
    pub fn follow(&self, files: Vec<PathBuf>) {
        // The thread is gone only when nobody takes notices any more.
        let _ = self.wake.send(Wake::Follow(files));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// SHA-256 of the content of `file`; `None` if it cannot be read.
pub fn fingerprint(file: &Path) -> Option<[u8; 32]> {
    fs::read(file).ok().map(|bytes| sha256(&bytes))
}

/// Lets through the events that concern one of `names`: the state directory may lie beside the file, full of writes.
fn filter(wake: mpsc::Sender<Wake>, names: Arc<Mutex<BTreeSet<PathBuf>>>) -> impl FnMut(notify::Result<notify::Event>) + Send + 'static {
    move |event| {
        let concerns = match &event {
            // Lost events (the kernel's queue ran over) could have been ours.
            Ok(event) if event.need_rescan() => true,
            // Our own reading is an event too.
            Ok(event) if matches!(event.kind, EventKind::Access(kind) if !matches!(kind, AccessKind::Close(_))) => false,
            Ok(event) => {
                let names = names.lock().unwrap_or_else(PoisonError::into_inner);
                event.paths.iter().any(|path| names.contains(path))
            }
            Err(_) => true,
        };
        if concerns {
            let _ = wake.send(Wake::Changed);
        }
    }
}

/// The watching thread's belongings.
struct Eyes {
    /// tenants.toml first.
    files: Vec<PathBuf>,
    watcher: notify::RecommendedWatcher,
    /// Paths whose events count.
    names: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Watched directories with the device and inode they had.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Eyes {
    fn run(mut self, woken: &mpsc::Receiver<Wake>, notify: &tokio::sync::mpsc::Sender<()>) {
        let mut debounce = Debounce::default();
        let mut recheck = Instant::now() + RECHECK;
        loop {
            let until = debounce.due().unwrap_or(recheck).min(recheck);
            match woken.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Wake::Changed) => debounce.changed(Instant::now()),
                Ok(Wake::Follow(files)) => {
                    self.files.truncate(1);
                    self.files.extend(files);
                    recheck = Instant::now();
                    // They may have changed since they were read, and no watch was on them.
                    debounce.changed(recheck);
                }
                Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            let due = debounce.fire(now);
            if due || now >= recheck {
                recheck = now + RECHECK;
                // Turned before the notice goes out: what changes after it has been looked at is seen by the new watches.
                let turned = self.turn().unwrap_or(false);
                if (due || turned) && matches!(notify.try_send(()), Err(tokio::sync::mpsc::error::TrySendError::Closed(()))) {
                    return;
                }
            }
        }
    }

    /// Watches the directories that the paths lead through now, and no others. Says whether that changed anything.
    fn turn(&mut self) -> Result<bool, notify::Error> {
        let points: BTreeSet<_> = self.files.iter().flat_map(|file| watch_points(file)).collect();
        let dirs: BTreeMap<PathBuf, (u64, u64)> =
            points.iter().filter_map(|(dir, _)| fs::metadata(dir).ok().map(|meta| (dir.clone(), (meta.dev(), meta.ino())))).collect();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) =
            points.into_iter().flat_map(|(dir, name)| [dir.join(name), dir]).collect();
        if dirs == self.watched {
            return Ok(false);
        }
        for gone in self.watched.iter().filter(|(dir, id)| dirs.get(*dir) != Some(id)) {
            // It fails where the directory is gone, and the watch with it.
            let _ = self.watcher.unwatch(gone.0);
        }
        let mut failed = None;
        let before = std::mem::take(&mut self.watched);
        for (dir, id) in dirs {
            match if before.get(&dir) == Some(&id) { Ok(()) } else { self.watcher.watch(&dir, RecursiveMode::NonRecursive) } {
                Ok(()) => _ = self.watched.insert(dir, id),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(true), Err)
    }
}

/// Each (directory, name in it) that decides what `file` means: its own name, each symlink on the way (`..data` of a
/// Kubernetes volume), or the first name that is missing.
fn watch_points(file: &Path) -> BTreeSet<(PathBuf, OsString)> {
    let mut points = BTreeSet::new();
    let mut at = PathBuf::from("/");
    // Names still to be walked, the next one last.
    let mut ahead: Vec<OsString> = names(file);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let link = fs::read_link(&next).ok().filter(|_| links < MAX_LINKS);
        if link.is_some() || ahead.is_empty() || fs::symlink_metadata(&next).is_err() {
            points.insert((at.clone(), name));
        }
        match link {
            Some(target) => {
                links += 1;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                ahead.extend(names(&target));
            }
            None if fs::symlink_metadata(&next).is_err() => break,
            None => at = next,
        }
    }
    points
}

/// The names of a path, last one first.
fn names(path: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests;
