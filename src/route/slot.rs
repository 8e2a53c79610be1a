//! What the proxy counts for one tenant: one cache line of atomics, written by every proxy thread and read by the agent.
//!
//! Each word stands for itself (no reader needs two of them to agree), so every access is relaxed. The requests in flight are
//! held against the route table besides, which takes fences, and carry the claim to write: see [`SlotActivity::enter`] and `flight`.

use super::atomics::{AtomicU64, Ordering::Relaxed};
use super::flight::{self, Side};
use super::gcra::{self, Admission};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// The low half of a word.
const LOW: u64 = 0xffff_ffff;

/// One tenant's slot.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SlotActivity {
    words: [AtomicU64; 8],
}

/// Word 0: GCRA theoretical arrival time, CLOCK_MONOTONIC, nanoseconds.
const ARRIVAL: usize = 0;
/// Word 1: requests in flight and who writes, side B | side A; see `flight`. Its place never moves: the agent looks at it in the page of an
/// older version too.
pub(super) const IN_FLIGHT: usize = 1;
/// Word 2: last request | last answer, each seconds of CLOCK_MONOTONIC + 1; 0 is never.
const LAST: usize = 2;
/// Word 3: requests.
const REQUESTS: usize = 3;
/// Word 4: writes | errors. They share a word, so that a proxy of an earlier version, which counts errors alone, counts right in the same page.
const ERRORS: usize = 4;
/// One write, in that word.
const A_WRITE: u64 = 1 << 32;
/// Word 5: bytes of request bodies.
const BYTES_IN: usize = 5;
/// Word 6: bytes of answer bodies.
const BYTES_OUT: usize = 6;
/// Word 7: UTC day, days since 1970 | requests that were let in on it.
const TODAY: usize = 7;

/// The values of a slot. They were read one after another, so they may be a request apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotSnapshot {
    /// GCRA theoretical arrival time, CLOCK_MONOTONIC nanoseconds.
    pub arrival_ns: u64,
    /// Requests in flight through both proxies.
    pub in_flight: u32,
    /// Last request, CLOCK_MONOTONIC seconds.
    pub last_request: Option<u32>,
    /// Last answer from sq, CLOCK_MONOTONIC seconds.
    pub last_answer: Option<u32>,
    /// Requests.
    pub requests: u64,
    /// Answers 5xx that the proxy made, and connections to sq that broke.
    pub errors: u64,
    /// Requests that may write, and that sq answered with success.
    pub writes: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of answer bodies.
    pub bytes_out: u64,
    /// Days since 1970 (UTC) of the last request that was let in.
    pub day: u32,
    /// Requests that were let in on that day.
    pub requests_that_day: u32,
}

impl SlotActivity {
    /// Rate limit: may one more request go on? `now_ns` is CLOCK_MONOTONIC. See [`gcra::decide`].
    ///
    /// All threads of both proxies decide on the same word, so together they admit no more than one alone would.
    pub fn admit(&self, now_ns: u64, interval_ns: u64, burst: u32) -> Admission {
        let word = &self.words[ARRIVAL];
        let mut arrival = word.load(Relaxed);
        loop {
            let (admission, next) = gcra::decide(arrival, now_ns, interval_ns, burst);
            if next == arrival || matches!(admission, Admission::Refused { .. }) {
                return admission;
            }
            match word.compare_exchange_weak(arrival, next, Relaxed, Relaxed) {
                Ok(_) => return admission,
                Err(newer) => arrival = newer,
            }
        }
    }

    /// A request begins. Returns how many are in flight now, this one included.
    ///
    /// Read the row again after it, and go on only if it still says `ready`: then either the agent, which publishes `draining`
    /// before it looks at [`Self::in_flight`], sees this request, or this request sees `draining`. The fences here and there
    /// rule out that both miss each other.
    pub fn enter(&self, side: Side) -> u32 {
        flight::enter(&self.words[IN_FLIGHT], side)
    }

