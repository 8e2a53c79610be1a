//! Which start goes next: two bounded queues, so that a boot of thousands never delays a user who waits.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::desired::TenantId;

/// Who asked for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The plan.
    Background,
    /// A user whose request is parked.
    Requested,
}

/// Starts that wait, and how many of each kind are under way. Each tenant stands in it at most once.
#[derive(Debug)]
pub struct StartQueue {
    limit: usize,
    background: VecDeque<TenantId>,
    requested: VecDeque<TenantId>,
    waiting: HashMap<TenantId, Lane>,
    running: HashMap<TenantId, Lane>,
    asked: HashSet<TenantId>,
}

impl StartQueue {
    /// A queue that lets `limit` starts of each kind run at once.
    ///
    /// 2 x cores: 2,300 instances are ready in under 5 s at 8 at a time on 2 cores, and past 32 at a time the tail grows (sq-facts).
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            background: VecDeque::new(),
            requested: VecDeque::new(),
            waiting: HashMap::new(),
            running: HashMap::new(),
            asked: HashSet::new(),
        }
    }

    /// Puts a start in line; a second wish for the same tenant changes nothing.
    pub fn push(&mut self, id: &TenantId) {
        if self.waiting.contains_key(id) || self.running.contains_key(id) {
            return;
        }
        let lane = if self.asked.contains(id) { Lane::Requested } else { Lane::Background };
        self.waiting.insert(id.clone(), lane);
        match lane {
            Lane::Background => self.background.push_back(id.clone()),
            Lane::Requested => self.requested.push_back(id.clone()),
        }
    }

    /// A user waits for this tenant: its start, waiting now or coming, goes by the requested queue.
    pub fn request(&mut self, id: &TenantId) {
        if self.running.contains_key(id) || !self.asked.insert(id.clone()) {
            return;
        }
        if let Some(lane @ Lane::Background) = self.waiting.get_mut(id) {
            *lane = Lane::Requested;
            self.requested.push_back(id.clone());
        }
    }

    /// The next start that may begin now; it counts as running until [`Self::done`].
    pub fn pop(&mut self) -> Option<TenantId> {
        self.pop_lane(Lane::Requested).or_else(|| self.pop_lane(Lane::Background))
    }

    fn pop_lane(&mut self, lane: Lane) -> Option<TenantId> {
        if self.running.values().filter(|&&running| running == lane).count() >= self.limit {
            return None;
        }
        let queue = match lane {
            Lane::Background => &mut self.background,
            Lane::Requested => &mut self.requested,
        };
        // An entry whose tenant moved to the other queue is stale and skipped.
        let id = std::iter::from_fn(|| queue.pop_front()).find(|id| self.waiting.get(id) == Some(&lane))?;
        self.waiting.remove(&id);
        self.asked.remove(&id);
        self.running.insert(id.clone(), lane);
        Some(id)
    }

    /// A start that began has ended, however it ended.
    pub fn done(&mut self, id: &TenantId) {
        self.running.remove(id);
    }

    /// Whether no start is under way.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> TenantId {
        TenantId::parse(name).unwrap()
    }

    #[test]
    fn at_most_the_limit_of_each_kind_runs_at_once() {
        let mut queue = StartQueue::new(2);
        ["a", "b", "c", "d"].iter().for_each(|name| queue.push(&id(name)));
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(id("a")), Some(id("b")), None]);
        queue.done(&id("a"));
        assert_eq!(queue.pop(), Some(id("c")));
    }

    #[test]
    fn a_user_who_waits_overtakes_a_boot_even_when_its_lane_is_full() {
        let mut queue = StartQueue::new(1);
        (0..1_000).for_each(|i| queue.push(&id(&format!("t{i}"))));
        assert_eq!(queue.pop(), Some(id("t0")));
        queue.request(&id("t999"));
        assert_eq!(queue.pop(), Some(id("t999")));
        queue.done(&id("t0"));
        assert_eq!(queue.pop(), Some(id("t1")));
    }

    #[test]
    fn a_tenant_stands_in_line_once_and_runs_once() {
        let mut queue = StartQueue::new(4);
        queue.push(&id("a"));
        queue.push(&id("a"));
        queue.request(&id("a"));
        queue.request(&id("a"));
        assert_eq!([queue.pop(), queue.pop()], [Some(id("a")), None]);
        queue.push(&id("a"));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn a_wish_that_comes_before_the_start_is_remembered() {
        let mut queue = StartQueue::new(1);
        queue.push(&id("first"));
        queue.pop();
        queue.request(&id("late"));
        queue.push(&id("other"));
        queue.push(&id("late"));
        assert_eq!(queue.pop(), Some(id("late")));
    }
}
