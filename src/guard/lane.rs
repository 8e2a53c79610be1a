//! A tenant's lane, held across processes: `users/<id>/guard/lane` is locked by whoever writes, copies or puts back, and freed by any death.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use rustix::{
    fd::OwnedFd,
    fs::{FlockOperation, flock},
};

use super::directory::Directory;

/// Name of the locked file in the guard's directory.
const LANE: &str = "lane";
/// Between two tries: a write takes sq a few milliseconds.
const PAUSE: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(5));

/// The lane, while it is held; dropping it lets the next one in.
///
/// flock belongs to the open file, so it is freed when the last process that has it open is gone, and two holders in one process exclude
/// each other as well.
#[derive(Debug)]
pub struct Lane(#[allow(dead_code, reason = "held for its lock")] OwnedFd);

impl Lane {
    /// Takes the lane if nobody holds it.
    pub fn try_take(directory: &Directory) -> io::Result<Option<Self>> {
        let file = directory.open_lane(LANE)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the lane for at most `patience`; `None` where that was not enough. Blocks.
    pub fn take(directory: &Directory, patience: Duration) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        let mut pause = PAUSE.0;
        loop {
            if let Some(lane) = Self::try_take(directory)? {
                return Ok(Some(lane));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // flock has no deadline of its own.
            #[allow(clippy::disallowed_methods, reason = "the pause between two looks at a condition, with a deadline")]
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}
