//! Who is shown where not every tenant is: those with the most requests of late. Pure.
//!
//! "Of late" fades by half each hour: a list by the requests since the last look would be another one at each, and every change of it is a series that
//! ends and one that begins. Where requests are equal (nobody asks anything, or the agent has just started), memory decides.

use std::{collections::HashMap, time::Duration};

use super::TenantFacts;
use crate::desired::TenantId;

/// After so long a request counts half.
const HALF: Duration = Duration::from_secs(3_600);

/// What was seen of every tenant's requests.
#[derive(Debug, Default)]
pub(super) struct Busiest {
    at: Duration,
    seen: HashMap<TenantId, (u64, f64)>,
}

impl Busiest {
    /// The indices of the `most` busiest of `tenants`, in their order, at `now` on the monotonic clock. `requests` are those counted by now.
    pub(super) fn look(
        &mut self,
        tenants: &[TenantFacts],
        requests: impl Fn(&TenantFacts) -> u64,
        most: usize,
        now: Duration,
    ) -> Vec<usize> {
        let fade = 0.5_f64.powf(now.saturating_sub(self.at).as_secs_f64() / HALF.as_secs_f64());
        let before = std::mem::take(&mut self.seen);
        let mut ranked = Vec::with_capacity(tenants.len());
        for (at, tenant) in tenants.iter().enumerate() {
            let counted = requests(tenant);
            // Whoever is new, or whose slot began anew, has had all of them since.
            let (last, score) = before.get(&tenant.id).copied().unwrap_or_default();
            let more = if counted < last { counted } else { counted - last };
            let score = score * fade + more as f64;
            self.seen.insert(tenant.id.clone(), (counted, score));
            ranked.push((at, score, tenant.memory.unwrap_or(0)));
        }
        self.at = now;
        let by_rank = |a: &(usize, f64, u64), b: &(usize, f64, u64)| b.1.total_cmp(&a.1).then(b.2.cmp(&a.2)).then(a.0.cmp(&b.0));
        if most < ranked.len() {
            ranked.select_nth_unstable_by(most, by_rank);
            ranked.truncate(most);
        }
        let mut shown: Vec<usize> = ranked.into_iter().map(|(at, ..)| at).collect();
        shown.sort_unstable();
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::RouteState;

    fn tenants(memory: &[u64]) -> Vec<TenantFacts> {
        let tenant = |(slot, &memory): (usize, &u64)| TenantFacts {
            id: TenantId::parse(&format!("t{slot}")).unwrap(),
            slot: slot as u32,
            tier: 0,
            state: RouteState::Ready,
            memory: Some(memory),
            memory_max: None,
            storage: None,
            storage_max: None,
            requests_per_day: None,
        };
        memory.iter().enumerate().map(tenant).collect()
    }

    const HOUR: Duration = HALF;

    #[test]
    fn memory_decides_until_somebody_asks_and_then_requests_do() {
        let tenants = tenants(&[5, 9, 7, 1]);
        let mut busiest = Busiest::default();
        assert_eq!(busiest.look(&tenants, |_| 0, 2, HOUR), [1, 2]);
        assert_eq!(busiest.look(&tenants, |tenant| u64::from(tenant.slot == 3), 2, HOUR), [1, 3]);
        assert_eq!(busiest.look(&tenants, |_| 0, 9, HOUR), [0, 1, 2, 3], "in their order");
        assert!(busiest.look(&tenants, |_| 0, 0, HOUR).is_empty());
    }

    #[test]
    fn a_burst_is_forgotten_by_half_an_hour_and_a_slot_that_began_anew_takes_nothing_away() {
        let tenants = tenants(&[0, 0]);
        let mut busiest = Busiest::default();
        let mut counted = [100, 0];
        let mut look = |counted: [u64; 2], hours: u32| busiest.look(&tenants, |tenant| counted[tenant.slot as usize], 1, HOUR * hours);
        assert_eq!(look(counted, 1), [0]);
        counted[1] = 60;
        assert_eq!(look(counted, 1), [0], "100 against 60");
        counted[1] = 90;
        assert_eq!(look(counted, 2), [1], "50 against 30 + 30");
        assert_eq!(look([40, 90], 2), [0], "50 + 40 against 60");
    }

    #[test]
    fn who_left_is_forgotten() {
        let mut busiest = Busiest::default();
        busiest.look(&tenants(&[0; 100]), |_| 5, 1, HOUR);
        busiest.look(&tenants(&[0]), |_| 5, 1, HOUR);
        assert_eq!(busiest.seen.len(), 1);
    }
}
