//! Where each word of the route table lies, and how a row becomes words and back.
//!
//! All in lines of eight words (64 bytes, a cache line): a header of 4 KiB, then two buffers of the same layout:
//! rows (one line each), API keys (three lines each), limits (one line each).
//!
//! Nothing here trusts a word: a reader may decode a half-written row (and throws the result away afterwards).

use super::atomics::{AtomicU64, Ordering};
use super::{Durability, Route, RouteLimits, RouteState, Row, TenantIdText, Writes};

/// Words in a cache line.
pub(super) const LINE: usize = 8;
/// Places in each of the two hash indexes: the next power of two above three times the 9,999 ports a host offers.
pub(super) const PLACES: usize = 32_768;
/// Most rows, and most API keys: 61 % full; a lookup of an unknown id then visits 4 places on average.
pub(super) const MAX_ENTRIES: usize = 20_000;
/// Most distinct limits.
pub(super) const MAX_LIMITS: usize = 1_024;
/// Longest tenant id in bytes.
pub(super) const MAX_ID: usize = 128;

/// Words in the header.
pub(super) const HEADER_WORDS: usize = 512;
/// Says what the page is; never moves, whatever the layout.
pub(super) const MAGIC: usize = 0;
/// Layout version; never moves.
pub(super) const VERSION: usize = 1;
/// Length of the file in bytes.
pub(super) const FILE_BYTES: usize = 2;
/// Number of places (or slots).
pub(super) const CAPACITY: usize = 3;
/// SipHash key, two words.
pub(super) const KEY: usize = LINE;
/// The generation.
pub(super) const GENERATION: usize = 2 * LINE;
/// Sequence words of the two buffers.
pub(super) const SEQ: [usize; 2] = [3 * LINE, 4 * LINE];
/// When the writer last said that it lives: CLOCK_MONOTONIC, nanoseconds.
pub(super) const HEARTBEAT: usize = 5 * LINE;
/// Not 0: another file has taken this one's name; never moves.
pub(super) const RETIRED: usize = 6 * LINE;

/// Words of a row that follow its hash of two.
pub(super) const STATE_WORDS: usize = 5;
/// Where they stand in the row's line.
pub(super) const STATE: std::ops::Range<usize> = 2..2 + STATE_WORDS;
/// Lines of one API key: digest and meta, then 128 bytes of id.
pub(super) const KEY_LINES: usize = 1 + MAX_ID / 8 / LINE;
/// First line of the API keys in a buffer.
pub(super) const KEYS_AT: usize = PLACES;
/// Words of one set of limits.
const LIMITS_WORDS: usize = LINE;
/// First line of the limits in a buffer.
pub(super) const LIMITS_AT: usize = KEYS_AT + PLACES * KEY_LINES;
/// Lines in a buffer.
pub(super) const BUFFER_LINES: usize = LIMITS_AT + MAX_LIMITS * LIMITS_WORDS / LINE;
/// Words in a buffer.
pub(super) const BUFFER_WORDS: usize = BUFFER_LINES * LINE;
/// Words in the file: 16 MiB.
pub(super) const TABLE_WORDS: usize = HEADER_WORDS + 2 * BUFFER_WORDS;

/// Where a row or key with this first word is looked for first; then the following places in turn.
pub(super) fn home(first_word: u64) -> usize {
    (first_word % PLACES as u64) as usize
}

/// The places from `home` on, each once: a table full of rubbish cannot hold a reader longer than that.
pub(super) fn probe_order(first_word: u64) -> impl Iterator<Item = usize> {
    let home = home(first_word);
    (home..PLACES).chain(0..home)
}

