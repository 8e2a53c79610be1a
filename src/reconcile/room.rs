//! Room on the disk: who takes more than its `storage_max`, and whether the disk has room for anybody. What comes of it stands in the rows.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use super::{core::Core, news::MEASURED_ANEW, world::World};
use crate::{
    desired::{TenantId, size_text},
    instance::storage::{DiskSpace, Stored},
    observed::Known,
};

/// A tenant with so many files is measured at every second look at most, one with twice as many at every third: a file costs 1 µs.
const FILES_A_LOOK: u64 = 10_000;
/// Writes are refused with less than this share of the disk free, and taken again above the other one, so that they do not go to and fro.
const LOW_PERCENT: u64 = 5;
const CLEAR_PERCENT: u64 = 6;

/// Whether the disk has too little room; `low` is what held so far. `reserve` is what has to be free in any case, bytes.
///
/// 256 MB are low, and clear are 300 MB.
fn is_low(disk: DiskSpace, reserve: u64, low: bool) -> bool {
    let (percent, reserve) = if low { (CLEAR_PERCENT, reserve / 64 * 75) } else { (LOW_PERCENT, reserve) };
    disk.free < reserve.max(disk.total / 100 * percent)
}

/// What is known of the disk.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) disk: Option<DiskSpace>,
    measured: HashMap<TenantId, Measured>,
    /// Number of the look.
    look: u64,
    /// What the present look is to measure, with the requests of each when it began.
    begun: HashMap<TenantId, u64>,
}

#[derive(Debug)]
struct Measured {
    stored: Stored,
    /// Requests that had come when it was measured.
    requests: u64,
    /// At which look.
    at: u64,
    /// A request of that time may have written since.
    unsettled: bool,
}

impl Room {
    /// Begins a look: whom it has to measure, those first who have waited longest. Files change by requests (and by restores, see
    /// [`Self::forget`]), so most have not.
    fn begin(&mut self, known: &BTreeMap<TenantId, Known>, requests: impl Fn(u32) -> u64) -> Vec<TenantId> {
        self.look += 1;
        self.begun.clear();
        self.measured.retain(|id, _| known.contains_key(id));
        let mut due = Vec::new();
        for (id, known) in known {
            let requests = requests(known.slot);
            let waited = match self.measured.get(id) {
                None => u64::MAX,
                Some(last) => {
                    let waited = self.look - last.at;
                    let changed =
                        last.unsettled || last.requests != requests || u64::from(known.slot) % MEASURED_ANEW == self.look % MEASURED_ANEW;
                    if !changed || waited <= last.stored.files / FILES_A_LOOK {
                        continue;
                    }
                    waited
                }
            };
            self.begun.insert(id.clone(), requests);
            due.push((Reverse(waited), id.clone()));
        }
        due.sort();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// What the look has found of one of those; who is missing is due at the next one.
    fn note(&mut self, id: &TenantId, stored: Stored) {
        let Some(requests) = self.begun.remove(id) else { return };
        let unsettled = self.measured.get(id).is_some_and(|last| last.requests != requests);
        self.measured.insert(id.clone(), Measured { stored, requests, at: self.look, unsettled });
    }

    /// The files of `id` were changed: it is due.
    pub(super) fn forget(&mut self, id: &TenantId) {
        self.measured.remove(id);
        self.begun.remove(id);
    }
}

impl<W: World> Core<W> {
    /// Whom the look that begins has to measure.
    pub(super) fn begin_measuring(&mut self) -> Vec<TenantId> {
        let Self { room, observed, world, .. } = self;
        room.begin(&observed.known, |slot| world.requests(slot))
    }

    /// What the look has measured.
    pub(super) fn note_storage(&mut self, storage: Vec<(TenantId, Stored)>) {
        for (id, stored) in storage {
            self.room.note(&id, stored);
            let Some(known) = self.observed.known.get_mut(&id) else { continue };
            let was_over = known.over_storage().is_some();
            known.storage = Some(stored.bytes);
            let over = known.over_storage();
            if was_over || over.is_some() {
                self.routes.touch(&id);
            }
            match over {
                Some((used, limit)) if !was_over => {
                    let text = format!("{} of {}", size_text(used), size_text(limit));
                    tracing::warn!(tenant = %id, used, limit, "over its storage limit: only what makes less is written");
                    self.note_event(Some(&id), "storage_full", &text);
                }
                None if was_over => tracing::info!(tenant = %id, used = stored.bytes, "within its storage limit again"),
                _ => {}
            }
        }
    }

