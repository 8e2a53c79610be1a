//! What a tenant's cgroup says of itself.

use serde::{Deserialize, Serialize};

/// Memory of a tenant, bytes; more than its sq's own, since the page cache of its files counts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryFigures {
    /// Now.
    pub current: u64,
    /// The most it ever was (Linux 5.19).
    pub peak: Option<u64>,
    /// How often limits were met.
    pub events: MemoryEvents,
}

/// memory.events: counts since the start of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryEvents {
    /// Slowed down for memory.high.
    pub high: u64,
    /// Stopped at memory.max.
    pub max: u64,
    /// Processes killed for memory.
    pub oom_kill: u64,
    /// Times the whole cgroup was killed for memory (Linux 5.17).
    pub oom_group_kill: u64,
}

/// Processor time of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuFigures {
    /// Used in all, µs.
    pub usage_us: u64,
    /// Periods in which it had to wait for its quota.
    pub throttled: u64,
    /// For how long, µs.
    pub throttled_us: u64,
}

/// Threads of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PidFigures {
    /// Now.
    pub current: u64,
    /// How often one more was refused.
    pub refused: u64,
}

/// Reads `key value` lines; a key that a kernel does not know counts 0.
pub(super) fn keyed(text: &str, key: &str) -> u64 {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

impl MemoryEvents {
    pub(super) fn parse(text: &str) -> Self {
        let count = |key| keyed(text, key);
        Self { high: count("high"), max: count("max"), oom_kill: count("oom_kill"), oom_group_kill: count("oom_group_kill") }
    }
}

impl CpuFigures {
    pub(super) fn parse(text: &str) -> Self {
        Self { usage_us: keyed(text, "usage_usec"), throttled: keyed(text, "nr_throttled"), throttled_us: keyed(text, "throttled_usec") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_their_whole_name() {
        let events = MemoryEvents::parse("low 0\nhigh 12\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n");
        assert_eq!(events, MemoryEvents { high: 12, max: 3, oom_kill: 2, oom_group_kill: 1 });
        assert_eq!(MemoryEvents::parse("oom_kill 2\n").oom_group_kill, 0, "an older kernel");
    }

    #[test]
    fn cpu_statistics_have_no_throttling_where_there_is_no_controller() {
        let text = "usage_usec 500\nuser_usec 300\nsystem_usec 200\n";
        assert_eq!(CpuFigures::parse(text), CpuFigures { usage_us: 500, ..CpuFigures::default() });
    }
}
