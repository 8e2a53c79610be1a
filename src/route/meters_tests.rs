use std::{os::unix::fs::MetadataExt, time::Duration};

use super::super::meter::LATENCY_US;
use super::super::{BUCKETS, Happened, LATENCY, TENANT_REASONS};
use super::*;

const MS: Duration = Duration::from_millis(1);

fn page() -> (tempfile::TempDir, Meters) {
    let dir = tempfile::tempdir().unwrap();
    let meters = Meters::open(&dir.path().join("metrics")).unwrap();
    meters.reserve(20).unwrap();
    (dir, meters)
}

fn used(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("metrics")).unwrap().blocks() * 512
}

#[test]
fn each_thing_that_happens_moves_its_own_count() {
    let (_dir, meters) = page();
    let slot = meters.slot(7).unwrap();
    slot.note_answer(5 * MS, 200, None);
    slot.note_answer(5 * MS + Duration::from_micros(1), 404, None);
    slot.note_answer(11_000 * MS, 503, Some("not-ready"));
    slot.note_answer(MS, 429, Some("rate-limited"));
    slot.note_answer(MS, 507, Some("storage-quota"));
    slot.note_parked();
    slot.note_parked_for(3 * MS);
    for what in [Happened::Restart, Happened::Crash, Happened::Crash, Happened::MemoryKill, Happened::FailedProbe] {
        slot.note(what);
    }
    let meter = slot.read();
    let mut expected = Meter { took_us: 11_012_001, failed: 1, parked: 1, parked_us: 3_000, ..Meter::default() };
    (expected.took[0], expected.took[1], expected.took[BUCKETS - 1]) = (3, 1, 1);
    (expected.refused[1], expected.refused[3], expected.refused[14]) = (1, 1, 1);
    (expected.restarts, expected.crashes, expected.memory_kills, expected.failed_probes) = (1, 2, 1, 1);
    assert_eq!((TENANT_REASONS[1], TENANT_REASONS[14]), ("rate-limited", "not-ready"));
    assert_eq!(meter, expected);
    assert_eq!((meter.answers(), meter.refusals()), (5, 3));
    assert_eq!((meters.slot(6).unwrap().read(), meters.slot(8).unwrap().read()), (Meter::default(), Meter::default()));
}

#[test]
fn the_latency_of_a_second_is_within_the_bucket_of_a_second() {
    let (_dir, meters) = page();
    let slot = meters.slot(0).unwrap();
    for (end, us) in LATENCY.iter().zip(LATENCY_US) {
        assert_eq!(Duration::from_secs_f64(*end), Duration::from_micros(us));
        slot.note_answer(Duration::from_micros(us), 200, None);
    }
    assert_eq!(slot.read().took[..LATENCY.len()], [1; LATENCY.len()]);
}

#[test]
fn what_proxies_do_is_seen_by_the_agent() {
    let (_dir, agent) = page();
    let proxy = Meters::map(agent.share().unwrap()).unwrap();
    proxy.note_connection(true);
    proxy.note_connection(false);
    proxy.note_handshake(Handshake::Slow);
    proxy.note_auth(17);
    proxy.note_refusal("unauthorized");
    proxy.note_refusal("rate-limited");
    let one = ProxyNow { connections: 1, parked: 2, queued: 3, in_flight: 4, body_bytes: 5 };
    proxy.tell(Side::A, one);
    proxy.tell(Side::B, one);
    let seen = agent.proxy();
    assert_eq!((seen.connections, seen.turned_away, seen.handshakes), (1, 1, [0, 0, 1, 0, 0]));
    assert_eq!((AUTHS[17], seen.auths[17], seen.auths.iter().sum::<u64>()), ("expired", 1, 1));
    assert_eq!((seen.refused[0], seen.refused.iter().sum::<u64>()), (1, 1), "that of a tenant is the tenant's");
    assert_eq!(seen.now, ProxyNow { connections: 2, parked: 4, queued: 6, in_flight: 8, body_bytes: 10 });
    agent.clear_side(Side::A);
    assert_eq!(agent.proxy().now, one);
}

