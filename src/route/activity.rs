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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::super::Side;
    use super::*;

    #[test]
    fn agent_and_proxy_see_the_same_slots() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Activity::open(&dir.path().join("sq-agent-test-activity")).unwrap();
        let proxy = Activity::map(agent.share().unwrap()).unwrap();
        let last = SLOTS as u32 - 1;
        for slot in [0, 77, last] {
            proxy.slot(slot).unwrap().note_request(5_000_000_000, 20_000);
            assert_eq!(agent.slot(slot).unwrap().snapshot().requests, 1);
            assert_eq!(agent.slots()[slot as usize].snapshot(), proxy.slot(slot).unwrap().snapshot());
        }
        assert_eq!(agent.slots().iter().map(|slot| slot.snapshot().requests).sum::<u64>(), 3);
        assert!(proxy.slot(last + 1).is_none() && proxy.slot(u32::MAX).is_none());
    }

    #[test]
    fn counts_and_limits_outlive_both_processes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("activity");
        let agent = Activity::open(&path).unwrap();
        let slot = agent.slot(3).unwrap();
        slot.admit(9, 600, 0);
        slot.enter(Side::A);
        let before = slot.snapshot();
        drop(agent);
        assert_eq!(Activity::open(&path).unwrap().slot(3).unwrap().snapshot(), before);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_page_of_another_size_is_replaced_and_who_has_it_mapped_learns_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("activity");
        let old = Activity::open(&path).unwrap();
        old.slot(0).unwrap().note_error();
        // Grown, never truncated: the old mapping stays good.
        old.file.set_len(1 << 22).unwrap();
        let new = Activity::open(&path).unwrap();
        assert!(old.is_retired() && !new.is_retired());
        assert_eq!((old.slot(0).unwrap().snapshot().errors, new.slot(0).unwrap().snapshot().errors), (1, 0));
    }

    #[test]
    fn a_route_table_is_no_activity_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routes");
        let table = super::super::TableWriter::open(&path).unwrap();
        let error = Activity::map(table.share().unwrap()).err().unwrap().to_string();
        assert!(error.contains("the file has another length"), "{error}");
    }
}
