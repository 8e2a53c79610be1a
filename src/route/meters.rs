//! The page of what is only counted: for each tenant how its requests went, for the proxies what they did. Written by every proxy and, a few words a
//! tenant, by the agent; read by the agent alone, for its metrics.
//!
//! It stands beside the activity page because nothing is decided by it. Counts outlive every process, so they hold over a restart of either and over
//! two proxies side by side. Memory is given to as many slots as there are tenants, by [`Meters::reserve`]: what is beyond is not counted.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::atomics::{AtomicU64, Ordering, fence};
use super::layout::{HEADER_WORDS, LINE};
use super::page::{self, Kind, Page};
use super::{SLOTS, Side, TableError};

/// Upper ends of the latency buckets, seconds; what takes longer is in one more. Few, since each is a series a tenant.
pub const LATENCY: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The same, microseconds.
const LATENCY_US: [u64; 11] = [5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000];
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
/// Why requests are refused of which it is not known whose they are. More may follow at the end.
pub const OTHER_REASONS: [&str; 15] = [
    "unauthorized",
    "no-such-tenant",
    "bad-request",
    "head-too-large",
    "unknown-coding",
    "method-not-allowed",
    "not-found",
    "table-busy",
    "webhook-unsigned",
    "webhook-signature",
    "webhook-rate-limited",
    "webhook-busy",
    "webhook-too-large",
    "body-too-slow",
    "body-cut",
];

/// What came of asking who asks; the label of the metric. More may follow at the end.
pub const AUTHS: [&str; 23] = [
    "token_cached",
    "token_verified",
    "api_key",
    "suspended",
    "no_such_tenant",
    "missing",
    "several",
    "not_bearer",
    "not_api_key",
    "unknown_api_key",
    "too_long",
    "malformed",
    "no_key",
    "unknown_kid",
    "critical",
    "signature",
    "no_expiry",
    "expired",
    "not_yet",
    "issuer",
    "audience",
    "subject",
    "revoked",
];

/// What came of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// It is through.
    Done,
    /// It broke off.
    Failed,
    /// It took too long.
    Slow,
    /// Others needed its place.
    Displaced,
    /// It looked for a challenge of an ACME server.
    Challenge,
}

impl Handshake {
    /// All, each with the label of the metric.
    pub const ALL: [(Self, &str); 5] = [
        (Self::Done, "done"),
        (Self::Failed, "failed"),
        (Self::Slow, "slow"),
        (Self::Displaced, "displaced"),
        (Self::Challenge, "acme_challenge"),
    ];
}

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
const SLOT: usize = 6 * LINE;
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
const NO_COUNTS: [usize; 2] = [CPU_OF, CPU_SEEN];

/// Slots that have memory.
const RESERVED: usize = 7 * LINE;
/// What each side's proxy has at the moment.
const NOW: [usize; 2] = [8 * LINE, 9 * LINE];
/// Connections taken, and such as were not since their address had its share.
const CONNECTIONS: usize = 10 * LINE;
const TURNED_AWAY: usize = 10 * LINE + 1;
const HANDSHAKES: usize = 11 * LINE;
const AUTH: usize = 12 * LINE;
const NOBODYS: usize = 16 * LINE;
/// Odd while what a tenant counted is moved to those who are gone.
const MOVING: usize = 20 * LINE;
/// What tenants counted that are gone: with them the sums would go down.
const GONE: usize = 32 * LINE;
const _: () = assert!(AUTH + AUTHS.len() <= NOBODYS && NOBODYS + OTHER_REASONS.len() <= MOVING && GONE + SLOT <= HEADER_WORDS);

const METERS: Kind =
    Kind { magic: *b"sqmeters", version: 1, words: HEADER_WORDS + SLOTS * SLOT, reserved: HEADER_WORDS, capacity: SLOTS, mode: 0o600 };

/// The mapped page.
pub struct Meters {
    page: Page,
    file: File,
}

