//! What happened, for `status` and for whoever looks in the morning.

use rusqlite::params;

use super::{Store, StoreError};
use crate::desired::TenantId;

/// Events kept; the oldest go first. At one a second still nearly three hours, some 2 MB.
const KEPT: i64 = 10_000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Later ones have higher numbers.
    pub number: u64,
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
        self.events_of(None, None, None, limit)
    }

    /// The last `limit` events before the number `before`: those about `id` and of `kind`, where these are given. The newest first.
    pub fn events_of(&self, id: Option<&TenantId>, kind: Option<&str>, before: Option<u64>, limit: u32) -> Result<Vec<Event>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "SELECT number, at, id, kind, detail FROM events
             WHERE number < ?1 AND (?2 IS NULL OR id = ?2) AND (?3 IS NULL OR kind = ?3) ORDER BY number DESC LIMIT ?4",
        )?;
        let before = before.and_then(|number| i64::try_from(number).ok()).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![before, id.map(TenantId::as_str), kind, limit], |row| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            Ok(Event { number: number(0)?, at: number(1)?, id: row.get(2)?, kind: row.get(3)?, detail: row.get(4)? })
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
        let number = events[0].number;
        assert_eq!(events[0], Event { number, at: 7, id: None, kind: "desired".into(), detail: "y".into() });
        assert_eq!(events.last().unwrap().at, extra + 1);
        assert_eq!(store.events(2).unwrap().len(), 2);
    }

    #[test]
    fn a_page_has_what_was_asked_for_and_the_next_one_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        let ids = ["a", "b"].map(|id| TenantId::parse(id).unwrap());
        for n in 0..20 {
            store.event(n, Some(&ids[usize::from(n % 2 == 1)]), if n % 4 == 0 { "crashed" } else { "stopped" }, "x").unwrap();
        }
        let times = |events: Vec<Event>| events.iter().map(|event| event.at).collect::<Vec<_>>();
        let first = store.events_of(Some(&ids[0]), None, None, 3).unwrap();
        let next = store.events_of(Some(&ids[0]), None, Some(first[2].number), 3).unwrap();
        assert_eq!((times(first), times(next)), (vec![18, 16, 14], vec![12, 10, 8]));
        assert_eq!(times(store.events_of(None, Some("crashed"), None, 100).unwrap()), [16, 12, 8, 4, 0]);
        assert!(store.events_of(None, None, Some(0), 9).unwrap().is_empty());
    }
}
