//! The proxy's end of the route table: no lock, no system call, not one write.

use std::fmt;
use std::ops::Deref;
use std::os::fd::AsFd;

use super::atomics::{AtomicU64, Ordering};
use super::image::IdHash;
use super::layout::{self, GENERATION, HEARTBEAT, RETIRED};
use super::page::Page;
use super::protocol::Shipped;
use super::writer::{TABLE, hash_of, shared};
use super::{Busy, Route, TableError};

/// Tries before a reader gives up. A publish takes at most a few hundred microseconds and works on the buffer that readers have
/// left, so a second try is rare and a third needs a writer in a tight loop.
const TRIES: usize = 64;

/// A tenant's id as the table states it for an API key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TenantIdText(Box<str>);

impl TenantIdText {
    pub(super) fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for TenantIdText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantIdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A route table, mapped PROT_READ. Share it between threads by reference.
pub struct TableReader {
    page: Page,
    hash: IdHash,
}

impl TableReader {
    /// Maps the table that [`TableWriter::share`](super::TableWriter::share) gave.
    ///
    /// # Errors
    /// The descriptor holds no table of this version.
    pub fn map(fd: impl AsFd) -> Result<Self, TableError> {
        let page = Page::read_only(fd, &TABLE)?;
        let hash = hash_of(&page);
        Ok(Self { page, hash })
    }

    /// The route of a tenant, `None` if there is no such tenant (nor a tenant at all as long as the generation is 0).
    ///
    /// # Errors
    /// See [`Busy`].
    pub fn lookup(&self, id: &str) -> Result<Option<Route>, Busy> {
        let hash = self.hash.of(id);
        self.read(|buffer| match layout::find_row(buffer, hash) {
            Some(place) => layout::route_at(buffer, place).ok_or(Busy).map(Some),
            None => Ok(None),
        })
    }

    /// The tenant whose API key has this SHA-256, and its route.
    ///
    /// # Errors
    /// See [`Busy`].
    pub fn lookup_api_key(&self, digest: &[u8; 32]) -> Result<Option<(TenantIdText, Route)>, Busy> {
        let digest = layout::digest_words(digest);
        self.read(|buffer| {
            let Some(place) = layout::find_key(buffer, digest) else { return Ok(None) };
            let (id, row) = layout::owner_at(buffer, place).ok_or(Busy)?;
            Ok(Some((id, layout::route_at(buffer, row).ok_or(Busy)?)))
        })
    }

    /// The generation in force; 0 is a new table into which nothing was published yet.
    pub fn generation(&self) -> u64 {
        self.word(GENERATION)
    }

    /// Another file has taken this one's name: ask the agent for the new table.
    pub fn is_retired(&self) -> bool {
        self.word(RETIRED) != 0
    }

    /// When the writer last said that it lives: CLOCK_MONOTONIC, nanoseconds; 0 is never.
    pub fn heartbeat(&self) -> u64 {
        self.word(HEARTBEAT)
    }

    /// One consistent look. What `probe` makes of a torn buffer, an error included, is thrown away.
    fn read<R>(&self, probe: impl FnMut(&[AtomicU64]) -> Result<R, Busy>) -> Result<R, Busy> {
        shared(&self.page).read::<Shipped, _>(TRIES, probe).ok_or(Busy)?.1
    }

    fn word(&self, at: usize) -> u64 {
        self.page.words()[at].load(Ordering::Relaxed)
    }
}
