//! The word of a slot that says who is under way to the tenant's instance: for each of the two proxies that may stand side by side a count of
//! requests and the claim to write.
//!
//! ```text
//!   63        62 .. 32         31        30 .. 0
//!   B writes  B in flight      A writes  A in flight
//! ```
//!
//! Each proxy changes its own half alone, and the agent takes away the half of one that died. The claim makes "one write at a time" hold
//! across both: a proxy takes it in the same step that counts the request, and only while the other has not.
//!
//! This file is compiled twice, as `protocol` is: `tests/route_loom.rs` explores it with loom's atomics.

use super::atomics::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};

/// The bits of a half that count.
const COUNT: u64 = 0x7fff_ffff;
/// The bit of a half that claims.
const CLAIM: u64 = 0x8000_0000;

/// Which of the two proxies that may stand side by side during an upgrade. Each counts its own requests in flight, so that those of one
/// that died can be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// The first.
    A = 0,
    /// The second.
    B = 1,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// From the number that the agent tells a proxy.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::BOTH.into_iter().find(|side| *side as u8 == number)
    }

    /// The next proxy's side.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn shift(self) -> u32 {
        32 * self as u32
    }
}

/// A request begins. Returns how many are in flight now through both proxies, this one included.
///
/// The fence stands against the one in [`in_flight`]: see `SlotActivity::enter`.
pub(super) fn enter(word: &AtomicU64, side: Side) -> u32 {
    let before = step(word, Relaxed, |old| Some(counted(old, side))).unwrap_or_else(|unchanged| unchanged);
    fence(SeqCst);
    total(counted(before, side))
}

/// A request that writes begins, unless the other proxy is writing: then nothing changes. The caller sees to it that its own proxy writes once
/// at a time.
pub(super) fn enter_writing(word: &AtomicU64, side: Side) -> bool {
    // Acquire: what the last writer did comes before what this one will do.
    let entered = step(word, Acquire, |old| {
        let free = old & CLAIM << side.other().shift() == 0;
        free.then(|| counted(old, side) | CLAIM << side.shift())
    });
    fence(SeqCst);
    entered.is_ok()
}

/// A request has ended. One too many does nothing.
pub(super) fn leave(word: &AtomicU64, side: Side) {
    // Never refused.
    let _ = step(word, Relaxed, |old| Some(discounted(old, side)));
}

/// A request that wrote has ended.
pub(super) fn leave_writing(word: &AtomicU64, side: Side) {
    let _ = step(word, Release, |old| Some(discounted(old, side) & !(CLAIM << side.shift())));
}

/// Requests in flight through both proxies.
pub(super) fn in_flight(word: &AtomicU64) -> u32 {
    fence(SeqCst);
    total(word.load(Relaxed))
}

/// A proxy died: none of its requests is in flight any more, and it writes no more.
pub(super) fn clear_side(word: &AtomicU64, side: Side) {
    word.fetch_and(!((COUNT | CLAIM) << side.shift()), Release);
}

/// Requests in flight through both proxies, as a value of the word says.
pub(super) fn total(word: u64) -> u32 {
    count(word, Side::A) + count(word, Side::B)
}

/// A count fits in 31 bits, so two of them can be added.
fn count(word: u64, side: Side) -> u32 {
    (word >> side.shift() & COUNT) as u32
}

fn counted(word: u64, side: Side) -> u64 {
    with_count(word, side, (u64::from(count(word, side)) + 1).min(COUNT))
}

fn discounted(word: u64, side: Side) -> u64 {
    with_count(word, side, u64::from(count(word, side)).saturating_sub(1))
}

fn with_count(word: u64, side: Side, count: u64) -> u64 {
    word & !(COUNT << side.shift()) | count << side.shift()
}

/// Changes the word by `next`, a function of it that may run several times and may refuse. Returns the word as it was before.
fn step(word: &AtomicU64, ordering: super::atomics::Ordering, next: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
    let mut old = word.load(Relaxed);
    loop {
        let Some(new) = next(old) else { return Err(old) };
        match word.compare_exchange_weak(old, new, ordering, Relaxed) {
            Ok(old) => return Ok(old),
            Err(newer) => old = newer,
        }
    }
}
