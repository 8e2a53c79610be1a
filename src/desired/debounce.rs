//! When a run of changes is over: quiet for a while, or waited for long enough.

use std::time::{Duration, Instant};

/// How long no change may follow before a notice goes out: an editor's save or a git checkout is a burst of events.
pub const QUIET: Duration = Duration::from_millis(100);
/// How long a notice may be held back by changes that never stop.
pub const LONGEST: Duration = Duration::from_secs(1);

/// Turns a burst of changes into one notice. Time is passed in.
#[derive(Debug, Default)]
pub struct Debounce {
    /// First and last change since the last notice.
    burst: Option<(Instant, Instant)>,
}

impl Debounce {
    /// Something changed at `now`.
    pub fn changed(&mut self, now: Instant) {
        let first = self.burst.map_or(now, |(first, _)| first);
        self.burst = Some((first, now));
    }

    /// When the notice is due; `None` while nothing has changed.
    pub fn due(&self) -> Option<Instant> {
        self.burst.map(|(first, last)| (last + QUIET).min(first + LONGEST))
    }

    /// Whether to send the notice at `now`; if so, the burst is over.
    pub fn fire(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.burst = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The notices, in milliseconds, for changes at these milliseconds.
    fn notices(changes: &[u64]) -> Vec<u64> {
        let start = Instant::now();
        let (mut debounce, mut sent) = (Debounce::default(), Vec::new());
        for ms in 0..5_000 {
            let now = start + Duration::from_millis(ms);
            if changes.contains(&ms) {
                debounce.changed(now);
            }
            if debounce.fire(now) {
                sent.push(ms);
            }
        }
        sent
    }

    #[test]
    fn a_burst_is_one_notice_after_the_quiet() {
        assert!(notices(&[]).is_empty());
        assert_eq!(notices(&[10]), [110]);
        assert_eq!(notices(&[10, 60, 100]), [200]);
        assert_eq!(notices(&[10, 200]), [110, 300]);
    }

    #[test]
    fn fifty_changes_a_second_without_end_are_a_notice_a_second() {
        let storm: Vec<u64> = (0..150).map(|i| i * 20).collect();
        assert_eq!(notices(&storm), [1_000, 2_020, 3_040]);
    }
}
