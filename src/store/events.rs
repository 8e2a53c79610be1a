//! What happened, for `status` and for whoever looks in the morning.

use rusqlite::params;

use super::{Store, StoreError};
use crate::desired::TenantId;

/// Events kept; the oldest go first. At one a second still nearly three hours, some 2 MB.
const KEPT: i64 = 10_000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Seconds since 1970.
    pub at: u64,
    /// The tenant, where it concerns one.
    pub id: Option<String>,
    /// A word such as `started`.
    pub kind: String,
    /// A sentence for people.
    pub detail: String,
}

impl Store {
    /// Adds an event at `at`, seconds since 1970.
    pub fn event(&self, at: u64, id: Option<&TenantId>, kind: &str, detail: &str) -> Result<(), StoreError> {
        self.batch(|store| {
            let insert = "INSERT INTO events (at, id, kind, detail) VALUES (?1, ?2, ?3, ?4)";
            let id = id.map(TenantId::as_str);
            let number = store.conn.prepare_cached(insert)?.insert(params![at.cast_signed(), id, kind, detail])?;
            store.conn.prepare_cached("DELETE FROM events WHERE number <= ?1")?.execute([number - KEPT])?;
            Ok(())
        })
    }

    /// The last `limit` events, the newest first.
    pub fn events(&self, limit: u32) -> Result<Vec<Event>, StoreError> {
        let mut statement = self.conn.prepare_cached("SELECT at, id, kind, detail FROM events ORDER BY number DESC LIMIT ?1")?;
        let rows = statement.query_map([limit], |row| {
            Ok(Event { at: row.get::<_, i64>(0)?.cast_unsigned(), id: row.get(1)?, kind: row.get(2)?, detail: row.get(3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_come_first_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        let id = TenantId::parse("a").unwrap();
        let extra = 5;
        store.batch(|store| (0..(KEPT.cast_unsigned() + extra)).try_for_each(|n| store.event(n, Some(&id), "started", "x"))).unwrap();
        store.event(7, None, "desired", "y").unwrap();
        let events = store.events(u32::MAX).unwrap();
        assert_eq!(events.len() as i64, KEPT);
        assert_eq!(events[0], Event { at: 7, id: None, kind: "desired".into(), detail: "y".into() });
        assert_eq!(events.last().unwrap().at, extra + 1);
        assert_eq!(store.events(2).unwrap().len(), 2);
    }
}
