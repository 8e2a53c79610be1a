//! How the one writer publishes and any number of readers read: two buffers, a sequence word for each, one generation.
//!
//! This file is compiled twice: here with std's atomics, and in `tests/route_loom.rs` with loom's, which explores every
//! order and every stale read the memory model permits. So it names its atomics through `super::atomics` and does nothing else.
//!
//! Relaxed loads plus fences, never an acquire load or a read-modify-write, on the reader's side: on a page that is mapped
//! read-only std promises only that plain atomic loads do not write.

use super::atomics::{AtomicU64, Ordering, fence, spin_loop};

/// The steps of the protocol. The shipped one takes all of them; loom's tests leave one out at a time to see it missed.
pub(super) trait Steps {
    /// Writer: the sequence word is odd while its buffer is being written.
    const ODD_MARK: bool = true;
    /// Writer: whoever sees a new word sees the odd mark.
    const FENCE_AFTER_ODD: bool = true;
    /// Writer: whoever sees the even mark sees all words.
    const RELEASE_EVEN: bool = true;
    /// Writer: whoever sees the generation sees its buffer.
    const RELEASE_GENERATION: bool = true;
    /// Reader: the sequence word is at least as new as the generation.
    const FENCE_AFTER_GENERATION: bool = true;
    /// Reader: the words are at least as new as the first look at the sequence word.
    const FENCE_BEFORE_PROBE: bool = true;
    /// Reader: the second look at the sequence word is at least as new as the words.
    const FENCE_AFTER_PROBE: bool = true;
}

/// All steps.
pub(super) struct Shipped;
impl Steps for Shipped {}

/// The words that writer and readers share.
pub(super) struct Shared<'a> {
    /// Even: buffer 0 is current; odd: buffer 1. Never goes back.
    pub(super) generation: &'a AtomicU64,
    /// One a buffer; odd while it is written.
    pub(super) seq: [&'a AtomicU64; 2],
    /// The contents.
    pub(super) buffers: [&'a [AtomicU64]; 2],
}

impl Shared<'_> {
    /// Has `store` bring the buffer that is not current (given with its index) to its next contents, then makes it current.
    /// Returns the new generation.
    ///
    /// One writer at a time. One that dies anywhere in here leaves the current buffer whole; the next simply does the other
    /// again, whether it finds the mark odd or even.
    pub(super) fn publish<S: Steps>(&self, store: impl FnOnce(usize, &[AtomicU64])) -> u64 {
        let next = self.generation.load(Ordering::Relaxed).wrapping_add(1);
        let side = usize::from(next % 2 == 1);
        let odd = self.seq[side].load(Ordering::Relaxed) | 1;
        if S::ODD_MARK {
            self.seq[side].store(odd, Ordering::Relaxed);
        }
        if S::FENCE_AFTER_ODD {
            fence(Ordering::Release);
        }
        store(side, self.buffers[side]);
        self.seq[side].store(odd.wrapping_add(1), release(S::RELEASE_EVEN));
        self.generation.store(next, release(S::RELEASE_GENERATION));
        next
    }

    /// Calls `probe` on the current buffer until what it saw is whole, at most `tries` times.
    /// Returns the generation that was current at the start of the reading, and the result.
    ///
    /// `probe` may see any mixture of words, so it must neither trust them nor run unbounded; only the result that is returned
    /// here is of one publish.
    pub(super) fn read<S: Steps, R>(&self, tries: usize, mut probe: impl FnMut(&[AtomicU64]) -> R) -> Option<(u64, R)> {
        for _ in 0..tries {
            let generation = self.generation.load(Ordering::Relaxed);
            if S::FENCE_AFTER_GENERATION {
                fence(Ordering::Acquire);
            }
            let side = usize::from(generation % 2 == 1);
            let before = self.seq[side].load(Ordering::Relaxed);
            if S::FENCE_BEFORE_PROBE {
                fence(Ordering::Acquire);
            }
            if before.is_multiple_of(2) {
                let seen = probe(self.buffers[side]);
                if S::FENCE_AFTER_PROBE {
                    fence(Ordering::Acquire);
                }
                if self.seq[side].load(Ordering::Relaxed) == before {
                    return Some((generation, seen));
                }
            }
            spin_loop();
        }
        None
    }
}

fn release(kept: bool) -> Ordering {
    if kept { Ordering::Release } else { Ordering::Relaxed }
}
