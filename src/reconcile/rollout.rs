//! How a new sq reaches the tenants: one first, then 1 %, 10 %, all; each step only once the one before has run well for a while.
//!
//! Pure, and level-triggered as the plan is: where a roll-out stands is read off the tenants (which program each is given, which runs,
//! which crashed on it), so that a restarted agent goes on where the last one was.

use std::{hash::Hasher as _, time::Duration};

use siphasher::sip::SipHasher13;

use crate::{
    desired::TenantId,
    observed::{Known, Moment, State},
};

/// An instance has proved its program by running so long on it.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// From this share of those restarted on, percent, that crash, the new program is given up.
const CRASHES_PERCENT: usize = 5;
/// How many instances are restarted side by side.
const SIDE_BY_SIDE: usize = 4;

/// What to do next about the new program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Give it to these tenants too; empty where the next ones have to wait for those before.
    Move(Vec<TenantId>),
    /// So many of those restarted on it crashed: everybody goes back.
    GoBack {
        /// Tenants whose instance crashed on it.
        crashed: usize,
        /// Tenants that were given it.
        of: usize,
    },
    /// Everybody has it, and it runs well.
    Complete,
}

/// Where a roll-out stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Tenants that are to have the new program in the end.
    pub total: usize,
    /// Of these, given it.
    pub moved: usize,
    /// Of these, running well on it.
    pub healthy: usize,
    /// Of these, crashed on it.
    pub crashed: usize,
    /// Of these, on their way: neither healthy nor crashed, and not up yet.
    under_way: usize,
}

/// Counts where the roll-out of `to` stands. A suspended or leaving tenant, or one of which nothing runs, takes no part.
pub fn progress<'a>(known: impl Iterator<Item = &'a Known>, to: &str, now: Moment) -> Progress {
    let mut progress = Progress::default();
    for known in known.filter(|known| takes_part(known, to)) {
        progress.total += 1;
        if known.program != to {
            continue;
        }
        progress.moved += 1;
        if known.crashed_on_program {
            progress.crashed += 1;
        } else {
            match &known.state {
                State::Running(running) if running.program == to && now.since(running.since) >= HEALTHY_AFTER => progress.healthy += 1,
                State::Running(running) if running.program == to => {}
                _ => progress.under_way += 1,
            }
        }
    }
    progress
}

/// The next step of the roll-out of `to`. `known` is walked twice.
pub fn step<'a, I>(known: I, to: &str, now: Moment) -> Step
where
    I: Iterator<Item = (&'a TenantId, &'a Known)> + Clone,
{
    let at = progress(known.clone().map(|(_, known)| known), to, now);
    if at.crashed > 0 && at.crashed * 100 >= at.moved * CRASHES_PERCENT {
        return Step::GoBack { crashed: at.crashed, of: at.moved };
    }
    // Few crashes of many do not hold up the rest for ever.
    let settled = at.healthy + at.crashed;
    if settled >= at.total {
        return Step::Complete;
    }
    let stage = stage(at.total, settled);
    let room = stage.saturating_sub(at.moved).min(SIDE_BY_SIDE.saturating_sub(at.under_way));
    if room == 0 {
        return Step::Move(Vec::new());
    }
    let mut waiting: Vec<_> =
        known.filter(|(_, known)| takes_part(known, to) && known.program != to).map(|(id, _)| (turn(id, to), id)).collect();
    waiting.sort_unstable();
    Step::Move(waiting.into_iter().take(room).map(|(_, id)| id.clone()).collect())
}

/// When the step may be another one though nothing happens: the next instance has run long enough.
pub fn next_look<'a>(known: impl Iterator<Item = &'a Known>, to: &str, now: Moment) -> Option<Moment> {
    known
        .filter(|known| takes_part(known, to) && known.program == to)
        .filter_map(|known| if let State::Running(running) = &known.state { Some(running.since + HEALTHY_AFTER) } else { None })
        .filter(|&at| at > now)
        .min()
}

/// Who does not run says nothing about a program: it gets the new one when the roll-out is over.
fn takes_part(known: &Known, to: &str) -> bool {
    !known.leaving && !known.spec.suspended && (known.program == to || matches!(known.state, State::Running(_)))
}

/// How many may have the program while `settled` of `total` have shown that it does them no harm: 1, 1 %, 10 %, all.
fn stage(total: usize, settled: usize) -> usize {
    [1, total.div_ceil(100), total.div_ceil(10), total].into_iter().find(|&size| settled < size).unwrap_or(total)
}

