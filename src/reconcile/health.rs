//! Who is probed when: every instance each 10 s, spread evenly, unless the proxy saw it answer meanwhile. Where there are more than 3,000, 300 a second: a
//! probe takes the agent 40 µs and its sq a thread, so 10,000 each 10 s would be 4 % of a core in the agent alone.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::desired::TenantId;

/// Failures in a row that make an instance unhealthy.
const FAILURES: u32 = 3;

/// The wheel of probes. Tenants are spread by their slot, so that 2,300 of them are 46 probes each fifth of a second.
#[derive(Debug)]
pub struct Health {
    /// Who is due at each step that is left of this turn. Filled once a turn: to go through all tenants at every step would
    /// cost more than their probes' answers.
    due: VecDeque<Vec<TenantId>>,
    failures: HashMap<TenantId, (u64, u32)>,
}

/// What a probe's result means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it was.
    Same,
    /// The third failure in a row.
    Unhealthy,
    /// It answers again.
    Recovered,
}

impl Health {
    /// Time between two steps of the wheel.
    pub const STEP: Duration = Duration::from_millis(200);
    /// An answer that takes longer is none.
    pub const LIMIT: Duration = Duration::from_secs(3);
    /// Time between two probes of one instance, where [`Self::MOST`] is enough for that.
    pub const PERIOD: Duration = Duration::from_secs(10);
    const STEPS: usize = (Self::PERIOD.as_millis() / Self::STEP.as_millis()) as usize;
    /// Probes at one step, where the slots are evenly taken.
    const MOST: usize = 60;

    /// A wheel at its first step.
    pub fn new() -> Self {
        Self { due: VecDeque::new(), failures: HashMap::new() }
    }

    /// Turns the wheel by a step; returns who is due. `running` names everybody with a running instance, by slot; it is asked
    /// once a turn, so whoever comes up meanwhile, and was proved ready just then, is due from the next turn on.
    pub fn step<'a>(&mut self, running: impl Iterator<Item = (&'a TenantId, u32)>) -> Vec<TenantId> {
        if self.due.is_empty() {
            let running: Vec<_> = running.collect();
            let steps = running.len().div_ceil(Self::MOST).max(Self::STEPS);
            self.due.resize(steps, Vec::new());
            for (id, slot) in running {
                self.due[slot as usize % steps].push(id.clone());
            }
        }
        self.due.pop_front().unwrap_or_default()
    }

    /// Leaves out the steps at which nobody is due, to the end of the turn at most; returns how many. A host with few tenants has
    /// nothing to wake up for at most of them.
    pub fn skip_idle(&mut self) -> u32 {
        let idle = self.due.iter().take_while(|due| due.is_empty()).count();
        self.due.drain(..idle);
        u32::try_from(idle).unwrap_or(0) // at most the steps of a turn
    }

    /// Notes a probe of the start `epoch`.
    pub fn note(&mut self, id: &TenantId, epoch: u64, answered: bool) -> Verdict {
        if answered {
            return match self.failures.remove(id) {
                Some((of, failures)) if of == epoch && failures >= FAILURES => Verdict::Recovered,
                _ => Verdict::Same,
            };
        }
        let entry = self.failures.entry(id.clone()).or_insert((epoch, 0));
        if entry.0 != epoch {
            *entry = (epoch, 0);
        }
        entry.1 = entry.1.saturating_add(1);
        if entry.1 == FAILURES { Verdict::Unhealthy } else { Verdict::Same }
    }

    /// Forgets a tenant whose instance ended.
    pub fn forget(&mut self, id: &TenantId) {
        self.failures.remove(id);
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> TenantId {
        TenantId::parse("a").unwrap()
    }

    #[test]
    fn the_third_failure_in_a_row_makes_it_unhealthy_and_an_answer_makes_it_well() {
        let mut health = Health::new();
        let notes = [false, false, true, false, false, false, false, true, true].map(|answered| health.note(&id(), 1, answered));
        let mut expected = [Verdict::Same; 9];
        expected[5] = Verdict::Unhealthy;
        expected[7] = Verdict::Recovered;
        assert_eq!(notes, expected);
    }

    #[test]
    fn failures_of_an_earlier_start_do_not_count() {
        let mut health = Health::new();
        health.note(&id(), 1, false);
        health.note(&id(), 1, false);
        assert_eq!(health.note(&id(), 2, false), Verdict::Same);
    }

    #[test]
    fn everybody_is_due_exactly_once_a_turn_and_no_step_has_more_than_its_share() {
        let ids: Vec<TenantId> = (0..230).map(|n| TenantId::parse(&format!("t{n}")).unwrap()).collect();
        let mut health = Health::new();
        for _ in 0..3 {
            let steps: Vec<_> = (0..Health::STEPS).map(|_| health.step(ids.iter().zip(0..))).collect();
            assert!(steps.iter().all(|due| due.len() <= 5));
            let mut due: Vec<_> = steps.concat();
            due.sort_by_key(|id| ids.iter().position(|other| other == id));
            assert_eq!(due, ids);
        }
    }

    #[test]
    fn of_very_many_each_is_due_once_in_a_longer_turn() {
        let ids: Vec<TenantId> = (0..9_000).map(|n| TenantId::parse(&format!("t{n}")).unwrap()).collect();
        let mut health = Health::new();
        let steps: Vec<_> = (0..3 * Health::STEPS).map(|_| health.step(ids.iter().zip(0..))).collect();
        assert!(steps.iter().all(|due| due.len() == Health::MOST));
        let mut due: Vec<_> = steps.concat();
        due.sort_by_key(|id| id.as_str()[1..].parse::<u32>().unwrap());
        assert_eq!(due, ids);
    }

    #[test]
    fn idle_steps_are_left_out_and_nobody_is_due_sooner_or_later_for_it() {
        let (first, last) = (id(), TenantId::parse("b").unwrap());
        let both = || [(&first, 3), (&last, 7)].into_iter();
        let mut health = Health::new();
        let mut at = 0;
        let mut due = Vec::new();
        while at < 2 * Health::STEPS as u32 {
            due.extend(health.step(both()).into_iter().map(|id| (at, id)));
            at += 1 + health.skip_idle();
        }
        let expected = [(3, &first), (7, &last), (53, &first), (57, &last)].map(|(at, id)| (at, id.clone()));
        assert_eq!(due, expected);
    }

    #[test]
    fn a_newcomer_is_due_from_the_next_turn_on() {
        let (old, new) = (id(), TenantId::parse("b").unwrap());
        let mut health = Health::new();
        health.step(std::iter::once((&old, 0)));
        let both = || [(&old, 0), (&new, 1)].into_iter();
        assert!((1..Health::STEPS).all(|_| health.step(both()).is_empty()));
        assert_eq!((health.step(both()), health.step(both())), (vec![old.clone()], vec![new.clone()]));
    }
}
