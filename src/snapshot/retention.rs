//! Which snapshots are kept. Pure.

use std::collections::BTreeSet;

use super::name::{Name, Reason};
use crate::desired::Snapshots;

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// 1970 began on a Thursday; weeks begin on Mondays.
const MONDAY: u64 = 3 * DAY;

/// Those of `all` (each with its size in bytes) that are to go at `now`, seconds since 1970.
///
/// Kept are the newest one of each of the last so many hours, days and weeks that have one, and whatever was taken for a reason of its own for as long
/// as the daily ones reach back, a day at the least: what a restore replaced must not go with the next hour, nor take the place of that hour's. Beyond `max_size` the oldest go first.
/// The newest one always stays.
pub(super) fn surplus(all: &[(Name, u64)], keep: &Snapshots, now: u64) -> Vec<Name> {
    let mut newest_first: Vec<(Name, u64)> = all.to_vec();
    newest_first.sort_unstable_by_key(|(name, _)| std::cmp::Reverse(*name));
    let mut kept = BTreeSet::new();
    let reach = u64::from(keep.daily.max(1)) * DAY;
    let own = |name: &Name| name.reason != Reason::Hourly && name.at + reach > now;
    let mut keep_one_each = |count: u32, period: &dyn Fn(u64) -> u64| {
        let mut periods = BTreeSet::new();
        for (name, _) in newest_first.iter().filter(|(name, _)| !own(name)) {
            if periods.len() < count as usize && periods.insert(period(name.at)) {
                kept.insert(*name);
            }
        }
    };
    keep_one_each(keep.hourly, &|at| at / HOUR);
    keep_one_each(keep.daily, &|at| at / DAY);
    keep_one_each(keep.weekly, &|at| (at + MONDAY) / WEEK);
    kept.extend(newest_first.iter().map(|(name, _)| *name).filter(own));
    kept.extend(newest_first.first().map(|(name, _)| *name));
    let mut size = 0_u64;
    let mut full = false;
    for (at, (name, bytes)) in newest_first.iter().enumerate() {
        if kept.contains(name) {
            size = size.saturating_add(*bytes);
            full |= size > keep.max_size;
            if full && at > 0 {
                kept.remove(name);
            }
        }
    }
    newest_first.into_iter().map(|(name, _)| name).filter(|name| !kept.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Snapshots = Snapshots { hourly: 24, daily: 7, weekly: 4, max_size: 1_000 };
    /// A Wednesday, 12:00.
    const NOON: u64 = 1_795_608_000;

    fn hourly(at: u64) -> (Name, u64) {
        (Name { at, reason: Reason::Hourly }, 1)
    }

    fn kept(all: &[(Name, u64)], keep: &Snapshots, now: u64) -> Vec<u64> {
        let gone = surplus(all, keep, now);
        let mut kept: Vec<u64> = all.iter().filter(|(name, _)| !gone.contains(name)).map(|(name, _)| name.at).collect();
        kept.sort_unstable();
        kept.reverse();
        kept
    }

    #[test]
    fn of_two_months_of_hours_a_day_of_hours_a_week_of_days_and_a_month_of_weeks_are_kept() {
        let all: Vec<_> = (0..60 * 24).map(|hour| hourly(NOON - hour * HOUR)).collect();
        let kept = kept(&all, &KEEP, NOON);
        let hours: Vec<u64> = (0..24).map(|hour| NOON - hour * HOUR).collect();
        assert_eq!(kept[..24], hours);
        // The last hour of each day before; today's and yesterday's evening are among the hours.
        let midnight = NOON - 12 * HOUR;
        let days: Vec<u64> = (1..6).map(|day| midnight - day * DAY - HOUR).collect();
        assert_eq!(kept[24..29], days);
        // Sundays at 23: the last one lies among the days.
        let sunday = midnight - 2 * DAY - HOUR;
        assert!(days.contains(&sunday));
        assert_eq!(kept[29..], [sunday - WEEK, sunday - 2 * WEEK]);
    }

    #[test]
    fn hours_without_a_snapshot_do_not_count() {
        let all = [hourly(NOON), hourly(NOON - 3 * DAY), hourly(NOON - 90 * DAY)];
        assert_eq!(kept(&all, &KEEP, NOON).len(), 3);
        let keep = Snapshots { hourly: 2, daily: 0, weekly: 0, ..KEEP };
        assert_eq!(kept(&all, &keep, NOON), [NOON, NOON - 3 * DAY]);
    }

    #[test]
    fn of_several_in_one_hour_the_newest_stays_and_what_a_person_asked_for_a_week() {
        let asked = (Name { at: NOON + 60, reason: Reason::Asked }, 1);
        assert_eq!(kept(&[hourly(NOON), asked], &KEEP, NOON + 60), [NOON + 60, NOON], "that hour's is still there");
        let all = [hourly(NOON), asked, hourly(NOON + 120)];
        assert_eq!(kept(&all, &KEEP, NOON + 120), [NOON + 120, NOON + 60]);
        assert_eq!(kept(&all, &KEEP, NOON + 60 + 7 * DAY), [NOON + 120]);
        let none = Snapshots { hourly: 0, daily: 0, weekly: 0, ..KEEP };
        assert_eq!(kept(&all, &none, NOON + 120), [NOON + 120, NOON + 60], "a day at the least");
    }

    #[test]
    fn beyond_the_size_the_oldest_go_and_the_newest_stays_whatever_it_takes() {
        let all = [(hourly(NOON).0, 400), (hourly(NOON - HOUR).0, 600), (hourly(NOON - 2 * HOUR).0, 1), (hourly(NOON - DAY).0, 1)];
        assert_eq!(kept(&all, &KEEP, NOON), [NOON, NOON - HOUR]);
        let all = [(hourly(NOON).0, 4_000), (hourly(NOON - HOUR).0, 1)];
        assert_eq!(kept(&all, &KEEP, NOON), [NOON]);
        assert_eq!(surplus(&[], &KEEP, NOON), []);
    }
}
