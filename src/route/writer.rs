//! The agent's end of the route table.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::atomics::Ordering;
use super::image::{IdHash, Image};
use super::layout::{self, BUFFER_WORDS, GENERATION, HEADER_WORDS, HEARTBEAT, KEY, LINE, PLACES, SEQ, TABLE_WORDS};
use super::page::{self, Kind, Page};
use super::protocol::{Shared, Shipped};
use super::{Route, Row, TableError};

/// The route table. Version 1 knew neither quotas nor [`Writes`](super::Writes).
pub(super) const TABLE: Kind =
    Kind { magic: *b"sqroutes", version: 2, words: TABLE_WORDS, reserved: TABLE_WORDS, capacity: PLACES, mode: 0o640 };

/// The one writer of a route table. (That it is the only one is for its owner to see to: the agent holds a lock.)
pub struct TableWriter {
    page: Page,
    read_only: File,
    image: Image,
    /// Nothing published yet by this writer: what stands in the table is another's.
    first: bool,
}

impl TableWriter {
    /// Opens the table at `path`, made (mode 0640) where there is none.
    ///
    /// One that is there already is taken over: readers keep it mapped, see the last published rows until the first
    /// [`publish`](Self::publish), and the generation goes on from there. One of another layout is replaced by rename and marked
    /// as retired, see [`TableReader::is_retired`](super::TableReader::is_retired).
    ///
    /// # Errors
    /// The file cannot be made, or the tmpfs has no 16 MiB left.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(TableError::Random)?;
        let (file, new) = page::open(path, &TABLE, |words| {
            for (word, bytes) in words[KEY..].iter().zip(key.as_chunks::<8>().0) {
                word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
            }
        })?;
        let read_only = reopened_read_only(&file, path)?;
        let lacking = if new { [Vec::new(), Vec::new()] } else { [lines_in_use(&file, 0, path)?, lines_in_use(&file, 1, path)?] };
        let page = Page::writable(&file, &TABLE)?;
        let image = Image::new(hash_of(&page), lacking);
        Ok(Self { page, read_only, image, first: true })
    }

    /// Makes `rows` the table. Returns the generation from which on they stand in it: the next one, or the present one if
    /// nothing differs.
    ///
    /// # Errors
    /// Rows that do not fit or contradict each other; the table then stays as it was.
    pub fn publish(&mut self, rows: &[Row]) -> Result<u64, TableError> {
        let changed = self.image.set(rows)?;
        if !changed && !self.first {
            return Ok(self.generation());
        }
        self.first = false;
        let image = &mut self.image;
        Ok(shared(&self.page).publish::<Shipped>(|side, buffer| {
            let lines = buffer.as_chunks::<LINE>().0;
            image.catch_up(side, |line, words| {
                for (to, word) in lines[line].iter().zip(words) {
                    to.store(*word, Ordering::Relaxed);
                }
            });
        }))
    }

    /// What stands in the table of a tenant, also an earlier writer's. `None` where that is nothing, or cannot be read.
    pub fn lookup(&self, id: &str) -> Option<Route> {
        let hash = hash_of(&self.page).of(id);
        let found = |buffer: &[super::atomics::AtomicU64]| layout::route_at(buffer, layout::find_row(buffer, hash)?);
        // Nobody else writes, so the first try is the last.
        shared(&self.page).read::<Shipped, _>(1, found)?.1
    }

    /// Says that the writer lives. `now_ns`: CLOCK_MONOTONIC, nanoseconds.
    pub fn heartbeat(&self, now_ns: u64) {
        self.page.words()[HEARTBEAT].store(now_ns, Ordering::Relaxed);
    }

    /// The generation in force; 0 is a new, empty table.
    pub fn generation(&self) -> u64 {
        self.page.words()[GENERATION].load(Ordering::Relaxed)
    }

    /// A descriptor for the proxy, opened O_RDONLY: the kernel refuses to make a mapping of it writable.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn share(&self) -> Result<OwnedFd, TableError> {
        let duplicate = self.read_only.try_clone().map_err(TableError::file("share", Path::new("the route table")))?;
        Ok(duplicate.into())
    }
}

/// The words of the protocol in a page.
pub(super) fn shared(page: &Page) -> Shared<'_> {
    let words = page.words();
    let (first, second) = words[HEADER_WORDS..].split_at(BUFFER_WORDS);
    Shared { generation: &words[GENERATION], seq: SEQ.map(|at| &words[at]), buffers: [first, second] }
}

/// The hash with the key of this table.
pub(super) fn hash_of(page: &Page) -> IdHash {
    IdHash::new([KEY, KEY + 1].map(|at| page.words()[at].load(Ordering::Relaxed)))
}

/// The same file again, for reading alone.
fn reopened_read_only(file: &File, path: &Path) -> Result<File, TableError> {
    let again = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(TableError::file("open", path))?;
    let identity = |file: &File| file.metadata().map(|about| (about.dev(), about.ino())).map_err(TableError::file("look at", path));
    if identity(file)? != identity(&again)? {
        return Err(TableError::Layout { what: "somebody else replaces the file at the same time" });
    }
    Ok(again)
}

/// Which lines of a buffer hold anything.
///
/// Read, not mapped: a read of memory that was never written costs no memory.
pub(super) fn lines_in_use(file: &File, side: usize, path: &Path) -> Result<Vec<u32>, TableError> {
    const CHUNK: usize = 64 * 1024;
    let (mut chunk, zeros) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut lines = Vec::new();
    let start = (HEADER_WORDS + side * BUFFER_WORDS) * 8;
    for from in (0..BUFFER_WORDS * 8).step_by(CHUNK) {
        let chunk = &mut chunk[..CHUNK.min(BUFFER_WORDS * 8 - from)];
        file.read_exact_at(chunk, (start + from) as u64).map_err(TableError::file("read", path))?;
        if *chunk == zeros[..chunk.len()] {
            continue;
        }
        let used = chunk.as_chunks::<{ LINE * 8 }>().0.iter().enumerate().filter(|(_, line)| **line != [0; LINE * 8]);
        lines.extend(used.map(|(line, _)| (from / (LINE * 8) + line) as u32));
    }
    Ok(lines)
}
