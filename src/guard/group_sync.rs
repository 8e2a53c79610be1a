//! Group commit: those who wait for the disk at the same time wait for one flush.

use std::{
    io,
    sync::{Condvar, Mutex, PoisonError},
};

/// Flushes of everything, one at a time.
pub(super) struct GroupSync<T> {
    flush: fn(&T) -> io::Result<()>,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Flushes that have begun.
    begun: u64,
    /// Flushes that have ended.
    ended: u64,
    /// The last one that failed, and how.
    failed: Option<(u64, io::ErrorKind)>,
}

impl<T> GroupSync<T> {
    pub(super) fn new(flush: fn(&T) -> io::Result<()>) -> Self {
        Self { flush, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Returns once a flush that began after this call has ended. Who comes while one runs waits for the next, together with all others who do.
    pub(super) fn sync(&self, what: &T) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = state.begun + 1;
        while state.ended < mine {
            if state.begun > state.ended || state.begun >= mine {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            let number = state.begun;
            drop(state);
            let flushed = (self.flush)(what);
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.ended = number;
            if let Err(error) = flushed {
                state.failed = Some((number, error.kind()));
            }
            self.ended.notify_all();
        }
        // A flush that failed may have left anything unwritten, also what a later one finds clean.
        match state.failed {
            Some((number, kind)) if number >= mine => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc, Barrier,
            atomic::{AtomicU32, Ordering},
        },
        thread,
        time::Duration,
    };

    use super::*;

    #[test]
    fn those_who_come_while_a_flush_runs_share_the_next_one() {
        let flushes = Arc::new(AtomicU32::new(0));
        let group = GroupSync::new(|flushes: &Arc<AtomicU32>| {
            // A slow disk.
            #[allow(clippy::disallowed_methods, reason = "nothing is waited for")]
            thread::sleep(Duration::from_millis(50));
            flushes.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let ready = Barrier::new(20);
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    ready.wait();
                    let before = flushes.load(Ordering::SeqCst);
                    group.sync(&flushes).unwrap();
                    assert!(flushes.load(Ordering::SeqCst) > before);
                });
            }
        });
        assert!(flushes.load(Ordering::SeqCst) <= 4, "{flushes:?} flushes for 20");
    }

    #[test]
    fn a_flush_that_fails_fails_everybody_who_waited_for_it() {
        let group = GroupSync::new(|fails: &bool| if *fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) });
        assert_eq!(group.sync(&true).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(group.sync(&false).is_ok());
    }
}