    /// Looks whether the disk has room.
    pub(super) fn look_at_disk(&mut self) {
        self.room.disk = self.world.disk();
        let low = is_low_now(self.room.disk, self.desired.disk_reserve, self.observed.disk_low);
        if std::mem::replace(&mut self.observed.disk_low, low) == low {
            return;
        }
        self.observed.known.keys().for_each(|id| self.routes.touch(id));
        let DiskSpace { total, free } = self.room.disk.unwrap_or(DiskSpace { total: 0, free: 0 });
        let text = format!("{} MB of {} MB are free", free >> 20, total >> 20);
        if low {
            tracing::error!(total, free, "the disk is nearly full: only what makes less is written, for all");
            self.note_event(None, "disk_low", &text);
        } else {
            tracing::info!(total, free, "the disk has room again: all writes go on");
            self.note_event(None, "disk_has_room", &text);
        }
    }
}

/// Whether `disk` counts as nearly full from now on, where it did or not (`was_low`) before. What cannot be seen is as it was.
fn is_low_now(disk: Option<DiskSpace>, reserve: Option<u64>, was_low: bool) -> bool {
    reserve.is_some_and(|reserve| disk.map_or(was_low, |disk| is_low(disk, reserve, was_low)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::testing::tenant;

    const MB: u64 = 1 << 20;
    const GB: u64 = 1 << 30;

    fn disk(total: u64, free: u64) -> DiskSpace {
        DiskSpace { total, free }
    }

    #[test]
    fn a_disk_that_cannot_be_seen_is_as_it_was() {
        let (full, roomy) = (Some(disk(10 * GB, 0)), Some(disk(10 * GB, 9 * GB)));
        for was_low in [true, false] {
            assert_eq!(is_low_now(None, Some(256 * MB), was_low), was_low);
            assert_eq!((is_low_now(full, Some(256 * MB), was_low), is_low_now(roomy, Some(256 * MB), was_low)), (true, false));
            assert!(!is_low_now(full, None, was_low), "no reserve is wanted");
        }
    }

    #[test]
    fn a_small_disk_is_low_below_256_mb_and_a_large_one_below_5_percent() {
        let low = |total, free| is_low(disk(total, free), 256 * MB, false);
        assert_eq!((low(GB, 255 * MB), low(GB, 256 * MB)), (true, false));
        assert_eq!((low(100 * GB, 4 * GB), low(100 * GB, 5 * GB)), (true, false));
        assert!(is_low(disk(100 * GB, 5 * GB), 6 * GB, false), "what is to be kept free may be more");
    }

    #[test]
    fn it_is_clear_at_300_mb_or_6_percent() {
        let still = |total, free| is_low(disk(total, free), 256 * MB, true);
        assert_eq!((still(GB, 299 * MB), still(GB, 300 * MB)), (true, false));
        assert_eq!((still(100 * GB, 5 * GB), still(100 * GB, 6 * GB)), (true, false));
    }

    fn known(count: u32) -> BTreeMap<TenantId, Known> {
        (1..=count).map(|slot| (id(slot), Known::new(slot, tenant(id(slot))))).collect()
    }

    fn id(slot: u32) -> TenantId {
        TenantId::parse(&format!("t{slot:02}")).unwrap()
    }

    fn stored(files: u64) -> Stored {
        Stored { bytes: files * 4_096, files }
    }

    /// A look that measures all whom it has to, each with so many files.
    fn look(room: &mut Room, known: &BTreeMap<TenantId, Known>, requests: impl Fn(u32) -> u64, files: u64) -> Vec<TenantId> {
        let due = room.begin(known, requests);
        due.iter().for_each(|id| room.note(id, stored(files)));
        due
    }

    #[test]
    fn who_asks_is_measured_then_and_once_more_and_everybody_now_and_then() {
        let (mut room, known) = (Room::default(), known(14));
        assert_eq!(look(&mut room, &known, |_| 0, 1).len(), 14, "at first everybody");
        let mut often = [0; 15];
        for number in 2..=16_u64 {
            // Whose turn it is anyway.
            let turn = u32::try_from(number % 15).unwrap();
            let asked = |slot| u64::from(slot == 9 && number >= 5);
            for id in look(&mut room, &known, asked, 1) {
                let slot: u32 = id.as_str()[1..].parse().unwrap();
                assert!(slot == turn || slot == 9, "{slot} at look {number}");
                often[slot as usize] += 1;
            }
        }
        assert_eq!(often[1..], [1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1], "the one who asked: in its turn, then and once more");
    }

    #[test]
    fn who_was_not_reached_comes_first_and_who_has_many_files_more_rarely() {
        let (mut room, known) = (Room::default(), known(3));
        look(&mut room, &known, |_| 0, 1);
        let due = room.begin(&known, |_| 1);
        assert_eq!(due.len(), 3);
        room.note(&id(1), stored(2 * FILES_A_LOOK));
        room.note(&id(2), stored(1));
        // The third was not reached.
        assert_eq!(room.begin(&known, |_| 2), [id(3), id(2)]);
        assert_eq!(room.begin(&known, |_| 2), [id(3), id(2)]);
        assert!(room.begin(&known, |_| 2).contains(&id(1)));
        look(&mut room, &known, |_| 2, 1);
        look(&mut room, &known, |_| 2, 1);
        room.forget(&id(3));
        assert!(room.begin(&known, |_| 2).contains(&id(3)), "after a restore");
    }
}
