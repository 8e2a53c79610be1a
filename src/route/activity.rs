//! The activity page: one [`SlotActivity`] a tenant, mapped for reading and writing by the agent and by every proxy.
//!
//! It outlives them all, so rate limits and counts survive a restart of either and hold across two proxies side by side. (A reboot
//! empties the tmpfs, and with it goes the clock that the page's times are of.)

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::atomics::{AtomicU64, Ordering};
use super::layout::{HEADER_WORDS, LINE, PLACES, RETIRED};
use super::page::{self, Kind, Page};
use super::slot::{IN_FLIGHT, SlotActivity};
use super::{Side, TableError};

/// Slots in the page: as many as the route table has places.
pub const SLOTS: usize = PLACES;

/// Where in the header the page's own number stands: random, so that whoever comes back knows whether it counted on or began anew.
const BORN: usize = LINE;
/// Where in the header it stands how many lines of the access log were lost; see [`Activity::note_lost_lines`].
const LOST_LINES: usize = 7 * LINE;

/// Version 1 had no claim to write.
const ACTIVITY: Kind = Kind { magic: *b"sqactive", version: 2, words: WORDS, reserved: WORDS, capacity: SLOTS, mode: 0o600 };

/// Words in the page: 2 MiB.
const WORDS: usize = HEADER_WORDS + SLOTS * LINE;

/// The mapped page.
pub struct Activity {
    page: Page,
    file: File,
    /// The page of another version that a proxy of that version still has, and its file.
    older: Mutex<Option<(Page, PathBuf)>>,
}

impl Activity {
    /// Opens the page at `path`, made (mode 0600) where there is none.
    ///
    /// One of another version is set aside as `<path>.older` until [`forget_older`](Self::forget_older): rates and counts are taken over from
    /// it, and what is in flight there counts. One of another shape is replaced by rename and marked as retired.
    ///
    /// # Errors
    /// The file cannot be made, or the tmpfs has no 2 MiB left.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".older");
        let aside = PathBuf::from(aside);
        page::set_aside(path, &aside, &ACTIVITY)?;
        let older = page::set_aside_before(&aside, &ACTIVITY)?;
        let born = getrandom::u64().map_err(TableError::Random)?;
        let (file, _) = page::open(path, &ACTIVITY, |words| {
            words[BORN].store(born, Ordering::Relaxed);
            if let Some(older) = &older {
                succeed(words, older.words());
            }
        })?;
        if let Some(older) = &older {
            older.words()[RETIRED].store(1, Ordering::Relaxed);
        }
        Ok(Self { page: Page::writable(&file, &ACTIVITY)?, file, older: Mutex::new(older.map(|page| (page, aside))) })
    }

    /// Maps the page that [`share`](Self::share) gave.
    ///
    /// # Errors
    /// The descriptor holds no activity page of this version.
    pub fn map(fd: OwnedFd) -> Result<Self, TableError> {
        Ok(Self { page: Page::writable(fd.as_fd(), &ACTIVITY)?, file: fd.into(), older: Mutex::new(None) })
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

    /// The proxy that lived on `side` is dead: what it counted as in flight is nobody's any more. For the agent.
    pub fn clear_side(&self, side: Side) {
        self.slots().iter().for_each(|slot| slot.clear_side(side));
    }

    /// The tenant's requests in flight through every proxy there is, also through one that has a page of another version. For the agent;
    /// see [`SlotActivity::in_flight`].
    pub fn in_flight(&self, slot: u32) -> u32 {
        let of = |page: &Page| page.slots().get(slot as usize).map_or(0, SlotActivity::in_flight);
        let older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        of(&self.page).saturating_add(older.as_ref().map_or(0, |(page, _)| of(page)))
    }

    /// The page's own number: another page counts from nothing. One that takes over what an older version counted has that one's number.
    pub fn born(&self) -> u64 {
        self.page.words()[BORN].load(Ordering::Relaxed)
    }

    /// A proxy could not write so many lines of the access log.
    pub fn note_lost_lines(&self, lines: u64) {
        self.page.words()[LOST_LINES].fetch_add(lines, Ordering::Relaxed);
    }

    /// Lines of the access log that could not be written, by any proxy since the page was made.
    pub fn lost_lines(&self) -> u64 {
        self.page.words()[LOST_LINES].load(Ordering::Relaxed)
    }

    /// No proxy has the page of another version any more: its requests are over.
    pub fn forget_older(&self) {
        if let Some((_, file)) = self.older.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // One that stays is found again at the next start, and forgotten then.
            let _ = fs::remove_file(file);
        }
    }

    /// Another file has taken this one's name: ask the agent for the new page.
    pub fn is_retired(&self) -> bool {
        self.page.words()[RETIRED].load(Ordering::Relaxed) != 0
    }
}

