//! What is counted for one tenant: six lines of words on the page of metrics, and their values.

use std::time::Duration;

use super::atomics::{AtomicU64, Ordering};
use super::layout::LINE;

/// Upper ends of the latency buckets, seconds; what takes longer is in one more. Few, since each is a series a tenant.
pub const LATENCY: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The same, microseconds.
pub(super) const LATENCY_US: [u64; 11] =
    [5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000];
/// Buckets, with the one that has no end.
pub const BUCKETS: usize = LATENCY.len() + 1;

/// Why requests of a tenant are refused: the slugs of the proxy's problems, each with its own word in a slot. Another one is another version of the page.
pub const TENANT_REASONS: [&str; 23] = [
    "suspended",
    "rate-limited",
    "quota-used",
    "storage-quota",
    "disk-low",
    "body-too-large",
    "body-too-slow",
    "body-cut",
    "bad-phext-name",
    "too-much-memory",
    "no-room",
    "not-stored",
    "queue-full",
    "queue-timeout",
    "not-ready",
    "host-full",
    "out-of-memory",
    "table-busy",
    "bad-answer",
    "upstream-timeout",
    "not-applied",
    "storage-trouble",
    "no-guard",
];
/// What happens to an instance, as the agent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// A start after the first.
    Restart,
    /// It ended unasked, or did not come up.
    Crash,
    /// It was killed for memory.
    MemoryKill,
    /// It did not answer a probe.
    FailedProbe,
}

/// Words of a slot: six lines, the first three of which every request writes to.
pub(super) const SLOT: usize = 6 * LINE;
/// Word 0 and on: answers by how long they took.
const TOOK: usize = 0;
/// The sum of that, microseconds.
const TOOK_SUM: usize = BUCKETS;
/// Answers 5xx, whoever made them, but for a used storage quota.
const FAILED: usize = BUCKETS + 1;
/// Requests that waited for an instance, and for how long, microseconds.
const PARKED: usize = BUCKETS + 2;
const PARKED_SUM: usize = BUCKETS + 3;
/// Refusals.
const REFUSED: usize = 2 * LINE;
/// What [`Happened`], as the agent saw it.
const HAPPENED: usize = REFUSED + TENANT_REASONS.len();
/// CPU time, microseconds.
const CPU: usize = HAPPENED + 4;
/// Which start that was last read of, and how much it had used by then.
const CPU_OF: usize = CPU + 1;
const CPU_SEEN: usize = CPU + 2;
const _: () = assert!(CPU_SEEN < SLOT && BUCKETS + 4 <= REFUSED);
/// Words that are no counts, and so not added up.
pub(super) const NO_COUNTS: [usize; 2] = [CPU_OF, CPU_SEEN];

/// What was counted for one tenant, or for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meter {
    /// Answers by how long they took, as [`LATENCY`] and one more; not added up.
    pub took: [u64; BUCKETS],
    /// The sum of that, microseconds.
    pub took_us: u64,
    /// Answers 5xx, whoever made them, but for a used storage quota.
    pub failed: u64,
    /// Requests that waited for an instance.
    pub parked: u64,
    /// For how long, microseconds.
    pub parked_us: u64,
    /// As [`TENANT_REASONS`].
    pub refused: [u64; TENANT_REASONS.len()],
    /// Starts after the first.
    pub restarts: u64,
    /// Unasked ends.
    pub crashes: u64,
    /// Of these, and of restarts over it, for memory.
    pub memory_kills: u64,
    /// Probes that were not answered.
    pub failed_probes: u64,
    /// CPU time, microseconds.
    pub cpu_us: u64,
}

/// One tenant's slot. Each word stands for itself, so every access is relaxed.
#[derive(Debug, Clone, Copy)]
pub struct SlotMeters<'a>(pub(super) &'a [AtomicU64; SLOT]);

impl SlotMeters<'_> {
    /// A request is over: answered with `status` after so long, by sq or, for `refused`, by the proxy.
    pub fn note_answer(self, took: Duration, status: u16, refused: Option<&str>) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.add(TOOK + LATENCY_US.partition_point(|end| *end < us), 1);
        self.add(TOOK_SUM, us);
        // That a tenant has used what it may is no failure of the host's.
        if status >= 500 && refused != Some("storage-quota") {
            self.add(FAILED, 1);
        }
        if let Some(at) = refused.and_then(|reason| TENANT_REASONS.iter().position(|known| *known == reason)) {
            self.add(REFUSED + at, 1);
        }
    }

    /// A request begins to wait for the instance.
    pub fn note_parked(self) {
        self.add(PARKED, 1);
    }

    /// It waited for so long.
    pub fn note_parked_for(self, time: Duration) {
        self.add(PARKED_SUM, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// For the agent.
    pub fn note(self, what: Happened) {
        self.add(HAPPENED + what as usize, 1);
    }

    /// The start `epoch` has used so much CPU time by now, microseconds. For the agent, which alone writes this.
    pub fn note_cpu(self, epoch: u64, used_us: u64) {
        let of = self.0[CPU_OF].swap(epoch, Ordering::Relaxed);
        let seen = self.0[CPU_SEEN].swap(used_us, Ordering::Relaxed);
        self.add(CPU, used_us.saturating_sub(if of == epoch { seen } else { 0 }));
    }

    /// All values.
    pub fn read(self) -> Meter {
        Meter::of(self.0)
    }

    fn add(self, at: usize, count: u64) {
        self.0[at].fetch_add(count, Ordering::Relaxed);
    }
}

impl Meter {
    pub(super) fn of(words: &[AtomicU64]) -> Self {
        let word = |at: usize| words[at].load(Ordering::Relaxed);
        Self {
            took: std::array::from_fn(|at| word(TOOK + at)),
            took_us: word(TOOK_SUM),
            failed: word(FAILED),
            parked: word(PARKED),
            parked_us: word(PARKED_SUM),
            refused: std::array::from_fn(|at| word(REFUSED + at)),
            restarts: word(HAPPENED + Happened::Restart as usize),
            crashes: word(HAPPENED + Happened::Crash as usize),
            memory_kills: word(HAPPENED + Happened::MemoryKill as usize),
            failed_probes: word(HAPPENED + Happened::FailedProbe as usize),
            cpu_us: word(CPU),
        }
    }

    /// Answers, however long they took.
    pub fn answers(&self) -> u64 {
        self.took.iter().sum()
    }

    /// Refusals for whatever reason.
    pub fn refusals(&self) -> u64 {
        self.refused.iter().sum()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.took.iter_mut().zip(other.took).for_each(|(sum, more)| *sum += more);
        self.refused.iter_mut().zip(other.refused).for_each(|(sum, more)| *sum += more);
        self.took_us += other.took_us;
        self.failed += other.failed;
        self.parked += other.parked;
        self.parked_us += other.parked_us;
        self.restarts += other.restarts;
        self.crashes += other.crashes;
        self.memory_kills += other.memory_kills;
        self.failed_probes += other.failed_probes;
        self.cpu_us += other.cpu_us;
    }
}
