//! What a tenant used on a day, from counters that may begin anew at any time. Pure.
//!
//! A slot of the activity page counts on while agents come and go, and begins anew when the host boots or the tenant is let go. So what was
//! seen of it last is kept beside the sums, and both are written as one: a count is neither lost nor taken twice, whenever an agent dies.

use std::collections::HashMap;

use crate::desired::TenantId;

/// What is counted of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests, let in or not.
    pub requests: u64,
    /// Of these, answered by 5xx of the proxy.
    pub errors: u64,
    /// Requests that may write and were answered with success.
    pub writes: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of answer bodies.
    pub bytes_out: u64,
}

impl Counts {
    /// What came since `earlier` was read. A counter that is behind has begun anew, and all it says came since.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let more = |now: u64, then: u64| if now < then { now } else { now - then };
        Self {
            requests: more(self.requests, earlier.requests),
            errors: more(self.errors, earlier.errors),
            writes: more(self.writes, earlier.writes),
            bytes_in: more(self.bytes_in, earlier.bytes_in),
            bytes_out: more(self.bytes_out, earlier.bytes_out),
        }
    }
}

/// What a slot counted, and in which page: another page has counted from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The page's random number.
    pub page: u64,
    /// What it said.
    pub counts: Counts,
}

impl Seen {
    fn since(self, earlier: Self) -> Counts {
        self.counts.since(if self.page == earlier.page { earlier.counts } else { Counts::default() })
    }
}

/// What is to be added to a tenant's day, and what was seen by then: to be kept whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// Whose.
    pub id: TenantId,
    /// Days since 1970, UTC.
    pub day: u32,
    /// So much more.
    pub more: Counts,
    /// The instance took so much memory (PSS), bytes: the day keeps the most.
    pub peak_memory: u64,
    /// The phexts took so much, bytes: the day keeps the most.
    pub storage: u64,
    /// From here on counts what comes.
    pub seen: Seen,
}

/// What of everybody is written by now.
#[derive(Debug, Default)]
pub struct Book {
    tenants: HashMap<TenantId, Entry>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    seen: Seen,
    /// The day that was last written, and what it was given.
    day: u32,
    peak_memory: u64,
    storage: u64,
    /// The most memory that was seen since.
    high: u64,
    /// The records know nothing of it: an agent that dies now leaves no place from which to count.
    is_new: bool,
}

impl Book {
    /// Goes on where the records are.
    pub fn new(seen: HashMap<TenantId, Seen>) -> Self {
        Self { tenants: seen.into_iter().map(|(id, seen)| (id, Entry { seen, ..Entry::default() })).collect() }
    }

    /// A tenant begins, or the records were lost: where nothing is known of it, it counts from `now` on.
    pub fn meet(&mut self, id: &TenantId, now: Seen) {
        if !self.tenants.contains_key(id) {
            self.tenants.insert(id.clone(), Entry { seen: now, is_new: true, ..Entry::default() });
        }
    }

    /// Whether the records know nothing of `id`: it should not wait for its turn.
    pub fn is_new(&self, id: &TenantId) -> bool {
        self.tenants.get(id).is_some_and(|entry| entry.is_new)
    }

    /// The records were lost: all of it has to be written once more.
    pub fn write_anew(&mut self) {
        self.tenants.values_mut().for_each(|entry| (entry.is_new, entry.day) = (true, 0));
    }

    /// The instance of `id` takes so much memory.
    pub fn note_memory(&mut self, id: &TenantId, bytes: u64) {
        if let Some(entry) = self.tenants.get_mut(id) {
            entry.high = entry.high.max(bytes);
        }
    }

    /// What is to be written of `id`, if anything, where its slot says `now` and its phexts take `storage`.
    pub fn look(&self, id: &TenantId, day: u32, now: Seen, storage: Option<u64>) -> Option<Addition> {
        let entry = self.tenants.get(id)?;
        let more = now.since(entry.seen);
        let (peak_memory, storage) = (entry.high, storage.unwrap_or(0));
        let (peak_written, storage_written) = if entry.day == day { (entry.peak_memory, entry.storage) } else { (0, 0) };
        let nothing = more == Counts::default() && peak_memory <= peak_written && storage <= storage_written;
        let nothing = nothing && entry.seen.page == now.page && !entry.is_new;
        (!nothing).then(|| Addition { id: id.clone(), day, more, peak_memory, storage, seen: now })
    }

    /// These stand in the records.
    pub fn written(&mut self, additions: &[Addition]) {
        for Addition { id, day, peak_memory, storage, seen, .. } in additions {
            let entry = self.tenants.entry(id.clone()).or_default();
            if entry.day != *day {
                (entry.day, entry.peak_memory, entry.storage) = (*day, 0, 0);
            }
            entry.peak_memory = entry.peak_memory.max(*peak_memory);
            entry.storage = entry.storage.max(*storage);
            (entry.seen, entry.high, entry.is_new) = (*seen, 0, false);
        }
    }

