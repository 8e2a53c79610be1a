//! When a tenant's hour is over. Pure.

use std::time::Duration;

use crate::observed::Moment;

/// Between two hourly snapshots of one tenant.
pub const HOUR: Duration = Duration::from_secs(3_600);
/// How many are made at once that nobody waits for: each costs a processor some ms a megabyte.
pub const AT_ONCE: usize = 2;

/// Where in the hour the tenant in `slot` has its turn: neighbours far from each other, and as many slots as there are, evenly spread.
fn turn(slot: u32) -> u64 {
    /// The golden ratio of 2^32: its multiples fill the circle evenly however many there are.
    const GOLDEN: u32 = 2_654_435_769;
    let hour = u64::try_from(HOUR.as_millis()).unwrap_or(u64::MAX);
    (u64::from(slot.wrapping_mul(GOLDEN)) * hour) >> 32
}

/// Whether the tenant in `slot` has its turn after `last` and not after `now`. On the monotonic clock, so that each agent of a boot has the same turns.
pub fn is_due(slot: u32, last: Moment, now: Moment) -> bool {
    let hour = u64::try_from(HOUR.as_millis()).unwrap_or(u64::MAX);
    let turns = |at: Moment| (at.as_millis() + hour - turn(slot)) / hour;
    turns(now) > turns(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 5_000;

    #[test]
    fn each_tenant_has_one_turn_an_hour_whenever_the_ticks_come() {
        for slot in (0..2_000).chain([9_998, 32_767]) {
            let begin = 1_000_000 + u64::from(slot) * 777;
            let ticks: Vec<u64> = (0..=2 * 720).map(|tick| begin + tick * TICK).collect();
            let due = ticks.windows(2).filter(|pair| is_due(slot, Moment::from_millis(pair[0]), Moment::from_millis(pair[1]))).count();
            assert_eq!(due, 2, "slot {slot}");
        }
    }

    #[test]
    fn a_thousand_tenants_are_spread_over_the_hour() {
        let mut a_minute = [0_u32; 60];
        for slot in 0..1_000 {
            a_minute[usize::try_from(turn(slot) / 60_000).unwrap()] += 1;
        }
        assert!(a_minute.iter().all(|count| (14..=20).contains(count)), "{a_minute:?}");
    }

    #[test]
    fn after_hours_without_an_agent_there_is_one_turn_not_several() {
        assert!(is_due(5, Moment::from_millis(0), Moment::from_millis(10 * 3_600_000)));
        assert!(!is_due(5, Moment::from_millis(7), Moment::from_millis(7)));
    }
}
