//! What is to come: when memory and disk are nearly full, and how many tenants still fit. Pure.
//!
//! The trend is Theil-Sen's, the median of all slopes between two points: a backup that fills the disk for an hour, or a night in which nobody
//! works, moves it little. What is not known yet is said to be so.

use serde::{Deserialize, Serialize};

use super::sample::Sample;

/// Nearly full, percent.
pub const NEARLY_FULL: u64 = 90;
/// So far the trend looks back, seconds: what was before says little of what is now.
pub const LOOK_BACK: u64 = 14 * DAY;
/// Seconds of a day.
const DAY: u64 = 86_400;
/// Points are medians of an hour.
const HOUR: u64 = 3_600;
/// So many hours have to be known: within a day use goes up and down by itself.
const HOURS_NEEDED: usize = 24;
/// Beyond this many days a trend of two weeks says nothing.
const HORIZON: f64 = 365.0;

/// When something is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outlook")]
pub enum Outlook {
    /// It cannot be measured here.
    Unmeasured,
    /// Too little is known so far.
    NotYet {
        /// Hours of which something is known.
        hours: usize,
        /// Hours that are needed.
        needed: usize,
    },
    /// It is already.
    Reached,
    /// In so many days, if it goes on as in the last two weeks.
    Full {
        /// Days from now.
        in_days: f64,
    },
    /// Not within a year by anything that stands out from the ups and downs.
    NoTrend,
}

/// When `used` reaches nine tenths of the latest `total`, by `samples`, oldest first.
pub fn outlook(samples: &[Sample], of: impl Fn(&Sample) -> (u64, u64)) -> Outlook {
    let Some(latest) = samples.last() else { return Outlook::NotYet { hours: 0, needed: HOURS_NEEDED } };
    let (total, used) = of(latest);
    if total == 0 {
        return Outlook::Unmeasured;
    }
    let limit = total as f64 * NEARLY_FULL as f64 / 100.0;
    if used as f64 >= limit {
        return Outlook::Reached;
    }
    let recent = samples.iter().filter(|sample| sample.at + LOOK_BACK >= latest.at);
    // Of a host with other memory, or another disk, nothing is learned.
    let same: Vec<(u64, u64)> =
        recent.map(|sample| (sample.at, of(sample))).filter(|(_, (all, _))| *all == total).map(|(at, (_, used))| (at, used)).collect();
    let points = by_the_hour(&same, latest.at);
    if points.len() < HOURS_NEEDED {
        return Outlook::NotYet { hours: points.len(), needed: HOURS_NEEDED };
    }
    match trend(&points) {
        Some(Trend { a_day, now }) if now >= limit => {
            if a_day > 0.0 {
                Outlook::Full { in_days: 0.0 }
            } else {
                Outlook::NoTrend
            }
        }
        Some(Trend { a_day, now }) if a_day > 0.0 && (limit - now) / a_day <= HORIZON => Outlook::Full { in_days: (limit - now) / a_day },
        _ => Outlook::NoTrend,
    }
}

/// Medians of the hours of which something is known: days before `now`, which are negative, and what was used.
fn by_the_hour(samples: &[(u64, u64)], now: u64) -> Vec<(f64, f64)> {
    let median = |hour: &[(u64, u64)]| {
        let mut used: Vec<u64> = hour.iter().map(|(_, used)| *used).collect();
        used.sort_unstable();
        let at = hour[0].0 / HOUR * HOUR + HOUR / 2;
        ((at as f64 - now as f64) / DAY as f64, used[used.len() / 2] as f64)
    };
    samples.chunk_by(|one, next| one.0 / HOUR == next.0 / HOUR).map(median).collect()
}

/// A line through the points.
struct Trend {
    a_day: f64,
    now: f64,
}

/// The line, if it stands out from the ups and downs: over the whole time it has to rise by more than half of all points lie off it.
fn trend(points: &[(f64, f64)]) -> Option<Trend> {
    let mut slopes: Vec<f64> = Vec::with_capacity(points.len() * points.len() / 2);
    for (n, (x, y)) in points.iter().enumerate() {
        slopes.extend(points[n + 1..].iter().filter(|(later, _)| later > x).map(|(later, more)| (more - y) / (later - x)));
    }
    let a_day = median(&mut slopes)?;
    let now = median(&mut points.iter().map(|(x, y)| y - a_day * x).collect::<Vec<_>>())?;
    let off = median(&mut points.iter().map(|(x, y)| (y - a_day * x - now).abs()).collect::<Vec<_>>())?;
    let span = points.last()?.0 - points.first()?.0;
    (a_day.abs() * span > off).then_some(Trend { a_day, now })
}

fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// What of the tenants was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// Instances whose memory was measured.
    pub instances: u64,
    /// What they take now (PSS), bytes.
    pub memory: u64,
    /// What each took at its peak in the last days, all together, bytes.
    pub peaks: u64,
    /// Tenants whose phexts were measured.
    pub stored: u64,
    /// What those take, bytes.
    pub storage: u64,
    /// Ports that nobody has.
    pub ports_free: u64,
}

/// How many tenants like those that are here still fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {
    /// So many, also if all of them, those here included, are at their peak at once.
    pub tenants: u64,
    /// What they would run out of first.
    pub bound_by: Bound,
    /// So many by what is used now.
    pub at_present_use: u64,
    /// What one takes at its peak, bytes, on average.
    pub peak_each: u64,
    /// What one takes now, bytes, on average.
    pub memory_each: u64,
    /// What the phexts of one take, bytes, on average.
    pub storage_each: u64,
}

/// What is used up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Nine tenths of the host's memory.
    Memory,
    /// Nine tenths of the disk.
    Disk,
    /// `[agent] ports`.
    Ports,
}

impl Bound {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "the disk",
            Self::Ports => "[agent] ports",
        }
    }
}

/// How many more fit below nine tenths of memory and disk; `None` while nothing runs that could be measured.
pub fn fit(host: &Sample, measured: &Measured) -> Option<Fit> {
    if host.memory_total == 0 || measured.instances == 0 || measured.memory == 0 {
        return None;
    }
    let room = |total: u64, used: u64| (total / 100 * NEARLY_FULL).saturating_sub(used);
    let each = |sum: u64, count: u64| sum.checked_div(count).unwrap_or(0);
    let peaks = measured.peaks.max(measured.memory);
    let (peak_each, memory_each) = (each(peaks, measured.instances), each(measured.memory, measured.instances));
    let storage_each = each(measured.storage, measured.stored);
    let memory_room = room(host.memory_total, host.memory_used);
    let in_memory = memory_room.saturating_sub(peaks - measured.memory) / peak_each.max(1);
    // Nothing stored, or a disk that cannot be told, bounds nobody.
    let on_disk = if host.disk_total == 0 { None } else { room(host.disk_total, host.disk_used).checked_div(storage_each) };
    let others = [(on_disk.unwrap_or(u64::MAX), Bound::Disk), (measured.ports_free, Bound::Ports)];
    let (tenants, bound_by) =
        others.into_iter().fold((in_memory, Bound::Memory), |least, other| if other.0 < least.0 { other } else { least });
    let at_present_use = others.iter().map(|(count, _)| *count).fold(memory_room / memory_each.max(1), u64::min);
    Some(Fit { tenants, bound_by, at_present_use, peak_each, memory_each, storage_each })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1 << 20;
    const TOTAL: u64 = 1_000 * MB;

    /// Samples every 15 minutes for so many days; `used` is told the day and says how much is used.
    fn days(days: f64, used: impl Fn(f64) -> f64) -> Vec<Sample> {
        let count = (days * 96.0) as u64;
        let sample = |n: u64| Sample {
            at: 1_800_000_000 + n * 900,
            memory_total: TOTAL,
            memory_used: used(n as f64 / 96.0) as u64,
            ..Sample::default()
        };
        (0..=count).map(sample).collect()
    }

    fn memory(samples: &[Sample]) -> Outlook {
        outlook(samples, |sample| (sample.memory_total, sample.memory_used))
    }

    fn in_days(outlook: Outlook) -> f64 {
        match outlook {
            Outlook::Full { in_days } => in_days,
            other => panic!("{other:?}"),
        }
    }

    fn mb(value: f64) -> f64 {
        value * MB as f64
    }

    #[test]
    fn less_than_a_day_says_nothing_yet() {
        assert_eq!(memory(&[]), Outlook::NotYet { hours: 0, needed: 24 });
        let short = days(0.9, |day| mb(100.0 + 300.0 * day));
        assert!(matches!(memory(&short), Outlook::NotYet { hours: 21..=23, .. }), "{:?}", memory(&short));
        assert!(matches!(memory(&days(1.1, |day| mb(100.0 + 300.0 * day))), Outlook::Full { .. }));
    }

    #[test]
    fn a_steady_growth_is_foretold_to_the_day() {
        // 10 MB a day; 240 after 14 days, so 660 are left to 900.
        let left = in_days(memory(&days(14.0, |day| mb(100.0 + 10.0 * day))));
        assert!((left - 66.0).abs() < 1.0, "{left}");
    }

    #[test]
    fn the_day_and_the_night_are_no_trend() {
        let wave = |day: f64| mb(500.0 + 100.0 * (day * std::f64::consts::TAU).sin());
        for length in [1.5, 2.0, 3.5, 7.0, 14.0] {
            let outlook = memory(&days(length, wave));
            let soon = matches!(outlook, Outlook::Full { in_days } if in_days < 10.0);
            assert!(!soon, "after {length} days: {outlook:?}");
        }
        assert_eq!(memory(&days(14.0, wave)), Outlook::NoTrend);
    }

    #[test]
    fn an_hour_in_which_the_disk_was_full_changes_nothing() {
        let grows = |day: f64| mb(100.0 + 10.0 * day);
        let with = days(10.0, |day| if (day - 7.0).abs() < 0.05 { mb(880.0) } else { grows(day) });
        let (with, without) = (in_days(memory(&with)), in_days(memory(&days(10.0, grows))));
        assert!((with - without).abs() < 2.0, "{with} and {without}");
    }

    #[test]
    fn what_shrinks_or_hardly_grows_is_no_trend_and_what_is_full_is_said() {
        assert_eq!(memory(&days(7.0, |day| mb(500.0 - 10.0 * day))), Outlook::NoTrend);
        assert_eq!(memory(&days(7.0, |day| mb(500.0 + 0.1 * day))), Outlook::NoTrend);
        assert_eq!(memory(&days(0.1, |_| mb(901.0))), Outlook::Reached);
        assert_eq!(outlook(&days(7.0, |_| 1.0), |sample| (sample.disk_total, sample.disk_used)), Outlook::Unmeasured);
    }

    #[test]
    fn a_host_that_was_given_more_memory_begins_anew() {
        let mut samples = days(7.0, |day| mb(100.0 + 100.0 * day));
        samples.iter_mut().rev().take(8).for_each(|sample| sample.memory_total = 4 * TOTAL);
        assert!(matches!(memory(&samples), Outlook::NotYet { .. }));
    }

    proptest! {
        #[test]
        fn no_samples_whatever_make_it_panic_or_foretell_the_past(
            samples in prop::collection::vec((0_u64..4_000_000, 0_u64..3, any::<u64>()), 0..200)
        ) {
            let mut samples: Vec<Sample> = samples.into_iter().map(|(at, memory_total, memory_used)| {
                Sample { at, memory_total: memory_total * u64::from(u32::MAX), memory_used, ..Sample::default() }
            }).collect();
            samples.sort_by_key(|sample| sample.at);
            if let Outlook::Full { in_days } = memory(&samples) {
                prop_assert!((0.0..=HORIZON).contains(&in_days));
            }
        }
    }

    fn host() -> Sample {
        Sample { memory_total: 1_000 * MB, memory_used: 400 * MB, disk_total: 10_000 * MB, disk_used: 1_000 * MB, ..Sample::default() }
    }

    #[test]
    fn tenants_fit_by_what_was_measured_and_with_all_of_them_at_their_peak() {
        // 100 tenants of 1 MB, at their peak 3: 500 MB are left, 200 of them for the peaks of those that are here.
        let measured = Measured { instances: 100, memory: 100 * MB, peaks: 300 * MB, stored: 100, storage: 100 * MB, ports_free: 9_000 };
        let fit = fit(&host(), &measured).unwrap();
        assert_eq!((fit.tenants, fit.bound_by, fit.at_present_use), (100, Bound::Memory, 500));
        assert_eq!((fit.peak_each, fit.memory_each, fit.storage_each), (3 * MB, MB, MB));
    }

    #[test]
    fn the_disk_or_the_ports_may_be_what_bounds() {
        let measured = Measured { instances: 10, memory: 10 * MB, peaks: 10 * MB, stored: 10, storage: 8_000 * MB, ports_free: 9_000 };
        let by_disk = fit(&host(), &measured).unwrap();
        assert_eq!((by_disk.tenants, by_disk.bound_by, by_disk.at_present_use), (10, Bound::Disk, 10));
        let by_ports = fit(&host(), &Measured { storage: 0, ports_free: 7, ..measured }).unwrap();
        assert_eq!((by_ports.tenants, by_ports.bound_by, by_ports.at_present_use), (7, Bound::Ports, 7));
    }

    #[test]
    fn while_nothing_runs_nobody_knows() {
        let measured = Measured { instances: 10, memory: 10 * MB, ports_free: 10, ..Measured::default() };
        assert!(fit(&host(), &measured).is_some());
        assert_eq!(fit(&Sample { memory_total: 0, ..host() }, &measured), None);
        assert_eq!(fit(&host(), &Measured { instances: 0, ..measured }), None);
        assert_eq!(fit(&host(), &Measured { memory: 0, ..measured }), None);
    }
}
