//! The page of what is only counted: for each tenant how its requests went, for the proxies what they did. Written by every proxy and, a few words a
//! tenant, by the agent; read by the agent alone, for its metrics.
//!
//! It stands beside the activity page because nothing is decided by it. Counts outlive every process, so they hold over a restart of either and over
//! two proxies side by side. Memory is given to as many slots as there are tenants, by [`Meters::reserve`]: what is beyond is not counted.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::atomics::{AtomicU64, Ordering, fence};
use super::layout::{HEADER_WORDS, LINE};
use super::meter::{Meter, NO_COUNTS, SLOT, SlotMeters};
use super::page::{self, Kind, Page};
use super::{SLOTS, Side, TableError};

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

#[cfg(test)]
#[path = "meters_tests.rs"]
mod tests;
