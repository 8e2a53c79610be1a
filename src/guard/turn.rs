//! Whose turn it is among one guard's writes to a tenant. The lane alone would do, but who waits for a flock with a deadline has to look again and
//! again; most often the lane is held for the copy after the write before, and that is done in less than the shortest pause between two looks.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

/// A tenant's turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Mutex<bool>,
    free: Condvar,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// Waits for the turn for at most `patience`; `None` where that was not enough. Blocks.
    pub(super) fn take(self: &Arc<Self>, patience: Duration) -> Option<Turn> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, waited) = self.free.wait_timeout_while(taken, patience, |taken| *taken).unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *taken = true;
        Some(Turn(Arc::clone(self)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_one_comes_when_the_turn_is_dropped_and_not_before() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(Duration::ZERO).unwrap();
        assert!(turns.take(Duration::from_millis(1)).is_none());
        let next = std::thread::spawn({
            let turns = Arc::clone(&turns);
            move || turns.take(Duration::from_secs(60)).is_some()
        });
        drop(first);
        assert!(next.join().unwrap());
        assert!(turns.take(Duration::ZERO).is_some(), "it was dropped at the end of the thread");
    }
}
