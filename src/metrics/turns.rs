//! How long the loop's turns take.

use std::time::Duration;

/// Upper ends of the buckets, seconds: an event is a millisecond, a plan for 10,000 tenants some ten.
pub(super) const ENDS: [f64; 9] = [0.000_1, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

/// Turns since the agent started, by how long they took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Turns {
    /// As [`ENDS`], and one more; not added up.
    counts: [u64; ENDS.len() + 1],
    sum: Duration,
}

impl Turns {
    /// A turn took so long.
    pub fn note(&mut self, took: Duration) {
        self.counts[ENDS.partition_point(|end| *end < took.as_secs_f64())] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Each bucket's upper end and what is in it alone; the last has no end.
    pub(super) fn buckets(&self) -> [(f64, u64); ENDS.len() + 1] {
        std::array::from_fn(|at| (ENDS.get(at).copied().unwrap_or(f64::INFINITY), self.counts[at]))
    }

    /// All that they took, seconds.
    pub(super) fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_in_the_first_bucket_that_holds_it() {
        let mut turns = Turns::default();
        [100, 101, 1_000_000, 1_000_001].into_iter().for_each(|us| turns.note(Duration::from_micros(us)));
        let counts = turns.buckets().map(|(_, count)| count);
        assert_eq!(counts, [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((turns.sum(), turns.buckets()[9].0), (2.000_202, f64::INFINITY));
    }
}
