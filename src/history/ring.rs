//! What one tenant took of memory and was asked, by the quarter of an hour over a day. Pure; it begins anew with each agent.

use std::collections::VecDeque;

use super::sample::COARSE;

/// Quarters that are kept: with 8 bytes each, 10,000 tenants take 8 MB.
pub const QUARTERS: usize = 96;

/// A quarter of an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its begin, seconds since 1970.
    pub at: u64,
    /// The most memory of the instance that was seen in it (PSS), bytes; none: none was seen.
    pub memory: Option<u64>,
    /// Requests that were counted in it.
    pub requests: u64,
}

/// See the file's description.
#[derive(Debug, Clone)]
pub struct Ring {
    /// The number of the last quarter.
    last: u64,
    /// KiB and requests of each, the last one at the end.
    quarters: VecDeque<(u32, u32)>,
}

impl Ring {
    /// One that begins at `now`, seconds since 1970.
    pub fn new(now: u64) -> Self {
        let mut quarters = VecDeque::with_capacity(QUARTERS);
        quarters.push_back((0, 0));
        Self { last: quarter(now), quarters }
    }

    /// The quarter of `now`. Where the clock was set back, the last one goes on.
    fn current(&mut self, now: u64) -> Option<&mut (u32, u32)> {
        let over = quarter(now).saturating_sub(self.last);
        for _ in 0..over.min(QUARTERS as u64) {
            if self.quarters.len() == QUARTERS {
                self.quarters.pop_front();
            }
            self.quarters.push_back((0, 0));
        }
        self.last += over;
        self.quarters.back_mut()
    }

    /// The instance takes so much memory, bytes.
    pub fn note_memory(&mut self, now: u64, bytes: u64) {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        if let Some((most, _)) = self.current(now) {
            *most = kib.max(*most);
        }
    }

    /// So many more requests were counted.
    pub fn note_requests(&mut self, now: u64, more: u64) {
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if let Some((_, requests)) = self.current(now) {
            *requests = requests.saturating_add(more);
        }
    }

    /// The quarters until `now`, the oldest first.
    pub fn points(&self, now: u64) -> Vec<Point> {
        let mut ring = self.clone();
        ring.current(now);
        let first = (ring.last + 1).saturating_sub(ring.quarters.len() as u64);
        let point = |(number, (kib, requests)): (u64, &(u32, u32))| Point {
            at: number * u64::from(COARSE),
            memory: (*kib > 0).then(|| u64::from(*kib) << 10),
            requests: (*requests).into(),
        };
        (first..).zip(&ring.quarters).map(point).collect()
    }
}

fn quarter(now: u64) -> u64 {
    now / u64::from(COARSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 2_000_000 * 900;

    #[test]
    fn a_quarter_has_its_peak_and_its_sum_and_one_of_which_nothing_is_known_says_so() {
        let mut ring = Ring::new(START);
        for (at, bytes) in [(0, 2_048), (20, 8_192), (40, 4_096)] {
            ring.note_memory(START + at, bytes);
            ring.note_requests(START + at, 5);
        }
        ring.note_requests(START + 1_800, 7);
        let wanted = [(0, Some(8_192), 15), (900, None, 0), (1_800, None, 7)];
        let points = |now| ring.points(now).into_iter().map(|point| (point.at - START, point.memory, point.requests)).collect::<Vec<_>>();
        assert_eq!(points(START + 1_800), wanted);
        assert_eq!(points(START + 2_700).len(), 4, "also where nothing came since");
        assert_eq!(points(START), wanted, "a clock that was set back changes nothing");
    }

    #[test]
    fn a_day_is_kept_and_no_more_also_after_a_long_silence() {
        let mut ring = Ring::new(START);
        (0..200).for_each(|n| ring.note_requests(START + n * 900, 1));
        assert_eq!((ring.points(START + 199 * 900).len(), ring.points(START + 199 * 900)[0].at), (QUARTERS, START + 104 * 900));
        ring.note_requests(u64::MAX / 2, 1);
        assert_eq!(ring.quarters.iter().filter(|(_, requests)| *requests > 0).count(), 1);
    }
}
