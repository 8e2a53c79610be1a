//! What can go wrong with a shared page, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a shared page could not be opened, or a table not be published.
///
/// A refused publish changes nothing: the table in force stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A system call on the page's file failed.
    #[error("cannot {doing} the shared page {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        doing: &'static str,
        /// The page's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor does not hold a page of this layout.
    #[error("this is not a page that this version of sq-agent can read: {what}; restart the agent and the proxy with the same version")]
    Layout {
        /// What differs.
        what: &'static str,
    },
    /// No random bytes for the table's key.
    #[error("the system gave no random bytes for the route table's key: {0}")]
    Random(getrandom::Error),
    /// More tenants than the table holds.
    #[error("{count} tenants do not fit in the route table, which holds {max}; split them over several agents")]
    TooManyRows {
        /// Rows asked for.
        count: usize,
        /// Rows that fit.
        max: usize,
    },
    /// More API keys than the table holds.
    #[error("{count} API keys do not fit in the route table, which holds {max}; remove keys that nobody uses")]
    TooManyKeys {
        /// Keys asked for.
        count: usize,
        /// Keys that fit.
        max: usize,
    },
    /// More different limits than the table holds.
    #[error("more than {max} different sets of limits; let more tenants share a tier")]
    TooManyLimits {
        /// Distinct limits that fit.
        max: usize,
    },
    /// An id that is empty or longer than 128 bytes.
    #[error("the tenant id {id:?} is {} bytes long; 1 to 128 are allowed", id.len())]
    BadId {
        /// The id.
        id: String,
    },
    /// A tenant twice.
    #[error("the tenant {id:?} has two rows; give it one")]
    DuplicateId {
        /// The id.
        id: String,
    },
    /// One API key with two owners, or listed twice by one.
    #[error("an API key of {second:?} is already that of {first:?}; a key names exactly one tenant, once")]
    DuplicateKey {
        /// Who has the key first.
        first: String,
        /// Who has it again.
        second: String,
    },
    /// A slot beyond the activity page.
    #[error("slot {slot} of {id:?} lies outside the activity page, which has {max}")]
    BadSlot {
        /// Whose.
        id: String,
        /// The slot.
        slot: u32,
        /// Slots in the page.
        max: usize,
    },
    /// Two tenants would share rate limits and counts.
    #[error("slot {slot} of {id:?} already belongs to another tenant; each needs its own")]
    DuplicateSlot {
        /// The second owner.
        id: String,
        /// The slot.
        slot: u32,
    },
}

impl TableError {
    /// For `map_err` on a system call.
    pub(super) fn file<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::File { doing, path: path.to_owned(), source: source.into() }
    }
}

/// The table changed under each of 64 tries to read it (or holds no valid row there): answer 503, Retry-After 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the route table kept changing while it was read; try again")]
pub struct Busy;
