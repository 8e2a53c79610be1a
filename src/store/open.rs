//! Opening instances.db: layout, migrations, and what to do with a corrupt one.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Store, StoreError, unix_now};
use crate::desired::TenantId;

/// The outcome of [`Store::open`].
#[derive(Debug)]
pub struct Opened {
    /// Ready for use.
    pub store: Store,
    /// Where a corrupt file was moved, in which case `store` is empty: say so, and rebuild it from what runs.
    pub corrupt_moved_to: Option<PathBuf>,
}

/// Its name in the state directory.
pub(super) const FILE: &str = "instances.db";

/// Each entry takes the layout one version further; PRAGMA user_version counts those applied. Never change one that
/// was released: add another.
const MIGRATIONS: [&str; 5] = [
    "
    CREATE TABLE tenants (
        id         TEXT PRIMARY KEY,
        slot       INTEGER UNIQUE,              -- NULL once given to another tenant, long after the removal
        port       INTEGER UNIQUE,
        epoch      INTEGER NOT NULL DEFAULT 0,  -- the last one used; never goes back, also across a removal
        spec       TEXT,                        -- JSON, the agent's own
        removed_at INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX removed ON tenants (removed_at) WHERE removed_at IS NOT NULL;
    CREATE TABLE instances (
        id         TEXT PRIMARY KEY REFERENCES tenants (id),
        epoch      INTEGER NOT NULL,
        pid        INTEGER NOT NULL,
        start_time INTEGER NOT NULL,            -- clock ticks since boot
        boot_id    TEXT NOT NULL,
        port       INTEGER NOT NULL,
        program    TEXT NOT NULL,
        started_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE quarantine (port INTEGER PRIMARY KEY, until INTEGER NOT NULL) STRICT;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        at     INTEGER NOT NULL,
        id     TEXT,
        kind   TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE tenants ADD COLUMN program TEXT; -- of the latest start
    CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE requests (                     -- of the admin API, that are to be done once
        lookup      TEXT PRIMARY KEY,
        at          INTEGER NOT NULL,
        fingerprint TEXT NOT NULL,
        answer      BLOB                        -- sealed; NULL until there is one
    ) STRICT;
    CREATE INDEX requests_at ON requests (at);
",
    "
    CREATE INDEX events_of ON events (id) WHERE id IS NOT NULL;
    -- A number a tenant, so that a row of usage is some 35 bytes long.
    CREATE TABLE usage_tenants (tenant INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE usage_seen (               -- counters that begin anew with another page
        tenant    INTEGER PRIMARY KEY,
        page      INTEGER NOT NULL,
        requests  INTEGER NOT NULL,
        errors    INTEGER NOT NULL,
        writes    INTEGER NOT NULL,
        bytes_in  INTEGER NOT NULL,
        bytes_out INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE usage_days (
        day         INTEGER NOT NULL,       -- days since 1970, UTC
        tenant      INTEGER NOT NULL,
        requests    INTEGER NOT NULL,
        errors      INTEGER NOT NULL,
        writes      INTEGER NOT NULL,
        bytes_in    INTEGER NOT NULL,
        bytes_out   INTEGER NOT NULL,
        peak_memory INTEGER NOT NULL,
        storage     INTEGER NOT NULL,       -- the most of the day
        PRIMARY KEY (day, tenant)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE usage_months (             -- days that are folded
        month             INTEGER NOT NULL, -- 12 x year + month - 1
        tenant            INTEGER NOT NULL,
        days              INTEGER NOT NULL,
        requests          INTEGER NOT NULL,
        errors            INTEGER NOT NULL,
        writes            INTEGER NOT NULL,
        bytes_in          INTEGER NOT NULL,
        bytes_out         INTEGER NOT NULL,
        peak_memory       INTEGER NOT NULL,
        storage           INTEGER NOT NULL, -- the most of the month
        storage_byte_days INTEGER NOT NULL, -- the sum over its days
        PRIMARY KEY (month, tenant)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE samples (
        step             INTEGER NOT NULL,  -- seconds
        at               INTEGER NOT NULL,
        memory_total     INTEGER NOT NULL,
        memory_used      INTEGER NOT NULL,
        disk_total       INTEGER NOT NULL,
        disk_used        INTEGER NOT NULL,
        instances        INTEGER NOT NULL,
        instances_memory INTEGER NOT NULL,
        requests         INTEGER NOT NULL,
        errors           INTEGER NOT NULL,
        PRIMARY KEY (step, at)
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE samples ADD COLUMN cpu INTEGER; -- of a thousand
",
];

impl Store {
    /// Opens `<state_dir>/instances.db`, mode 0600, made where missing. A corrupt file (torn by a disk, or no database at
    /// all) is renamed to `instances.db.corrupt-<seconds since 1970>` and replaced by an empty one.
    ///
    /// The caller holds the [`super::AgentLock`].
    pub fn open(state_dir: &Path) -> Result<Opened, StoreError> {
        let path = state_dir.join(FILE);
        match open_at(&path) {
            Ok(store) => Ok(Opened { store, corrupt_moved_to: None }),
            Err(StoreError::Sqlite(error)) if is_corrupt(&error) => {
                let aside = move_aside(&path)?;
                let store = open_at(&path)?;
                // Epochs must not be used twice, and those of the lost file are unknown: start far above any of them.
                store.raise_epoch_floor()?;
                Ok(Opened { store, corrupt_moved_to: Some(aside) })
            }
            Err(error) => Err(error),
        }
    }
}

/// A copy of instances.db beside it.
const KEPT: &str = "instances.db.before-upgrade";

impl Store {
    /// Whether this program could open the instances.db that another agent has open: its layout is known, and it is whole.
    pub fn check(state_dir: &Path) -> Result<(), StoreError> {
        let path = state_dir.join(FILE);
        let conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(Duration::from_secs(2))?;
        let sound: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if sound != "ok" {
            return Err(corrupt(&sound));
        }
        missing(&conn, &path).map(drop)
    }

    /// When each tenant that was removed was, seconds since 1970; also while another process has instances.db open.
    pub fn removals(state_dir: &Path) -> Result<HashMap<TenantId, u64>, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(state_dir.join(FILE), flags)?;
        conn.busy_timeout(Duration::from_secs(2))?;
        let mut statement = conn.prepare("SELECT id, removed_at FROM tenants WHERE removed_at IS NOT NULL")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
        let rows: Vec<(String, u64)> = rows.collect::<Result<_, _>>()?;
        Ok(rows.into_iter().filter_map(|(id, at)| Some((TenantId::parse(&id).ok()?, at))).collect())
    }

    /// Keeps a copy of instances.db, for [`Self::go_back_to`] after a later program changed its layout. The caller holds the lock, and
    /// has closed its own.
    pub fn keep_copy(state_dir: &Path) -> Result<PathBuf, StoreError> {
        let kept = state_dir.join(KEPT);
        match fs::remove_file(&kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::File { what: "removing", path: kept, error }),
            _ => {}
        }
        // Made here with its mode; an empty file is what VACUUM INTO accepts.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&kept);
        made.map_err(|error| StoreError::File { what: "making", path: kept.clone(), error })?;
        open_at(&state_dir.join(FILE))?.conn.execute("VACUUM INTO ?1", [kept.to_string_lossy()])?;
        Ok(kept)
    }

    /// Puts the copy at `kept` back where a later program left a layout that this one does not know; what was written since is lost,
    /// and found again by looking. Else the copy is only removed.
    pub fn go_back_to(kept: &Path, state_dir: &Path) -> Result<(), StoreError> {
        let path = state_dir.join(FILE);
        if !matches!(Self::check(state_dir), Err(StoreError::TooNew { .. })) {
            return fs::remove_file(kept).map_err(|error| StoreError::File { what: "removing", path: kept.into(), error });
        }
        let aside = move_aside(&path)?;
        tracing::warn!(kept = %aside.display(), "instances.db has a later layout: it is moved aside, and the copy from before put back");
        fs::rename(kept, &path).map_err(|error| StoreError::File { what: "putting back", path, error })?;
        // What the lost file counted since is not known: no epoch may come twice.
        Self::open(state_dir)?.store.raise_epoch_floor()
    }

    pub(super) fn of(conn: Connection, path: PathBuf) -> Self {
        Self { conn, path, corrupt: false.into() }
    }

    /// Moves a file that was found corrupt aside and begins an empty one in its place; what notes of it can still be read are taken over. Returns where
    /// it is now.
    pub fn replace(&mut self) -> Result<PathBuf, StoreError> {
        let notes = self.notes().unwrap_or_default();
        // Closed first: a close removes the journal by its name, which would be that of the new file.
        drop(std::mem::replace(&mut self.conn, Connection::open_in_memory()?));
        let aside = move_aside(&self.path)?;
        let fresh = open_at(&self.path)?;
        fresh.batch(|store| {
            store.raise_epoch_floor()?;
            notes.iter().try_for_each(|(name, value)| store.set_note(name, value))
        })?;
        *self = fresh;
        Ok(aside)
    }

    pub(super) fn raise_epoch_floor(&self) -> Result<(), StoreError> {
        self.conn.execute(
            "INSERT INTO meta VALUES ('epoch_floor', ?1) ON CONFLICT DO UPDATE SET value = excluded.value",
            [unix_now().cast_signed()],
        )?;
        Ok(())
    }
}

fn open_at(path: &Path) -> Result<Store, StoreError> {
    // Made here, since SQLite would make it readable for all; its -wal and -shm get the same mode.
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map_err(|error| StoreError::File { what: "opening", path: path.into(), error })?;
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(64);
    // NORMAL with WAL: a crash of the agent loses nothing, a power failure at most the last moments, and after that
    // nothing runs any more that the lost rows would describe.
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;")?;
    let sound: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if sound != "ok" {
        return Err(corrupt(&sound));
    }
    migrate(&conn, path)?;
    Ok(Store::of(conn, path.into()))
}

/// How far the layout is, and what it lacks.
fn missing(conn: &Connection, path: &Path) -> Result<(i64, &'static [&'static str]), StoreError> {
    let known = MIGRATIONS.len() as i64;
    let found: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match usize::try_from(found) {
        Ok(done) if found <= known => Ok((found, &MIGRATIONS[done..])),
        _ => Err(StoreError::TooNew { path: path.into(), found, known }),
    }
}

/// Whether the layout is the one that this program writes.
pub(super) fn is_current(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    match missing(conn, path)? {
        (_, []) => Ok(()),
        (found, _) => Err(StoreError::TooOld { path: path.into(), found }),
    }
}

fn migrate(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let (found, missing) = missing(conn, path)?;
    for (number, statements) in (found + 1..).zip(missing) {
        let transaction = conn.unchecked_transaction()?;
        transaction.execute_batch(statements)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

fn corrupt(text: &str) -> StoreError {
    StoreError::Sqlite(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error { code: ErrorCode::DatabaseCorrupt, extended_code: rusqlite::ffi::SQLITE_CORRUPT },
        Some(text.to_owned()),
    ))
}

pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Renames the file with its journal, so that a person may still look into it.
fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let suffix = format!(".corrupt-{}", unix_now());
    let aside = with(&suffix);
    for journal in ["-wal", "-shm", ""] {
        match fs::rename(with(journal), with(&format!("{suffix}{journal}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::File { what: "moving aside", path: with(journal), error });
            }
            _ => {}
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::desired::TenantId;

    #[test]
    fn the_files_are_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Store::open(dir.path()).unwrap();
        opened.store.assign_slot(&TenantId::parse("a").unwrap()).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[test]
    fn a_corrupt_file_is_moved_aside_and_no_epoch_comes_twice() {
        let dir = tempfile::tempdir().unwrap();
        let id = TenantId::parse("a").unwrap();
        let before = {
            let store = Store::open(dir.path()).unwrap().store;
            store.assign_slot(&id).unwrap();
            store.next_epoch(&id).unwrap()
        };
        fs::write(dir.path().join("instances.db"), vec![b'x'; 8192]).unwrap();
        let opened = Store::open(dir.path()).unwrap();
        let aside = opened.corrupt_moved_to.unwrap();
        assert_eq!(fs::read(aside).unwrap(), vec![b'x'; 8192]);
        assert!(opened.store.load().unwrap().is_empty());
        opened.store.assign_slot(&id).unwrap();
        assert!(opened.store.next_epoch(&id).unwrap() > before + 1_000_000);
        drop(opened.store);
        assert!(Store::open(dir.path()).unwrap().corrupt_moved_to.is_none(), "once is enough");
    }

    #[test]
    fn a_damaged_page_inside_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("instances.db");
        {
            let store = Store::open(dir.path()).unwrap().store;
            store
                .batch(|store| (0..500).try_for_each(|n| store.assign_slot(&TenantId::parse(&format!("t{n}")).unwrap()).map(drop)))
                .unwrap();
        }
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        bytes[4096..length].fill(0xff);
        fs::write(&path, bytes).unwrap();
        assert!(Store::open(dir.path()).unwrap().corrupt_moved_to.is_some());
    }

    #[test]
    fn a_file_that_is_found_corrupt_under_way_is_replaced_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let id = TenantId::parse("a").unwrap();
        let mut store = Store::open(dir.path()).unwrap().store;
        let many = |store: &Store| (0..500).try_for_each(|n| store.event(n, Some(&id), "x", &"y".repeat(200)));
        store.assign_slot(&id).unwrap();
        store.set_note("programs", "kept").unwrap();
        store.set_port(&id, 10_001).unwrap();
        store.batch(many).unwrap();
        store.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        // The end of the file, where the events are, and nothing of it in memory.
        let path = dir.path().join("instances.db");
        let bytes = fs::read(&path).unwrap();
        let damaged = [&bytes[..bytes.len() - 65_536], vec![0xff; 65_536].as_slice()].concat();
        fs::write(&path, damaged).unwrap();
        store.conn.execute_batch("PRAGMA shrink_memory").unwrap();
        assert!(!store.is_corrupt());
        assert!(store.watched(|store| store.events(u32::MAX)).is_err());
        assert!(store.is_corrupt());
        let records = store.load().unwrap();
        let aside = store.replace().unwrap();
        assert!(aside.exists() && !store.is_corrupt());
        store.put_back(&records).unwrap();
        assert_eq!(store.load().unwrap(), records);
        assert_eq!(store.note("programs").unwrap().as_deref(), Some("kept"));
        assert!(store.next_epoch(&id).unwrap() > 1_000_000, "no epoch comes twice");
        store.event(1, None, "x", "").unwrap();
    }

    #[test]
    fn what_a_later_program_did_to_the_layout_is_undone_and_no_epoch_comes_twice() {
        let dir = tempfile::tempdir().unwrap();
        let id = TenantId::parse("a").unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        store.assign_slot(&id).unwrap();
        let before = store.next_epoch(&id).unwrap();
        drop(store);
        let kept = Store::keep_copy(dir.path()).unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
        let later = Store::open(dir.path()).unwrap().store;
        later.next_epoch(&id).unwrap();
        later.conn.pragma_update(None, "user_version", 99).unwrap();
        drop(later);
        Store::go_back_to(&kept, dir.path()).unwrap();
        let again = Store::open(dir.path()).unwrap().store;
        assert!(again.next_epoch(&id).unwrap() > before + 1);
        assert!(!kept.exists());
    }

    #[test]
    fn a_copy_that_is_not_needed_is_only_removed() {
        let dir = tempfile::tempdir().unwrap();
        let id = TenantId::parse("a").unwrap();
        Store::open(dir.path()).unwrap().store.assign_slot(&id).unwrap();
        let kept = Store::keep_copy(dir.path()).unwrap();
        let epoch = Store::open(dir.path()).unwrap().store.next_epoch(&id).unwrap();
        Store::go_back_to(&kept, dir.path()).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().store.next_epoch(&id).unwrap(), epoch + 1);
        assert!(!kept.exists());
    }

    #[test]
    fn a_later_layout_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap().store.conn.pragma_update(None, "user_version", 99).unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was moved aside");
    }
}
