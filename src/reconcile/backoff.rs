//! Back-off of a crashing instance: 1 s doubling to 60 s, +0..25 % jitter, never giving up.

use std::time::Duration;

use crate::observed::{BackOff, Moment};

/// Delay after the first crash.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay, before jitter.
const LONGEST: Duration = Duration::from_secs(60);
/// An instance that ran this long is stable: its next crash counts as the first.
const STABLE: Duration = Duration::from_secs(600);
/// So many crashes within [`STABLE`] are a crash loop, which is an alert.
pub const CRASH_LOOP: usize = 5;

/// Notes a crash at `now` of an instance that had run for `ran`, and sets when the next start may be tried.
///
/// `jitter` is random in 0..=1; it spreads many tenants that crashed together over a quarter of the delay.
/// Returns whether this crash made it a crash loop (true once at each fifth crash in ten minutes).
pub fn note_crash(back_off: &mut BackOff, now: Moment, ran: Duration, jitter: f64) -> bool {
    if ran >= STABLE {
        back_off.streak = 0;
    }
    back_off.streak = back_off.streak.saturating_add(1);
    let delay = FIRST.saturating_mul(1 << (back_off.streak - 1).min(6)).min(LONGEST);
    back_off.not_before = Some(now + delay.mul_f64(1.0 + 0.25 * jitter.clamp(0.0, 1.0)));
    back_off.recent.push_back(now);
    while back_off.recent.front().is_some_and(|&first| now.since(first) >= STABLE) || back_off.recent.len() > CRASH_LOOP {
        back_off.recent.pop_front();
    }
    let looping = back_off.recent.len() >= CRASH_LOOP;
    if looping {
        back_off.recent.clear();
    }
    looping
}

/// Forgets the past: the tenant's desired state changed, or somebody asked for a restart.
pub fn reset(back_off: &mut BackOff) {
    *back_off = BackOff::default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(jitter: f64, crashes: usize) -> Vec<u128> {
        let mut back_off = BackOff::default();
        let mut now = Moment::from_millis(0);
        (0..crashes)
            .map(|_| {
                note_crash(&mut back_off, now, Duration::ZERO, jitter);
                let next = back_off.not_before.unwrap();
                let delay = now.until(next).as_millis();
                now = next;
                delay
            })
            .collect()
    }

    #[test]
    fn delays_double_from_one_second_to_sixty_and_stay_there() {
        assert_eq!(delays(0.0, 9), [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn jitter_adds_at_most_a_quarter() {
        assert_eq!(delays(1.0, 2), [1_250, 2_500]);
        assert_eq!(delays(7.0, 1), [1_250]);
    }

    #[test]
    fn ten_stable_minutes_make_the_next_crash_the_first_again() {
        let mut back_off = BackOff { streak: 6, ..BackOff::default() };
        let now = Moment::from_millis(5_000_000);
        note_crash(&mut back_off, now, Duration::from_secs(600), 0.0);
        assert_eq!(back_off.not_before, Some(now + FIRST));
    }

    #[test]
    fn the_fifth_crash_in_ten_minutes_is_a_loop_and_is_said_once() {
        let mut back_off = BackOff::default();
        let said: Vec<bool> = (0..10).map(|i| note_crash(&mut back_off, Moment::from_millis(i * 1_000), Duration::ZERO, 0.0)).collect();
        assert_eq!(said.iter().positions(), [4, 9]);
    }

    #[test]
    fn five_crashes_spread_over_an_hour_are_no_loop() {
        let mut back_off = BackOff::default();
        assert!((0..5).all(|i| !note_crash(&mut back_off, Moment::from_millis(i * 720_000), Duration::from_secs(700), 0.0)));
    }

    trait Positions {
        fn positions(self) -> Vec<usize>;
    }
    impl<'a, I: Iterator<Item = &'a bool>> Positions for I {
        fn positions(self) -> Vec<usize> {
            self.enumerate().filter_map(|(i, &hit)| hit.then_some(i)).collect()
        }
    }
}
