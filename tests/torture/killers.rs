//! Whoever kills instances: one thread a tenant, that waits for the marker of a write and strikes within the time that a write takes.

use std::{
    fs,
    io::Read as _,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Timespec, inotify},
    process::Signal,
};
use sq_agent::guard::GUARD_DIR;

use crate::{
    memory,
    model::Size,
    support::{
        dice::Dice,
        host::Host,
        processes::{ended_within, lives, signal},
    },
    tally::Tally,
};

/// A tenant, and what is done to it.
pub(crate) struct Victim {
    pub(crate) id: String,
    pub(crate) size: Size,
    user_dir: PathBuf,
    /// How often its instance was killed, counted when that is dead.
    pub(crate) kills: AtomicU64,
    /// It is dead, and waits for its next start.
    pub(crate) down: AtomicBool,
    /// How long a write takes, µs: the mean of the last ones.
    usual: AtomicU64,
}

impl Victim {
    pub(crate) fn new(host: &Host, id: &str, size: Size) -> Self {
        Self::at(id, size, host.state_dir().join("users").join(id))
    }

    pub(crate) fn at(id: &str, size: Size, user_dir: PathBuf) -> Self {
        let (kills, down, usual) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(2_000));
        Self { id: id.into(), size, user_dir, kills, down, usual }
    }

    pub(crate) fn took(&self, time: Duration) {
        let before = self.usual.load(Ordering::Relaxed);
        self.usual.store((before * 7 + u64::try_from(time.as_micros()).unwrap()) / 8, Ordering::Relaxed);
    }

    /// Some moment of a write, or soon after.
    pub(crate) fn some_time(&self, dice: &mut Dice) -> Duration {
        let usual = self.usual.load(Ordering::Relaxed);
        Duration::from_micros(dice.below(usize::try_from(usual * 5 / 4 + 1).unwrap()) as u64)
    }

    /// Its instance, if that lives: process ids come round within minutes, so its command line has to be that of this tenant's.
    fn pid(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.user_dir.join("sq.pid")).ok()?.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let dir = self.user_dir.to_str().unwrap();
        String::from_utf8_lossy(&line).contains(dir).then_some(pid)
    }

    fn marker(&self) -> PathBuf {
        self.user_dir.join(GUARD_DIR).join("marker")
    }

    fn is_marked(&self) -> bool {
        let mut first = [0];
        fs::File::open(self.marker()).is_ok_and(|mut marker| marker.read(&mut first).is_ok_and(|length| length == 1 && first != [0]))
    }

    /// Length of the first phext.
    pub(crate) fn file_length(&self) -> Option<u64> {
        fs::metadata(self.user_dir.join("phext-data/torture.phext")).map(|found| found.len()).ok()
    }

    /// What death left of the first phext, if it is not whole.
    pub(crate) fn note_what_is_left(&self, tally: &Tally) {
        match self.file_length() {
            Some(0) => _ = tally.empty.fetch_add(1, Ordering::Relaxed),
            Some(length) if length < self.size.0 as u64 => _ = tally.cut.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// Waits without a timer's coarseness.
pub(crate) fn pause(time: Duration) {
    let time = Timespec { tv_sec: time.as_secs().try_into().unwrap(), tv_nsec: time.subsec_nanos().into() };
    let _ = rustix::thread::nanosleep(&time);
}

/// Kills the instance of `victim` again and again.
pub(crate) fn stalk(victim: &Arc<Victim>, tally: &Arc<Tally>, seed: u64) -> JoinHandle<()> {
    let (victim, tally) = (Arc::clone(victim), Arc::clone(tally));
    std::thread::spawn(move || Stalker { markers: markers(&victim), victim, tally, dice: Dice(seed) }.stalk())
}

/// When the marker of a write is set or cleared.
fn markers(victim: &Victim) -> OwnedFd {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, victim.marker(), inotify::WatchFlags::MODIFY).unwrap();
    watch
}

struct Stalker {
    victim: Arc<Victim>,
    tally: Arc<Tally>,
    dice: Dice,
    markers: OwnedFd,
}

impl Stalker {
    fn stalk(mut self) {
        let mut last = None;
        while !self.tally.is_done() {
            let Some(pid) = self.victim.pid().filter(|&pid| Some(pid) != last) else {
                pause(Duration::from_millis(5));
                continue;
            };
            self.victim.down.store(false, Ordering::Relaxed);
            // Not always in mid-write: before a marker and after it there is something to break as well.
            if self.dice.below(10) < 8 {
                if !self.marker_within(Duration::from_secs(2)) {
                    continue;
                }
                pause(self.victim.some_time(&mut self.dice));
            } else {
                let some = self.dice.below(200);
                pause(Duration::from_millis(some as u64));
            }
            if self.victim.pid() == Some(pid) && self.kill(pid) {
                last = Some(pid);
                self.victim.note_what_is_left(&self.tally);
                self.victim.down.store(true, Ordering::Relaxed);
                self.victim.kills.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn forget_markers(&self) {
        let mut buffer = [0; 4_096];
        while rustix::io::read(&self.markers, &mut buffer).is_ok() {}
    }

    fn marker_within(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while !self.victim.is_marked() {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap(), tv_nsec: left.subsec_nanos().into() };
            if poll(&mut [PollFd::new(&self.markers, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
                return false;
            }
            self.forget_markers();
        }
        true
    }

    /// Returns once it is dead.
    fn kill(&mut self, pid: u32) -> bool {
        let how = match self.dice.below(100) {
            0..=59 => {
                signal(pid, Signal::KILL);
                "SIGKILL of an sq"
            }
            60..=69 => {
                signal(pid, Signal::TERM);
                "SIGTERM of an sq"
            }
            70..=84 => {
                // It may be about to end by itself.
                signal(pid, Signal::STOP);
                let some = self.dice.below(150);
                pause(Duration::from_millis(some as u64));
                signal(pid, Signal::KILL);
                "SIGSTOP, then SIGKILL, of an sq"
            }
            _ => match memory::starve(pid) {
                Some(true) => "OOM kill of an sq by its cgroup",
                // It needed nothing just then.
                Some(false) | None => {
                    signal(pid, Signal::KILL);
                    "SIGKILL of an sq"
                }
            },
        };
        let began = Instant::now();
        while lives(pid) && !ended_within(pid, Duration::from_secs(1)) {
            assert!(began.elapsed() < Duration::from_secs(20), "{pid} does not die of {how}");
        }
        self.tally.killed(how);
        true
    }
}
