//! The rate limit: the generic cell rate algorithm (ITU-T I.371) as a function of one number, the theoretical arrival time.
//!
//! "100/m with burst 20": an interval of 600 ms; 21 requests at once, then one each 600 ms.

/// Whether a request may go on, and what to tell its sender (`RateLimit`, `Retry-After`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Let it through.
    Admitted {
        /// Requests that would still be admitted right now; `u32::MAX` without a rate limit.
        remaining: u32,
        /// Until the whole burst is free again, nanoseconds.
        reset_ns: u64,
    },
    /// Answer 429.
    Refused {
        /// Until a request will be admitted again, nanoseconds, at least 1.
        retry_after_ns: u64,
        /// Until the whole burst is free again, nanoseconds.
        reset_ns: u64,
    },
}

/// Decides on one request. `arrival_ns` is the theoretical arrival time kept for the tenant (0 at first) and `now_ns` the time
/// on the same clock; `interval_ns` 0 is no limit. Returns the decision and the arrival time to keep.
///
/// An arrival time further ahead than this limit could have brought it (the limit was stricter a moment ago, or the word is rubbish) counts
/// as the furthest that it could: nobody is locked out for longer than the limit in force says.
pub fn decide(arrival_ns: u64, now_ns: u64, interval_ns: u64, burst: u32) -> (Admission, u64) {
    if interval_ns == 0 {
        return (Admission::Admitted { remaining: u32::MAX, reset_ns: 0 }, arrival_ns);
    }
    let ahead = interval_ns.saturating_mul(u64::from(burst));
    let furthest = now_ns.saturating_add(ahead).saturating_add(interval_ns);
    let arrival = arrival_ns.clamp(now_ns, furthest);
    let wait = (arrival - now_ns).saturating_sub(ahead);
    if wait > 0 {
        return (Admission::Refused { retry_after_ns: wait, reset_ns: arrival - now_ns }, arrival);
    }
    let next = arrival.saturating_add(interval_ns);
    let used = next - now_ns;
    let remaining = ahead.checked_sub(used).map_or(0, |free| free / interval_ns + 1);
    (Admission::Admitted { remaining: u32::try_from(remaining).unwrap_or(u32::MAX), reset_ns: used }, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: u64 = 600_000_000;

    /// Sends `times` requests at one moment; how many were admitted.
    fn send(arrival: &mut u64, now: u64, times: u32) -> u32 {
        let mut admitted = 0;
        for _ in 0..times {
            let (admission, next) = decide(*arrival, now, INTERVAL, 20);
            *arrival = next;
            admitted += u32::from(matches!(admission, Admission::Admitted { .. }));
        }
        admitted
    }

    #[test]
    fn a_hundred_a_minute_with_burst_20_admits_exactly_21_at_once_then_one_each_600_ms() {
        let (mut arrival, start) = (0, 5_000_000_000_000);
        assert_eq!(send(&mut arrival, start, 100), 21);
        for step in 1..=50 {
            assert_eq!(send(&mut arrival, start + step * INTERVAL - 1, 10), 0);
            assert_eq!(send(&mut arrival, start + step * INTERVAL, 10), 1);
        }
    }

    #[test]
    fn the_answer_says_how_many_remain_and_when_to_come_back() {
        let (first, arrival) = decide(0, 1_000, INTERVAL, 20);
        assert_eq!(first, Admission::Admitted { remaining: 20, reset_ns: INTERVAL });
        let mut arrival = arrival;
        assert_eq!(send(&mut arrival, 1_000, 19), 19);
        let (last, arrival) = decide(arrival, 1_000, INTERVAL, 20);
        assert_eq!(last, Admission::Admitted { remaining: 0, reset_ns: 21 * INTERVAL });
        let (refused, _) = decide(arrival, 1_400, INTERVAL, 20);
        assert_eq!(refused, Admission::Refused { retry_after_ns: INTERVAL - 400, reset_ns: 21 * INTERVAL - 400 });
    }

    #[test]
    fn no_rate_admits_all_and_keeps_the_arrival_time() {
        assert_eq!(decide(77, 1, 0, 0), (Admission::Admitted { remaining: u32::MAX, reset_ns: 0 }, 77));
    }

    #[test]
    fn rubbish_in_the_page_locks_nobody_out_for_longer_than_one_interval() {
        let (refused, arrival) = decide(u64::MAX, 1_000, INTERVAL, 20);
        assert_eq!(refused, Admission::Refused { retry_after_ns: INTERVAL, reset_ns: 21 * INTERVAL });
        assert!(matches!(decide(arrival, 1_000 + INTERVAL, INTERVAL, 20).0, Admission::Admitted { .. }));
    }

    proptest! {
        #[test]
        fn any_numbers_give_an_answer_and_a_refused_one_is_admitted_at_the_time_it_was_told(
            arrival: u64, now in 0..u64::MAX / 4, interval in 0..u64::MAX / 8, burst in 0..4_u32
        ) {
            let (admission, next) = decide(arrival, now, interval, burst);
            if let Admission::Refused { retry_after_ns, reset_ns } = admission {
                prop_assert!(retry_after_ns >= 1 && retry_after_ns <= reset_ns);
                let early = decide(next, now + retry_after_ns - 1, interval, burst).0;
                let then = decide(next, now + retry_after_ns, interval, burst).0;
                prop_assert!(matches!(early, Admission::Refused { .. }), "{early:?}");
                prop_assert!(matches!(then, Admission::Admitted { .. }), "{then:?}");
            }
        }

        #[test]
        fn no_window_admits_more_than_the_burst_and_the_rate(gaps in prop::collection::vec(0..2 * INTERVAL, 1..200)) {
            let (mut arrival, mut now, start, mut admitted) = (0, 1_000_u64, 1_000_u64, 0_u64);
            for gap in gaps {
                now += gap;
                admitted += u64::from(send(&mut arrival, now, 1));
                prop_assert!(admitted <= 21 + (now - start) / INTERVAL);
            }
        }

        #[test]
        fn extreme_numbers_never_panic(arrival: u64, now: u64, interval: u64, burst: u32) {
            decide(arrival, now, interval, burst);
        }
    }
}
