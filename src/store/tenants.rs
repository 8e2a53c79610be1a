//! What belongs to a tenant: slot, port, epochs, its running instance; and ports in quarantine.

use std::collections::HashMap;

use rusqlite::{ErrorCode, OptionalExtension, Row, params};

use super::{Store, StoreError};
use crate::desired::TenantId;

/// Slots in each shared page (see [`crate::route`]): the most tenants one host can know at a time.
pub const SLOTS: u32 = 32_768;

/// All that is kept of one tenant, also of a removed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    /// Whose.
    pub id: TenantId,
    /// Index in both shared pages; `None` where a removed tenant's slot went to another.
    pub slot: Option<u32>,
    /// The port it keeps.
    pub port: Option<u16>,
    /// The last epoch used; 0 before the first start.
    pub epoch: u64,
    /// The sq program of that start ([`crate::desired::SqSource::identity`]).
    pub program: Option<String>,
    /// What [`Store::set_spec`] stored.
    pub spec: Option<String>,
    /// When it was removed from tenants.toml, seconds since 1970.
    pub removed_at: Option<u64>,
    /// What ran when the agent last wrote.
    pub instance: Option<InstanceRecord>,
}

/// One running instance, as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Number of this start.
    pub epoch: u64,
    /// Process id.
    pub pid: u32,
    /// Start time, clock ticks since boot.
    pub start_time: u64,
    /// The boot in which `pid` and `start_time` mean something.
    pub boot_id: String,
    /// Port it was started on.
    pub port: u16,
    /// The sq program as the desired state named it ([`crate::desired::SqSource::identity`]).
    pub program: String,
    /// Seconds since 1970.
    pub started_at: u64,
}

