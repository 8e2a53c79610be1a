//! What each tenant used: by the day for the last ten weeks, by the month for 25 months.

use std::collections::HashMap;

use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Store, StoreError};
use crate::{
    desired::TenantId,
    history::{
        month::{Month, day_text},
        usage::{Addition, Counts, Seen},
    },
};

/// Days that stand by themselves; before them only months do. 10,000 tenants take 25 MB of days, and 12 of months.
const DAYS_KEPT: u32 = 70;
/// Months that are kept: two years, and the one that goes on.
const MONTHS_KEPT: u32 = 25;
/// So many rows are folded or removed at a time, so that nobody waits for it: a few milliseconds.
const STEP: u32 = 500;

/// What one tenant used in a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Used)]
pub struct Usage {
    /// The month, as 2026-02, or the day, as 2026-02-09; UTC.
    pub period: String,
    /// Whose.
    pub id: String,
    /// Days of that time on which the tenant was there.
    pub days: u64,
    /// Requests with good credentials, those refused for rate or quota included.
    pub requests: u64,
    /// Of these, answered by 5xx of the proxy.
    pub errors: u64,
    /// Requests that may write and were answered with success.
    pub writes: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of answer bodies.
    pub bytes_out: u64,
    /// The most memory that the instance took (PSS, looked at every 20 s), bytes.
    pub peak_memory_bytes: u64,
    /// The most that the phexts took, bytes.
    pub storage_bytes: u64,
    /// The sum over the days of the most that the phexts took on each: what a price a byte and day is multiplied by.
    pub storage_byte_days: u64,
}

