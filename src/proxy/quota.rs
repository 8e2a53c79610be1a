//! Rate and daily quota: whether a request is let in, and what of them is left, in headers: `RateLimit-Policy`, `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers-10) and `Retry-After`. No clock of its own.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::problem::Problem;
use crate::route::{self, Admission, RouteLimits, SlotActivity};

/// `RateLimit`.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `RateLimit-Policy`.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The windows that tenants.toml can name, seconds: /s, /m, /h, /d.
const WINDOWS: [u64; 4] = [1, 60, 3_600, DAY];
/// Seconds of a UTC day.
const DAY: u64 = 86_400;

/// What a tenant's rate and quota say to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// GCRA emission interval, nanoseconds; 0 is no rate.
    interval_ns: u64,
    /// Requests a day; 0 is no quota.
    quota: u32,
    /// What the rate says; not asked where the quota is used up.
    rate: Option<Admission>,
    /// Requests that were let in today, this one included; `None`: it is one too many.
    today: Option<u32>,
    /// When the next day begins, seconds since 1970.
    tomorrow: u64,
    /// Until then, seconds.
    resets_in: u64,
}

/// Asks for one request, and counts it where it is let in. `now_ns`: CLOCK_MONOTONIC; `unix`: seconds since 1970.
///
/// The quota is looked at first: who has used it up is told so, and not to come again in a second. It counts what the rate lets in too, so that a
/// client in a tight loop does not lose its day to refusals.
pub(crate) fn ask(slot: &SlotActivity, limits: &RouteLimits, now_ns: u64, unix: u64) -> Allowance {
    let RouteLimits { interval_ns, requests_per_day: quota, burst, .. } = *limits;
    let day = route::day(unix);
    let resets_in = DAY - unix % DAY;
    let allowance = Allowance { interval_ns, quota, rate: None, today: None, tomorrow: unix + resets_in, resets_in };
    if quota > 0 && slot.admitted_on(day) >= quota {
        return allowance;
    }
    let rate = slot.admit(now_ns, interval_ns, burst);
    match rate {
        Admission::Admitted { .. } => Allowance { rate: Some(rate), today: slot.admit_today(day, quota), ..allowance },
        Admission::Refused { .. } => Allowance { rate: Some(rate), today: Some(slot.admitted_on(day)), ..allowance },
    }
}

impl Allowance {
    /// Why the request is not let in.
    pub(crate) fn refusal(&self) -> Option<Problem> {
        match (self.today, self.rate) {
            (None, _) => Some(Problem::QuotaUsed { quota: self.quota, at: self.tomorrow, resets_in: self.resets_in }),
            (_, Some(Admission::Refused { retry_after_ns, .. })) => Some(Problem::RateLimited { retry_after_ns }),
            _ => None,
        }
    }

    /// Says in `headers` what the limits are and what is left of them. Nothing where there are none.
    pub(crate) fn describe(&self, headers: &mut HeaderMap) {
        let (mut policies, mut left) = (Vec::new(), Vec::new());
        if let Some((quota, window)) = policy(self.interval_ns) {
            policies.push(format!("\"default\";q={quota};w={window}"));
            left.extend(self.rate.map(|rate| {
                let (remaining, reset_ns) = match rate {
                    Admission::Admitted { remaining, reset_ns } => (remaining, reset_ns),
                    Admission::Refused { reset_ns, .. } => (0, reset_ns),
                };
                format!("\"default\";r={remaining};t={}", whole_seconds(reset_ns))
            }));
        }
        if self.quota > 0 {
            let remaining = self.quota.saturating_sub(self.today.unwrap_or(self.quota));
            policies.push(format!("\"day\";q={};w={DAY}", self.quota));
            left.push(format!("\"day\";r={remaining};t={}", self.resets_in));
        }
        if !policies.is_empty() {
            put(headers, RATE_LIMIT_POLICY, policies.join(", "));
            put(headers, RATE_LIMIT, left.join(", "));
        }
    }
}

/// Sets `Retry-After` to `seconds`.
pub(crate) fn retry_after(headers: &mut HeaderMap, seconds: u64) {
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
}

/// Nanoseconds as seconds, rounded up: an early comer would be refused again.
pub(crate) fn whole_seconds(ns: u64) -> u64 {
    ns.div_ceil(1_000_000_000)
}

