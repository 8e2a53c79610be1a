//! The writer's private image of the table: from rows to words, and which lines each buffer still lacks.
//!
//! Pure. Nothing changes when rows are refused; lines that stay the same are not written again.

use std::collections::HashMap;

use siphasher::sip128::SipHasher24;

use super::layout::{self, BUFFER_LINES, BUFFER_WORDS, KEY_LINES, KEYS_AT, LINE, MAX_ENTRIES, MAX_ID, MAX_LIMITS, PLACES, STATE_WORDS};
use super::{RouteLimits, Row, TableError};

/// The hash that names a tenant in the table.
#[derive(Clone, Copy)]
pub(super) struct IdHash(SipHasher24);

impl IdHash {
    /// With the key of one table: without it nobody can choose ids that collide.
    pub(super) fn new(key: [u64; 2]) -> Self {
        Self(SipHasher24::new_with_keys(key[0], key[1]))
    }

    /// The 128 bits.
    pub(super) fn of(&self, id: &str) -> [u64; 2] {
        let hash = self.0.hash(id.as_bytes());
        [hash.h1, hash.h2]
    }
}

/// What was worked out for a row, kept for the next time.
struct Placed {
    id: Box<str>,
    api_keys: Vec<[u8; 32]>,
    limits: RouteLimits,
    limits_index: u16,
    place: u32,
    slot: u32,
    /// What changes from start to start, as it stands in the image.
    state: [u64; STATE_WORDS],
}

impl Placed {
    /// Whether this row stays in its place, with its keys, slot and limits.
    fn fits(&self, row: &Row) -> bool {
        *self.id == *row.id
            && self.slot == row.slot
            && self.limits == row.limits
            && self.api_keys.len() == row.api_keys.len()
            // Most tenants have none, and to compare nothing with nothing costs 70 ns where glibc's memcmp uses AVX-512: its masked
            // load from a dangling pointer makes the processor suppress a page fault.
            && (self.api_keys.is_empty() || self.api_keys == row.api_keys)
    }
}

/// See the file's description.
pub(super) struct Image {
    hash: IdHash,
    words: Vec<u64>,
    placed: Vec<Placed>,
    /// Lines in use.
    used: Vec<u32>,
    /// Lines that each buffer lacks.
    lacking: [Lines; 2],
    /// Kept for its memory: which rows got which new state in the present call.
    fresh: Vec<(u32, [u64; STATE_WORDS])>,
}

impl Image {
    /// An empty table, given which lines of each buffer are not empty.
    pub(super) fn new(hash: IdHash, lacking: [Vec<u32>; 2]) -> Self {
        let lacking = lacking.map(|lines| {
            let mut lacking = Lines::none();
            lines.into_iter().for_each(|line| lacking.add(line));
            lacking
        });
        Self { hash, words: vec![0; BUFFER_WORDS], placed: Vec::new(), used: Vec::new(), lacking, fresh: Vec::new() }
    }

    /// Makes this the image of `rows`. Returns whether any line changed.
    pub(super) fn set(&mut self, rows: &[Row]) -> Result<bool, TableError> {
        if self.placed.len() == rows.len() && self.compare(rows) { Ok(self.refresh()) } else { self.rebuild(rows) }
    }

    /// The lines that buffer `side` lacks, with their contents; afterwards it lacks none.
    pub(super) fn catch_up(&mut self, side: usize, mut store: impl FnMut(usize, &[u64; LINE])) {
        let lines = self.words.as_chunks::<LINE>().0;
        self.lacking[side].take(|line| store(line, &lines[line]));
    }

    /// Whether these are the same tenants with the same keys, slots and limits; if so, their new states are in `fresh`.
    fn compare(&mut self, rows: &[Row]) -> bool {
        self.fresh.clear();
        for ((placed, row), n) in self.placed.iter().zip(rows).zip(0..) {
            if !placed.fits(row) {
                return false;
            }
            let state = layout::row_state(row, placed.limits_index);
            // Word by word: compared as arrays they go through memory, where the processor waits for its own stores.
            if state.iter().zip(&placed.state).fold(0, |differ, (new, old)| differ | (new ^ old)) != 0 {
                self.fresh.push((n, state));
            }
        }
        true
    }

    /// Every row stays in its place, some in another state.
    fn refresh(&mut self) -> bool {
        let lines = self.words.as_chunks_mut::<LINE>().0;
        for (n, state) in &self.fresh {
            let placed = &mut self.placed[*n as usize];
            placed.state = *state;
            lines[placed.place as usize][layout::STATE].copy_from_slice(state);
            self.lacking.iter_mut().for_each(|lacking| lacking.add(placed.place));
        }
        !self.fresh.is_empty()
    }

    fn rebuild(&mut self, rows: &[Row]) -> Result<bool, TableError> {
        check_counts(rows)?;
        check_slots(rows)?;
        let mut next = Draft::new();
        let mut placed = Vec::with_capacity(rows.len());
        for row in rows {
            placed.push(next.place(&self.hash, row)?);
        }
        for (owner, (row, placed)) in rows.iter().zip(&placed).enumerate() {
            for digest in &row.api_keys {
                next.place_key(digest, owner, rows, placed.place)?;
            }
        }
        let mut changed = false;
        let (old, new) = (self.words.as_chunks::<LINE>().0, next.words.as_chunks::<LINE>().0);
        for &line in self.used.iter().chain(&next.used) {
            if old[line as usize] != new[line as usize] {
                self.lacking.iter_mut().for_each(|lacking| lacking.add(line));
                changed = true;
            }
        }
        (self.words, self.used, self.placed) = (next.words, next.used, placed);
        Ok(changed)
    }
}

