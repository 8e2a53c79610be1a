//! What holder and heir say. Programs of different versions speak this: words may be added, never changed.

use serde::{Deserialize, Serialize};

/// Heir to holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToHolder {
    /// It could take over.
    Ready { version: String },
    /// It has taken over.
    Done,
    /// It cannot go on, in words for a person.
    Failed { why: String },
}

/// Holder to heir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToHeir {
    /// The host is the heir's from now on. Descriptors: the lock on the state directory, and, where there is one, the listener of the admin API.
    Yours,
}