/// The words of a digest.
pub(super) fn digest_words(digest: &[u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// The words of a row that follow its hash. The first is never 0, that of an empty place always.
pub(super) fn row_state(row: &Row, limits: u16) -> [u64; STATE_WORDS] {
    let (writes, used) = writes_words(row.writes);
    let meta = u64::from(row.port) | u64::from(row.state as u8) << 16 | u64::from(writes) << 24 | u64::from(limits) << 32;
    [meta, row.epoch, u64::from(row.slot), row.tokens_valid_after, used]
}

/// Which writes are taken as a number, and what the phexts take where that is too much.
fn writes_words(writes: Writes) -> (u8, u64) {
    match writes {
        Writes::All => (0, 0),
        Writes::OverStorage { used } => (1, used),
        Writes::DiskLow => (2, 0),
    }
}

fn writes_of(number: u8, used: u64) -> Option<Writes> {
    match number {
        0 => Some(Writes::All),
        1 => Some(Writes::OverStorage { used }),
        2 => Some(Writes::DiskLow),
        _ => None,
    }
}

/// Finds the row with this hash: its place.
pub(super) fn find_row(buffer: &[AtomicU64], hash: [u64; 2]) -> Option<usize> {
    for place in probe_order(hash[0]) {
        let line = line::<3>(buffer, place)?;
        if line[2] == 0 {
            return None;
        }
        if line[..2] == hash {
            return Some(place);
        }
    }
    None
}

/// The row at `place`, with its limits; `None` if the words make no row.
pub(super) fn route_at(buffer: &[AtomicU64], place: usize) -> Option<Route> {
    if place >= PLACES {
        return None;
    }
    let [_, _, meta, epoch, slot, tokens_valid_after, used] = line::<7>(buffer, place)?;
    Some(Route {
        port: meta as u16,
        state: RouteState::from_word((meta >> 16) as u8)?,
        epoch,
        slot: u32::try_from(slot).ok()?,
        tokens_valid_after,
        limits: limits_at(buffer, (meta >> 32) as u16)?,
        writes: writes_of((meta >> 24) as u8, used)?,
    })
}

/// The lines of an API key: digest; place of the row, length of the id; the id.
pub(super) fn key_lines(digest: &[u8; 32], place: usize, id: &str) -> [u64; KEY_LINES * LINE] {
    let mut words = [0; KEY_LINES * LINE];
    words[..4].copy_from_slice(&digest_words(digest));
    words[4] = place as u64 | (id.len() as u64) << 32;
    for (word, bytes) in words[LINE..].iter_mut().zip(id.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(padded);
    }
    words
}

/// Finds an API key: its place.
pub(super) fn find_key(buffer: &[AtomicU64], digest: [u64; 4]) -> Option<usize> {
    for place in probe_order(digest[0]) {
        let line = line::<5>(buffer, KEYS_AT + place * KEY_LINES)?;
        if line[4] == 0 {
            return None;
        }
        if line[..4] == digest {
            return Some(place);
        }
    }
    None
}

/// Owner of the API key at `place`: id and place of the row; `None` if the words make no key.
pub(super) fn owner_at(buffer: &[AtomicU64], place: usize) -> Option<(TenantIdText, usize)> {
    let first = KEYS_AT + place * KEY_LINES;
    let meta = line::<5>(buffer, first)?[4];
    let text = [line::<LINE>(buffer, first + 1)?, line::<LINE>(buffer, first + 2)?];
    let mut bytes = [0; MAX_ID];
    for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(text.as_flattened()) {
        *to = word.to_le_bytes();
    }
    let id = bytes.get(..(meta >> 32) as usize).filter(|id| !id.is_empty())?;
    Some((TenantIdText::new(std::str::from_utf8(id).ok()?), meta as u32 as usize))
}

/// First word of the limits with this index, counted from the start of the buffer.
pub(super) fn limits_word(index: u16) -> usize {
    LIMITS_AT * LINE + usize::from(index) * LIMITS_WORDS
}

/// The words of a set of limits.
pub(super) fn limits_words(limits: &RouteLimits) -> [u64; LIMITS_WORDS] {
    let counts = u64::from(limits.burst) | u64::from(limits.concurrency) << 32 | u64::from(limits.queue) << 48;
    let guard = durability_word(limits.durability) | u64::from(limits.requests_per_day) << 32;
    [limits.interval_ns, counts, limits.body_max, limits.memory_max, limits.storage_max, guard, 0, 0]
}

fn durability_word(durability: Durability) -> u64 {
    match durability {
        Durability::Process => 0,
        Durability::Power => 1,
        Durability::Off => 2,
    }
}

fn durability_of(word: u64) -> Durability {
    match word as u8 {
        1 => Durability::Power,
        2 => Durability::Off,
        _ => Durability::Process,
    }
}

fn limits_at(buffer: &[AtomicU64], index: u16) -> Option<RouteLimits> {
    // An index beyond the last lies beyond the end of the buffer.
    let [interval_ns, counts, body_max, memory_max, storage_max, guard] = words(buffer, limits_word(index))?;
    Some(RouteLimits {
        interval_ns,
        burst: counts as u32,
        concurrency: (counts >> 32) as u16,
        queue: (counts >> 48) as u16,
        body_max,
        memory_max,
        storage_max,
        requests_per_day: (guard >> 32) as u32,
        durability: durability_of(guard),
    })
}

fn line<const N: usize>(buffer: &[AtomicU64], line: usize) -> Option<[u64; N]> {
    words(buffer, line * LINE)
}

fn words<const N: usize>(buffer: &[AtomicU64], first: usize) -> Option<[u64; N]> {
    let words = buffer.get(first..first + N)?;
    Some(std::array::from_fn(|i| words[i].load(Ordering::Relaxed)))
}