#[test]
fn counts_outlive_the_processes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    let agent = Meters::open(&path).unwrap();
    agent.reserve(3).unwrap();
    agent.slot(3).unwrap().note(Happened::Crash);
    agent.note_connection(true);
    drop(agent);
    let again = Meters::open(&path).unwrap();
    assert_eq!((again.slot(3).unwrap().read().crashes, again.proxy().connections), (1, 1));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_tenant_that_leaves_leaves_its_counts_to_the_sums_and_an_empty_slot() {
    let (_dir, meters) = page();
    let slot = meters.slot(2).unwrap();
    slot.note_answer(MS, 503, Some("no-guard"));
    slot.note_cpu(7, 400);
    meters.slot(3).unwrap().note_answer(MS, 200, None);
    let (before, each) = meters.all();
    assert_eq!((before.answers(), each[2].answers(), each[3].answers()), (2, 1, 1));
    meters.reset(2);
    let (after, each) = meters.all();
    assert_eq!((after, each[2]), (before, Meter::default()));
    meters.slot(2).unwrap().note_answer(MS, 200, None);
    assert_eq!(meters.all().0.answers(), 3);
    meters.slot(2).unwrap().note_cpu(7, 500);
    assert_eq!(meters.slot(2).unwrap().read().cpu_us, 500, "another tenant's start of that number is another start");
}

#[test]
fn cpu_time_adds_up_over_starts_and_over_agents() {
    let (_dir, meters) = page();
    let slot = meters.slot(1).unwrap();
    for (epoch, used) in [(4, 1_000), (4, 1_500), (4, 1_500), (5, 200), (5, 100), (5, 300)] {
        slot.note_cpu(epoch, used);
    }
    // 1,500 of the first start; of the second 200, then 200 more than what it said last.
    assert_eq!(slot.read().cpu_us, 1_500 + 200 + 200);
}

#[test]
fn only_tenants_cost_memory_and_what_has_none_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let meters = Meters::open(&dir.path().join("metrics")).unwrap();
    let empty = used(dir.path());
    assert!(empty <= 64 << 10, "{empty}");
    assert!(meters.slot(0).is_none() && meters.all().1.is_empty());
    meters.reset(0);
    meters.reserve(999).unwrap();
    assert!(meters.slot(1_023).is_some() && meters.slot(1_024).is_none(), "in steps of 128");
    let thousand = used(dir.path());
    assert!((300 << 10..600 << 10).contains(&thousand), "{thousand}");
    assert_eq!(used(dir.path()), thousand, "to look costs nothing");
    meters.reserve(u32::MAX).unwrap();
    meters.reserve(SLOTS as u32 - 1).unwrap();
    meters.slot(SLOTS as u32 - 1).unwrap().note_parked();
    assert!(meters.slot(SLOTS as u32).is_none());
}

#[test]
fn a_sum_that_is_taken_while_tenants_leave_never_goes_down() {
    let (_dir, meters) = page();
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..2_000 {
                // One leaves a look, at whatever point of it.
                while looks.load(Ordering::Relaxed) < u64::from(n) {
                    std::hint::spin_loop();
                }
                meters.slot(n % 20).unwrap().note_answer(MS, 200, None);
                meters.reset(n % 20);
            }
        });
        let mut last = 0;
        while last < 2_000 {
            looks.fetch_add(1, Ordering::Relaxed);
            let sum = meters.all().0.answers();
            assert!((last..=2_000).contains(&sum), "{sum} after {last}");
            last = sum;
        }
    });
    assert_eq!(meters.all().0.answers(), 2_000);
}

#[test]
fn an_agent_that_died_over_a_move_does_not_hold_up_the_next_ones_looks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    let meters = Meters::open(&path).unwrap();
    meters.word(MOVING).store(3, Ordering::Relaxed);
    assert_eq!(Meters::open(&path).unwrap().word(MOVING).load(Ordering::Relaxed), 4);
}
