//! Requests of the admin API that are to be done once, however often they are sent: by what each is looked up, what it asked, and what was answered.

use rusqlite::{OptionalExtension as _, params};

use super::{Store, StoreError};
use crate::admin::page::Begun;

/// An answer is kept for a day, seconds.
const KEPT_FOR: u64 = 86_400;
/// Requests kept; the oldest go first.
const KEPT: i64 = 10_000;

impl Store {
    /// Whether a request that is looked up by `lookup` was made in the day before `now`, seconds since 1970; it begins now where it was not.
    pub fn begin_request(&self, lookup: &str, fingerprint: &str, now: u64) -> Result<Begun, StoreError> {
        self.batch(|store| {
            let old = "DELETE FROM requests WHERE at < ?1";
            store.conn.prepare_cached(old)?.execute([now.saturating_sub(KEPT_FOR).cast_signed()])?;
            let find = "SELECT fingerprint, answer FROM requests WHERE lookup = ?1";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Option<Vec<u8>>>(1)?));
            Ok(match store.conn.prepare_cached(find)?.query_row([lookup], read).optional()? {
                Some((asked, _)) if asked != fingerprint => Begun::Other,
                Some((_, Some(answer))) => Begun::Answered(answer),
                Some((_, None)) => Begun::Interrupted,
                None => {
                    let insert = "INSERT INTO requests (lookup, at, fingerprint) VALUES (?1, ?2, ?3)";
                    store.conn.prepare_cached(insert)?.execute(params![lookup, now.cast_signed(), fingerprint])?;
                    let beyond =
                        "DELETE FROM requests WHERE rowid IN (SELECT rowid FROM requests ORDER BY at DESC, rowid DESC LIMIT -1 OFFSET ?1)";
                    store.conn.prepare_cached(beyond)?.execute([KEPT])?;
                    Begun::First
                }
            })
        })
    }

    /// It ended: with an answer that is to be kept, or so that it may be made anew.
    pub fn end_request(&self, lookup: &str, answer: Option<&[u8]>) -> Result<(), StoreError> {
        match answer {
            Some(answer) => {
                self.conn.prepare_cached("UPDATE requests SET answer = ?2 WHERE lookup = ?1")?.execute(params![lookup, answer])?
            }
            None => self.conn.prepare_cached("DELETE FROM requests WHERE lookup = ?1")?.execute([lookup])?,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_for_a_day_and_for_the_same_request_alone() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |store: &Store, fingerprint, now| store.begin_request("k", fingerprint, now).unwrap();
        {
            let store = Store::open(dir.path()).unwrap().store;
            assert_eq!(begin(&store, "f", 1_000_000), Begun::First);
            assert_eq!(begin(&store, "f", 1_000_001), Begun::Interrupted);
            assert_eq!(begin(&store, "g", 1_000_001), Begun::Other);
            store.end_request("k", None).unwrap();
            assert_eq!(begin(&store, "g", 1_000_002), Begun::First);
            store.end_request("k", Some(b"yes")).unwrap();
        }
        let store = Store::open(dir.path()).unwrap().store;
        assert_eq!(begin(&store, "g", 1_000_002 + KEPT_FOR), Begun::Answered(b"yes".to_vec()));
        assert_eq!(begin(&store, "g", 1_000_003 + KEPT_FOR), Begun::First, "a day later it is another one");
    }

    #[test]
    fn the_oldest_go_where_there_are_many() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        let many = KEPT.cast_unsigned() + 5;
        store.batch(|store| (0..many).try_for_each(|n| store.begin_request(&n.to_string(), "f", 1_000_000 + n / 100).map(drop))).unwrap();
        let count: i64 = store.conn.query_row("SELECT count(*) FROM requests", [], |row| row.get(0)).unwrap();
        assert_eq!(count, KEPT);
        assert_eq!(store.begin_request("4", "f", 1_000_200).unwrap(), Begun::First);
        assert_eq!(store.begin_request("9", "f", 1_000_200).unwrap(), Begun::Interrupted);
    }
}
