//! Publish against read of the route table, and write against write of two proxies, in every interleaving and with every stale read that the
//! memory model permits.
//!
//! `protocol.rs` and `flight.rs` are compiled here once more, the very files that ship, over loom's atomics: so this is an ordinary test and needs no
//! `--cfg loom` (which would reach into the dependencies too). Buffers of two words are enough to be torn; two publishes are
//! enough to write into the buffer that a reader stands in.
//!
//! Each step of the protocol is then left out, alone, and loom must find the execution in which it is missed.

#![allow(clippy::unwrap_used)] // reason: all of this file is test, also the functions that clippy does not take for one

use std::collections::BTreeSet;
use std::sync::Mutex;

use loom::sync::Arc;
use loom::thread;

mod atomics {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}
#[allow(dead_code, unreachable_pub)] // reason: what is public there is for the rest of the program
#[path = "../src/route/flight.rs"]
mod flight;
#[path = "../src/route/protocol.rs"]
mod protocol;

use atomics::{AtomicU64, Ordering};
use flight::Side;
use protocol::{Shared, Shipped, Steps};

/// What a reader's reads in a row gave: generations, or no quiet moment.
type Outcomes = BTreeSet<Vec<Option<u64>>>;

struct Table {
    generation: AtomicU64,
    seq: [AtomicU64; 2],
    buffers: [[AtomicU64; 2]; 2],
}

impl Table {
    fn new(generation: u64, seq: [u64; 2], buffers: [[u64; 2]; 2]) -> Self {
        Self {
            generation: AtomicU64::new(generation),
            seq: seq.map(AtomicU64::new),
            buffers: buffers.map(|words| words.map(AtomicU64::new)),
        }
    }

    fn empty() -> Self {
        Self::new(0, [0, 0], [[0, 0], [0, 0]])
    }

    fn shared(&self) -> Shared<'_> {
        let ([seq0, seq1], [first, second]) = (&self.seq, &self.buffers);
        Shared { generation: &self.generation, seq: [seq0, seq1], buffers: [first, second] }
    }

    /// Fills the other buffer with the number of its generation.
    fn publish<S: Steps>(&self) {
        let next = self.generation.load(Ordering::Relaxed) + 1;
        let published = self.shared().publish::<S>(|_, words| words.iter().for_each(|word| word.store(next, Ordering::Relaxed)));
        assert_eq!(published, next);
    }

    /// Reads, and checks all that a reader is promised. Returns the generation, if it found a quiet moment.
    fn read<S: Steps>(&self, tries: usize) -> Option<u64> {
        let load = |words: &[AtomicU64]| [words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)];
        let (generation, [first, second]) = self.shared().read::<S, _>(tries, load)?;
        assert_eq!(first, second, "torn");
        assert!(first >= generation, "stale: generation {generation}, contents of {first}");
        Some(generation)
    }
}

/// Explores `publishes` over `table` against the reads of `readers` threads, then checks that the last publish is seen at once.
/// Returns every outcome of a reader's `reads` in a row.
///
/// The writer runs in the first thread, so that loom's first schedule has every store before every load. All else it finds as
/// stale reads, and completely so, since no writer ever waits for what a reader does. (The other way round it finds little: it
/// remembers only the last access to a word, which is the writer's own load just before its store.)
fn explore<S: Steps + 'static>(table: fn() -> Table, publishes: usize, readers: usize, reads: usize) -> Outcomes {
    let outcomes = std::sync::Arc::new(Mutex::new(Outcomes::new()));
    let seen = outcomes.clone();
    loom::model(move || {
        let table = Arc::new(table());
        let threads: Vec<_> = (0..readers)
            .map(|_| {
                let (table, seen) = (table.clone(), seen.clone());
                thread::spawn(move || {
                    let outcome = (0..reads).map(|_| table.read::<S>(1)).collect();
                    seen.lock().unwrap().insert(outcome);
                })
            })
            .collect();
        (0..publishes).for_each(|_| table.publish::<S>());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let last = table.generation.load(Ordering::Relaxed);
        assert_eq!(table.read::<S>(1), Some(last), "who has heard of the end sees the last publish at once");
    });
    outcomes.lock().unwrap().clone()
}

#[test]
fn a_reader_sees_whole_contents_at_least_as_new_as_the_generation() {
    let outcomes = explore::<Shipped>(Table::empty, 2, 1, 1);
    // Loom did look: each generation was seen, and so was a buffer being written.
    for expected in [Some(0), Some(1), Some(2), None] {
        assert!(outcomes.iter().any(|outcome| outcome[0] == expected), "{expected:?} in {outcomes:?}");
    }
}

#[test]
fn generations_never_go_back_for_a_reader() {
    for outcome in explore::<Shipped>(Table::empty, 1, 1, 2) {
        let (first, second) = (outcome[0], outcome[1]);
        assert!(first.is_none() || second.is_none() || first <= second, "{first:?}, then {second:?}");
    }
}

/// Explores two publishes: all that a reader is promised must hold.
fn is_whole<S: Steps + 'static>() {
    explore::<S>(Table::empty, 2, 1, 1);
}

/// Explores one publish: who sees its generation must see its mark, so nobody tries twice (nor, 64 times unlucky, answers 503).
fn is_quick<S: Steps + 'static>() {
    let outcomes = explore::<S>(Table::empty, 1, 1, 1);
    assert!(outcomes.iter().flatten().all(Option::is_some), "tried twice: {outcomes:?}");
}

