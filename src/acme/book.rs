//! When a certificate is to be asked for. Pure.

use std::time::Duration;

use crate::certificate::Facts;

/// First and longest pause after a failure. Let's Encrypt allows five failures an hour for a name.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3_600));

/// What is remembered from try to try.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    failures: u32,
}

impl Book {
    /// It went wrong. How long to wait; `jitter` in 0..=1 keeps many hosts from trying at the same moment.
    pub(super) fn failed(&mut self, jitter: f64) -> Duration {
        let doubled = BACK_OFF.0.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1).min(31);
        doubled.min(BACK_OFF.1).mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0)
    }

    /// It went well.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// From when on another certificate is to be asked for, seconds since 1970: at once where there is none for just these `names`, else when two
/// thirds of its life are over, and up to a thirtieth of it later by `jitter` (0..=1).
pub(super) fn due(held: Option<&Facts>, names: &[String], jitter: f64) -> u64 {
    let mut wanted = names.to_vec();
    wanted.sort_unstable();
    match held {
        Some(held) if held.names == wanted => {
            let lifetime = held.lifetime();
            let later = Duration::from_secs(lifetime / 30).mul_f64(jitter.clamp(0.0, 1.0));
            held.not_before + lifetime / 3 * 2 + later.as_secs()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn held() -> Facts {
        Facts { not_before: 1_000 * DAY, not_after: 1_090 * DAY, names: vec!["a.example".into(), "b.example".into()] }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn one_is_renewed_when_two_thirds_of_its_life_are_over() {
        let wanted = names(&["b.example", "a.example"]);
        assert_eq!(due(Some(&held()), &wanted, 0.0), 1_060 * DAY);
        assert_eq!(due(Some(&held()), &wanted, 1.0), 1_063 * DAY);
    }

    #[test]
    fn where_there_is_none_for_these_names_it_is_asked_for_at_once() {
        assert_eq!(due(None, &names(&["a.example"]), 0.5), 0);
        assert_eq!(due(Some(&held()), &names(&["a.example"]), 0.5), 0);
        assert_eq!(due(Some(&held()), &names(&["a.example", "c.example"]), 0.5), 0);
    }

    #[test]
    fn a_server_that_refuses_is_asked_ever_more_rarely_and_never_left_alone() {
        let mut book = Book::default();
        let minutes: Vec<u64> = (0..12).map(|_| book.failed(0.0).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]);
        for _ in 0..100 {
            assert_eq!(book.failed(1.0), Duration::from_secs(6 * 3_600 + 90 * 60));
        }
        book.succeeded();
        assert_eq!(book.failed(0.0), Duration::from_secs(60));
    }
}