    /// A request that writes begins, if the other proxy is not writing; else nothing changes. All that [`Self::enter`] says holds here too.
    ///
    /// A proxy lets its own writes to a tenant begin one at a time; this makes it so for two proxies side by side.
    #[must_use]
    pub fn enter_writing(&self, side: Side) -> bool {
        flight::enter_writing(&self.words[IN_FLIGHT], side)
    }

    /// A request has ended. One too many does nothing.
    pub fn leave(&self, side: Side) {
        flight::leave(&self.words[IN_FLIGHT], side);
    }

    /// A request that wrote has ended.
    pub fn leave_writing(&self, side: Side) {
        flight::leave_writing(&self.words[IN_FLIGHT], side);
    }

    /// Requests in flight through both proxies; see [`Self::enter`].
    pub fn in_flight(&self) -> u32 {
        flight::in_flight(&self.words[IN_FLIGHT])
    }

    /// A proxy died: none of its requests is in flight any more, and it writes no more.
    pub fn clear_side(&self, side: Side) {
        flight::clear_side(&self.words[IN_FLIGHT], side);
    }

    /// Counts a request, let in or not. `now_ns`: CLOCK_MONOTONIC.
    pub fn note_request(&self, now_ns: u64) {
        self.words[REQUESTS].fetch_add(1, Relaxed);
        self.update(LAST, |word| word & LOW | (word >> 32).max(stamp(now_ns)) << 32);
    }

    /// Counts a request that is let in on `day` (see [`day`]), unless `quota` were let in on it already; 0 is no quota. Returns how many
    /// that were with this one, or `None` where it is one too many, which is not counted.
    ///
    /// All threads of both proxies count in the same word, so together they let in no more than one alone would.
    pub fn admit_today(&self, day: u32, quota: u32) -> Option<u32> {
        let word = &self.words[TODAY];
        let mut old = word.load(Relaxed);
        loop {
            let (stands, count) = on(old, day);
            if quota > 0 && count >= quota {
                return None;
            }
            let new = count.saturating_add(1);
            match word.compare_exchange_weak(old, u64::from(stands) << 32 | u64::from(new), Relaxed, Relaxed) {
                Ok(_) => return Some(new),
                Err(newer) => old = newer,
            }
        }
    }

    /// How many requests were let in on `day` so far.
    pub fn admitted_on(&self, day: u32) -> u32 {
        on(self.words[TODAY].load(Relaxed), day).1
    }

    /// sq answered. `now_ns`: CLOCK_MONOTONIC.
    pub fn note_answer(&self, now_ns: u64) {
        self.update(LAST, |word| word & !LOW | (word & LOW).max(stamp(now_ns)));
    }

    /// The proxy made an answer 5xx, or the connection to sq broke.
    pub fn note_error(&self) {
        self.words[ERRORS].fetch_add(1, Relaxed);
    }

    /// A request that may write was answered with success. Beyond 2^32 the count begins anew.
    pub fn note_write(&self) {
        self.words[ERRORS].fetch_add(A_WRITE, Relaxed);
    }

    /// Counts bytes of a request body.
    pub fn add_bytes_in(&self, bytes: u64) {
        self.words[BYTES_IN].fetch_add(bytes, Relaxed);
    }

    /// Counts bytes of an answer body.
    pub fn add_bytes_out(&self, bytes: u64) {
        self.words[BYTES_OUT].fetch_add(bytes, Relaxed);
    }

    /// All values, for the agent.
    pub fn snapshot(&self) -> SlotSnapshot {
        let words: [u64; 8] = std::array::from_fn(|i| self.words[i].load(Relaxed));
        let [arrival_ns, flights, last, requests, writes_errors, bytes_in, bytes_out, today] = words;
        SlotSnapshot {
            arrival_ns,
            in_flight: flight::total(flights),
            last_request: ((last >> 32) as u32).checked_sub(1),
            last_answer: (last as u32).checked_sub(1),
            requests,
            errors: writes_errors & LOW,
            writes: writes_errors >> 32,
            bytes_in,
            bytes_out,
            day: (today >> 32) as u32,
            requests_that_day: today as u32,
        }
    }