#[test]
fn a_single_publish_never_makes_a_reader_try_twice() {
    is_quick::<Shipped>();
}

#[test]
fn two_readers_do_not_disturb_each_other() {
    explore::<Shipped>(Table::empty, 1, 2, 1);
}

/// The first writer died half-way into buffer 0, with its mark odd; the next one takes over under the eyes of a reader.
#[test]
fn a_buffer_that_a_dead_writer_left_half_written_is_never_seen() {
    explore::<Shipped>(|| Table::new(1, [1, 2], [[2, 0], [1, 1]]), 2, 1, 1);
}

/// The first writer died just before it raised the generation: all is written, the mark is even, and the same is published again.
#[test]
fn a_publish_that_only_lacked_its_generation_is_done_again() {
    explore::<Shipped>(|| Table::new(1, [2, 2], [[2, 2], [1, 1]]), 2, 1, 1);
}

/// A protocol without one of its steps, and a test that loom finds it out.
macro_rules! without {
    ($step:ident, $promise:ident, $complaint:literal, $test:ident) => {
        #[test]
        #[should_panic(expected = $complaint)]
        fn $test() {
            struct Without;
            impl Steps for Without {
                const $step: bool = false;
            }
            $promise::<Without>();
        }
    };
}

without!(ODD_MARK, is_whole, "torn", without_the_odd_mark_a_reader_sees_torn_contents);
without!(FENCE_AFTER_ODD, is_whole, "torn", without_the_fence_after_the_odd_mark_a_reader_sees_torn_contents);
without!(RELEASE_EVEN, is_whole, "torn", without_the_release_of_the_even_mark_a_reader_sees_torn_contents);
without!(FENCE_BEFORE_PROBE, is_whole, "torn", without_the_fence_before_the_probe_a_reader_sees_torn_contents);
without!(FENCE_AFTER_PROBE, is_whole, "torn", without_the_fence_after_the_probe_a_reader_sees_torn_contents);
// The sequence words alone keep stale contents from a reader; these two spare it the second try.
without!(RELEASE_GENERATION, is_quick, "tried twice", without_the_release_of_the_generation_a_reader_tries_twice);
without!(FENCE_AFTER_GENERATION, is_quick, "tried twice", without_the_fence_after_the_generation_a_reader_tries_twice);

/// What those two leave to the fence before the probe is lost with it.
#[test]
#[should_panic(expected = "stale")]
fn without_both_fences_before_the_probe_a_reader_sees_stale_contents() {
    struct Without;
    impl Steps for Without {
        const FENCE_AFTER_GENERATION: bool = false;
        const FENCE_BEFORE_PROBE: bool = false;
    }
    is_quick::<Without>();
}

/// An instance of sq that is torn by two writes at once, and the word that guards it.
struct Guarded {
    word: AtomicU64,
    sq: loom::cell::UnsafeCell<u32>,
}

impl Guarded {
    fn new(word: u64) -> Arc<Self> {
        Arc::new(Self { word: AtomicU64::new(word), sq: loom::cell::UnsafeCell::new(0) })
    }

    /// One write, as a proxy does it: it waits while the other one writes. Loom fails if anybody else is at `sq`, or does not see the last write.
    fn write(&self, side: Side) {
        while !flight::enter_writing(&self.word, side) {
            thread::yield_now();
        }
        self.sq.with_mut(|_| ());
        flight::leave_writing(&self.word, side);
    }
}

#[test]
fn two_proxies_never_write_at_once() {
    loom::model(|| {
        let guarded = Guarded::new(0);
        let other = Arc::clone(&guarded);
        let b = thread::spawn(move || other.write(Side::B));
        guarded.write(Side::A);
        b.join().unwrap();
        assert_eq!(guarded.word.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn reads_beside_a_write_lose_no_count_and_no_claim() {
    loom::model(|| {
        let guarded = Guarded::new(0);
        let other = Arc::clone(&guarded);
        let reads = thread::spawn(move || {
            assert!(flight::enter(&other.word, Side::B) >= 1);
            flight::leave(&other.word, Side::B);
        });
        assert!(flight::enter_writing(&guarded.word, Side::A));
        assert!(!flight::enter_writing(&guarded.word, Side::B));
        reads.join().unwrap();
        assert_eq!(flight::in_flight(&guarded.word), 1);
        flight::leave_writing(&guarded.word, Side::A);
        assert_eq!(guarded.word.load(Ordering::Relaxed), 0);
    });
}

/// Side A died in the middle of a write. The agent sees it dead and clears it; only then may side B write.
#[test]
fn the_claim_of_a_dead_proxy_holds_until_the_agent_has_cleared_its_side() {
    loom::model(|| {
        let guarded = Guarded::new(0);
        assert!(flight::enter_writing(&guarded.word, Side::A));
        let living = Arc::clone(&guarded);
        let b = thread::spawn(move || living.write(Side::B));
        // What is left of A's write, up to its end.
        guarded.sq.with_mut(|_| ());
        flight::clear_side(&guarded.word, Side::A);
        b.join().unwrap();
        assert_eq!(guarded.word.load(Ordering::Relaxed), 0);
    });
}
