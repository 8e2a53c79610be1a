//! Which writes go on where room is short: those that leave no file larger than it was. Pure.
//!
//! Without them nobody could ever get below a limit. A delete only makes less. Of an update, only the guard knows the file's size before and behind it,
//! and it puts the file back where it grew; so without a guard no update goes on. The rest adds.

use super::problem::Problem;
use crate::{
    guard::Call,
    route::{Route, Writes},
};

/// Whether a write may leave its file larger than it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Growth {
    /// It may.
    Free,
    /// It may not; this is the answer where it does.
    Refused(Problem),
}

/// What holds for a request that makes sq write by this `call` (`None`: it writes no file), with a guard or without.
pub(crate) fn judge(route: &Route, call: Option<Call>, guarded: bool) -> Result<Growth, Problem> {
    let problem = match route.writes {
        Writes::All => return Ok(Growth::Free),
        Writes::OverStorage { used } => Problem::StorageQuota { used, limit: route.limits.storage_max },
        Writes::DiskLow => Problem::DiskLow,
    };
    match call {
        None | Some(Call::Delete) => Ok(Growth::Free),
        Some(Call::Update) if guarded => Ok(Growth::Refused(problem)),
        Some(Call::Insert | Call::Update | Call::Export) => Err(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Durability, RouteLimits, RouteState};

    fn route(writes: Writes) -> Route {
        let limits = RouteLimits {
            interval_ns: 0,
            burst: 0,
            requests_per_day: 0,
            concurrency: 1,
            queue: 1,
            body_max: 1,
            memory_max: 0,
            storage_max: 10,
            durability: Durability::Process,
        };
        Route { port: 1, state: RouteState::Ready, epoch: 1, slot: 0, tokens_valid_after: 0, limits, writes }
    }

    const CALLS: [Option<Call>; 5] = [None, Some(Call::Delete), Some(Call::Update), Some(Call::Insert), Some(Call::Export)];

    #[test]
    fn with_room_everything_goes() {
        for call in CALLS {
            assert_eq!([true, false].map(|guarded| judge(&route(Writes::All), call, guarded)), [Ok(Growth::Free); 2], "{call:?}");
        }
    }

    #[test]
    fn without_room_goes_what_makes_less_or_can_be_taken_back() {
        for (writes, problem) in
            [(Writes::OverStorage { used: 11 }, Problem::StorageQuota { used: 11, limit: 10 }), (Writes::DiskLow, Problem::DiskLow)]
        {
            let judged = |guarded| CALLS.map(|call| judge(&route(writes), call, guarded));
            let (free, no) = (Ok(Growth::Free), Err(problem));
            assert_eq!(judged(true), [free, free, Ok(Growth::Refused(problem)), no, no]);
            assert_eq!(judged(false), [free, free, no, no, no]);
        }
    }
}