    /// Forgets everything: the slot is given to another tenant.
    pub fn reset(&self) {
        self.words.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Returns the word as it was before `step`, a function of it that may run several times.
    fn update(&self, word: usize, step: impl Fn(u64) -> u64) -> u64 {
        let word = &self.words[word];
        let mut old = word.load(Relaxed);
        loop {
            match word.compare_exchange_weak(old, step(old), Relaxed, Relaxed) {
                Ok(old) => return old,
                Err(newer) => old = newer,
            }
        }
    }
}

/// Seconds + 1, so that 0 is never; enough for 136 years.
fn stamp(now_ns: u64) -> u64 {
    (now_ns / SECOND + 1).min(LOW)
}

/// The day on which a request of `day` counts, and how many were let in on it.
///
/// A request that was stamped just before midnight and counted just after belongs to the new day; a day much older than the one that
/// stands here means that the clock was wrong then.
fn on(word: u64, day: u32) -> (u32, u32) {
    let (stands, count) = ((word >> 32) as u32, word as u32);
    if day == stands || day.checked_add(1) == Some(stands) { (stands, count) } else { (day, 0) }
}

/// The day of `unix` (seconds since 1970), days since 1970, UTC: by which the proxy counts and the agent asks.
pub fn day(unix: u64) -> u32 {
    u32::try_from(unix / 86_400).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> SlotActivity {
        SlotActivity { words: Default::default() }
    }

    #[test]
    fn a_slot_is_one_cache_line() {
        assert_eq!((size_of::<SlotActivity>(), align_of::<SlotActivity>()), (64, 64));
    }

    #[test]
    fn each_side_counts_its_own_requests_in_flight() {
        let slot = slot();
        assert_eq!((slot.enter(Side::A), slot.enter(Side::B), slot.enter(Side::B)), (1, 2, 3));
        slot.leave(Side::A);
        slot.leave(Side::A);
        assert_eq!(slot.in_flight(), 2, "one leave too many takes nothing from the other side");
        slot.enter(Side::A);
        slot.clear_side(Side::B);
        assert_eq!(slot.in_flight(), 1);
        slot.leave(Side::B);
        slot.clear_side(Side::A);
        assert_eq!(slot.in_flight(), 0);
    }

    #[test]
    fn a_full_half_neither_overflows_nor_reaches_the_claim_or_the_other_half() {
        let slot = slot();
        let full = 0x7fff_ffff;
        slot.words[IN_FLIGHT].store(full, Relaxed);
        assert_eq!(slot.enter(Side::A), full as u32);
        assert_eq!(slot.enter(Side::B), full as u32 + 1);
        assert_eq!(slot.words[IN_FLIGHT].load(Relaxed), 1 << 32 | full);
        slot.clear_side(Side::A);
        assert_eq!(slot.in_flight(), 1);
    }

    #[test]
    fn only_one_side_writes_at_a_time_and_the_claim_counts_as_no_request() {
        let slot = slot();
        slot.enter(Side::B);
        assert!(slot.enter_writing(Side::A) && !slot.enter_writing(Side::B));
        assert_eq!((slot.in_flight(), slot.snapshot().in_flight), (2, 2), "a refused write is not counted");
        slot.enter(Side::A);
        slot.leave(Side::A);
        assert!(!slot.enter_writing(Side::B), "the end of a read does not end the write");
        slot.leave_writing(Side::A);
        assert!(slot.enter_writing(Side::B) && !slot.enter_writing(Side::A));
        slot.leave_writing(Side::B);
        slot.leave(Side::B);
        assert_eq!(slot.words[IN_FLIGHT].load(Relaxed), 0);
    }

    #[test]
    fn the_claim_of_a_side_that_died_is_freed_with_its_requests() {
        let slot = slot();
        assert!(slot.enter_writing(Side::B));
        slot.clear_side(Side::A);
        assert!(!slot.enter_writing(Side::A), "the living side keeps what it has");
        slot.clear_side(Side::B);
        assert!(slot.enter_writing(Side::A));
        assert_eq!(slot.in_flight(), 1);
    }

    #[test]
    fn four_threads_together_are_admitted_no_more_than_one_alone() {
        let slot = slot();
        let admitted = |_| {
            let admissions = (0..100).map(|_| slot.admit(7_000_000_000, 600_000_000, 20));
            admissions.filter(|admission| matches!(admission, Admission::Admitted { .. })).count()
        };
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || admitted(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(total, 21);
        assert!(matches!(slot.admit(7_600_000_000, 600_000_000, 20), Admission::Admitted { remaining: 0, .. }));
        assert!(matches!(slot.admit(7_600_000_000, 600_000_000, 20), Admission::Refused { retry_after_ns: 600_000_000, .. }));
    }

    #[test]
    fn four_threads_lose_no_count() {
        let slot = slot();
        std::thread::scope(|scope| {
            for side in [Side::A, Side::A, Side::B, Side::B] {
                let slot = &slot;
                scope.spawn(move || {
                    for n in 1..=1_000 {
                        slot.enter(side);
                        slot.note_request(n * SECOND);
                        slot.admit_today(20_000, 0);
                        slot.note_answer(n * SECOND);
                        slot.leave(side);
                    }
                });
            }
        });
        let seen = slot.snapshot();
        assert_eq!((seen.in_flight, seen.requests, seen.requests_that_day), (0, 4_000, 4_000));
        assert_eq!((seen.last_request, seen.last_answer), (Some(1_000), Some(1_000)));
    }

    #[test]
    fn the_snapshot_says_what_was_noted_and_reset_forgets_it() {
        let slot = slot();
        assert_eq!(slot.snapshot(), SlotSnapshot::default());
        slot.note_request(0);
        assert_eq!(slot.admit_today(20_000, 0), Some(1));
        assert_eq!(slot.snapshot().last_request, Some(0), "the first second after boot is not never");
        assert_eq!(slot.snapshot().last_answer, None);
        slot.note_answer(9 * SECOND + 1);
        slot.note_request(5 * SECOND);
        slot.note_request(4 * SECOND);
        slot.admit_today(20_000, 0);
        slot.note_error();
        slot.note_write();
        slot.note_write();
        slot.add_bytes_in(10);
        slot.add_bytes_out(1 << 40);
        slot.enter(Side::B);
        let expected = SlotSnapshot {
            arrival_ns: 0,
            in_flight: 1,
            last_request: Some(5),
            last_answer: Some(9),
            requests: 3,
            errors: 1,
            writes: 2,
            bytes_in: 10,
            bytes_out: 1 << 40,
            day: 20_000,
            requests_that_day: 2,
        };
        assert_eq!(slot.snapshot(), expected);
        slot.reset();
        assert_eq!(slot.snapshot(), SlotSnapshot::default());
    }

    #[test]
    fn a_new_day_counts_from_one_and_a_late_request_of_yesterday_counts_for_today() {
        let slot = slot();
        let count = |day| slot.admit_today(day, 0).unwrap();
        assert_eq!([20_000, 20_000, 20_001, 20_000, 20_001, 20_002].map(count), [1, 2, 1, 2, 3, 1]);
        // The clock was years ahead and is right again.
        assert_eq!([30_000, 20_002, 20_002].map(count), [1, 1, 2]);
        assert_eq!([u32::MAX, u32::MAX, 0].map(count), [1, 2, 1]);
    }

    #[test]
    fn four_threads_let_in_as_many_as_the_quota_of_a_day_and_the_next_day_as_many_again() {
        let slot = slot();
        for day in [20_000, 20_001] {
            let admitted = |_| (0..100).filter(|_| slot.admit_today(day, 150).is_some()).count();
            let total: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || admitted(n))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!((total, slot.admitted_on(day)), (150, 150), "who is refused is not counted");
        }
        assert_eq!(slot.admit_today(20_000, 150), None, "a late request of yesterday counts for today");
        assert_eq!(slot.admit_today(20_001, 200), Some(151), "a quota that was raised holds at once");
        assert_eq!((slot.admitted_on(20_002), slot.admit_today(20_002, 150)), (0, Some(1)));
    }
}
