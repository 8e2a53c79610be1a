//! instances.db for those who only read it: commands, and answers that need not go through the loop. Also while no agent runs.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags};

use super::{Event, Store, StoreError, Usage, open};
use crate::{
    desired::TenantId,
    history::{month::Month, sample::Sample},
};

/// An open instances.db that is never written to by whoever has this.
#[derive(Debug)]
pub struct Reader(Store);

impl Reader {
    /// Opens `<state_dir>/instances.db`. No lock is needed: it sees what was committed, and whoever writes is not kept waiting.
    ///
    /// # Errors
    /// There is none, or it has the layout of another version.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(open::FILE);
        let conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(Duration::from_secs(2))?;
        open::is_current(&conn, &path)?;
        Ok(Self(Store::of(conn, path)))
    }

    /// See [`Store::events`].
    pub fn events(&self, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.0.events(limit)
    }

    /// See [`Store::events_of`].
    pub fn events_of(&self, id: Option<&TenantId>, kind: Option<&str>, before: Option<u64>, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.0.events_of(id, kind, before, limit)
    }

    /// See [`Store::events_after`].
    pub fn events_after(&self, number: u64, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.0.events_after(number, limit)
    }

    /// See [`Store::usage_of_month`].
    pub fn usage_of_month(&self, month: Month, only: Option<&TenantId>) -> Result<Vec<Usage>, StoreError> {
        self.0.usage_of_month(month, only)
    }

    /// See [`Store::usage_by_day`].
    pub fn usage_by_day(&self, month: Month, only: Option<&TenantId>) -> Result<Vec<Usage>, StoreError> {
        self.0.usage_by_day(month, only)
    }

    /// See [`Store::usage_of_days`].
    pub fn usage_of_days(&self, id: &TenantId, first: u32, last: u32) -> Result<Vec<Usage>, StoreError> {
        self.0.usage_of_days(id, first, last)
    }

    /// See [`Store::samples`].
    pub fn samples(&self, step: u32, since: u64) -> Result<Vec<Sample>, StoreError> {
        self.0.samples(step, since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_is_written_meanwhile_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        let reader = Reader::open(dir.path()).unwrap();
        assert_eq!(reader.events(9).unwrap(), []);
        store.event(1, None, "x", "").unwrap();
        assert_eq!(reader.events(9).unwrap().len(), 1);
        assert!(reader.0.event(1, None, "x", "").is_err());
        drop(store);
        assert_eq!(Reader::open(dir.path()).unwrap().events(9).unwrap().len(), 1, "also where no agent runs");
    }

    #[test]
    fn a_database_that_is_not_there_or_is_another_versions_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Reader::open(dir.path()).is_err());
        let store = Store::open(dir.path()).unwrap().store;
        store.conn.pragma_update(None, "user_version", 2).unwrap();
        assert!(matches!(Reader::open(dir.path()), Err(StoreError::TooOld { found: 2, .. })));
        store.conn.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Reader::open(dir.path()), Err(StoreError::TooNew { .. })));
    }
}
