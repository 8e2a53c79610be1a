//! One message: what is said on every channel, before it has a form.

use serde::{Deserialize, Serialize};

use super::{Key, Severity};
use crate::desired::TenantId;

/// A summary names so many; more are counted.
pub(super) const NAMED: usize = 50;

/// What a message is to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Never given twice on this host; a message that comes twice (the answer to the first was lost) has the same one.
    pub number: u64,
    /// When it was said, seconds since 1970.
    pub at: u64,
    /// One, or those of a summary; none for a test.
    pub items: Vec<Item>,
    /// More that are not named.
    #[serde(default)]
    pub more: u64,
    /// The tenants whose instances take most memory, bytes, the largest first.
    #[serde(default)]
    pub largest: Vec<(TenantId, u64)>,
}

/// One thing of which a message tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What about it.
    pub news: News,
    /// Which alert.
    pub key: Key,
    /// How bad.
    pub severity: Severity,
    /// Since when, seconds since 1970.
    pub since: u64,
    /// In a sentence.
    pub text: String,
    /// What to run.
    pub command: String,
}

/// What is told of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// It holds, or is worse or better than it was.
    Raised,
    /// It holds no more.
    Resolved,
    /// It still holds.
    Reminder,
}

impl News {
    /// As scripts see it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Resolved => "resolved",
            Self::Reminder => "reminder",
        }
    }
}

impl Alert {
    /// A test message.
    pub fn test(at: u64) -> Self {
        Self { number: 0, at, items: Vec::new(), more: 0, largest: Vec::new() }
    }

    /// The one item of a message that is no summary.
    pub fn single(&self) -> Option<&Item> {
        match self.items.as_slice() {
            [item] if self.more == 0 => Some(item),
            _ => None,
        }
    }

    /// Whether it only tries a channel.
    pub fn is_test(&self) -> bool {
        self.items.is_empty() && self.more == 0
    }

    /// One message in the place of several, told in their order; the last ones are named.
    pub(super) fn merged(alerts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut alerts = alerts.into_iter();
        let mut one = alerts.next()?;
        for alert in alerts {
            one.items.extend(alert.items);
            one.more += alert.more;
            (one.number, one.at, one.largest) = (alert.number, alert.at, alert.largest);
        }
        one.limit();
        Some(one)
    }

    /// Counts the first ones of too many.
    pub(super) fn limit(&mut self) {
        let too_many = self.items.len().saturating_sub(NAMED);
        self.items.drain(..too_many);
        self.more += too_many as u64;
    }
}
