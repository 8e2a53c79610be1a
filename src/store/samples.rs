//! How the host stood: a row a minute for a day, and one a quarter of an hour for 30 days.

use rusqlite::{Row, params};

use super::{Store, StoreError};
use crate::history::sample::{COARSE, COARSE_KEPT, FINE, FINE_KEPT, Sample};

impl Store {
    /// Keeps a sample of the minute in which `sample.at` lies. Quarters that are over get a row of their own, and what is too old goes.
    pub fn keep_sample(&self, sample: &Sample) -> Result<(), StoreError> {
        let fine = u64::from(FINE);
        let sample = Sample { at: sample.at / fine * fine, ..*sample };
        self.batch(|store| {
            let Sample { at, memory_total, memory_used, disk_total, disk_used, instances, instances_memory, requests, errors, cpu } =
                sample;
            let values =
                [u64::from(FINE), at, memory_total, memory_used, disk_total, disk_used, instances, instances_memory, requests, errors];
            let values = values.map(|value| Some(value.cast_signed())).into_iter().chain([cpu.map(i64::from)]);
            store
                .conn
                .prepare_cached(
                    "INSERT INTO samples VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO UPDATE SET
                         memory_total = excluded.memory_total, memory_used = excluded.memory_used, disk_total = excluded.disk_total,
                         disk_used = excluded.disk_used, instances = excluded.instances, instances_memory = excluded.instances_memory,
                         requests = requests + excluded.requests, errors = errors + excluded.errors, cpu = excluded.cpu",
                )?
                .execute(rusqlite::params_from_iter(values))?;
            store.fold_quarters(at)?;
            let too_old = store.conn.prepare_cached("DELETE FROM samples WHERE step = ?1 AND at <= ?2");
            let mut too_old = too_old?;
            too_old.execute(params![FINE, at.saturating_sub(FINE_KEPT).cast_signed()])?;
            too_old.execute(params![COARSE, at.saturating_sub(COARSE_KEPT).cast_signed()])?;
            Ok(())
        })
    }

    /// Every quarter that ended before `now` and has no row yet: also those that no agent saw the end of.
    fn fold_quarters(&self, now: u64) -> Result<(), StoreError> {
        let quarter = (now / u64::from(COARSE) * u64::from(COARSE)).cast_signed();
        self.conn
            .prepare_cached(
                "INSERT OR IGNORE INTO samples
                 SELECT ?1, at / ?1 * ?1, MAX(memory_total), CAST(AVG(memory_used) AS INTEGER), MAX(disk_total), CAST(AVG(disk_used) AS INTEGER),
                        CAST(AVG(instances) AS INTEGER), CAST(AVG(instances_memory) AS INTEGER), SUM(requests), SUM(errors), CAST(AVG(cpu) AS INTEGER)
                 FROM samples
                 WHERE step = ?2 AND at < ?3 AND at >= COALESCE((SELECT MAX(at) + ?1 FROM samples WHERE step = ?1 AND at < ?3), 0)
                 GROUP BY at / ?1",
            )?
            .execute(params![COARSE, FINE, quarter])?;
        Ok(())
    }

    /// Samples of this `step` ([`FINE`] or [`COARSE`]) since `since`, oldest first.
    pub fn samples(&self, step: u32, since: u64) -> Result<Vec<Sample>, StoreError> {
        let mut statement = self.conn.prepare_cached("SELECT * FROM samples WHERE step = ?1 AND at >= ?2 ORDER BY at")?;
        let rows = statement.query_map(params![step, since.cast_signed()], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Sample> {
    let column = |n: usize| row.get(n).map(i64::cast_unsigned);
    Ok(Sample {
        at: column(1)?,
        memory_total: column(2)?,
        memory_used: column(3)?,
        disk_total: column(4)?,
        disk_used: column(5)?,
        instances: column(6)?,
        instances_memory: column(7)?,
        requests: column(8)?,
        errors: column(9)?,
        cpu: row.get(10)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::testing::empty, *};

    /// The begin of a quarter.
    const START: u64 = 2_000_000 * 900;

    fn sample(at: u64, used: u64) -> Sample {
        Sample { at, memory_total: 100, memory_used: used, requests: 2, ..Sample::default() }
    }

    #[test]
    fn a_quarter_has_the_mean_of_its_minutes_once_it_is_over() {
        let (_dir, store) = empty();
        for minute in 0..15 {
            let cpu = u32::try_from(minute).ok().filter(|minute| *minute != 14);
            store.keep_sample(&Sample { cpu, ..sample(START + minute * 60 + 7, minute) }).unwrap();
        }
        assert_eq!((store.samples(FINE, 0).unwrap().len(), store.samples(COARSE, 0).unwrap()), (15, vec![]));
        store.keep_sample(&sample(START + 900, 50)).unwrap();
        let quarters = store.samples(COARSE, 0).unwrap();
        assert_eq!(
            quarters,
            [Sample { requests: 30, cpu: Some(6), ..sample(START, 7) }],
            "also of what could be told in some minutes alone"
        );
        store.keep_sample(&sample(START + 960, 50)).unwrap();
        assert_eq!(store.samples(COARSE, 0).unwrap(), quarters, "once");
    }

    #[test]
    fn quarters_that_ended_while_no_agent_ran_are_there_afterwards() {
        let (_dir, store) = empty();
        store.keep_sample(&sample(START, 10)).unwrap();
        store.keep_sample(&sample(START + 910, 20)).unwrap();
        store.keep_sample(&sample(START + 4 * 900, 30)).unwrap();
        let at: Vec<_> = store.samples(COARSE, 0).unwrap().iter().map(|sample| (sample.at, sample.memory_used)).collect();
        assert_eq!(at, [(START, 10), (START + 900, 20)]);
    }

    #[test]
    fn two_samples_of_one_minute_are_one() {
        let (_dir, store) = empty();
        store.keep_sample(&sample(START, 10)).unwrap();
        store.keep_sample(&sample(START + 59, 20)).unwrap();
        assert_eq!(store.samples(FINE, 0).unwrap(), [Sample { requests: 4, ..sample(START, 20) }]);
    }

    #[test]
    fn minutes_stay_a_day_and_quarters_30_days() {
        let (_dir, store) = empty();
        store.batch(|store| (0..31 * 96).try_for_each(|quarter| store.keep_sample(&sample(START + quarter * 900, 1)))).unwrap();
        assert_eq!(store.samples(FINE, 0).unwrap().len(), 96);
        assert_eq!(store.samples(COARSE, 0).unwrap().len(), 30 * 96 - 1, "the last quarter is not over");
    }
}
