//! What an answer to a message means: it is there, or when to try again, or why not. Pure.
//!
//! After Discord's documents "Rate Limits" and "Execute Webhook"; any other server's answers mean the same.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

/// Where a server says that it is too much and not for how long.
const SOME: Duration = Duration::from_secs(5);
/// Nobody's limit lasts longer; what says so is taken for this.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Clocks and ways differ a little.
const SLACK: Duration = Duration::from_millis(50);

/// What came of a try to send a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there; the next one has to wait for so long.
    Delivered(Duration),
    /// It is too much: not before so long.
    Wait(Duration, String),
    /// It may go well later.
    Failed(String),
    /// This message will never be taken.
    Refused(String),
    /// No message will: whoever goes on is shut out (Discord says so of 404).
    Stopped(String),
}

/// Discord's body of a 429.
#[derive(Debug, Deserialize)]
struct Limited {
    /// Seconds.
    retry_after: f64,
    #[serde(default)]
    global: bool,
}

/// What the answer says.
pub(super) fn meaning(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Outcome {
    let seconds = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse().ok().and_then(pause);
    let why = || format!("it answered {status}");
    match status.as_u16() {
        200..=299 => {
            let used_up = headers.get("x-ratelimit-remaining").is_some_and(|left| left.as_bytes() == b"0");
            let after = seconds("x-ratelimit-reset-after").filter(|_| used_up);
            Outcome::Delivered(after.unwrap_or_default())
        }
        429 => {
            let said = serde_json::from_slice::<Limited>(body).ok();
            let global = said.as_ref().is_some_and(|said| said.global) || headers.contains_key("x-ratelimit-global");
            // Both say it; the header in whole seconds.
            let after = said.and_then(|said| pause(said.retry_after)).max(seconds("retry-after"));
            let after = after.or_else(|| seconds("x-ratelimit-reset-after")).unwrap_or(SOME);
            let whose = if global { "for all of this address" } else { "for this webhook" };
            Outcome::Wait(after, format!("{} {whose}; it asks for {} s", why(), after.as_secs_f32().ceil()))
        }
        503 if headers.contains_key("retry-after") => Outcome::Wait(seconds("retry-after").unwrap_or(SOME), why()),
        500..=599 | 408 | 425 => Outcome::Failed(why()),
        401 | 403 | 404 | 410 => Outcome::Stopped(format!("{}: the webhook is gone, or is not this one", why())),
        300..=399 => Outcome::Stopped(format!("{}: it sends elsewhere, which is not followed", why())),
        _ => Outcome::Refused(why()),
    }
}

fn pause(seconds: f64) -> Option<Duration> {
    let seconds = (seconds.is_finite() && seconds >= 0.0).then(|| seconds.min(LONGEST.as_secs_f64()))?;
    Some(Duration::from_secs_f64(seconds) + SLACK)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(status: u16, headers: &[(&'static str, &str)], body: &str) -> Outcome {
        let headers =
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect();
        meaning(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes())
    }

    fn wait(outcome: &Outcome) -> f64 {
        match outcome {
            Outcome::Delivered(after) | Outcome::Wait(after, _) => after.as_secs_f64(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_that_is_there_tells_when_the_next_one_may_come() {
        assert_eq!(of(204, &[], ""), Outcome::Delivered(Duration::ZERO));
        assert_eq!(of(200, &[("x-ratelimit-remaining", "4"), ("x-ratelimit-reset-after", "1")], "{}"), Outcome::Delivered(Duration::ZERO));
        let last = of(200, &[("x-ratelimit-limit", "5"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset-after", "1.25")], "{}");
        assert!(matches!(last, Outcome::Delivered(_)) && (wait(&last) - 1.3).abs() < 1e-6);
    }

    /// The examples of Discord's document, and what a proxy before it says.
    #[test]
    fn a_429_is_obeyed_wherever_it_says_for_how_long() {
        let user = of(
            429,
            &[("retry-after", "65"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset-after", "64.57")],
            r#"{"message": "You are being rate limited.", "retry_after": 64.57, "global": false}"#,
        );
        assert!(wait(&user) >= 65.0 && wait(&user) < 66.0);
        let shared = of(
            429,
            &[("retry-after", "1337"), ("x-ratelimit-reset-after", "64.57"), ("x-ratelimit-scope", "shared")],
            r#"{"message": "", "retry_after": 1336.57, "global": false}"#,
        );
        assert!(wait(&shared) >= 1_337.0);
        let global = of(429, &[("x-ratelimit-global", "true")], r#"{"retry_after": 0.35, "global": true}"#);
        assert!(matches!(&global, Outcome::Wait(_, why) if why.contains("for all")) && wait(&global) < 0.5);
        assert!(wait(&of(429, &[("retry-after", "30")], "<html>")) >= 30.0);
        assert!(wait(&of(429, &[("x-ratelimit-reset-after", "2.5")], "")) >= 2.5);
        for nothing in ["", "{}", r#"{"retry_after": -1}"#, r#"{"retry_after": "soon"}"#] {
            assert_eq!(of(429, &[], nothing), of(429, &[], ""), "{nothing}");
        }
        assert_eq!(wait(&of(429, &[], "")), 5.0);
        assert!(wait(&of(429, &[], r#"{"retry_after": 1e300}"#)) < 86_401.0);
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_is_let_be() {
        for status in [500, 502, 503, 504, 408] {
            assert!(matches!(of(status, &[], ""), Outcome::Failed(_)), "{status}");
        }
        assert!(matches!(of(503, &[("retry-after", "7")], ""), Outcome::Wait(..)));
        for status in [401, 403, 404, 410, 301] {
            assert!(matches!(of(status, &[], ""), Outcome::Stopped(_)), "{status}");
        }
        for status in [400, 413, 415, 422] {
            assert!(matches!(of(status, &[], ""), Outcome::Refused(_)), "{status}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_too_odd(status in 200_u16..600, value in "[ -~]{0,20}", body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut headers = HeaderMap::new();
            for name in ["retry-after", "x-ratelimit-reset-after", "x-ratelimit-remaining"] {
                headers.insert(name, HeaderValue::from_str(&value).unwrap());
            }
            if let Outcome::Delivered(after) | Outcome::Wait(after, _) = meaning(StatusCode::from_u16(status).unwrap(), &headers, &body) {
                prop_assert!(after <= LONGEST + SLACK);
            }
        }
    }
}