impl Store {
    /// What was seen of everybody's counters last.
    pub fn usage_seen(&self) -> Result<HashMap<TenantId, Seen>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "SELECT t.id, s.page, s.requests, s.errors, s.writes, s.bytes_in, s.bytes_out FROM usage_seen s JOIN usage_tenants t USING (tenant)",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, Seen { page: read(row, 1)?, counts: counts(row, 2)? })))?;
        let rows: Vec<(String, Seen)> = rows.collect::<Result<_, _>>()?;
        Ok(rows.into_iter().filter_map(|(id, seen)| Some((TenantId::parse(&id).ok()?, seen))).collect())
    }

    /// The most memory that each tenant's instance took since `day`.
    pub fn peaks_since(&self, day: u32) -> Result<HashMap<TenantId, u64>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "SELECT t.id, MAX(d.peak_memory) FROM usage_days d JOIN usage_tenants t USING (tenant) WHERE d.day >= ?1 GROUP BY d.tenant",
        )?;
        let rows = statement.query_map([day], |row| Ok((row.get::<_, String>(0)?, read(row, 1)?)))?;
        let rows: Vec<(String, u64)> = rows.collect::<Result<_, _>>()?;
        Ok(rows.into_iter().filter_map(|(id, peak)| Some((TenantId::parse(&id).ok()?, peak))).collect())
    }

    /// Adds these, all or none: sums and what was seen go together.
    pub fn add_usage(&self, additions: &[Addition]) -> Result<(), StoreError> {
        self.batch(|store| additions.iter().try_for_each(|addition| store.add_one(addition)))
    }

    fn add_one(&self, addition: &Addition) -> Result<(), StoreError> {
        let Addition { id, day, more, peak_memory, storage, seen } = addition;
        let tenant = self.usage_tenant(id)?;
        let [requests, errors, writes, bytes_in, bytes_out] = columns(more);
        self.conn
            .prepare_cached(
                "INSERT INTO usage_days VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO UPDATE SET
                     requests = requests + excluded.requests, errors = errors + excluded.errors, writes = writes + excluded.writes,
                     bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out,
                     peak_memory = MAX(peak_memory, excluded.peak_memory), storage = MAX(storage, excluded.storage)",
            )?
            .execute(params![
                day,
                tenant,
                requests,
                errors,
                writes,
                bytes_in,
                bytes_out,
                peak_memory.cast_signed(),
                storage.cast_signed()
            ])?;
        let [requests, errors, writes, bytes_in, bytes_out] = columns(&seen.counts);
        self.conn.prepare_cached("INSERT OR REPLACE INTO usage_seen VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
            tenant,
            seen.page.cast_signed(),
            requests,
            errors,
            writes,
            bytes_in,
            bytes_out
        ])?;
        Ok(())
    }

    fn usage_tenant(&self, id: &TenantId) -> Result<i64, StoreError> {
        let known = "SELECT tenant FROM usage_tenants WHERE id = ?1";
        if let Some(tenant) = self.conn.prepare_cached(known)?.query_row([id.as_str()], |row| row.get(0)).optional()? {
            return Ok(tenant);
        }
        Ok(self.conn.prepare_cached("INSERT INTO usage_tenants (id) VALUES (?1)")?.insert([id.as_str()])?)
    }

    /// Folds days that are older than ten weeks into their months, and removes months beyond two years: a few rows, until a later call finds none.
    /// Returns how many.
    pub fn thin_usage(&self, today: u32) -> Result<u64, StoreError> {
        let before = today.saturating_sub(DAYS_KEPT);
        let first_month = Month::of(today).number().saturating_sub(MONTHS_KEPT - 1);
        self.batch(|store| {
            let mut statement = store.conn.prepare_cached("SELECT * FROM usage_days WHERE day < ?1 ORDER BY day, tenant LIMIT ?2")?;
            let mut rows = statement.query([before, STEP])?;
            let mut folded = 0;
            while let Some(row) = rows.next()? {
                let (day, tenant): (u32, i64) = (row.get(0)?, row.get(1)?);
                let [requests, errors, writes, bytes_in, bytes_out] = columns(&counts(row, 2)?);
                let (peak_memory, storage): (i64, i64) = (row.get(7)?, row.get(8)?);
                store
                    .conn
                    .prepare_cached(
                        "INSERT INTO usage_months VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9) ON CONFLICT DO UPDATE SET
                             days = days + 1, requests = requests + excluded.requests, errors = errors + excluded.errors,
                             writes = writes + excluded.writes, bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out,
                             peak_memory = MAX(peak_memory, excluded.peak_memory), storage = MAX(storage, excluded.storage),
                             storage_byte_days = storage_byte_days + excluded.storage_byte_days",
                    )?
                    .execute(params![Month::of(day).number(), tenant, requests, errors, writes, bytes_in, bytes_out, peak_memory, storage])?;
                folded += 1;
            }
            drop(rows);
            let folded_now = "DELETE FROM usage_days WHERE (day, tenant) IN (SELECT day, tenant FROM usage_days WHERE day < ?1 ORDER BY day, tenant LIMIT ?2)";
            store.conn.prepare_cached(folded_now)?.execute([before, STEP])?;
            let over = "DELETE FROM usage_months WHERE (month, tenant) IN (SELECT month, tenant FROM usage_months WHERE month < ?1 ORDER BY month, tenant LIMIT ?2)";
            let removed = store.conn.prepare_cached(over)?.execute([first_month, STEP])?;
            Ok(folded + removed as u64)
        })
    }

    /// What each tenant used in `month`, or `only` that one, by id.
    pub fn usage_of_month(&self, month: Month, only: Option<&TenantId>) -> Result<Vec<Usage>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "SELECT id, SUM(days), SUM(requests), SUM(errors), SUM(writes), SUM(bytes_in), SUM(bytes_out), MAX(peak_memory), MAX(storage), SUM(byte_days)
             FROM (
                 SELECT tenant, days, requests, errors, writes, bytes_in, bytes_out, peak_memory, storage, storage_byte_days AS byte_days
                     FROM usage_months WHERE month = ?1
                 UNION ALL
                 SELECT tenant, 1, requests, errors, writes, bytes_in, bytes_out, peak_memory, storage, storage FROM usage_days WHERE day >= ?2 AND day < ?3
             ) JOIN usage_tenants USING (tenant) WHERE ?4 IS NULL OR id = ?4 GROUP BY tenant ORDER BY id",
        )?;
        let params = params![month.number(), month.first_day(), month.next().first_day(), only.map(TenantId::as_str)];
        let rows = statement.query_map(params, |row| {
            Ok(Usage {
                period: month.to_string(),
                id: row.get(0)?,
                days: read(row, 1)?,
                requests: read(row, 2)?,
                errors: read(row, 3)?,
                writes: read(row, 4)?,
                bytes_in: read(row, 5)?,
                bytes_out: read(row, 6)?,
                peak_memory_bytes: read(row, 7)?,
                storage_bytes: read(row, 8)?,
                storage_byte_days: read(row, 9)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The same day by day, for as long as days are kept; by day, then by id.
    pub fn usage_by_day(&self, month: Month, only: Option<&TenantId>) -> Result<Vec<Usage>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "SELECT d.day, t.id, d.requests, d.errors, d.writes, d.bytes_in, d.bytes_out, d.peak_memory, d.storage
             FROM usage_days d JOIN usage_tenants t USING (tenant)
             WHERE d.day >= ?1 AND d.day < ?2 AND (?3 IS NULL OR t.id = ?3) ORDER BY d.day, t.id",
        )?;
        let params = params![month.first_day(), month.next().first_day(), only.map(TenantId::as_str)];
        let rows = statement.query_map(params, of_day)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The days from `first` to `last` (days since 1970) of one tenant, the latest first. By the key of each, since there may be ten thousand tenants.
    pub fn usage_of_days(&self, id: &TenantId, first: u32, last: u32) -> Result<Vec<Usage>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "WITH RECURSIVE days (day) AS (SELECT ?3 UNION ALL SELECT day - 1 FROM days WHERE day > ?2)
             SELECT d.day, t.id, d.requests, d.errors, d.writes, d.bytes_in, d.bytes_out, d.peak_memory, d.storage
             FROM usage_tenants t CROSS JOIN days CROSS JOIN usage_days d ON d.day = days.day AND d.tenant = t.tenant
             WHERE t.id = ?1",
        )?;
        let mut days: Vec<Usage> = statement.query_map(params![id.as_str(), first, last], of_day)?.collect::<Result<_, _>>()?;
        days.sort_by(|one, other| other.period.cmp(&one.period));
        Ok(days)
    }
}

