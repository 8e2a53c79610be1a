//! How the host stood at a moment, and how long that is kept: a minute each for a day, a quarter of an hour each for 30 days.

use serde::{Deserialize, Serialize};

/// Seconds from one sample to the next.
pub const FINE: u32 = 60;
/// Of those that were thinned out.
pub const COARSE: u32 = 900;
/// How long the fine ones are kept, seconds.
pub const FINE_KEPT: u64 = 86_400;
/// How long the thinned ones are kept, seconds.
pub const COARSE_KEPT: u64 = 30 * 86_400;

/// How the host stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// When, seconds since 1970: the begin of the minute or quarter.
    pub at: u64,
    /// The host's memory, bytes; 0 where it cannot be told.
    pub memory_total: u64,
    /// What of it is not available to new processes, bytes.
    pub memory_used: u64,
    /// The disk where the tenants' files lie, bytes; 0 where it cannot be told.
    pub disk_total: u64,
    /// What of it is taken, or kept for root, bytes.
    pub disk_used: u64,
    /// Instances that ran.
    pub instances: u64,
    /// What they took together (PSS), bytes.
    pub instances_memory: u64,
    /// Requests that came meanwhile.
    pub requests: u64,
    /// Of these, answered by 5xx of the proxy.
    pub errors: u64,
    /// How busy the processors were meanwhile, of a thousand; none where that cannot be told.
    pub cpu: Option<u32>,
}

/// What the processors did since the host booted, in ticks of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTicks {
    /// They had something to do.
    pub busy: u64,
    /// In all.
    pub total: u64,
}

impl CpuTicks {
    /// What the first line of /proc/stat says (proc_stat(5)): waiting for a disk is idleness, and a guest's time is in that of its user already.
    pub fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<u64> =
            stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        let total = fields.iter().take(8).sum();
        let idle: u64 = fields.get(3)? + fields.get(4).unwrap_or(&0);
        Some(Self { busy: u64::saturating_sub(total, idle), total })
    }

    /// How busy they were since `earlier`, of a thousand.
    pub fn since(self, earlier: Self) -> Option<u32> {
        let total = self.total.checked_sub(earlier.total).filter(|total| *total > 0)?;
        u32::try_from(self.busy.saturating_sub(earlier.busy).min(total) * 1_000 / total).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_idleness_and_a_guest_is_not_counted_twice() {
        let ticks = |stat| CpuTicks::parse(stat);
        let (then, now) =
            (ticks("cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1").unwrap(), ticks("cpu  200 0 150 1100 50 0 0 0 90 0\n").unwrap());
        assert_eq!((then, now), (CpuTicks { busy: 200, total: 1_000 }, CpuTicks { busy: 350, total: 1_500 }));
        assert_eq!((now.since(then), now.since(now), then.since(now)), (Some(300), None, None));
        assert_eq!((ticks("intr 1"), ticks(""), ticks("cpu  1")), (None, None, None));
        assert!(CpuTicks::parse(&std::fs::read_to_string("/proc/stat").unwrap()).is_some());
    }
}
