//! What a tenant's rate limit says in headers: `RateLimit-Policy`, `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10) and `Retry-After`. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::route::{Admission, RouteLimits};

/// `RateLimit`.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `RateLimit-Policy`.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The windows that tenants.toml can name, seconds: /s, /m, /h, /d.
const WINDOWS: [u64; 4] = [1, 60, 3_600, 86_400];

/// Says in `headers` what `limits` allow and what `admission` left of it. Nothing where no rate limit holds.
pub(crate) fn describe(headers: &mut HeaderMap, limits: &RouteLimits, admission: &Admission) {
    let Some((quota, window)) = policy(limits.interval_ns) else {
        return;
    };
    let (remaining, reset_ns) = match *admission {
        Admission::Admitted { remaining, reset_ns } => (remaining, reset_ns),
        Admission::Refused { reset_ns, .. } => (0, reset_ns),
    };
    put(headers, RATE_LIMIT_POLICY, format!("\"default\";q={quota};w={window}"));
    put(headers, RATE_LIMIT, format!("\"default\";r={remaining};t={}", whole_seconds(reset_ns)));
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
    let window = WINDOWS.iter().find(exact).unwrap_or(&86_400);
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
    use crate::desired::Rate;

    fn limits(interval_ns: u64) -> RouteLimits {
        RouteLimits {
            interval_ns,
            burst: 20,
            concurrency: 8,
            queue: 64,
            body_max: 1 << 20,
            memory_max: 0,
            durability: crate::guard::Durability::Process,
        }
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
        let mut headers = HeaderMap::new();
        describe(&mut headers, &limits(600_000_000), &Admission::Admitted { remaining: 20, reset_ns: 600_000_000 });
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=100;w=60");
        assert_eq!(headers["ratelimit"], "\"default\";r=20;t=1");
        describe(&mut headers, &limits(600_000_000), &Admission::Refused { retry_after_ns: 1, reset_ns: 12_600_000_000 });
        assert_eq!(headers["ratelimit"], "\"default\";r=0;t=13");
    }

    #[test]
    fn without_a_limit_nothing_is_said() {
        let mut headers = HeaderMap::new();
        describe(&mut headers, &limits(0), &Admission::Admitted { remaining: u32::MAX, reset_ns: 0 });
        assert!(headers.is_empty());
    }
}