/// Takes over all that an older page says, but not what is in flight there.
fn succeed(words: &[AtomicU64], older: &[AtomicU64]) {
    words[BORN].store(older[BORN].load(Ordering::Relaxed), Ordering::Relaxed);
    for (at, (word, old)) in words.iter().zip(older).enumerate().skip(HEADER_WORDS) {
        if at % LINE != IN_FLIGHT {
            word.store(old.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::layout::VERSION;
    use super::super::{Admission, Side};
    use super::*;

    #[test]
    fn agent_and_proxy_see_the_same_slots() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Activity::open(&dir.path().join("sq-agent-test-activity")).unwrap();
        let proxy = Activity::map(agent.share().unwrap()).unwrap();
        let last = SLOTS as u32 - 1;
        for slot in [0, 77, last] {
            proxy.slot(slot).unwrap().note_request(5_000_000_000);
            assert_eq!(agent.slot(slot).unwrap().snapshot().requests, 1);
            assert_eq!(agent.slots()[slot as usize].snapshot(), proxy.slot(slot).unwrap().snapshot());
        }
        assert_eq!(agent.slots().iter().map(|slot| slot.snapshot().requests).sum::<u64>(), 3);
        proxy.note_lost_lines(2);
        proxy.note_lost_lines(3);
        assert_eq!(agent.lost_lines(), 5);
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
        let (before, born) = (slot.snapshot(), agent.born());
        drop(agent);
        let again = Activity::open(&path).unwrap();
        assert_eq!((again.slot(3).unwrap().snapshot(), again.born()), (before, born));
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
        assert!(old.is_retired() && !new.is_retired() && old.born() != new.born());
        assert_eq!((old.slot(0).unwrap().snapshot().errors, new.slot(0).unwrap().snapshot().errors), (1, 0));
    }

    #[test]
    fn a_page_of_another_version_counts_until_its_proxy_is_gone_and_leaves_its_rates_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("activity");
        let of_old_proxy = Activity::open(&path).unwrap();
        of_old_proxy.page.words()[VERSION].store(1, Ordering::Relaxed);
        let old = of_old_proxy.slot(7).unwrap();
        assert!(matches!(old.admit(9, 600, 0), Admission::Admitted { .. }));
        old.enter(Side::A);
        let agent = Activity::open(&path).unwrap();
        let new = agent.slot(7).unwrap();
        assert!(matches!(new.admit(9, 600, 0), Admission::Refused { .. }), "the rate goes on");
        assert_eq!(agent.born(), of_old_proxy.born(), "and so do the counts");
        new.enter(Side::B);
        assert_eq!((new.in_flight(), agent.in_flight(7)), (1, 2));
        drop(agent);
        let next = Activity::open(&path).unwrap();
        assert_eq!(next.in_flight(7), 2, "also for an agent that starts in the middle");
        assert!(of_old_proxy.is_retired() && !next.is_retired());
        old.leave(Side::A);
        assert_eq!(next.in_flight(7), 1);
        old.enter(Side::A);
        next.forget_older();
        assert_eq!(next.in_flight(7), 1, "whom nobody can finish is not waited for");
        assert_eq!(Activity::open(&path).unwrap().in_flight(7), 1);
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
