//! What happened in the last 30 days, for `status`, `events` and `why`, and for whoever looks in the morning.

use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::desired::TenantId;

/// How long an event is kept, seconds.
const KEPT_FOR: u64 = 30 * 86_400;
/// Events kept at most: one every 26 s over 30 days, some 20 MB. Where more happens, the oldest go before their time.
const KEPT: i64 = 100_000;
/// So many of the oldest are looked at with each new one: more go than come, and none has to wait.
const STEP: i64 = 4;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
            store.forget_events(at, number, STEP)
        })
    }

    /// Removes those of the oldest `step` events that are past their time at `now`, or too many where `number` is the latest one.
    fn forget_events(&self, now: u64, number: i64, step: i64) -> Result<(), StoreError> {
        let forget =
            "DELETE FROM events WHERE number IN (SELECT number FROM events ORDER BY number LIMIT ?1) AND (at < ?2 OR number <= ?3)";
        let since = now.saturating_sub(KEPT_FOR).cast_signed();
        self.conn.prepare_cached(forget)?.execute(params![step, since, number - KEPT])?;
        Ok(())
    }

    /// Removes events that are past their time at `now`, a few at a call, also where none comes.
    pub fn thin_events(&self, now: u64) -> Result<(), StoreError> {
        let latest: i64 = self.conn.prepare_cached("SELECT COALESCE(MAX(number), 0) FROM events")?.query_row([], |row| row.get(0))?;
        self.forget_events(now, latest, 100)
    }

    /// The last `limit` events, the newest first.
    pub fn events(&self, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.events_of(None, None, None, limit)
    }

    /// The last `limit` events before the number `before`: those about `id` and of `kind`, where these are given. The newest first.
    pub fn events_of(&self, id: Option<&TenantId>, kind: Option<&str>, before: Option<u64>, limit: u32) -> Result<Vec<Event>, StoreError> {
        let before = before.and_then(|number| i64::try_from(number).ok()).unwrap_or(i64::MAX);
        // Of one tenant by the index, else every event would be looked at.
        let whose = if id.is_some() { "id = ?2" } else { "?2 IS NULL" };
        let mut statement = self.conn.prepare_cached(&format!(
            "SELECT number, at, id, kind, detail FROM events
             WHERE number < ?1 AND {whose} AND (?3 IS NULL OR kind = ?3) ORDER BY number DESC LIMIT ?4"
        ))?;
        let rows = statement.query_map(params![before, id.map(TenantId::as_str), kind, limit], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// At most `limit` events that came after the one of this number, the oldest first.
    pub fn events_after(&self, number: u64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let select = "SELECT number, at, id, kind, detail FROM events WHERE number > ?1 ORDER BY number LIMIT ?2";
        let mut statement = self.conn.prepare_cached(select)?;
        let rows = statement.query_map(params![number.cast_signed(), limit], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Event> {
    let number = |column| row.get(column).map(i64::cast_unsigned);
    Ok(Event { number: number(0)?, at: number(1)?, id: row.get(2)?, kind: row.get(3)?, detail: row.get(4)? })
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{empty, id},
        *,
    };

    #[test]
    fn the_newest_events_come_first_and_the_oldest_go_where_too_many_come() {
        let (_dir, store) = empty();
        let extra = 5;
        store.batch(|store| (0..(KEPT.cast_unsigned() + extra)).try_for_each(|n| store.event(n, Some(&id("a")), "started", "x"))).unwrap();
        store.event(7, None, "desired", "y").unwrap();
        let events = store.events(u32::MAX).unwrap();
        assert_eq!(events.len() as i64, KEPT);
        let newest = Event { number: KEPT.cast_unsigned() + extra + 1, at: 7, id: None, kind: "desired".into(), detail: "y".into() };
        assert_eq!(events[0], newest);
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

    #[test]
    fn an_event_is_kept_for_30_days() {
        let (_dir, store) = empty();
        let start = 1_800_000_000;
        (0..40).for_each(|n| store.event(start + n, None, "x", "").unwrap());
        store.event(start + KEPT_FOR, None, "x", "").unwrap();
        assert_eq!(store.events(100).unwrap().len(), 41);
        store.event(start + KEPT_FOR + 20, None, "x", "").unwrap();
        assert_eq!(store.events(100).unwrap().len(), 42 - 4, "a few at a time");
        store.thin_events(start + KEPT_FOR + 20).unwrap();
        let left: Vec<_> = store.events(100).unwrap().iter().rev().map(|event| event.at - start).collect();
        assert_eq!(left[..2], [20, 21]);
    }

    #[test]
    fn one_tenants_events_and_what_came_since_are_found() {
        let (_dir, store) = empty();
        for (who, kind) in [("a", "one"), ("b", "two"), ("a", "three")] {
            store.event(1, Some(&id(who)), kind, "").unwrap();
        }
        let kinds = |events: Vec<Event>| events.into_iter().map(|event| event.kind).collect::<Vec<_>>();
        let of = |id: &TenantId, kind, before, limit| kinds(store.events_of(Some(id), kind, before, limit).unwrap());
        assert_eq!(of(&id("a"), None, None, 10), ["three", "one"]);
        assert_eq!(of(&id("a"), None, None, 1), ["three"]);
        assert_eq!(of(&id("a"), None, Some(3), 10), ["one"], "the page before");
        assert_eq!(of(&id("a"), Some("three"), None, 10), ["three"]);
        assert_eq!(kinds(store.events_of(None, Some("two"), None, 10).unwrap()), ["two"]);
        assert_eq!(kinds(store.events_after(1, 10).unwrap()), ["two", "three"]);
        assert_eq!(kinds(store.events_after(0, 1).unwrap()), ["one"]);
    }
}