/// The order in which tenants take their turn; another one for each program, so that it is not always the same user who goes first.
fn turn(id: &TenantId, to: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(to.as_bytes());
    hasher.write(id.as_str().as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{desired::testing::tenant, observed::Running};

    const NEW: &str = "sq 0.7.0";
    const OLD: &str = "sq 0.6.0";

    struct Host {
        known: BTreeMap<TenantId, Known>,
        now: Moment,
    }

    impl Host {
        fn of(tenants: usize) -> Self {
            let mut host = Self { known: BTreeMap::new(), now: Moment::from_millis(1_000_000) };
            for n in 0..tenants {
                let id = TenantId::parse(&format!("t{n}")).unwrap();
                let spec = tenant(id.clone());
                let known = Known { program: OLD.into(), ..Known::new(u32::try_from(n).unwrap(), spec) };
                host.known.insert(id.clone(), known);
                host.run(&id, OLD);
            }
            host
        }

        fn run(&mut self, id: &TenantId, program: &str) {
            let running = Running { epoch: 1, pid: 1, program: program.into(), since: self.now, started_at: 0 };
            self.known.get_mut(id).unwrap().state = State::Running(running);
        }

        fn step(&self) -> Step {
            step(self.known.iter(), NEW, self.now)
        }

        fn moved(&self) -> usize {
            progress(self.known.values(), NEW, self.now).moved
        }

        fn wait(&mut self, time: Duration) {
            self.now = self.now + time;
        }

        /// Takes the steps of one stage, each instance up at once; those for which `crashes` says so crash.
        fn take_stage(&mut self, crashes: impl Fn(usize) -> bool) -> Step {
            loop {
                match self.step() {
                    Step::Move(ids) if !ids.is_empty() => {
                        assert!(ids.len() <= SIDE_BY_SIDE);
                        for id in ids {
                            let nth = self.moved();
                            self.known.get_mut(&id).unwrap().program = NEW.into();
                            self.run(&id, NEW);
                            self.known.get_mut(&id).unwrap().crashed_on_program = crashes(nth);
                        }
                    }
                    other => return other,
                }
            }
        }
    }

    #[test]
    fn one_goes_first_then_a_hundredth_then_a_tenth_then_all() {
        let mut host = Host::of(1_000);
        for stage in [1, 10, 100, 1_000] {
            assert_eq!(host.take_stage(|_| false), Step::Move(vec![]), "they wait until the stage has run well");
            assert_eq!(host.moved(), stage);
            host.wait(HEALTHY_AFTER - Duration::from_millis(1));
            assert_eq!(host.step(), Step::Move(vec![]));
            host.wait(Duration::from_millis(1));
        }
        assert_eq!(host.step(), Step::Complete);
    }

    #[test]
    fn a_canary_that_crashes_sends_everybody_back() {
        let mut host = Host::of(100);
        assert_eq!(host.take_stage(|_| true), Step::GoBack { crashed: 1, of: 1 });
    }

    #[test]
    fn a_crash_among_many_does_not_stop_the_rest_and_one_in_twenty_does() {
        let mut host = Host::of(1_000);
        for _ in 0..2 {
            host.take_stage(|_| false);
            host.wait(HEALTHY_AFTER);
        }
        // The 100th stage: two of a hundred crash.
        assert_eq!(host.take_stage(|nth| nth == 50 || nth == 90), Step::Move(vec![]));
        host.wait(HEALTHY_AFTER);
        assert!(matches!(host.step(), Step::Move(ids) if ids.len() == SIDE_BY_SIDE));
        let crashed = host.take_stage(|nth| nth >= 200 && nth % 10 == 0);
        assert!(matches!(crashed, Step::GoBack { crashed, of } if crashed * 20 >= of && of < 1_000), "{crashed:?}");
    }

    #[test]
    fn no_more_than_a_few_are_on_their_way_at_once() {
        let mut host = Host::of(1_000);
        for _ in 0..2 {
            host.take_stage(|_| false);
            host.wait(HEALTHY_AFTER);
        }
        let Step::Move(first) = host.step() else { panic!("a stage is open") };
        for id in &first {
            let known = host.known.get_mut(id).unwrap();
            known.program = NEW.into();
            known.state = State::Starting { epoch: 2 };
        }
        assert_eq!(host.step(), Step::Move(vec![]));
        host.run(&first[0], NEW);
        assert!(matches!(host.step(), Step::Move(ids) if ids.len() == 1));
    }

    #[test]
    fn the_suspended_take_no_part_and_nobody_at_all_is_complete() {
        let mut host = Host::of(2);
        host.known.values_mut().for_each(|known| known.spec.suspended = true);
        assert_eq!(host.step(), Step::Complete);
    }

    #[test]
    fn another_program_begins_with_another_tenant() {
        let host = Host::of(50);
        let first = |to: &str| step(host.known.iter(), to, host.now);
        let canaries: std::collections::BTreeSet<_> = (0..20).map(|n| format!("{:?}", first(&format!("sq 0.{n}.1")))).collect();
        assert!(canaries.len() > 5, "{canaries:?}");
    }

    #[test]
    fn the_next_look_is_when_an_instance_has_run_long_enough() {
        let mut host = Host::of(10);
        host.take_stage(|_| false);
        let at = next_look(host.known.values(), NEW, host.now);
        assert_eq!(at, Some(host.now + HEALTHY_AFTER));
        host.wait(HEALTHY_AFTER);
        assert_eq!(next_look(host.known.values(), NEW, host.now), None);
    }
}
