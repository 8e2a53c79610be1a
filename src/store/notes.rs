//! Single values that survive the agent, each under a name.

use rusqlite::OptionalExtension as _;

use super::{Store, StoreError};

impl Store {
    /// The value under `name`, if there is one.
    pub fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.conn.prepare_cached("SELECT value FROM notes WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()?)
    }

    /// All of them.
    pub(super) fn notes(&self) -> Result<Vec<(String, String)>, StoreError> {
        let mut statement = self.conn.prepare_cached("SELECT name, value FROM notes")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Puts `value` under `name`.
    pub fn set_note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let upsert = "INSERT INTO notes VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
        self.conn.prepare_cached(upsert)?.execute([name, value])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_value_under_a_name_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = Store::open(dir.path()).unwrap().store;
            assert_eq!(store.note("a").unwrap(), None);
            store.set_note("a", "1").unwrap();
            store.set_note("a", "2").unwrap();
        }
        assert_eq!(Store::open(dir.path()).unwrap().store.note("a").unwrap().as_deref(), Some("2"));
    }
}
