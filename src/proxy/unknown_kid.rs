//! A token whose kid no key has: perhaps its issuer signs with a new one. The agent is asked to fetch the keys anew, and the request waits a moment.
//!
//! It waits, since the very first request by a new key would be refused otherwise, and a client that is told 401 throws its token away. What a stranger
//! can make of it is bounded: one question in 30 s, and so many requests that wait a second and hold nothing but their connection. Who uses the
//! question up only keeps the keys fresh.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    clock,
    live::{Current, Live},
};

/// Between two questions. The agent holds to the same.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How long a request waits for other keys.
const WAIT: Duration = Duration::from_secs(1);
/// How many wait at once.
const WAITERS: usize = 64;

/// See the file's description.
pub(crate) struct UnknownKids {
    /// When the agent was last asked: CLOCK_MONOTONIC, nanoseconds; 0 is never.
    asked_ns: AtomicU64,
    places: Semaphore,
    /// To the agent; full means that it is being asked.
    agent: mpsc::Sender<()>,
}

/// What one request may do about an unknown kid.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Ask, and wait.
    Ask,
    /// Somebody asked just now: wait for what comes of it.
    Wait,
    /// It was asked not long ago, and the kid is unknown all the same.
    Refuse,
}

fn turn(asked_ns: u64, now_ns: u64) -> Turn {
    let since = Duration::from_nanos(now_ns.saturating_sub(asked_ns));
    match asked_ns {
        0 => Turn::Ask,
        _ if since >= ASK_AGAIN => Turn::Ask,
        _ if since < WAIT => Turn::Wait,
        _ => Turn::Refuse,
    }
}

impl UnknownKids {
    pub(crate) fn new(agent: mpsc::Sender<()>) -> Self {
        Self { asked_ns: AtomicU64::new(0), places: Semaphore::new(WAITERS), agent }
    }

    /// Whether other settings than `tried` are in force by now, or within a second. `current` has them.
    pub(crate) async fn renewed(&self, current: &Current, tried: &Arc<Live>) -> bool {
        let Ok(_place) = self.places.try_acquire() else { return false };
        let mut changes = current.changes();
        if !Arc::ptr_eq(&current.get(), tried) {
            return true;
        }
        let (asked, now) = (self.asked_ns.load(Relaxed), clock::monotonic_ns());
        match turn(asked, now) {
            // Of several at once, one asks.
            Turn::Ask if self.asked_ns.compare_exchange(asked, now, Relaxed, Relaxed).is_ok() => _ = self.agent.try_send(()),
            Turn::Ask | Turn::Wait => {}
            Turn::Refuse => return false,
        }
        matches!(timeout(WAIT, changes.changed()).await, Ok(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_asked_once_in_thirty_seconds_and_the_answer_waited_for_one() {
        let at = |seconds: f64| 1 + (seconds * 1e9) as u64;
        assert_eq!(turn(0, at(0.0)), Turn::Ask);
        assert_eq!(turn(at(100.0), at(100.5)), Turn::Wait);
        assert_eq!(turn(at(100.0), at(101.0)), Turn::Refuse);
        assert_eq!(turn(at(100.0), at(129.9)), Turn::Refuse);
        assert_eq!(turn(at(100.0), at(130.0)), Turn::Ask);
    }
}