impl Store {
    /// Everything known, ordered by id.
    pub fn load(&self) -> Result<Vec<TenantRecord>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "SELECT t.id, t.slot, t.port, t.epoch, t.spec, t.removed_at,
                    i.epoch, i.pid, i.start_time, i.boot_id, i.port, i.program, i.started_at, t.program
             FROM tenants t LEFT JOIN instances i ON i.id = t.id ORDER BY t.id",
        )?;
        let rows = statement.query_map([], read_tenant)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The tenant's slot: the one it has had, else the lowest free one. Also takes back a [`Store::tombstone`].
    ///
    /// A removed tenant keeps its slot, so that it finds its counts when it comes back, until none else is free; then
    /// the one that was removed longest ago loses it.
    pub fn assign_slot(&self, id: &TenantId) -> Result<u32, StoreError> {
        self.batch(|store| {
            let known = "UPDATE tenants SET removed_at = NULL WHERE id = ?1 RETURNING slot";
            let slot: Option<Option<u32>> = store.conn.prepare_cached(known)?.query_row([id.as_str()], |row| row.get(0)).optional()?;
            if let Some(Some(slot)) = slot {
                return Ok(slot);
            }
            let slot = store.free_slot()?;
            let insert = "INSERT INTO tenants (id, slot) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET slot = excluded.slot";
            store.conn.prepare_cached(insert)?.execute(params![id.as_str(), slot])?;
            Ok(slot)
        })
    }

    /// No row is ever deleted and a slot only changes hands, so those in use are 0..n; gaps are only where records were lost, see
    /// [`Self::put_back`], and are used last.
    fn free_slot(&self) -> Result<u32, StoreError> {
        let next: u32 = self.conn.prepare_cached("SELECT COALESCE(MAX(slot) + 1, 0) FROM tenants")?.query_row([], |row| row.get(0))?;
        if next < SLOTS {
            return Ok(next);
        }
        let gap =
            "SELECT slot - 1 FROM tenants WHERE slot > 0 AND slot - 1 NOT IN (SELECT slot FROM tenants WHERE slot IS NOT NULL) LIMIT 1";
        if let Some(gap) = self.conn.prepare_cached(gap)?.query_row([], |row| row.get(0)).optional()? {
            return Ok(gap);
        }
        let oldest = "SELECT id, slot FROM tenants WHERE removed_at IS NOT NULL AND slot IS NOT NULL ORDER BY removed_at LIMIT 1";
        let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?));
        let found = self.conn.prepare_cached(oldest)?.query_row([], read).optional()?;
        let (loser, slot) = found.ok_or(StoreError::NoSlot)?;
        self.conn.prepare_cached("UPDATE tenants SET slot = NULL WHERE id = ?1")?.execute([loser])?;
        Ok(slot)
    }

    /// Writes down tenants whose records were lost, as they are known otherwise. One whose slot or port belongs to another by now is left out: it is
    /// taken in as a new one. What the lost records counted is not known, so later epochs are far above any of it.
    pub fn put_back(&self, tenants: &[TenantRecord]) -> Result<(), StoreError> {
        self.batch(|store| {
            store.raise_epoch_floor()?;
            for record in tenants {
                let TenantRecord { id, slot, port, epoch, program, spec, removed_at, instance } = record;
                let insert =
                    "INSERT OR IGNORE INTO tenants (id, slot, port, epoch, spec, removed_at, program) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                let values = params![id.as_str(), slot, port, epoch.cast_signed(), spec, removed_at.map(u64::cast_signed), program];
                let written = store.conn.prepare_cached(insert)?.execute(values)?;
                if let Some(instance) = instance.as_ref().filter(|_| written > 0) {
                    store.record_instance(id, instance)?;
                }
            }
            Ok(())
        })
    }

    /// The number of the tenant's next start, written before it is returned: it is never given twice, whatever dies
    /// in between, and not after a removal and return either. The key of the instance is derived from it.
    pub fn next_epoch(&self, id: &TenantId) -> Result<u64, StoreError> {
        let next = "UPDATE tenants
             SET epoch = MAX(epoch, COALESCE((SELECT value FROM meta WHERE name = 'epoch_floor'), 0)) + 1
             WHERE id = ?1 RETURNING epoch";
        let epoch = self.conn.prepare_cached(next)?.query_row([id.as_str()], |row| read_u64(row, 0)).optional()?;
        epoch.ok_or_else(|| unknown(id))
    }

    /// Notes the program of the start that comes, before it is begun.
    pub fn set_program(&self, id: &TenantId, program: &str) -> Result<(), StoreError> {
        let set = "UPDATE tenants SET program = ?2 WHERE id = ?1";
        self.update_tenant(id, self.conn.prepare_cached(set)?.execute(params![id.as_str(), program])?)
    }

    /// Raises the tenant's last epoch to at least `epoch`: after a rebuild, to that of an instance found running.
    pub fn raise_epoch(&self, id: &TenantId, epoch: u64) -> Result<(), StoreError> {
        let raise = "UPDATE tenants SET epoch = MAX(epoch, ?2) WHERE id = ?1";
        self.update_tenant(id, self.conn.prepare_cached(raise)?.execute(params![id.as_str(), epoch.cast_signed()])?)
    }

    /// Gives the tenant this port, ends its quarantine, and forgets the tenant's former one.
    pub fn set_port(&self, id: &TenantId, port: u16) -> Result<(), StoreError> {
        self.batch(|store| {
            let set = "UPDATE tenants SET port = ?2 WHERE id = ?1";
            match store.conn.prepare_cached(set)?.execute(params![id.as_str(), port]) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    let owner = "SELECT id FROM tenants WHERE port = ?1";
                    let owner = store.conn.prepare_cached(owner)?.query_row([port], |row| row.get(0))?;
                    Err(StoreError::PortOwned { port, owner })
                }
                result => {
                    store.update_tenant(id, result?)?;
                    store.conn.prepare_cached("DELETE FROM quarantine WHERE port = ?1")?.execute([port])?;
                    Ok(())
                }
            }
        })
    }

    /// Takes the tenant's port away, if it has one, and keeps everybody off it until `until` (seconds since 1970).
    pub fn release_port(&self, id: &TenantId, until: u64) -> Result<(), StoreError> {
        self.batch(|store| {
            let read = "SELECT port FROM tenants WHERE id = ?1";
            let port: Option<Option<u16>> = store.conn.prepare_cached(read)?.query_row([id.as_str()], |row| row.get(0)).optional()?;
            if let Some(port) = port.flatten() {
                store.conn.prepare_cached("UPDATE tenants SET port = NULL WHERE id = ?1")?.execute([id.as_str()])?;
                let insert = "INSERT OR REPLACE INTO quarantine VALUES (?1, ?2)";
                store.conn.prepare_cached(insert)?.execute(params![port, until.cast_signed()])?;
            }
            Ok(())
        })
    }

    /// Ports in quarantine at `now`, each with its end; drops those that are over.
    pub fn quarantined(&self, now: u64) -> Result<HashMap<u16, u64>, StoreError> {
        self.batch(|store| {
            store.conn.prepare_cached("DELETE FROM quarantine WHERE until <= ?1")?.execute([now.cast_signed()])?;
            let mut statement = store.conn.prepare_cached("SELECT port, until FROM quarantine")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, read_u64(row, 1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Records what now runs for the tenant, in place of what was recorded before.
    pub fn record_instance(&self, id: &TenantId, instance: &InstanceRecord) -> Result<(), StoreError> {
        let InstanceRecord { epoch, pid, start_time, boot_id, port, program, started_at } = instance;
        let insert = "INSERT OR REPLACE INTO instances VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let (epoch, start_time, started_at) = (epoch.cast_signed(), start_time.cast_signed(), started_at.cast_signed());
        let values = params![id.as_str(), epoch, pid, start_time, boot_id, port, program, started_at];
        match self.conn.prepare_cached(insert)?.execute(values) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Err(unknown(id)),
            result => Ok(result.map(drop)?),
        }
    }

    /// Nothing runs for the tenant any more.
    pub fn clear_instance(&self, id: &TenantId) -> Result<(), StoreError> {
        self.conn.prepare_cached("DELETE FROM instances WHERE id = ?1")?.execute([id.as_str()])?;
        Ok(())
    }

    /// Keeps the desired state that was last carried out, as JSON.
    pub fn set_spec(&self, id: &TenantId, spec: &str) -> Result<(), StoreError> {
        let set = "UPDATE tenants SET spec = ?2 WHERE id = ?1";
        self.update_tenant(id, self.conn.prepare_cached(set)?.execute([id.as_str(), spec])?)
    }

    /// Marks the tenant as removed at `at` (seconds since 1970). Slot and epoch stay; see [`Store::release_port`].
    pub fn tombstone(&self, id: &TenantId, at: u64) -> Result<(), StoreError> {
        let set = "UPDATE tenants SET removed_at = ?2 WHERE id = ?1";
        self.update_tenant(id, self.conn.prepare_cached(set)?.execute(params![id.as_str(), at.cast_signed()])?)
    }

    fn update_tenant(&self, id: &TenantId, rows: usize) -> Result<(), StoreError> {
        if rows == 0 { Err(unknown(id)) } else { Ok(()) }
    }
}

fn unknown(id: &TenantId) -> StoreError {
    StoreError::UnknownTenant(id.to_string())
}

/// SQLite's integers are signed; ours are stored as the same 64 bits.
fn read_u64(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column).map(i64::cast_unsigned)
}

fn read_tenant(row: &Row<'_>) -> rusqlite::Result<TenantRecord> {
    let id: String = row.get(0)?;
    let id =
        TenantId::parse(&id).map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))?;
    let instance = match row.get::<_, Option<i64>>(6)? {
        None => None,
        Some(epoch) => Some(InstanceRecord {
            epoch: epoch.cast_unsigned(),
            pid: row.get(7)?,
            start_time: read_u64(row, 8)?,
            boot_id: row.get(9)?,
            port: row.get(10)?,
            program: row.get(11)?,
            started_at: read_u64(row, 12)?,
        }),
    };
    let removed_at = row.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned);
    Ok(TenantRecord {
        id,
        slot: row.get(1)?,
        port: row.get(2)?,
        epoch: read_u64(row, 3)?,
        program: row.get(13)?,
        spec: row.get(4)?,
        removed_at,
        instance,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{empty, id},
        *,
    };

    fn instance(epoch: u64) -> InstanceRecord {
        let boot_id = "b7a1c5c0-0000-0000-0000-000000000000".into();
        InstanceRecord {
            epoch,
            pid: 4711,
            start_time: u64::MAX,
            boot_id,
            port: 10_001,
            program: "sq 0.6.0".into(),
            started_at: 1_770_000_000,
        }
    }

    #[test]
    fn everything_written_is_read_back_by_the_next_agent() {
        let (dir, store) = empty();
        let a = id("user+x@example.com");
        let slot = store.assign_slot(&a).unwrap();
        let epoch = store.next_epoch(&a).unwrap();
        store.set_port(&a, 10_001).unwrap();
        store.set_program(&a, "sq 0.6.0").unwrap();
        store.set_spec(&a, "{}").unwrap();
        store.record_instance(&a, &instance(epoch)).unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap().store;
        let expected = TenantRecord {
            id: a.clone(),
            slot: Some(slot),
            port: Some(10_001),
            epoch,
            program: Some("sq 0.6.0".into()),
            spec: Some("{}".into()),
            removed_at: None,
            instance: Some(instance(epoch)),
        };
        assert_eq!(store.load().unwrap(), std::slice::from_ref(&expected));
        store.clear_instance(&a).unwrap();
        store.tombstone(&a, 5).unwrap();
        assert_eq!(store.load().unwrap(), [TenantRecord { removed_at: Some(5), instance: None, ..expected }]);
    }

    #[test]
    fn a_tenant_that_comes_back_has_its_slot_and_a_higher_epoch() {
        let (_dir, store) = empty();
        assert_eq!((store.assign_slot(&id("a")).unwrap(), store.assign_slot(&id("b")).unwrap()), (0, 1));
        assert_eq!((store.next_epoch(&id("a")).unwrap(), store.next_epoch(&id("a")).unwrap()), (1, 2));
        store.tombstone(&id("a"), 5).unwrap();
        assert_eq!(store.assign_slot(&id("c")).unwrap(), 2, "not the slot of a, who may come back");
        assert_eq!(store.assign_slot(&id("a")).unwrap(), 0);
        assert_eq!(store.next_epoch(&id("a")).unwrap(), 3);
        assert_eq!(store.load().unwrap()[0].removed_at, None);
    }

    #[test]
    fn when_no_slot_is_left_the_tenant_removed_longest_ago_gives_its_own() {
        let (_dir, store) = empty();
        store.batch(|store| (0..SLOTS).try_for_each(|n| store.assign_slot(&id(&format!("t{n}"))).map(drop))).unwrap();
        assert!(matches!(store.assign_slot(&id("late")), Err(StoreError::NoSlot)));
        store.next_epoch(&id("t7")).unwrap();
        store.tombstone(&id("t7"), 10).unwrap();
        store.tombstone(&id("t8"), 11).unwrap();
        assert_eq!(store.assign_slot(&id("late")).unwrap(), 7);
        assert_eq!(store.assign_slot(&id("t7")).unwrap(), 8, "back, in what is left");
        assert_eq!(store.next_epoch(&id("t7")).unwrap(), 2, "its epochs go on");
        assert!(matches!(store.assign_slot(&id("t8")), Err(StoreError::NoSlot)));
    }

    #[test]
    fn a_port_has_one_owner_and_rests_after_use() {
        let (_dir, store) = empty();
        store.assign_slot(&id("a")).unwrap();
        store.assign_slot(&id("b")).unwrap();
        store.set_port(&id("a"), 10_001).unwrap();
        let error = store.set_port(&id("b"), 10_001).unwrap_err().to_string();
        assert_eq!(error, "port 10001 already belongs to a");
        store.release_port(&id("a"), 160).unwrap();
        store.release_port(&id("a"), 999).unwrap();
        assert_eq!(store.quarantined(159).unwrap(), HashMap::from([(10_001, 160)]));
        store.set_port(&id("b"), 10_001).unwrap();
        assert!(store.quarantined(0).unwrap().is_empty(), "it is in use");
        store.release_port(&id("b"), 160).unwrap();
        assert!(store.quarantined(160).unwrap().is_empty());
    }

    #[test]
    fn a_batch_that_fails_leaves_nothing() {
        let (_dir, store) = empty();
        let result = store.batch(|store| {
            store.assign_slot(&id("a"))?;
            store.next_epoch(&id("nobody"))
        });
        assert!(matches!(result, Err(StoreError::UnknownTenant(who)) if who == "nobody"));
        assert!(store.load().unwrap().is_empty());
    }

    #[test]
    fn an_unknown_tenant_is_an_error_and_not_silence() {
        let (_dir, store) = empty();
        let who = id("nobody");
        assert!(store.set_port(&who, 1).is_err() && store.set_spec(&who, "").is_err() && store.tombstone(&who, 1).is_err());
        assert!(matches!(store.record_instance(&who, &instance(1)), Err(StoreError::UnknownTenant(_))));
    }

    #[test]
    fn an_epoch_found_running_is_never_used_again() {
        let (_dir, store) = empty();
        store.assign_slot(&id("a")).unwrap();
        store.raise_epoch(&id("a"), 41).unwrap();
        store.raise_epoch(&id("a"), 3).unwrap();
        assert_eq!(store.next_epoch(&id("a")).unwrap(), 42);
    }
}
