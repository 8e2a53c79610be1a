//! What the proxy counts for the metrics, beside what rates and limits need: on the page of metrics, by relaxed additions that no request waits for.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{problem::Problem, service::Shared};
use crate::route::ProxyNow;

/// How often it is told what the proxy has at the moment, and how many lines of the access log were lost.
const EVERY: Duration = Duration::from_secs(1);

/// One of something, for as long as this lives.
pub(crate) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    pub(crate) fn new(all: &'a AtomicU64) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How somebody was found to be who they are; the numbers are those of [`crate::route::AUTHS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// By a token that was verified before.
    TokenCached = 0,
    /// By a token that was verified now.
    TokenVerified = 1,
    /// By an API key.
    ApiKey = 2,
}

/// The number of what came of asking who asks; none where that says nothing of them.
pub(crate) fn auth(known: Result<Known, Problem>) -> Option<usize> {
    match known {
        Ok(known) => Some(known as usize),
        Err(Problem::Suspended) => Some(3),
        Err(Problem::NoSuchTenant) => Some(4),
        Err(Problem::Unauthorized(why)) => Some(5 + why as usize),
        Err(_) => None,
    }
}

/// Tells what the proxy has at the moment, as long as the process lives.
pub(crate) async fn tell(shared: &Shared) {
    loop {
        tokio::time::sleep(EVERY).await;
        let live = shared.live.get();
        match shared.log.take_lost() {
            0 => {}
            lost => live.activity.note_lost_lines(lost),
        }
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let has = ProxyNow {
            connections: now(&shared.connections),
            parked: u64::from(shared.parking.waiting()),
            queued: now(&shared.queued),
            in_flight: now(&shared.in_flight),
            body_bytes: now(&shared.body_memory),
        };
        live.meters.tell(live.side, has);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{proxy::auth::AuthError, route::AUTHS};

    #[test]
    fn every_answer_to_who_asks_has_its_own_name() {
        let name = |known| auth(known).map(|number| AUTHS[number]);
        assert_eq!(
            [Known::TokenCached, Known::TokenVerified, Known::ApiKey].map(|known| name(Ok(known)).unwrap()),
            ["token_cached", "token_verified", "api_key"]
        );
        assert_eq!(name(Err(Problem::Suspended)), Some("suspended"));
        assert_eq!(name(Err(Problem::NoSuchTenant)), Some("no_such_tenant"));
        assert_eq!(name(Err(Problem::TableBusy)), None);
        let all = [
            AuthError::Missing,
            AuthError::Several,
            AuthError::NotBearer,
            AuthError::NotApiKey,
            AuthError::UnknownApiKey,
            AuthError::TooLong,
            AuthError::Malformed,
            AuthError::NoKey,
            AuthError::UnknownKid,
            AuthError::Critical,
            AuthError::Signature,
            AuthError::NoExpiry,
            AuthError::Expired,
            AuthError::NotYet,
            AuthError::Issuer,
            AuthError::Audience,
            AuthError::Subject,
            AuthError::Revoked,
        ];
        for why in all {
            let called: String = AUTHS[auth(Err(Problem::Unauthorized(why))).unwrap()].split('_').collect();
            assert_eq!(called, format!("{why:?}").to_lowercase());
        }
        assert_eq!(AUTHS.len(), 5 + all.len());
    }

    #[test]
    fn what_is_counted_is_counted_for_as_long_as_it_is_there() {
        let all = AtomicU64::new(0);
        let first = Counted::new(&all);
        drop(Counted::new(&all));
        assert_eq!(all.load(Ordering::Relaxed), 1);
        drop(first);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