    /// `id` is let go: its slot begins anew. Nothing is kept of it in memory; [`Self::meet`] or the records say how it goes on.
    pub fn forget(&mut self, id: &TenantId) {
        self.tenants.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> TenantId {
        TenantId::parse("a").unwrap()
    }

    fn counts(n: u64) -> Counts {
        Counts { requests: n, errors: n / 7, writes: n / 3, bytes_in: 10 * n, bytes_out: 100 * n }
    }

    fn seen(page: u64, n: u64) -> Seen {
        Seen { page, counts: counts(n) }
    }

    #[test]
    fn a_tenant_counts_from_where_it_was_met() {
        let mut book = Book::default();
        assert_eq!(book.look(&id(), 5, seen(1, 9), None), None, "nobody has met it");
        book.meet(&id(), seen(1, 9));
        let first = book.look(&id(), 5, seen(1, 9), None).unwrap();
        assert_eq!(
            (first.more, first.seen, book.is_new(&id())),
            (Counts::default(), seen(1, 9), true),
            "the place from which to count is kept"
        );
        book.written(&[first]);
        assert_eq!((book.look(&id(), 5, seen(1, 9), None), book.is_new(&id())), (None, false));
        assert_eq!(book.look(&id(), 5, seen(1, 12), None).unwrap().more.requests, 3);
        book.meet(&id(), seen(1, 12));
        assert_eq!(book.look(&id(), 5, seen(1, 12), None).unwrap().more.requests, 3, "the first meeting counts");
    }

    #[test]
    fn what_could_not_be_written_is_written_later_and_once() {
        let mut book = Book::default();
        book.meet(&id(), seen(1, 0));
        book.look(&id(), 5, seen(1, 4), None).unwrap();
        let both = book.look(&id(), 5, seen(1, 9), None).unwrap();
        assert_eq!(both.more, counts(9).since(Counts::default()));
        book.written(std::slice::from_ref(&both));
        assert_eq!(book.look(&id(), 5, seen(1, 9), None), None);
    }

    #[test]
    fn another_page_has_counted_from_nothing_also_where_it_is_ahead() {
        let mut book = Book::new([(id(), seen(1, 3))].into());
        let addition = book.look(&id(), 5, seen(2, 5), None).unwrap();
        assert_eq!(addition.more.requests, 5);
        book.written(&[addition]);
        assert_eq!(book.look(&id(), 5, seen(2, 6), None).unwrap().more.requests, 1);
        // Where nothing was counted, the new page has to be noted all the same: the old one's counts would hide what comes.
        assert!(Book::new([(id(), seen(1, 3))].into()).look(&id(), 5, seen(2, 0), None).is_some());
    }

    #[test]
    fn a_day_has_its_own_peak_and_its_own_storage() {
        let mut book = Book::default();
        book.meet(&id(), Seen::default());
        book.note_memory(&id(), 7_000);
        book.note_memory(&id(), 5_000);
        let first = book.look(&id(), 5, Seen::default(), Some(4_096)).unwrap();
        assert_eq!((first.peak_memory, first.storage), (7_000, 4_096));
        book.written(&[first]);
        book.note_memory(&id(), 6_000);
        assert_eq!(book.look(&id(), 5, Seen::default(), Some(4_096)), None, "less than the peak is no news");
        let next = book.look(&id(), 6, Seen::default(), Some(4_096)).unwrap();
        assert_eq!((next.day, next.peak_memory, next.storage), (6, 6_000, 4_096));
        book.written(&[next]);
        book.note_memory(&id(), 6_001);
        assert!(book.look(&id(), 6, Seen::default(), Some(1)).is_some());
    }

    /// What befalls a counter and those who read it.
    #[derive(Debug, Clone)]
    enum Step {
        Requests(u64),
        Look { kept: bool },
        AgentDies,
        HostBoots,
        NextDay,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_u64..50).prop_map(Step::Requests),
            4 => any::<bool>().prop_map(|kept| Step::Look { kept }),
            1 => Just(Step::AgentDies),
            1 => Just(Step::HostBoots),
            1 => Just(Step::NextDay),
        ]
    }

    proptest! {
        /// Whatever comes between, the sum over the days is what was counted, but for what a page took with it that nobody looked at again.
        #[test]
        fn nothing_is_counted_twice_and_only_what_a_boot_took_is_missing(steps in prop::collection::vec(step(), 0..60)) {
            let (mut page, mut slot, mut day) = (1, 0_u64, 20_000);
            let (mut asked, mut taken_by_boots) = (0_u64, 0_u64);
            let mut kept = seen(page, 0);
            let (mut days, mut book) = (HashMap::<u32, u64>::new(), Book::new([(id(), kept)].into()));
            let look = |book: &mut Book, kept: &mut Seen, days: &mut HashMap<u32, u64>, now: Seen, day: u32, keeps: bool| {
                let Some(addition) = book.look(&id(), day, now, None) else { return };
                if keeps {
                    *days.entry(day).or_default() += addition.more.requests;
                    *kept = addition.seen;
                    book.written(&[addition]);
                }
            };
            for step in steps {
                match step {
                    Step::Requests(n) => (slot, asked) = (slot + n, asked + n),
                    Step::Look { kept: keeps } => look(&mut book, &mut kept, &mut days, seen(page, slot), day, keeps),
                    Step::AgentDies => book = Book::new([(id(), kept)].into()),
                    Step::HostBoots => {
                        taken_by_boots += seen(page, slot).since(kept).requests;
                        (page, slot) = (page + 1, 0);
                        book = Book::new([(id(), kept)].into());
                    }
                    Step::NextDay => day += 1,
                }
            }
            look(&mut book, &mut kept, &mut days, seen(page, slot), day, true);
            prop_assert_eq!(days.values().sum::<u64>() + taken_by_boots, asked);
        }
    }
}