/// A set of lines, in the order in which they came.
struct Lines {
    lines: Vec<u32>,
    /// A bit for each line.
    there: Vec<u64>,
}

impl Lines {
    fn none() -> Self {
        Self { lines: Vec::new(), there: vec![0; BUFFER_LINES.div_ceil(64)] }
    }

    fn add(&mut self, line: u32) {
        let (word, bit) = (&mut self.there[line as usize / 64], 1 << (line % 64));
        if *word & bit == 0 {
            *word |= bit;
            self.lines.push(line);
        }
    }

    /// Gives each line once and leaves the set empty.
    fn take(&mut self, mut each: impl FnMut(usize)) {
        for line in self.lines.drain(..) {
            self.there[line as usize / 64] &= !(1 << (line % 64));
            each(line as usize);
        }
    }
}

/// A table that is being laid out from nothing.
struct Draft {
    words: Vec<u64>,
    used: Vec<u32>,
    limits: HashMap<RouteLimits, u16>,
    /// Which row owns the key at a place.
    key_owners: HashMap<usize, usize>,
}

impl Draft {
    fn new() -> Self {
        Self { words: vec![0; BUFFER_WORDS], used: Vec::new(), limits: HashMap::new(), key_owners: HashMap::new() }
    }

    fn place(&mut self, hash: &IdHash, row: &Row) -> Result<Placed, TableError> {
        if row.id.is_empty() || row.id.len() > MAX_ID {
            return Err(TableError::BadId { id: row.id.clone() });
        }
        let hash = hash.of(&row.id);
        let limits_index = self.intern(&row.limits)?;
        let state = layout::row_state(row, limits_index);
        for place in layout::probe_order(hash[0]) {
            let at = &mut self.words[place * LINE..][..LINE];
            if at[2] == 0 {
                at[..2].copy_from_slice(&hash);
                at[layout::STATE].copy_from_slice(&state);
                let place = place as u32;
                self.used.push(place);
                let (id, api_keys) = (row.id.as_str().into(), row.api_keys.clone());
                return Ok(Placed { id, api_keys, limits: row.limits, limits_index, place, slot: row.slot, state });
            }
            if at[..2] == hash {
                return Err(TableError::DuplicateId { id: row.id.clone() });
            }
        }
        Err(TableError::TooManyRows { count: self.used.len(), max: MAX_ENTRIES })
    }

    fn place_key(&mut self, digest: &[u8; 32], owner: usize, rows: &[Row], row_place: u32) -> Result<(), TableError> {
        let lines = layout::key_lines(digest, row_place as usize, &rows[owner].id);
        for place in layout::probe_order(lines[0]) {
            let first = KEYS_AT + place * KEY_LINES;
            let at = &mut self.words[first * LINE..][..KEY_LINES * LINE];
            if at[4] == 0 {
                at.copy_from_slice(&lines);
                self.used.extend((first..first + KEY_LINES).map(|line| line as u32));
                self.key_owners.insert(place, owner);
                return Ok(());
            }
            if at[..4] == lines[..4] {
                let first = self.key_owners.get(&place).map_or(owner, |first| *first);
                return Err(TableError::DuplicateKey { first: rows[first].id.clone(), second: rows[owner].id.clone() });
            }
        }
        Err(TableError::TooManyKeys { count: self.key_owners.len(), max: MAX_ENTRIES })
    }

    fn intern(&mut self, limits: &RouteLimits) -> Result<u16, TableError> {
        if let Some(index) = self.limits.get(limits) {
            return Ok(*index);
        }
        if self.limits.len() == MAX_LIMITS {
            return Err(TableError::TooManyLimits { max: MAX_LIMITS });
        }
        let index = self.limits.len() as u16;
        let (first, words) = (layout::limits_word(index), layout::limits_words(limits));
        self.words[first..first + words.len()].copy_from_slice(&words);
        self.used.push((first / LINE) as u32);
        self.limits.insert(*limits, index);
        Ok(index)
    }
}

fn check_counts(rows: &[Row]) -> Result<(), TableError> {
    let keys = rows.iter().map(|row| row.api_keys.len()).sum();
    if rows.len() > MAX_ENTRIES {
        return Err(TableError::TooManyRows { count: rows.len(), max: MAX_ENTRIES });
    }
    if keys > MAX_ENTRIES {
        return Err(TableError::TooManyKeys { count: keys, max: MAX_ENTRIES });
    }
    Ok(())
}

/// Each tenant has a slot of its own.
fn check_slots(rows: &[Row]) -> Result<(), TableError> {
    let mut taken = [0_u64; PLACES / 64];
    for row in rows {
        let (word, bit) = (row.slot as usize / 64, 1 << (row.slot % 64));
        let Some(word) = taken.get_mut(word) else {
            return Err(TableError::BadSlot { id: row.id.clone(), slot: row.slot, max: PLACES });
        };
        if *word & bit != 0 {
            return Err(TableError::DuplicateSlot { id: row.id.clone(), slot: row.slot });
        }
        *word |= bit;
    }
    Ok(())
}
