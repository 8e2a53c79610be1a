//! Which port is whose: sticky a tenant, never two tenants' at once, 60 s in quarantine after use.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use crate::{
    desired::{PortRange, TenantId},
    observed::Moment,
};

/// A port is given to another tenant only this long after its last use, so that a late request for the old one meets nobody.
pub const QUARANTINE: Duration = Duration::from_secs(60);
/// A port that something else holds is left alone this long.
const TAKEN_FOR: Duration = Duration::from_secs(60);

/// The ports of all tenants.
#[derive(Debug)]
pub struct PortBook {
    range: PortRange,
    quarantine: Duration,
    owner: HashMap<u16, TenantId>,
    resting: HashMap<u16, Moment>,
    /// Ports that tenants.toml gives to a certain tenant.
    meant: HashMap<u16, TenantId>,
    /// Ports of the range that nobody owns; a resting one may stand in it.
    free: BTreeSet<u16>,
}

impl PortBook {
    /// An empty book over `range`; a port rests for `quarantine` after use.
    pub fn new(range: PortRange, quarantine: Duration) -> Self {
        Self {
            range,
            quarantine,
            owner: HashMap::new(),
            resting: HashMap::new(),
            meant: HashMap::new(),
            free: (range.first..=range.last).collect(),
        }
    }

    /// How long a port rests after use.
    pub fn quarantine(&self) -> Duration {
        self.quarantine
    }

    /// How many ports nobody owns.
    pub fn free(&self) -> u64 {
        self.free.len() as u64
    }

    /// The range changed: tenants keep the port they have until they need another one.
    pub fn range(&mut self, range: PortRange) {
        if self.range != range {
            self.range = range;
            self.free = (range.first..=range.last).filter(|port| !self.owner.contains_key(port)).collect();
        }
    }

    /// These ports are given to nobody but these tenants from now on. Who has one of them keeps it until the next start.
    pub fn mean(&mut self, meant: impl Iterator<Item = (u16, TenantId)>) {
        self.meant = meant.collect();
    }

    /// `port` is `id`'s.
    pub fn give(&mut self, port: u16, id: &TenantId) {
        self.free.remove(&port);
        self.owner.insert(port, id.clone());
    }

    /// `port`, which was `id`'s, is nobody's from `now` on, and rests.
    pub fn release(&mut self, port: u16, id: &TenantId, now: Moment) {
        if self.owner.get(&port) == Some(id) {
            self.owner.remove(&port);
            self.rest_until(port, now + self.quarantine);
        }
    }

    /// Something that is not ours holds `port`, which was `id`'s or nobody's.
    pub fn taken(&mut self, port: u16, id: &TenantId, now: Moment) {
        if self.owner.get(&port).is_none_or(|owner| owner == id) {
            self.owner.remove(&port);
        }
        self.rest_until(port, now + TAKEN_FOR);
    }

    /// `port` may not be given away before `until`.
    pub fn rest_until(&mut self, port: u16, until: Moment) {
        self.resting.insert(port, until);
        if self.range.contains(port) && !self.owner.contains_key(&port) {
            self.free.insert(port);
        }
    }

    /// The next port to try for `id`: the one it had, if it is still its own, else the lowest free one that rests not.
    pub fn candidate(&mut self, id: &TenantId, sticky: Option<u16>, now: Moment) -> Option<u16> {
        self.resting.retain(|_, until| *until > now);
        let for_it = |port: &u16| self.meant.get(port).is_none_or(|meant| meant == id);
        let usable = |port: &u16| !self.resting.contains_key(port) && for_it(port);
        if let Some(port) = sticky
            && self.range.contains(port)
            && for_it(&port)
            && (self.owner.get(&port) == Some(id) || (!self.owner.contains_key(&port) && usable(&port)))
        {
            return Some(port);
        }
        self.free.iter().copied().find(usable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: PortRange = PortRange { first: 10_001, last: 10_003 };
    const NOW: Moment = Moment::from_millis(1_000);

    fn id(name: &str) -> TenantId {
        TenantId::parse(name).unwrap()
    }

    #[test]
    fn a_tenant_keeps_its_port_and_no_other_gets_it() {
        let mut book = PortBook::new(RANGE, QUARANTINE);
        book.give(10_002, &id("a"));
        assert_eq!(book.candidate(&id("a"), Some(10_002), NOW), Some(10_002));
        assert_eq!(book.candidate(&id("b"), Some(10_002), NOW), Some(10_001));
    }

    #[test]
    fn a_released_port_rests_for_a_minute() {
        let mut book = PortBook::new(PortRange { first: 10_001, last: 10_001 }, QUARANTINE);
        book.give(10_001, &id("a"));
        book.release(10_001, &id("a"), NOW);
        assert_eq!(book.candidate(&id("b"), None, NOW + Duration::from_millis(59_999)), None);
        assert_eq!(book.candidate(&id("b"), None, NOW + QUARANTINE), Some(10_001));
    }

    #[test]
    fn nobody_gives_up_what_has_become_anothers() {
        let mut book = PortBook::new(RANGE, QUARANTINE);
        book.give(10_001, &id("b"));
        book.release(10_001, &id("a"), NOW);
        book.taken(10_001, &id("a"), NOW);
        assert_eq!(book.candidate(&id("c"), None, NOW + QUARANTINE), Some(10_002));
        assert_eq!(book.candidate(&id("b"), Some(10_001), NOW), Some(10_001));
    }

    #[test]
    fn a_port_that_something_else_holds_is_skipped() {
        let mut book = PortBook::new(RANGE, QUARANTINE);
        book.give(10_001, &id("a"));
        book.taken(10_001, &id("a"), NOW);
        assert_eq!(book.candidate(&id("a"), Some(10_001), NOW), Some(10_002));
    }

    #[test]
    fn a_port_that_is_meant_for_somebody_is_given_to_nobody_else() {
        let mut book = PortBook::new(RANGE, QUARANTINE);
        book.give(10_002, &id("a"));
        book.mean([(10_001, id("b")), (10_002, id("b"))].into_iter());
        assert_eq!(book.candidate(&id("b"), Some(10_002), NOW), Some(10_001), "a has it still");
        assert_eq!(book.candidate(&id("a"), Some(10_002), NOW), Some(10_003));
        book.give(10_003, &id("a"));
        book.release(10_002, &id("a"), NOW);
        assert_eq!(book.candidate(&id("b"), Some(10_002), NOW + QUARANTINE), Some(10_002));
        book.mean(std::iter::empty());
        assert_eq!(book.candidate(&id("c"), None, NOW + QUARANTINE), Some(10_001));
    }

    #[test]
    fn a_port_outside_a_changed_range_is_not_given_again() {
        let mut book = PortBook::new(RANGE, QUARANTINE);
        book.give(10_001, &id("a"));
        book.range(PortRange { first: 10_002, last: 10_002 });
        assert_eq!(book.candidate(&id("a"), Some(10_001), NOW), Some(10_002));
        book.give(10_002, &id("a"));
        assert_eq!(book.candidate(&id("b"), None, NOW), None);
    }
}