fn of_day(row: &Row<'_>) -> rusqlite::Result<Usage> {
    let Counts { requests, errors, writes, bytes_in, bytes_out } = counts(row, 2)?;
    let (period, id, storage) = (day_text(row.get(0)?), row.get(1)?, read(row, 8)?);
    let (peak_memory_bytes, storage_bytes, storage_byte_days) = (read(row, 7)?, storage, storage);
    Ok(Usage { period, id, days: 1, requests, errors, writes, bytes_in, bytes_out, peak_memory_bytes, storage_bytes, storage_byte_days })
}

/// SQLite's integers are signed; sums of bytes stay far below their half.
fn read(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column).map(i64::cast_unsigned)
}

fn counts(row: &Row<'_>, first: usize) -> rusqlite::Result<Counts> {
    let [requests, errors, writes, bytes_in, bytes_out] = [0, 1, 2, 3, 4].map(|n| read(row, first + n));
    Ok(Counts { requests: requests?, errors: errors?, writes: writes?, bytes_in: bytes_in?, bytes_out: bytes_out? })
}

fn columns(counts: &Counts) -> [i64; 5] {
    let Counts { requests, errors, writes, bytes_in, bytes_out } = *counts;
    [requests, errors, writes, bytes_in, bytes_out].map(u64::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{empty, id},
        *,
    };

    fn addition(who: &str, day: u32, n: u64) -> Addition {
        let more = Counts { requests: n, errors: 1, writes: 2, bytes_in: 3 * n, bytes_out: 4 * n };
        Addition { id: id(who), day, more, peak_memory: 1_000 + n, storage: 4_096 * n, seen: Seen { page: u64::MAX, counts: more } }
    }

    /// 2026-02-01.
    const FEBRUARY: u32 = 20_485;

    fn february() -> Month {
        Month::of(FEBRUARY)
    }

    #[test]
    fn a_day_sums_up_what_was_counted_and_keeps_the_peaks() {
        let (_dir, store) = empty();
        store.add_usage(&[addition("b", FEBRUARY, 5), addition("a", FEBRUARY, 1)]).unwrap();
        store.add_usage(&[addition("b", FEBRUARY, 3), addition("b", FEBRUARY + 1, 2), addition("b", FEBRUARY - 1, 100)]).unwrap();
        let days = store.usage_by_day(february(), None).unwrap();
        let brief = |usage: &Usage| (usage.period.clone(), usage.id.clone(), usage.requests, usage.peak_memory_bytes, usage.storage_bytes);
        assert_eq!(
            days.iter().map(brief).collect::<Vec<_>>(),
            [
                ("2026-02-01".into(), "a".into(), 1, 1_001, 4_096),
                ("2026-02-01".into(), "b".into(), 8, 1_005, 5 * 4_096),
                ("2026-02-02".into(), "b".into(), 2, 1_002, 2 * 4_096),
            ]
        );
        let of_b: Vec<_> = days.iter().filter(|day| day.id == "b").rev().cloned().collect();
        assert_eq!(store.usage_of_days(&id("b"), FEBRUARY, FEBRUARY + 9).unwrap(), of_b, "the latest first");
        assert_eq!(store.usage_of_days(&id("b"), FEBRUARY + 1, FEBRUARY + 1).unwrap(), of_b[..1]);
        assert_eq!(store.usage_of_days(&id("nobody"), FEBRUARY, FEBRUARY + 1).unwrap(), []);
        let month = store.usage_of_month(february(), Some(&id("b"))).unwrap();
        assert_eq!(
            month,
            [Usage {
                period: "2026-02".into(),
                id: "b".into(),
                days: 2,
                requests: 10,
                errors: 3,
                writes: 6,
                bytes_in: 30,
                bytes_out: 40,
                peak_memory_bytes: 1_005,
                storage_bytes: 5 * 4_096,
                storage_byte_days: 7 * 4_096,
            }]
        );
        assert_eq!(store.usage_seen().unwrap()[&id("b")], addition("b", 0, 100).seen, "as it was seen last");
        assert_eq!(store.peaks_since(FEBRUARY).unwrap(), HashMap::from([(id("a"), 1_001), (id("b"), 1_005)]));
    }

    #[test]
    fn an_old_day_goes_into_its_month_and_the_month_says_the_same_as_before() {
        let (_dir, store) = empty();
        let tenants = 7;
        for day in FEBRUARY - 3..FEBRUARY + 40 {
            let all: Vec<_> = (0..tenants).map(|n| addition(&format!("t{n}"), day, u64::from(day % 5) + n)).collect();
            store.add_usage(&all).unwrap();
        }
        let months = || [february().before(), february(), february().next()].map(|month| store.usage_of_month(month, None).unwrap());
        let before = months();
        assert_eq!(store.thin_usage(FEBRUARY + 10).unwrap(), 0, "all of it is young");
        let mut folded = 0;
        let today = FEBRUARY + 20 + DAYS_KEPT;
        loop {
            let step = store.thin_usage(today).unwrap();
            assert_eq!(months(), before, "also half-way");
            folded += step;
            if step == 0 {
                break;
            }
        }
        assert_eq!(folded, 23 * tenants);
        assert_eq!(store.usage_by_day(february(), None).unwrap().len() as u64, 8 * tenants);
        // What comes late is added as well.
        store.add_usage(&[addition("t0", FEBRUARY, 9)]).unwrap();
        assert_eq!(store.usage_of_month(february(), Some(&id("t0"))).unwrap()[0].requests, before[1][0].requests + 9);
    }

    #[test]
    fn a_month_goes_after_two_years() {
        let (_dir, store) = empty();
        store.add_usage(&[addition("a", FEBRUARY, 1)]).unwrap();
        store.thin_usage(FEBRUARY + 700).unwrap();
        assert_eq!(store.usage_of_month(february(), None).unwrap().len(), 1);
        store.thin_usage(FEBRUARY + 800).unwrap();
        assert_eq!(store.usage_of_month(february(), None).unwrap(), []);
    }

    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stderr)]
    fn what_10_000_tenants_take_of_time_and_room() {
        use std::time::Instant;
        const TENANTS: u64 = 10_000;
        let (dir, mut store) = empty();
        let ids: Vec<TenantId> = (0..TENANTS).map(|n| id(&format!("somebody.{n:05}@a-company.example.com"))).collect();
        let of = |n: u64, day: u32, requests: u64| {
            let more =
                Counts { requests, errors: requests / 50, writes: requests / 3, bytes_in: requests * 2_000, bytes_out: requests * 9_000 };
            let seen = Seen { page: u64::MAX / 3, counts: more };
            Addition { id: ids[n as usize].clone(), day, more, peak_memory: 5_000_000 + n, storage: 40_000_000 + n, seen }
        };
        let today = FEBRUARY + 400;
        // Months that are long over, then days, as they come: a twelfth of the tenants at a time.
        for month in 1..=24 {
            let day = Month::from_number(Month::of(today).number() - month).first_day();
            store.batch(|store| (0..TENANTS).try_for_each(|n| store.add_one(&of(n, day, 100_000)))).unwrap();
        }
        while store.thin_usage(today).unwrap() > 0 {}
        for day in today - DAYS_KEPT..today {
            for part in 0..12 {
                store.batch(|store| (0..TENANTS).filter(|n| n % 12 == part).try_for_each(|n| store.add_one(&of(n, day, 3_000)))).unwrap();
            }
        }
        store
            .batch(|store| {
                (0..100_000).try_for_each(|n| {
                    store.event(
                        u64::from(today) * 86_400 - n,
                        Some(&ids[(n % TENANTS) as usize]),
                        "crashed",
                        "exit 101 of signal 9, and so on; see its log for more of that",
                    )
                })
            })
            .unwrap();
        let timed = |what: &str, work: &mut dyn FnMut()| {
            let began = Instant::now();
            work();
            eprintln!("{what}: {:.2} ms", began.elapsed().as_secs_f64() * 1_000.0);
        };
        let part = |n: u64, day: u32| (0..TENANTS).filter(|t| t % 12 == n).map(|t| of(t, day, 7)).collect::<Vec<_>>();
        let minute = |what: &str, day: u32| {
            let took: Vec<f64> = (0..12)
                .map(|n| {
                    let additions = part(n, day);
                    let began = Instant::now();
                    store.add_usage(&additions).unwrap();
                    began.elapsed().as_secs_f64() * 1_000.0
                })
                .collect();
            eprintln!(
                "{what}: {:.1} ms in 12 transactions, the longest {:.1} ms",
                took.iter().sum::<f64>(),
                took.iter().copied().fold(0.0, f64::max)
            );
        };
        minute("a minute in which everybody asked, the first of a day", today);
        minute("another one", today);
        timed("a step of thinning out", &mut || assert_eq!(store.thin_usage(today + 1).unwrap(), u64::from(STEP)));
        timed("the peaks of a week", &mut || assert_eq!(store.peaks_since(today - 7).unwrap().len() as u64, TENANTS));
        timed("what was seen", &mut || assert_eq!(store.usage_seen().unwrap().len() as u64, TENANTS));
        timed("a month for a bill", &mut || {
            assert_eq!(store.usage_of_month(Month::of(today).before(), None).unwrap().len() as u64, TENANTS)
        });
        store.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let bytes = std::fs::metadata(dir.path().join("instances.db")).unwrap().len();
        eprintln!("instances.db: {} MB", bytes >> 20);
        assert!(bytes < 100 << 20);
        timed("opening it, with its check", &mut || store = Store::open(dir.path()).unwrap().store);
    }
}