/// An emission interval as people wrote it: (quota, window in seconds), or `None` without a limit.
fn policy(interval_ns: u64) -> Option<(u64, u64)> {
    if interval_ns == 0 {
        return None;
    }
    let quota = |window: &u64| (window * 1_000_000_000 + interval_ns / 2) / interval_ns;
    let exact = |window: &&u64| quota(window) > 0 && *window * 1_000_000_000 / quota(window) == interval_ns;
    let window = WINDOWS.iter().find(exact).unwrap_or(&DAY);
    Some((quota(window), *window))
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // Digits and the fixed text above are always a valid value.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::Rate, route::Activity};

    /// 2026-11-25T23:59:30Z.
    const LATE: u64 = 1_795_651_170;

    fn limits(interval_ns: u64, requests_per_day: u32) -> RouteLimits {
        RouteLimits {
            interval_ns,
            burst: 1,
            requests_per_day,
            concurrency: 8,
            queue: 64,
            body_max: 1 << 20,
            memory_max: 0,
            storage_max: 0,
            durability: crate::guard::Durability::Process,
        }
    }

    fn activity() -> (tempfile::TempDir, Activity) {
        let dir = tempfile::tempdir().unwrap();
        let activity = Activity::open(&dir.path().join("activity")).unwrap();
        (dir, activity)
    }

    fn said(allowance: &Allowance) -> [String; 2] {
        let mut headers = HeaderMap::new();
        allowance.describe(&mut headers);
        ["ratelimit-policy", "ratelimit"].map(|name| headers.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn the_headers_repeat_the_rate_as_it_was_written() {
        for (count, per_seconds) in [(100, 60), (10, 1), (1, 1), (7, 3_600), (1_000, 86_400), (1, 86_400), (90, 60), (333, 60)] {
            let interval = Rate { count, per_seconds }.interval_ns();
            let (quota, window) = policy(interval).unwrap();
            assert_eq!(quota * u64::from(per_seconds), u64::from(count) * window, "{count}/{per_seconds}s became {quota}/{window}s");
        }
    }

    #[test]
    fn an_answer_says_what_remains_and_when_all_is_free_again() {
        let (_dir, activity) = activity();
        let (slot, limits) = (activity.slot(0).unwrap(), limits(600_000_000, 0));
        let ask = || ask(slot, &limits, 5_000_000_000, LATE);
        assert_eq!(said(&ask()), ["\"default\";q=100;w=60", "\"default\";r=1;t=1"]);
        assert_eq!(ask().refusal(), None);
        let refused = ask();
        assert_eq!(refused.refusal(), Some(Problem::RateLimited { retry_after_ns: 600_000_000 }));
        assert_eq!(said(&refused)[1], "\"default\";r=0;t=2");
    }

    #[test]
    fn without_a_limit_nothing_is_said() {
        let (_dir, activity) = activity();
        let allowance = ask(activity.slot(0).unwrap(), &limits(0, 0), 5, LATE);
        assert_eq!((allowance.refusal(), said(&allowance)), (None, [String::new(), String::new()]));
    }

    #[test]
    fn a_quota_that_is_used_says_when_the_next_day_begins_and_is_whole_again_then() {
        let (_dir, activity) = activity();
        let (slot, limits) = (activity.slot(0).unwrap(), limits(0, 2));
        let ask = |unix| ask(slot, &limits, 5, unix);
        let left: Vec<_> = (0..2).map(|_| said(&ask(LATE))[1].clone()).collect();
        assert_eq!(left, ["\"day\";r=1;t=30", "\"day\";r=0;t=30"]);
        let refused = ask(LATE);
        assert_eq!(refused.refusal(), Some(Problem::QuotaUsed { quota: 2, at: LATE + 30, resets_in: 30 }));
        assert_eq!(said(&refused), ["\"day\";q=2;w=86400", "\"day\";r=0;t=30"]);
        let next = ask(LATE + 30);
        assert_eq!((next.refusal(), said(&next)[1].as_str()), (None, "\"day\";r=1;t=86400"));
    }

    #[test]
    fn what_the_rate_refuses_takes_nothing_of_the_day_and_a_used_day_takes_nothing_of_the_rate() {
        let (_dir, activity) = activity();
        let (slot, limits) = (activity.slot(0).unwrap(), limits(600_000_000, 3));
        let ask = |now_ns| ask(slot, &limits, now_ns, LATE);
        let now = 5_000_000_000;
        assert_eq!([ask(now), ask(now)].map(|asked| asked.refusal()), [None, None]);
        for _ in 0..10 {
            assert!(matches!(ask(now).refusal(), Some(Problem::RateLimited { .. })));
        }
        assert_eq!(said(&ask(now)), ["\"default\";q=100;w=60, \"day\";q=3;w=86400", "\"default\";r=0;t=2, \"day\";r=1;t=30"]);
        assert_eq!(ask(now + 600_000_000).refusal(), None);
        let arrival = slot.snapshot().arrival_ns;
        for _ in 0..10 {
            assert!(matches!(ask(now + 5_000_000_000).refusal(), Some(Problem::QuotaUsed { .. })));
        }
        assert_eq!((slot.snapshot().arrival_ns, slot.snapshot().requests_that_day), (arrival, 3));
    }
}
