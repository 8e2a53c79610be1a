//! Which interesting states were reached, and how often: a simulation that never gets there proves nothing.

use std::collections::BTreeMap;

use crate::calls::Call;

/// Counts by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coverage(BTreeMap<String, u64>);

/// Every one of these has to be reached.
pub(crate) const WANTED: &[&str] = &[
    "adopted",
    "agent_handed_over",
    "alert_answer_lost",
    "alert_lost",
    "alert_raised",
    "alert_resolved",
    "agent_killed",
    "agent_stopped",
    "another_program_rolled_out",
    "back_off",
    "roll_out_complete",
    "roll_out_went_back",
    "stopped_for_lowered_limit",
    "confirmed",
    "crash_loop",
    "doubled_news",
    "drain_waited",
    "drain_gave_up",
    "foreign_sq_stopped",
    "gone_at_look",
    "held",
    "immortal",
    "kept_before_program_change",
    "kept_before_removal",
    "kept_before_suspension",
    "kept_by_the_hour",
    "last_good_start",
    "look_failed",
    "port_skipped",
    "port_taken_at_start",
    "port_rested",
    "publish_failed",
    "records_failed",
    "refused_file",
    "restored",
    "slow_start_given_up",
    "spawned_by_a_dead_agent",
    "started_with_broken_file",
    "stopped_for_failed_probes",
    "stopped_for_restore",
    "write_undone",
    "stopped_removed",
    "stopped_suspended",
    "term_ignored",
    "unproved",
    "wall_clock_jumped",
];

impl Coverage {
    pub(crate) fn hit(&mut self, name: &str) {
        match self.0.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                self.0.insert(name.to_owned(), 1);
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (name, count) in other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    pub(crate) fn crashed_at(&mut self, call: Call) {
        self.hit(&format!("crashed at {call:?}"));
    }

    /// What was never reached, though it has to be.
    pub(crate) fn missing(&self) -> Vec<String> {
        let crashes = Call::ALL.iter().map(|call| format!("crashed at {call:?}"));
        WANTED.iter().map(|name| (*name).to_owned()).chain(crashes).filter(|name| !self.0.contains_key(name)).collect()
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, count)| writeln!(f, "{count:>9}  {name}"))
    }
}
