//! A share of something, and from where on it is told: with a gap between up and down, so that nothing goes to and fro.

use serde::{Deserialize, Serialize};

use super::Severity;
use crate::desired::Levels;

/// Below a threshold by so many points it is clear again.
const GAP: u8 = 5;

/// How much of something is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Bytes that are taken.
    pub used: u64,
    /// Bytes that there are.
    pub total: u64,
}

impl Share {
    /// In whole percent, rounded down.
    pub fn percent(self) -> u64 {
        let percent = u128::from(self.used) * 100 / u128::from(self.total.max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }

    fn reaches(self, percent: u8) -> bool {
        u128::from(self.used) * 100 >= u128::from(self.total) * u128::from(percent)
    }

    /// As a person reads it.
    pub fn text(self) -> String {
        format!("{} % ({} of {} MB)", self.percent(), self.used >> 20, self.total >> 20)
    }
}

/// Whether [`level`] has to look closer: most have not.
pub(super) fn may_hold(share: Share, levels: Levels) -> bool {
    share.total > 0 && share.percent() >= u64::from(levels.warning.saturating_sub(GAP))
}

/// How bad `share` is, where `before` is what held so far.
pub(super) fn level(share: Share, levels: Levels, before: Option<Severity>) -> Option<Severity> {
    let holds = |threshold: u8, severity: Severity| {
        let held = before.is_some_and(|before| before >= severity);
        share.reaches(if held { threshold.saturating_sub(GAP).max(1) } else { threshold })
    };
    match () {
        () if share.total == 0 => None,
        () if holds(levels.critical, Severity::Critical) => Some(Severity::Critical),
        () if holds(levels.warning, Severity::Warning) => Some(Severity::Warning),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        Severity::{Critical, Warning},
        *,
    };

    const LEVELS: Levels = Levels { warning: 80, critical: 90 };

    fn share(percent: u64) -> Share {
        Share { used: percent, total: 100 }
    }

    #[test]
    fn it_is_raised_at_80_and_90_and_clear_below_85_and_75() {
        let walk = |percents: &[u64]| {
            let mut before = None;
            let step = |&percent: &u64| {
                before = level(share(percent), LEVELS, before);
                before
            };
            percents.iter().map(step).collect::<Vec<_>>()
        };
        assert_eq!(walk(&[79, 80, 76, 75, 74, 79]), [None, Some(Warning), Some(Warning), Some(Warning), None, None]);
        assert_eq!(walk(&[90, 85, 84, 89, 90]), [Some(Critical), Some(Critical), Some(Warning), Some(Warning), Some(Critical)]);
        assert_eq!(walk(&[95, 10]), [Some(Critical), None]);
        assert_eq!(level(Share { used: 1, total: 0 }, LEVELS, Some(Critical)), None, "of nothing");
        assert_eq!(level(share(0), Levels { warning: 1, critical: 2 }, Some(Critical)), None, "even the lowest one clears");
    }

    proptest! {
        #[test]
        fn what_sways_by_less_than_the_gap_is_never_taken_back(base in 0_u64..96, sways in proptest::collection::vec(0_u64..5, 1..40)) {
            let mut before = None;
            for sway in sways {
                let now = level(share(base + sway), LEVELS, before);
                prop_assert!(now >= before);
                before = now;
            }
        }

        #[test]
        fn more_is_never_less_bad(used in 0_u64..200, more in 0_u64..50, before in proptest::option::of(prop_oneof![Just(Warning), Just(Critical)])) {
            let level = |percent| level(share(percent), LEVELS, before);
            prop_assert!(level(used) <= level(used + more));
            prop_assert!(level(used).is_none() || may_hold(share(used), LEVELS));
        }
    }
}
