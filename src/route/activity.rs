//! The activity page: one [`SlotActivity`] a tenant, mapped for reading and writing by the agent and by every proxy.
//!
//! It outlives them all, so rate limits and counts survive a restart of either and hold across two proxies side by side. (A reboot
//! empties the tmpfs, and with it goes the clock that the page's times are of.)

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::TableError;
use super::atomics::Ordering;
use super::layout::{HEADER_WORDS, LINE, PLACES, RETIRED};
use super::page::{self, Kind, Page};
use super::slot::SlotActivity;

/// Slots in the page: as many as the route table has places.
pub const SLOTS: usize = PLACES;

const ACTIVITY: Kind = Kind { magic: *b"sqactive", version: 1, words: HEADER_WORDS + SLOTS * LINE, capacity: SLOTS, mode: 0o600 };

/// The mapped page.
pub struct Activity {
    page: Page,
    file: File,
}

impl Activity {
    /// Opens the page at `path`, made (mode 0600) where there is none; one of another layout is replaced by rename and marked as
    /// retired.
    ///
    /// # Errors
    /// The file cannot be made, or the tmpfs has no 2 MiB left.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let (file, _) = page::open(path, &ACTIVITY, |_| {})?;
        Ok(Self { page: Page::writable(&file, &ACTIVITY)?, file })
    }

    /// Maps the page that [`share`](Self::share) gave.
    ///
    /// # Errors
    /// The descriptor holds no activity page of this version.
    pub fn map(fd: OwnedFd) -> Result<Self, TableError> {
        Ok(Self { page: Page::writable(fd.as_fd(), &ACTIVITY)?, file: fd.into() })
    }

    /// A descriptor for the proxy, for reading and writing.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn share(&self) -> Result<OwnedFd, TableError> {
        Ok(self.file.try_clone().map_err(TableError::file("share", Path::new("the activity page")))?.into())
    }

    /// The slot with this index; `None` beyond the last.
    pub fn slot(&self, slot: u32) -> Option<&SlotActivity> {
        self.page.slots().get(slot as usize)
    }

    /// All slots, for the agent.
    pub fn slots(&self) -> &[SlotActivity] {
        self.page.slots()
    }

    /// Another file has taken this one's name: ask the agent for the new page.
    pub fn is_retired(&self) -> bool {
        self.page.words()[RETIRED].load(Ordering::Relaxed) != 0
    }
}
