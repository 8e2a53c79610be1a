//! instances.db: what has to survive the agent. Slots, ports, epochs, running instances, quarantine, events, usage, samples of the host.
//!
//! A cache of facts and never the only copy of a user's data: a corrupt file is moved aside and rebuilt from what runs.
//! Synchronous SQLite: a start's three writes take some 50 µs, so the loop may call it directly.
#![forbid(unsafe_code)]

mod events;
mod lock;
mod notes;
mod open;
mod reader;
mod requests;
mod samples;
mod tenants;
mod usage;

use std::{
    cell::Cell,
    io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::Connection;

pub use events::Event;
pub use lock::{AgentLock, LockError};
pub use open::Opened;
pub use reader::Reader;
pub use tenants::{InstanceRecord, SLOTS, TenantRecord};
pub use usage::Usage;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("instances.db: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A file operation failed.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Written by a later sq-agent.
    #[error("{} has layout {found}, this sq-agent knows up to {known}; run the newer version again", path.display())]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its layout.
        found: i64,
        /// The last layout known here.
        known: i64,
    },
    /// Written by an earlier sq-agent, and no agent of this version has run on it since.
    #[error("{} has layout {found} of an earlier version: start this sq-agent once, which brings it up to date", path.display())]
    TooOld {
        /// The database.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// Every slot of the shared pages belongs to a tenant in use.
    #[error("all {SLOTS} slots are in use; no further tenant fits on this host")]
    NoSlot,
    /// Two tenants must never share a port.
    #[error("port {port} already belongs to {owner}")]
    PortOwned {
        /// The port.
        port: u16,
        /// The tenant that has it.
        owner: String,
    },
    /// A method that needs a known tenant got another.
    #[error("{0} has no slot yet")]
    UnknownTenant(String),
}

/// An open instances.db. `Send`, but for one thread at a time.
#[derive(Debug)]
pub struct Store {
    conn: Connection,
    path: PathBuf,
    /// SQLite has said that the file is not what it should be.
    corrupt: Cell<bool>,
}

impl Store {
    /// Runs `work` as one transaction: all of it is kept, or on an error nothing. Every method is one by itself; many
    /// together (10,000 tenants at once) cost a hundredth of as many alone.
    pub fn batch<T>(&self, work: impl FnOnce(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if !self.conn.is_autocommit() {
            return work(self); // inside another batch
        }
        // Rolls back when dropped uncommitted.
        let transaction = self.conn.unchecked_transaction()?;
        let result = work(self)?;
        transaction.commit()?;
        Ok(result)
    }

    /// As [`Self::batch`], and remembers where that shows the file to be corrupt.
    pub(crate) fn watched<T>(&self, work: impl FnOnce(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.batch(work).inspect_err(|error| {
            if matches!(error, StoreError::Sqlite(error) if open::is_corrupt(error)) {
                self.corrupt.set(true);
            }
        })
    }

    /// Whether the file was found corrupt since it was opened; then [`Self::replace`] it.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt.get()
    }
}

/// Seconds since 1970, as all times in the store are.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Such a time for people, as RFC 3339 has it, in UTC.
pub fn rfc3339(at: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at)).to_string()
}

/// What the tests of all parts begin with.
#[cfg(test)]
mod testing {
    use super::Store;
    use crate::desired::TenantId;

    pub(super) fn empty() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        (dir, store)
    }

    pub(super) fn id(text: &str) -> TenantId {
        TenantId::parse(text).unwrap()
    }
}