/// What a proxy has at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProxyNow {
    /// Clients connected.
    pub connections: u64,
    /// Requests that wait for an instance.
    pub parked: u64,
    /// Requests that wait for their turn.
    pub queued: u64,
    /// Requests in flight to sq.
    pub in_flight: u64,
    /// Bytes of request bodies in memory.
    pub body_bytes: u64,
}

/// What proxies did since the page was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyMeter {
    /// Connections taken.
    pub connections: u64,
    /// Connections not taken, since their address had its share.
    pub turned_away: u64,
    /// As [`Handshake::ALL`].
    pub handshakes: [u64; Handshake::ALL.len()],
    /// As [`AUTHS`].
    pub auths: [u64; AUTHS.len()],
    /// Refusals of requests of nobody known, as [`OTHER_REASONS`].
    pub refused: [u64; OTHER_REASONS.len()],
    /// What all of them have now.
    pub now: ProxyNow,
}

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

impl Meters {
    /// Opens the page at `path`, made (mode 0600) where there is none. One of another shape or version is replaced: counts begin anew.
    ///
    /// # Errors
    /// The file cannot be made, or the tmpfs is full.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let (file, _) = page::open(path, &METERS, |_| {})?;
        let meters = Self { page: Page::writable(&file, &METERS)?, file };
        // An agent that died in the middle of a move left it odd.
        meters.word(MOVING).fetch_add(meters.word(MOVING).load(Ordering::Relaxed) % 2, Ordering::Relaxed);
        Ok(meters)
    }

    /// Maps the page that [`share`](Self::share) gave.
    ///
    /// # Errors
    /// The descriptor holds no such page of this version.
    pub fn map(fd: OwnedFd) -> Result<Self, TableError> {
        Ok(Self { page: Page::writable(fd.as_fd(), &METERS)?, file: fd.into() })
    }

    /// A descriptor for the proxy, for reading and writing.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn share(&self) -> Result<OwnedFd, TableError> {
        Ok(self.file.try_clone().map_err(TableError::file("share", Path::new("the page of metrics")))?.into())
    }

    /// Gives memory to `slot` and all before it. For the agent, before anybody is told of the slot: on a full tmpfs a first touch would be a SIGBUS.
    ///
    /// # Errors
    /// The tmpfs is full: the slot is not counted.
    pub fn reserve(&self, slot: u32) -> Result<(), TableError> {
        let slots = u64::from(slot).saturating_add(1);
        let reserved = self.word(RESERVED);
        if reserved.load(Ordering::Relaxed) >= slots || slots > SLOTS as u64 {
            return Ok(());
        }
        // In whole steps, so that tenants who come one by one do not each make a call.
        const STEP: u64 = 128;
        let slots = slots.next_multiple_of(STEP).min(SLOTS as u64);
        page::reserve(&self.file, HEADER_WORDS + slots as usize * SLOT)?;
        // What is read behind this has memory.
        reserved.store(slots, Ordering::Release);
        Ok(())
    }

    /// The slot with this index; `None` where it has no memory.
    pub fn slot(&self, slot: u32) -> Option<SlotMeters<'_>> {
        if u64::from(slot) >= self.word(RESERVED).load(Ordering::Acquire) {
            return None;
        }
        self.page.words().get(HEADER_WORDS + slot as usize * SLOT..)?.first_chunk().map(SlotMeters)
    }

    /// A client connects, and is let in or not.
    pub fn note_connection(&self, let_in: bool) {
        self.add(if let_in { CONNECTIONS } else { TURNED_AWAY });
    }

    /// A handshake ends.
    pub fn note_handshake(&self, came_to: Handshake) {
        self.add(HANDSHAKES + came_to as usize);
    }

    /// Somebody was asked who they are; the index is that of [`AUTHS`].
    pub fn note_auth(&self, which: usize) {
        if which < AUTHS.len() {
            self.add(AUTH + which);
        }
    }

    /// A request of nobody known was refused, for one of [`OTHER_REASONS`].
    pub fn note_refusal(&self, reason: &str) {
        if let Some(at) = OTHER_REASONS.iter().position(|other| *other == reason) {
            self.add(NOBODYS + at);
        }
    }

    /// What the proxy of `side` has at the moment.
    pub fn tell(&self, side: Side, now: ProxyNow) {
        let ProxyNow { connections, parked, queued, in_flight, body_bytes } = now;
        for (at, value) in [connections, parked, queued, in_flight, body_bytes].into_iter().enumerate() {
            self.word(NOW[side as usize] + at).store(value, Ordering::Relaxed);
        }
    }

    /// The proxy that lived on `side` is dead: it has nothing any more. For the agent.
    pub fn clear_side(&self, side: Side) {
        self.tell(side, ProxyNow::default());
    }

    /// What proxies did.
    pub fn proxy(&self) -> ProxyMeter {
        let now = |at| NOW.iter().map(|side| self.word(side + at).load(Ordering::Relaxed)).fold(0, u64::saturating_add);
        ProxyMeter {
            connections: self.word(CONNECTIONS).load(Ordering::Relaxed),
            turned_away: self.word(TURNED_AWAY).load(Ordering::Relaxed),
            handshakes: self.array(HANDSHAKES),
            auths: self.array(AUTH),
            refused: self.array(NOBODYS),
            now: ProxyNow { connections: now(0), parked: now(1), queued: now(2), in_flight: now(3), body_bytes: now(4) },
        }
    }

    /// The tenant in `slot` is gone: the slot begins anew for the next one, and what it counted stays in the sums. For the agent.
    pub fn reset(&self, slot: u32) {
        let Some(slot) = self.slot(slot) else { return };
        let moving = self.word(MOVING);
        moving.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (at, (word, gone)) in slot.0.iter().zip(self.gone()).enumerate() {
            let counted = word.swap(0, Ordering::Relaxed);
            if !NO_COUNTS.contains(&at) {
                gone.fetch_add(counted, Ordering::Relaxed);
            }
        }
        moving.fetch_add(1, Ordering::Release);
    }

    /// What was counted for all tenants that there are and were, and for each slot.
    pub fn all(&self) -> (Meter, Vec<Meter>) {
        /// So many tenants do not leave while one look lasts, a millisecond or so; and if they do, the sums are off for once.
        const TRIES: u32 = 8;
        let moving = self.word(MOVING);
        let mut tries = 0;
        loop {
            let before = moving.load(Ordering::Acquire);
            let mut sum = Meter::of(self.gone());
            let each: Vec<Meter> = (0..).map_while(|slot| self.slot(slot)).map(SlotMeters::read).collect();
            each.iter().for_each(|meter| sum.add(meter));
            fence(Ordering::Acquire);
            tries += 1;
            if tries == TRIES || (before.is_multiple_of(2) && moving.load(Ordering::Relaxed) == before) {
                return (sum, each);
            }
            std::hint::spin_loop();
        }
    }

    fn gone(&self) -> &[AtomicU64] {
        &self.page.words()[GONE..GONE + SLOT]
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.page.words()[at]
    }

    fn add(&self, at: usize) {
        self.word(at).fetch_add(1, Ordering::Relaxed);
    }

    fn array<const N: usize>(&self, from: usize) -> [u64; N] {
        std::array::from_fn(|at| self.word(from + at).load(Ordering::Relaxed))
    }
}

/// One tenant's slot. Each word stands for itself, so every access is relaxed.
#[derive(Debug, Clone, Copy)]
pub struct SlotMeters<'a>(&'a [AtomicU64; SLOT]);

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
    fn of(words: &[AtomicU64]) -> Self {
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

    fn add(&mut self, other: &Self) {
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

#[cfg(test)]
#[path = "meters_tests.rs"]
mod tests;
