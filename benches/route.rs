//! The route table at its largest: 9,999 tenants. Targets: a lookup (hash included) within 100 ns, a publish of all rows within 200 µs. And
//! what it costs a request to be counted: a write, which also claims the tenant, no more than a read.
#![allow(missing_docs)] // reason: criterion's macros make public functions without
#![allow(clippy::expect_used)] // reason: a bench that cannot be set up has nothing to say

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sq_agent::route::{Activity, RouteLimits, RouteState, Row, Side, TableReader, TableWriter};

/// As many as there are ports for.
const TENANTS: u32 = 9_999;

fn rows() -> Vec<Row> {
    (0..TENANTS)
        .map(|n| Row {
            id: format!("user{n}@example.com"),
            port: 10_001 + (n % 10_000) as u16,
            state: RouteState::Ready,
            epoch: u64::from(n),
            slot: n,
            tokens_valid_after: 0,
            limits: RouteLimits {
                interval_ns: 600_000_000,
                burst: 20 + n % 3,
                requests_per_day: 0,
                concurrency: 4,
                queue: 100,
                body_max: 1 << 24,
                memory_max: 0,
                storage_max: 0,
                durability: sq_agent::guard::Durability::Process,
            },
            writes: sq_agent::route::Writes::All,
            api_keys: if n % 10 == 0 { vec![key(n)] } else { Vec::new() },
        })
        .collect()
}

/// Spread like a digest.
fn key(n: u32) -> [u8; 32] {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&u64::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key
}

fn table(dir: &tempfile::TempDir) -> TableWriter {
    TableWriter::open(&dir.path().join("sq-agent-bench-routes")).expect("16 MiB in /dev/shm")
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a writable /dev/shm")
}

fn lookups(criterion: &mut Criterion) {
    let (dir, rows) = (scratch(), rows());
    let mut writer = table(&dir);
    writer.publish(&rows).expect("rows that fit");
    let reader = TableReader::map(writer.share().expect("a descriptor")).expect("our own table");
    // In an order that no cache foresees.
    let order: Vec<usize> = (0..rows.len()).map(|n| n * 7_919 % rows.len()).collect();
    let mut group = criterion.benchmark_group("route/lookup");
    let mut next = order.iter().cycle();
    group.bench_function("one tenant, again and again", |b| b.iter(|| reader.lookup(black_box("user7777@example.com"))));
    group.bench_function("any of 9,999 tenants", |b| {
        b.iter(|| {
            let at = *next.next().unwrap_or(&0);
            reader.lookup(black_box(&rows[at].id))
        });
    });
    group.bench_function("no such tenant", |b| b.iter(|| reader.lookup(black_box("nobody@example.com"))));
    group.bench_function("an API key", |b| b.iter(|| reader.lookup_api_key(black_box(&key(5_000)))));
    group.finish();
}

fn publishes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route/publish");
    let original = rows();
    group.sample_size(10);
    group.bench_function("the first of 9,999 rows", |b| {
        b.iter_batched(
            || {
                let dir = scratch();
                (table(&dir), dir)
            },
            |(mut writer, dir)| {
                writer.publish(&original).expect("rows that fit");
                (writer, dir)
            },
            BatchSize::PerIteration,
        );
    });
    group.sample_size(100);
    let dir = scratch();
    let mut writer = table(&dir);
    let mut rows = original.clone();
    let mut epoch = 0;
    writer.publish(&rows).expect("rows that fit");
    group.bench_function("all 9,999 rows changed", |b| {
        b.iter_custom(|times| {
            let mut total = std::time::Duration::ZERO;
            for _ in 0..times {
                epoch += 1;
                rows.iter_mut().for_each(|row| (row.epoch, row.state) = (epoch, RouteState::Draining));
                let began = std::time::Instant::now();
                writer.publish(black_box(&rows)).expect("rows that fit");
                total += began.elapsed();
            }
            total
        });
    });
    group.bench_function("one of 9,999 rows changed", |b| {
        b.iter(|| {
            epoch += 1;
            rows[5_000].epoch = epoch;
            writer.publish(black_box(&rows)).expect("rows that fit")
        });
    });
    group.bench_function("one tenant more or fewer", |b| {
        b.iter(|| {
            epoch += 1;
            let there = rows.len() - usize::from(epoch % 2 == 0);
            writer.publish(black_box(&rows[..there])).expect("rows that fit")
        });
    });
    group.bench_function("nothing changed", |b| b.iter(|| writer.publish(black_box(&rows)).expect("rows that fit")));
    group.finish();
}

fn counts(criterion: &mut Criterion) {
    let dir = scratch();
    let activity = Activity::open(&dir.path().join("sq-agent-bench-activity")).expect("2 MiB in /dev/shm");
    let slot = activity.slot(7).expect("a slot");
    let mut group = criterion.benchmark_group("route/in flight");
    group.bench_function("a read begins and ends", |b| {
        b.iter(|| {
            black_box(slot.enter(Side::A));
            slot.leave(Side::A);
        });
    });
    group.bench_function("a write begins and ends", |b| {
        b.iter(|| {
            black_box(slot.enter_writing(Side::A));
            slot.leave_writing(Side::A);
        });
    });
    group.finish();
}

criterion_group!(benches, lookups, publishes, counts);
criterion_main!(benches);
