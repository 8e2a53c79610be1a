//! Who is probed when: every instance each 10 s, spread evenly, unless the proxy saw it answer meanwhile.

use std::{collections::HashMap, time::Duration};

use crate::desired::TenantId;

/// Failures in a row that make an instance unhealthy.
const FAILURES: u32 = 3;

/// The wheel of probes. Tenants are spread by their slot, so that 2,300 of them are 23 probes each tenth of a second.
#[derive(Debug)]
pub struct Health {
    step: u64,
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
    pub const STEP: Duration = Duration::from_millis(100);
    /// An answer that takes longer is none.
    pub const LIMIT: Duration = Duration::from_secs(3);
    /// Time between two probes of one instance.
    pub const PERIOD: Duration = Duration::from_secs(10);
    const STEPS: u64 = (Self::PERIOD.as_millis() / Self::STEP.as_millis()) as u64;

    /// A wheel at its first step.
    pub fn new() -> Self {
        Self { step: 0, failures: HashMap::new() }
    }

    /// Turns the wheel; answers whether the tenant of `slot` is due now.
    pub fn turn(&mut self) -> impl Fn(u32) -> bool + use<> {
        self.step = (self.step + 1) % Self::STEPS;
        let step = self.step;
        move |slot| u64::from(slot) % Self::STEPS == step
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
    fn every_slot_is_due_exactly_once_a_period() {
        let mut health = Health::new();
        let mut due = [0; 250];
        for _ in 0..Health::STEPS {
            let is_due = health.turn();
            due.iter_mut().zip(0..).for_each(|(count, slot)| *count += u32::from(is_due(slot)));
        }
        assert!(due.iter().all(|&count| count == 1));
    }
}
